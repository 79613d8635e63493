# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Expanding a compressed image while it arrives, with limits on what it may grow to."""

from __future__ import annotations

import lzma
import typing as t
import zlib

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    DamagedImage,
    FormatMismatch,
    ImageTooLarge,
    InvalidOption,
    UnsafeImage,
)
from ansible_collections.imageferry.glance.plugins.module_utils._image.formats import HEAD_SIZE
from ansible_collections.imageferry.glance.plugins.module_utils._image.zstd import FrameExpander
from ansible_collections.imageferry.glance.plugins.module_utils._sizes import format_size
from ansible_collections.imageferry.glance.plugins.module_utils._volume.interface import Sink

_BUFFER = 1 << 20
_MEMORY = 128 << 20  # what xz -9 and zstd -19 need is less; only --ultra and --long need more
_GZIP_WINDOW = 31  # zlib's word for a gzip header and the largest window
_MAGICS = {"gzip": b"\x1f\x8b\x08", "xz": b"\xfd7zXZ\0", "zstd": b"\x28\xb5\x2f\xfd"}

CODECS = ("auto", "none", *_MAGICS)
"""The values of an option that says how an image is compressed; V(auto) goes by its first bytes."""


class _Expander(t.Protocol):
    def expand(self, data: bytes) -> t.Iterator[bytes]:
        """What some more bytes expand to, piece by piece."""

    def end(self) -> t.Iterator[bytes]:
        """What is still to come, at the end.

        :raises DamagedImage: the end is missing.
        """


class Decompressor:
    """A sink for compressed bytes that writes what they expand to to another sink, in order.

    :param inner: gets buffers of 1 MiB, the last one apart.
    :param codec: one of L(CODECS).
    :param max_size: more bytes than these are refused.
    :param check_head: is given the first 64 KiB that come out, before they are handed on; raises to refuse them.
    """

    _expander: _Expander | None
    _taken: int  # bytes that have come in

    def __init__(self, inner: Sink, codec: str, max_size: int, check_head: t.Callable[[bytes], object]) -> None:
        if codec not in CODECS:
            raise InvalidOption(f"The compression {codec} is not known; {', '.join(CODECS)} are.")
        self._inner, self._codec, self._max_size, self._check_head = inner, codec, max_size, check_head
        self._buffer = bytearray(_BUFFER)
        self._forget()

    @property
    def zero_bytes(self) -> int:
        """Bytes of what came out that were not written because they are zeros."""
        return self._inner.zero_bytes

    @property
    def size(self) -> int:
        """Bytes that have come out."""
        return self._handed_on + self._filled

    def restart(self) -> None:
        """Forgets all that was written."""
        self._forget()
        self._inner.restart()

    def write(self, buffer: bytearray, length: int, offset: int) -> None:
        """Takes the next C(length) compressed bytes.

        :raises FormatMismatch: they are not compressed as was said.
        :raises DamagedImage: they cannot be expanded.
        :raises ImageTooLarge, UnsafeImage: they expand to more than allowed, or need more memory.
        :raises MissingDependency: nothing here expands zstd.
        """
        if offset != self._taken:
            raise ValueError(f"bytes at {offset} came when those at {self._taken} were due")
        data = bytes(memoryview(buffer)[:length])
        if self._expander is None:
            self._expander = _make_expander(self._codec, data)
        self._taken += length
        for piece in self._expander.expand(data):
            self._put(piece)

    def finish(self, size: int) -> None:
        """Completes what C(size) compressed bytes expand to, durably.

        :raises DamagedImage: their end is missing.
        """
        if self._expander is None or size != self._taken:
            raise DamagedImage(f"The compressed image has {size} bytes, of which {self._taken} arrived.")
        for piece in self._expander.end():
            self._put(piece)
        self._hand_on()
        self._inner.finish(self._handed_on)

    def _forget(self) -> None:
        self._expander = None
        self._taken = self._filled = self._handed_on = 0

    def _put(self, piece: bytes) -> None:
        if self.size + len(piece) > self._max_size:
            raise ImageTooLarge(f"The image expands to more than is allowed ({format_size(self._max_size)}).")
        start = 0
        while start < len(piece):
            length = min(len(piece) - start, _BUFFER - self._filled)
            self._buffer[self._filled : self._filled + length] = piece[start : start + length]
            self._filled, start = self._filled + length, start + length
            if self._filled == _BUFFER:
                self._hand_on()

    def _hand_on(self) -> None:
        if not self._handed_on:
            self._check_head(bytes(self._buffer[: min(self._filled, HEAD_SIZE)]))
        if self._filled:
            self._inner.write(self._buffer, self._filled, self._handed_on)
            self._handed_on, self._filled = self._handed_on + self._filled, 0


def _make_expander(codec: str, head: bytes) -> _Expander:
    found = next((name for name, magic in _MAGICS.items() if head.startswith(magic)), "none")
    if codec == "auto":
        codec = found
    if codec == "none":
        return _Verbatim()
    if codec != found:
        raise FormatMismatch(f"The image is said to be compressed by {codec}, but it is not.")
    if codec == "gzip":
        return _Members(_GzipMember)
    if codec == "xz":
        return _Members(lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY))
    return _Members(lambda: FrameExpander(_MEMORY))


class _Verbatim:
    """What is not compressed."""

    def expand(self, data: bytes) -> t.Iterator[bytes]:
        yield data

    def end(self) -> t.Iterator[bytes]:
        return iter(())


class _Members:
    """Compressed members one after the other, zeros between and after them allowed, as gzip(1) and xz(1) do.

    :param make: makes what expands one, in the form of C(lzma.LZMADecompressor).
    """

    def __init__(self, make: t.Callable[[], t.Any]) -> None:
        self._make = make
        self._member: t.Any = None

    def expand(self, data: bytes) -> t.Iterator[bytes]:
        while True:
            if self._member is None:
                data = data.lstrip(b"\0")
                if not data:
                    return
                self._member = self._make()
            piece = self._decompress(data)
            data = b""
            if piece:
                yield piece
            if self._member.eof:
                data, self._member = self._member.unused_data, None
            elif self._member.needs_input:
                return

    def end(self) -> t.Iterator[bytes]:
        if self._member is not None:
            raise DamagedImage("The compressed image ends too early.")
        return iter(())

    def _decompress(self, data: bytes) -> bytes:
        try:
            return t.cast("bytes", self._member.decompress(data, _BUFFER))
        except Exception as err:  # each library has its own
            if "limit" in str(err).lower() or "too much memory" in str(err).lower():
                raise UnsafeImage(f"The image needs more than {_MEMORY >> 20} MiB of memory to expand.") from err
            raise DamagedImage(f"The compressed image cannot be expanded ({err}).") from err


class _GzipMember:
    """One member of a gzip file, in the form of C(lzma.LZMADecompressor)."""

    def __init__(self) -> None:
        self._inflater = zlib.decompressobj(_GZIP_WINDOW)
        self.needs_input = True

    def decompress(self, data: bytes, most: int) -> bytes:
        piece = self._inflater.decompress(self._inflater.unconsumed_tail + data, most)
        self.needs_input = len(piece) < most and not self._inflater.unconsumed_tail
        return piece

    @property
    def eof(self) -> bool:
        return self._inflater.eof

    @property
    def unused_data(self) -> bytes:
        return self._inflater.unused_data
