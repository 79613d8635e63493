# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Expanding the compressed clusters of a qcow2."""

from __future__ import annotations

import typing as t
import zlib

from ansible_collections.imageferry.glance.plugins.module_utils._errors import DamagedImage
from ansible_collections.imageferry.glance.plugins.module_utils._image.zstd import ZstdError, expand_frame, is_available

Expand = t.Callable[[bytes, int], tuple[bytes, int]]
"""Expands the cluster that begins the bytes, to so many bytes; returns it and how many bytes were used."""

_ZLIB, _ZSTD = 0, 1  # the values of the header's compression_type
_ZLIB_WINDOW = -12  # raw deflate with a window of 4 KiB, as block/qcow2-threads.c has it


def find_expander(compression_type: int) -> Expand | None:
    """What expands the clusters of a qcow2 with this type of compression; None when this host cannot."""
    if compression_type == _ZLIB:
        return _expand_zlib
    if compression_type == _ZSTD:
        return _expand_zstd if is_available() else None
    return None


def _expand_zlib(data: bytes, size: int) -> tuple[bytes, int]:
    inflater = zlib.decompressobj(_ZLIB_WINDOW)
    try:
        cluster = inflater.decompress(data, size + 1)
    except zlib.error as err:
        raise _damaged() from err
    return _whole(cluster, size), len(data) - len(inflater.unused_data) - len(inflater.unconsumed_tail)


def _expand_zstd(data: bytes, size: int) -> tuple[bytes, int]:
    try:
        cluster, used = expand_frame(data, size)
    except ZstdError as err:
        raise _damaged() from err
    return _whole(cluster, size), used


def _whole(cluster: bytes, size: int) -> bytes:
    if len(cluster) != size:
        raise _damaged()
    return cluster


def _damaged() -> DamagedImage:
    return DamagedImage("A compressed cluster of the qcow2 cannot be expanded.")
