# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The data plane of the module volume: from a task's options to its result."""

from __future__ import annotations

import contextlib
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.imageferry.glance.plugins.module_utils._disk.creation import (
    Base,
    Change,
    Wanted,
    check_options,
    clone_format,
    create,
    plan_creation,
    plan_removal,
    read_base,
    remove,
)
from ansible_collections.imageferry.glance.plugins.module_utils._disk.growth import (
    LOCK_SECONDS,
    grow,
)
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.connection import connected
from ansible_collections.imageferry.glance.plugins.module_utils._module import mode_of_new_file
from ansible_collections.imageferry.glance.plugins.module_utils._sizes import parse_size
from ansible_collections.imageferry.glance.plugins.module_utils._volume.choose import open_volume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.interface import Volume


def volume_task(module: AnsibleModule) -> dict[str, t.Any]:
    """Has a volume be there, or not; returns the task's result.

    :raises FerryError: it cannot be so.
    """
    mode = mode_of_new_file(module)
    with contextlib.ExitStack() as opened:
        connection = opened.enter_context(connected())
        preallocation = module.params["preallocation"]
        raw_preallocation = preallocation if preallocation in ("falloc", "full") else "off"
        volume = opened.enter_context(open_volume(module.params, mode, raw_preallocation))
        if module.params["state"] == "absent":
            change = _remove(module, volume)
        else:
            change = _ensure(module, volume, _base(module.params["clone_of"], opened), connection)
        return _result(module, volume, change)


def _base(clone_of: dict[str, t.Any] | None, opened: contextlib.ExitStack) -> Base | None:
    return read_base(opened.enter_context(open_volume(clone_of)), clone_of["format"]) if clone_of else None


def _remove(module: AnsibleModule, volume: Volume) -> Change:
    wipe = module.params["wipe"]
    change = plan_removal(volume, wipe)
    if change.action != "unchanged" and not module.check_mode:
        remove(volume, wipe)
    return change


def _ensure(module: AnsibleModule, volume: Volume, base: Base | None, connection: t.Any) -> Change:
    params = module.params
    wanted = Wanted(
        params["format"] or (clone_format(base) if base else "raw"),
        None if params["size"] is None else parse_size(params["size"], "size"),
        None if params["cluster_size"] is None else parse_size(params["cluster_size"], "cluster_size"),
        params["preallocation"],
    )
    check_options(wanted, base)
    change = plan_creation(volume, wanted, base, connection)
    if change.growth is not None and not module.check_mode:
        with volume.locked(LOCK_SECONDS):
            change = plan_creation(volume, wanted, base, connection)  # again: somebody may have grown it meanwhile
            if change.growth is not None:
                grow(volume, change.growth, connection)
    if change.action == "create" and not module.check_mode:
        create(volume, wanted, base)
    return change


_DONE = {
    "unchanged": ("Nothing to do: ", "Nothing to do: "),
    "create": ("Created: ", "Would create: "),
    "grow": ("Extended ", "Would extend "),
    "remove": ("Removed: ", "Would remove: "),
    "wipe": ("Wiped: ", "Would wipe: "),
}


def _result(module: AnsibleModule, volume: Volume, change: Change) -> dict[str, t.Any]:
    changed = change.action != "unchanged"
    diff = {"before": dict(change.before), "after": dict(change.after)}
    if not volume.is_block and change.after["state"] == "present" and volume.stat() is not None:
        news = {} if change.action == "create" else diff
        attributes = module.load_file_common_arguments(module.params, path=volume.path)
        changed = module.set_fs_attributes_if_different(attributes, changed, diff=news)
    return {
        "changed": changed,
        "msg": f"{_DONE[change.action][module.check_mode]}{change.reason}.",
        "volume": {**volume.describe(), **change.after},
        "diff": diff,
    }
