# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Making a disk, blank or as a thin clone of another, and removing one."""

from __future__ import annotations

import dataclasses
import os
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._disk.growth import (
    LOCK_SECONDS,
    SECTOR,
    Growth,
    grow_alone,
    plan_growth,
    volume_unit,
)
from ansible_collections.imageferry.glance.plugins.module_utils._disk.qcow2 import complete_qcow2
from ansible_collections.imageferry.glance.plugins.module_utils._disk.state import Disk, check_can_change, read_disk
from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    InvalidOption,
    UnsupportedFormat,
    VolumeExists,
    VolumeInUse,
    VolumeInvalid,
    VolumeNotFound,
)
from ansible_collections.imageferry.glance.plugins.module_utils._image import qemu_img
from ansible_collections.imageferry.glance.plugins.module_utils._image.backing import read_backing
from ansible_collections.imageferry.glance.plugins.module_utils._image.formats import detect
from ansible_collections.imageferry.glance.plugins.module_utils._image.qcow2 import check_kind
from ansible_collections.imageferry.glance.plugins.module_utils._image.qemu_img import Qcow2Options, require_qemu_img
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.guests import find_guests, is_same
from ansible_collections.imageferry.glance.plugins.module_utils._sizes import round_up
from ansible_collections.imageferry.glance.plugins.module_utils._volume.block_writer import device_size
from ansible_collections.imageferry.glance.plugins.module_utils._volume.clones import check_no_clones, note_clone
from ansible_collections.imageferry.glance.plugins.module_utils._volume.interface import Staged, Volume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.lvm import LvmVolume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import Provenance
from ansible_collections.imageferry.glance.plugins.module_utils._volume.sparse import PIECE, pieces
from ansible_collections.imageferry.glance.plugins.module_utils._volume.staging import left_behind
from ansible_collections.imageferry.glance.plugins.module_utils._volume.storage import storage_errors

BLANK = "blank"
"""The source of a disk that came from nowhere."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The disk that is to be there.

    :param format: C(raw) or C(qcow2).
    :param size: the least virtual size in bytes; None for a clone's base's.
    :param cluster_size: of a qcow2, in bytes; None for qemu's own.
    :param preallocation: in qemu's words.
    """

    format: str
    size: int | None
    cluster_size: int | None
    preallocation: str


@dataclasses.dataclass(frozen=True)
class Base:
    """The disk that a clone stands on."""

    volume: Volume
    format: str
    virtual_size: int
    provenance: Provenance | None


@dataclasses.dataclass(frozen=True)
class Change:
    """What is to be done: C(action) is V(unchanged), V(create), V(grow), V(remove) or V(wipe)."""

    action: str
    reason: str
    before: dict[str, t.Any]
    after: dict[str, t.Any]
    growth: Growth | None = None


def read_base(volume: Volume, asked_format: str | None) -> Base:
    """The disk that is to be cloned.

    :raises VolumeNotFound: it is not there.
    :raises VolumeInvalid: it is not complete, or its format is not known.
    :raises VolumeInUse: a guest writes to it.
    """
    disk = read_disk(volume, asked_format, ())
    if disk is None:
        raise VolumeNotFound(f"{volume.label}, which is to be cloned, does not exist.")
    header = check_can_change(volume, disk, "clone_of.format")
    if disk.format not in ("raw", "qcow2"):
        raise UnsupportedFormat(f"{volume.label} is {disk.format}, which is not cloned.")
    return Base(volume, disk.format, header.virtual_size if header else disk.size.size, disk.provenance)


def plan_creation(volume: Volume, wanted: Wanted, base: Base | None, connection: t.Any) -> Change:
    """Decides what is to be done for the disk to be there; changes nothing.

    :raises VolumeExists: something else is there.
    :raises InvalidOption, UnsupportedFormat: such a disk cannot be.
    """
    if base is not None and wanted.size is not None and wanted.size < base.virtual_size:
        raise InvalidOption(
            f"A clone of {base.volume.label} has at least its {base.virtual_size} bytes.", "Leave out 'size'."
        )
    disk = read_disk(volume, None, find_guests(connection, volume.path))
    if disk is not None and not _is_free(volume, disk, wanted, base):
        return _plan_existing(volume, disk, wanted, base, connection)
    if wanted.size is None and base is None:
        raise InvalidOption(f"{volume.label} does not exist, and 'size' does not say how large to make it.")
    if base is not None:
        _check_can_clone(volume, base)
        _check_not_written(base, connection)
    if wanted.format == "qcow2":
        require_qemu_img()
    return Change("create", *_before(volume, disk), _described(volume, wanted, base))


def _before(volume: Volume, disk: Disk | None) -> tuple[str, dict[str, t.Any]]:
    """Why a disk is made, and what is in its place before."""
    if disk is None:
        return f"{volume.label} did not exist", {"state": "absent"}
    if volume.is_unfinished():
        return f"{volume.label} had been begun and was not completed", {"state": "unfinished"}
    return f"nothing but zeros was on {volume.label}", {"state": "absent"}


def _is_free(volume: Volume, disk: Disk, wanted: Wanted, base: Base | None) -> bool:
    """Whether it is a block device that nobody uses, and that a blank disk may be made on.

    That is one with nothing on it where a qcow2 is to be, or one on which a blank disk was begun: nothing of that is
    gone on with.
    """
    if not volume.is_block or disk.provenance is not None:
        return False
    if volume.is_unfinished():
        begun = volume.begun()
        is_free = base is None and begun is not None and begun.source == BLANK
    else:
        is_free = wanted.format == "qcow2" and volume.is_blank()
    if is_free:
        volume.check_writable()
        volume.check_not_in_use()
    return is_free


def _check_can_clone(volume: Volume, base: Base) -> None:
    """
    :raises UnsupportedFormat: the one is a file, and the other is none; or they are no thin logical volumes.
    """
    if isinstance(volume, LvmVolume) and isinstance(base.volume, LvmVolume):
        volume.check_can_clone(base.volume)
    elif volume.is_block or base.volume.is_block:
        raise UnsupportedFormat(
            f"{volume.label} cannot be a clone of {base.volume.label}.",
            "A clone of a file is a file. Of block devices only thin logical volumes are cloned, named by 'vg' and "
            "'lv', within their volume group.",
        )


def _plan_existing(volume: Volume, disk: Disk, wanted: Wanted, base: Base | None, connection: t.Any) -> Change:
    if volume.is_unfinished():
        raise VolumeExists(f"An import to {volume.label} was begun, and is not completed.",
                           "Run the import again, or give it up with 'state: absent'.")  # fmt: skip
    _check_is_wanted(volume, disk, wanted, base)
    now = {"state": "present", "format": disk.format, "virtual_size": disk.virtual_size}
    reason = f"{volume.label} is there already"
    if wanted.size is not None:
        growth = plan_growth(volume, str(wanted.size), wanted.format, None, connection)
        if growth.changes:
            return Change("grow", growth.reason, now, {**now, "virtual_size": growth.after.virtual_size}, growth)
    return Change("unchanged", reason, now, now)


def _check_is_wanted(volume: Volume, disk: Disk, wanted: Wanted, base: Base | None) -> None:
    """
    :raises VolumeExists: what is there is not what is wanted.
    """
    remedy = "Choose another place, or remove it first with 'state: absent'."
    if disk.format != wanted.format or (disk.format == "qcow2" and detect(disk.head) != "qcow2"):
        raise VolumeExists(f"{volume.label} exists, and is {disk.format}, not {wanted.format}.", remedy)
    if base is not None and base.volume.is_block:
        if volume.label not in base.volume.clones():
            raise VolumeExists(f"{volume.label} exists, and is no clone of {base.volume.label}.", remedy)
        return
    below = read_backing(disk.head, os.path.dirname(os.path.realpath(volume.path))) if disk.format == "qcow2" else None
    if base is not None and (below is None or not is_same(below.path, base.volume.path)):
        raise VolumeExists(f"{volume.label} exists, and is no clone of {base.volume.label}.", remedy)
    if base is None and below is not None:
        raise VolumeExists(f"{volume.label} exists, and is laid over {below.path}.", remedy)
    held = disk.provenance
    if base is None and held is not None and held.source != BLANK:
        raise VolumeExists(f"{volume.label} exists, and holds the image {held.name or held.source}.", remedy)


def _check_not_written(base: Base, connection: t.Any) -> None:
    """
    :raises VolumeInUse: a running guest has the base as a disk that it writes to.
    """
    for disk in find_guests(connection, base.volume.path):
        if disk.running and not disk.backing and not disk.read_only:
            raise VolumeInUse(f"The guest {disk.guest} writes to {base.volume.label}.", "Stop it before cloning it.")


def _described(volume: Volume, wanted: Wanted, base: Base | None) -> dict[str, t.Any]:
    facts = {"state": "present", "format": wanted.format, "virtual_size": _virtual_size(volume, wanted, base)}
    return {**facts, "clone_of": base.volume.label} if base else facts


def _virtual_size(volume: Volume, wanted: Wanted, base: Base | None) -> int:
    least = max(wanted.size or 0, base.virtual_size if base else 0)
    if wanted.format != "raw":
        return round_up(least, SECTOR)
    there = volume.stat() if volume.is_block else None  # one that was begun
    return round_up(max(least, there.size if there else 0), volume_unit(volume))


def create(volume: Volume, wanted: Wanted, base: Base | None) -> None:
    """Makes the disk; it appears whole or not at all.

    :raises VolumeExists: something has come into being there meanwhile.
    :raises VolumeInUse: what is to be cloned was replaced meanwhile.
    :raises NoSpace: there is no room for it.
    """
    if base is None:
        _make(volume, wanted, None)
        return
    with base.volume.locked(LOCK_SECONDS):
        if read_base(base.volume, base.format) != base:
            raise VolumeInUse(f"{base.volume.label} was changed while it was to be cloned.", "Run the task again.")
        if isinstance(volume, LvmVolume) and isinstance(base.volume, LvmVolume):
            volume.clone(base.volume, _origin(wanted, base, 0), LOCK_SECONDS)
        else:
            _make(volume, wanted, base)
    if volume.is_block and wanted.size is not None:
        grow_alone(volume, str(wanted.size), wanted.format, None, None)


def _make(volume: Volume, wanted: Wanted, base: Base | None) -> None:
    size = _virtual_size(volume, wanted, base)
    origin = _origin(wanted, base, size)
    with volume.staged(LOCK_SECONDS, origin, False) as staged, storage_errors(f"write {volume.label}"):
        if volume.is_block:
            _check_still_free(volume, wanted, base)
        if wanted.format == "raw":
            staged.reserve(size)
            staged.sink.finish(size)
        else:
            _make_qcow2(volume, staged, wanted, base, size)
        if base is not None:
            note_clone(base.volume.path, volume.path)
        staged.publish(origin, over=False)


def _check_still_free(volume: Volume, wanted: Wanted, base: Base | None) -> None:
    """
    :raises VolumeExists: what is there now would be written over.
    """
    disk = read_disk(volume, None, ())
    if disk is not None and not _is_free(volume, disk, wanted, base):
        raise VolumeExists(f"Something has come to be on {volume.label} meanwhile.", "Look at it, and run this again.")


def _make_qcow2(volume: Volume, staged: Staged, wanted: Wanted, base: Base | None, size: int) -> None:
    options = Qcow2Options(cluster_size=wanted.cluster_size, preallocation=wanted.preallocation)
    whole = volume.is_block or wanted.preallocation in ("falloc", "full")
    staged.reserve(qemu_img.measure_blank(size, "qcow2", options).fully_allocated if whole else None)
    qemu_img.create(staged.fd, "qcow2", size, options, (base.volume.path, base.format) if base else None)
    complete_qcow2(volume, staged)


def _origin(wanted: Wanted, base: Base | None, size: int) -> Provenance:
    if base is None:
        return Provenance(BLANK, None, None, None, size, wanted.format)
    held = base.provenance
    return Provenance(base.volume.label, held.name if held else None, None, None, None, wanted.format,
                      metadata=held.metadata if held else None)  # fmt: skip


def plan_removal(volume: Volume, wipe: bool) -> Change:
    """Decides whether there is anything to remove, or on a device to wipe.

    :raises VolumeInvalid: it is a device, and not to be wiped.
    :raises VolumeInUse: somebody uses it.
    :raises HasClones: clones stand on it.
    """
    absent = {"state": "absent"}
    with left_behind(volume) as files:
        left = [os.path.join(os.path.dirname(file.path), file.partial) for file in files]
    told = f"an import that was given up had left {' and '.join(left)}"
    if volume.stat() is None:
        if left:
            return Change("remove", told, {"state": "unfinished"}, absent)
        return Change("unchanged", f"{volume.label} does not exist", absent, absent)
    volume.check_writable()
    volume.check_not_in_use()
    check_no_clones(volume.label, volume.clones())
    besides = f", and {told}" if left else ""
    if volume.describe()["type"] != "device":
        return Change("remove", f"{volume.label} existed{besides}", {"state": "present"}, absent)
    if not wipe:
        raise VolumeInvalid(f"{volume.label} is a device, which cannot be removed.", "Set 'wipe: true' to wipe it.")
    if not left and _holds_only_zeros(volume):
        return Change("unchanged", f"nothing but zeros is on {volume.label}", absent, absent)
    return Change("wipe", f"{volume.label} is a device, and stays{besides}", {"state": "present"}, absent)


def _holds_only_zeros(volume: Volume) -> bool:
    """Whether all of a device reads as zeros, and nothing else is known of it."""
    if volume.provenance() is not None or volume.is_unfinished() or not volume.is_blank():
        return False
    zeros = bytes(PIECE)
    with volume.open() as fd, storage_errors(f"read {volume.label}"):
        return all(zeros.startswith(piece) for piece in pieces(fd, device_size(fd)))


def remove(volume: Volume, wipe: bool) -> None:
    """Removes or wipes what L(plan_removal) found."""
    with left_behind(volume) as files:
        for file in files:
            file.remove_given_up(wipe)
    volume.remove(wipe)


def clone_format(base: Base) -> str:
    """What a clone is: an overlay of a file, or a snapshot of a logical volume with all that is on it."""
    return base.format if base.volume.is_block else "qcow2"


def check_options(wanted: Wanted, base: Base | None) -> None:
    """
    :raises InvalidOption: options do not go together.
    """
    if base is not None and wanted.format != clone_format(base):
        raise InvalidOption(f"A thin clone of {base.volume.label} is {clone_format(base)}.", "Leave out 'format'.")
    if base is not None and (wanted.preallocation != "off" or (base.volume.is_block and wanted.cluster_size)):
        raise InvalidOption("A thin clone has no preallocation, and a snapshot no clusters of its own.",
                            "Leave out 'preallocation' and 'cluster_size'.")  # fmt: skip
    if wanted.format == "raw" and (wanted.cluster_size or wanted.preallocation == "metadata"):
        raise InvalidOption("A raw disk has no clusters and no metadata.", "Set 'format: qcow2', or leave these out.")
    check_kind(wanted.cluster_size, None, None)
    if wanted.size is not None and wanted.size <= 0:
        raise InvalidOption("'size' is to be more than nothing.")
