# SPDX-License-Identifier: GPL-3.0-or-later
"""The options say which kind of volume is meant; what needs more than this machine has is tried on a whole host."""

from __future__ import annotations

import os

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import MissingDependency, VolumeInvalid
from ansible_collections.imageferry.glance.plugins.module_utils._volume import choose, lvm
from ansible_collections.imageferry.glance.plugins.module_utils._volume.choose import open_volume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.pool import PoolVolume

NONE = dict.fromkeys(("path", "device", "vg", "lv", "thin_pool", "pool", "volume"))


def test_a_path_is_a_file(tmp_path):
    with open_volume({**NONE, "path": str(tmp_path / "disk")}, mode=0o640, preallocation="falloc") as volume:
        assert volume.describe() == {"type": "file", "path": str(tmp_path / "disk")}
        assert (volume.mode, volume.preallocation, volume.is_block) == (0o640, "falloc", False)


def test_a_device_is_held_open_whatever_its_link_leads_to_later(make_device, tmp_path):
    first, second = make_device(1 << 20), make_device(1 << 20)
    link = tmp_path / "link"
    link.symlink_to(first)
    with open_volume({**NONE, "device": str(link)}) as volume:
        link.unlink()
        link.symlink_to(second)
        assert volume.describe() == {"type": "device", "path": str(link), "node": first} and volume.is_block
        with volume.open() as fd:
            assert os.fstat(fd).st_rdev == os.stat(first).st_rdev
        with pytest.raises(VolumeInvalid, match="cannot be grown"):
            volume.grow(1 << 21)
        with pytest.raises(VolumeInvalid, match="cannot be removed"):
            volume.remove(wipe=False)


@pytest.mark.parametrize("device", ["/nowhere/at/all", "/dev/nothing/there", "/dev/mapper/no-thing", "/dev/null", "x"])
def test_what_is_no_device_is_refused(device, tmp_path):
    (tmp_path / "file").touch()
    for path in (device, str(tmp_path / "file"), str(tmp_path)):
        with pytest.raises(VolumeInvalid), open_volume({**NONE, "device": path}):
            pass


@pytest.mark.parametrize("way", ["vg", "device"])
def test_a_mapped_logical_volume_is_one_by_whichever_name(make_device, monkeypatch, way):
    """There is no device mapper here: the kernel's and LVM's word on the device is made up."""
    facts = {"uuid": "LVM-abc", "name": "vg0-web--01"}
    monkeypatch.setattr(choose, "_mapped", lambda _rdev, fact: facts[fact])
    monkeypatch.setattr(lvm, "_program", lambda name: name)
    monkeypatch.setattr(lvm.LvmVolume, "stat", lambda _self: (1, 1))
    params = {"vg": "vg0", "lv": "web-01"} if way == "vg" else {"device": make_device(1 << 20)}
    with open_volume({**NONE, **params}) as volume:
        assert (volume.vg, volume.lv, volume.path) == ("vg0", "web-01", "/dev/vg0/web-01")
    monkeypatch.setattr(lvm.LvmVolume, "stat", lambda _self: None)
    if way == "device":
        with pytest.raises(VolumeInvalid, match="inner part"), open_volume({**NONE, **params}):
            pass


@pytest.mark.parametrize("name", ["", "a/b", "..", ".", "a\0"])
def test_names_that_lead_out_of_a_pool_are_refused(name):
    with pytest.raises(VolumeInvalid, match="no name of a volume"):
        PoolVolume("default", name)


def test_libvirt_that_is_not_installed_is_missed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "libvirt", None)
    with pytest.raises(MissingDependency, match="python3-libvirt"):
        PoolVolume("default", "disk")
