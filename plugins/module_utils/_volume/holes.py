# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a file has data, and where it has holes."""

from __future__ import annotations

import errno
import os
import typing as t


class Holes(t.NamedTuple):
    """The bytes of a file with storage behind them, those without, and the runs of data that they lie in."""

    data_bytes: int
    hole_bytes: int
    extents: int


def find_holes(fd: int) -> Holes:
    """Counts them in the open file C(fd); a device has no holes."""
    size = os.lseek(fd, 0, os.SEEK_END)
    data = extents = 0
    for start, end in data_runs(fd, size):
        data += end - start
        extents += 1
    return Holes(data, size - data, extents)


def data_runs(fd: int, size: int) -> t.Iterator[tuple[int, int]]:
    """Asks the file system (lseek(2), SEEK_DATA and SEEK_HOLE) about the first C(size) bytes of the open file C(fd).

    :returns: the offsets of the first byte of each run of data, and of the first one after it; where nobody knows, as
        on a block device, it is one run.
    """
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as err:
            if err.errno != errno.ENXIO:  # more than a hole is left
                yield position, size
            return
        if start >= size:
            return
        position = min(size, os.lseek(fd, start, os.SEEK_HOLE))
        yield start, position
