# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A disk that an NBD server exports on a Unix socket, read with libnbd."""

from __future__ import annotations

import importlib
import threading
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import MissingDependency, StorageError
from ansible_collections.imageferry.glance.plugins.module_utils._nbd.interface import Extent

MAX_READERS = 4
"""The threads that may read one disk at once; a server has to accept a connection of each, and one more."""

_ALLOCATION = "base:allocation"  # of the NBD protocol's "Metadata querying"
_ZERO = 2  # NBD_STATE_ZERO
_STRETCH = 1 << 30  # bytes; the protocol asks about less than 4 GiB at once


def load_libnbd() -> t.Any:
    """libnbd's Python library.

    :raises MissingDependency: it is not installed.
    """
    try:
        return importlib.import_module("nbd")
    except ImportError as err:
        raise MissingDependency(
            "libnbd's Python library is not installed on this host, for the Python that Ansible uses there.",
            "Install python3-libnbd.",
        ) from err


class NbdDisk:
    """An export as one flat disk, see L(FlatDisk).

    :param socket: the path of the server's socket.
    :param export: its name.
    :param label: how messages call the disk.
    :raises StorageError: the server does not answer, or has no such export.
    """

    def __init__(self, socket: str, export: str, label: str) -> None:
        self._libnbd = load_libnbd()
        self._socket, self._export, self._label = socket, export, label
        self._own = threading.local()
        self._first: t.Any = None
        try:
            self._first = self._connect()
            self.size = int(self._first.get_size())
        except self._libnbd.Error as err:
            self.close()
            raise StorageError(f"{label} cannot be read: {err.string}.") from err

    def __enter__(self) -> NbdDisk:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all connections, as libnbd does once nobody holds them any longer."""
        self._first, self._own = None, threading.local()

    def extents(self) -> t.Iterator[Extent]:
        """See L(FlatDisk); without a server that knows, all is data."""
        if not self._first.can_meta_context(_ALLOCATION):
            yield Extent(0, self.size, zero=False)
            return
        position = 0
        while position < self.size:
            for length, flags in self._status(position, min(_STRETCH, self.size - position)):
                yield Extent(position, length, zero=bool(flags & _ZERO))
                position += length

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """See L(FlatDisk)."""
        try:
            buffer[:] = self._connection().pread(len(buffer), offset)
        except self._libnbd.Error as err:
            raise StorageError(f"{self._label} cannot be read at byte {offset}: {err.string}.") from err

    def _status(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Lengths and flags from C(offset) on, within C(length) bytes; never none."""
        entries: list[int] = []

        def collect(_context: str, _offset: int, found: list[int], _error: t.Any) -> int:
            entries.extend(found)
            return 0

        try:
            self._first.block_status(length, offset, collect)
        except self._libnbd.Error as err:
            raise StorageError(f"{self._label} does not say where it holds data: {err.string}.") from err
        pairs, end = [], offset + length
        for extent, flags in zip(entries[::2], entries[1::2]):
            within = min(extent, end - offset)  # the last one may reach further than asked
            if within > 0:
                pairs.append((within, flags))
            offset += within
        if not pairs:
            raise StorageError(f"{self._label} does not say where it holds data.")
        return pairs

    def _connection(self) -> t.Any:
        """This thread's own connection, as one does one thing at a time."""
        if not hasattr(self._own, "connection"):
            self._own.connection = self._connect()
        return self._own.connection

    def _connect(self) -> t.Any:
        connection = self._libnbd.NBD()
        connection.set_export_name(self._export)
        connection.add_meta_context(_ALLOCATION)
        if hasattr(connection, "set_pread_initialize"):  # since libnbd 1.12: its buffers need not be zeroed first
            connection.set_pread_initialize(False)
        connection.connect_unix(self._socket)
        return connection
