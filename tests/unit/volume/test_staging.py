# SPDX-License-Identifier: GPL-3.0-or-later
"""What an import to a block device puts elsewhere is found again."""

from __future__ import annotations

import contextlib
import os

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import VolumeInUse
from ansible_collections.imageferry.glance.plugins.module_utils._volume import staging
from ansible_collections.imageferry.glance.plugins.module_utils._volume.device import DeviceVolume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.file import FileVolume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.ledger import Ledger
from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import Provenance

WANTED = Provenance("an id", None, "sha512", "00ff", 7, "raw")


def test_the_copy_of_an_import_that_was_given_up_is_found(make_device, tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "_BIG_STAGING", str(tmp_path / "staging"))
    device = make_device(1 << 20)
    with DeviceVolume(device, Ledger(str(tmp_path / "ledger"))) as volume:
        with staging.left_behind(volume) as files:
            assert not files  # not even the folder is there
        (tmp_path / "staging").mkdir()
        path = staging.copy_path(volume, staging.staging_folder(volume, None))
        assert path == f"{tmp_path}/staging/{device.strip('/').replace('/', '-')}.imageferry-source"
        with FileVolume(path) as copy, contextlib.suppress(KeyboardInterrupt), copy.staged(0, WANTED, True) as staged:
            staged.sink.write(bytearray(b"content"), 7, 0)
            with pytest.raises(VolumeInUse), staging.left_behind(volume):
                pass
            raise KeyboardInterrupt
        with staging.left_behind(volume) as files:
            (file,) = files
            file.remove_given_up(wipe=False)
        assert os.listdir(tmp_path / "staging") == []


def test_a_partial_file_of_somebody_else_is_left_alone(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    with FileVolume(str(tmp_path / "disk")) as volume, staging.left_behind(volume) as files:
        assert not files
        (tmp_path / volume.partial).symlink_to(victim)
        assert not volume.holds_given_up()
        (tmp_path / volume.partial).unlink()
        os.link(victim, tmp_path / volume.partial)
        volume.remove_given_up(wipe=True)
        assert os.listdir(tmp_path) == ["victim"] and victim.read_text() == "precious"
