# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compressing the clusters of a qcow2, as L(find_expander) of expand.py expands them."""

from __future__ import annotations

import typing as t
import zlib

from ansible_collections.imageferry.glance.plugins.module_utils._errors import InvalidOption
from ansible_collections.imageferry.glance.plugins.module_utils._image.zstd import (
    DEFAULT_LEVEL,
    LEVELS,
    ZstdCompressor,
)

Compress = t.Callable[[memoryview], bytes]
"""Compresses a cluster in writable memory; several threads may do so at once."""

COMPRESSION_TYPES = {"zlib": 0, "zstd": 1}
"""The ways to compress, and the values of the header's compression_type that stand for them."""

_WINDOW, _MEMORY_LEVEL = -12, 9  # raw deflate with a window of 4 KiB, as block/qcow2-threads.c has it
_ZLIB_LEVELS = range(1, 10)


def find_compressor(compression_type: str, level: int | None = None) -> Compress:
    """What compresses in a way, by default about as much as qemu-img does.

    :raises InvalidOption: it is no way, or has no such level.
    :raises MissingDependency: this host cannot.
    """
    if compression_type not in COMPRESSION_TYPES:
        raise InvalidOption(f"A qcow2 is not compressed with {compression_type}; {', '.join(COMPRESSION_TYPES)} are.")
    levels = LEVELS if compression_type == "zstd" else _ZLIB_LEVELS
    if level is not None and level not in levels:
        raise InvalidOption(f"{compression_type} has the levels {levels[0]} to {levels[-1]}, not {level}.")
    if compression_type == "zstd":
        return ZstdCompressor(level or DEFAULT_LEVEL)
    return lambda cluster: _deflate(cluster, level or zlib.Z_DEFAULT_COMPRESSION)


def _deflate(cluster: memoryview, level: int) -> bytes:
    deflater = zlib.compressobj(level, zlib.DEFLATED, _WINDOW, _MEMORY_LEVEL)
    return deflater.compress(cluster) + deflater.flush()
