# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who uses a file: guests, programs, loop devices."""

from __future__ import annotations

import fcntl
import glob
import os
import struct

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of fcntl(2) on 64-bit Linux


def find_user(fd: int) -> str | None:
    """Somebody who has the open file C(fd) in use, in words; None when nobody is seen.

    Looks for locks (qemu holds some on every image that it has open, seen whoever asks), for loop devices, and for
    processes that have the file open (all of them as root, otherwise one's own).
    """
    return _loop_device(fd) or _process(fd) or _lock_holder(fd)


def _loop_device(fd: int) -> str | None:
    wanted = os.fstat(fd)
    for entry in glob.glob("/sys/block/loop*/loop/backing_file"):
        try:
            with open(entry, encoding="utf-8", errors="surrogateescape") as file:
                backing = os.stat(file.read().rstrip("\n"))
        except OSError:
            continue
        if (backing.st_dev, backing.st_ino) == (wanted.st_dev, wanted.st_ino):
            return f"the loop device /dev/{entry.split('/')[3]}"
    return None


def _process(fd: int) -> str | None:
    wanted = os.fstat(fd)
    own = str(os.getpid())
    for link in glob.iglob("/proc/[0-9]*/fd/*"):
        pid = link.split("/")[2]
        try:
            found = os.stat(link) if pid != own else None
        except OSError:
            continue
        if found and (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
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
