# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control plane of volume_backup; its host's part is that of glance_image_export."""

from __future__ import annotations

import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._arguments import (
    BACKUP_RULES,
    backup_spec,
    export_spec,
)
from ansible_collections.imageferry.glance.plugins.module_utils._errors import GuestNotFound
from ansible_collections.imageferry.glance.plugins.plugin_utils._action import FerryAction, cloud_options
from ansible_collections.imageferry.glance.plugins.plugin_utils._backup import Address, BackupExport
from ansible_collections.imageferry.glance.plugins.plugin_utils._cloud import Cloud
from ansible_collections.imageferry.glance.plugins.plugin_utils._export_run import run_export
from ansible_collections.imageferry.glance.plugins.plugin_utils._moment import format_time, now, parse_time


class ActionModule(FerryAction):
    """Exports each disk to an image of its set, unless its content is in one already."""

    def work(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        params = self.options(backup_spec(), **BACKUP_RULES)
        time = format_time(parse_time(params["time"]) if params["time"] else now())
        host = params["host"] or task_vars["inventory_hostname"]
        guest: str | None = None
        labels = {"": params["label"] or _label(params)}
        if params["domain"]:
            known = self.run_module("guest_disk_info", {"guest": params["domain"]}, task_vars)
            if "disks" not in known:
                return known
            guest = known["guest"]["name"]  # also where its UUID is given: it is the same row
            targets = params["disks"] or _worth_keeping(known)
            labels = {target: f"{guest}/{target}" for target in targets}
        cloud, as_export = Cloud(cloud_options(params)), _as_export(params, labels)
        exports = {
            target: BackupExport(cloud, Address(params["set"], host, label, guest), time, as_export)
            for target, label in labels.items()
        }
        result = run_export(self, cloud, as_export, exports, task_vars)
        return {**result, "time": time, "labels": list(labels.values())} if not result.get("failed") else result


def _worth_keeping(known: dict[str, t.Any]) -> list[str]:
    """The disks that the guest writes to.

    :raises GuestNotFound: it has none.
    """
    targets = [disk["target"] for disk in known["disks"] if _is_worth_keeping(disk)]
    if not targets:
        raise GuestNotFound(
            f"The guest {known['guest']['name']} has no disk that it writes to.", "Leave it out of the set."
        )
    return targets


def _is_worth_keeping(disk: dict[str, t.Any]) -> bool:
    return disk["device"] == "disk" and bool(disk["path"]) and not disk["read_only"]


def _label(params: dict[str, t.Any]) -> str:
    """The volume's address, as messages have it."""
    if params["vg"]:
        return f"{params['vg']}/{params['lv']}"
    return params["path"] or params["device"] or f"{params['pool']}/{params['volume']}"


def _as_export(params: dict[str, t.Any], labels: dict[str, str]) -> dict[str, t.Any]:
    """The same task in the options of glance_image_export."""
    defaults = {name: option.get("default") for name, option in export_spec().items()}
    same = {name: value for name, value in params.items() if name in defaults}
    if params["domain"]:
        named: dict[str, t.Any] = {"disks": [{"disk": target, "name": label} for target, label in labels.items()]}
    else:
        named = {"disks": None, "name": labels[""]}
    return {**defaults, **same, **named, "on_existing": "new"}
