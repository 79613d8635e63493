# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A disk as one flat stream with its holes, whatever it is made of."""

from __future__ import annotations

import typing as t


class Extent(t.NamedTuple):
    """A stretch of a disk, in bytes.

    :param zero: whether it is known, without a look at its bytes, to read as zeros.
    """

    start: int
    length: int
    zero: bool


class FlatDisk(t.Protocol):
    """A disk that does not change while it is read. Several threads may read it at once.

    :param size: its virtual size, in bytes.
    """

    size: int

    def extents(self) -> t.Iterator[Extent]:
        """The whole disk in order, without gaps; neighbours may be of the same kind.

        :raises StorageError: it cannot be read.
        """

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fills C(buffer) with what the disk holds at C(offset).

        :raises StorageError: it cannot be read.
        """
