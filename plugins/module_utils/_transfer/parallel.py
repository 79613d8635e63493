# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading an object over several connections at once, in order, where that is faster.

It begins as one stream. Others join it further on, each of which fetches one segment after another over a connection
that is kept alive. Whatever goes wrong with them, the one stream takes over from where it stands, and judges it: a
server without ranges has never been left, and one that fails is given up by the same rules.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import queue
import re
import socket
import threading
import time
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import FerryError, InvalidOption, TokenExpired
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.exchange import HttpOptions, Lost
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.source import HttpSource, StartOver

MAX_CONNECTIONS = 16

_PIECE = 1 << 20
_SEGMENT = 8 * _PIECE  # each has to be asked for: with half of it, images came from a Glance an eighth more slowly
_MEMORY = 16 * _PIECE  # of all pieces that wait to be delivered
_TRIED = 4
_WINDOW = 0.5  # seconds over which a rate is measured
_SETTLE = 0.4  # seconds that new connections get before it is
_WAITING = 0.75  # the share of the time spent waiting for the network from which on it is the bottleneck
_FAST = 300e6  # bytes a second from which on one is enough: a hash takes hardly twice as many
_GAIN = 1.2  # how much faster several connections have to be
_WORTHWHILE = 2.0  # seconds left, below which nothing is tried any more
_AGAIN = 15.0  # seconds after which what did not pay is tried again, with more patience
_LONGEST_REST = 60.0
_REST = 1.0  # seconds without others after the server refused one


def parse_connections(text: str) -> int | None:
    """Reads the option C(connections); None is V(auto).

    :raises InvalidOption: it is neither that nor a number that makes sense.
    """
    if text == "auto":
        return None
    if not re.fullmatch("[0-9]{1,2}", text) or not 1 <= int(text) <= MAX_CONNECTIONS:
        raise InvalidOption(f"'connections: {text}' is neither auto nor 1 to {MAX_CONNECTIONS}.")
    return int(text)


class ParallelSource:
    """An object on an HTTP server, read as one stream over as many connections as pay.

    Parameters and errors are those of L(HttpSource).
    """

    def __init__(self, url: str, size: int | None, options: HttpOptions) -> None:
        self.connections = 1
        self._stream = HttpSource(url, size, options)
        self._options = options
        self._tuner = Tuner(options.connections)
        self._team: _Team | None = None
        self._waited = 0.0  # seconds spent waiting for teams that are gone
        self._ranges_seen = False

    @property
    def size(self) -> int | None:
        """Bytes of the object, None until they are known."""
        return self._stream.size

    @property
    def position(self) -> int:
        """Bytes that were delivered, those before L(begin_at) included."""
        return self._stream.position

    @property
    def reconnects(self) -> int:
        """How often a connection was made again."""
        return self._stream.reconnects

    @property
    def restarts(self) -> int:
        """How often it began again from the first byte."""
        return self._stream.restarts

    def learn_size(self) -> int | None:
        """See L(HttpSource.learn_size)."""
        return self._stream.learn_size()

    def begin_at(self, position: int) -> None:
        """See L(HttpSource.begin_at)."""
        self._stream.begin_at(position)

    def restart(self, why: StartOver | FerryError) -> None:
        """See L(HttpSource.restart)."""
        self._dismiss()
        self._tuner.stay_alone()
        self._stream.restart(why)

    def close(self) -> None:
        """Ends all connections."""
        self._dismiss()
        self._stream.close()

    def readinto(self, view: memoryview) -> int:
        """See L(HttpSource.readinto)."""
        filled = 0
        while filled < len(view):
            self._adapt()
            rest = view[filled:]
            if self._team is None:
                return filled + self._stream.readinto(rest)
            before_team = self._team.begin - self.position
            filled += self._stream.readinto(rest[:before_team]) if before_team > 0 else self._read_team(rest)
        return filled

    def _adapt(self) -> None:
        """Has as many connections at work as the tuner says."""
        waited = self._stream.waited + self._waited + (self._team.waited if self._team else 0)
        wanted = self._tuner.choose(self.position, self.size, waited)
        stream = self._stream.is_connected
        if self._team is None and wanted > 1 and self.size is not None and (stream or self._ranges_seen):
            # Until a part has come, the stream stays: it is all there is where there are no ranges.
            begin = self.position + _SEGMENT if stream else self.position
            if begin < self.size:
                self._team = _Team(self._stream, self._options, begin, self.size, max(_TRIED, wanted))
        if self._team is not None:
            self._team.resize(wanted - stream if wanted > 1 else 0)
            self.connections = max(self.connections, self._team.working + stream)

    def _read_team(self, view: memoryview) -> int:
        """Bytes that the others have brought; 0 when they have failed or left."""
        team = t.cast(_Team, self._team)
        try:
            count = team.readinto(self._stream.next_read(view))
        except Lost as lost:
            self._dismiss()
            if not lost.answered:
                self._tuner.use_fewer(lost.pause)
            if not self._stream.is_connected:
                self._stream.lose(lost)
            return 0
        except StartOver:
            self._dismiss()
            self._tuner.stay_alone()
            return 0
        except FerryError as err:
            self._dismiss()
            self._tuner.stay_alone()
            if isinstance(err, TokenExpired) and not self._stream.is_connected:
                raise
            return 0
        if not count:
            self._dismiss()
        elif self._stream.is_connected:
            self._stream.hang_up()
            self._ranges_seen = True
        self._stream.advance(count)
        return count

    def _dismiss(self) -> None:
        if self._team is not None:
            self._waited += self._team.waited
            self._team.stop()
            self._team = None


class Tuner:
    """Says how many connections to use: as many as were asked for, or else as many as measuring shows to pay.

    Several are tried only where the network is what is waited for, and much is left; they are kept only if the rate
    rises with them. Connections over a long way need time to get fast: those that did not pay are tried again later,
    and longer.

    :param fixed: how many were asked for, None to find out.
    """

    def __init__(self, fixed: int | None) -> None:
        self._fixed = fixed
        self._most = fixed or _TRIED
        self._count = self._kept = 1
        self._rate = 0.0  # of one alone
        self._patience = 1
        self._rest_until = 0.0
        self._begin: tuple[float, int, float] | None = None  # of the window: time, bytes, seconds waited
        self._begin_after = 0.0

    def stay_alone(self) -> None:
        """The server sends no parts."""
        self._most = 1

    def use_fewer(self, pause: float | None) -> None:
        """The server refused one of them, and wants to be left alone for C(pause) seconds."""
        self._most = max(1, self._most // 2)
        self._count = self._kept = min(self._kept, self._most)
        self._rest_until = time.monotonic() + (_REST if pause is None else min(pause, _LONGEST_REST))
        self._begin = None

    def choose(self, position: int, size: int | None, waited: float) -> int:
        """How many to use now.

        :param waited: the seconds that were spent waiting for the network until now.
        """
        now = time.monotonic()
        if self._most == 1 or now < self._rest_until or size is None:
            return 1
        if self._fixed:
            return self._most
        if self._kept > 1 or not waited:
            return self._kept
        if self._begin is None:
            if now >= self._begin_after:
                self._begin = (now, position, waited)
            return self._count
        began, first, waited_before = self._begin
        seconds = now - began
        if seconds >= _WINDOW * self._patience:
            self._begin = None
            self._judge((position - first) / seconds, (waited - waited_before) / seconds, size - position)
        return self._count

    def _judge(self, rate: float, waiting: float, left: int) -> None:
        """Draws the conclusion from a window: C(rate) in bytes a second, the share of it spent C(waiting)."""
        if self._count == 1:
            self._rate = rate
            if waiting >= _WAITING and rate < _FAST and left >= rate * _WORTHWHILE:
                self._count = self._most
                self._begin_after = time.monotonic() + _SETTLE * self._patience
        elif rate >= self._rate * _GAIN:
            self._kept = self._count
        else:
            self._count = 1
            self._begin_after = time.monotonic() + _AGAIN * self._patience
            self._patience *= 2


class _Segment:
    """A part of the object that one worker fetches, piece by piece."""

    def __init__(self, start: int, end: int, worker: _Worker) -> None:
        self.start, self.end, self.worker = start, end, worker
        self.delivered = start
        self.pieces: queue.SimpleQueue[tuple[bytearray, int] | BaseException] = queue.SimpleQueue()


class _Team:
    """Connections that fetch the segments from C(begin) on, each the next one that nobody has.

    :param stream: whose object, token and entity they share.
    :param most: how many there will be; they share the memory.
    """

    def __init__(self, stream: HttpSource, options: HttpOptions, begin: int, end: int, most: int) -> None:
        self.begin = begin
        self.waited = 0.0
        self._stream = stream
        self._options = dataclasses.replace(options, rate_limit=None)  # held where the bytes are delivered
        self._pieces = max(1, _MEMORY // _PIECE // most)
        self._next, self._end = begin, end
        self._changed = threading.Condition()
        self._segments: collections.deque[_Segment] = collections.deque()
        self._workers: dict[int, _Worker] = {}
        self._wanted = 0
        self._piece: tuple[bytearray, int] | None = None
        self._used = 0  # bytes of the piece

    @property
    def working(self) -> int:
        """How many connections are at work."""
        return len(self._workers)

    def resize(self, count: int) -> None:
        """Has C(count) at work; those that are too many leave after their segment."""
        with self._changed:
            self._wanted = count
            missing = [number for number in range(count) if number not in self._workers and self._next < self._end]
            for number in missing:
                source = _PartSource(self._stream, self._options)
                self._workers[number] = _Worker(self, number, source, self._pieces)

    def take(self, worker: _Worker) -> _Segment | None:
        """The next segment for C(worker); None when it is to leave."""
        with self._changed:
            segment = None
            if worker.number < self._wanted and self._next < self._end:
                segment = _Segment(self._next, min(self._next + _SEGMENT, self._end), worker)
                self._next = segment.end
                self._segments.append(segment)
            elif self._workers.get(worker.number) is worker:
                del self._workers[worker.number]
            self._changed.notify()
            return segment

    def readinto(self, view: memoryview) -> int:
        """The next bytes, at most a piece of them; 0 when all have left.

        :raises Lost, StartOver, FerryError: the worker whose turn it is has failed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._segments or not self._workers)
            if not self._segments:
                return 0
            segment = self._segments[0]
        buffer, length = self._piece or self._next_piece(segment)
        count = min(len(view), length - self._used)
        with memoryview(buffer) as piece:
            view[:count] = piece[self._used : self._used + count]
        self._used += count
        segment.delivered += count
        if self._used == length:
            self._piece, self._used = None, 0
            segment.worker.free.put(buffer)
        if segment.delivered == segment.end:
            self._segments.popleft()
        return count

    def _next_piece(self, segment: _Segment) -> tuple[bytearray, int]:
        started = time.monotonic()
        piece = segment.pieces.get()
        self.waited += time.monotonic() - started
        if isinstance(piece, BaseException):
            raise piece
        self._piece = piece
        return piece

    def stop(self) -> None:
        """Ends all of it, connections that wait for bytes included."""
        with self._changed:
            self._wanted = 0
            workers = list(self._workers.values())
        for worker in workers:
            worker.stop()


class _Worker:
    """A thread with a connection and a few buffers that it fills in turn."""

    def __init__(self, team: _Team, number: int, source: _PartSource, pieces: int) -> None:
        self.number = number
        self.free: queue.SimpleQueue[bytearray | None] = queue.SimpleQueue()
        for _piece in range(pieces):
            self.free.put(bytearray(_PIECE))
        self._team = team
        self._source = source
        self._stopped = False
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        """Has the thread end soon, whatever it waits for."""
        self._stopped = True
        self.free.put(None)
        self._source.interrupt()

    def _run(self) -> None:
        with contextlib.closing(self._source):
            while (segment := self._team.take(self)) is not None:
                try:
                    self._fetch(segment)
                except BaseException as err:  # raised by the reader when it gets there
                    segment.pieces.put(err)
                    return

    def _fetch(self, segment: _Segment) -> None:
        source = self._source
        source.begin_part(segment.start, segment.end)  # asked for before there is a buffer, so that it is on its way
        while source.position < segment.end and not self._stopped:
            buffer = self.free.get()
            if buffer is None:
                return
            with memoryview(buffer) as view:
                count = source.readinto(view[: segment.end - source.position])
            segment.pieces.put((buffer, count))


class _PartSource(HttpSource):
    """Fetches parts of what another source reads; never tries again, as that is for the other to decide."""

    def __init__(self, stream: HttpSource, options: HttpOptions) -> None:
        super().__init__(stream.url, stream.size, options)
        self.share(stream)
        self._end = 0

    def begin_part(self, start: int, end: int) -> None:
        """Asks for the bytes from C(start) to before C(end), over the same connection as the last ones if it can."""
        self.hand_back()
        self.position, self._end = start, end
        self._connect()

    def lose(self, lost: Lost) -> None:
        """Tells it to whoever reads."""
        self.hang_up()
        raise lost

    def interrupt(self) -> None:
        """Wakes a thread that waits for bytes."""
        with contextlib.suppress(AttributeError, OSError):
            self._response.raw._fp.fp.raw._sock.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]

    def _range(self) -> str:
        return f"bytes={self.position}-{self._end - 1}"
