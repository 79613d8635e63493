# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Making a raw disk of a qcow2 while it arrives, in one pass and in constant memory.

While the stream passes, its tables are read, and what they name is known by its host offset. What comes later in the
stream waits for its turn; what nothing known has named yet is kept in a spool, for a table that may come after it.
C(qemu-img convert) puts tables before what they name, so its images need next to no spool. The structure is that of
docs/interop/qcow2.rst in QEMU's sources.
"""

from __future__ import annotations

import array
import heapq
import itertools
import sys
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import DamagedImage
from ansible_collections.imageferry.glance.plugins.module_utils._image.expand import find_expander
from ansible_collections.imageferry.glance.plugins.module_utils._image.qcow2 import OFFSET_MASK, Qcow2Header
from ansible_collections.imageferry.glance.plugins.module_utils._image.spool import Spool
from ansible_collections.imageferry.glance.plugins.module_utils._volume.interface import Sink

_BUFFER = 1 << 20
_HEAD = 1 << 16
_BLOCK = 1 << 16  # the unit in which sinks look for zeros
_SECTOR = 512
_ZERO_FLAG, _COMPRESSED_FLAG = 1 << 0, 1 << 62
_MOST_WAITING = 1 << 19  # extents; 24 bytes each
_MOST_L1_ENTRIES = 1 << 19
_SLICE = 8192  # extents that are sorted together
_NEVER = 1 << 64

_UNREAD, _DATA, _COMPRESSED, _L2, _L1, _REFCOUNTS = range(6)


class NotStreamable(Exception):
    """A qcow2 that has to be stored before it can be converted; the text says why."""


class _Extent(t.NamedTuple):
    """What lies somewhere in a qcow2: C(length) bytes at C(host), of a kind.

    :param guest: where in the disk they belong; for a table, what its first entry stands for.
    """

    host: int
    length: int
    guest: int
    kind: int

    @property
    def end(self) -> int:
        """The offset of the first byte after it."""
        return self.host + self.length


def check_streamable(head: bytes) -> None:
    """Refuses what L(Qcow2Decoder) cannot do, before anything is written.

    :param head: the first 64 KiB of a qcow2.
    :raises NotStreamable: its L1 table is too large, or it is compressed in a way that this host cannot expand.
    """
    header = Qcow2Header.parse(head)
    if header.l1_size > _MOST_L1_ENTRIES:
        raise NotStreamable(f"its L1 table has {header.l1_size} entries")
    if find_expander(header.compression_type) is None:
        raise NotStreamable("it is compressed with zstd, and this host has no libzstd")


class Qcow2Decoder:
    """A sink for the bytes of a qcow2 that writes its disk to another sink.

    :param inner: gets the disk in pieces of up to 1 MiB, in the order in which the qcow2 holds them.
    :param spool_folder: where a temporary file is made if one is needed.
    :param target_size: the bytes that C(inner) is completed with when they are more than the virtual size.
    """

    _deferred: array.array[int]  # L2 tables left to the spool: host and guest offset of each in turn

    def __init__(self, inner: Sink, spool_folder: str, target_size: int = 0) -> None:
        self._inner = inner
        self._folder = spool_folder
        self._target_size = target_size
        self._cursor = 0  # the offset of the next byte of the qcow2
        self._unmapped = 0

    @property
    def zero_bytes(self) -> int:
        """Bytes of the disk that were not written because they are zeros; complete after L(finish)."""
        return self._inner.zero_bytes + self._unmapped

    @property
    def spooled_bytes(self) -> int:
        """Bytes that were written to the spool."""
        return self._spool.size if self._cursor else 0

    def restart(self) -> None:
        """Forgets all that was written."""
        if self._cursor:
            self._spool.close()
        self._cursor = self._unmapped = 0
        self._inner.restart()

    def write(self, buffer: bytearray, length: int, offset: int) -> None:
        """Takes the next C(length) bytes of the qcow2; the first time 64 KiB at least, or all of them.

        :raises NotStreamable: see L(check_streamable); nothing was written then.
        :raises DamagedImage: it contradicts itself.
        :raises OSError: the storage is full, or failed.
        """
        if offset != self._cursor:
            raise ValueError(f"bytes at {offset} came when those at {self._cursor} were due")
        if offset == 0:
            self._begin(bytes(buffer[: min(length, _HEAD)]))
        active = self._active
        if active is not None and active.kind == _DATA and offset + length < active.end:
            self._output.pass_on(buffer, length, active.guest + offset - active.host)
            self._cursor += length
        else:
            with memoryview(buffer) as view:
                self._feed(view[:length])

    def finish(self, size: int) -> None:
        """Completes the disk of a qcow2 of C(size) bytes, durably.

        :raises DamagedImage: something that it refers to never came.
        """
        if not size or size != self._cursor:
            raise DamagedImage(f"The qcow2 has {size} bytes, of which {self._cursor} arrived.")
        if self._active is not None:
            self._end_within(self._active)
        deferred, self._deferred = self._deferred, array.array("Q")
        for host, guest in zip(deferred[::2], deferred[1::2]):
            self._take_late(_Extent(host, self._cluster, guest, _L2))
        for extent in self._waiting.rest():
            self._end_within(extent)
        if self._deferred:
            raise DamagedImage("The qcow2 refers to more clusters beyond its end than a sound one has.")
        self._output.flush()
        self._spool.close()
        self._unmapped = self._output.end - self._output.mapped
        self._inner.finish(max(self._target_size, self._output.end))

    def _begin(self, head: bytes) -> None:
        header = Qcow2Header.parse(head)
        header.check(None)
        check_streamable(head)
        expand = find_expander(header.compression_type)
        if expand is None:  # which check_streamable would have refused
            raise NotStreamable("nothing here expands its clusters")
        self._expand = expand
        self._version = header.version
        self._cluster = 1 << header.cluster_bits
        self._compressed_bits = 62 - (header.cluster_bits - 8)
        self._spool = Spool(self._folder, header.cluster_bits)
        self._output = _Output(self._inner, header.virtual_size)
        self._waiting = _Waiting()
        self._deferred = array.array("Q")
        self._active: _Extent | None = None  # what the cursor is in
        self._content = bytearray()  # what has come of it, unless it is data
        self._add(self._first_extents(header))

    def _first_extents(self, header: Qcow2Header) -> t.Iterator[_Extent]:
        """What the header names; the two top tables in pieces of a cluster, like the tables below them."""
        cluster = self._cluster
        yield _Extent(0, cluster, 0, _UNREAD)
        span = (cluster // 8) ** 2 * cluster  # what one cluster of an L1 table stands for
        l1_end = header.l1_table_offset + header.l1_size * 8
        for number, host in enumerate(range(header.l1_table_offset, l1_end, cluster)):
            yield _Extent(host, min(cluster, l1_end - host), number * span, _L1)
        if l1_end % cluster and header.l1_size:
            yield _Extent(l1_end, cluster - l1_end % cluster, 0, _UNREAD)
        for number in range(header.refcount_table_clusters):
            yield _Extent(header.refcount_table_offset + number * cluster, cluster, 0, _REFCOUNTS)

    # --- the stream ---

    def _feed(self, view: memoryview) -> None:
        while view:
            if self._active is None and self._waiting.next_host <= self._cursor:
                self._active = self._next_extent()
            active = self._active
            piece = view[: (active.end if active else self._waiting.next_host) - self._cursor]
            if active is None:
                self._spool.put(piece, self._cursor)
            elif active.kind == _DATA:
                self._output.put(piece, active.guest + self._cursor - active.host)
            elif active.kind != _UNREAD:
                self._content += piece
            view = view[len(piece) :]
            self._cursor += len(piece)
            if active is not None and self._cursor == active.end:
                self._complete(active)

    def _next_extent(self) -> _Extent:
        extent = self._waiting.pop()
        following = self._waiting.next_host
        if extent.host < self._cursor or following == extent.host:
            raise _overlap(extent.host)
        if following < extent.end:
            if extent.kind != _COMPRESSED:
                raise _overlap(following)
            # The length of a compressed cluster is rounded up to a sector, in which the next one may begin.
            extent = extent._replace(length=following - extent.host)
        return extent

    def _complete(self, extent: _Extent) -> None:
        """Does what is to be done when an extent has come."""
        content, self._content, self._active = bytes(self._content), bytearray(), None
        if extent.kind == _COMPRESSED:
            used = self._expand_cluster(extent, content)
            # What comes after it may belong to one that a later table names.
            self._cursor = extent.host + used
            self._feed(memoryview(content)[used:])
        elif extent.kind != _DATA and extent.kind != _UNREAD:
            self._read_table(extent, content)

    def _end_within(self, extent: _Extent) -> None:
        """Judges an extent that the stream ended in, or before.

        :raises DamagedImage: a part of the disk is missing.
        """
        came = max(0, self._cursor - extent.host)
        if extent.kind == _COMPRESSED and came:
            self._complete(extent)
            return
        if extent.kind == _DATA:
            missing = extent.guest + came < self._output.end
        else:
            missing = extent.kind in (_COMPRESSED, _L1, _L2)
        if missing:
            raise DamagedImage(f"The qcow2 ends at {self._cursor}, but refers to what follows {extent.host + came}.")

    def _take_late(self, extent: _Extent) -> None:
        """Handles what had passed before the table came that names it."""
        if extent.kind == _COMPRESSED:
            used = self._expand_cluster(
                extent, self._spool.peek(extent.host, min(extent.end, self._cursor) - extent.host)
            )
            if not self._spool.holds(extent.host, used):
                raise _overlap(extent.host)
            return
        pieces = self._spool.take(extent.host, extent.length) if extent.end <= self._cursor else None
        if pieces is None:
            raise _overlap(extent.host)
        if extent.kind == _DATA:
            guest = extent.guest
            for piece in pieces:
                self._output.put(memoryview(piece), guest)
                guest += len(piece)
        elif extent.kind != _UNREAD:
            self._read_table(extent, b"".join(pieces))

    def _expand_cluster(self, extent: _Extent, content: bytes) -> int:
        cluster, used = self._expand(content, self._cluster)
        self._output.put(memoryview(cluster), extent.guest)
        self._spool.share(extent.host, used)
        return used

    # --- tables and what they name ---

    def _read_table(self, extent: _Extent, content: bytes) -> None:
        entries = array.array("Q", content)
        if sys.byteorder == "little":
            entries.byteswap()
        if not any(entries):
            return
        if extent.kind == _L1:
            self._add(self._l2_tables(entries, extent.guest))
        elif extent.kind == _REFCOUNTS:
            blocks = (entry & OFFSET_MASK for entry in entries)
            self._add((_Extent(host, self._cluster, 0, _UNREAD) for host in blocks if host), _MOST_WAITING)
        elif not self._add(self._clusters(entries, extent.guest), _MOST_WAITING):
            self._spool.put(memoryview(content), extent.host)
            self._deferred.extend((extent.host, extent.guest))

    def _l2_tables(self, entries: array.array[int], guest: int) -> t.Iterator[_Extent]:
        span = self._cluster // 8 * self._cluster
        for entry in entries:
            if entry & OFFSET_MASK:
                yield _Extent(self._aligned(entry & OFFSET_MASK), self._cluster, guest, _L2)
            guest += span

    def _clusters(self, entries: array.array[int], guest: int) -> t.Iterator[_Extent]:
        """What an L2 table maps, with clusters that follow each other in the qcow2 as in the disk as one extent."""
        cluster, known_zeros = self._cluster, self._version >= 3
        host = length = start = 0
        kind = _UNREAD
        for offset, entry in zip(itertools.count(guest, cluster), entries):
            if not entry & (OFFSET_MASK | _ZERO_FLAG | _COMPRESSED_FLAG):
                continue
            if entry & _COMPRESSED_FLAG:
                yield self._compressed_cluster(entry, offset)
                continue
            if entry & _ZERO_FLAG and not known_zeros:
                raise DamagedImage("The qcow2 of version 2 has clusters that only version 3 knows.")
            at, is_kind = entry & OFFSET_MASK, _UNREAD if entry & _ZERO_FLAG else _DATA
            if not at:
                continue
            if at == host + length and is_kind == kind and offset == start + length:
                length += cluster
            else:
                if length:
                    yield _Extent(host, length, start, kind)
                host, length, start, kind = self._aligned(at), cluster, offset, is_kind
        if length:
            yield _Extent(host, length, start, kind)

    def _compressed_cluster(self, entry: int, guest: int) -> _Extent:
        host = entry & ((1 << self._compressed_bits) - 1)
        sectors = (entry & (_COMPRESSED_FLAG - 1)) >> self._compressed_bits
        return _Extent(host, (sectors + 1) * _SECTOR - host % _SECTOR, guest, _COMPRESSED)

    def _aligned(self, host: int) -> int:
        if host % self._cluster:
            raise DamagedImage(f"The qcow2 refers to a cluster at {host}, where none can be.")
        return host

    def _add(self, extents: t.Iterator[_Extent], limit: int = _NEVER) -> bool:
        """Has wait what is still to come, and fetches from the spool what has come.

        :returns: False, with nothing done, when more than C(limit) extents would wait.
        """
        coming, late = [], []
        count = self._waiting.count
        while some := sorted(self._split(itertools.islice(extents, _SLICE))):
            late.append(_pack(extent for extent in some if extent.host < self._cursor))
            coming.append(_pack(extent for extent in some if extent.host >= self._cursor))
            count += len(coming[-1]) // 3
            if count > limit:
                return False
        for packed in coming:
            self._waiting.add(packed)
        for packed in late:
            for position in range(0, len(packed), 3):
                self._take_late(_unpack(packed, position))
        return True

    def _split(self, extents: t.Iterator[_Extent]) -> t.Iterator[_Extent]:
        """The extents, with those that the cursor is in as two."""
        for extent in extents:
            came = self._cursor - extent.host
            if 0 < came < extent.length and extent.kind in (_DATA, _UNREAD):
                yield extent._replace(length=came)
                yield _Extent(self._cursor, extent.length - came, extent.guest + came, extent.kind)
            else:
                yield extent


class _Waiting:
    """Extents in the order of their host offsets, from any number of sorted lists."""

    def __init__(self) -> None:
        self.count = 0
        self._heap: list[tuple[int, int, array.array[int], int]] = []
        self._serial = itertools.count()

    @property
    def next_host(self) -> int:
        """The lowest host offset."""
        return self._heap[0][0] if self._heap else _NEVER

    def add(self, packed: array.array[int]) -> None:
        """Adds what L(_pack) has made of sorted extents."""
        if packed:
            self.count += len(packed) // 3
            heapq.heappush(self._heap, (packed[0], next(self._serial), packed, 0))

    def pop(self) -> _Extent:
        """Takes the extent with the lowest host offset out."""
        _host, serial, packed, position = self._heap[0]
        self.count -= 1
        following = position + 3
        if following < len(packed):
            heapq.heapreplace(self._heap, (packed[following], serial, packed, following))
        else:
            heapq.heappop(self._heap)
        return _unpack(packed, position)

    def rest(self) -> t.Iterator[_Extent]:
        """All extents, in no order."""
        for _host, _serial, packed, start in self._heap:
            for position in range(start, len(packed), 3):
                yield _unpack(packed, position)


class _Output:
    """Hands a disk's bytes on in large pieces.

    :param end: the disk's size; nothing beyond it is handed on.
    """

    def __init__(self, sink: Sink, end: int) -> None:
        self.end = end
        self.mapped = 0
        self._sink = sink
        self._buffer = bytearray(_BUFFER)
        self._start = self._length = 0  # of what is in the buffer

    def put(self, piece: memoryview, offset: int) -> None:
        """Takes some bytes of the disk."""
        piece = piece[: max(0, self.end - offset)]
        self.mapped += len(piece)
        while piece:
            if offset != self._start + self._length:
                self.flush()
            if not self._length:
                self._start = offset
            # Pieces end at multiples of their size, so that blocks of zeros are seen where they begin.
            length = min(len(piece), _BUFFER - self._start % _BUFFER - self._length)
            self._buffer[self._length : self._length + length] = piece[:length]
            self._length += length
            if (self._start + self._length) % _BUFFER == 0:
                self.flush()
            piece, offset = piece[length:], offset + length

    def pass_on(self, buffer: bytearray, length: int, offset: int) -> None:
        """Takes some bytes of the disk from the beginning of a buffer, without a copy where that is possible."""
        if offset % _BLOCK or offset + length > self.end:
            with memoryview(buffer) as view:
                self.put(view[:length], offset)
        else:
            self.flush()
            self.mapped += length
            self._sink.write(buffer, length, offset)

    def flush(self) -> None:
        """Hands on what was kept until more comes."""
        if self._length:
            self._sink.write(self._buffer, self._length, self._start)
            self._length = 0


def _pack(extents: t.Iterable[_Extent]) -> array.array[int]:
    """Three numbers an extent; guest offsets are multiples of a sector, so that the kind fits below."""
    return array.array("Q", (part for host, length, guest, kind in extents for part in (host, length, guest | kind)))


def _unpack(packed: array.array[int], position: int) -> _Extent:
    host, length, rest = packed[position : position + 3]
    return _Extent(host, length, rest & -_SECTOR, rest % _SECTOR)


def _overlap(host: int) -> DamagedImage:
    return DamagedImage(f"The qcow2 refers to its cluster at {host} more than once.")
