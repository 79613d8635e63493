# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole of backup_prune: it runs on the controller."""

from __future__ import annotations

import datetime
import re
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._arguments import backup_prune_spec
from ansible_collections.imageferry.glance.plugins.module_utils._errors import InvalidOption
from ansible_collections.imageferry.glance.plugins.plugin_utils import _record
from ansible_collections.imageferry.glance.plugins.plugin_utils._action import FerryAction, cloud_options
from ansible_collections.imageferry.glance.plugins.plugin_utils._backup import (
    DISK,
    HOST,
    Doomed,
    Keep,
    backup_images,
    doomed,
    let_go,
    points,
    times_of,
)
from ansible_collections.imageferry.glance.plugins.plugin_utils._cloud import Cloud
from ansible_collections.imageferry.glance.plugins.plugin_utils._moment import now

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_COUNTS = ("last", "daily", "weekly", "monthly")


class ActionModule(FerryAction):
    """Removes the backups of a set that are not to be kept, once for all hosts of a play."""

    def work(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        params = self.options(backup_prune_spec())
        return self.ask_once({**params, "check_mode": self.is_check}, lambda: _prune(params, self.is_check))


def _prune(params: dict[str, t.Any], is_check: bool) -> dict[str, t.Any]:
    keep = _keep(params)
    if params["disks"] == []:
        return {"changed": False, "msg": "Nothing to do: no disks are given.", "removed": []}
    cloud = Cloud(cloud_options(params))
    images = [image for image in backup_images(cloud, params["set"]) if _is_asked_for(image, params)]
    going = doomed(points(images), keep, now())
    for item in going:
        if not item.left:
            _record.check_removable(item.image, params["unprotect"])
    if not is_check:
        going = [let_go(cloud, item, params["unprotect"]) for item in going]
    removed = [_described(item, time) for item in going for time in item.lost]
    before = sorted(_address(image, time) for image in images for time in times_of(image))
    gone = {_address(item.image, time) for item in going for time in item.lost}
    done = "Would remove" if is_check else "Removed"
    return {
        "changed": bool(removed),
        "msg": f"{done} {len(removed)} of {len(before)} backups." if removed else "Nothing to do: all are to be kept.",
        "removed": removed,
        "diff": {"before": {"backups": before}, "after": {"backups": [name for name in before if name not in gone]}},
    }


def _is_asked_for(image: dict[str, t.Any], params: dict[str, t.Any]) -> bool:
    is_of_host = params["host"] in (None, image[HOST])
    return is_of_host and (params["disks"] is None or image[DISK] in params["disks"])


def _keep(params: dict[str, t.Any]) -> Keep:
    counts = {name: params[f"keep_{name}"] for name in _COUNTS}
    if min(counts.values()) < 0:
        raise InvalidOption("A number of backups to keep is less than 0.", "Write how many there are to be.")
    match = re.fullmatch(r"(\d+)\s*([mhdw])", params["min_age"].strip())
    if match is None:
        raise InvalidOption(
            f"'min_age: {params['min_age']}' is no duration.", "Write one such as 12h, 7d or 4w (m is for minutes)."
        )
    min_age = datetime.timedelta(**{_UNITS[match[2]]: int(match[1])})
    if not min_age and not any(counts.values()):
        raise InvalidOption("Nothing says what is to be kept.", "Set 'keep_last', 'keep_daily' or another of them.")
    return Keep(**counts, min_age=min_age)


def _described(item: Doomed, time: str) -> dict[str, t.Any]:
    image = item.image
    return {"host": image[HOST], "disk": image[DISK], "time": time, "image": image["id"], "deleted": not item.left}


def _address(image: dict[str, t.Any], time: str) -> str:
    return f"{image[HOST]} {image[DISK]} {time}"
