# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is sent when a disk is exported, in any format: a body whose length is known before its first byte."""

from __future__ import annotations

import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._image.blocks import BLOCK, DataMap
from ansible_collections.imageferry.glance.plugins.module_utils._image.content import ContentHasher, read_hashed
from ansible_collections.imageferry.glance.plugins.module_utils._nbd.interface import FlatDisk

Piece = t.Union[bytes, bytearray, memoryview]

_ZEROS = memoryview(bytes(BLOCK))


class Body(t.Protocol):
    """Bytes to be sent, that are made while they are asked for.

    :param repeatable: whether L(pieces) may be called again, for another attempt.
    """

    repeatable: bool

    @property
    def length(self) -> int:
        """How many bytes L(pieces) gives."""

    def pieces(self) -> t.Iterator[Piece]:
        """All of it in order; a piece is good until the next one is asked for.

        To close the iterator before its end frees what it uses.

        :raises StorageError: the disk cannot be read.
        """


class RawBody:
    """A disk byte by byte.

    :param data: where it may hold data; the rest is not read.
    :param hasher: is told what is read.
    """

    repeatable = True

    def __init__(self, disk: FlatDisk, data: DataMap, hasher: ContentHasher | None = None) -> None:
        self.length = disk.size
        self._disk, self._data, self._hasher = disk, data, hasher

    def pieces(self) -> t.Iterator[Piece]:
        """See L(Body.pieces)."""
        position = 0
        for block in read_hashed(self._disk, self._data.runs(), self._hasher):
            yield from zeros(block.start - position)
            position = min(block.start + len(block.buffer), self.length)
            yield memoryview(block.buffer)[: position - block.start]
        yield from zeros(self.length - position)


def zeros(count: int) -> t.Iterator[Piece]:
    """So many bytes of zeros."""
    for position in range(0, count, BLOCK):
        yield _ZEROS[: count - position]
