# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every volume offers, whatever it lies on: a file, a logical volume, a block device, a libvirt pool.

A volume is where one disk lives on a host, there or not yet. Everything that imports, inspects, grows or removes
disks uses these, and nothing that only one kind has.
"""

from __future__ import annotations

import contextlib
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import Provenance


class VolumeSize(t.NamedTuple):
    """What a volume takes up, in bytes.

    :param size: the bytes that it has, from the first to the last that can be read.
    :param allocated: the bytes of storage behind them; None where the storage does not say.
    """

    size: int
    allocated: int | None


class Sink(t.Protocol):
    """Where a stream of bytes is written to. What is never written reads as zeros."""

    @property
    def zero_bytes(self) -> int:
        """Bytes of zeros among those that were written, which took up no storage."""

    def restart(self) -> None:
        """Forgets all that was written."""

    def write(self, buffer: bytearray, length: int, offset: int) -> None:
        """Writes the first C(length) bytes of C(buffer) at C(offset)."""

    def finish(self, size: int) -> None:
        """Completes the C(size) bytes, durably; on storage that is larger, nothing old can be read after them."""


class Target(Sink, t.Protocol):
    """A sink whose bytes are kept as they are written, so that others may have written some of them before."""

    def wrote(self, end: int) -> None:
        """Notes that the first C(end) bytes were written by another program, and are to stay."""

    def read_back(self, end: int) -> t.Iterator[memoryview]:
        """The first C(end) bytes, as an earlier run has written them, piece by piece."""


class Staged(t.Protocol):
    """A volume's content on its way, this process's alone until it is published.

    :param held: the bytes at its beginning that an earlier run has brought, for the transfer to go on after.
    :param sink: writes to it; usable once L(reserve) was called.
    """

    held: int

    @property
    def sink(self) -> Target:
        """Writes to it, after L(reserve)."""

    @property
    def fd(self) -> int:
        """Its bytes, open for reading and writing, after L(reserve)."""

    def reserve(self, size: int | None, certain: int = 0) -> None:
        """Sees to it that the disk fits, before its first byte is written.

        :param size: the bytes from its first to its last; None when nobody knows.
        :param certain: the bytes of them that are certain to take up storage also where zeros do not.
        :raises NoSpace: it does not fit.
        """

    def publish(self, provenance: Provenance, over: bool) -> None:
        """Makes it the volume's content, durably, and records what it is.

        :param over: whether it replaces what is there.
        :raises VolumeExists: it replaces nothing, and something has come into being there.
        """


class Volume(t.Protocol):
    """Where one disk lives on a host.

    :param label: how messages call it: C(/path), C(vg/lv), C(pool/volume).
    :param path: what other programs open it by; a device's node where it is one.
    :param is_block: whether its bytes lie on a block device, whose size is fixed and whose end is not the disk's.
    """

    label: str
    path: str
    is_block: bool

    def stat(self) -> VolumeSize | None:
        """What is there; None when nothing is.

        :raises VolumeInvalid: something is that can be no volume of this kind.
        """

    def provenance(self) -> Provenance | None:
        """Which image it holds, as far as is known; None also while one is being written.

        :raises FileNotFoundError: it is not there.
        """

    def is_unfinished(self) -> bool:
        """Whether an import to it was begun and not completed, so that its content is nobody's."""

    def begun(self) -> Provenance | None:
        """What was to be written to it by a run that was not completed; None also when this host does not know it."""

    def is_blank(self) -> bool:
        """Whether it is a block device with nothing on it, as its first and last MiB are zeros.

        :raises FileNotFoundError: it is not there.
        """

    def open(self) -> contextlib.AbstractContextManager[int]:
        """What is there, open for reading.

        :raises FileNotFoundError: nothing is.
        """

    def activate(self) -> None:
        """Has what is there be ready for other programs to open it by C(path)."""

    def adopt(self, provenance: Provenance) -> None:
        """Records that what is there holds an image."""

    def check_writable(self) -> None:
        """
        :raises VolumeInvalid: it is there to be read only.
        """

    def check_not_in_use(self) -> None:
        """
        :raises VolumeInUse: somebody has it open, or stacked something on it.
        """

    def clones(self) -> list[str]:
        """The labels of the thin clones that stand on it, sorted."""

    def locked(self, wait: float) -> contextlib.AbstractContextManager[None]:
        """Keeps every import to it away, and its removal, until this ends.

        :param wait: the seconds to wait for one that is going on.
        :raises VolumeInUse: it went on for longer.
        """

    def staged(self, wait: float, wanted: Provenance, resumable: bool) -> contextlib.AbstractContextManager[Staged]:
        """Takes the volume for an import; nobody else can until this ends.

        Unless it is published, nothing of it stays, or what the next run can go on with.

        :param wait: the seconds to wait for another import to the same volume.
        :param wanted: what will be written.
        :param resumable: whether it is written in the order of its bytes and can be verified, so that an interrupted
            run may be gone on with.
        :raises VolumeInUse: the other import went on for longer.
        """

    def grow(self, size: int, zeroed: bool = True) -> VolumeSize:
        """Sees to it that it has at least C(size) bytes, and returns what it has.

        :param zeroed: whether what it gains has to read as zeros. It may be zeroed after there is room, which somebody
            who writes there as soon as there is, as QEMU does to a qcow2, would lose.
        :raises NoSpace: its storage has not so much room.
        :raises VolumeInvalid: it is not there, or is of a kind that cannot grow.
        """

    def remove(self, wipe: bool) -> None:
        """Removes it, if it is there; a device cannot be, and is only wiped.

        :param wipe: whether its bytes are made to read as zeros before.
        :raises VolumeInUse: somebody has it in use.
        """

    def describe(self) -> dict[str, t.Any]:
        """Its address in the words of the options: C(type), C(path), and C(vg) and C(lv) or C(pool) and C(volume)."""
