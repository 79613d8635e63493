# SPDX-License-Identifier: GPL-3.0-or-later
"""How large a disk on a file or a block device becomes, as planned and as done; LVM: check_volume_modules.py."""

from __future__ import annotations

import json
import os
import subprocess
import time
from concurrent import futures
from pathlib import Path

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._disk import growth as growth_module
from ansible_collections.imageferry.glance.plugins.module_utils._disk.creation import Wanted, create, plan_creation
from ansible_collections.imageferry.glance.plugins.module_utils._disk.growth import (
    grow,
    grow_alone,
    plan_growth,
    wanted_bytes,
)
from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    FormatMismatch,
    InvalidOption,
    VolumeExists,
    VolumeInvalid,
)
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.guests import GuestDisk
from ansible_collections.imageferry.glance.plugins.module_utils._volume import lvm
from ansible_collections.imageferry.glance.plugins.module_utils._volume.device import DeviceVolume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.file import FileVolume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.ledger import Ledger

MIB = 1 << 20


class Extents(FileVolume):
    """A file that says of itself what a logical volume says: 100 MiB are free in extents of 4 MiB."""

    def describe(self):
        return {"type": "lv", "extent_size": 4 * MIB, "group_free": 100 * MIB, "thin_pool": None}


@pytest.fixture
def device(tmp_path):
    """A loop device of 32 MiB of zeros, as a volume."""
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    (tmp_path / "backing").write_bytes(bytes(32 * MIB))
    made = subprocess.run(["losetup", "-f", "--show", tmp_path / "backing"], capture_output=True, text=True,
                          check=False)  # fmt: skip
    if made.returncode:
        pytest.skip("there are no loop devices here")
    with DeviceVolume(made.stdout.strip(), Ledger(str(tmp_path / "ledger"))) as volume:
        yield volume
    subprocess.run(["losetup", "-d", made.stdout.strip()], check=True)


LVS = """#!/bin/sh
cat <<END
{"report": [{"lv": [{"lv_name": "db", "lv_uuid": "a-b", "lv_size": "$(blockdev --getsize64 DEVICE)", "lv_tags": "",
 "lv_layout": "striped", "lv_role": "public", "lv_active": "active", "lv_permissions": "writeable",
 "lv_health_status": "", "pool_lv": "", "origin": "", "data_percent": "", "vg_extent_size": "4194304",
 "vg_free": "1073741824"}]}]}
END
"""
LVEXTEND = """#!/bin/sh
old=$(blockdev --getsize64 DEVICE)
truncate -s ${3%b} BACKING
losetup -c DEVICE
head -c 1048576 /dev/zero | tr '\\0' G | dd of=DEVICE bs=1M seek=$((old / 1048576)) conv=notrunc status=none
"""


@pytest.fixture
def make_logical(device, tmp_path, monkeypatch):
    """Makes objects of one thick, striped logical volume: a loop device, as this machine may have no device mapper.

    As it is extended, somebody writes a MiB of G where it ended, as QEMU does to a qcow2 as soon as there is room.
    """
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, script in (("lvs", LVS), ("lvextend", LVEXTEND)):
        text = script.replace("DEVICE", device.path).replace("BACKING", str(tmp_path / "backing"))
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setattr(lvm, "_PROGRAMS", f"{programs}:{lvm._PROGRAMS}")

    def make():
        volume = lvm.LvmVolume("vg0", "db", ledger=device.ledger)
        volume.path = device.path
        return volume

    return make


def read(path, start, end):
    with open(path, "rb", buffering=0) as file:
        return os.pread(file.fileno(), end - start, start)


def qemu_img(*arguments):
    return subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True, text=True).stdout


def virtual_size(path):
    return json.loads(qemu_img("info", "-f", "qcow2", "--output=json", path))["virtual-size"]


@pytest.mark.parametrize(
    ("size", "wanted"),
    [("20MiB", 20 * MIB), (4096, 4096), ("50%FREE", 60 * MIB), ("100 % free", 120 * MIB), ("33%FREE", 36 * MIB)],
)
def test_a_share_is_of_what_there_is_and_what_is_free_in_whole_extents(tmp_path, size, wanted):
    with Extents(str(tmp_path / "disk")) as volume:
        assert wanted_bytes(size, volume, 20 * MIB) == wanted


@pytest.mark.parametrize("size", ["+10GiB", "-1", "+50%FREE", "50%VG", "x", ""])
def test_a_size_that_would_grow_again_or_is_none_is_refused(tmp_path, size):
    with Extents(str(tmp_path / "disk")) as volume, pytest.raises(InvalidOption):
        wanted_bytes(size, volume, MIB)


@pytest.mark.parametrize(
    ("before", "size", "after"),
    [(8, 9 * MIB + 1, 12), (8, 8 * MIB, None), (8, 1, None), (9, 9 * MIB + 1, 12), (16, 12 * MIB, None)],
)
def test_raw_disks_grow_by_extents_and_never_shrink(tmp_path, before, size, after):
    (tmp_path / "disk").write_bytes(bytes(before * MIB))
    with Extents(str(tmp_path / "disk")) as volume:
        growth = plan_growth(volume, str(size), None, None, None)
        assert growth.changes == (after is not None)
        assert growth.after.virtual_size == (after or before) * MIB and growth.before.virtual_size == before * MIB


def test_a_file_grows_in_sectors_and_its_end_is_zeros(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(b"x" * 1000)
    with FileVolume(str(path)) as volume:
        grow(volume, plan_growth(volume, "2000", None, None, None), None)
    assert path.read_bytes() == b"x" * 1000 + bytes(1048)


def test_a_raw_device_is_not_grown(device):
    assert not plan_growth(device, "32MiB", None, None, None).changes
    with pytest.raises(VolumeInvalid, match="cannot be grown from its host"):
        plan_growth(device, "33MiB", None, None, None)


def test_a_qcow2_grows_within_its_device_and_not_beyond(device):
    qemu_img("create", "-f", "qcow2", device.path, "8M")
    growth = plan_growth(device, "16MiB", "qcow2", None, None)
    assert (growth.volume_size, growth.image_size) == (None, 16 * MIB)
    grow(device, growth, None)
    assert virtual_size(device.path) == 16 * MIB
    with pytest.raises(VolumeInvalid, match="cannot be grown from its host"):
        plan_growth(device, "32MiB", "qcow2", None, None)  # with its tables it would be larger
    assert plan_growth(device, "64MiB", "qcow2", "image", None).image_size == 64 * MIB


def test_what_a_guest_writes_to_a_qcow2_as_it_gains_room_stays(device, make_logical):
    qemu_img("create", "-f", "qcow2", device.path, "8M")
    volume = make_logical()
    grow(volume, plan_growth(volume, "64MiB", "qcow2", "volume", None), None)
    assert read(device.path, 32 * MIB, 64 * MIB) == b"G" * MIB + bytes(31 * MIB)


def test_a_qcow2_as_large_as_its_volume_is_not_taken_for_raw(device, make_logical):
    qemu_img("create", "-f", "qcow2", device.path, "8M")
    volume = make_logical()
    growth = plan_growth(volume, "64MiB", "qcow2", None, None, headroom="63MiB")
    assert growth.volume_size == growth.image_size == 64 * MIB
    grow(volume, growth, None)
    assert virtual_size(device.path) == 64 * MIB and read(device.path, 32 * MIB, 33 * MIB) == b"G" * MIB


def test_who_waits_for_another_to_extend_zeroes_nothing_of_what_it_gained(device, make_logical):
    first, second = make_logical(), make_logical()
    assert second.stat().size == 32 * MIB  # what it has seen is out of date when it has waited
    with futures.ThreadPoolExecutor() as pool, first.locked(0):
        waiting = pool.submit(grow_alone, second, "96MiB", "raw", None, None)
        grow(first, plan_growth(first, "64MiB", "raw", None, None), None)
        with open(device.path, "r+b") as guest:
            os.pwrite(guest.fileno(), b"g" * MIB, 40 * MIB)
        time.sleep(0.2)
        assert not waiting.done()
    assert waiting.result().before.size == 64 * MIB
    assert read(device.path, 40 * MIB, 41 * MIB) == b"g" * MIB and not any(read(device.path, 64 * MIB, 96 * MIB))


def test_what_a_raw_disk_gains_is_zeros(device, make_logical):
    volume = make_logical()
    grow(volume, plan_growth(volume, "64MiB", "raw", None, None), None)
    assert read(device.path, 32 * MIB, 64 * MIB) == bytes(32 * MIB)


def test_a_qcow2_needs_no_more_than_its_headroom(device, make_logical, monkeypatch):
    qemu_img("create", "-f", "qcow2", device.path, "8M")
    growth = plan_growth(device, "64MiB", "qcow2", None, None, headroom="1MiB")
    assert (growth.volume_size, growth.image_size) == (None, 64 * MIB)
    growth = plan_growth(make_logical(), "64MiB", "qcow2", None, None, headroom="75%")
    assert growth.volume_size == 52 * MIB  # 48, its tables, whole extents
    with pytest.raises(InvalidOption, match="headroom"):
        plan_growth(device, "64MiB", "qcow2", None, None, headroom="much")
    guest = GuestDisk("web", True, "vda", "qcow2", read_only=False, backing=False)
    monkeypatch.setattr(growth_module, "find_guests", lambda *_arguments: [guest])
    growth = plan_growth(make_logical(), "64MiB", "qcow2", None, None, headroom="1MiB")
    assert growth.volume_size == 36 * MIB  # who knows how much of the 32 its guest has taken


def test_a_qcow2_is_made_on_a_blank_device_only(device, tmp_path):
    wanted = Wanted("qcow2", 16 * MIB, None, "off")
    assert plan_creation(device, wanted, None, None).action == "create"
    create(device, wanted, None)
    assert virtual_size(device.path) == 16 * MIB
    assert plan_creation(device, wanted, None, None).action == "unchanged"
    device.ledger.forget(device.key())
    with open(device.path, "r+b") as node:
        node.write(b"something else")
    with pytest.raises(VolumeExists):
        plan_creation(device, wanted, None, None)


def test_a_share_gives_a_qcow2_as_much_disk_as_fits_with_its_tables(tmp_path, device, monkeypatch):
    qemu_img("create", "-f", "qcow2", device.path, "8M")
    facts = {"type": "lv", "extent_size": 4 * MIB, "group_free": 100 * MIB, "thin_pool": None}
    monkeypatch.setattr(device, "describe", lambda: facts)
    growth = plan_growth(device, "100%FREE", "qcow2", None, None)
    assert growth.image_size is not None and growth.volume_size == 132 * MIB
    assert 128 * MIB < growth.image_size < 132 * MIB
    larger = plan_growth(device, str(growth.image_size + 1), "qcow2", "image", None)
    measured = json.loads(qemu_img("measure", "-O", "qcow2", "--size", larger.image_size + 65536, "--output=json"))
    assert measured["fully-allocated"] > 132 * MIB - 65536, "more would have fitted"


def test_what_only_says_itself_that_it_is_a_qcow2_is_not_grown(tmp_path):
    path = tmp_path / "disk"
    qemu_img("create", "-f", "qcow2", path, "8M")
    with FileVolume(str(path)) as volume:
        with pytest.raises(VolumeInvalid, match="a guest may have written"):
            plan_growth(volume, "16MiB", None, None, None)
        assert plan_growth(volume, str(volume.stat().size + 1), "raw", None, None).image_size % 512 == 0
    Path(path).write_bytes(bytes(MIB))
    with FileVolume(str(path)) as volume, pytest.raises(FormatMismatch):
        plan_growth(volume, "16MiB", "qcow2", None, None)
