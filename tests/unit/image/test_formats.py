# SPDX-License-Identifier: GPL-3.0-or-later
"""What an image is declared to be is what it has to be."""

from __future__ import annotations

import bz2
import gzip
import lzma
import subprocess

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    FormatMismatch,
    ImageTooLarge,
    UnsafeImage,
    UnsupportedFormat,
)
from ansible_collections.imageferry.glance.plugins.module_utils._image.formats import HEAD_SIZE, check_head


def head_of(path):
    return path.read_bytes()[:HEAD_SIZE]


@pytest.mark.parametrize("declared", ["raw", "iso", "qcow2"])
@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("qed", ""),
        ("qcow", ""),
        ("vmdk", "subformat=monolithicSparse"),
        ("vmdk", "subformat=monolithicFlat"),
        ("vmdk", "subformat=twoGbMaxExtentFlat"),
        ("vmdk", "subformat=streamOptimized"),
        ("vpc", ""),
        ("vhdx", ""),
        ("vdi", ""),
        ("parallels", ""),
    ],
)
def test_other_formats_are_refused_whatever_they_are_called(make, image_format, options, declared):
    path = make(image_format, options)
    with pytest.raises((FormatMismatch, UnsafeImage)):  # qcow is a qcow2 of an unknown version
        check_head(head_of(path), declared, path.stat().st_size, None)


@pytest.mark.parametrize(
    "text", [b"# a comment\n \nversion=1\n", b"version=2\r\n", b"  \n#\n#\nversion=3\n# Disk DescriptorFile"]
)
def test_a_vmdk_descriptor_is_known_wherever_qemu_would_know_it(tmp_path, text):
    path = tmp_path / "image"
    path.write_bytes(text + b'RW 2048 FLAT "/etc/passwd" 0\n')
    probed = subprocess.run(["qemu-img", "info", path], check=False, capture_output=True)  # which names no format
    assert b"vmdk" in (probed.stdout + probed.stderr).lower()
    with pytest.raises(FormatMismatch, match="vmdk"):
        check_head(head_of(path), "raw", None, None)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_raw_disk_is_not_one(compress):
    with pytest.raises(FormatMismatch, match="Decompress"):
        check_head(compress(bytes(4096)), "raw", None, None)


@pytest.mark.parametrize(
    "head",
    [
        bytes(446) + b"\x80\0\2\0\x83" + bytes(59) + b"\x55\xaa",
        bytes(510) + b"\x55\xaaEFI PART",
        b"\xeb\x63\x90" + bytes(507) + b"\x55\xaa",
        b"LUKS\xba\xbe\0\2" + bytes(504),
        bytes(1080) + b"\x53\xef",
        b"",
    ],
)
def test_disks_with_partitions_boot_code_file_systems_and_encryption_are_raw(head):
    assert check_head(head + bytes(4096), "raw", 1 << 20, None).virtual_size == 1 << 20


def test_a_format_that_is_not_carried_is_named():
    with pytest.raises(UnsupportedFormat, match="ploop"):
        check_head(b"WithoutFreeSpace", "ploop", None, None)


def test_a_raw_disk_beyond_the_limit_is_refused():
    with pytest.raises(ImageTooLarge):
        check_head(bytes(512), "raw", 1 << 43, (1 << 43) - 1)


def make_iso(blocks, first=b""):
    descriptor = bytearray(2048)
    descriptor[:7] = b"\x01CD001\x01"
    descriptor[80:84] = blocks.to_bytes(4, "little")
    descriptor[128:130] = (2048).to_bytes(2, "little")
    return first + bytes(0x8000 - len(first)) + bytes(descriptor)


def test_an_iso_is_as_long_as_it_says():
    check_head(make_iso(17), "iso", 17 * 2048, None)
    check_head(make_iso(17), "raw", 17 * 2048, None)
    with pytest.raises(FormatMismatch, match="only"):
        check_head(make_iso(18), "iso", 17 * 2048, None)


def test_an_iso_that_is_a_qcow2_as_well_is_refused():
    with pytest.raises(FormatMismatch, match="qcow2"):
        check_head(make_iso(17, b"QFI\xfb\0\0\0\3"), "iso", 17 * 2048, None)
