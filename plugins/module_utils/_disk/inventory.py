# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All volumes of a host that this collection has brought, made or begun, wherever they lie."""

from __future__ import annotations

import contextlib
import os
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.imageferry.glance.plugins.module_utils._disk.state import read_disk
from ansible_collections.imageferry.glance.plugins.module_utils._errors import FerryError, MissingDependency
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.connection import connected
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.guests import find_guests, identity
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.pools import PoolFolder, pool_folders
from ansible_collections.imageferry.glance.plugins.module_utils._volume.choose import open_volume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.file import FileVolume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.interface import Volume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.lvm import tagged_volumes
from ansible_collections.imageferry.glance.plugins.module_utils._volume.staging import has_begun, name_of_volume

Facts = dict[str, t.Any]


def inventory_task(module: AnsibleModule) -> dict[str, t.Any]:
    """What there is to say of all volumes of this collection."""
    with connected() as connection:
        volumes = held_volumes(module.params["folders"], module.params["vgs"], module.params["exclude"], connection)
    return {"changed": False, "volumes": volumes}


def held_volumes(
    folders: t.Sequence[str], vgs: t.Sequence[str] | None, exclude: t.Sequence[str], connection: t.Any
) -> list[Facts]:
    """What there is to say of each, sorted by its path.

    :param folders: those whose files are looked at, beside those of libvirt's pools; one that is not there holds none.
    :param vgs: the volume groups that are looked at; None for all.
    :param exclude: the paths of those that are left out, whatever other names they have.
    :param connection: to libvirt, None where there is none to ask.
    """
    unwanted = {identity(path) for path in exclude} - {None}
    searched = [*pool_folders(connection), *(PoolFolder(folder, None) for folder in folders)]
    places = {place["path"]: place for folder in reversed(searched) for place in _files(folder)}
    places.update({f"/dev/{vg}/{lv}": {"vg": vg, "lv": lv} for vg, lv in _logical_volumes(vgs)})
    # By its path, too: what is not active has no node to tell it by.
    wanted = (place for path, place in sorted(places.items()) if path not in exclude and identity(path) not in unwanted)
    described = (_describe(place, connection) for place in wanted)
    return [facts for facts in described if facts is not None]


def _files(folder: PoolFolder) -> t.Iterator[dict[str, str]]:
    """Addresses of the files in a folder, there or still on their way."""
    try:
        entries = sorted(os.scandir(folder.path), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        name = name_of_volume(entry.name)
        if not name.startswith(".") and entry.is_file(follow_symlinks=False):
            named = {"pool": folder.pool, "volume": name} if folder.pool else {}
            yield {"path": os.path.join(folder.path, name), **named}


def _logical_volumes(vgs: t.Sequence[str] | None) -> list[tuple[str, str]]:
    with contextlib.suppress(MissingDependency):
        return [(vg, lv) for vg, lv in tagged_volumes() if vgs is None or vg in vgs]
    return []


def _describe(place: dict[str, str], connection: t.Any) -> Facts | None:
    """What there is to say of a volume; None when it is none of this collection's."""
    address: Facts = {name: place[name] for name in ("path", "vg", "lv") if name in place}
    try:
        with open_volume(address) as volume:
            facts = _look(volume, connection)
    except FileNotFoundError:  # it was removed meanwhile
        return None
    except FerryError as err:
        unknown = {"exists": True, "unfinished": False, "imported": False, "provenance": None}
        return None if "path" in place else {"type": "lv", **place, **unknown, "error": err.result()}
    return facts and {**facts, **{name: place[name] for name in ("pool", "volume") if name in place}}


def _look(volume: Volume, connection: t.Any) -> Facts | None:
    exists = volume.stat() is not None
    held = volume.provenance() if exists else None
    unfinished = volume.is_unfinished() or (isinstance(volume, FileVolume) and has_begun(volume))
    if held is None and not unfinished:
        return None
    facts = {**volume.describe(), "exists": exists, "unfinished": unfinished}
    imported = held is not None and held.is_image and not held.adopted
    facts.update(imported=imported, provenance=held.to_dict() if held else None)
    guests = find_guests(connection, volume.path)
    disk = read_disk(volume, None, guests) if exists else None
    if disk is not None:
        facts.update(format=disk.format, virtual_size=disk.virtual_size, clones=volume.clones())
        facts.update(size=disk.size.size, allocated=disk.size.allocated)
        facts["guests"] = None if connection is None else sorted({guest.guest for guest in guests})
    return facts
