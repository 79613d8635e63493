# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Receiving an image in one pass: read, hash and write at the same time, in constant memory."""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    ChecksumMismatch,
    ImageTooLarge,
    SizeMismatch,
)
from ansible_collections.imageferry.glance.plugins.module_utils._sizes import format_size
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.digest import Digest
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.source import HttpSource, StartOver

BUFFER = 1 << 20
_BUFFERS = 8


class Sink(t.Protocol):
    """Where the bytes go."""

    zero_bytes: int

    def restart(self) -> None:
        """Forgets all that was written."""

    def write(self, buffer: bytearray, length: int, offset: int) -> None:
        """Writes the first C(length) bytes of C(buffer) at C(offset)."""

    def finish(self, size: int) -> None:
        """Completes the C(size) bytes, durably."""


class Watcher(t.Protocol):
    """Who is told how far a transfer is."""

    def advance(self, position: int, size: int | None) -> None:
        """C(position) of C(size) bytes have arrived."""


@dataclasses.dataclass
class Received:
    """What a transfer did: bytes, seconds, and whether it had to start over."""

    bytes: int
    zero_bytes: int
    seconds: float
    digest: Digest | None
    reconnects: int
    restarts: int

    def to_dict(self) -> dict[str, t.Any]:
        """The C(transfer) of a task's result."""
        return {
            "bytes": self.bytes,
            "zero_bytes": self.zero_bytes,
            "seconds": round(self.seconds, 3),
            "rate": int(self.bytes / self.seconds) if self.seconds else 0,
            "resumed_from": 0,
            "reconnects": self.reconnects,
            "restarts": self.restarts,
        }


def receive(
    source: HttpSource,
    sink: Sink,
    expected: Digest | None,
    check_head: t.Callable[[bytes, int | None], t.Any],
    watcher: Watcher,
    limit: int | None = None,
) -> Received:
    """Carries all bytes of C(source) to C(sink), and verifies them.

    :param expected: the hash that the bytes must have; None carries them unverified.
    :param check_head: called with the first bytes and the size, before anything is written; raises to refuse.
    :param limit: the bytes that may arrive, of an image whose size nobody told.
    :raises ImageTooLarge: more arrived.
    :raises ChecksumMismatch, SizeMismatch: other bytes arrived than promised, also at the second attempt.
    :raises FerryError, OSError: the source, the check or the sink failed.
    """
    started = time.monotonic()
    second = False  # whether bytes that were not the promised ones have arrived already
    while True:
        try:
            digest = _receive_once(source, sink, expected, check_head, watcher, limit)
            if expected is not None and digest != expected:
                raise ChecksumMismatch(
                    f"The {expected.algorithm} of the {source.position} bytes received is {digest and digest.value}, "
                    f"not {expected.value}."
                )
            break
        except StartOver as err:
            source.restart(err)
        except (ChecksumMismatch, SizeMismatch) as err:
            if second:
                raise
            second = True
            source.restart(err)
        sink.restart()
    sink.finish(source.position)
    seconds = time.monotonic() - started
    return Received(source.position, sink.zero_bytes, seconds, digest, source.reconnects, source.restarts)


def _receive_once(
    source: HttpSource,
    sink: Sink,
    expected: Digest | None,
    check_head: t.Callable[[bytes, int | None], t.Any],
    watcher: Watcher,
    limit: int | None,
) -> Digest | None:
    hasher = expected.hasher() if expected else None
    pool = _BufferPool()
    stages = [_Stage(pool, sink.write)]
    if hasher is not None:
        stages.append(_Stage(pool, lambda buffer, length, _offset: _hash(hasher, buffer, length)))
    try:
        _pump(source, pool, stages, check_head, watcher, limit)
    finally:
        for stage in stages:
            stage.stop()
    for stage in stages:
        stage.check()
    return Digest(expected.algorithm, hasher.hexdigest()) if expected and hasher else None


def _pump(
    source: HttpSource,
    pool: _BufferPool,
    stages: list[_Stage],
    check_head: t.Callable[[bytes, int | None], t.Any],
    watcher: Watcher,
    limit: int | None,
) -> None:
    """Reads buffer after buffer and hands each to all stages."""
    offset = 0
    while True:
        buffer = pool.take(len(stages))
        with memoryview(buffer) as view:
            length = source.readinto(view)
        if offset == 0:
            check_head(bytes(buffer[: min(length, 1 << 16)]), source.size)
        if limit is not None and offset + length > limit:
            raise ImageTooLarge(f"More than the {limit} bytes ({format_size(limit)}) that are allowed arrive.")
        if length:
            for stage in stages:
                stage.put(buffer, length, offset)
        offset += length
        watcher.advance(offset, source.size)
        if length < BUFFER:
            break
    if source.size is not None and offset != source.size:
        raise SizeMismatch(f"{offset} bytes arrived of {source.size}.")


def _hash(hasher: t.Any, buffer: bytearray, length: int) -> None:
    with memoryview(buffer) as view:
        hasher.update(view[:length])


class _BufferPool:
    """A fixed number of buffers; one is free again when every stage has let go of it."""

    def __init__(self) -> None:
        self._free: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        self._holders: dict[int, int] = {}
        self._lock = threading.Lock()
        for _number in range(_BUFFERS):
            self._free.put(bytearray(BUFFER))

    def take(self, holders: int) -> bytearray:
        buffer = self._free.get()
        self._holders[id(buffer)] = holders
        return buffer

    def release(self, buffer: bytearray) -> None:
        with self._lock:
            self._holders[id(buffer)] -= 1
            free = not self._holders[id(buffer)]
        if free:
            self._free.put(buffer)


class _Stage:
    """A thread that works on each buffer in turn; its first error is raised at the next L(put) or L(check)."""

    def __init__(self, pool: _BufferPool, work: t.Callable[[bytearray, int, int], None]) -> None:
        self._pool = pool
        self._work = work
        self._error: BaseException | None = None
        self._todo: queue.SimpleQueue[tuple[bytearray, int, int] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, buffer: bytearray, length: int, offset: int) -> None:
        self.check()
        self._todo.put((buffer, length, offset))

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Ends the thread after what it has been given."""
        self._todo.put(None)
        self._thread.join()

    def _run(self) -> None:
        for buffer, length, offset in iter(self._todo.get, None):
            try:
                if self._error is None:
                    self._work(buffer, length, offset)
            except BaseException as err:  # handed to the thread that reads
                self._error = err
            finally:
                self._pool.release(buffer)
