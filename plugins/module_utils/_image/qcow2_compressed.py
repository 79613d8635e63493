# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing a compressed qcow2, whose length is known once all its clusters have been compressed."""

from __future__ import annotations

import array
import contextlib
import itertools
import os
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._image.blocks import BLOCK, DataMap
from ansible_collections.imageferry.glance.plugins.module_utils._image.body import Piece, zeros
from ansible_collections.imageferry.glance.plugins.module_utils._image.compress import find_compressor
from ansible_collections.imageferry.glance.plugins.module_utils._image.compressed_clusters import CompressedClusters
from ansible_collections.imageferry.glance.plugins.module_utils._image.content import ContentHasher
from ansible_collections.imageferry.glance.plugins.module_utils._image.qcow2_writer import (
    COPIED,
    DEFAULT_CLUSTER_SIZE,
    Geometry,
    big_endian,
    ones,
)
from ansible_collections.imageferry.glance.plugins.module_utils._nbd.interface import FlatDisk

_COMPRESSED = 1 << 62
_SECTOR = 512
_WINDOW = 4 << 20  # bytes of the disk that are placed together, and held in memory together
_WINDOW_CLUSTERS = 4  # at least
_MOST_THREADS = 8  # each needs a few MiB


class CompressedQcow2Body:
    """A disk as a compressed qcow2. Clusters of zeros take up nothing in it, wherever C(data) has them.

    What is remembered of each cluster with data is four bytes: 64 MiB for 1 TiB of data in clusters of 64 KiB.

    :param data: where it may hold data; the rest is not read.
    :param compression_type: V(zlib), or V(zstd), which needs a QEMU from 5.1 on to be read.
    :param level: None compresses about as much as qemu-img does.
    :param threads: how many compress at once; None goes by the number of processors.
    :param spool_dir: where the compressed bytes are kept, in a file without a name; None compresses twice instead, as
        is done where they do not fit.
    :param hasher: is told what is read, each time that all is.
    :raises InvalidOption, UnsupportedFormat: there are no such qcow2.
    :raises MissingDependency: this host cannot compress so.
    """

    repeatable = True

    def __init__(
        self,
        disk: FlatDisk,
        data: DataMap,
        compression_type: str = "zlib",
        level: int | None = None,
        cluster_size: int = DEFAULT_CLUSTER_SIZE,
        compat: str = "1.1",
        threads: int | None = None,
        spool_dir: str | None = None,
        hasher: ContentHasher | None = None,
    ) -> None:
        compress = find_compressor(compression_type, level)
        self._geometry = Geometry(disk.size, cluster_size, compat, compression_type)
        threads = threads or min(len(os.sched_getaffinity(0)), _MOST_THREADS)
        self._clusters = CompressedClusters(disk, data, cluster_size, compress, threads, spool_dir, hasher)
        self._l1_table = array.array("Q", bytes(8 * self._geometry.l1_size))
        self._end = 0

    @property
    def length(self) -> int:
        """See L(Body.length); known after L(prepare)."""
        if not self._end:
            raise ValueError("nothing has been compressed yet")
        return self._geometry.length(self._end)

    @property
    def spooled_bytes(self) -> int:
        """The bytes in the spool."""
        return self._clusters.spooled_bytes

    def prepare(self, on_progress: t.Callable[[int], None] = lambda _offset: None) -> None:
        """Compresses the disk for the first time. The spool stays until L(close).

        :param on_progress: is told the offset in the disk that is reached; what it raises ends it.
        :raises StorageError: the disk cannot be read.
        """
        self._clusters.make(on_progress)
        self._end = self._geometry.first_free
        for region in self._regions():
            self._l1_table[region.number] = region.host | COPIED
            self._end = region.packer.end

    def pieces(self) -> t.Iterator[Piece]:
        """See L(Body.pieces)."""
        yield from self._geometry.head(self._l1_table, self._end)
        yield from _joined(self._mapped())
        yield from self._geometry.tail(self._refcounts(), self._end)

    def close(self) -> None:
        """Gives the space of the spool back."""
        self._clusters.close()

    def _regions(self) -> t.Iterator[_Region]:
        """Where everything lies, L2 table by L2 table."""
        cluster, span = self._geometry.cluster, self._geometry.span
        window = max(_WINDOW, _WINDOW_CLUSTERS * cluster)
        positions = itertools.chain.from_iterable(range(start, end, cluster) for start, end in self._clusters.runs())
        stored = ((position, size) for position, size in zip(positions, self._clusters.sizes) if size)
        host = self._geometry.first_free
        for number, mapped in itertools.groupby(stored, key=lambda item: item[0] // span):
            region = _Region(number, host, array.array("Q", bytes(cluster)), [], _Packer(cluster, host + cluster))
            for _number, some in itertools.groupby(mapped, key=lambda item: item[0] // window):
                together = list(some)
                hosts = region.packer.place([size for _position, size in together])
                for (position, size), at in zip(together, hosts):
                    region.entries[position % span // cluster] = self._entry(at, size)
                region.windows.append(len(together))
            yield region
            host = region.packer.end

    def _entry(self, host: int, size: int) -> int:
        """What stands for a cluster in an L2 table."""
        cluster = self._geometry.cluster
        if size == cluster:
            return host | COPIED
        more_sectors = (host + size - 1) // _SECTOR - host // _SECTOR
        return host | more_sectors << 62 - (cluster.bit_length() - 1 - 8) | _COMPRESSED

    def _mapped(self) -> t.Iterator[Piece]:
        """All L2 tables, each with its clusters after it."""
        with contextlib.closing(self._clusters.stored()) as stored:
            for region in self._regions():
                yield big_endian(region.entries)
                yield from self._arranged(stored, region)
            next(stored, None)  # it has all been given out, and now says whether it was right

    def _arranged(self, stored: t.Iterator[bytes], region: _Region) -> t.Iterator[Piece]:
        """The clusters that a table maps, in the order of the image, and zeros between them."""
        cluster, packer = self._geometry.cluster, region.packer
        written = 0
        for count in region.windows:
            for piece in sorted(itertools.islice(stored, count), key=lambda piece: len(piece) == cluster):
                if len(piece) == cluster:
                    yield from zeros(-written % cluster)
                    written += -written % cluster
                yield piece
                written += len(piece)
        yield from zeros(packer.end - packer.begin - written)

    def _refcounts(self) -> t.Iterator[Piece]:
        """Those of all clusters, in order."""
        yield from ones(self._geometry.first_free // self._geometry.cluster)
        for region in self._regions():
            yield from ones(1)
            yield big_endian(region.packer.refcounts)


class _Region(t.NamedTuple):
    """An L2 table, and what it maps.

    :param number: of its entry in the L1 table.
    :param host: its offset in the image; the clusters follow it.
    :param windows: how many clusters were placed together, in turn.
    """

    number: int
    host: int
    entries: array.array[int]
    windows: list[int]
    packer: _Packer


class _Packer:
    """Decides where clusters come to lie: compressed ones side by side, the others in whole clusters of the image.

    :param begin: the offset of the first one.
    """

    def __init__(self, cluster: int, begin: int) -> None:
        self.begin = begin
        self.refcounts = array.array("H")
        self._cluster, self._next = cluster, begin

    @property
    def end(self) -> int:
        """Where the next whole cluster begins."""
        return self._next + -self._next % self._cluster

    def place(self, sizes: list[int]) -> list[int]:
        """The offsets of clusters that are stored with these sizes; the compressed ones come first."""
        hosts = [0] * len(sizes)
        for number in sorted(range(len(sizes)), key=lambda number: sizes[number] == self._cluster):
            size = sizes[number]
            if size == self._cluster:
                self._next = self.end
            hosts[number] = self._next
            self._count(self._next - self.begin, size)
            self._next += size
        return hosts

    def _count(self, offset: int, size: int) -> None:
        first, last = offset // self._cluster, (offset + size - 1) // self._cluster
        self.refcounts.extend([0] * (last + 1 - len(self.refcounts)))
        for number in range(first, last + 1):
            self.refcounts[number] += 1


def _joined(pieces: t.Iterator[Piece]) -> t.Iterator[bytes]:
    """The same bytes in fewer pieces."""
    some: list[Piece] = []
    size = 0
    for piece in pieces:
        some.append(piece)
        size += len(piece)
        if size >= BLOCK:
            yield b"".join(some)
            some, size = [], 0
    if some:
        yield b"".join(some)
