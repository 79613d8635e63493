# SPDX-License-Identifier: GPL-3.0-or-later
"""VMDK, VHD, VHDX and VDI pass as qemu-img makes them, and are refused where they refer to other files."""

from __future__ import annotations

import json
import subprocess

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    DamagedImage,
    FerryError,
    FormatMismatch,
    ImageTooLarge,
    UnsafeImage,
)
from ansible_collections.imageferry.glance.plugins.module_utils._image.formats import HEAD_SIZE, check_file, check_head

MIB = 1024**2
SOUND = [
    ("vmdk", "subformat=monolithicSparse"), ("vmdk", "subformat=streamOptimized"), ("vpc", "subformat=dynamic"),
    ("vpc", "subformat=fixed"), ("vhdx", "subformat=dynamic"), ("vhdx", "subformat=fixed"), ("vdi", ""),
    ("vdi", "static=on"),
]  # fmt: skip


def judge(path, image_format, limit=None):
    declared = "vhd" if image_format == "vpc" else image_format
    early = check_head(path.read_bytes()[:HEAD_SIZE], declared, path.stat().st_size, limit)
    with open(path, "rb") as file:
        facts = check_file(file.fileno(), declared, limit)
    assert early.virtual_size in (None, facts.virtual_size)
    return facts


@pytest.mark.parametrize(("image_format", "options"), SOUND)
def test_what_qemu_img_makes_is_accepted(make, image_format, options):
    writes = [] if "stream" in options else ["write -P 7 1M 2M"]
    path = make(image_format, options, writes=writes)
    info = subprocess.run(
        ["qemu-img", "info", "--output=json", "-f", image_format, path], check=True, capture_output=True
    )
    size = json.loads(info.stdout)["virtual-size"]
    assert judge(path, image_format).virtual_size == size
    with pytest.raises(ImageTooLarge):
        judge(path, image_format, size - 1)
    with pytest.raises(FormatMismatch):
        judge(path, "qcow2")


@pytest.mark.parametrize("kind", ["monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"])
def test_a_vmdk_of_several_files_is_refused(make, kind):
    with pytest.raises(UnsafeImage):
        judge(make("vmdk", f"subformat={kind}"), "vmdk")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"parentCID=ffffffff", b"parentCID=12345678"),
        (b'createType="monolithicSparse"', b'createType="monolithicFlatxx"'),
        (b'SPARSE "', b'FLAT   "'),
        (b'"image.vmdk"', b'"/etc/passwd'),
        (b"# The Disk Data Base", b'RW 20480 FLAT "/etc/x"'[:20]),
        (b"# The Disk Data Base", b"parentFileNameHint=x"),
    ],
)
def test_a_vmdk_that_refers_to_others_is_refused(make, old, new):
    path = make("vmdk", "subformat=monolithicSparse")
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    with pytest.raises(UnsafeImage):
        judge(path, "vmdk")


def test_a_vmdk_whose_descriptor_is_not_where_qemu_reads_it_is_refused(make):
    path = make("vmdk", "subformat=monolithicSparse")
    sound = path.read_bytes()[512:1024]
    patch(path, 1024, sound)
    patch(path, 28, b"\2")
    hidden = sound.replace(b"parentCID=ffffffff", b'parentCID=12345678\nparentFileNameHint="/etc/passwd"')
    patch(path, 512, hidden[:512])
    info = subprocess.run(["qemu-img", "info", "-f", "vmdk", path], check=True, capture_output=True, text=True)
    assert "/etc/passwd" in info.stdout
    with pytest.raises(UnsafeImage, match="beginning"):
        judge(path, "vmdk")


def patch(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset, 2 if offset < 0 else 0)
        file.write(data)
    return path


@pytest.mark.parametrize(
    ("image_format", "options", "offset", "data"),
    [
        ("vmdk", "", 12, bytes(8)),
        ("vmdk", "", 20, b"\x03"),
        ("vmdk", "", 28, bytes(8)),
        ("vpc", "subformat=dynamic", 63, b"\4"),
        ("vpc", "subformat=fixed", -512, b"x"),
        ("vpc", "subformat=fixed", -512 + 63, b"\4"),
        ("vhdx", "", 0x10000 + 48, b"\1"),
        ("vhdx", "", 0x30000 + 8, b"\1"),
        ("vdi", "", 0x4C, b"\4"),
        ("vdi", "", 0x170, bytes(8)),
        ("vdi", "", 0x1A8, b"\1"),
        ("vdi", "", 0x178, b"\1"),
    ],
)
def test_an_impossible_header_is_refused(make, image_format, options, offset, data):
    path = patch(make(image_format, options), offset, data)
    if offset == 0x10000 + 48:
        patch(path, 0x20000 + 48, data)
    with pytest.raises(FerryError):
        judge(path, image_format)


def test_a_vhdx_with_a_parent_is_refused(make):
    path = make("vhdx")
    at = path.read_bytes().index(b"metadata")
    patch(path, at + 0x10000 + 4, b"\2")
    with pytest.raises(UnsafeImage, match="parent"):
        judge(path, "vhdx")


def test_a_raw_disk_is_no_fixed_vhd(make):
    with pytest.raises(DamagedImage, match="footer"):
        judge(make("raw"), "vpc")
