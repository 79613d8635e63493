# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all volumes on block devices have in common, and one on its way to hold a disk.

A device is written in place. It is marked before the first byte and until the last check, so that what an interrupted
import leaves is never taken for a disk.
"""

from __future__ import annotations

import abc
import contextlib
import os
import time
import typing as t
from dataclasses import replace

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    FerryError,
    VolumeInUse,
    VolumeInvalid,
)
from ansible_collections.imageferry.glance.plugins.module_utils._volume.block_writer import (
    BlockWriter,
    Thin,
    Zeroer,
    device_size,
    exclusive_device,
    holds_nothing,
    open_exclusively,
)
from ansible_collections.imageferry.glance.plugins.module_utils._volume.in_use import find_device_user
from ansible_collections.imageferry.glance.plugins.module_utils._volume.interface import VolumeSize
from ansible_collections.imageferry.glance.plugins.module_utils._volume.ledger import Ledger, Record
from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import Provenance
from ansible_collections.imageferry.glance.plugins.module_utils._volume.storage import storage_errors

_PASSING = ("udev", "blkid", "pvscan", "losetup")  # those who look at a device for a moment, and go again
_PASSING_SECONDS = 5.0


class BlockVolume(abc.ABC):
    """What every volume on a block device does alike; what differs is left to its kind.

    :param label: how messages call it.
    :param path: what other programs open it by.
    """

    is_block = True

    def __init__(self, label: str, path: str, ledger: Ledger) -> None:
        self.label = label
        self.path = path
        self.ledger = ledger
        self._is_taken = False  # by this process, for an import

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027 (most have nothing open)
        """Lets go of what it has open."""

    @abc.abstractmethod
    def key(self) -> str | None:
        """What the ledger knows it by, the same as long as it is the same device; None while it is not there."""

    @abc.abstractmethod
    def stat(self) -> VolumeSize | None:
        """What is there."""

    @abc.abstractmethod
    def check_writable(self) -> None:
        """See L(Volume.check_writable)."""

    @abc.abstractmethod
    def provenance(self) -> Provenance | None:
        """Which image it holds, as far as is known."""

    @abc.abstractmethod
    def is_unfinished(self) -> bool:
        """Whether an import to it was begun and not completed."""

    @abc.abstractmethod
    def node(self) -> str:
        """What to open it by, made ready to be opened."""

    @abc.abstractmethod
    def make_room(self, size: int) -> bool:
        """Sees to it that it has C(size) bytes; whether it came into being for that."""

    @abc.abstractmethod
    def mark(self) -> None:
        """Marks it as being written, durably, and drops what is known of its content."""

    @abc.abstractmethod
    def record(self, provenance: Provenance) -> None:
        """Records, durably, that it holds an image, and unmarks it."""

    @abc.abstractmethod
    def discard_new(self) -> None:
        """Removes what L(make_room) has made."""

    def thin(self) -> Thin | None:
        """How a thin pool maps it, if it is in one, and what is not mapped reads as zeros."""
        return None

    def look_again(self) -> None:  # noqa: B027 (most remember nothing)
        """Forgets what was seen of it, as others may have changed it since."""

    def begun(self) -> Provenance | None:
        """What the ledger says was to be written to it by a run that was not completed."""
        key = self.key()
        return self.ledger.read(key).unfinished if key is not None and self.is_unfinished() else None

    def is_blank(self) -> bool:
        """Whether its first and last MiB are zeros."""
        with self.open() as fd, storage_errors(f"read {self.label}"):
            return holds_nothing(fd)

    @contextlib.contextmanager
    def open(self) -> t.Iterator[int]:
        """What is there, open for reading."""
        with storage_errors(f"read {self.label}"):
            fd = os.open(self.node(), os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)

    def activate(self) -> None:
        """Has it be there for other programs to open."""
        self.node()

    def adopt(self, provenance: Provenance) -> None:
        """Records that what is there holds an image."""
        with storage_errors(f"record where {self.label} came from"):
            self.record(provenance.completed())

    def check_not_in_use(self) -> None:
        """
        :raises VolumeInUse: somebody has it open, mounted it, or stacked something on it.
        """
        deadline = time.monotonic() + _PASSING_SECONDS
        with self.open() as fd, storage_errors(f"look at {self.label}"):
            while (user := find_device_user(fd)) and any(name in user for name in _PASSING):
                if time.monotonic() > deadline:
                    break
                time.sleep(0.1)
            if user:
                raise VolumeInUse(f"{self.label} is in use by {user}.")
            if not self._is_taken:
                with exclusive_device(self.node()):
                    pass

    def clones(self) -> list[str]:
        """None: what stands on a device is in use of it."""
        return []

    @contextlib.contextmanager
    def locked(self, wait: float) -> t.Iterator[None]:
        """See L(Volume.locked)."""
        with self.ledger.lock(self.lock_name(), wait, self.label):
            self.look_again()
            yield

    @contextlib.contextmanager
    def staged(self, wait: float, wanted: Provenance, resumable: bool) -> t.Iterator[StagedBlock]:
        """The device itself, to be written in place; see L(Volume.staged)."""
        with self.locked(wait):
            with storage_errors(f"prepare {self.label}"):
                staged = StagedBlock(self, wanted, resumable)
            keep = False
            try:
                yield staged
            except BaseException as err:
                keep = err.resumable if isinstance(err, FerryError) else not isinstance(err, Exception)
                raise
            finally:
                self._is_taken = False
                staged.end(keep)

    def lock_name(self) -> str:
        """What two imports to it both lock."""
        return self.label

    def take(self) -> int:
        """Takes it for this process, once nobody else has it in use; it is open for reading and writing directly."""
        self.check_not_in_use()
        self._is_taken = True
        return open_exclusively(self.node(), os.O_RDWR | os.O_DIRECT)

    def wipe(self) -> None:
        """Makes all of it read as zeros, marked as unfinished meanwhile."""
        direct = os.O_RDWR | os.O_DIRECT
        with storage_errors(f"wipe {self.label}"), exclusive_device(self.node(), direct) as fd:
            self.mark()  # a half wiped one must not be taken for whole
            with contextlib.closing(BlockWriter(self.node(), self.thin(), exclusive_fd=os.dup(fd))) as writer:
                writer.finish(0)

    def zero_from(self, start: int) -> None:
        """Makes what is behind C(start) read as zeros, durably; a guest may have what is before in use."""
        with storage_errors(f"zero the end of {self.label}"):
            fd = os.open(self.node(), os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT)
            try:
                Zeroer(fd).zero(start, device_size(fd))
                os.fsync(fd)
            finally:
                os.close(fd)


_Self = t.TypeVar("_Self", bound=BlockVolume)


class StagedBlock:
    """A block device on its way to hold a disk."""

    def __init__(self, volume: BlockVolume, wanted: Provenance, resumable: bool) -> None:
        self._volume = volume
        self._wanted = replace(wanted, metadata=None)
        self._resumable = resumable
        self._held_fd: int | None = None  # until the writer has it
        self._writer: BlockWriter | None = None
        self._existed = volume.stat() is not None
        volume.check_writable()
        earlier = self._earlier_run()
        self._created = earlier.created
        self.held = earlier.held if resumable else 0
        self._published = False

    @property
    def sink(self) -> BlockWriter:
        """Writes to it, after L(reserve); also before where there is something to go on with."""
        return self._writer or self._take()

    @property
    def fd(self) -> int:
        """Its bytes, open for reading and writing."""
        return self.sink.fd

    def reserve(self, size: int | None, certain: int = 0) -> None:
        """Sees to it that the disk fits; see L(Staged.reserve)."""
        if size is None and not self._existed:
            raise VolumeInvalid(
                f"{self._volume.label} does not exist, and nobody says how large the disk is.",
                "Set 'size', create it first, or import from a server that tells the size.",
            )
        if self._existed:
            self._hold()  # first, so that nobody comes to use what is extended
        with storage_errors(f"prepare {self._volume.label}"):
            if self._volume.make_room(max(size or 0, certain)):
                self._created = True
        if self._writer is None:
            self._take()

    def publish(self, provenance: Provenance, over: bool) -> None:  # pylint: disable=unused-argument
        """Records what it holds; since L(reserve) nobody else could have put something there."""
        with storage_errors(f"publish {self._volume.label}"):
            os.fsync(self.fd)
            self._volume.record(provenance.completed())
        self._published = True

    def end(self, keep: bool) -> None:
        """Lets go of it.

        :param keep: whether the next run may go on, should it not be published.
        """
        writer, self._writer = self._writer, None
        position = 0
        try:
            if writer and not self._published and keep and self._resumable:
                with contextlib.suppress(OSError, FerryError):
                    position = writer.checkpoint()
        finally:
            if writer:
                writer.close()
            if self._held_fd is not None:
                os.close(self._held_fd)
        if not self._published and not position:
            self._give_up(writer is not None)

    def _give_up(self, written: bool) -> None:
        """Leaves nothing, or what was there before, marked as nobody's once it was written to."""
        with storage_errors(f"clean up {self._volume.label}"):
            if self._created and (written or not self._existed):
                self._volume.discard_new()
            elif written:
                self._note(0)

    def _earlier_run(self) -> Record:
        """What an earlier run has left of the same image; an empty record when it has left nothing of use."""
        key = self._volume.key()
        if key is None or not self._volume.is_unfinished():
            return Record()
        record = self._volume.ledger.read(key)
        if record.unfinished is None or not record.unfinished.is_same_download(self._wanted):
            return replace(record, held=0)
        return record

    def _hold(self) -> None:
        """Opens it for this process alone."""
        if self._writer is None and self._held_fd is None:
            with storage_errors(f"write {self._volume.label}"):
                self._held_fd = self._volume.take()

    def _take(self) -> BlockWriter:
        """Marks it, once it is this process's alone, to be written to."""
        self._hold()
        volume = self._volume
        with storage_errors(f"write {volume.label}"):
            self._note(self.held)  # before the mark, which drops what is known: it may fail where the ledger is
            volume.mark()
            self._writer = BlockWriter(
                volume.node(),
                volume.thin(),
                fresh=not self._existed,
                held=self.held,
                note=self._note if self._resumable else None,
                exclusive_fd=self._held_fd,
            )
            self._held_fd = None
        return self._writer

    def _note(self, held: int) -> None:
        key = self._volume.key()
        if key is not None:
            self._volume.ledger.write(key, Record(self._wanted, held, self._created))
