# SPDX-License-Identifier: GPL-3.0-or-later
"""Sound qcow2 images pass, whatever qemu-img can make; those that could harm their reader do not."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
import textwrap

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    DamagedImage,
    ImageTooLarge,
    UnsafeImage,
    UnsupportedFormat,
)
from ansible_collections.imageferry.glance.plugins.module_utils._image import qemu_img
from ansible_collections.imageferry.glance.plugins.module_utils._image.formats import HEAD_SIZE, check_head

from .conftest import run

TIB = 1024**4
SECRET = ["--object", "secret,id=s,data=abc"]
# offset and form of a field in the header
FIELDS = {
    "version": (4, ">I"), "backing_offset": (8, ">Q"), "cluster_bits": (20, ">I"), "size": (24, ">Q"),
    "crypt": (32, ">I"), "l1_size": (36, ">I"), "l1_offset": (40, ">Q"), "refcount_offset": (48, ">Q"),
    "refcount_clusters": (56, ">I"), "snapshots": (60, ">I"), "snapshots_offset": (64, ">Q"),
    "incompatible": (72, ">Q"), "refcount_order": (96, ">I"), "header_length": (100, ">I"), "extension": (104, ">I"),
    "extension_length": (108, ">I"),
}  # fmt: skip


def judge(path, max_virtual_size=8 * TIB):
    """What an import does with a qcow2: its head, and the whole when it is there."""
    with open(path, "rb") as file:
        facts = check_head(file.read(HEAD_SIZE), "qcow2", path.stat().st_size, max_virtual_size)
        qemu_img.check(file.fileno(), "qcow2")
    return facts


def edit(path, **fields):
    with open(path, "r+b") as file:
        for name, value in fields.items():
            offset, form = FIELDS[name]
            file.seek(offset)
            file.write(struct.pack(form, value))
    return path


@pytest.mark.parametrize(
    "options",
    ["compat=0.10", "compat=1.1", "compression_type=zstd", "lazy_refcounts=on", "refcount_bits=1", "refcount_bits=64"]
    + [f"cluster_size={512 << bits}" for bits in range(13)]
    + [f"preallocation={kind}" for kind in ("off", "metadata", "falloc", "full")],
)
def test_what_qemu_img_makes_is_accepted(make, options):
    path = make(options=options)
    assert judge(path).virtual_size == 10 * 1024**2
    if "0.10" not in options:
        run("qemu-io", "-c", "write -P 7 1M 2M", "-c", "write -z 5M 1M", path)
    else:
        run("qemu-io", "-c", "write -P 7 1M 2M", path)
    judge(path)


@pytest.mark.parametrize("size", ["0", "512", "1M", "1T", "8T"])
def test_empty_images_of_all_sizes_are_accepted(make, size):
    judge(make(size=size))


@pytest.mark.parametrize("options", ["", "compression_type=zstd", "cluster_size=2M"])
def test_compressed_images_are_accepted(make, tmp_path, options):
    source = make("raw", writes=["write -P 7 1M 3M", "write -P 8 7M 1M"])
    path = tmp_path / "compressed"
    run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", *(["-o", options] if options else []), source, path)
    judge(path)


def test_an_internal_snapshot_comes_along(make):
    path = make(writes=["write -P 7 1M 1M"])
    run("qemu-img", "snapshot", "-c", "before", path)
    run("qemu-io", "-f", "qcow2", "-c", "write -P 8 1M 4M", path)
    judge(path)


def test_a_bitmap_comes_along(make):
    path = make()
    run("qemu-img", "bitmap", "--add", path, "b0")
    judge(path)


def test_leaked_clusters_are_no_damage(make):
    path = make(options="lazy_refcounts=on", writes=["write 1M 1M"])
    with open(path, "r+b") as file:  # forget the only L2 table
        file.seek(struct.unpack(">Q", os.pread(file.fileno(), 8, 40))[0])
        file.write(bytes(8))
    judge(path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["-b", "/etc/passwd", "-F", "raw"],
        ["-b", 'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}', "-F", "raw"],
        ["-u", "-b", "nbd://127.0.0.1/x", "-F", "raw"],
        ["-u", "-b", "nowhere", "-F", "raw", "-o", "compat=0.10"],
    ],
)
def test_a_backing_file_is_refused(make, arguments):
    with pytest.raises(UnsafeImage, match="backing file"):
        judge(make(arguments=arguments))


@pytest.mark.parametrize("raw", ["on", "off"])
def test_an_external_data_file_is_refused(make, tmp_path, raw):
    path = make(options=f"data_file={tmp_path}/data,data_file_raw={raw}")
    with pytest.raises(UnsafeImage, match="data file"):
        judge(path)
    # The name alone, without the bit that makes qemu heed it, was put there by somebody who plays tricks.
    with pytest.raises(UnsafeImage, match="data file"):
        judge(edit(path, incompatible=0))


def make_patiently(make, **options):
    """On a busy machine, qemu-img now and then cannot tell how long it takes to derive a key."""
    for _try in range(4):
        with contextlib.suppress(subprocess.CalledProcessError):
            return make(**options)
    return make(**options)


@pytest.mark.parametrize("options", ["encrypt.format=luks,encrypt.iter-time=10", "encrypt.format=aes"])
def test_encryption_is_refused(make, options):
    options += ",encrypt.key-secret=s"
    path = make_patiently(make, options=options, arguments=SECRET)
    with pytest.raises(UnsupportedFormat, match="encrypted"):
        judge(path)


def test_extended_l2_tables_are_refused(make):
    with pytest.raises(UnsafeImage, match="0x10"):
        judge(make(options="extended_l2=on,cluster_size=128k"))


def test_an_image_that_was_not_closed_is_refused(make):
    path = make(options="lazy_refcounts=on")
    subprocess.run(["qemu-io", "-c", "write 0 1M", "-c", "abort", path], check=False, capture_output=True)
    with pytest.raises(DamagedImage, match="not closed"):
        judge(path)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"version": 1}, UnsafeImage),
        ({"version": 4}, UnsafeImage),
        ({"backing_offset": 1 << 40}, UnsafeImage),
        ({"incompatible": 1 << 1}, DamagedImage),
        ({"incompatible": 1 << 5}, UnsafeImage),
        ({"incompatible": 1 << 63}, UnsafeImage),
        ({"size": 4 << 60}, DamagedImage),
        ({"size": (1 << 64) - 1}, DamagedImage),
        ({"cluster_bits": 31}, DamagedImage),
        ({"cluster_bits": 0}, DamagedImage),
        ({"cluster_bits": (1 << 32) - 1}, DamagedImage),
        ({"crypt": 1}, UnsupportedFormat),
        ({"l1_size": (1 << 32) - 1}, DamagedImage),
        ({"l1_size": (1 << 22) + 1}, DamagedImage),
        ({"l1_size": 0}, DamagedImage),
        ({"l1_offset": 0}, DamagedImage),
        ({"l1_offset": 1 << 62}, DamagedImage),
        ({"l1_offset": 0x30008}, DamagedImage),
        ({"refcount_offset": 0}, DamagedImage),
        ({"refcount_offset": 1 << 62}, DamagedImage),
        ({"refcount_clusters": 0}, DamagedImage),
        ({"refcount_clusters": (1 << 32) - 1}, DamagedImage),
        ({"refcount_order": 7}, DamagedImage),
        ({"refcount_order": (1 << 32) - 1}, DamagedImage),
        ({"header_length": 0}, DamagedImage),
        ({"header_length": (1 << 32) - 1}, DamagedImage),
        ({"extension": 7, "extension_length": (1 << 32) - 1, "header_length": 104}, DamagedImage),
        ({"snapshots": (1 << 32) - 1}, UnsafeImage),
        ({"snapshots": 1, "snapshots_offset": 1 << 62}, DamagedImage),
        ({"snapshots": 1, "snapshots_offset": 0}, DamagedImage),
    ],
)
@pytest.mark.parametrize("size_known", [True, False])
def test_an_impossible_header_is_refused_by_its_head(make, fields, error, size_known):
    path = edit(make(), **fields)
    size = path.stat().st_size if size_known else None
    if not size_known and any(value == 1 << 62 for value in fields.values()):
        pytest.skip("needs the image's size")
    with pytest.raises(error):
        check_head(path.read_bytes()[:HEAD_SIZE], "qcow2", size, 8 * TIB)


def test_a_disk_beyond_the_limit_is_refused(make):
    with pytest.raises(ImageTooLarge, match="max_virtual_size"):
        judge(make(size=str(8 * TIB + 512)))


@pytest.mark.parametrize("length", [4, 71, 72, 103, 104, 4096, 65535])
def test_a_head_that_is_cut_off_is_refused(make, length):
    with pytest.raises(DamagedImage):
        check_head(make().read_bytes()[:length], "qcow2", length, None)


def test_a_truncated_image_is_refused_although_its_head_is_sound(make):
    path = make(writes=["write -P 7 1M 8M"])
    os.truncate(path, 4 * 1024**2)
    with pytest.raises(DamagedImage, match="qemu-img check"):
        judge(path)


def bomb_of_one_l2(path, entries=1 << 22):
    """All of the largest L1 table allowed points to the one L2 table of the image."""
    with open(path, "r+b") as file:
        l1 = struct.unpack(">Q", os.pread(file.fileno(), 8, 40))[0]
        entry = os.pread(file.fileno(), 8, l1)
        assert any(entry)
        os.pwrite(file.fileno(), entry * entries, 64 * 1024**2)
    return edit(path, l1_size=entries, l1_offset=64 * 1024**2)


def bomb_of_far_l2(path):
    """The L2 table names clusters at the far end of what an offset can say."""
    with open(path, "r+b") as file:
        l1 = struct.unpack(">Q", os.pread(file.fileno(), 8, 40))[0]
        l2 = struct.unpack(">Q", os.pread(file.fileno(), 8, l1))[0] & 0x00FFFFFFFFFFFE00
        os.pwrite(file.fileno(), struct.pack(">Q", 1 << 63 | 0x00FFFFFFFFFF0000) * 8192, l2)
    return path


def bomb_of_far_l1(path):
    """The L1 table names an L2 table beyond the end."""
    with open(path, "r+b") as file:
        l1 = struct.unpack(">Q", os.pread(file.fileno(), 8, 40))[0]
        os.pwrite(file.fileno(), struct.pack(">Q", 1 << 63 | 0x00FFFFFFFFFF0000), l1)
    return path


def bomb_of_one_refcount_block(path):
    """All of the largest refcount table points to one block."""
    with open(path, "r+b") as file:
        table = struct.unpack(">Q", os.pread(file.fileno(), 8, 48))[0]
        os.pwrite(file.fileno(), os.pread(file.fileno(), 8, table) * (1 << 20), 64 * 1024**2)
    return edit(path, refcount_offset=64 * 1024**2, refcount_clusters=128)


MEASURE = """
    import json, os, resource, sys, time
    sys.path.insert(0, sys.argv[1])
    from ansible_collections.imageferry.glance.plugins.module_utils._errors import FerryError
    from ansible_collections.imageferry.glance.plugins.module_utils._image import qemu_img
    from ansible_collections.imageferry.glance.plugins.module_utils._image.formats import check_head
    started, error = time.monotonic(), None
    with open(sys.argv[2], "rb") as file:
        try:
            check_head(file.read(65536), "qcow2", os.fstat(file.fileno()).st_size, 8 << 40)
            qemu_img.check(file.fileno(), "qcow2")
        except FerryError as err:
            error = err.code
    # Its own ru_maxrss would be that of the process that started it.
    own = int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
    memory = max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    print(json.dumps([error, time.monotonic() - started, memory // 1024]))
"""


@pytest.mark.parametrize("bomb", [bomb_of_one_l2, bomb_of_far_l2, bomb_of_far_l1, bomb_of_one_refcount_block])
def test_a_bomb_takes_no_time_and_no_memory(make, bomb):
    path = bomb(make(writes=["write 1M 1M"]))
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), os.environ["PYTHONPATH"], path]
    run_of_it = subprocess.run(command, check=True, capture_output=True, text=True)
    error, seconds, memory = json.loads(run_of_it.stdout)
    assert error == "image_damaged"
    assert seconds < 1 and memory < 64, run_of_it.stdout


def test_an_image_that_keeps_qemu_img_busy_for_too_long_is_refused(make, monkeypatch):
    path = bomb_of_one_l2(make(writes=["write 1M 1M"]))
    monkeypatch.setattr(qemu_img, "check_tables", lambda fd: None)
    monkeypatch.setattr(qemu_img, "_CPU_SECONDS", 1)
    with pytest.raises(UnsafeImage, match="signal"):
        judge(path, None)
