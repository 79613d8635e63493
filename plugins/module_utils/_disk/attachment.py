# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a guest has a disk, and what is to be done for it to have it, or not."""

from __future__ import annotations

import re
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._disk.state import check_can_change, read_disk
from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    AttachedOtherwise,
    InvalidOption,
    TargetTaken,
    UnsupportedFormat,
    VolumeInUse,
    VolumeNotFound,
)
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.disks import next_target, planes_of
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.guests import (
    Drive,
    find_guests,
    is_same,
    list_drives,
)
from ansible_collections.imageferry.glance.plugins.module_utils._volume.interface import Volume

_TARGET = re.compile("[a-z]{2}[a-z]{1,2}")
_DISKS = ("disk", "lun")


class Wish(t.NamedTuple):
    """How a guest is to have a disk; None where it does not matter."""

    target: str | None
    bus: str | None
    format: str | None
    read_only: bool


class Attachment(t.NamedTuple):
    """What is to be done.

    :param drive: the disk; None when there is none to detach.
    :param planes: where it is to be attached or detached, see L(planes_of), and what it is there, as a running guest
        may have it elsewhere than its definition does; nowhere when nothing is to be done.
    :param was_there: whether the guest has it already, if only in its definition or only until it is shut off.
    """

    drive: Drive | None
    planes: dict[bool, Drive]
    was_there: bool


class GuestDisks:
    """The disks of a guest, as it runs and in its definition."""

    def __init__(self, connection: t.Any, domain: t.Any) -> None:
        self._connection, self._domain = connection, domain
        self._name: str = domain.name()
        self._planes = {live: list_drives(connection, domain, live) for live in planes_of(domain)}

    def plan_attaching(self, volume: Volume, wish: Wish) -> Attachment:
        """Decides what is to be done for the guest to have the volume as a disk; changes nothing.

        :raises VolumeNotFound: there is no such volume.
        :raises VolumeInUse: somebody else uses it.
        :raises TargetTaken, AttachedOtherwise: the guest has another disk there, or has this one elsewhere.
        :raises FerryError: see L(check_can_change).
        """
        if wish.target is not None and not _TARGET.fullmatch(wish.target):
            raise InvalidOption(f"'target: {wish.target}' is no name of a disk.", "Give one such as vdb.")
        there = {live: drive for live in self._planes if (drive := self._holding(volume.path, live))}
        if there:
            drive = next(iter(there.values()))
            _check_is_wish(volume, drive, wish, self._name)
        else:
            drive = self._new(volume, wish)
        missing = [live for live in self._planes if live not in there]
        for live in missing:
            self._check_target_free(drive.target, live)
        return Attachment(drive, dict.fromkeys(missing, drive), bool(there))

    def plan_detaching(self, path: str | None, target: str | None) -> Attachment:
        """Decides what is to be done for the guest not to have a disk; changes nothing.

        :param path: of the volume; None for whatever is at the target.
        :raises TargetTaken: another disk is at the target.
        """
        found = {}
        for live in self._planes:
            drive = self._holding(path, live) if path is not None and target is None else self._at(target, live)
            if drive is None:
                continue
            if target is not None and (drive.device not in _DISKS or (path and not _is_at(drive, path))):
                raise TargetTaken(
                    f"{target} of the guest {self._name} is not {path or 'a disk'}, but "
                    f"{_describe(drive)}.", "See imageferry.glance.guest_disk_info for what is where."
                )  # fmt: skip
            found[live] = drive
        return Attachment(next(iter(found.values()), None), found, bool(found))

    def _holding(self, path: str | None, live: bool) -> Drive | None:
        disks = [drive for drive in self._planes[live] if drive.device in _DISKS]
        return next((drive for drive in disks if path is not None and _is_at(drive, path)), None)

    def _at(self, target: str | None, live: bool) -> Drive | None:
        return next((drive for drive in self._planes[live] if drive.target == target), None)

    def _new(self, volume: Volume, wish: Wish) -> Drive:
        """The disk that the guest is to get."""
        guests = find_guests(self._connection, volume.path)
        for other in guests:
            harmless = wish.read_only and (other.read_only or other.backing)
            if not harmless and (other.guest != self._name or other.backing):
                raise VolumeInUse(
                    f"{volume.label} is {'below ' if other.backing else ''}{other.target} of the guest {other.guest}.",
                    "Detach it there first; several guests may have a disk when all of them only read it.",
                )
        disk = read_disk(volume, wish.format, guests)
        if disk is None:
            raise VolumeNotFound(f"{volume.label} does not exist.")
        check_can_change(volume, disk)
        image_format = "raw" if disk.format == "iso" else disk.format
        if image_format not in ("raw", "qcow2"):
            raise UnsupportedFormat(f"{volume.label} is {disk.format}.", "Convert it to raw or qcow2.")
        if not wish.read_only:
            volume.check_writable()
            volume.check_not_in_use()
        bus = wish.bus or "virtio"
        taken = {drive.target for drives in self._planes.values() for drive in drives}
        return Drive(wish.target or next_target(bus, taken), bus, "disk", volume.path, image_format, wish.read_only)

    def _check_target_free(self, target: str, live: bool) -> None:
        taken = self._at(target, live)
        if taken is not None:
            raise TargetTaken(f"The guest {self._name} has {_describe(taken)} at {target}.")


def _is_at(drive: Drive, path: str) -> bool:
    return drive.path is not None and is_same(drive.path, path)


def _describe(drive: Drive) -> str:
    return f"{drive.path}" if drive.path else f"a {drive.device}" if drive.device != "disk" else "another disk"


def _check_is_wish(volume: Volume, drive: Drive, wish: Wish, guest: str) -> None:
    """
    :raises AttachedOtherwise: the guest has it, but not as wished.
    """
    for name in ("target", "bus", "format", "read_only"):
        wanted, found = getattr(wish, name), getattr(drive, name)
        if wanted is not None and wanted != found:
            raise AttachedOtherwise(
                f"The guest {guest} has {volume.label} at {drive.target} already, with '{name}: {found}'."
            )
