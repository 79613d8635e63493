# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who uses a file or a block device: guests, programs, mounts, devices stacked on it."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import stat
import struct
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import VolumeInUse

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of fcntl(2) on 64-bit Linux


def find_user(fd: int) -> str | None:
    """Somebody who has the open file C(fd) in use, in words; None when nobody is seen.

    Looks for locks (qemu holds some on every image that it has open, seen whoever asks), for loop devices, and for
    processes that have the file open (all of them as root, otherwise one's own).
    """
    return _loop_device(fd) or _process(fd) or _lock_holder(fd)


def find_device_user(fd: int) -> str | None:
    """Somebody who has the open block device C(fd) in use, in words; None when nobody is seen.

    Looks for mounts, for swap, for devices stacked on it or on a partition of it, and for processes that have one of
    them open.
    """
    rdev = os.fstat(fd).st_rdev
    family = {rdev, *_partitions(rdev)}
    for member in family:
        user = _mount(member) or _holder(member)
        if user:
            return user
    return _loop_device(fd) or _process(fd, family) or _swap(family)


def sysfs(rdev: int) -> str:
    """The folder in C(/sys) that speaks of a block device."""
    return f"/sys/dev/block/{os.major(rdev)}:{os.minor(rdev)}"


def _partitions(rdev: int) -> t.Iterator[int]:
    for entry in glob.glob(f"{sysfs(rdev)}/*/partition"):
        with open(os.path.join(os.path.dirname(entry), "dev"), encoding="ascii") as file:
            major, minor = file.read().split(":")
        yield os.makedev(int(major), int(minor))


def _mount(rdev: int) -> str | None:
    number = f"{os.major(rdev)}:{os.minor(rdev)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split()
            if fields[2] == number:
                return f"the file system mounted on {fields[4]}"
    return None


def _holder(rdev: int) -> str | None:
    for holder in glob.glob(f"{sysfs(rdev)}/holders/*"):
        name = os.path.basename(holder)
        with contextlib.suppress(OSError), open(f"{holder}/dm/name", encoding="utf-8") as file:
            name = f"{name} ({file.read().strip()})"
        return f"the device {name} on it"
    return None


def _swap(family: set[int]) -> str | None:
    with open("/proc/swaps", encoding="utf-8", errors="surrogateescape") as file:
        for line in file.readlines()[1:]:
            with contextlib.suppress(OSError):
                if os.stat(line.split()[0]).st_rdev in family:
                    return "the kernel, which swaps to it"
    return None


def _loop_device(fd: int) -> str | None:
    wanted = os.fstat(fd)
    for entry in glob.glob("/sys/block/loop*/loop/backing_file"):
        try:
            with open(entry, encoding="utf-8", errors="surrogateescape") as file:
                backing = os.stat(file.read().rstrip("\n"))
        except OSError:
            continue
        same_device = stat.S_ISBLK(wanted.st_mode) and backing.st_rdev == wanted.st_rdev
        if same_device or os.path.samestat(backing, wanted):
            return f"the loop device /dev/{entry.split('/')[3]}"
    return None


def _process(fd: int, devices: t.Collection[int] = ()) -> str | None:
    """A process that has the open file C(fd), or one of the block devices of these numbers, open."""
    wanted = os.fstat(fd)
    own = str(os.getpid())
    for link in glob.iglob("/proc/[0-9]*/fd/*"):
        pid = link.split("/")[2]
        try:
            found = os.stat(link) if pid != own else None
        except OSError:
            continue
        if found and (os.path.samestat(found, wanted) or (stat.S_ISBLK(found.st_mode) and found.st_rdev in devices)):
            return f"process {pid} ({_command(pid)})"
    return None


def _lock_holder(fd: int) -> str | None:
    probe = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        kind, _whence, _start, _length, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, probe))
    except OSError:
        return None
    if kind == fcntl.F_UNLCK:
        return None
    return f"process {pid} ({_command(str(pid))})" if pid > 0 else "a program that holds a lock on it, as qemu does"


def _command(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return "?"


def taken(label: str) -> VolumeInUse:
    """The error of a volume that another task of this collection is busy with.

    :param label: how messages call it.
    """
    return VolumeInUse(
        f"Another task imports to {label}, grows it or removes it.",
        "Wait for it to end, and run this again. 'lock_timeout' has imports and exports wait longer.",
    )
