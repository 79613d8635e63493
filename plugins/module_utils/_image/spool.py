# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of a stream that nobody has asked for yet, kept in an unlinked file until somebody does."""

from __future__ import annotations

import os
import tempfile
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._volume.sparse import write_all
from ansible_collections.imageferry.glance.plugins.module_utils._volume.storage import storage_errors

_PIECE = 1 << 20
_REMEDY = "Set 'staging_dir' to a folder that has room."


class Spool:
    """Clusters of a stream, each at its own offset in a sparse file that is made when the first one comes.

    :param folder: where the file is made; it never has a name there for longer than a moment.
    :param cluster_bits: the size of a cluster as a power of two.
    """

    def __init__(self, folder: str, cluster_bits: int) -> None:
        self.size = 0
        self._folder = folder
        self._bits = cluster_bits
        self._file: t.IO[bytes] | None = None
        self._held = _BitSet()
        self._shared = _BitSet()  # clusters of which a part was used, as several compressed clusters lie in one

    def put(self, piece: memoryview, offset: int) -> None:
        """Keeps some bytes.

        :raises NoSpace, VolumeInvalid, StorageError: the folder does not take them.
        """
        self._held.add(*self._clusters(offset, len(piece)))
        self.size += len(piece)
        with storage_errors(f"keep parts of the image in {self._folder}", _REMEDY):
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 (until close)
            write_all(self._file.fileno(), piece, offset)

    def share(self, offset: int, length: int) -> None:
        """Notes that some bytes were used without their clusters being used up."""
        self._shared.add(*self._clusters(offset, length))

    def take(self, offset: int, length: int) -> t.Iterator[bytes] | None:
        """Gives out whole clusters, once, in pieces; None when they are not all there."""
        clusters = self._clusters(offset, length)
        if not self._held.has_all(*clusters) or self._shared.has_any(*clusters):
            return None
        self._held.remove(*clusters)
        return (self._read(start, min(_PIECE, offset + length - start))
                for start in range(offset, offset + length, _PIECE))  # fmt: skip

    def peek(self, offset: int, length: int) -> bytes:
        """Some bytes, with zeros where nothing is kept."""
        return self._read(offset, length) if self._file else b""

    def holds(self, offset: int, length: int) -> bool:
        """Whether something of each of these clusters is kept."""
        return self._held.has_all(*self._clusters(offset, length))

    def close(self) -> None:
        """Gives the space back."""
        if self._file is not None:
            self._file.close()

    def _read(self, offset: int, length: int) -> bytes:
        return os.pread(t.cast("t.IO[bytes]", self._file).fileno(), length, offset)  # as something is held

    def _clusters(self, offset: int, length: int) -> tuple[int, int]:
        first = offset >> self._bits
        return first, ((offset + length - 1) >> self._bits) - first + 1


class _BitSet:
    """A set of small numbers, in one bit each, that is asked about ranges."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def add(self, first: int, count: int) -> None:
        window, mask = self._range(first, count)
        self._bytes.extend(bytes(max(0, window.stop - len(self._bytes))))
        self._store(window, self._load(window) | mask)

    def remove(self, first: int, count: int) -> None:
        """The whole range has to be in the set."""
        window, mask = self._range(first, count)
        self._store(window, self._load(window) & ~mask)

    def has_all(self, first: int, count: int) -> bool:
        window, mask = self._range(first, count)
        return window.stop <= len(self._bytes) and self._load(window) & mask == mask

    def has_any(self, first: int, count: int) -> bool:
        window, mask = self._range(first, count)
        return bool(self._load(window) & mask)

    @staticmethod
    def _range(first: int, count: int) -> tuple[slice, int]:
        return slice(first >> 3, (first + count + 7) >> 3), ((1 << count) - 1) << (first & 7)

    def _load(self, window: slice) -> int:
        return int.from_bytes(self._bytes[window], "little")

    def _store(self, window: slice, value: int) -> None:
        self._bytes[window] = value.to_bytes(window.stop - window.start, "little")
