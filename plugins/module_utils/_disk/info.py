# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What there is to say of one disk: its volume, the image in it, who uses it, and whether it is sound."""

from __future__ import annotations

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.imageferry.glance.plugins.module_utils._disk.state import (
    Disk,
    check_can_change,
    check_complete,
    read_disk,
)
from ansible_collections.imageferry.glance.plugins.module_utils._errors import FerryError, HasClones, VolumeInUse
from ansible_collections.imageferry.glance.plugins.module_utils._export.task import content_of
from ansible_collections.imageferry.glance.plugins.module_utils._image.backing import check_alone
from ansible_collections.imageferry.glance.plugins.module_utils._image.qemu_img import count_faults
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.connection import connected
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.guests import find_guests
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
        _check_can_read(volume, disk)
        with volume.open() as fd:
            return {"checked": True, "reason": None, **count_faults(fd)}
    except FerryError as err:
        return {"checked": False, "reason": err.what}


def _check_can_read(volume: Volume, disk: Disk) -> None:
    """Judges whether qemu-img may look at a qcow2 alone; what a guest may have written is not followed.

    :raises FerryError: see L(check_can_change).
    """
    if disk.is_trusted:
        check_can_change(volume, disk)
    else:
        check_complete(volume)
        check_alone(disk.head, None if volume.is_block else disk.size.size)
