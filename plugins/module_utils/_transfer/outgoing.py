# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A body on its way out: exactly the bytes that were promised, hashed while they are sent, in constant memory."""

from __future__ import annotations

import contextlib
import time
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import SizeMismatch
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.digest import Digest
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.exchange import HttpOptions, Lost
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.pacing import Brake, Pace
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.pipeline import (
    BUFFER,
    BufferPool,
    hashing_stage,
)

if t.TYPE_CHECKING:
    from ansible_collections.imageferry.glance.plugins.module_utils._image.body import Body, Piece

_LEAST_STEP = 4096


class Progress(t.Protocol):
    """Who is told how far an upload is."""

    def advance(self, position: int, size: int | None) -> None:
        """C(position) of C(size) bytes are sent."""


class SourceFailed(Exception):
    """The body could not be made. Not an OSError, which urllib3 would take for one of the connection.

    :param error: what the body raised.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Outgoing:
    """One attempt to send a body: an iterable with a length, as requests takes it to send Content-Length bytes.

    The last bytes leave only once the body has ended as it should: what it finds wrong at its very end still keeps
    the server from taking what it got for whole.

    :param algorithms: the hashes to make of it.
    :raises Unverifiable: this Python has no such algorithm.
    """

    def __init__(self, body: Body, options: HttpOptions, progress: Progress, algorithms: t.Sequence[str]) -> None:
        self.position = 0
        self.begun = False
        self._body = body
        self._progress = progress
        self._min_speed = options.min_speed
        self._pace = Pace(options.min_speed, options.timeout)
        self._brake = Brake(options.rate_limit)
        # A step has to leave within the time-out, and a connection as slow as may be needs no less for it.
        self._step = max(_LEAST_STEP, min(BUFFER, int(self._pace.enough)))
        self._hashers = {name: Digest(name, "").hasher() for name in algorithms}
        self._pool = BufferPool()
        self._stages = [hashing_stage(self._pool, hasher) for hasher in self._hashers.values()]
        self._running: t.Generator[memoryview, None, None] | None = None

    def __len__(self) -> int:
        return self._body.length

    def __iter__(self) -> t.Iterator[memoryview]:
        self._running = self._send()
        return self._running

    @property
    def complete(self) -> bool:
        """Whether the connection has taken all of it."""
        return self.begun and self.position == self._body.length

    def digests(self) -> tuple[Digest, ...]:
        """The hashes of all of it, once it is complete."""
        self._stop()
        for stage in self._stages:
            stage.check()
        return tuple(Digest(name, hasher.hexdigest()) for name, hasher in self._hashers.items())

    def close(self) -> None:
        """Lets go of the body, and ends the threads."""
        if self._running is not None:
            self._running.close()
        self._stop()

    def _stop(self) -> None:
        for stage in self._stages:
            stage.stop()

    def _send(self) -> t.Generator[memoryview, None, None]:
        self.begun = True
        with contextlib.closing(self._filled()) as filled:
            for buffer, length in filled:
                for stage in self._stages:
                    stage.put(buffer, length, self.position)
                with memoryview(buffer) as view:
                    yield from self._steps(view[:length])
                self._pool.release(buffer)

    def _steps(self, view: memoryview) -> t.Generator[memoryview, None, None]:
        """What to send at once, as fast as it may be; the time until the next is asked for is what it took."""
        while view:
            step = self._brake.next_read(view[: self._step])
            started = time.monotonic()
            yield step
            seconds = time.monotonic() - started
            self.position += len(step)
            self._brake.hold(len(step))
            self._progress.advance(self.position, self._body.length)
            if self._pace.is_too_slow(len(step), seconds):
                raise Lost(f"the server takes fewer than {self._min_speed} bytes a second")
            view = view[len(step) :]

    def _filled(self) -> t.Generator[tuple[bytearray, int], None, None]:
        """The body in whole buffers and a last one, each with its length.

        :raises SizeMismatch: the body is of another length than it said.
        """
        buffer, filled, total = self._take(), 0, 0
        with contextlib.closing(self._pieces()) as pieces:
            for piece in pieces:
                total += len(piece)
                if total > self._body.length:
                    raise SizeMismatch(f"The disk goes on after the {self._body.length} bytes that were to be sent.")
                left = memoryview(piece)
                while left:
                    if filled == BUFFER:
                        yield buffer, filled
                        buffer, filled = self._take(), 0
                    count = min(len(left), BUFFER - filled)
                    memoryview(buffer)[filled : filled + count] = left[:count]
                    left, filled = left[count:], filled + count
        if total != self._body.length:
            raise SizeMismatch(f"The disk ended after {total} of {self._body.length} bytes.")
        if filled:
            yield buffer, filled

    def _take(self) -> bytearray:
        return self._pool.take(len(self._stages) + 1)

    def _pieces(self) -> t.Generator[Piece, None, None]:
        try:
            yield from self._body.pieces()
        except Exception as err:
            raise SourceFailed(err) from err
