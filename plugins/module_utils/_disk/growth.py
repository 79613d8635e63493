# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Growing a disk: the volume that it lies on, and the image on it, idle or under a running guest."""

from __future__ import annotations

import functools
import re
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._disk.qcow2 import (
    FULL,
    check_can_grow,
    size_on_block,
)
from ansible_collections.imageferry.glance.plugins.module_utils._disk.state import Disk, check_can_change, read_disk
from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    FerryError,
    InvalidOption,
    NoSpace,
    UnsupportedFormat,
    VolumeInUse,
    VolumeInvalid,
    VolumeNotFound,
)
from ansible_collections.imageferry.glance.plugins.module_utils._image import qemu_img
from ansible_collections.imageferry.glance.plugins.module_utils._image.qcow2 import Qcow2Header
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.guests import (
    GuestDisk,
    find_guests,
    grow_live,
    seen_size,
)
from ansible_collections.imageferry.glance.plugins.module_utils._sizes import format_size, parse_size, round_up
from ansible_collections.imageferry.glance.plugins.module_utils._volume.interface import Volume

SECTOR = 512
LOCK_SECONDS = 60.0
"""How long to wait for somebody else who imports to a volume, grows or removes it."""

_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%\s*FREE", re.IGNORECASE)


class Sizes(t.NamedTuple):
    """Bytes of a volume, None where they are not fixed (a qcow2 in a file), and of the disk that a guest sees."""

    size: int | None
    virtual_size: int | None

    def to_dict(self) -> dict[str, int]:
        """Plain values, without what is not fixed."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class Growth(t.NamedTuple):
    """What is to be done, in this order; nothing where both are None.

    :param volume_size: what the volume is to have, in bytes.
    :param image_size: what the image's disk is to have, in bytes.
    :param is_raw: whether the volume's bytes are the disk's.
    :param guest: the running guest that has the disk, and has to be told.
    """

    before: Sizes
    after: Sizes
    reason: str
    volume_size: int | None = None
    image_size: int | None = None
    is_raw: bool = False
    guest: GuestDisk | None = None

    @property
    def changes(self) -> bool:
        """Whether there is anything to do."""
        return self.volume_size is not None or self.image_size is not None


def plan_growth(
    volume: Volume, size: str, asked_format: str | None, only: str | None, connection: t.Any, headroom: str = FULL
) -> Growth:
    """Decides what growing to at least C(size) has to do; checks all of it, and changes nothing.

    :param only: C(volume) or C(image) where the other is to stay as it is.
    :param headroom: the room that a qcow2 on a block device is to have, see L(size_on_block).
    :raises VolumeNotFound: there is nothing to grow.
    :raises VolumeInUse: somebody uses it that cannot be told.
    :raises NoSpace: its volume group has not so much room.
    :raises VolumeInvalid: it is a device that is too small, or may not be changed, see L(check_can_change).
    :raises InvalidOption, UnsupportedFormat, UnsafeImage: see L(check_can_change).
    """
    guests = find_guests(connection, volume.path)
    disk = read_disk(volume, asked_format, guests)
    if disk is None:
        raise VolumeNotFound(f"{volume.label} does not exist.")
    wanted = wanted_bytes(size, volume, disk.size.size)
    header = check_can_change(volume, disk)
    if disk.format not in ("raw", "qcow2"):
        raise UnsupportedFormat(f"{volume.label} is {disk.format}, which is not grown.", "Convert it to raw or qcow2.")
    if header is not None and only != "volume" and _SHARE.fullmatch(str(size).strip()):
        wanted = _disk_that_fits(wanted, header)
    if header is None:
        growth = _grow_raw(volume, disk, wanted, seen_size(connection, guests) or disk.size.size)
    else:
        room = functools.partial(_room, volume, disk, header, headroom, any(guest.running for guest in guests))
        growth = _grow_qcow2(volume, disk, header, wanted, only, room)
    if not growth.changes:
        return growth
    volume.check_writable()
    _check_free(volume, growth, disk.size.size)
    return growth._replace(guest=_running_guest(volume, disk, guests))


def wanted_bytes(size: str, volume: Volume, now: int) -> int:
    """The bytes that V(size) means for this volume.

    C(50%FREE) is half of what the volume has and what is free in its group, together: that sum stays the same while
    it grows, so a second run finds nothing to do.

    :raises InvalidOption: it is not a size, or one that would grow again at every run.
    """
    text = str(size).strip()
    if text.startswith(("+", "-")):
        raise InvalidOption(
            f"'size: {text}' would change the volume again at every run.",
            f"Write the size that it is to have in the end, such as {format_size(now).replace(' ', '')} and what is "
            "to come, or a share such as 100%FREE.",
        )
    match = _SHARE.fullmatch(text)
    if match is None:
        return parse_size(size, "size")
    facts = volume.describe()
    if "group_free" not in facts or facts["thin_pool"]:
        raise InvalidOption(
            f"'size: {text}' needs a logical volume outside of thin pools, which {volume.label} is not.",
            "Write a size.",
        )
    extent = facts["extent_size"]
    return int((facts["group_free"] + now) * float(match[1]) / 100) // int(extent) * int(extent)


def _grow_raw(volume: Volume, disk: Disk, wanted: int, seen: int) -> Growth:
    """The volume is the disk; a running guest may still see less, when an earlier run could not tell it."""
    now = disk.size.size
    before = Sizes(now, min(now, seen))
    if wanted <= min(now, seen):
        return _nothing(volume, before, wanted)
    target = max(round_up(wanted, volume_unit(volume)), now)
    reason = _reason(volume, min(now, seen), target)
    return Growth(before, Sizes(target, target), reason, target if target > now else None, target, is_raw=True)


def _grow_qcow2(
    volume: Volume, disk: Disk, header: Qcow2Header, wanted: int, only: str | None, room: t.Callable[[int], int]
) -> Growth:
    """
    :param room: the bytes of a block device that the image needs for a disk of so many.
    """
    if only == "volume" and not volume.is_block:
        raise InvalidOption("A qcow2 in a file has no volume that could be grown without it.", "Leave out 'only'.")
    fixed = disk.size.size if volume.is_block else None
    before = Sizes(fixed, header.virtual_size)
    image = volume_size = None
    if only != "volume" and wanted > header.virtual_size:
        check_can_grow(header, volume.label)
        _check_covers_base(volume, disk, header)
        image = round_up(wanted, SECTOR)
    if fixed is not None and only != "image":
        virtual = max(wanted, header.virtual_size)
        needed = wanted if only == "volume" else room(virtual)
        volume_size = round_up(needed, volume_unit(volume)) if needed > fixed else None
    if image is None and volume_size is None:
        return _nothing(volume, before, wanted)
    after = Sizes(volume_size or fixed, image or header.virtual_size)
    changed = (header.virtual_size, image) if image else (fixed or 0, volume_size or 0)
    return Growth(before, after, _reason(volume, *changed), volume_size, image)


def _room(volume: Volume, disk: Disk, header: Qcow2Header, headroom: str, is_running: bool, virtual_size: int) -> int:
    """The bytes of a block device that the image needs for a disk of C(virtual_size) bytes."""
    used, most = disk.size.size, _most_bytes(virtual_size, header)
    if headroom != FULL and most > used and not is_running:  # only the guest's QEMU knows how much it has taken
        volume.check_not_in_use()
        with volume.open() as fd:
            used = qemu_img.check(fd, "qcow2") or used
    return size_on_block(headroom, used, most, virtual_size)


def _most_bytes(size: int, header: Qcow2Header) -> int:
    """The bytes that a qcow2 with a disk of C(size) bytes takes up when all of it is written."""
    options = qemu_img.Qcow2Options(cluster_size=1 << header.cluster_bits)
    return qemu_img.measure_blank(size, "qcow2", options).fully_allocated


def _disk_that_fits(volume_size: int, header: Qcow2Header) -> int:
    """The bytes of the disk whose qcow2 fits in C(volume_size) bytes also when all of it is written."""
    tables = _most_bytes(volume_size, header) - volume_size
    return max(0, volume_size - tables) >> header.cluster_bits << header.cluster_bits


def _check_covers_base(volume: Volume, disk: Disk, header: Qcow2Header) -> None:
    """An overlay shorter than what it is laid over would show that one's end where it is to show zeros.

    :raises UnsupportedFormat: it is.
    """
    for link in disk.chain(volume.path)[:1]:
        if link.virtual_size is None or link.virtual_size > header.virtual_size:
            raise UnsupportedFormat(
                f"{volume.label} is shorter than {link.path}, which it is laid over.", "Grow it with qemu-img resize."
            )


def _nothing(volume: Volume, sizes: Sizes, wanted: int) -> Growth:
    now = sizes.virtual_size or 0
    shrink = "; nothing is ever shrunk" if wanted < now else ""
    return Growth(sizes, sizes, f"{volume.label} has {format_size(now)}, as much as was asked for or more{shrink}")


def _reason(volume: Volume, before: int, after: int) -> str:
    return f"{volume.label} from {format_size(before)} to {format_size(after)} ({before} to {after} bytes)"


def volume_unit(volume: Volume) -> int:
    """The bytes that a volume's size is a multiple of."""
    return int(volume.describe().get("extent_size", SECTOR))


def _check_free(volume: Volume, growth: Growth, now: int) -> None:
    """
    :raises NoSpace: the volume group has not so many extents free.
    :raises VolumeInvalid: it is a device, whose size is not this host's to change.
    """
    facts = volume.describe()
    if growth.volume_size is not None and facts["type"] == "device":
        raise VolumeInvalid(
            f"{volume.label} has {now} bytes, {growth.volume_size} are needed, and a device cannot be grown from its "
            "host.", "Grow it where its storage is managed, and run this again.",
        )  # fmt: skip
    if growth.volume_size is None or "group_free" not in facts or facts["thin_pool"]:
        return
    if growth.volume_size - now > facts["group_free"]:
        raise NoSpace(f"{volume.label} needs {growth.volume_size - now} bytes more, and its volume group has "
                      f"{facts['group_free']} free.")  # fmt: skip


def _running_guest(volume: Volume, disk: Disk, guests: t.Sequence[GuestDisk]) -> GuestDisk | None:
    """The one running guest that can be told; None when nobody uses the volume."""
    running = [guest for guest in guests if guest.running]
    if not running:
        volume.check_not_in_use()
        return None
    guest = running[0]
    if len(running) > 1 or guest.backing or guest.read_only:
        names = ", ".join(sorted({other.guest for other in running}))
        raise VolumeInUse(f"{volume.label} is shared, read-only or below other disks, in use by {names}.")
    if guest.format not in (disk.format, None):
        raise VolumeInUse(f"The guest {guest.guest} uses {volume.label} as {guest.format}, not as {disk.format}.")
    return guest


def grow_alone(volume: Volume, size: str, asked_format: str | None, only: str | None, connection: t.Any) -> Growth:
    """Grows to at least C(size) bytes while nobody else grows, writes or removes the volume; what was left to do.

    :raises FerryError: see L(plan_growth) and L(grow).
    """
    with volume.locked(LOCK_SECONDS):
        growth = plan_growth(volume, size, asked_format, only, connection)
        if growth.changes:
            grow(volume, growth, connection)
        return growth


def grow(volume: Volume, growth: Growth, connection: t.Any) -> None:
    """Does what L(plan_growth) decided.

    :raises FerryError: it failed; the message says what had been done by then.
    """
    extends = growth.volume_size is not None and (volume.is_block or growth.guest is None)  # QEMU extends its files
    if extends and growth.volume_size is not None:
        volume.grow(growth.volume_size, zeroed=growth.is_raw)  # a qcow2 never shows what it has not written
    if growth.image_size is None:
        return
    try:
        if growth.guest is not None:
            grow_live(connection, growth.guest, growth.image_size)
        elif not growth.is_raw:
            with volume.open() as fd:
                qemu_img.resize(fd, "qcow2", growth.image_size)
    except FerryError as err:
        if extends:
            done = f"Before that, {volume.label} had been extended to {growth.volume_size} bytes."
            raise type(err)(f"{err.what} {done}", "Mend the cause and run again; it goes on from there.") from err
        raise
