# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Receiving an image in one pass: read, hash and write at the same time, in constant memory."""

from __future__ import annotations

import dataclasses
import time
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    ChecksumMismatch,
    FerryError,
    ImageTooLarge,
    SizeMismatch,
)
from ansible_collections.imageferry.glance.plugins.module_utils._sizes import format_size
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.digest import Digest
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.pipeline import (
    BUFFER,
    BufferPool,
    Stage,
    describe_transfer,
    hashing_stage,
)
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.source import StartOver
from ansible_collections.imageferry.glance.plugins.module_utils._volume.interface import Sink

HEAD = 1 << 16

ReadBack = t.Callable[[int], t.Iterator[memoryview]]


class Source(t.Protocol):
    """Where the bytes come from, as one stream; L(HttpSource) says what each of these does."""

    @property
    def size(self) -> int | None: ...
    @property
    def position(self) -> int: ...
    @property
    def reconnects(self) -> int: ...
    @property
    def restarts(self) -> int: ...
    @property
    def connections(self) -> int: ...

    def learn_size(self) -> int | None: ...
    def begin_at(self, position: int) -> None: ...
    def readinto(self, view: memoryview) -> int: ...
    def restart(self, why: StartOver | FerryError) -> None: ...
    def close(self) -> None: ...


class Watcher(t.Protocol):
    """Who is told how far a transfer is."""

    def advance(self, position: int, size: int | None) -> None:
        """C(position) of C(size) bytes have arrived."""

    def convert(self, percent: float) -> None:
        """So much of the disk, all of which has arrived, is converted."""


@dataclasses.dataclass
class Received:
    """What a transfer did.

    :param size: bytes of the whole object.
    :param resumed_from: bytes of it that were there already.
    :param connections: the most that were used at once.
    :param restarted: why it had to start over, the last time; None if it had not to.
    :param staged: bytes that could not be written to their place at once, and were kept elsewhere meanwhile.
    """

    size: int
    resumed_from: int
    zero_bytes: int
    seconds: float
    digest: Digest | None
    reconnects: int
    restarts: int
    restarted: str | None
    staged: int = 0
    connections: int = 1

    def to_dict(self) -> dict[str, t.Any]:
        """The C(transfer) of a task's result."""
        return describe_transfer(
            self.size - self.resumed_from,
            self.seconds,
            zero_bytes=self.zero_bytes,
            resumed_from=self.resumed_from,
            reconnects=self.reconnects,
            restarts=self.restarts,
            connections=self.connections,
            staged=self.staged,
        )


@dataclasses.dataclass
class Reception:
    """Carries all bytes of a source to a sink, and verifies them.

    :param expected: the hash that the bytes must have; None carries them unverified.
    :param check_head: called with the first bytes and the size, before anything is written; raises to refuse.
    :param limit: the bytes that may arrive, of an image whose size nobody told.
    """

    source: Source
    sink: Sink
    expected: Digest | None
    check_head: t.Callable[[bytes, int | None], t.Any]
    watcher: Watcher
    limit: int | None = None

    def run(self, held: int = 0, read_back: ReadBack | None = None) -> Received:
        """Carries what is missing.

        :param held: the bytes that the sink has from an earlier run, a multiple of its block.
        :param read_back: gives them, see L(Target.read_back); None where the sink keeps none.
        :raises ImageTooLarge: more arrived than L(limit).
        :raises ChecksumMismatch, SizeMismatch: other bytes arrived than promised, also at the second attempt.
        :raises FerryError, OSError: the source, the check or the sink failed.
        """
        started = time.monotonic()
        source = self.source
        restarted: str | None = None
        second = False  # whether bytes that were not the promised ones have arrived already
        while True:
            try:
                digest = self._receive(held, read_back)
                break
            except StartOver as err:
                restarted = str(err)
                source.restart(err)
            except (ChecksumMismatch, SizeMismatch) as err:
                if second:
                    raise
                second, restarted = True, "other bytes arrived than were promised"
                source.restart(err)
            held = 0
            self.sink.restart()
        self.sink.finish(source.position)
        return Received(
            source.position, held, self.sink.zero_bytes, time.monotonic() - started, digest, source.reconnects,
            source.restarts, restarted, connections=source.connections,
        )  # fmt: skip

    def _receive(self, held: int, read_back: ReadBack | None) -> Digest | None:
        """One attempt; the hash of all bytes."""
        hasher = self.expected.hasher() if self.expected else None
        if held and read_back is not None:
            self._judge_held(held, read_back, hasher)
        pool = BufferPool()
        stages = [Stage(pool, self.sink.write)]
        if hasher is not None:
            stages.append(hashing_stage(pool, hasher))
        try:
            self._pump(pool, stages, held)
        finally:
            for stage in stages:
                stage.stop()
        for stage in stages:
            stage.check()
        if self.expected is None or hasher is None:
            return None
        digest = Digest(self.expected.algorithm, hasher.hexdigest())
        if digest != self.expected:
            raise ChecksumMismatch(
                f"The {digest.algorithm} of the {self.source.position} bytes received is {digest.value}, "
                f"not {self.expected.value}."
            )
        return digest

    def _judge_held(self, held: int, read_back: ReadBack, hasher: t.Any) -> None:
        """Judges and hashes what an earlier run has brought: a hash cannot be gone on with otherwise."""
        position = 0
        for piece in read_back(held):
            if position == 0:
                self.check_head(bytes(piece[:HEAD]), self.source.size)
            hasher.update(piece)
            position += len(piece)
            self.watcher.advance(position, self.source.size)
        self.source.begin_at(held)

    def _pump(self, pool: BufferPool, stages: list[Stage], offset: int) -> None:
        """Reads buffer after buffer and hands each to all stages."""
        source = self.source
        while True:
            buffer = pool.take(len(stages))
            with memoryview(buffer) as view:
                length = source.readinto(view)
            if offset == 0:
                self.check_head(bytes(buffer[: min(length, HEAD)]), source.size)
            if self.limit is not None and offset + length > self.limit:
                raise ImageTooLarge(f"More than the {self.limit} bytes ({format_size(self.limit)}) allowed arrive.")
            if length:
                for stage in stages:
                    stage.put(buffer, length, offset)
            offset += length
            self.watcher.advance(offset, source.size)
            if length < BUFFER:
                break
        if source.size is not None and offset != source.size:
            raise SizeMismatch(f"{offset} bytes arrived of {source.size}.")
