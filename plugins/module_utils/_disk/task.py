# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The data planes of all modules that look after disks on a host: from a task's options to its result."""

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
    grow_alone,
    plan_growth,
)
from ansible_collections.imageferry.glance.plugins.module_utils._disk.inventory import held_volumes
from ansible_collections.imageferry.glance.plugins.module_utils._disk.state import Disk, check_can_change, read_disk
from ansible_collections.imageferry.glance.plugins.module_utils._errors import FerryError, HasClones, VolumeInUse
from ansible_collections.imageferry.glance.plugins.module_utils._export.task import content_of
from ansible_collections.imageferry.glance.plugins.module_utils._image.qemu_img import count_faults
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.connection import connected
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.guests import find_guests
from ansible_collections.imageferry.glance.plugins.module_utils._module import mode_of_new_file
from ansible_collections.imageferry.glance.plugins.module_utils._sizes import parse_size
from ansible_collections.imageferry.glance.plugins.module_utils._volume.choose import open_volume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.holes import find_holes
from ansible_collections.imageferry.glance.plugins.module_utils._volume.interface import Volume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.storage import storage_errors


def info_task(module: AnsibleModule) -> dict[str, t.Any]:
    """What there is to say of a volume."""
    params = module.params
    with open_volume(params) as volume, connected() as connection:
        guests = find_guests(connection, volume.path)
        disk = read_disk(volume, params["format"], guests)
        facts = {**volume.describe(), "exists": disk is not None, "unfinished": volume.is_unfinished()}
        if disk is not None:
            facts.update(_contents(volume, disk))
            facts["guests"] = None if connection is None else [guest.to_dict() for guest in guests]
            if params["check"]:
                facts["health"] = _health(volume, disk)
            if params["content"]:
                facts["content"] = content_of(params, connection)
    return {"changed": False, "volume": facts}


def inventory_task(module: AnsibleModule) -> dict[str, t.Any]:
    """What there is to say of all volumes of this collection."""
    with connected() as connection:
        volumes = held_volumes(module.params["folders"], module.params["vgs"], module.params["exclude"], connection)
    return {"changed": False, "volumes": volumes}


def _contents(volume: Volume, disk: Disk) -> dict[str, t.Any]:
    with volume.open() as fd, storage_errors(f"read {volume.label}"):
        holes = find_holes(fd)
    return {
        "format": disk.format,
        "format_source": disk.format_source,
        "size": disk.size.size,
        "allocated": disk.size.allocated,
        "virtual_size": disk.virtual_size,
        "provenance": disk.provenance.to_dict() if disk.provenance else None,
        "backing_chain": [dict(link._asdict()) for link in disk.chain(volume.path)],
        "clones": volume.clones(),
        "in_use": _user(volume),
        "holes": dict(holes._asdict()),
    }


def _user(volume: Volume) -> str | None:
    """Who uses the volume, in words; clones are told of apart."""
    try:
        volume.check_not_in_use()
    except HasClones:
        return None
    except VolumeInUse as err:
        return err.what
    return None


def _health(volume: Volume, disk: Disk) -> dict[str, t.Any]:
    """What qemu-img finds, or why it was not asked."""
    if disk.format != "qcow2":
        return {"checked": False, "reason": f"A {disk.format} disk has no structure to check."}
    user = _user(volume)
    if user:
        return {"checked": False, "reason": user}
    try:
        check_can_change(volume, disk._replace(format_source="option"))
        with volume.open() as fd:
            return {"checked": True, "reason": None, **count_faults(fd)}
    except FerryError as err:
        return {"checked": False, "reason": err.what}


def extend_task(module: AnsibleModule) -> dict[str, t.Any]:
    """Grows a volume and its disk; returns the task's result.

    :raises FerryError: it cannot be grown.
    """
    params = module.params
    with open_volume(params) as volume, connected() as connection:
        growth = plan_growth(volume, params["size"], params["format"], params["only"], connection)
        if growth.changes and not module.check_mode:
            growth = grow_alone(volume, params["size"], params["format"], params["only"], connection)
        before, after = growth.before.to_dict(), growth.after.to_dict()
        told = f"; the running guest {growth.guest.guest} sees it" if growth.guest else ""
        verb = ("Would extend" if module.check_mode else "Extended") if growth.changes else "Nothing to do"
        return {
            "changed": growth.changes,
            "msg": f"{verb}{' ' if growth.changes else ': '}{growth.reason}{told}.",
            "volume": volume.describe(),
            "before": before,
            "after": after,
            "diff": {"before": before, "after": after},
        }


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
    change = plan_removal(volume)
    if change.action == "remove" and not module.check_mode:
        remove(volume, module.params["wipe"])
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
