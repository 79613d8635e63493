# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole of backup_info: it runs on the controller."""

from __future__ import annotations

import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._arguments import backup_info_spec
from ansible_collections.imageferry.glance.plugins.plugin_utils._action import FerryAction, cloud_options
from ansible_collections.imageferry.glance.plugins.plugin_utils._backup import GUEST, Point, backup_images, points
from ansible_collections.imageferry.glance.plugins.plugin_utils._cloud import Cloud
from ansible_collections.imageferry.glance.plugins.plugin_utils._moment import parse_time


class ActionModule(FerryAction):
    """Lists what can be restored, once for all hosts of a play."""

    def work(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        params = self.options(backup_info_spec())
        return self.ask_once(params, lambda: {"changed": False, "backups": _find(params)})


def _find(params: dict[str, t.Any]) -> list[dict[str, t.Any]]:
    images = backup_images(Cloud(cloud_options(params)), params["set"])
    found = [point for point in points(images) if _is_of(point, params)]
    if params["at"]:
        limit = parse_time(params["at"], "at")
        found = [point for point in found if point.moment <= limit]
    if params["at"] or params["newest"]:
        found = list({point[:3]: point for point in found}.values())  # the last one of each disk
    return [point.to_dict() for point in found]


def _is_of(point: Point, params: dict[str, t.Any]) -> bool:
    found = {"host": point.host, "disk": point.disk, "guest": point.image.get(GUEST)}
    return all(params[name] in (None, value) for name, value in found.items())
