# SPDX-License-Identifier: GPL-3.0-or-later
"""A logical volume that is there is not changed before it is this process's alone; on a loop device."""

from __future__ import annotations

import os

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import StorageError, VolumeInUse
from ansible_collections.imageferry.glance.plugins.module_utils._volume.block_writer import Zeroer, exclusive_device
from ansible_collections.imageferry.glance.plugins.module_utils._volume.lvm import LvmVolume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import Provenance

MIB = 1 << 20
IMAGE = Provenance("an id", "a name", "sha512", "00ff", 7, "raw")
OTHER = Provenance("other", None, "sha512", "11ff", 7, "raw")


def import_to(volume, image, size=8 * MIB):
    with volume.staged(0, image, True) as staged:
        staged.reserve(size)
        staged.sink.write(bytearray(b"image" * 1000), 5000, 0)
        staged.sink.finish(5000)
        staged.publish(image, over=True)


@pytest.fixture
def volume(logical):
    """One that holds an image."""
    import_to(logical(), IMAGE)
    logical.asked()
    return logical()


def test_one_that_came_to_be_in_use_is_neither_extended_nor_marked(logical, volume):
    with (
        volume.staged(0, OTHER, True) as staged,
        exclusive_device(volume.path),  # as mount does
        pytest.raises(VolumeInUse),
    ):
        staged.reserve(16 * MIB)
    assert logical.asked() == [] and volume.provenance().source == "an id"


def test_nobody_can_mount_one_that_is_being_extended_and_marked(logical, volume, monkeypatch):
    tried = []

    def trying(action):
        def act(*arguments):
            with pytest.raises(VolumeInUse), exclusive_device(volume.path):
                pass
            tried.append(action.__name__)
            return action(*arguments)

        return act

    for name in ("make_room", "mark"):
        monkeypatch.setattr(volume, name, trying(getattr(volume, name)))
    import_to(volume, OTHER, 16 * MIB)
    assert tried == ["make_room", "mark"] and volume.stat().size == 16 * MIB
    assert volume.provenance().source == "other"


def test_one_that_cannot_be_noted_keeps_what_is_known_of_it(logical, volume):
    os.mkdir(logical.ledger._path(volume.key(), "json.new"))
    with pytest.raises(StorageError, match="vg0/db"):
        import_to(volume, OTHER)
    assert volume.provenance().source == "an id" and not volume.is_unfinished() and logical.asked() == []
    with exclusive_device(volume.path):
        pass


def test_one_that_comes_to_be_in_use_before_it_is_wiped_is_left_as_it_is(logical, volume, monkeypatch):
    monkeypatch.setattr(volume, "check_not_in_use", lambda: None)  # it was not, then
    with exclusive_device(volume.path), pytest.raises(VolumeInUse):
        volume.remove(wipe=True)
    assert volume.provenance().source == "an id" and logical.asked() == []
    volume.remove(wipe=True)
    assert volume.stat() is None and logical.content() == bytes(8 * MIB)


def test_one_that_is_not_active_is_so_only_while_it_is_looked_at(logical, volume):
    logical.run("lvchange", "--activate", "n")
    volume.look_again()
    volume.check_not_in_use()
    assert not logical.is_active()
    with exclusive_device(logical.device), pytest.raises(VolumeInUse):
        volume.check_not_in_use()
    assert not logical.is_active()
    volume.activate()
    assert logical.is_active()


def test_what_it_gains_is_zeroed_before_it_is_a_part_of_it(logical, volume, monkeypatch):
    sizes, zero = [], Zeroer.zero
    monkeypatch.setattr(Zeroer, "zero", lambda *given: [sizes.append(len(logical.content())), zero(*given)])
    assert volume.grow(16 * MIB).size == 16 * MIB
    assert sizes == [8 * MIB] and not any(logical.content()[8 * MIB :])
    changes = [line.split()[0] for line in logical.asked()]
    assert changes == ["lvcreate", "lvremove", "lvextend"] and volume.provenance().source == "an id"


def test_a_run_that_is_killed_while_it_zeroes_costs_no_room(logical, volume, monkeypatch):
    def kill(*_arguments):
        raise KeyboardInterrupt

    free = volume.look().free
    with monkeypatch.context() as killed:
        killed.setattr(LvmVolume, "_let_go", lambda _self: None)
        killed.setattr(LvmVolume, "zero_from", kill)
        with pytest.raises(KeyboardInterrupt):
            volume.grow(16 * MIB)
    volume = logical()
    assert volume.stat().size == 8 * MIB and volume.look().free == free
    assert volume.grow(16 * MIB).size == 16 * MIB and not any(logical.content()[8 * MIB :])
