# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What shows that somebody has written to a disk."""

from __future__ import annotations

import os
import stat
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._volume.storage import storage_errors

Stamp = list[list[t.Union[int, str]]]

_SECTORS_WRITTEN = 6  # of the kernel's Documentation/block/stat.rst
_SECTORS_DISCARDED = 13  # since Linux 4.18


def stamp(paths: t.Iterable[str]) -> Stamp:
    """What changes when somebody writes to one of these files or devices. That of a device lasts until it is closed.

    :raises StorageError: one cannot be read.
    """
    return [_of_one(path) for path in paths]


def is_device(path: str) -> bool:
    """Whether there is a block device."""
    return os.path.exists(path) and stat.S_ISBLK(os.stat(path).st_mode)


def _of_one(path: str) -> list[int | str]:
    with storage_errors(f"read {path}"):
        found = os.stat(path)
        if stat.S_ISBLK(found.st_mode):
            return [path, found.st_rdev, *_counters(path, found.st_rdev)]
        return [path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _counters(path: str, number: int) -> list[int]:
    """The sectors of a device that were written, with those that waited in memory, and that were discarded."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    with open(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat", encoding="ascii") as file:
        counted = [int(count) for count in file.read().split()]
    return [counted[_SECTORS_WRITTEN], *counted[_SECTORS_DISCARDED : _SECTORS_DISCARDED + 1]]
