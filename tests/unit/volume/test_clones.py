# SPDX-License-Identifier: GPL-3.0-or-later
"""Which overlays stand on a file, as real overlays are made, moved, removed and faked; and the holes of files."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    HasClones,
    NoSpace,
    TransferFailed,
    VolumeInUse,
)
from ansible_collections.imageferry.glance.plugins.module_utils._volume.clones import (
    XATTR,
    check_no_clones,
    find_clones,
    note_clone,
)
from ansible_collections.imageferry.glance.plugins.module_utils._volume.file import FileVolume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.holes import Holes, find_holes
from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import Provenance

MIB = 1 << 20


def held(image_format):
    return Provenance("x", None, None, None, None, image_format)


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "base"
    path.write_bytes(bytes(MIB))
    return str(path)


@pytest.fixture
def clone(base, tmp_path):
    """Makes an overlay on the base and returns its path."""

    def clone(path, backing=base):
        path = tmp_path / path
        path.parent.mkdir(exist_ok=True)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", backing, "-F", "raw", path], check=True)
        return str(path)

    return clone


def test_overlays_beside_the_base_count_and_others_once_noted(base, clone):
    beside, elsewhere = clone("beside", "base"), clone("elsewhere/clone")
    assert find_clones(base) == [beside]
    note_clone(base, elsewhere)
    note_clone(base, elsewhere)
    assert find_clones(base) == [beside, elsewhere]


def test_clones_beside_the_base_take_no_room_and_too_many_others_are_refused(base, clone):
    beside, elsewhere = clone("beside", "base"), clone("elsewhere/clone")
    note_clone(base, beside)
    assert XATTR not in os.listxattr(base)
    note_clone(base, elsewhere)
    noted = [elsewhere]

    def note_many():
        for number in range(300):  # more than any file system takes
            os.link(elsewhere, other := f"{elsewhere}-{number:0240}")
            note_clone(base, other)
            noted.append(other)

    with pytest.raises(NoSpace, match="clones in other folders"):
        note_many()
    assert len(noted) > 1 and find_clones(base) == sorted([beside, *noted])


@pytest.mark.parametrize(("clone", "rebase"), [("/srv/clone", True), ("vg0/clone", False)])
def test_only_clones_in_files_can_be_made_to_stand_for_themselves(clone, rebase):
    with pytest.raises(HasClones) as refused:
        check_no_clones("base", [clone])
    assert ("qemu-img rebase" in refused.value.remedy) is rebase


def test_what_is_gone_or_something_else_by_now_does_not_count(base, clone, tmp_path):
    for name in ("elsewhere/gone", "elsewhere/raw", "elsewhere/rebased"):
        note_clone(base, clone(name))
    os.unlink(tmp_path / "elsewhere/gone")
    (tmp_path / "elsewhere/raw").write_bytes(b"x" * MIB)
    subprocess.run(["qemu-img", "rebase", "-f", "qcow2", "-u", "-b", "", tmp_path / "elsewhere/rebased"], check=True)
    assert find_clones(base) == []


@pytest.mark.parametrize("noted", [b"", b"{", b"{}", b"[1, null]", b'["\\u0000"]', b'"/x"'])
def test_a_note_that_makes_no_sense_says_nothing(base, noted):
    os.setxattr(base, XATTR, noted)
    assert find_clones(base) == []


def test_a_raw_disk_stands_on_nothing_whatever_its_guest_wrote(base, clone):
    faked = clone("faked")
    assert find_clones(base) == [faked]
    with FileVolume(faked) as volume:
        volume.adopt(held("raw"))
    assert find_clones(base) == []
    with FileVolume(faked) as volume:
        volume.adopt(held("qcow2"))
    assert find_clones(base) == [faked]


def test_a_file_with_clones_is_not_removed(base, clone):
    made = clone("clone")
    with FileVolume(base) as volume:
        with pytest.raises(HasClones) as caught:
            volume.remove(wipe=False)
        assert caught.value.facts == {"clones": [made]}
        os.unlink(made)
        volume.remove(wipe=False)
    assert not os.path.exists(base)


def test_no_import_and_no_removal_comes_to_a_locked_file(base, tmp_path):
    with FileVolume(base) as volume, FileVolume(base) as other:
        with volume.locked(0):
            with pytest.raises(VolumeInUse):
                other.staged(0, held("raw"), False).__enter__()
            with pytest.raises(VolumeInUse):
                other.remove(wipe=False)
        assert os.listdir(tmp_path) == ["base"]
        other.remove(wipe=False)


def test_a_lock_waits_for_the_import_that_goes_on(base):
    with FileVolume(base) as volume, FileVolume(base) as other:
        import_ends = threading.Event()

        def carry():
            with other.staged(0, held("raw"), False):
                began.set()
                import_ends.wait(10)

        began = threading.Event()
        importing = threading.Thread(target=carry)
        importing.start()
        began.wait(10)
        threading.Timer(0.5, import_ends.set).start()
        with volume.locked(20):
            assert import_ends.is_set()
        importing.join()


def test_a_lock_leaves_what_an_interrupted_import_has_brought(base, tmp_path):
    wanted = Provenance("x", None, "sha256", "00" * 32, 2 * MIB, "raw")
    with FileVolume(base) as volume:
        with contextlib.suppress(TransferFailed), volume.staged(0, wanted, True) as staged:
            staged.sink.write(bytearray(b"x" * MIB), MIB, 0)
            raise TransferFailed("x")
        with volume.locked(0):
            pass
        with volume.staged(0, wanted, True) as staged:
            assert staged.held == MIB


@pytest.mark.parametrize(
    ("size", "data", "holes"),
    [
        (0, [], Holes(0, 0, 0)),
        (8 * MIB, [], Holes(0, 8 * MIB, 0)),
        (8 * MIB, [(0, MIB)], Holes(MIB, 7 * MIB, 1)),
        (8 * MIB, [(7 * MIB, MIB)], Holes(MIB, 7 * MIB, 1)),
        (8 * MIB, [(0, 2 * MIB), (4 * MIB, MIB)], Holes(3 * MIB, 5 * MIB, 2)),
        (2 * MIB, [(0, 2 * MIB)], Holes(2 * MIB, 0, 1)),
    ],
)
def test_data_and_holes_are_counted(tmp_path, size, data, holes):
    with open(tmp_path / "file", "w+b") as file:
        file.truncate(size)
        for start, length in data:
            os.pwrite(file.fileno(), b"x" * length, start)
        assert find_holes(file.fileno()) == holes


def test_a_device_has_no_holes(make_device):
    with open(make_device(4 * MIB), "rb") as device:
        assert find_holes(device.fileno()) == Holes(4 * MIB, 0, 1)
