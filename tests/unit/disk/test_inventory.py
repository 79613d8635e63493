# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host holds while others add and remove."""

from __future__ import annotations

import os

from ansible_collections.imageferry.glance.plugins.module_utils._disk.inventory import held_volumes
from ansible_collections.imageferry.glance.plugins.module_utils._volume.file import FileVolume


def test_a_file_that_is_removed_while_it_is_looked_at_is_not_there(monkeypatch, tmp_path):
    look = FileVolume.stat

    def stat(volume):
        found = look(volume)
        os.unlink(volume.path)
        return found

    monkeypatch.setattr(FileVolume, "stat", stat)
    (tmp_path / "disk").touch()
    assert held_volumes([str(tmp_path)], [], [], None) == [] and not os.listdir(tmp_path)
