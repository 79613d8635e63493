# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a volume holds: its disk, the disk's format, and who says so."""

from __future__ import annotations

import os
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import FormatMismatch, VolumeInvalid
from ansible_collections.imageferry.glance.plugins.module_utils._image.backing import Link, check_overlay, read_chain
from ansible_collections.imageferry.glance.plugins.module_utils._image.formats import HEAD_SIZE, detect
from ansible_collections.imageferry.glance.plugins.module_utils._image.qcow2 import Qcow2Header, read_virtual_size
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.guests import GuestDisk
from ansible_collections.imageferry.glance.plugins.module_utils._volume.interface import Volume, VolumeSize
from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import Provenance
from ansible_collections.imageferry.glance.plugins.module_utils._volume.storage import storage_errors


class Disk(t.NamedTuple):
    """What is on a volume.

    :param size: of the volume.
    :param format: the disk's format.
    :param format_source: who says so: C(option), C(provenance), C(guest) for libvirt's definition of one that has the
        disk, or C(detected) from the first bytes, which a guest may have written.
    :param head: its first bytes.
    :param provenance: which image it holds.
    """

    size: VolumeSize
    format: str
    format_source: str
    head: bytes
    provenance: Provenance | None

    @property
    def is_trusted(self) -> bool:
        """Whether the format is known from somebody who is no guest."""
        return self.format_source != "detected"

    @property
    def virtual_size(self) -> int | None:
        """The bytes that a guest sees; None when the format does not show."""
        if self.format != "qcow2":
            return self.size.size if self.format in ("raw", "iso") else None
        return read_virtual_size(self.head) if detect(self.head) == "qcow2" else None

    def chain(self, path: str) -> list[Link]:
        """The images below it; they are only opened when the format is trusted."""
        if self.format != "qcow2" or detect(self.head) != "qcow2":
            return []
        return read_chain(self.head, path, follow=self.is_trusted)


def read_disk(volume: Volume, asked: str | None, guests: t.Sequence[GuestDisk]) -> Disk | None:
    """What is on the volume; None when there is none.

    :param asked: the format that the user says it has.
    :raises VolumeInvalid: something else is there, or it cannot be read.
    """
    there = volume.stat()
    if there is None:
        return None
    with volume.open() as fd, storage_errors(f"read {volume.label}"):
        head = os.pread(fd, HEAD_SIZE, 0)
    held = volume.provenance()
    told = {
        "option": asked,
        "provenance": held.format if held else None,
        "guest": next((disk.format for disk in guests if not disk.backing and disk.format), None),
    }
    source = next((source for source, name in told.items() if name), "detected")
    return Disk(there, told.get(source) or detect(head), source, head, held)


def check_complete(volume: Volume) -> None:
    """
    :raises VolumeInvalid: its import was not completed.
    """
    if volume.is_unfinished():
        raise VolumeInvalid(f"An import to {volume.label} was not completed.", "Run the import again first.")


def check_can_change(volume: Volume, disk: Disk, option: str = "format") -> Qcow2Header | None:
    """Judges whether the disk may be handed to qemu, or to whoever changes it; a qcow2's header.

    :param option: the one that says the disk's format.
    :raises VolumeInvalid: its import was not completed, or its format is nobody's word but its own.
    :raises FormatMismatch: it is not in the format that is said.
    :raises UnsafeImage, UnsupportedFormat, DamagedImage: see L(check_overlay).
    """
    check_complete(volume)
    if disk.format != "qcow2":
        if not disk.is_trusted and disk.format != "raw":
            _refuse_guess(volume, disk, option)
        return None
    if not disk.is_trusted:
        _refuse_guess(volume, disk, option)
    found = detect(disk.head)
    if found != "qcow2":
        raise FormatMismatch(f"{volume.label} is said to be qcow2, but is {found}.", f"Set '{option}' to what it is.")
    return check_overlay(disk.head, volume.path, None if volume.is_block else disk.size.size)[0]


def _refuse_guess(volume: Volume, disk: Disk, option: str) -> None:
    raise VolumeInvalid(
        f"{volume.label} looks like {disk.format}, but a guest may have written that to a raw disk.",
        f"Set '{option}: {disk.format}' if it is, or '{option}: raw'.",
    )
