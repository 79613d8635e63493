# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The headers of VMDK, VHD, VHDX and VDI, and whether an image that has one may be opened.

Each check returns the virtual size in bytes, or None when the bytes at hand do not reach as far as it stands.
C(read) gives so many bytes at an offset, fewer or none where the image at hand ends.
"""

from __future__ import annotations

import re
import struct
import typing as t
import uuid

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    DamagedImage,
    UnsafeImage,
    UnsupportedFormat,
)

Read = t.Callable[[int, int], bytes]

_SECTOR = 512
_VMDK = struct.Struct("<4sIIQQQQI")
_VMDK_KINDS = (b"monolithicSparse", b"streamOptimized")
_VMDK_EXTENT = re.compile(rb"(?m)^[ \t]*(?:RW|RDONLY|NOACCESS)\b.*$")
_VMDK_SPARSE = re.compile(rb'RW +\d+ +SPARSE +"[^"/\\]*"\r?')
_MOST_DESCRIPTOR = 20 * _SECTOR  # what block/vmdk.c reads of it
_VHD_FIXED, _VHD_DYNAMIC = 2, 3
_VDI_SIGNATURE, _VDI_BLOCK = 0xBEDA107F, 1 << 20
_REGION = 1 << 16  # the alignment of VHDX's first structures
_VHDX_METADATA = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
_VHDX_FILE_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
_VHDX_VIRTUAL_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
_VHDX_HAS_PARENT = 1 << 1
_MOST_VHDX_ENTRIES = 2047


def check_vmdk(read: Read) -> int | None:
    """A VMDK of one sparse file with its descriptor inside (VMware's Virtual Disk Format 5.0).

    :raises UnsafeImage: it refers to other files, or its descriptor is not in it.
    :raises DamagedImage: its geometry is impossible.
    """
    head = read(0, _VMDK.size)
    if len(head) < _VMDK.size or not head.startswith(b"KDMV"):
        raise UnsafeImage("The VMDK is no sparse file with its descriptor inside.")
    _magic, version, _flags, capacity, grain, descriptor_at, descriptor_sectors, per_table = _VMDK.unpack(head)
    if version not in (1, 2, 3) or not capacity or capacity > 1 << 53:
        raise DamagedImage("The VMDK's version or capacity is impossible.")
    if not 1 <= grain <= 1 << 17 or grain & (grain - 1) or not 1 <= per_table <= 512:
        raise DamagedImage("The VMDK's grains or grain tables are of an impossible size.")
    if descriptor_at != 1 or not descriptor_sectors:  # whatever the header says, QEMU looks for a parent at sector 1
        raise UnsafeImage("The VMDK's descriptor is not at its beginning.")
    _check_vmdk_descriptor(read(_SECTOR, _MOST_DESCRIPTOR))
    return int(capacity * _SECTOR)


def _check_vmdk_descriptor(text: bytes) -> None:
    text = text.split(b"\0")[0]
    values = {name.strip().lower(): value.strip().strip(b'"') for name, _equals, value in
              (line.partition(b"=") for line in text.splitlines())}  # fmt: skip
    if values.get(b"createtype") not in _VMDK_KINDS:
        raise UnsafeImage("The VMDK is neither monolithicSparse nor streamOptimized: it may refer to other files.")
    if values.get(b"parentcid", b"").lower() != b"ffffffff" or b"parentfilenamehint" in text.lower():
        raise UnsafeImage("The VMDK has a parent.")
    extents = [line.strip() for line in _VMDK_EXTENT.findall(text)]
    if len(extents) != 1 or not _VMDK_SPARSE.fullmatch(extents[0]):
        raise UnsafeImage("The VMDK has other extents than itself.")


def check_vhd(read: Read, size: int | None) -> int | None:
    """A fixed or dynamic VHD (Microsoft's Virtual Hard Disk Image Format Specification).

    :param size: of the whole image, whose last sector is the footer; None while only its beginning is there.
    :raises UnsafeImage: it is a differencing disk, or of an unknown type.
    :raises DamagedImage: it has no footer, or one whose checksum is wrong.
    """
    footer = read(0, _SECTOR)
    fixed = not footer.startswith(b"conectix")
    if fixed:
        if size is None:
            return None
        footer = read(size - _SECTOR, _SECTOR) if size >= _SECTOR else b""
    if len(footer) < _SECTOR or not footer.startswith(b"conectix"):
        raise DamagedImage("The VHD has no footer.")
    virtual_size, kind, checksum = struct.unpack_from(">Q", footer, 48)[0], *struct.unpack_from(">II", footer, 60)
    if checksum != ~(sum(footer) - sum(footer[64:68])) & 0xFFFFFFFF:
        raise DamagedImage("The checksum of the VHD's footer is wrong.")
    if kind != (_VHD_FIXED if fixed else _VHD_DYNAMIC):
        raise UnsafeImage(f"The VHD is of the type {kind}: neither fixed nor dynamic, so that it may have a parent.")
    if not virtual_size or (fixed and size is not None and virtual_size > size - _SECTOR):
        raise DamagedImage(f"The VHD's disk of {virtual_size} bytes is not in it.")
    return int(virtual_size)


def check_vdi(read: Read) -> int | None:
    """A VDI that is dynamic or static (block/vdi.c in QEMU's sources).

    :raises UnsafeImage: it has a parent, or is of another type.
    :raises UnsupportedFormat: QEMU does not read its version.
    :raises DamagedImage: its geometry is impossible.
    """
    header = read(0x40, 0x1C8 - 0x40)
    if len(header) < 0x1C8 - 0x40 or struct.unpack_from("<I", header)[0] != _VDI_SIGNATURE:
        raise DamagedImage("The image has no whole VDI header.")
    version, _header_size, kind = struct.unpack_from("<III", header, 4)
    if version != 0x00010001:
        raise UnsupportedFormat(f"The VDI is of version {version:#x}; 1.1 is carried.")
    if kind not in (1, 2):
        raise UnsafeImage(f"The VDI is of the type {kind}: neither dynamic nor static, so that it may have a parent.")
    size, block, extra, blocks = struct.unpack_from("<QIII", header, 0x170 - 0x40)
    if any(header[0x1A8 - 0x40 :]):  # the identifiers of a parent
        raise UnsafeImage("The VDI has a parent.")
    if not size or block != _VDI_BLOCK or extra or size > blocks * _VDI_BLOCK or blocks > 1 << 29:
        raise DamagedImage("The VDI's geometry is impossible.")
    return int(size)


def check_vhdx(read: Read) -> int | None:
    """A VHDX that is complete in itself and was closed properly (Microsoft's MS-VHDX, 2.2 to 2.6).

    :raises UnsafeImage: it has a parent.
    :raises DamagedImage: its log has to be replayed, or its tables are impossible.
    """
    headers = [head for at in (1, 2) if (head := read(at * _REGION, 4096)).startswith(b"head") and len(head) > 80]
    if not headers:
        raise DamagedImage("The VHDX has no header.")
    newest = max(headers, key=lambda head: struct.unpack_from("<Q", head, 8)[0])
    if any(newest[48:64]):
        raise DamagedImage("The VHDX was not closed properly: its log has to be replayed.")
    regions = [bytes(read(at * _REGION, _REGION)) for at in (3, 4)]
    if not any(regions):
        return None
    metadata_at = {_find_vhdx_metadata(table) for table in regions if table.startswith(b"regi")}
    if len(metadata_at) != 1:
        raise DamagedImage("The VHDX has no region table, or two that contradict each other.")
    at = metadata_at.pop()
    table = read(at, _REGION)
    return _check_vhdx_metadata(table, read, at) if table else None


def _find_vhdx_metadata(table: bytes) -> int:
    count = min(struct.unpack_from("<I", table, 8)[0], _MOST_VHDX_ENTRIES)
    found = [struct.unpack_from("<Q", table, at + 16)[0] for at in range(16, 16 + 32 * count, 32)
             if table[at : at + 16] == _VHDX_METADATA]  # fmt: skip
    if len(found) != 1 or found[0] < 1 << 20 or found[0] > 1 << 62:
        raise DamagedImage("The VHDX has no metadata region, or several.")
    return int(found[0])


def _check_vhdx_metadata(table: bytes, read: Read, at: int) -> int:
    if not table.startswith(b"metadata") or len(table) < _REGION:
        raise DamagedImage("The VHDX has no metadata table.")
    items = {}
    for entry in range(32, 32 + 32 * min(struct.unpack_from("<H", table, 10)[0], _MOST_VHDX_ENTRIES), 32):
        offset, length = struct.unpack_from("<II", table, entry + 16)
        if table[entry : entry + 16] in items:
            raise DamagedImage("The VHDX has the same metadata twice.")
        items[table[entry : entry + 16]] = read(at + offset, min(length, 64))
    parameters, size = items.get(_VHDX_FILE_PARAMETERS, b""), items.get(_VHDX_VIRTUAL_SIZE, b"")
    if len(parameters) < 8 or len(size) < 8:
        raise DamagedImage("The VHDX lacks metadata.")
    if struct.unpack_from("<I", parameters, 4)[0] & _VHDX_HAS_PARENT:
        raise UnsafeImage("The VHDX has a parent.")
    virtual_size = int(struct.unpack_from("<Q", size)[0])
    if not 0 < virtual_size <= 64 << 40:
        raise DamagedImage("The VHDX's disk is of an impossible size.")
    return virtual_size
