# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What glance_image_info and glance_image_facts share."""

from __future__ import annotations

import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._arguments import discovery_spec
from ansible_collections.imageferry.glance.plugins.plugin_utils._action import FerryAction, cloud_options
from ansible_collections.imageferry.glance.plugins.plugin_utils._catalogue import discover
from ansible_collections.imageferry.glance.plugins.plugin_utils._cloud import Cloud


class DiscoveryAction(FerryAction):
    """Finds images, once for all hosts of a play."""

    def work(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        params = self.options(discovery_spec())
        found = self.ask_once(params, lambda: {"images": discover(Cloud(cloud_options(params)), params)})
        return {"changed": False, **self.present(found["images"])}

    def present(self, images: list[dict[str, t.Any]]) -> dict[str, t.Any]:
        """The form in which the module returns what was found."""
        raise NotImplementedError
