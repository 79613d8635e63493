# SPDX-License-Identifier: GPL-3.0-or-later
"""glance_image_import with another format, and another kind of volume, than the image's own file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import lzma
import os
import subprocess

import pytest
from conftest import loop_device, upload
from faulty_proxy import FileServer

MIB = 1024**2


def qemu_img(*arguments):
    return subprocess.run(["qemu-img", *arguments], check=True, capture_output=True).stdout


def info(path, disk_format):
    return json.loads(qemu_img("info", "--output=json", "-f", disk_format, path))


def same_content(path, disk_format, raw):
    """Whether it holds the raw disk, and zeros after it."""
    command = ["qemu-img", "compare", "-f", disk_format, "-F", "raw", path, raw]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def foreign(cloud, images, tmp_path_factory):
    """The raw disk in the formats of other hypervisors, in Glance."""
    folder = tmp_path_factory.mktemp("foreign")
    for name, driver in (("vmdk", "vmdk"), ("vhd", "vpc"), ("vhdx", "vhdx"), ("vdi", "vdi")):
        qemu_img("convert", "-f", "raw", "-O", driver, images["disk-raw"], folder / name)
        upload(cloud, f"disk-{name}", folder / name, name)
    say_larger(folder / "vhd", 8 * MIB)
    upload(cloud, "disk-vhd-of-two-sizes", folder / "vhd", "vhd")


def say_larger(vhd, by):
    """Has the footers say a larger size than the geometry, which is what QEMU goes by; as Virtual PC may do."""
    with open(vhd, "r+b") as file:
        for at in (0, os.path.getsize(vhd) - 512):
            footer = bytearray(os.pread(file.fileno(), 512, at))
            footer[48:56] = (int.from_bytes(footer[48:56], "big") + by).to_bytes(8, "big")
            footer[64:68] = bytes(4)
            footer[64:68] = (~sum(footer) & 0xFFFFFFFF).to_bytes(4, "big")
            os.pwrite(file.fileno(), footer, at)


@pytest.fixture
def device(tmp_path):
    """A loop device of which every byte was written before."""
    backing = tmp_path / "backing"
    backing.write_bytes(b"\xff" * 80 * MIB)
    with loop_device(backing) as device:
        yield str(device)


def test_a_qcow2_becomes_a_raw_disk_on_its_way(import_image, images, tmp_path):
    task = f"cloud: demo\nimage: disk-qcow2\npath: {tmp_path}/volume\nformat: raw\nsize: 100MiB"
    predicted, first = import_image(task, "--check"), import_image(task)
    assert predicted["diff"] == first["diff"] and first["transfer"]["staged_bytes"] == 0
    assert same_content(tmp_path / "volume", "raw", images["disk-raw"])
    assert (tmp_path / "volume").stat().st_size == 100 * MIB
    assert first["volume"]["allocated"] < 30 * MIB
    assert not import_image(task)["changed"]
    other = import_image(f"cloud: demo\nimage: disk-qcow2\npath: {tmp_path}/volume\nformat: qcow2")
    assert other["error"] == "volume_exists" and "as raw" in other["msg"]


@pytest.mark.parametrize("disk_format", ["vmdk", "vhd", "vhdx", "vdi"])
def test_what_other_hypervisors_write_is_converted(import_image, foreign, images, tmp_path, disk_format):
    kept = import_image(f"cloud: demo\nimage: disk-{disk_format}\npath: {tmp_path}/volume")
    assert kept["error"] == "unsupported_format" and os.listdir(tmp_path) == ["play"]
    target = "qcow2" if disk_format in ("vmdk", "vhdx") else "raw"
    task = f"cloud: demo\nimage: disk-{disk_format}\npath: {tmp_path}/volume\nformat: {target}"
    assert import_image(task)["changed"]
    assert same_content(tmp_path / "volume", target, images["disk-raw"])
    assert sorted(os.listdir(tmp_path)) == ["play", "volume"] and not import_image(task)["changed"]


def test_a_qcow2_is_written_as_asked(import_image, images, tmp_path):
    options = "format: qcow2\ncompat: '0.10'\ncluster_size: 128KiB\ncompress: zlib\nsize: 80MiB"
    import_image(f"cloud: demo\nimage: disk-raw\npath: {tmp_path}/volume\n{options}")
    found = info(tmp_path / "volume", "qcow2")
    assert found["format-specific"]["data"]["compat"] == "0.10" and found["cluster-size"] == 128 * 1024
    assert found["virtual-size"] == 80 * MIB and (tmp_path / "volume").stat().st_size < 10 * MIB
    assert same_content(tmp_path / "volume", "qcow2", images["disk-raw"])


def test_a_converted_qcow2_has_storage_when_asked_for(import_image, images, tmp_path):
    task = f"cloud: demo\nimage: disk-raw\npath: {tmp_path}/volume\nformat: qcow2\npreallocation: falloc"
    assert import_image(f"{task}\ncompress: zlib")["error"] == "invalid_option"
    assert import_image(task)["volume"]["allocated"] >= 64 * MIB
    assert same_content(tmp_path / "volume", "qcow2", images["disk-raw"])


@pytest.mark.parametrize(
    "image", ["disk-raw", "disk-qcow2", "disk-vmdk", "disk-vmdk\nsize: 72MiB", "disk-vhd-of-two-sizes"]
)
def test_nothing_old_is_left_on_a_device(import_image, foreign, images, device, image):
    task = f"cloud: demo\nimage: {image}\ndevice: {device}\nformat: raw"
    refused = import_image(task)
    assert refused["error"] == "volume_exists"
    assert import_image(f"{task}\noverwrite: different")["changed"]
    assert same_content(device, "raw", images["disk-raw"])  # with zeros to the device's end
    subprocess.run(["blkdiscard", "--zeroout", device], check=True)  # as a guest may, whose disk it is
    assert not import_image(task)["changed"]


def test_a_qcow2_fits_on_a_device_as_it_is_and_anew(import_image, images, device):
    task = f"cloud: demo\nimage: disk-qcow2\ndevice: {device}\noverwrite: always"
    for options in ("", "compress: zlib"):
        assert import_image(f"{task}\n{options}")["changed"]
        assert same_content(device, "qcow2", images["disk-raw"])
    large = import_image(f"{task}\nsize: 200MiB")
    assert large["error"] == "no_space" and same_content(device, "qcow2", images["disk-raw"])
    assert import_image(f"{task}\nsize: 200MiB\nheadroom: 1MiB")["changed"]
    assert info(device, "qcow2")["virtual-size"] == 200 * MIB
    grown = import_image(f"cloud: demo\nimage: disk-qcow2\ndevice: {device}\nsize: 300MiB\nheadroom: 1MiB")
    assert grown["msg"].startswith("Grown") and info(device, "qcow2")["virtual-size"] == 300 * MIB


def test_a_compressed_image_is_expanded_on_its_way(import_image, images, tmp_path):
    (tmp_path / "served").mkdir()
    packed = tmp_path / "served" / "disk.qcow2.xz"
    packed.write_bytes(lzma.compress(images["disk-qcow2"].read_bytes(), preset=0))
    with contextlib.ExitStack() as stack:
        server = FileServer(packed.parent)
        stack.callback(server.stop)
        task = (
            f"url: {server.url('/disk.qcow2.xz')}\nchecksum: sha256:{hashlib.sha256(packed.read_bytes()).hexdigest()}\n"
            f"source_format: qcow2\nformat: raw\npath: {tmp_path}/volume\n"
        )
        assert import_image(task)["error"] == "format_mismatch"
        assert import_image(f"{task}decompress: auto")["changed"]
    assert same_content(tmp_path / "volume", "raw", images["disk-raw"])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a file system of its own")
def test_no_room_for_a_copy_is_seen_before_it_comes(import_image, foreign, tmp_path):
    (tmp_path / "staging").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", tmp_path / "staging"], check=True)
    try:
        task = f"cloud: demo\nimage: disk-vmdk\npath: {tmp_path}/volume\nformat: raw\nstaging_dir: {tmp_path}/staging"
        refused = import_image(task)
        assert refused["error"] == "no_space" and "free" in refused["msg"]  # not only when it is full
        assert os.listdir(tmp_path / "staging") == [] and not (tmp_path / "volume").exists()
    finally:
        subprocess.run(["umount", tmp_path / "staging"], check=True)


def test_a_volume_is_as_large_as_the_image_needs(import_image, cloud, images, tmp_path):
    upload(cloud, "needs-a-gigabyte", images["disk-raw"], "raw", "--min-disk=1")
    task = f"cloud: demo\nimage: needs-a-gigabyte\npath: {tmp_path}/volume"
    assert import_image(task)["volume"]["virtual_size"] == 1024 * MIB and not import_image(task)["changed"]
