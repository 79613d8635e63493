# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The qcow2 header, and whether an image that has it may be opened.

Fields and bits are those of docs/interop/qcow2.rst in QEMU's sources.
"""

from __future__ import annotations

import struct
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    DamagedImage,
    UnsafeImage,
    UnsupportedFormat,
)

MAGIC = b"QFI\xfb"
HEADER_SIZE = 72
"""Bytes of a version 2 header; the virtual size and the backing file are among them."""

_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_EXTENSION = struct.Struct(">II")
_END, _DATA_FILE = 0, 0x44415441

_DIRTY, _CORRUPT, _EXTERNAL_DATA, _COMPRESSION_TYPE = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAX_L1_BYTES = 32 * 1024**2  # QCOW_MAX_L1_SIZE of block/qcow2.h
_MAX_REFCOUNT_TABLE_BYTES = 8 * 1024**2  # QCOW_MAX_REFTABLE_SIZE


class Qcow2Header(t.NamedTuple):
    """The fields of a qcow2 header that decide whether it may be opened; sizes and offsets in bytes."""

    version: int
    backing_file_offset: int
    cluster_bits: int
    virtual_size: int
    crypt_method: int
    l1_size: int
    l1_table_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    incompatible_features: int
    extensions: tuple[int, ...]

    @classmethod
    def parse(cls, head: bytes) -> Qcow2Header:
        """Reads the header in C(head), the first bytes of an image; 64 KiB hold every header extension.

        :raises DamagedImage: it is too short, or its fields contradict each other.
        """
        if len(head) < HEADER_SIZE or not head.startswith(MAGIC):
            raise DamagedImage("The image has no whole qcow2 header.")
        (_magic, version, backing, _backing_length, cluster_bits, size, crypt, l1_size, l1_offset, refcount_offset,
         refcount_clusters, _snapshots, _snapshots_offset) = _V2.unpack_from(head)  # fmt: skip
        features, extensions_at = 0, HEADER_SIZE
        if version >= 3:
            if len(head) < HEADER_SIZE + _V3.size:
                raise DamagedImage("The image ends within its qcow2 header.")
            features, _compatible, _autoclear, _refcount_order, extensions_at = _V3.unpack_from(head, HEADER_SIZE)
        extensions = tuple(_extension_types(head, extensions_at))
        return cls(version, backing, cluster_bits, size, crypt, l1_size, l1_offset, refcount_offset,
                   refcount_clusters, features, extensions)  # fmt: skip

    def check(self, file_size: int | None) -> None:
        """Refuses what must not be opened by anybody.

        :param file_size: of the whole image, None while it is unknown.
        :raises UnsafeImage: it refers to other files, or needs features that we do not know.
        :raises UnsupportedFormat: it is encrypted.
        :raises DamagedImage: its geometry is impossible, or it was not closed properly.
        """
        self._check_references()
        if self.crypt_method:
            raise UnsupportedFormat("The image is an encrypted qcow2.", "Decrypt it with 'qemu-img convert' first.")
        if self.incompatible_features & (_DIRTY | _CORRUPT):
            raise DamagedImage("The qcow2 is marked as not closed properly, or as corrupt.")
        self._check_geometry(file_size)

    def _check_references(self) -> None:
        if self.version not in (2, 3):
            raise UnsafeImage(f"The image is a qcow2 of the unknown version {self.version}.")
        if self.backing_file_offset:
            raise UnsafeImage("The qcow2 has a backing file.")
        if self.incompatible_features & _EXTERNAL_DATA or _DATA_FILE in self.extensions:
            raise UnsafeImage("The qcow2 has an external data file.")
        unknown = self.incompatible_features & ~(_DIRTY | _CORRUPT | _EXTERNAL_DATA | _COMPRESSION_TYPE)
        if unknown:
            raise UnsafeImage(f"The qcow2 needs incompatible features that are not allowed (bits {unknown:#x}).")

    def _check_geometry(self, file_size: int | None) -> None:
        if not 9 <= self.cluster_bits <= 21:
            raise DamagedImage(f"The qcow2's clusters of 2^{self.cluster_bits} bytes are impossible.")
        cluster = 1 << self.cluster_bits
        needed_l1 = -(-self.virtual_size // (cluster * (cluster // 8)))
        if self.l1_size < needed_l1 or self.l1_size * 8 > _MAX_L1_BYTES:
            raise DamagedImage(f"The qcow2's L1 table of {self.l1_size} entries does not fit its virtual size.")
        tables = [
            ("L1 table", self.l1_table_offset, self.l1_size * 8),
            ("refcount table", self.refcount_table_offset, self.refcount_table_clusters * cluster),
        ]
        if tables[1][2] > _MAX_REFCOUNT_TABLE_BYTES:
            raise DamagedImage("The qcow2's refcount table is larger than QEMU allows.")
        for name, offset, length in tables:
            outside = file_size is not None and offset + length > file_size
            if length and (offset < cluster or offset % cluster or outside):
                raise DamagedImage(f"The qcow2's {name} at {offset} lies outside the image.")


def _extension_types(head: bytes, position: int) -> t.Iterator[int]:
    """The types of the header extensions; ends quietly where C(head) ends, as qemu does at the first cluster."""
    while position + _EXTENSION.size <= len(head):
        kind, length = _EXTENSION.unpack_from(head, position)
        if kind == _END:
            return
        yield kind
        position += _EXTENSION.size + (length + 7) // 8 * 8
