# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading what a flat disk holds, block after block, with several on their way at once."""

from __future__ import annotations

import array
import collections
import concurrent.futures
import itertools
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._nbd.interface import FlatDisk

GRANULE = 1 << 16
"""The unit in which data are told from zeros, in bytes."""

BLOCK = 1 << 20
"""The unit in which a disk is read, in bytes."""

_MOST_RUNS = 1 << 18  # 16 bytes each
_READERS = 2  # threads; what serves the disk may accept few connections, while many processors compress

Run = tuple[int, int]
"""A stretch of a disk: the offset of its first byte, and of the first one after it."""

_Job = t.TypeVar("_Job")
_Result = t.TypeVar("_Result")


class DataMap:
    """Which parts of a disk may hold something but zeros; all others are known to be zeros.

    Kept as runs: those of an ordinary disk take a few KiB, whatever its size, where a bit for each granule of 8 TiB
    would take 16 MiB. A disk that is so fragmented that its runs would take more than 4 MiB is told of in less detail.

    :param size: of the disk, in bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._granule = GRANULE
        self._edges = array.array("Q")  # the start and the end of each run in turn

    @classmethod
    def of(cls, disk: FlatDisk) -> DataMap:
        """What the extents of a disk say.

        :raises StorageError: it cannot be read.
        """
        found = cls(disk.size)
        for extent in disk.extents():
            if not extent.zero:
                found.add(extent.start, extent.start + extent.length)
        return found

    def add(self, start: int, end: int) -> None:
        """Notes that there may be data from C(start) to before C(end), after all that was noted before."""
        self._append(start, end)
        if len(self._edges) > 2 * _MOST_RUNS:
            while len(self._edges) > _MOST_RUNS:  # half of what is allowed, so that it is done seldom
                self._granule *= 2
                edges, self._edges = self._edges, array.array("Q")
                for run in zip(edges[::2], edges[1::2]):
                    self._append(*run)

    def runs(self, unit: int = GRANULE) -> t.Iterator[Run]:
        """The runs of data in order, in whole units: the last may end after the disk does.

        :param unit: a power of two, in bytes.
        """
        start = end = 0
        disk_end = self.size + -self.size % unit
        for first, last in zip(self._edges[::2], self._edges[1::2]):
            unit_start = first - first % unit
            if unit_start > end:
                if start < end:
                    yield start, end
                start = unit_start
            end = min(last + -last % unit, disk_end)
        if start < end:
            yield start, end

    @property
    def data_bytes(self) -> int:
        """How many bytes may hold data."""
        return sum(min(end, self.size) - start for start, end in self.runs())

    def _append(self, start: int, end: int) -> None:
        start, end = start - start % self._granule, end + -end % self._granule
        if self._edges and start <= self._edges[-1]:
            self._edges[-1] = max(end, self._edges[-1])
        else:
            self._edges.extend((start, end))


class Block(t.NamedTuple):
    """A part of a disk that has been read.

    :param start: its offset in the disk, a multiple of its size.
    :param buffer: what it holds; zeros after the end of the disk. Its owner uses it again.
    :param runs: where it may hold data, as offsets in the disk.
    """

    start: int
    buffer: bytearray
    runs: list[Run]


def read_blocks(
    disk: FlatDisk,
    runs: t.Iterable[Run],
    work: t.Callable[[Block], _Result],
    size: int = BLOCK,
    threads: int = 2,
) -> t.Iterator[_Result]:
    """Reads the blocks that have data, and does some work on each; both in other threads.

    :param runs: what is to be read, in order.
    :param work: its result comes out in the order of the disk; the block is good until the next one is asked for.
    :param size: of a block.
    :param threads: how many work at once.
    :raises StorageError: the disk cannot be read.
    """
    ahead = threads + 2
    blocks = itertools.groupby(cut(runs, size), key=lambda run: run[0] - run[0] % size)
    buffers = itertools.cycle([bytearray(size) for _number in range(ahead + 1)])
    jobs = (Block(start, buffer, list(parts)) for (start, parts), buffer in zip(blocks, buffers))
    with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:

        def read(block: Block) -> _Result:
            readers.submit(_fill, block, disk).result()
            return work(block)

        yield from in_order(read, jobs, threads, ahead)


def cut(runs: t.Iterable[Run], unit: int) -> t.Iterator[Run]:
    """The runs, with those that cross a multiple of C(unit) cut there."""
    for start, end in runs:
        position = start
        while position < end:
            stop = min(end, position - position % unit + unit)
            yield position, stop
            position = stop


def in_order(
    work: t.Callable[[_Job], _Result], jobs: t.Iterable[_Job], threads: int, ahead: int
) -> t.Iterator[_Result]:
    """Does the jobs in threads, and gives out their results in order.

    :param ahead: how many jobs are taken before the result of the first one is asked for.
    """
    pending: collections.deque[concurrent.futures.Future[_Result]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        try:
            for job in jobs:
                pending.append(pool.submit(work, job))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _fill(block: Block, disk: FlatDisk) -> None:
    """Reads the data, and puts zeros between them."""
    filled = block.start
    with memoryview(block.buffer) as view:

        def blank(end: int) -> None:
            view[filled - block.start : end - block.start] = bytes(end - filled)

        for start, end in block.runs:
            blank(start)
            filled = min(end, disk.size)
            disk.read_into(view[start - block.start : filled - block.start], start)
        blank(block.start + len(view))
