# SPDX-License-Identifier: GPL-3.0-or-later
"""Raw files and block devices as flat disks."""

from __future__ import annotations

import os
import subprocess

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import StorageError
from ansible_collections.imageferry.glance.plugins.module_utils._nbd.interface import Extent
from ansible_collections.imageferry.glance.tests.unit.image.raw_disk import RawDisk

MIB = 1024**2


def read(disk, offset, length):
    buffer = bytearray(b"?" * length)
    disk.read_into(memoryview(buffer), offset)
    return bytes(buffer)


@pytest.fixture
def file(tmp_path):
    with open(tmp_path / "disk", "w+b", buffering=0) as file:
        yield file


def test_data_and_holes(file):
    file.truncate(8 * MIB)
    os.pwrite(file.fileno(), b"x" * MIB, 2 * MIB)
    os.pwrite(file.fileno(), b"y" * MIB, 6 * MIB)
    disk = RawDisk(file.fileno())
    assert list(disk.extents()) == [
        Extent(0, 2 * MIB, True), Extent(2 * MIB, MIB, False), Extent(3 * MIB, 3 * MIB, True),
        Extent(6 * MIB, MIB, False), Extent(7 * MIB, MIB, True),
    ]  # fmt: skip
    assert read(disk, 2 * MIB - 1, 3) == b"\0xx"


def test_a_size_is_rounded_up_to_a_sector_as_qemu_does(file):
    os.pwrite(file.fileno(), b"x" * 1000, 0)
    disk = RawDisk(file.fileno())
    said = subprocess.run(["qemu-img", "info", "-f", "raw", file.name], check=True, capture_output=True, text=True)
    assert f"({disk.size} bytes)" in said.stdout
    assert read(disk, 998, 26) == b"xx" + bytes(24)
    assert list(disk.extents()) == [Extent(0, 1000, False), Extent(1000, 24, True)]


def test_a_disk_may_be_smaller_than_what_it_lies_on(file):
    os.pwrite(file.fileno(), b"x" * 3 * MIB, 0)
    assert list(RawDisk(file.fileno(), MIB).extents()) == [Extent(0, MIB, False)]


def test_an_empty_file(file):
    disk = RawDisk(file.fileno())
    assert (disk.size, list(disk.extents())) == (0, [])


def test_a_file_that_has_become_shorter_is_not_read_as_zeros(file):
    file.truncate(2 * MIB)
    disk = RawDisk(file.fileno())
    file.truncate(MIB)
    with pytest.raises(StorageError, match="ends at 1048576"):
        read(disk, MIB - 512, 1024)


def test_what_the_storage_reports_is_told(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(StorageError, match="Cannot read the disk"):
            read(RawDisk(fd, MIB), 0, 512)
    finally:
        os.close(fd)


def test_a_block_device_is_all_data(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    (tmp_path / "backing").write_bytes(b"x" * MIB)
    command = ["losetup", "--find", "--show", tmp_path / "backing"]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        with open(device, "rb", buffering=0) as file:
            disk = RawDisk(file.fileno())
            assert list(disk.extents()) == [Extent(0, MIB, False)]
            assert read(disk, MIB - 2, 2) == b"xx"
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
