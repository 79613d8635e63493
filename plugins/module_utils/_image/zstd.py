# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""zstd, through the C library that rpm, dpkg and QEMU itself bring along: hosts need no Python package for it."""

from __future__ import annotations

import ctypes
import functools
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import MissingDependency

DEFAULT_LEVEL = 2  # takes a fifth less time than QEMU's choice, 3, and makes images of real files 1 % larger
LEVELS = range(1, 20)  # those beyond need much more memory, also of whoever expands it

_WINDOW_LOG_MAX = 100  # ZSTD_d_windowLogMax


class ZstdError(Exception):
    """libzstd refuses; the text is its own."""


def is_available() -> bool:
    """Whether this host has libzstd."""
    return _library() is not None


class ZstdCompressor:
    """Makes one frame of each piece. Several threads may use it at once.

    :raises MissingDependency: there is no libzstd.
    """

    def __init__(self, level: int) -> None:
        _require()
        self._level = level
        self._idle: list[_Context] = []  # a context is used by one thread at a time

    def __call__(self, piece: memoryview) -> bytes:
        """The frame of C(piece), which lies in writable memory."""
        library = _library()
        context = self._idle.pop() if self._idle else _Context(library, "CCtx")
        frame = bytearray(library.ZSTD_compressBound(len(piece)))
        length = library.ZSTD_compressCCtx(
            context.pointer, _address(frame), len(frame), _address(piece), len(piece), self._level
        )
        self._idle.append(context)
        return bytes(memoryview(frame)[: _checked(library, length)])


def expand_frame(data: bytes, size: int) -> tuple[bytes, int]:
    """The content of the frame that begins C(data), and the length of the frame.

    The content is all the memory that it takes, whatever window the frame asks for.

    :param size: the bytes that the content may have.
    :raises ZstdError: it has more, or the frame is damaged.
    """
    library, content = _library(), bytearray(size)
    length = _checked(library, library.ZSTD_findFrameCompressedSize(data, len(data)))
    expanded = library.ZSTD_decompress(_address(content), size, data, length)
    return bytes(memoryview(content)[: _checked(library, expanded)]), length


class FrameExpander:
    """Expands one frame piece by piece, in the form of C(lzma.LZMADecompressor).

    :param memory: the bytes that the frame's window may have.
    :raises MissingDependency: there is no libzstd.
    """

    def __init__(self, memory: int) -> None:
        self._library = _require()
        self._context = _Context(self._library, "DCtx")
        limit = self._library.ZSTD_DCtx_setParameter(self._context.pointer, _WINDOW_LOG_MAX, memory.bit_length() - 1)
        _checked(self._library, limit)
        self._rest = b""
        self.needs_input, self.eof = True, False

    @property
    def unused_data(self) -> bytes:
        """What follows the frame, once it has ended."""
        return self._rest

    def decompress(self, data: bytes, most: int) -> bytes:
        """What some more bytes of the frame expand to, at most so many bytes; C(data) only while C(needs_input).

        :raises ZstdError: the frame is damaged, or asks for a larger window.
        """
        given, content = self._rest or data, bytearray(most)
        taken = _Buffer(ctypes.cast(ctypes.c_char_p(given), ctypes.c_void_p), len(given), 0)
        made = _Buffer(ctypes.cast(_address(content), ctypes.c_void_p), most, 0)
        left = self._library.ZSTD_decompressStream(self._context.pointer, ctypes.byref(made), ctypes.byref(taken))
        self.eof = not _checked(self._library, left)
        self._rest = given[taken.position :]
        self.needs_input = not self._rest and made.position < most
        return bytes(memoryview(content)[: made.position])


class _Buffer(ctypes.Structure):
    """ZSTD_inBuffer and ZSTD_outBuffer."""

    position: int
    _fields_: t.ClassVar = [("start", ctypes.c_void_p), ("size", ctypes.c_size_t), ("position", ctypes.c_size_t)]


class _Context:
    """A ZSTD_CCtx or ZSTD_DCtx, for as long as the object lives."""

    def __init__(self, library: t.Any, kind: str) -> None:
        self.pointer = getattr(library, f"ZSTD_create{kind}")()
        if not self.pointer:
            raise MemoryError("no memory for zstd's context")
        self._free = getattr(library, f"ZSTD_free{kind}")

    def __del__(self) -> None:
        if self.pointer:
            self._free(self.pointer)


def _require() -> t.Any:
    if not is_available():
        raise MissingDependency(
            "libzstd is not installed on this host.",
            "Install libzstd1 (Debian, Ubuntu, SUSE) or libzstd (Fedora, RHEL), or compress in another way.",
        )
    return _library()


@functools.cache
def _library() -> t.Any:
    """libzstd with the types of its functions as zstd.h has them; None if there is none. Calls let go of the GIL."""
    try:
        library = ctypes.CDLL("libzstd.so.1")
    except OSError:
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    for name, result, arguments in (
        ("ZSTD_compressBound", size, [size]),
        ("ZSTD_createCCtx", pointer, []),
        ("ZSTD_freeCCtx", size, [pointer]),
        ("ZSTD_compressCCtx", size, [pointer, pointer, size, pointer, size, ctypes.c_int]),
        ("ZSTD_findFrameCompressedSize", size, [pointer, size]),
        ("ZSTD_decompress", size, [pointer, size, pointer, size]),
        ("ZSTD_createDCtx", pointer, []),
        ("ZSTD_freeDCtx", size, [pointer]),
        ("ZSTD_DCtx_setParameter", size, [pointer, ctypes.c_int, ctypes.c_int]),
        ("ZSTD_decompressStream", size, [pointer, pointer, pointer]),
        ("ZSTD_isError", ctypes.c_uint, [size]),
        ("ZSTD_getErrorName", ctypes.c_char_p, [size]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _address(memory: bytearray | memoryview) -> t.Any:
    """What a function takes as a pointer to C(memory), and keeps it in place meanwhile."""
    return ctypes.byref(ctypes.c_char.from_buffer(memory))


def _checked(library: t.Any, result: int) -> int:
    if library.ZSTD_isError(result):
        raise ZstdError(library.ZSTD_getErrorName(result).decode())
    return result
