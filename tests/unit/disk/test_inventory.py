# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host holds while others add and remove."""

from __future__ import annotations

import contextlib
import os

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._disk.inventory import held_volumes
from ansible_collections.imageferry.glance.plugins.module_utils._volume.file import FileVolume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import Provenance
from ansible_collections.imageferry.glance.plugins.module_utils._volume.staging import copy_path, left_behind


def test_a_file_that_is_removed_while_it_is_looked_at_is_not_there(monkeypatch, tmp_path):
    look = FileVolume.stat

    def stat(volume):
        found = look(volume)
        os.unlink(volume.path)
        return found

    monkeypatch.setattr(FileVolume, "stat", stat)
    (tmp_path / "disk").touch()
    assert held_volumes([str(tmp_path)], [], [], None) == [] and not os.listdir(tmp_path)


@pytest.mark.parametrize("is_copy", [True, False])
def test_what_a_killed_import_has_left_is_told_as_the_volume_that_it_was_for(tmp_path, is_copy):
    wanted = Provenance("an id", None, "sha512", "00ff", 7, "vmdk")
    with FileVolume(str(tmp_path / "web01.qcow2")) as volume:
        path = copy_path(volume, str(tmp_path)) if is_copy else volume.path
    with FileVolume(path) as file, contextlib.suppress(KeyboardInterrupt), file.staged(0, wanted, True) as staged:
        staged.sink.write(bytearray(b"content"), 7, 0)
        raise KeyboardInterrupt
    (told,) = held_volumes([str(tmp_path)], [], [], None)
    assert told["path"] == str(tmp_path / "web01.qcow2") and told["unfinished"] and not told["exists"]
    with FileVolume(str(tmp_path / "web01.qcow2")) as volume, left_behind(volume) as files:
        (file,) = files
        file.remove_given_up(wipe=False)
    assert held_volumes([str(tmp_path)], [], [], None) == []
