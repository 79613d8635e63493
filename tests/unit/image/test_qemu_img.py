# SPDX-License-Identifier: GPL-3.0-or-later
"""qemu-img does with open files and devices what it would do with paths."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    DamagedImage,
    NoSpace,
    StorageError,
    UnsafeImage,
)
from ansible_collections.imageferry.glance.plugins.module_utils._image import qemu_img
from ansible_collections.imageferry.glance.plugins.module_utils._image.qemu_img import Qcow2Options

from .conftest import run

MIB = 1024**2
WRITES = ("write -P 7 1M 3M", "write -P 8 7M 1M")


@pytest.fixture
def device(tmp_path):
    """A loop device of 32 MiB that is full of something else."""
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    (tmp_path / "backing").write_bytes(b"\xaa" * 32 * MIB)
    made = subprocess.run(
        ["losetup", "-f", "--show", tmp_path / "backing"], check=False, capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip("there are no loop devices here")
    yield Path(made.stdout.strip())
    run("losetup", "-d", made.stdout.strip())


def convert(source, source_format, target, target_format, size=0, **options):
    with open(source, "rb") as read, open(target, "r+b" if target.exists() else "w+b", buffering=0) as written:
        size = max(size, qemu_img.virtual_size(read.fileno(), source_format))
        qemu_img.convert(read.fileno(), source_format, written.fileno(), target_format, size, **options)
    return target


def same(path, image_format, other, other_format):
    run("qemu-img", "compare", "-f", image_format, "-F", other_format, path, other)


SOURCES = [
    ("raw", ""), ("qcow2", ""), ("vmdk", "subformat=monolithicSparse"), ("vmdk", "subformat=streamOptimized"),
    ("vpc", "subformat=dynamic,force_size=on"), ("vpc", "subformat=fixed,force_size=on"),
    ("vhdx", "subformat=dynamic"), ("vhdx", "subformat=fixed"), ("vdi", ""), ("vdi", "static=on"),
]  # fmt: skip


@pytest.mark.parametrize("target_format", ["raw", "qcow2"])
@pytest.mark.parametrize(("source_format", "options"), SOURCES)
def test_every_format_is_converted_to_a_file(make, tmp_path, source_format, options, target_format):
    raw, source = make("raw", writes=WRITES), tmp_path / "source"
    run("qemu-img", "convert", "-O", source_format, *(["-o", options] if options else []), raw, source)
    glance = "vhd" if source_format == "vpc" else source_format
    same(convert(source, glance, tmp_path / "target", target_format), target_format, raw, "raw")
    assert (tmp_path / "target").stat().st_blocks * 512 < 5 * MIB


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compat": "0.10"},
        {"cluster_size": 2 * MIB},
        {"compress": True},
        {"compress": True, "compression_type": "zstd"},
        {"preallocation": "metadata"},
    ],
)
@pytest.mark.parametrize("where", ["file", "device"])
def test_every_kind_of_qcow2_is_written(make, tmp_path, request, options, where):
    target = request.getfixturevalue("device") if where == "device" else tmp_path / "target"
    raw = make("raw", writes=WRITES)
    convert(raw, "raw", target, "qcow2", options=Qcow2Options(**options))
    same(target, "qcow2", raw, "raw")
    with open(target, "rb") as file:
        qemu_img.check(file.fileno(), "qcow2")
        facts = qemu_img.info(file.fileno(), "qcow2")
    assert facts["virtual-size"] == 10 * MIB
    assert facts["cluster-size"] == options.get("cluster_size", 65536)
    assert facts["format-specific"]["data"]["compat"] == options.get("compat", "1.1")


def test_a_raw_disk_on_a_device_hides_what_was_there(make, device):
    convert(make(writes=WRITES), "qcow2", device, "raw")
    content = device.read_bytes()
    assert content[: 10 * MIB] == bytes(MIB) + b"\7" * 3 * MIB + bytes(3 * MIB) + b"\x08" * MIB + bytes(2 * MIB)
    assert content[10 * MIB :] == b"\xaa" * 22 * MIB  # which is for its volume to wipe


def test_a_device_that_is_zero_is_not_written_where_the_disk_is(make, device):
    convert(make(writes=WRITES), "qcow2", device, "raw", target_is_zero=True)
    assert device.read_bytes()[:MIB] == b"\xaa" * MIB  # as it was said to be zero and is not, this can be seen


def test_a_file_is_emptied_first_and_may_become_larger(make, tmp_path):
    (tmp_path / "target").write_bytes(b"\xaa" * 20 * MIB)
    target = convert(make(writes=WRITES), "qcow2", tmp_path / "target", "raw", size=16 * MIB)
    content = target.read_bytes()
    assert len(content) == 16 * MIB and content.count(0) == 12 * MIB
    target = convert(make(writes=WRITES), "qcow2", tmp_path / "target", "qcow2", size=16 * MIB)
    with open(target, "rb") as file:
        assert qemu_img.info(file.fileno(), "qcow2")["virtual-size"] == 16 * MIB


def test_progress_rises_to_the_end(make, tmp_path):
    seen = []
    convert(make(writes=WRITES), "qcow2", tmp_path / "target", "raw", on_progress=seen.append)
    assert seen and seen == sorted(seen) and seen[-1] == 1


def test_what_progress_raises_ends_the_conversion(make, tmp_path):
    def stop(_part):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(make(writes=WRITES), "qcow2", tmp_path / "target", "raw", on_progress=stop)


def test_what_is_measured_is_what_is_taken_up(make, tmp_path):
    source = make(writes=WRITES)
    options = Qcow2Options(cluster_size=2 * MIB)
    with open(source, "rb") as file:
        measured = qemu_img.measure(file.fileno(), "qcow2", "qcow2", options)
        raw = qemu_img.measure(file.fileno(), "qcow2", "raw")
    assert raw == (10 * MIB, 10 * MIB)
    assert qemu_img.measure_blank(10 * MIB, "qcow2", options).fully_allocated == measured.fully_allocated
    assert convert(source, "qcow2", tmp_path / "target", "qcow2", options=options).stat().st_size <= measured.required


def test_a_disk_is_created_and_grows(tmp_path, device):
    for path in (tmp_path / "disk", device):
        with open(path, "r+b" if path.exists() else "w+b", buffering=0) as file:
            qemu_img.create(file.fileno(), "qcow2", MIB, Qcow2Options(compat="0.10"))
            qemu_img.resize(file.fileno(), "qcow2", 5 * MIB)
            facts = qemu_img.info(file.fileno(), "qcow2")
        assert facts["virtual-size"] == 5 * MIB and facts["format-specific"]["data"]["compat"] == "0.10"


def test_a_device_that_is_too_small_is_full(make, device):
    with pytest.raises(NoSpace):
        convert(make("raw", size="64M", writes=["write -P 7 0 40M"]), "raw", device, "qcow2")


def test_a_source_that_cannot_be_read_is_damaged(make, tmp_path):
    path = make(writes=WRITES)
    path.write_bytes(bytes(MIB))
    with pytest.raises(DamagedImage):
        convert(path, "qcow2", tmp_path / "target", "raw")


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGKILL, StorageError), (signal.SIGXFSZ, NoSpace), (signal.SIGXCPU, UnsafeImage)]
)
def test_a_signal_has_the_right_cause(tmp_path, monkeypatch, number, error):
    program = tmp_path / "qemu-img"
    program.write_text(f"#!/bin/sh\nkill -{int(number)} $$\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(error, match="qemu-img measure"):
        qemu_img.measure_blank(MIB, "raw")
