# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A volume that is a block device, which is simply there."""

from __future__ import annotations

import fcntl
import os
import re
import stat
import struct
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    NoSpace,
    VolumeInvalid,
)
from ansible_collections.imageferry.glance.plugins.module_utils._volume.block import BlockVolume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.block_writer import (
    device_size,
)
from ansible_collections.imageferry.glance.plugins.module_utils._volume.in_use import sysfs
from ansible_collections.imageferry.glance.plugins.module_utils._volume.interface import VolumeSize
from ansible_collections.imageferry.glance.plugins.module_utils._volume.ledger import Ledger, Record
from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import Provenance
from ansible_collections.imageferry.glance.plugins.module_utils._volume.storage import storage_errors


class DeviceVolume(BlockVolume):
    """The block device at C(path), which has to be there.

    :param path: absolute path of its node, or of a link to it; followed once, and then held open.
    :raises VolumeInvalid: there is none.
    """

    def __init__(self, path: str, ledger: Ledger | None = None) -> None:
        super().__init__(path, path, ledger or Ledger())
        if not os.path.isabs(path):
            raise VolumeInvalid(f"'device: {path}' is not an absolute path.", "Give the device's whole path.")
        try:
            real = os.path.realpath(path)
            found = os.stat(real)
            if not stat.S_ISBLK(found.st_mode):
                raise VolumeInvalid(f"{path} is not a block device.", "Use 'path' for a file.")
            self._fd = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as err:
            raise VolumeInvalid(f"The device {path} cannot be opened: {err.strerror}.") from err
        self._identity = device_identity(self._fd, real)

    def close(self) -> None:
        """Lets go of the device."""
        os.close(self._fd)

    def key(self) -> str:
        """Its identity."""
        return self._identity

    def lock_name(self) -> str:
        """Its identity, by whichever path."""
        return self._identity

    def stat(self) -> VolumeSize:
        """Its size; it always is there.

        :raises VolumeInvalid: it has none, as a drive without a medium.
        """
        size = device_size(self._fd)
        if not size:
            raise VolumeInvalid(f"{self.path} has no size.", "Put a medium in, or attach its storage.")
        return VolumeSize(size, None)

    def check_writable(self) -> None:
        """
        :raises VolumeInvalid: the kernel lets nobody write to it.
        """
        if _fact(self._fd, "ro") == "1":
            raise VolumeInvalid(f"{self.path} is read-only.", "Make it writable with 'blockdev --setrw', if it may be.")

    def provenance(self) -> Provenance | None:
        """The image that the ledger says it holds."""
        record = self._record()
        return None if record.unfinished else record.complete

    def is_unfinished(self) -> bool:
        """Whether the ledger says that an import to it was not completed."""
        return self._record().unfinished is not None

    def node(self) -> str:
        """The node that was opened first, whatever its path leads to by now."""
        return f"/proc/self/fd/{self._fd}"

    def make_room(self, size: int) -> bool:
        """
        :raises NoSpace: it is smaller than C(size).
        """
        there = self.stat().size
        if size > there:
            raise NoSpace(f"{self.path} has {there} bytes, and {size} are needed.", "Use a larger device.")
        return False

    def mark(self) -> None:
        """Nothing: the ledger's note of what is being written is the mark."""

    def record(self, provenance: Provenance) -> None:
        """Enters it in the ledger."""
        self.ledger.write(self._identity, Record(complete=provenance))

    def discard_new(self) -> None:
        """Nothing: a device never comes into being for an import."""

    def grow(self, size: int, zeroed: bool = True) -> VolumeSize:  # pylint: disable=unused-argument
        """
        :raises VolumeInvalid: it is smaller than C(size): a device has the size that it has.
        """
        there = self.stat()
        if size > there.size:
            raise VolumeInvalid(
                f"{self.path} has {there.size} bytes, and a device cannot be grown from its host.",
                "Grow it where its storage is managed.",
            )
        return there

    def remove(self, wipe: bool) -> None:
        """Wipes it; the device itself stays.

        :raises VolumeInvalid: it is not to be wiped, and nothing else can be done.
        :raises VolumeInUse: somebody has it in use.
        """
        if not wipe:
            raise VolumeInvalid(f"{self.path} is a device, which cannot be removed.", "Ask for it to be wiped.")
        with self.locked(0), storage_errors(f"wipe {self.label}"):
            self.check_writable()
            self.check_not_in_use()
            self.ledger.forget(self._identity)  # first, so that a half wiped one is not taken for whole
            self.wipe()

    def describe(self) -> dict[str, t.Any]:
        """Its address in the words of the options."""
        return {"type": "device", "path": self.path, "node": os.path.realpath(self.node())}

    def _record(self) -> Record:
        with storage_errors(f"read what is known of {self.label}"):
            return self.ledger.read(self._identity)


def device_identity(fd: int, path: str) -> str:
    """What tells the open block device C(fd) from all others, also after a restart where the kernel knows that much.

    Where it does not, it holds until the next restart of the host, or until the device is detached.
    """
    number = _fact(fd, "partition")
    if number:
        with storage_errors(f"look at {path}"):
            disk = os.path.basename(os.path.dirname(os.path.realpath(sysfs(os.fstat(fd).st_rdev))))
            disk_fd = os.open(f"/dev/{disk}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            whole = device_identity(disk_fd, f"/dev/{disk}")
        finally:
            os.close(disk_fd)
        return f"{whole} partition {number} {_fact(fd, 'start')}+{_fact(fd, 'size')}"
    for fact in ("dm/uuid", "md/uuid", "wwid", "device/wwid", "serial", "device/serial", "device/cid"):
        value = _fact(fd, fact)
        if value and not re.search(r"QM\d{5}$", value):  # the serial that QEMU gives where nobody gave one
            return f"{fact} {value}"
    return _loop_identity(fd) or f"{path} {_fact(fd, 'diskseq')} {_boot_id()}"


def _loop_identity(fd: int) -> str | None:
    """The file behind a loop device, where its file system can tell it from an earlier one of the same number."""
    backing = _fact(fd, "loop/backing_file")
    if not backing:
        return None
    try:
        with open(backing, "rb") as file:
            found = os.fstat(file.fileno())
            generation = struct.unpack("i", fcntl.ioctl(file.fileno(), _FS_IOC_GETVERSION, bytes(8))[:4])[0]
    except OSError:
        return None
    where = f"{_fact(fd, 'loop/offset')}+{_fact(fd, 'loop/sizelimit')}"
    return f"loop {found.st_dev}:{found.st_ino}:{generation} {where}"


_FS_IOC_GETVERSION = 0x80087601  # linux/fs.h; where it is another number, it fails


def _fact(fd: int, name: str) -> str:
    """What C(/sys) says of the open block device C(fd); empty where it says nothing."""
    try:
        with open(f"{sysfs(os.fstat(fd).st_rdev)}/{name}", encoding="utf-8", errors="surrogateescape") as file:
            return file.read().strip()
    except OSError:
        return ""


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
