# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing a disk to a block device, in place, so that nothing of what was there before can be read afterwards."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import re
import struct
import time
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import VolumeInUse
from ansible_collections.imageferry.glance.plugins.module_utils._volume.sparse import BLOCK, pieces, write_all

SETTLE_BYTES = 4 << 20
SETTLE_SECONDS = 5.0
"""How much is written, and how much time passes, between two notes of how far a resumable import is."""

_BOUNCE = 1 << 20
_EDGE = 1 << 20
_ZERO_PIECE = 1 << 30  # one call into the kernel cannot be interrupted
_ZEROS = bytes(BLOCK)
# _IO(0x12, n) of linux/fs.h; "no argument" is a bit of its own on some machines
_IO = (1 << 29 if os.uname().machine.startswith(("ppc", "mips", "sparc", "alpha")) else 0) | 0x1200
_BLKSSZGET, _BLKDISCARD, _BLKZEROOUT = _IO | 104, _IO | 119, _IO | 127
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_CANNOT = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS}


class Thin(t.NamedTuple):
    """How a thin pool maps a device that is in it.

    :param chunk: the bytes that are mapped at once.
    :param zeroed: whether a chunk is zeros when it is mapped; without, what is not written of it is somebody's.
    """

    chunk: int
    zeroed: bool


def device_size(fd: int) -> int:
    """The bytes of the open device C(fd)."""
    return os.lseek(fd, 0, os.SEEK_END)


def holds_nothing(fd: int) -> bool:
    """Whether the first and the last MiB of the open device C(fd) are zeros."""
    return not any(any(os.pread(fd, _EDGE, start)) for start in (0, max(0, device_size(fd) - _EDGE)))


def open_exclusively(node: str, flags: int) -> int:
    """The device C(node), open as C(flags) say, with nobody mounting it or stacking something on it meanwhile.

    :raises VolumeInUse: somebody did so already.
    """
    try:
        return os.open(node, os.O_EXCL | os.O_CLOEXEC | flags)
    except OSError as err:
        if err.errno != errno.EBUSY:
            raise
        path = os.path.realpath(node)
        raise VolumeInUse(f"{path} is mounted, is part of another device, or is being written to.") from err


class Zeroer:
    """Makes ranges of a device read as zeros, by the cheapest way that it knows.

    :param fd: the device, open for writing; offsets have to be aligned to its sectors.
    :param bounce: aligned memory full of zeros, or with what may be overwritten.
    """

    def __init__(self, fd: int, bounce: mmap.mmap | None = None) -> None:
        self._fd = fd
        self._bounce = bounce or mmap.mmap(-1, BLOCK)
        self._ways = [_punch_hole, _zero_out]

    def zero(self, start: int, end: int) -> None:
        """Zeroes the bytes from C(start) to before C(end).

        :raises OSError: the storage failed.
        """
        while start < end:
            length = min(end - start, _ZERO_PIECE)
            self._zero_piece(start, length)
            start += length

    def _zero_piece(self, start: int, length: int) -> None:
        while self._ways:
            try:
                return self._ways[0](self._fd, start, length)
            except OSError as err:
                if err.errno not in _CANNOT:
                    raise
                del self._ways[0]
        self._bounce[:BLOCK] = _ZEROS
        with memoryview(self._bounce) as zeros:
            for position in range(start, start + length, BLOCK):
                write_all(self._fd, zeros[: min(BLOCK, start + length - position)], position)
        return None


def _punch_hole(fd: int, start: int, length: int) -> None:
    """fallocate(2) on a device: unmaps where it is certain to read as zeros then, and writes nothing itself."""
    libc = ctypes.CDLL(None, use_errno=True)
    fallocate = getattr(libc, "fallocate64", None) or libc.fallocate
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong]
    if fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, start, length):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _zero_out(fd: int, start: int, length: int) -> None:
    fcntl.ioctl(fd, _BLKZEROOUT, struct.pack("QQ", start, length))


class BlockMap:
    """Which blocks of L(BLOCK) bytes were written: one bit each, 2 MiB for a disk of 1 TiB."""

    _NOT_FULL = re.compile(b"[^\xff]")
    _NOT_EMPTY = re.compile(b"[^\x00]")

    def __init__(self) -> None:
        self._bits = bytearray()

    def clear(self) -> None:
        """Forgets all blocks."""
        self._bits.clear()

    def add(self, first: int, end: int) -> None:
        """Adds the blocks from C(first) to before C(end)."""
        if len(self._bits) * 8 < end:
            self._bits.extend(bytes((end + 7) // 8 - len(self._bits)))
        while first < end and first % 8:
            self._bits[first // 8] |= 1 << first % 8
            first += 1
        if end - first >= 8:
            self._bits[first // 8 : end // 8] = b"\xff" * (end // 8 - first // 8)
            first = end // 8 * 8
        for block in range(first, end):
            self._bits[block // 8] |= 1 << block % 8

    def __contains__(self, block: int) -> bool:
        return block < len(self._bits) * 8 and bool(self._bits[block // 8] >> block % 8 & 1)

    def gaps(self, first: int, end: int) -> t.Iterator[tuple[int, int]]:
        """The runs of blocks from C(first) to before C(end) that were not written, as first block and end."""
        while first < end:
            start = min(self._next(first, False), end)
            first = min(self._next(start, True), end)
            if start < first:
                yield start, first

    def _next(self, block: int, written: bool) -> int:
        """The first block from C(block) on that is written, or is not; far beyond the end if none is."""
        while block < len(self._bits) * 8:
            if block % 8 == 0:
                found = (self._NOT_EMPTY if written else self._NOT_FULL).search(self._bits, block // 8)
                block = found.start() * 8 if found else len(self._bits) * 8
            if (block in self) == written and block < len(self._bits) * 8:
                return block
            block += 1 if block < len(self._bits) * 8 else 0
        return 1 << 62 if written else block


class BlockWriter:
    """Writes a disk to a block device, directly from aligned memory, in any order of offsets.

    Blocks of zeros are not written; L(settle) and L(finish) zero what was not, unless it surely reads as zeros.

    :param node: the device's node, that nobody else may have in use.
    :param thin: how a thin pool maps it, if it is in one, and what is not mapped reads as zeros.
    :param fresh: whether it is in a thin pool, and nothing was ever written to it.
    :param held: the bytes at its beginning that an earlier run has settled, a multiple of L(BLOCK).
    :param note: told from time to time how many bytes from the first are settled; None if nobody wants to go on there.
    :param exclusive_fd: of L(open_exclusively) for direct reading and writing, to be closed with this; None to open it.
    :raises VolumeInUse: somebody has it mounted, or stacked something on it.
    :raises OSError: it cannot be opened, or cannot be read or written, as in every method.
    """

    def __init__(
        self,
        node: str,
        thin: Thin | None = None,
        fresh: bool = False,
        held: int = 0,
        note: t.Callable[[int], None] | None = None,
        exclusive_fd: int | None = None,
    ) -> None:
        self.zero_bytes = 0
        self._thin = thin
        self._note = note
        self._direct = open_exclusively(node, os.O_RDWR | os.O_DIRECT) if exclusive_fd is None else exclusive_fd
        self.fd = os.open(node, os.O_RDWR | os.O_CLOEXEC)  # for those who read and write without regard to sectors
        self._sector = struct.unpack("i", fcntl.ioctl(self._direct, _BLKSSZGET, bytes(4)))[0]
        self._bounce = mmap.mmap(-1, _BOUNCE)
        self._zeroer = Zeroer(self._direct, self._bounce)
        self._written = BlockMap()
        self._settled = 0
        self._end: int | None = 0  # of what was written in the order of its bytes; None if it was not
        self._noted_at = 0.0
        self._begin(held)
        self._blank = thin is not None and (fresh or self._discard(held))

    def close(self) -> None:
        """Lets go of the device."""
        os.close(self.fd)
        os.close(self._direct)
        self._bounce.close()

    def restart(self) -> None:
        """Forgets all that was written."""
        self.zero_bytes = 0
        self._begin(0)
        self._blank = self._blank and self._discard(0)
        if self._note:
            self._note(0)

    def write(self, buffer: bytearray, length: int, offset: int) -> None:
        """Writes the first C(length) bytes of C(buffer) at C(offset)."""
        start = None  # of the run of blocks that have to be written
        position = 0
        while position < length:
            size = min(BLOCK - (offset + position) % BLOCK, length - position)
            if self._may_skip(buffer, position, size, offset):
                if start is not None:
                    self._write_run(buffer, start, position, offset)
                    start = None
            elif start is None:
                start = position
            position += size
        if start is not None:
            self._write_run(buffer, start, length, offset)
        self._advance(length, offset)

    def wrote(self, end: int) -> None:
        """Notes that the first C(end) bytes were written by another program, and are to stay."""
        os.fsync(self.fd)
        tail = -end % BLOCK
        self._written.add(0, (end + tail) // BLOCK)
        tail = min(tail, device_size(self._direct) - end)
        if tail:
            self._patch(memoryview(_ZEROS)[:tail], end)
        self._end = None

    def read_back(self, end: int) -> t.Iterator[memoryview]:
        """The first C(end) bytes of the device, piece by piece; each is good until the next one is asked for."""
        return pieces(self.fd, end)

    def settle(self, position: int) -> None:
        """Brings all before C(position), a multiple of L(BLOCK), to the storage, the zeros included."""
        self._zero_gaps(self._settled, position)
        os.fdatasync(self._direct)
        self._settled = max(position, self._settled)

    def checkpoint(self) -> int:
        """Settles what was written in the order of its bytes, and notes how much that is; 0 if it was not."""
        if self._note is None or self._end is None:
            return 0
        position = self._end // BLOCK * BLOCK
        self.settle(position)
        self._note(position)
        self._noted_at = time.monotonic()
        return position

    def finish(self, size: int) -> None:
        """Completes the C(size) bytes, durably; after them, the device reads as zeros to its end."""
        end = device_size(self._direct)
        if size > end:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._zero_gaps(self._settled, end)
        os.fsync(self.fd)
        os.fsync(self._direct)

    def _begin(self, held: int) -> None:
        self._written.clear()
        self._written.add(0, held // BLOCK)
        self._settled = held
        self._end = held
        self._noted_at = time.monotonic()

    def _may_skip(self, buffer: bytearray, position: int, size: int, offset: int) -> bool:
        """Whether the C(size) bytes at C(position) are zeros for a block that will be zeros anyway."""
        # startswith compares in place; a slice of the buffer would copy it.
        if not buffer.startswith(_ZEROS if size == BLOCK else _ZEROS[:size], position):
            return False
        self.zero_bytes += size
        return (offset + position) // BLOCK not in self._written

    def _advance(self, length: int, offset: int) -> None:
        self._end = offset + length if offset == self._end else None
        if self._note is None or self._end is None or self._end - self._settled < SETTLE_BYTES:
            return
        if time.monotonic() - self._noted_at >= SETTLE_SECONDS:
            self.checkpoint()

    def _write_run(self, buffer: bytearray, start: int, end: int, offset: int) -> None:
        """Writes whole blocks as they are, and what is less by L(_write_part)."""
        with memoryview(buffer) as view:
            while start < end:
                into = (offset + start) % BLOCK
                if into or end - start < BLOCK:
                    length = min(BLOCK - into, end - start)
                    self._write_part(view[start : start + length], offset + start)
                else:
                    length = min((end - start) // BLOCK * BLOCK, _BOUNCE)
                    self._bounce[:length] = view[start : start + length]
                    self._write_bounce(length, offset + start)
                    self._written.add((offset + start) // BLOCK, (offset + start + length) // BLOCK)
                start += length

    def _write_part(self, view: memoryview, at: int) -> None:
        """Writes a part of a block; if it is its first, the rest of the block becomes zeros."""
        block = at // BLOCK
        if block in self._written:
            self._patch(view, at)
            return
        length = min(BLOCK, device_size(self._direct) - block * BLOCK)
        into = at - block * BLOCK
        if into + len(view) > length:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._bounce[:length] = _ZEROS[:length]
        self._bounce[into : into + len(view)] = view
        self._write_bounce(length, block * BLOCK)
        self._written.add(block, block + 1)

    def _patch(self, view: memoryview, at: int) -> None:
        """Writes less than a block over what is there, by reading the sectors around it."""
        start = at // self._sector * self._sector
        length = -(-(at + len(view)) // self._sector) * self._sector - start
        with memoryview(self._bounce) as bounce:
            if length != len(view):
                os.preadv(self._direct, [bounce[:length]], start)
            bounce[at - start : at - start + len(view)] = view
        self._write_bounce(length, start)

    def _write_bounce(self, length: int, offset: int) -> None:
        with memoryview(self._bounce) as bounce:
            write_all(self._direct, bounce[:length], offset)

    def _zero_gaps(self, start: int, end: int) -> None:
        for first, after in self._written.gaps(start // BLOCK, -(-end // BLOCK)):
            self._zero_gap(first * BLOCK, min(after * BLOCK, end))

    def _zero_gap(self, start: int, end: int) -> None:
        """Zeroes a range that was not written, apart from the chunks of a thin pool that nothing was written to."""
        chunk = self._thin.chunk if self._blank and self._thin else 0
        if self._blank and self._thin and self._thin.zeroed:
            return
        hole = -(-start // chunk) * chunk if chunk else end
        hole_end = end // chunk * chunk if chunk and end != device_size(self._direct) else end
        if chunk and hole < hole_end:
            self._zeroer.zero(start, hole)
            self._zeroer.zero(hole_end, end)
        else:
            self._zeroer.zero(start, end)

    def _discard(self, start: int) -> bool:
        """Unmaps all chunks from C(start) on, and zeroes the parts of chunks; whether the thin pool can do that."""
        if self._thin is None:
            return False
        chunk, end = self._thin.chunk, device_size(self._direct)
        first, last = -(-start // chunk) * chunk, end // chunk * chunk
        try:
            if first < last:
                fcntl.ioctl(self._direct, _BLKDISCARD, struct.pack("QQ", first, last - first))
        except OSError as err:
            if err.errno not in _CANNOT:
                raise
            return False
        self._zeroer.zero(start, min(first, end))
        self._zeroer.zero(max(last, first), end)
        return True


@contextlib.contextmanager
def exclusive_device(node: str, flags: int = os.O_RDONLY) -> t.Iterator[int]:
    """The device C(node), open as C(flags) say, for this process alone.

    :raises VolumeInUse: somebody has it mounted, or stacked something on it.
    """
    fd = open_exclusively(node, flags)
    try:
        yield fd
    finally:
        os.close(fd)
