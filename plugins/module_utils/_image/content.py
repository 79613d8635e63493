# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The content identity of a disk: what tells whether two disks read the same, whatever they are made of.

It depends neither on the format of the disk nor on its holes, its compression or the way in which it is read.
Version 1 is the SHA-256 of C(imageferry content 1) and a zero byte, the virtual size in eight bytes (big endian), and
for each block of 1 MiB (the last may be shorter) that is not all zeros its number in eight bytes and its SHA-256.
"""

from __future__ import annotations

import hashlib
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._image.blocks import (
    BLOCK,
    GRANULE,
    Block,
    DataMap,
    Run,
    read_blocks,
)
from ansible_collections.imageferry.glance.plugins.module_utils._nbd.interface import Extent, FlatDisk

_VERSION = 1
_SALT = b"imageferry content 1\0"
_ZEROS = bytes(BLOCK)


class BlockDigest(t.NamedTuple):
    """The SHA-256 of the block of 1 MiB with this number, which is not all zeros."""

    number: int
    value: bytes


class ContentHasher:
    """Makes a content identity of the digests of a disk's blocks.

    :param size: of the disk, in bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.restart()

    def restart(self) -> None:
        """Forgets all that was added."""
        self._hash = hashlib.sha256(_SALT + self.size.to_bytes(8, "big"))
        self._next = 0

    def add(self, digests: t.Iterable[BlockDigest]) -> None:
        """Adds what follows all that was added before; a block that is left out is all zeros."""
        for digest in digests:
            if digest.number < self._next:
                raise ValueError(f"block {digest.number} came when those from {self._next} on were due")
            self._hash.update(digest.number.to_bytes(8, "big") + digest.value)
            self._next = digest.number + 1

    @property
    def identity(self) -> str:
        """The identity of a disk that has the blocks added, and zeros after them."""
        return f"{_VERSION}:{self._hash.hexdigest()}"


class Survey(t.NamedTuple):
    """What a look at all the bytes of a disk has shown.

    :param identity: of its content.
    :param data: where it holds something but zeros, wherever its extents say that it may.
    """

    identity: str
    data: DataMap


class Beginning:
    """The first C(size) bytes of a disk that is not smaller, as a disk of its own; see L(FlatDisk)."""

    def __init__(self, disk: FlatDisk, size: int) -> None:
        self._disk = disk
        self.size = size

    def extents(self) -> t.Iterator[Extent]:
        """See L(FlatDisk)."""
        for extent in self._disk.extents():
            if extent.start < self.size:
                yield extent._replace(length=min(extent.length, self.size - extent.start))

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """See L(FlatDisk)."""
        self._disk.read_into(buffer, offset)


def is_zero_from(disk: FlatDisk, start: int) -> bool:
    """Whether the disk reads as zeros from its byte C(start) on.

    :raises StorageError: the disk cannot be read.
    """
    for extent in disk.extents():
        end = extent.start + extent.length
        for position in range(max(start, extent.start), 0 if extent.zero else end, BLOCK):
            buffer = bytearray(min(BLOCK, end - position))
            disk.read_into(memoryview(buffer), position)
            if any(buffer):
                return False
    return True


def survey(disk: FlatDisk, on_progress: t.Callable[[int], None], threads: int = 2) -> Survey:
    """Reads all of a disk that is not known to be zeros.

    :param on_progress: is told the offset in the disk that is reached; what it raises ends the survey.
    :raises StorageError: the disk cannot be read.
    """
    hasher, data = ContentHasher(disk.size), DataMap(disk.size)

    def look(block: Block) -> tuple[int, list[Run], list[BlockDigest]]:
        return block.start, list(_find_data(block)), digest_block(block, disk.size)

    for start, found, digests in read_blocks(disk, DataMap.of(disk).runs(), look, threads=threads):
        for run in found:
            data.add(*run)
        hasher.add(digests)
        on_progress(min(start + BLOCK, disk.size))
    on_progress(disk.size)
    return Survey(hasher.identity, data)


def read_hashed(
    disk: FlatDisk, runs: t.Iterable[Run], hasher: ContentHasher | None, size: int = BLOCK
) -> t.Iterator[Block]:
    """Reads the blocks that have data, as L(read_blocks) does, and tells C(hasher) from its beginning on."""

    def look(block: Block) -> tuple[Block, list[BlockDigest]]:
        return block, digest_block(block, disk.size) if hasher else []

    if hasher:
        hasher.restart()
    for block, digests in read_blocks(disk, runs, look, size):
        if hasher:
            hasher.add(digests)
        yield block


def digest_block(block: Block, disk_size: int) -> list[BlockDigest]:
    """The digests of what was read at once, which is one or more blocks of 1 MiB."""
    digests = []
    with memoryview(block.buffer) as view:
        for position in range(0, min(len(view), disk_size - block.start), BLOCK):
            # startswith compares in place; a view would be compared byte by byte.
            if not block.buffer.startswith(_ZEROS, position):
                content = view[position : min(position + BLOCK, disk_size - block.start)]
                value = hashlib.sha256(content).digest()
                digests.append(BlockDigest((block.start + position) // BLOCK, value))
    return digests


def _find_data(block: Block) -> t.Iterator[Run]:
    """The granules that are not all zeros."""
    zeros = _ZEROS[:GRANULE]
    for start, end in block.runs:
        for position in range(start, end, GRANULE):
            if not block.buffer.startswith(zeros, position - block.start):
                yield position, position + GRANULE
