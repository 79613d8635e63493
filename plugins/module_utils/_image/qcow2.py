# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The qcow2 header, and whether an image that has it may be opened.

Fields and bits are those of docs/interop/qcow2.rst in QEMU's sources.
"""

from __future__ import annotations

import array
import os
import struct
import sys
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    DamagedImage,
    InvalidOption,
    UnsafeImage,
    UnsupportedFormat,
)

MAGIC = b"QFI\xfb"
HEADER_SIZE = 72
"""Bytes of a version 2 header; the virtual size and the backing file are among them."""

OFFSET_MASK = 0x00FFFFFFFFFFFE00
"""The bits of a table's entry that are an offset."""

CLUSTER_SIZES = tuple(512 << bits for bits in range(13))

_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_COMPRESSION_AT = 104
_EXTENSION = struct.Struct(">II")
_END, _DATA_FILE = 0, 0x44415441

_DIRTY, _CORRUPT, _EXTERNAL_DATA, _COMPRESSION_TYPE = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAX_L1_BYTES = 32 * 1024**2  # QCOW_MAX_L1_SIZE of block/qcow2.h
_MAX_REFCOUNT_TABLE_BYTES = 8 * 1024**2  # QCOW_MAX_REFTABLE_SIZE
_MAX_REFCOUNT_ORDER = 6
_MAX_SNAPSHOTS, _SNAPSHOT_SIZE = 256, 40  # qemu allows 65536; an entry of its table is at least so many bytes
_PIECE = 1 << 20


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
    snapshots: int
    snapshots_offset: int
    incompatible_features: int
    refcount_order: int
    header_length: int
    compression_type: int
    extensions: tuple[int, ...]

    @classmethod
    def parse(cls, head: bytes) -> Qcow2Header:
        """Reads the header in C(head), the first bytes of an image; 64 KiB hold every header extension.

        :raises DamagedImage: it is too short, or its fields contradict each other.
        """
        if len(head) < HEADER_SIZE or not head.startswith(MAGIC):
            raise DamagedImage("The image has no whole qcow2 header.")
        (_magic, version, backing, _backing_length, cluster_bits, size, crypt, l1_size, l1_offset, refcount_offset,
         refcount_clusters, snapshots, snapshots_offset) = _V2.unpack_from(head)  # fmt: skip
        features, refcount_order, header_length = 0, 4, HEADER_SIZE
        if version >= 3:
            if len(head) < HEADER_SIZE + _V3.size:
                raise DamagedImage("The image ends within its qcow2 header.")
            features, _compatible, _autoclear, refcount_order, header_length = _V3.unpack_from(head, HEADER_SIZE)
        compression_type = 0
        if features & _COMPRESSION_TYPE and header_length > _COMPRESSION_AT < len(head):
            compression_type = head[_COMPRESSION_AT]
        first_cluster = head[: 1 << min(cluster_bits, 16)]
        return cls(version, backing, cluster_bits, size, crypt, l1_size, l1_offset, refcount_offset, refcount_clusters,
                   snapshots, snapshots_offset, features, refcount_order, header_length, compression_type,
                   tuple(_extension_types(first_cluster, header_length)))  # fmt: skip

    def check(self, file_size: int | None) -> None:
        """Refuses what must not be opened by anybody.

        Internal snapshots are allowed, up to a number: they refer to nothing outside, and come along as they are.

        :param file_size: of the whole image, None while it is unknown.
        :raises UnsafeImage: it refers to other files, or needs features that we do not know.
        :raises UnsupportedFormat: it is encrypted.
        :raises DamagedImage: its geometry is impossible, or it was not closed properly.
        """
        self._check_references()
        if self.crypt_method:
            raise UnsupportedFormat("The image is an encrypted qcow2.", "Decrypt it with 'qemu-img convert' first.")
        if self.incompatible_features & (_DIRTY | _CORRUPT):
            raise DamagedImage(
                "The qcow2 is marked as not closed properly, or as corrupt.",
                "Repair its source with 'qemu-img check -r all', and upload it again.",
            )
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
        if self.compression_type > 1:
            raise UnsafeImage(f"The qcow2 is compressed in the unknown way {self.compression_type}.")

    def _check_geometry(self, file_size: int | None) -> None:
        if not 9 <= self.cluster_bits <= 21:
            raise DamagedImage(f"The qcow2's clusters of 2^{self.cluster_bits} bytes are impossible.")
        cluster = 1 << self.cluster_bits
        smallest = HEADER_SIZE if self.version == 2 else HEADER_SIZE + _V3.size
        if not smallest <= self.header_length <= min(cluster, 1 << 16) or self.refcount_order > _MAX_REFCOUNT_ORDER:
            raise DamagedImage("The qcow2's header is of an impossible length, or its refcounts are.")
        needed_l1 = -(-self.virtual_size // (cluster * (cluster // 8)))
        if self.l1_size < needed_l1 or self.l1_size * 8 > _MAX_L1_BYTES:
            raise DamagedImage(f"The qcow2's L1 table of {self.l1_size} entries does not fit its virtual size.")
        tables = [
            ("L1 table", self.l1_table_offset, self.l1_size * 8),
            ("refcount table", self.refcount_table_offset, self.refcount_table_clusters * cluster),
        ]
        if not 0 < tables[1][2] <= _MAX_REFCOUNT_TABLE_BYTES:
            raise DamagedImage("The qcow2 has no refcount table, or one that is larger than QEMU allows.")
        if self.snapshots > _MAX_SNAPSHOTS:
            raise UnsafeImage(f"The qcow2 has {self.snapshots} internal snapshots, more than {_MAX_SNAPSHOTS}.")
        if self.snapshots:
            tables.append(("snapshot table", self.snapshots_offset, self.snapshots * _SNAPSHOT_SIZE))
        for name, offset, length in tables:
            outside = file_size is not None and offset + length > file_size
            if length and (offset < cluster or offset % cluster or outside):
                raise DamagedImage(f"The qcow2's {name} at {offset} lies outside the image.")


def check_kind(cluster_size: int | None, compat: str | None, compression_type: str | None) -> None:
    """Refuses a kind of qcow2 that there is not; what is None is left to whoever writes it.

    :raises InvalidOption: there is no such kind.
    """
    if cluster_size is not None and cluster_size not in CLUSTER_SIZES:
        raise InvalidOption(
            f"A qcow2 has no clusters of {cluster_size} bytes.",
            "Set 'cluster_size' to a power of two from 512 to 2MiB, or leave it out.",
        )
    if compat == "0.10" and compression_type == "zstd":
        raise InvalidOption("A qcow2 of 'compat: 0.10' cannot be compressed with zstd.", "Set 'compress: zlib'.")


def read_virtual_size(head: bytes) -> int:
    """The bytes of the disk of the qcow2 with these first bytes, whatever else is wrong with it."""
    return int.from_bytes(head[24:32], "big")


def check_tables(fd: int) -> None:
    """Refuses the qcow2 in the open file C(fd) when its top tables name more clusters than there can be.

    Otherwise a small file could send its reader through the same cluster millions of times. The header has passed
    L(Qcow2Header.check).

    :raises DamagedImage: they do.
    """
    header = Qcow2Header.parse(os.pread(fd, 1 << 16, 0))
    cluster, file_size = 1 << header.cluster_bits, os.fstat(fd).st_size or os.lseek(fd, 0, os.SEEK_END)  # a device
    tables = (
        ("L1 table", header.l1_table_offset, header.l1_size * 8),
        ("refcount table", header.refcount_table_offset, header.refcount_table_clusters * cluster),
    )
    for name, offset, length in tables:
        named = 0
        for position in range(offset, offset + length, _PIECE):
            entries = array.array("Q", os.pread(fd, min(_PIECE, offset + length - position) // 8 * 8, position))
            if sys.byteorder == "little":
                entries.byteswap()
            offsets = [entry & OFFSET_MASK for entry in entries if entry]
            named += len(offsets)
            if named * cluster > file_size or max(offsets, default=0) >= file_size:
                raise DamagedImage(f"The qcow2's {name} names clusters that are not in the image.")


def read_extensions(head: bytes, position: int) -> t.Iterator[tuple[int, int, int]]:
    """The type, the offset and the length of each header extension from C(position) on that begins in C(head)."""
    while position + _EXTENSION.size <= len(head):
        kind, length = _EXTENSION.unpack_from(head, position)
        if kind == _END:
            return
        position += _EXTENSION.size
        yield kind, position, length
        position += (length + 7) // 8 * 8


def _extension_types(head: bytes, position: int) -> t.Iterator[int]:
    """The types of the header extensions in the first cluster, or as much of it as C(head) has.

    :raises DamagedImage: one is cut off at its end.
    """
    for kind, start, length in read_extensions(head, position):
        if start + (length + 7) // 8 * 8 > len(head):
            raise DamagedImage("The qcow2's header extensions are cut off, or go beyond its first 64 KiB.")
        yield kind
