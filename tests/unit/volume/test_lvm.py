# SPDX-License-Identifier: GPL-3.0-or-later
"""Names, sizes and tags of logical volumes; LVM itself is tried by tests/target/check_volumes.py."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    MissingDependency,
    NoSpace,
    StorageError,
    VolumeExists,
    VolumeInvalid,
)
from ansible_collections.imageferry.glance.plugins.module_utils._volume import lvm
from ansible_collections.imageferry.glance.plugins.module_utils._volume.ledger import Ledger
from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import Provenance

HELD = Provenance("https://example.org/a b?ü", "näme", "sha512", "00ff" * 32, 7, "raw", "2026-01-01T00:00:00Z")
# What lvs --reportformat json of LVM 2.03.16 said.
ROW = {
    "lv_name": "web01", "lv_uuid": "a-b", "lv_size": "67108864", "lv_tags": "", "lv_layout": "linear",
    "lv_role": "public", "lv_active": "active", "lv_permissions": "writeable", "lv_health_status": "", "pool_lv": "",
    "origin": "", "data_percent": "", "vg_extent_size": "4194304", "vg_free": "8585740288",
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["", "-x", ".", "..", "snapshot", "pvmove", "a/b", "a b", "ä", "a;b", "x" * 128, "lv_tmeta", "a_rimage_0",
     "my_pmspare", "x\n", "$(x)", "_mlog"],
)  # fmt: skip
def test_names_that_lvm_does_not_take_are_refused(name):
    with pytest.raises(VolumeInvalid, match="'lv: "):
        lvm.check_name("lv", name)


@pytest.mark.parametrize("name", ["web01", "a-b", "snapshot1", "a.b_c+d", "..a", "x" * 127, "pvmove0x", "tdata"])
def test_other_names_are_taken(name):
    lvm.check_name("lv", name)


@pytest.mark.parametrize(
    ("mapped", "names"),
    [("vg0-web01", ("vg0", "web01")), ("a--b-c--d", ("a-b", "c-d")), ("a---b", ("a-", "b")), ("plain", ("plain", ""))],
)
def test_mapped_names_are_taken_apart(mapped, names):
    assert lvm.split_mapped_name(mapped) == names


@pytest.mark.parametrize("metadata", [None, {"x": "y"}, {str(number): hash(str(number)) for number in range(400)}])
def test_tags_hold_all_that_is_known(metadata):
    held = replace(HELD, metadata=metadata)
    tags = lvm.make_tags(held)
    assert all(re.fullmatch(r"[A-Za-z0-9_+.\-/=!:&#]{1,1024}", tag) and tag.startswith("imageferry") for tag in tags)
    assert tags[:2] == ["imageferry", "imageferry.image=https://example.org/a_b__"]
    assert lvm.parse_tags(["other", *reversed(tags)]) == held
    assert (len(tags) > 3) == (metadata is not None and len(metadata) > 1)


def test_metadata_that_is_too_much_for_tags_is_left_out():
    held = replace(HELD, metadata={str(number): hash(str(number)) for number in range(5000)})
    assert lvm.parse_tags(lvm.make_tags(held)) == HELD


def test_tags_that_make_no_sense_say_nothing():
    tags = lvm.make_tags(replace(HELD, metadata={str(number): hash(str(number)) for number in range(400)}))
    assert lvm.parse_tags(tags[:2]) is None and lvm.parse_tags([]) is None
    for missing in range(2, len(tags)):
        assert lvm.parse_tags(tags[:missing] + tags[missing + 1 :]) is None
    for text in ("", "=", "AAAA", "x" * 100, "eJyrVkrOT0lVslJQMlCqBQAfXQQ1"):
        assert lvm.parse_tags(["imageferry.record.0=" + text]) is None


def test_a_report_is_read():
    found = lvm._parse_lv({**ROW, "lv_tags": "a,imageferry"}, "vg0/web01")
    assert (found.size, found.free, found.tags, found.is_active) == (67108864, 8585740288, ["a", "imageferry"], True)
    assert lvm._size(found) == (67108864, 67108864)
    thin = {**ROW, "lv_layout": "thin,sparse", "pool_lv": "pool", "data_percent": "25.00", "lv_active": ""}
    found = lvm._parse_lv(thin, "vg0/web01")
    assert found.pool == "pool" and not found.is_active and lvm._size(found) == (67108864, 16777216)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({}, {"layout": "linear", "thin_pool": None, "data_percent": None, "active": True}),
        (
            {"lv_layout": "thin,sparse", "pool_lv": "pool", "data_percent": "25.00", "lv_active": ""},
            {"layout": "thin,sparse", "thin_pool": "pool", "data_percent": 25.0, "active": False},
        ),
    ],
)
def test_what_lvm_says_of_it_is_told(tmp_path, monkeypatch, row, told):
    tags = ",".join(["backup", *lvm.make_tags(HELD), "web"])
    monkeypatch.setattr(lvm, "_report", lambda *_arguments: [{**ROW, "lv_tags": tags, **row}])
    monkeypatch.setattr(lvm, "_program", lambda name: name)
    assert lvm.LvmVolume("vg0", "web01", ledger=Ledger(str(tmp_path))).describe() == {
        "type": "lv", "path": "/dev/vg0/web01", "vg": "vg0", "lv": "web01", "uuid": "a-b", "permissions": "writeable",
        "tags": ["backup", "web"], "extent_size": 4194304, "group_free": 8585740288, **told,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("lv", "outside"),
    [("thin", False), ("snapshot", False), ("over", True), ("snapshot-of-over", True), ("elsewhere", True)],
)
def test_a_thin_volume_that_shows_another_outside_of_its_pool_is_told(lv, outside):
    volumes = {
        "base": ("", ""), "[hidden]": ("", ""), "thin": ("pool", ""), "snapshot": ("pool", "thin"),
        "over": ("pool", "base"), "snapshot-of-over": ("pool", "over"), "elsewhere": ("other", "thin"),
    }  # fmt: skip
    rows = [{"lv_name": name, "pool_lv": pool, "origin": origin} for name, (pool, origin) in volumes.items()]
    assert lvm.stands_outside_its_pool(lv, rows) is outside


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"lv_role": "private,thin,pool,metadata"}, "inner part"),
        ({"lv_layout": "thin,pool", "lv_role": "private"}, "inner part"),
        ({"lv_layout": "thin,pool"}, "is a pool"),
        ({"lv_health_status": "partial"}, "physical volumes"),
    ],
)
def test_what_is_no_whole_volume_is_refused(fault, message):
    with pytest.raises(VolumeInvalid, match=message):
        lvm._parse_lv({**ROW, **fault}, "vg0/web01")


@pytest.mark.parametrize(
    ("fact", "message"),
    [
        ({"lv_role": "public,origin,thickorigin"}, "origin of a snapshot"),
        ({"lv_role": "public,snapshot,thicksnapshot", "origin": "a"}, "snapshot of a"),
        ({"lv_permissions": "read-only"}, "read-only"),
    ],
)
def test_volumes_that_must_not_be_written_to_can_only_be_looked_at(tmp_path, monkeypatch, fact, message):
    """There is no LVM here: its reports are made up."""
    asked = []
    monkeypatch.setattr(lvm, "_report", lambda *_arguments: [{**ROW, **fact}])
    monkeypatch.setattr(lvm, "_program", lambda name: name)
    monkeypatch.setattr(lvm, "_run", lambda *command: asked.append(command))
    volume = lvm.LvmVolume("vg0", "web01", ledger=Ledger(str(tmp_path)))
    assert volume.stat().size == 67108864 and volume.describe()["uuid"] == "a-b"
    changes = [volume.check_writable, lambda: volume.grow(1 << 30), lambda: volume.remove(wipe=False)]
    for change in [*changes, volume.staged(0, HELD, True).__enter__]:
        with pytest.raises(VolumeInvalid, match=message):
            change()
    assert asked == []


@pytest.mark.parametrize(
    ("said", "status", "kind"),
    [
        ('Volume group "x" not found', 5, VolumeInvalid),
        ('Volume group "x" has insufficient free space (1 extents): 2 required.', 5, NoSpace),
        ('Logical Volume "x" already exists in volume group "vg0"', 5, VolumeExists),
        ("WARNING: locking\n  Device busy", 5, StorageError),
    ],
)
def test_what_lvm_complains_of_is_told_apart(tmp_path, monkeypatch, said, status, kind):
    program = tmp_path / "lvs"
    program.write_text(f"#!/bin/sh\n[ $LC_ALL = C ] && echo '  {said}' >&2\nexit {status}\n")
    program.chmod(0o755)
    monkeypatch.setattr(lvm, "_PROGRAMS", f"{tmp_path}:/bin")
    with pytest.raises(kind) as caught:
        lvm._report("lvs", "lv", "vg0")
    assert "WARNING" not in str(caught.value) and said.split("\n")[-1].strip() in str(caught.value)


def test_lvm_that_is_not_installed_is_missed(tmp_path, monkeypatch):
    monkeypatch.setattr(lvm, "_PROGRAMS", str(tmp_path))
    with pytest.raises(MissingDependency, match="lvm2"):
        lvm.LvmVolume("vg0", "web01")


def test_a_report_that_is_none_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "lvs").write_text("#!/bin/sh\necho nonsense\n")
    (tmp_path / "lvs").chmod(0o755)
    monkeypatch.setattr(lvm, "_PROGRAMS", f"{tmp_path}:/bin")
    with pytest.raises(StorageError, match="not its report"):
        lvm._report("lvs", "lv", "vg0")


def test_what_came_into_being_while_it_waited_is_seen(tmp_path, monkeypatch):
    """There is no LVM here: its reports are made up."""
    reports = [[], [{**ROW, "lv_tags": ",".join(lvm.make_tags(HELD))}]]
    monkeypatch.setattr(lvm, "_report", lambda *_arguments: reports.pop(0))
    monkeypatch.setattr(lvm, "_program", lambda name: name)
    volume = lvm.LvmVolume("vg0", "web01", ledger=Ledger(str(tmp_path)))
    assert volume.stat() is None
    with volume.staged(0, HELD, True):
        assert volume.stat() and volume.provenance() == HELD
    assert volume.stat() is not None


def test_a_new_one_needs_a_size(tmp_path, monkeypatch):
    monkeypatch.setattr(lvm, "_report", lambda *_arguments: [])
    monkeypatch.setattr(lvm, "_program", lambda name: name)
    volume = lvm.LvmVolume("vg0", "web01", ledger=Ledger(str(tmp_path)))
    with volume.staged(0, HELD, True) as staged, pytest.raises(VolumeInvalid, match="'size'"):
        staged.reserve(None)
