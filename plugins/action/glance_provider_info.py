# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole of glance_provider_info: it runs on the controller."""

from __future__ import annotations

import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._arguments import cloud_spec
from ansible_collections.imageferry.glance.plugins.plugin_utils._action import FerryAction, cloud_options
from ansible_collections.imageferry.glance.plugins.plugin_utils._cloud import Cloud
from ansible_collections.imageferry.glance.plugins.plugin_utils._provider import describe_provider


class ActionModule(FerryAction):
    """Looks at the cloud, once for all hosts of a play."""

    def work(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        params = self.options(cloud_spec())
        provider = self.ask_once(params, lambda: describe_provider(Cloud(cloud_options(params))))
        return {"changed": False, "provider": provider}
