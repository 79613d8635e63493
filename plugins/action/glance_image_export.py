# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control plane of glance_image_export."""

from __future__ import annotations

import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._arguments import EXPORT_RULES, export_spec
from ansible_collections.imageferry.glance.plugins.plugin_utils._action import FerryAction, cloud_options
from ansible_collections.imageferry.glance.plugins.plugin_utils._cloud import Cloud
from ansible_collections.imageferry.glance.plugins.plugin_utils._export import Export
from ansible_collections.imageferry.glance.plugins.plugin_utils._export_run import run_export


class ActionModule(FerryAction):
    """Exports each disk to the image that is named for it."""

    def work(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        params = self.options(export_spec(), **EXPORT_RULES)
        cloud = Cloud(cloud_options(params))
        asked = params["disks"] or [{"disk": params["disk"] or "", "name": params["name"]}]
        exports = {disk["disk"]: Export(cloud, disk["name"], params) for disk in asked}
        return run_export(self, cloud, params, exports, task_vars)
