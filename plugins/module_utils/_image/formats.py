# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which disk format some bytes are, and whether that is what was said of them."""

from __future__ import annotations

import os
import re
import struct
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    DamagedImage,
    FormatMismatch,
    ImageTooLarge,
    UnsupportedFormat,
)
from ansible_collections.imageferry.glance.plugins.module_utils._image import foreign
from ansible_collections.imageferry.glance.plugins.module_utils._image.qcow2 import Qcow2Header
from ansible_collections.imageferry.glance.plugins.module_utils._sizes import format_size

FORMATS = ("raw", "qcow2", "iso")
"""The disk formats that a volume may have, in Glance's words."""

SOURCE_FORMATS = (*FORMATS, "vmdk", "vhd", "vhdx", "vdi")
"""The disk formats that an image may have; those that no volume has are converted."""

HEAD_SIZE = 64 * 1024
"""So many first bytes show every format here: an ISO's descriptor is at 32 KiB, qcow2's extensions before 64 KiB."""

_MAGICS: dict[str, tuple[int, tuple[bytes, ...]]] = {
    "qcow2": (0, (b"QFI\xfb",)),
    "qed": (0, (b"QED\0",)),
    "vmdk": (0, (b"KDMV", b"COWD", b"# Disk DescriptorFile")),
    "ploop": (0, (b"WithoutFreeSpace", b"WithouFreSpacExt")),
    "vhd": (0, (b"conectix",)),
    "vhdx": (0, (b"vhdxfile",)),
    "vdi": (0x40, (b"\x7f\x10\xda\xbe",)),
    "luks": (0, (b"LUKS\xba\xbe",)),
    "gzip": (0, (b"\x1f\x8b\x08",)),
    "xz": (0, (b"\xfd7zXZ\0",)),
    "zstd": (0, (b"\x28\xb5\x2f\xfd",)),
    "bzip2": (0, tuple(b"BZh%d1AY&SY" % level for level in range(1, 10))),
    "iso": (0x8001, (b"CD001", b"NSR02", b"NSR03", b"BEA01")),
}
_OPAQUE = {"iso", "luks"}  # what a raw disk may hold: nobody opens it by these signs
_COMPRESSED = {"gzip", "xz", "zstd", "bzip2"}
# qemu takes a text for a VMDK's descriptor, which names other files, also when comments and blank lines come first.
_VMDK_TEXT = re.compile(rb"(?:#[^\n]*\n|[ \r]*\n)*version=[123]\r?\n")

_DESCRIPTOR, _SPACE_SIZE, _BLOCK_SIZE = 0x8000, struct.Struct("<I"), struct.Struct("<H")


def detect(head: bytes) -> str:
    """The format that the first bytes of an image show; V(raw) when none does."""
    for name, (offset, magics) in _MAGICS.items():
        if head.startswith(magics, offset):
            return name
    return "vmdk" if _VMDK_TEXT.match(head) else "raw"


class ImageFacts(t.NamedTuple):
    """What an image's own header says of it; sizes in bytes, None where the header does not say."""

    format: str
    virtual_size: int | None


def check_head(head: bytes, declared: str, size: int | None, max_virtual_size: int | None) -> ImageFacts:
    """Judges an image by its first bytes, before anything of it is written or opened.

    :param head: its first L(HEAD_SIZE) bytes, fewer when the image is smaller.
    :param declared: the format it is said to have.
    :param size: of the whole image in bytes, None while it is unknown.
    :param max_virtual_size: a larger disk is refused; None for no limit.
    :raises UnsupportedFormat: that format is not carried.
    :raises FormatMismatch: it is of another one.
    :raises UnsafeImage, DamagedImage: see L(Qcow2Header.check).
    :raises ImageTooLarge: its disk is larger than allowed.
    """
    found = detect(head)
    facts = _check(head, found, declared, size, None)
    check_limit(facts.virtual_size, max_virtual_size)
    return facts


def check_file(fd: int, declared: str, max_virtual_size: int | None) -> ImageFacts:
    """Judges an image that is there as a whole, in the open file or device C(fd), before anything opens it.

    It sees what lies further in than the head that L(check_head) has, as with VHD and VHDX.

    :raises FerryError: see L(check_head).
    """
    size = os.fstat(fd).st_size or os.lseek(fd, 0, os.SEEK_END)
    head = os.pread(fd, HEAD_SIZE, 0)
    facts = _check(head, detect(head), declared, size, lambda offset, length: os.pread(fd, length, offset))
    if facts.virtual_size is None:
        raise DamagedImage(f"The {declared} does not say how large its disk is.")
    check_limit(facts.virtual_size, max_virtual_size)
    return facts


def _check(head: bytes, found: str, declared: str, size: int | None, read: foreign.Read | None) -> ImageFacts:
    """
    :param read: reads the whole image; None while there is only its head.
    """
    if declared not in SOURCE_FORMATS:
        raise UnsupportedFormat(f"The disk format {declared} is not carried; {', '.join(SOURCE_FORMATS)} are.")
    flat = declared == "raw" or (declared == "vhd" and found == "raw")  # a fixed VHD shows itself only at its end
    if found != declared and not (flat and found in (*_OPAQUE, "raw")):
        raise FormatMismatch(
            f"The image is declared to be {declared}, but its content is {found}.",
            "Decompress it, and serve or upload it again." if found in _COMPRESSED else None,
        )
    if declared == "qcow2":
        header = Qcow2Header.parse(head)
        header.check(size)
        return ImageFacts(declared, header.virtual_size)
    if declared in FORMATS:
        if declared == "iso":
            _check_iso_size(head, size)
        return ImageFacts(declared, size)
    at_hand = read or (lambda offset, length: head[offset : offset + length])
    if declared == "vhd":
        return ImageFacts(declared, foreign.check_vhd(at_hand, size if read else None))
    if declared == "vhdx":  # its headers come after the head
        return ImageFacts(declared, foreign.check_vhdx(at_hand) if read else None)
    return ImageFacts(declared, foreign.check_vmdk(at_hand) if declared == "vmdk" else foreign.check_vdi(at_hand))


def check_limit(virtual_size: int | None, max_virtual_size: int | None) -> None:
    """
    :raises ImageTooLarge: its disk is larger than allowed.
    """
    if max_virtual_size is not None and virtual_size is not None and virtual_size > max_virtual_size:
        raise ImageTooLarge(
            f"The image's disk is {virtual_size} bytes ({format_size(virtual_size)}), more than "
            f"max_virtual_size allows ({format_size(max_virtual_size)})."
        )


def _check_iso_size(head: bytes, size: int | None) -> None:
    """Refuses an ISO that is shorter than its primary volume descriptor says (ECMA-119, 8.4.8 and 8.4.12)."""
    descriptor = head[_DESCRIPTOR : _DESCRIPTOR + 2048]
    if size is None or len(descriptor) < 132 or descriptor[:6] != b"\x01CD001":
        return
    volume_size = _SPACE_SIZE.unpack_from(descriptor, 80)[0] * _BLOCK_SIZE.unpack_from(descriptor, 128)[0]
    if volume_size > size:
        raise FormatMismatch(f"The ISO's volume is {volume_size} bytes, but the image only {size}.")
