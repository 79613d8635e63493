# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Expanding the compressed clusters of a qcow2."""

from __future__ import annotations

import typing as t
import zlib

from ansible_collections.imageferry.glance.plugins.module_utils._errors import DamagedImage

Expand = t.Callable[[bytes, int], tuple[bytes, int]]
"""Expands the cluster that begins the bytes, to so many bytes; returns it and how many bytes were used."""

_ZLIB, _ZSTD = 0, 1  # the values of the header's compression_type
_ZLIB_WINDOW = -12  # raw deflate with a window of 4 KiB, as block/qcow2-threads.c has it
_ZSTD_WINDOW = 1 << 23


def find_expander(compression_type: int) -> Expand | None:
    """What expands the clusters of a qcow2 with this type of compression; None when Python cannot here."""
    if compression_type == _ZLIB:
        return _expand_zlib
    if compression_type == _ZSTD:
        return _zstd_of_python() or _zstd_of_zstandard()
    return None


def _expand_zlib(data: bytes, size: int) -> tuple[bytes, int]:
    inflater = zlib.decompressobj(_ZLIB_WINDOW)
    try:
        cluster = inflater.decompress(data, size + 1)
    except zlib.error as err:
        raise _damaged() from err
    return _whole(cluster, size), len(data) - len(inflater.unused_data) - len(inflater.unconsumed_tail)


def _zstd_of_python() -> Expand | None:
    try:
        from compression import zstd  # type: ignore[import-not-found]  # Python 3.14 and later
    except ImportError:
        return None

    def expand(data: bytes, size: int) -> tuple[bytes, int]:
        decompressor = zstd.ZstdDecompressor()
        try:
            cluster = decompressor.decompress(data, size + 1)
        except zstd.ZstdError as err:
            raise _damaged() from err
        return _whole(cluster, size), len(data) - len(decompressor.unused_data)

    return expand


def _zstd_of_zstandard() -> Expand | None:
    try:
        import zstandard  # type: ignore[import-not-found]
    except ImportError:
        return None

    def expand(data: bytes, size: int) -> tuple[bytes, int]:
        context = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        try:
            with context.stream_reader(data) as reader:
                cluster = _whole(reader.read(size + 1), size)
            # Only this one says where a frame ends, and it has no limit: it comes second.
            frame = context.decompressobj()
            frame.decompress(data)
        except zstandard.ZstdError as err:
            raise _damaged() from err
        return cluster, len(data) - len(frame.unused_data)

    return expand


def _whole(cluster: bytes, size: int) -> bytes:
    if len(cluster) != size:
        raise _damaged()
    return cluster


def _damaged() -> DamagedImage:
    return DamagedImage("A compressed cluster of the qcow2 cannot be expanded.")
