# SPDX-License-Identifier: GPL-3.0-or-later
"""What tells whether two disks have the same content, and where it is."""

from __future__ import annotations

import hashlib
import os
import threading
import tracemalloc

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import StorageError
from ansible_collections.imageferry.glance.plugins.module_utils._image import blocks
from ansible_collections.imageferry.glance.plugins.module_utils._image.blocks import DataMap, in_order, read_blocks
from ansible_collections.imageferry.glance.plugins.module_utils._image.body import RawBody
from ansible_collections.imageferry.glance.plugins.module_utils._image.content import (
    BlockDigest,
    ContentHasher,
    survey,
)
from ansible_collections.imageferry.glance.plugins.module_utils._nbd.interface import Extent

MIB = 1024**2
GRANULE = 65536
TIB = 1024**4


def quiet(_offset):
    """Takes no interest in progress."""


def identity_of(content):
    """The definition of the identity, word by word."""
    whole = hashlib.sha256(b"imageferry content 1\0" + len(content).to_bytes(8, "big"))
    for number, start in enumerate(range(0, len(content), MIB)):
        block = content[start : start + MIB]
        if block.strip(b"\0"):
            whole.update(number.to_bytes(8, "big") + hashlib.sha256(block).digest())
    return "1:" + whole.hexdigest()


def test_the_identity_stays_what_it_was(tmp_path, flat):
    with open(tmp_path / "disk", "wb") as file:
        file.truncate(3 * MIB + 512)
        os.pwrite(file.fileno(), b"content", MIB + 5)
    found = survey(flat(tmp_path / "disk"), quiet).identity
    assert found == "1:e2e1ec7e15f8b52d865ee78dae3b328d4d8f5786067bed61c279ea4dac97bbb2"


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", [0, 512, 65536, MIB - 512, MIB, MIB + 512, 20 * MIB + 4096])
def test_the_identity_is_that_of_the_bytes(disk, flat, size, threads):
    path = disk(size)
    assert survey(flat(path), quiet, threads).identity == identity_of(path.read_bytes())


def test_holes_do_not_matter(disk, flat, tmp_path):
    sparse = disk()
    written = tmp_path / "written"
    written.write_bytes(sparse.read_bytes())
    assert written.stat().st_blocks > sparse.stat().st_blocks
    ours, theirs = survey(flat(sparse), quiet), survey(flat(written), quiet)
    assert ours.identity == theirs.identity
    assert list(ours.data.runs()) == list(theirs.data.runs())


def test_size_place_and_content_do_matter(tmp_path, flat):
    seen = set()
    for size, place, content in [(4, 0, b"a"), (4, MIB, b"a"), (4, MIB + 1, b"a"), (4, 0, b"b"), (5, 0, b"a")]:
        with open(tmp_path / "disk", "wb") as file:
            file.truncate(size * MIB)
            os.pwrite(file.fileno(), content, place)
        seen.add(survey(flat(tmp_path / "disk"), quiet).identity)
    assert len(seen) == 5


def test_a_survey_knows_where_the_data_are(disk, flat):
    path = disk()
    content = path.read_bytes()
    granules = [start for start in range(0, len(content), GRANULE) if content[start : start + GRANULE].strip(b"\0")]
    disk = flat(path)
    found = survey(disk, quiet).data
    assert [start for run in found.runs() for start in range(*run, GRANULE)] == granules
    assert found.data_bytes < DataMap.of(disk).data_bytes


@pytest.mark.parametrize("seed", range(5))
def test_a_body_tells_the_identity_of_what_it_gives(disk, flat, seed):
    path = disk(12 * MIB + 1536, seed)
    disk = flat(path)
    known = survey(disk, quiet)
    for data in (DataMap.of(disk), known.data):
        hasher = ContentHasher(disk.size)
        body = RawBody(disk, data, hasher)
        for _attempt in range(2):
            assert b"".join(map(bytes, body.pieces())) == path.read_bytes()
            assert hasher.identity == known.identity
        assert body.length == disk.size


def test_blocks_are_told_in_order():
    hasher = ContentHasher(4 * MIB)
    hasher.add([BlockDigest(0, b"a"), BlockDigest(2, b"b")])
    with pytest.raises(ValueError, match="block 2"):
        hasher.add([BlockDigest(2, b"c")])


class Made:
    """A disk that does not lie anywhere.

    :param content: what is read, wherever.
    :param fails_at: an offset that cannot be read.
    """

    def __init__(self, size, extents=(), content=b"", fails_at=None):
        self.size, self._extents, self._content, self._fails_at = size, extents, content, fails_at
        self.reads = 0

    def extents(self):
        return iter(self._extents)

    def read_into(self, buffer, offset):
        self.reads += 1
        if self._fails_at is not None and offset <= self._fails_at < offset + len(buffer):
            raise StorageError(f"{self._fails_at} cannot be read.")
        if self._content:
            buffer[:] = self._content * len(buffer)


def test_an_empty_disk_is_not_read():
    disk = Made(TIB, [Extent(0, TIB, True)])
    found = survey(disk, quiet)
    assert disk.reads == 0
    assert (found.identity, list(found.data.runs())) == (ContentHasher(TIB).identity, [])


def test_progress_is_told_in_order():
    told = []
    survey(Made(9 * MIB, [Extent(0, 8 * MIB, False), Extent(8 * MIB, MIB, True)], b"x"), told.append)
    assert told == [*range(MIB, 9 * MIB, MIB), 9 * MIB]


@pytest.mark.parametrize("use", [
    lambda disk: survey(disk, quiet),
    lambda disk: list(RawBody(disk, DataMap.of(disk)).pieces()),
])  # fmt: skip
def test_what_cannot_be_read_ends_it(use):
    before = threading.active_count()
    disk = Made(64 * MIB, [Extent(0, 64 * MIB, False)], b"x", fails_at=20 * MIB + 7)
    with pytest.raises(StorageError, match="20971527"):
        use(disk)
    assert threading.active_count() == before
    assert disk.reads < 30


def test_who_is_told_of_progress_can_end_it():
    before = threading.active_count()

    def stop(offset):
        if offset >= 3 * MIB:
            raise InterruptedError

    disk = Made(64 * MIB, [Extent(0, 64 * MIB, False)], b"x")
    with pytest.raises(InterruptedError):
        survey(disk, stop)
    assert threading.active_count() == before
    assert disk.reads < 16


def test_results_come_in_order_and_few_are_on_their_way():
    taken, second_is_done = [], threading.Event()

    def jobs():
        for number in range(20):
            taken.append(number)
            yield number

    def work(number):
        if number == 0:
            assert second_is_done.wait(5)
        second_is_done.set()
        return number

    for number, result in enumerate(in_order(work, jobs(), threads=2, ahead=4)):
        assert number == result
        assert len(taken) <= number + 5


def test_few_threads_read_while_many_work():
    readers, workers = set(), set()

    class Watched(Made):
        def read_into(self, buffer, offset):
            readers.add(threading.get_ident())
            super().read_into(buffer, offset)

    disk, together = Watched(32 * MIB, [Extent(0, 32 * MIB, False)], b"x"), threading.Barrier(8)

    def work(_block):
        together.wait(5)
        workers.add(threading.get_ident())

    list(read_blocks(disk, DataMap.of(disk).runs(), work, threads=8))
    assert len(readers) <= 2
    assert len(workers) == 8


def test_runs_in_larger_units():
    data = DataMap(5 * MIB + 512)
    for start, end in [
        (3, 5),
        (GRANULE, GRANULE + 1),
        (MIB - 1, MIB + 1),
        (4 * MIB, 5 * MIB),
        (5 * MIB + 5, 5 * MIB + 512),
    ]:
        data.add(start, end)
    assert list(data.runs()) == [
        (0, 2 * GRANULE), (MIB - GRANULE, MIB + GRANULE), (4 * MIB, 5 * MIB + GRANULE)
    ]  # fmt: skip
    assert list(data.runs(2 * MIB)) == [(0, 2 * MIB), (4 * MIB, 6 * MIB)]
    assert list(data.runs(4096))[-1] == (4 * MIB, 5 * MIB + 4096)
    assert data.data_bytes == 4 * GRANULE + MIB + 512


def test_a_fragmented_disk_is_told_of_in_less_detail(monkeypatch):
    monkeypatch.setattr(blocks, "_MOST_RUNS", 64)
    data, added = DataMap(TIB), []
    for number in range(5000):
        start = number * 3 * MIB + number % 7 * GRANULE
        added.append((start, start + 4096))
        data.add(*added[-1])
        if number % 100 == 0:
            runs = list(data.runs())
            assert len(runs) <= 64
            assert all(any(first <= start and end <= last for first, last in runs) for start, end in added)
    assert all(last < first for (_start, last), (first, _end) in zip(runs, runs[1:]))


def test_a_map_takes_little_memory():
    tracemalloc.start()
    try:
        data = DataMap(8 * TIB)
        for start in range(0, 64 * 1024**3, 2 * GRANULE):  # 524288 runs
            data.add(start, start + 1)
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * MIB
