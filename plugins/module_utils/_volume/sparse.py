# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing a stream of bytes to a file with its zeros left as holes."""

from __future__ import annotations

import errno
import os
import typing as t

BLOCK = 64 * 1024
"""The unit in which zeros are looked for: a run shorter than this is written."""

PIECE = 1 << 20
"""The most bytes that are read at once."""

_ZEROS = bytes(BLOCK)


class SparseWriter:
    """Writes buffers to a file that reads as zeros where nothing was written.

    :param fd: a file open for writing.
    :param preallocation: V(off) leaves holes where there are zeros, V(falloc) gives them storage at the end, V(full)
        writes them.
    """

    def __init__(self, fd: int, preallocation: str = "off") -> None:
        self.fd = fd
        self._preallocation = preallocation
        self.zero_bytes = 0

    def restart(self) -> None:
        """Forgets all that was written."""
        os.ftruncate(self.fd, 0)
        self.zero_bytes = 0

    def write(self, buffer: bytearray, length: int, offset: int) -> None:
        """Writes the first C(length) bytes of C(buffer) at C(offset).

        :raises OSError: the storage is full, or failed.
        """
        start = None  # of the run of blocks that hold data
        for position in range(0, length, BLOCK):
            size = min(BLOCK, length - position)
            # startswith compares in place; a slice of the buffer would copy it.
            if buffer.startswith(_ZEROS if size == BLOCK else _ZEROS[:size], position):
                self.zero_bytes += size
                if start is not None:
                    self._write_run(buffer, start, position, offset)
                    start = None
            elif start is None:
                start = position
        if start is not None:
            self._write_run(buffer, start, length, offset)

    def wrote(self, end: int) -> None:
        """Another program has written the first C(end) bytes; nothing has to be known of them."""

    def read_back(self, end: int) -> t.Iterator[memoryview]:
        """The first C(end) bytes of the file; see L(pieces)."""
        return pieces(self.fd, end)

    def finish(self, size: int) -> None:
        """Gives the file its C(size), a hole at its end included, and brings it to the storage."""
        os.ftruncate(self.fd, size)
        if self._preallocation == "full":
            self._fill_holes(size)
        elif self._preallocation == "falloc" and size:
            os.posix_fallocate(self.fd, 0, size)
        os.fsync(self.fd)

    def _fill_holes(self, size: int) -> None:
        position = os.lseek(self.fd, 0, os.SEEK_HOLE) if size else 0
        while position < size:
            try:
                end = os.lseek(self.fd, position, os.SEEK_DATA)
            except OSError as err:
                if err.errno != errno.ENXIO:  # lseek(2): no data until the end
                    raise
                end = size
            write_zeros(self.fd, position, end)
            position = os.lseek(self.fd, end, os.SEEK_HOLE) if end < size else size

    def _write_run(self, buffer: bytearray, start: int, end: int, offset: int) -> None:
        with memoryview(buffer) as view:
            write_all(self.fd, view[start:end], offset + start)


def write_all(fd: int, view: memoryview, offset: int) -> None:
    """Writes C(view) at C(offset), however often the kernel takes only a part."""
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)


def write_zeros(fd: int, start: int, end: int) -> None:
    """Writes zeros from C(start) to before C(end)."""
    zeros = memoryview(_ZEROS)
    for position in range(start, end, BLOCK):
        write_all(fd, zeros[: end - position], position)


def pieces(fd: int, end: int) -> t.Iterator[memoryview]:
    """The first C(end) bytes of the open file C(fd), piece by piece; each is good until the next one is asked for."""
    with memoryview(bytearray(PIECE)) as view, open(fd, "rb", buffering=0, closefd=False) as file:
        file.seek(0)
        while end > 0 and (length := file.readinto(view[:end])):
            yield view[:length]
            end -= length
