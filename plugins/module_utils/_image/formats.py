# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which disk format some bytes are, and whether that is what was said of them."""

from __future__ import annotations

import re
import struct
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    FormatMismatch,
    ImageTooLarge,
    UnsupportedFormat,
)
from ansible_collections.imageferry.glance.plugins.module_utils._image.qcow2 import Qcow2Header
from ansible_collections.imageferry.glance.plugins.module_utils._sizes import format_size

FORMATS = ("raw", "qcow2", "iso")
"""The disk formats that are carried, in Glance's words."""

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
    if declared not in FORMATS:
        raise UnsupportedFormat(f"The disk format {declared} is not carried; {', '.join(FORMATS)} are.")
    found = detect(head)
    if found != declared and not (declared == "raw" and found in _OPAQUE):
        raise FormatMismatch(
            f"The image is declared to be {declared}, but its content is {found}.",
            "Decompress it, and serve or upload it again." if found in _COMPRESSED else None,
        )
    facts = ImageFacts(declared, size)
    if declared == "qcow2":
        header = Qcow2Header.parse(head)
        header.check(size)
        facts = ImageFacts(declared, header.virtual_size)
    elif declared == "iso":
        _check_iso_size(head, size)
    if max_virtual_size is not None and facts.virtual_size is not None and facts.virtual_size > max_virtual_size:
        raise ImageTooLarge(
            f"The image's disk is {facts.virtual_size} bytes ({format_size(facts.virtual_size)}), more than "
            f"max_virtual_size allows ({format_size(max_virtual_size)})."
        )
    return facts


def _check_iso_size(head: bytes, size: int | None) -> None:
    """Refuses an ISO that is shorter than its primary volume descriptor says (ECMA-119, 8.4.8 and 8.4.12)."""
    descriptor = head[_DESCRIPTOR : _DESCRIPTOR + 2048]
    if size is None or len(descriptor) < 132 or descriptor[:6] != b"\x01CD001":
        return
    volume_size = _SPACE_SIZE.unpack_from(descriptor, 80)[0] * _BLOCK_SIZE.unpack_from(descriptor, 128)[0]
    if volume_size > size:
        raise FormatMismatch(f"The ISO's volume is {volume_size} bytes, but the image only {size}.")
