# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The clusters of a disk, compressed and waiting to be sent.

Where they come to lie in a qcow2 is known only when all are compressed. So they are kept in a spool meanwhile, or made
twice where there is no room for that: the same bytes compress to the same, and whether they are the same is checked.
"""

from __future__ import annotations

import array
import itertools
import os
import tempfile
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    NoSpace,
    SourceChanged,
    StorageError,
)
from ansible_collections.imageferry.glance.plugins.module_utils._image.blocks import (
    BLOCK,
    Block,
    DataMap,
    Run,
    cut,
    read_blocks,
)
from ansible_collections.imageferry.glance.plugins.module_utils._image.compress import Compress
from ansible_collections.imageferry.glance.plugins.module_utils._image.content import (
    BlockDigest,
    ContentHasher,
    digest_block,
)
from ansible_collections.imageferry.glance.plugins.module_utils._nbd.interface import FlatDisk
from ansible_collections.imageferry.glance.plugins.module_utils._volume.storage import storage_errors

_SAMPLES = 32


class CompressedClusters:
    """The clusters that may hold data, each as it is stored: compressed, as it is, or not at all when it is zeros.

    :param data: where the disk may hold data.
    :param compress: what compresses a cluster.
    :param spool_dir: where they are kept, in a file without a name, if they fit; None makes them again when they are
        asked for.
    :param hasher: is told what is read, each time that all is.
    """

    def __init__(
        self,
        disk: FlatDisk,
        data: DataMap,
        cluster_size: int,
        compress: Compress,
        threads: int,
        spool_dir: str | None,
        hasher: ContentHasher | None,
    ) -> None:
        self.sizes = array.array("I")
        """As they are stored: the cluster's size if it is not compressed, 0 if it is zeros. Filled by L(make)."""
        self._disk, self._data, self._cluster = disk, data, cluster_size
        self._block_size = max(BLOCK, cluster_size)
        self._compress, self._threads, self._hasher = compress, threads, hasher
        self._folder = spool_dir
        self._spool: t.IO[bytes] | None = None
        self._identity: str | None = None

    def runs(self) -> t.Iterator[Run]:
        """The parts of the disk that the clusters are of."""
        return self._data.runs(self._cluster)

    @property
    def spooled_bytes(self) -> int:
        """The bytes that the spool holds."""
        return sum(self.sizes) if self._spool is not None else 0

    def make(self, on_progress: t.Callable[[int], None]) -> None:
        """Compresses all for the first time. The spool stays until L(close).

        :param on_progress: is told the offset in the disk that is reached; what it raises ends it.
        :raises StorageError: the disk cannot be read.
        """
        if self._folder is not None and self._has_room(self._folder):
            with storage_errors(f"keep compressed bytes in {self._folder}"):
                self._spool = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 (until close)
        try:
            for clusters, end in self._hashed_blocks():
                self.sizes.extend(map(len, clusters))
                self._keep(b"".join(clusters))
                on_progress(end)
        except BaseException:
            self.close()
            raise
        self._identity = self._hasher.identity if self._hasher else None

    def close(self) -> None:
        """Gives the space of the spool back."""
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    def stored(self) -> t.Generator[bytes, None, None]:
        """All that is stored, in the order of the disk. Whether it is the same as at first is known at the very end.

        :raises SourceChanged: it is not.
        :raises StorageError: it cannot be read.
        """
        sizes = (size for size in self.sizes if size)
        if self._spool is not None:
            position = 0
            for size in sizes:
                yield self._read_spool(self._spool, size, position)
                position += size
            return
        for clusters, _end in self._hashed_blocks():
            for piece in filter(None, clusters):
                if len(piece) != next(sizes, 0):
                    raise SourceChanged("The disk was written to while it was read.")
                yield piece
        if self._hasher and self._hasher.identity != self._identity:
            raise SourceChanged("The disk was written to while it was read.")

    def _hashed_blocks(self) -> t.Iterator[tuple[list[bytes], int]]:
        """The clusters of each block, and the offset in the disk where they end."""
        if self._hasher:
            self._hasher.restart()
        for clusters, digests, end in self._blocks(self.runs()):
            if self._hasher:
                self._hasher.add(digests)
            yield clusters, min(end, self._disk.size)

    def _blocks(self, runs: t.Iterable[Run]) -> t.Iterator[tuple[list[bytes], list[BlockDigest], int]]:
        zero_cluster = bytes(self._cluster)

        def work(block: Block) -> tuple[list[bytes], list[BlockDigest], int]:
            clusters = [
                b"" if block.buffer.startswith(zero_cluster, position - block.start) else self._store(block, position)
                for start, end in block.runs
                for position in range(start, end, self._cluster)
            ]
            digests = digest_block(block, self._disk.size) if self._hasher else []
            return clusters, digests, block.start + len(block.buffer)

        return read_blocks(self._disk, runs, work, self._block_size, self._threads)

    def _store(self, block: Block, position: int) -> bytes:
        """A cluster compressed, or as it is where that is not shorter."""
        start = position - block.start
        with memoryview(block.buffer) as view, view[start : start + self._cluster] as cluster:
            compressed = self._compress(cluster)
            return compressed if len(compressed) < self._cluster else bytes(cluster)

    # --- the spool ---

    def _has_room(self, folder: str) -> bool:
        """Whether there may be room for all, by a look at a few blocks if that is not clear."""
        with storage_errors(f"look at {folder}"):
            status = os.statvfs(folder)
        free, most = status.f_bavail * status.f_frsize, self._data.data_bytes
        if most <= free:
            return True
        every = max(1, most // self._block_size // _SAMPLES)
        samples = list(itertools.islice(cut(self.runs(), self._block_size), 0, None, every))
        stored = sum(len(piece) for clusters, _digests, _end in self._blocks(samples) for piece in clusters)
        expected = most * stored // sum(end - start for start, end in samples)
        return expected // 2 <= free  # half of it, as a few blocks may mislead

    def _keep(self, stored: bytes) -> None:
        """Writes to the spool, or gives it up where it does not fit after all."""
        if self._spool is None:
            return
        try:
            with storage_errors(f"keep compressed bytes in {self._folder}"), memoryview(stored) as rest:
                written = 0
                while written < len(rest):
                    written += self._spool.write(rest[written:])
        except NoSpace:
            self.close()

    def _read_spool(self, spool: t.IO[bytes], size: int, position: int) -> bytes:
        with storage_errors(f"read what was kept in {self._folder}"):
            piece = os.pread(spool.fileno(), size, position)
        if len(piece) < size:
            raise StorageError(f"What was kept in {self._folder} ends too early.")
        return piece
