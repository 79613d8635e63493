# SPDX-License-Identifier: GPL-3.0-or-later
"""The sample images are what they say. The slow one, a Debian system, is kept in the user's cache between runs."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cloud"))
import sample_images

MIB = 1024**2


def qemu_info(path, disk_format):
    command = ["qemu-img", "info", "--output=json", "-f", disk_format, path]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def same_content(raw, qcow2):
    command = ["qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", raw, qcow2]
    return subprocess.run(command, check=False).returncode == 0


@pytest.mark.parametrize("make", [sample_images.iso, sample_images.grub_rescue_iso])
def test_isos_are_bootable(make):
    with make().open("rb") as iso:
        iso.seek(16 * 2048)
        assert iso.read(6) == b"\x01CD001"
        boot_record = sector(iso, 17)
        assert boot_record[:6] == b"\x00CD001" and boot_record[7:30] == b"EL TORITO SPECIFICATION"
        catalogue = sector(iso, struct.unpack_from("<I", boot_record, 0x47)[0])
    # El Torito: the validation entry's words add up to zero, and the default entry says "bootable".
    assert sum(struct.unpack_from("<16H", catalogue)) & 0xFFFF == 0
    assert catalogue[0] == 1 and catalogue[30:32] == b"\x55\xaa" and catalogue[32] == 0x88


def sector(iso, number):
    iso.seek(number * 2048)
    return iso.read(2048)


def test_a_raw_file_system_is_sound_and_sparse(tmp_path):
    raw = sample_images.filesystem_raw(32 * MIB, cache=tmp_path)
    assert raw.stat().st_size == 32 * MIB and raw.stat().st_blocks * 512 < 24 * MIB
    assert subprocess.run(["e2fsck", "-fn", raw], check=False, capture_output=True).returncode == 0
    names = subprocess.run(["debugfs", "-R", "ls -p /", raw], check=True, capture_output=True, text=True).stdout
    assert ".py/" in names


def test_qcow2_images_hold_the_raw_one(tmp_path):
    raw = sample_images.filesystem_raw(32 * MIB, cache=tmp_path)
    plain, packed = (sample_images.filesystem_qcow2(32 * MIB, compressed=c, cache=tmp_path) for c in (False, True))
    for qcow2 in (plain, packed):
        assert qemu_info(qcow2, "qcow2")["virtual-size"] == 32 * MIB and same_content(raw, qcow2)
        assert subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", qcow2], check=False).returncode == 0
    assert packed.stat().st_size < plain.stat().st_size / 2


def test_half_of_a_big_disk_is_holes(tmp_path):
    size = 128 * MIB
    disk = sample_images.half_empty_raw(size, cache=tmp_path)
    assert disk.stat().st_size == size
    extents = json.loads(
        subprocess.run(["qemu-img", "map", "--output=json", "-f", "raw", disk], check=True, capture_output=True).stdout
    )
    assert [(extent["start"] // MIB, extent["data"]) for extent in extents] == [
        (0, True), (32, False), (64, True), (96, False)
    ]  # fmt: skip
    with disk.open("rb") as file:
        blocks = [file.read(MIB) for _block in range(32)]
    assert len(set(blocks)) == 32


def test_an_image_is_made_once(tmp_path):
    first = sample_images.filesystem_raw(32 * MIB, cache=tmp_path)
    before = first.stat()
    assert sample_images.filesystem_raw(32 * MIB, cache=tmp_path) == first
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert sample_images.filesystem_raw(9 * MIB, cache=tmp_path) != first


def test_what_could_not_be_made_leaves_no_image(tmp_path):
    def fail(draft, _work):
        draft.write_bytes(b"half")
        raise sample_images.SampleError("no")

    with pytest.raises(sample_images.SampleError):
        sample_images.cached("image.raw", 1, fail, tmp_path)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


def test_the_debian_system_boots_to_a_login_prompt_also_where_it_was_imported(export, glance, tmp_path):
    disk = sample_images.debian_system_disk()
    assert qemu_info(disk, "qcow2")["virtual-size"] == sample_images.SYSTEM_SIZE
    there = export(f"path: {disk}\nsource_format: qcow2\nname: debian\ncompress: zstd")["image"]
    try:
        brought = {"image": there["id"], "path": f"{tmp_path}/debian.raw", "format": "raw"}
        assert export(yaml.safe_dump(brought), module="glance_image_import")["changed"]
    finally:
        glance.delete_image(there["id"])
    assert sample_images.boots(tmp_path / "debian.raw")


def test_a_disk_without_a_system_does_not_boot(tmp_path):
    assert not sample_images.boots(sample_images.filesystem_raw(32 * MIB, cache=tmp_path), timeout=5)
