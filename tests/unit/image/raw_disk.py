# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A raw file or block device that nobody writes to, read without a server between."""

from __future__ import annotations

import os
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import StorageError
from ansible_collections.imageferry.glance.plugins.module_utils._nbd.interface import Extent
from ansible_collections.imageferry.glance.plugins.module_utils._volume.holes import data_runs
from ansible_collections.imageferry.glance.plugins.module_utils._volume.storage import storage_errors

_SECTOR = 512


class RawDisk:
    """The open file or block device C(fd) as a disk; see L(FlatDisk).

    :param size: in bytes, rounded up to a sector as QEMU rounds it; None takes the file's.
    """

    def __init__(self, fd: int, size: int | None = None) -> None:
        self._fd = fd
        self._end = os.lseek(fd, 0, os.SEEK_END)
        size = self._end if size is None else size
        self.size = size + -size % _SECTOR

    def extents(self) -> t.Iterator[Extent]:
        """See L(FlatDisk.extents)."""
        position = 0
        with storage_errors("look for the disk's holes"):
            for start, end in data_runs(self._fd, min(self.size, self._end)):
                if position < start:
                    yield Extent(position, start - position, True)
                yield Extent(start, end - start, False)
                position = end
        if position < self.size:
            yield Extent(position, self.size - position, True)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """See L(FlatDisk.read_into)."""
        filled = 0
        while filled < len(buffer):
            with storage_errors("read the disk"):
                length = os.preadv(self._fd, [buffer[filled:]], offset + filled)
            if not length:
                if offset + filled < self._end:
                    raise StorageError(f"The disk ends at {offset + filled}, before its end at {self._end}.")
                length = len(buffer) - filled
                buffer[filled:] = bytes(length)
            filled += length
