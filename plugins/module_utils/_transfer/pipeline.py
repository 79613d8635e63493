# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What both directions of a transfer share: buffers that several threads work on, and the words for what was done."""

from __future__ import annotations

import queue
import threading
import typing as t

BUFFER = 1 << 20
_BUFFERS = 8


class BufferPool:
    """A fixed number of buffers; one is free again when every stage has let go of it."""

    def __init__(self) -> None:
        self._free: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        self._holders: dict[int, int] = {}
        self._lock = threading.Lock()
        for _number in range(_BUFFERS):
            self._free.put(bytearray(BUFFER))

    def take(self, holders: int) -> bytearray:
        """A free buffer, waited for, that C(holders) stages will let go of."""
        buffer = self._free.get()
        self._holders[id(buffer)] = holders
        return buffer

    def release(self, buffer: bytearray) -> None:
        """Lets go of C(buffer), as one of its holders."""
        with self._lock:
            self._holders[id(buffer)] -= 1
            free = not self._holders[id(buffer)]
        if free:
            self._free.put(buffer)


class Stage:
    """A thread that works on each buffer in turn; its first error is raised at the next L(put) or L(check)."""

    def __init__(self, pool: BufferPool, work: t.Callable[[bytearray, int, int], None]) -> None:
        self._pool = pool
        self._work = work
        self._error: BaseException | None = None
        self._todo: queue.SimpleQueue[tuple[bytearray, int, int] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="stage", daemon=True)
        self._thread.start()

    def put(self, buffer: bytearray, length: int, offset: int) -> None:
        """Has the thread work on the first C(length) bytes of C(buffer), which are at C(offset) of the whole."""
        self.check()
        self._todo.put((buffer, length, offset))

    def check(self) -> None:
        """Raises the thread's first error."""
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


def hashing_stage(pool: BufferPool, hasher: t.Any) -> Stage:
    """A stage that brings all bytes to C(hasher)."""

    def work(buffer: bytearray, length: int, _offset: int) -> None:
        with memoryview(buffer) as view:
            hasher.update(view[:length])

    return Stage(pool, work)


def describe_transfer(
    moved: int,
    seconds: float,
    *,
    zero_bytes: int = 0,
    resumed_from: int = 0,
    reconnects: int = 0,
    restarts: int = 0,
    connections: int = 1,
    staged: int = 0,
) -> dict[str, t.Any]:
    """The C(transfer) of a task's result, of a transfer that moved so many bytes."""
    return {
        "bytes": moved,
        "zero_bytes": zero_bytes,
        "seconds": round(seconds, 3),
        "rate": int(moved / seconds) if seconds else 0,
        "resumed_from": resumed_from,
        "reconnects": reconnects,
        "restarts": restarts,
        "connections": connections,
        "staged_bytes": staged,
    }
