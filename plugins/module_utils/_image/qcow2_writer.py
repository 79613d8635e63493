# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing a qcow2 in one pass, in constant memory and with its length known in advance.

The header and the L1 table come first, then each L2 table before the clusters that it maps, and the refcounts last:
L(Qcow2Decoder) and qemu-img read this without going back. There are no leaks, and no cluster is shared, so that every
refcount of an uncompressed image is 1. The structure is that of docs/interop/qcow2.rst in QEMU's sources.
"""

from __future__ import annotations

import array
import itertools
import struct
import sys
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import InvalidOption, UnsupportedFormat
from ansible_collections.imageferry.glance.plugins.module_utils._image.blocks import BLOCK, DataMap, Run, cut
from ansible_collections.imageferry.glance.plugins.module_utils._image.body import Piece, zeros
from ansible_collections.imageferry.glance.plugins.module_utils._image.compress import COMPRESSION_TYPES
from ansible_collections.imageferry.glance.plugins.module_utils._image.content import ContentHasher, read_hashed
from ansible_collections.imageferry.glance.plugins.module_utils._image.qcow2 import HEADER_SIZE, MAGIC, check_kind
from ansible_collections.imageferry.glance.plugins.module_utils._nbd.interface import FlatDisk
from ansible_collections.imageferry.glance.plugins.module_utils._sizes import format_size

DEFAULT_CLUSTER_SIZE = 1 << 16
VERSIONS = {"0.10": 2, "1.1": 3}
"""The values of compat, and the versions of the header that they stand for."""

COPIED = 1 << 63
"""The bit of an entry whose cluster has the refcount 1."""

_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQIIB7x")
_HEADER_LENGTHS = {2: HEADER_SIZE, 3: _HEADER.size}
_COMPRESSION_FEATURE = 1 << 3
_REFCOUNT_ORDER, _REFCOUNT_SIZE = 4, 2  # the only one of version 2
_SECTOR = 512
_MOST_L1_BYTES, _MOST_REFCOUNT_TABLE_BYTES = 32 << 20, 8 << 20  # as block/qcow2.h has them


class Geometry:
    """Where the tables of a qcow2 lie, and how they look.

    :param disk_size: in bytes; the image's is rounded up to a sector, as QEMU rounds it.
    :param compat: one of L(VERSIONS).
    :param compression_type: V(zlib) or V(zstd), also where nothing is compressed.
    :raises InvalidOption: there are no such qcow2.
    :raises UnsupportedFormat: the disk is too large for such clusters.
    """

    def __init__(self, disk_size: int, cluster_size: int, compat: str, compression_type: str = "zlib") -> None:
        check_kind(cluster_size, compat, compression_type)
        if compat not in VERSIONS:
            raise InvalidOption(f"A qcow2 has no 'compat: {compat}'; {' and '.join(VERSIONS)} there are.")
        self.version, self._compression = VERSIONS[compat], COMPRESSION_TYPES[compression_type]
        self.virtual_size = disk_size + -disk_size % _SECTOR
        self.cluster = cluster_size
        self.span = cluster_size // 8 * cluster_size
        """What an L2 table maps, in bytes of the disk."""
        self.l1_size = max(1, -(-self.virtual_size // self.span))
        self.first_free = cluster_size + self._whole(self.l1_size * 8)
        """The offset of what follows the L1 table."""
        most_clusters = self.virtual_size // cluster_size + self.l1_size + self.first_free // cluster_size + 1
        table_clusters, _blocks = self._count_refcounts(most_clusters)
        if self.l1_size * 8 > _MOST_L1_BYTES or table_clusters * cluster_size > _MOST_REFCOUNT_TABLE_BYTES:
            raise UnsupportedFormat(
                f"A disk of {format_size(disk_size)} does not fit in a qcow2 with clusters of {cluster_size} bytes.",
                "Use a larger 'cluster_size'.",
            )

    def length(self, end: int) -> int:
        """The bytes of the image whose last data end before C(end)."""
        return end + sum(self._count_refcounts(end // self.cluster)) * self.cluster

    def head(self, l1_table: array.array[int], end: int) -> t.Iterator[Piece]:
        """All that precedes the first L2 table."""
        table_clusters, _blocks = self._count_refcounts(end // self.cluster)
        header = _HEADER.pack(
            MAGIC, self.version, 0, 0, self.cluster.bit_length() - 1, self.virtual_size, 0, self.l1_size, self.cluster,
            end, table_clusters, 0, 0, _COMPRESSION_FEATURE * self._compression, 0, 0, _REFCOUNT_ORDER, _HEADER.size,
            self._compression,
        )[: _HEADER_LENGTHS[self.version]]  # fmt: skip
        yield header.ljust(self.cluster, b"\0")  # no header extension: their end is zeros as well
        yield big_endian(l1_table)
        yield from zeros(self.first_free - self.cluster - len(l1_table) * 8)

    def tail(self, counts: t.Iterable[Piece], end: int) -> t.Iterator[Piece]:
        """The refcounts: a table of blocks, and these.

        :param counts: those of the clusters before C(end), as they lie in the image.
        """
        table_clusters, blocks = self._count_refcounts(end // self.cluster)
        first_block = end + table_clusters * self.cluster
        offsets = range(first_block, first_block + blocks * self.cluster, self.cluster)
        yield big_endian(array.array("Q", offsets))
        yield from zeros(table_clusters * self.cluster - blocks * 8)
        yield from counts
        yield from ones(table_clusters + blocks)
        counted = end // self.cluster + table_clusters + blocks
        yield from zeros(blocks * self.cluster - counted * _REFCOUNT_SIZE)

    def _count_refcounts(self, clusters: int) -> tuple[int, int]:
        """How many clusters the refcount table takes and how many the blocks, with their own ones counted in."""
        table = blocks = 0
        while True:
            needed = self._clusters((clusters + table + blocks) * _REFCOUNT_SIZE)
            if needed == blocks:
                return table, blocks
            table, blocks = self._clusters(needed * 8), needed

    def _clusters(self, size: int) -> int:
        return -(-size // self.cluster)

    def _whole(self, size: int) -> int:
        return self._clusters(size) * self.cluster


class Qcow2Body:
    """A disk as an uncompressed qcow2.

    :param data: where it may hold data; the rest is not read, and takes up nothing in the image.
    :param hasher: is told what is read.
    """

    repeatable = True

    def __init__(
        self,
        disk: FlatDisk,
        data: DataMap,
        cluster_size: int = DEFAULT_CLUSTER_SIZE,
        compat: str = "1.1",
        hasher: ContentHasher | None = None,
    ) -> None:
        self._geometry = Geometry(disk.size, cluster_size, compat)
        self._disk, self._data, self._hasher = disk, data, hasher
        self._l1_table = array.array("Q", bytes(8 * self._geometry.l1_size))
        self._end = self._geometry.first_free
        for host, runs in self._regions():
            self._l1_table[runs[0][0] // self._geometry.span] = host | COPIED
            self._end = host + cluster_size + sum(end - start for start, end in runs)
        self.length = self._geometry.length(self._end)

    def pieces(self) -> t.Iterator[Piece]:
        """See L(Body.pieces)."""
        geometry = self._geometry
        yield from geometry.head(self._l1_table, self._end)
        runs = cut(self._data.runs(geometry.cluster), geometry.span)
        blocks = read_hashed(self._disk, runs, self._hasher, max(BLOCK, geometry.cluster))
        parts = ((block, run) for block in blocks for run in block.runs)
        mapped = itertools.groupby(parts, key=lambda part: part[1][0] // geometry.span)
        for region, (_number, group) in zip(self._regions(), mapped):
            yield self._l2_table(*region)
            for block, (start, end) in group:
                yield memoryview(block.buffer)[start - block.start : end - block.start]
        yield from geometry.tail(ones(self._end // geometry.cluster), self._end)

    def _regions(self) -> t.Iterator[tuple[int, list[Run]]]:
        """What each L2 table maps, after the offset of the table; its clusters follow it in order."""
        span, host = self._geometry.span, self._geometry.first_free
        for _number, group in itertools.groupby(
            cut(self._data.runs(self._geometry.cluster), span), key=lambda run: run[0] // span
        ):
            runs = list(group)
            yield host, runs
            host += self._geometry.cluster + sum(end - start for start, end in runs)

    def _l2_table(self, host: int, runs: list[Run]) -> bytes:
        cluster, span = self._geometry.cluster, self._geometry.span
        entries = array.array("Q", bytes(cluster))
        entry = host + cluster | COPIED
        for start, end in runs:
            first, count = start % span // cluster, (end - start) // cluster
            entries[first : first + count] = array.array("Q", range(entry, entry + end - start, cluster))
            entry += end - start
        return big_endian(entries)


def ones(count: int) -> t.Iterator[Piece]:
    """So many refcounts of 1."""
    some = memoryview(b"\0\1" * (min(count * _REFCOUNT_SIZE, BLOCK) // _REFCOUNT_SIZE))
    for position in range(0, count * _REFCOUNT_SIZE, BLOCK):
        yield some[: count * _REFCOUNT_SIZE - position]


def big_endian(numbers: array.array[int]) -> bytes:
    """The numbers as they lie in an image."""
    if sys.byteorder == "little":
        numbers = array.array(numbers.typecode, numbers)
        numbers.byteswap()
    return numbers.tobytes()
