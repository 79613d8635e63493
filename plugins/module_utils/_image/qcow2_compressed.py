# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing a compressed qcow2: compressed once to learn how long the clusters get, and then sent.

Where its bytes come to lie is known only when all are compressed. So they are kept in a spool meanwhile, or made
twice: the disk does not change, and the same bytes compress to the same.
"""

from __future__ import annotations

import array
import contextlib
import itertools
import os
import tempfile
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import NoSpace, StorageError
from ansible_collections.imageferry.glance.plugins.module_utils._image.blocks import (
    BLOCK,
    Block,
    DataMap,
    Run,
    cut,
    read_blocks,
)
from ansible_collections.imageferry.glance.plugins.module_utils._image.body import Piece, zeros
from ansible_collections.imageferry.glance.plugins.module_utils._image.compress import find_compressor
from ansible_collections.imageferry.glance.plugins.module_utils._image.content import (
    BlockDigest,
    ContentHasher,
    digest_block,
)
from ansible_collections.imageferry.glance.plugins.module_utils._image.qcow2_writer import (
    COPIED,
    DEFAULT_CLUSTER_SIZE,
    Geometry,
    big_endian,
    ones,
)
from ansible_collections.imageferry.glance.plugins.module_utils._nbd.interface import FlatDisk
from ansible_collections.imageferry.glance.plugins.module_utils._sizes import format_size
from ansible_collections.imageferry.glance.plugins.module_utils._volume.storage import storage_errors

_COMPRESSED = 1 << 62
_SECTOR = 512
_WINDOW = 4 << 20  # bytes of the disk that are placed together, and held in memory together
_WINDOW_CLUSTERS = 4  # at least
_SAMPLES = 32


class CompressedQcow2Body:
    """A disk as a compressed qcow2. Clusters of zeros take up nothing in it, wherever C(data) has them.

    What is remembered of each cluster with data is four bytes: 64 MiB for 1 TiB of data in clusters of 64 KiB.

    :param data: where it may hold data; the rest is not read.
    :param compression_type: V(zlib), or V(zstd), which needs a QEMU from 5.1 on to be read.
    :param level: None compresses as much as qemu-img does.
    :param threads: how many compress at once.
    :param spool_dir: where the compressed bytes are kept, in a file without a name; None compresses twice instead.
    :param hasher: is told what is read by L(prepare).
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
        self._compress = find_compressor(compression_type, level)
        self._geometry = Geometry(disk.size, cluster_size, compat, compression_type)
        self._disk, self._data, self._hasher = disk, data, hasher
        self._threads = threads or len(os.sched_getaffinity(0))
        self._folder = spool_dir
        self._spool: t.IO[bytes] | None = None
        self._sizes = array.array("I")  # of all clusters that may hold data, as they are stored; 0 for zeros
        self._l1_table = array.array("Q", bytes(8 * self._geometry.l1_size))
        self._end = 0

    @property
    def length(self) -> int:
        """See L(Body.length); known after L(prepare)."""
        if not self._end:
            raise ValueError("nothing has been compressed yet")
        return self._geometry.length(self._end)

    def prepare(self, on_progress: t.Callable[[int], None] = lambda _offset: None) -> None:
        """Compresses the disk for the first time. The spool stays until L(close).

        :param on_progress: is told the offset in the disk that is reached; what it raises ends it.
        :raises NoSpace: the spool does not fit where it is to be.
        :raises StorageError: the disk cannot be read.
        """
        if self._folder is not None:
            self._check_space(self._folder)
            with storage_errors(f"keep compressed bytes in {self._folder}"):
                self._spool = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 (until close)
        with self._closed_if_fails():
            for clusters, reached in self._compressed_blocks(self._runs(), self._hasher):
                self._sizes.extend(map(len, clusters))
                self._keep(b"".join(clusters))
                on_progress(reached)
        self._end = self._geometry.first_free
        for region in self._regions():
            self._l1_table[region.number] = region.host | COPIED
            self._end = region.packer.end

    def pieces(self) -> t.Iterator[Piece]:
        """See L(Body.pieces)."""
        yield from self._geometry.head(self._l1_table, self._end)
        yield from _joined(self._clusters())
        yield from self._geometry.tail(self._refcounts(), self._end)

    def close(self) -> None:
        """Gives the space of the spool back."""
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    # --- compressing ---

    def _compressed_blocks(
        self, runs: t.Iterable[Run], hasher: ContentHasher | None
    ) -> t.Iterator[tuple[list[bytes], int]]:
        """The clusters of each block as they are stored, and the offset in the disk where they end."""
        zero_cluster = bytes(self._geometry.cluster)

        def work(block: Block) -> tuple[list[bytes], list[BlockDigest], int]:
            clusters = [
                b"" if block.buffer.startswith(zero_cluster, position - block.start) else self._store(block, position)
                for start, end in block.runs
                for position in range(start, end, len(zero_cluster))
            ]
            return clusters, digest_block(block, self._disk.size) if hasher else [], block.start + len(block.buffer)

        if hasher:
            hasher.restart()
        size = max(BLOCK, self._geometry.cluster)
        for clusters, digests, end in read_blocks(self._disk, runs, work, size, self._threads):
            if hasher:
                hasher.add(digests)
            yield clusters, min(end, self._disk.size)

    def _store(self, block: Block, position: int) -> bytes:
        """A cluster compressed, or as it is where that is not shorter."""
        start, size = position - block.start, self._geometry.cluster
        with memoryview(block.buffer) as view, view[start : start + size] as cluster:
            compressed = self._compress(cluster)
            return compressed if len(compressed) < size else bytes(cluster)

    def _runs(self) -> t.Iterator[Run]:
        return self._data.runs(self._geometry.cluster)

    def _check_space(self, folder: str) -> None:
        """Looks at a few blocks if there is not room for all: nobody should wait for hours to hear that.

        :raises NoSpace: there is clearly too little room.
        """
        with storage_errors(f"look at {folder}"):
            status = os.statvfs(folder)
        free, most = status.f_bavail * status.f_frsize, self._data.data_bytes
        if most <= free:
            return
        every = max(1, most // max(BLOCK, self._geometry.cluster) // _SAMPLES)
        samples = list(itertools.islice(cut(self._runs(), BLOCK), 0, None, every))
        stored = sum(len(piece) for clusters, _end in self._compressed_blocks(samples, None) for piece in clusters)
        expected = most * stored // sum(end - start for start, end in samples)
        if expected // 2 > free:  # half of it, as a few blocks may mislead
            raise NoSpace(
                f"About {format_size(expected)} of compressed bytes are to be kept in {folder}, which has "
                f"{format_size(free)} free."
            )

    def _keep(self, stored: bytes) -> None:
        if self._spool is None:
            return
        with storage_errors(f"keep compressed bytes in {self._folder}"), memoryview(stored) as rest:
            written = 0
            while written < len(rest):
                written += self._spool.write(rest[written:])

    @contextlib.contextmanager
    def _closed_if_fails(self) -> t.Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    # --- laying out ---

    def _regions(self) -> t.Iterator[_Region]:
        """Where everything lies, L2 table by L2 table."""
        cluster, span = self._geometry.cluster, self._geometry.span
        window = max(_WINDOW, _WINDOW_CLUSTERS * cluster)
        positions = itertools.chain.from_iterable(range(start, end, cluster) for start, end in self._runs())
        stored = ((position, size) for position, size in zip(positions, self._sizes) if size)
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

    def _clusters(self) -> t.Iterator[Piece]:
        """All L2 tables, each with its clusters after it."""
        with contextlib.closing(self._stored()) as stored:
            for region in self._regions():
                yield big_endian(region.entries)
                yield from self._arranged(stored, region)

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

    def _stored(self) -> t.Generator[bytes, None, None]:
        """All that is stored of clusters, in the order of the disk."""
        sizes = (size for size in self._sizes if size)
        if self._spool is not None:
            position = 0
            for size in sizes:
                yield self._read_spool(self._spool, size, position)
                position += size
            return
        for clusters, _end in self._compressed_blocks(self._runs(), self._hasher):
            for piece in filter(None, clusters):
                if len(piece) != next(sizes, 0):
                    raise StorageError("The disk changed while it was read.", "Stop what writes to it, and run again.")
                yield piece

    def _read_spool(self, spool: t.IO[bytes], size: int, position: int) -> bytes:
        with storage_errors(f"read what was kept in {self._folder}"):
            piece = os.pread(spool.fileno(), size, position)
        if len(piece) < size:
            raise StorageError(f"What was kept in {self._folder} ends too early.")
        return piece


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
    yield b"".join(some)
