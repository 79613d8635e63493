# SPDX-License-Identifier: GPL-3.0-or-later
"""What tells a disk from all others, and that it is judged as it is exported."""

from __future__ import annotations

import os
import threading
import time
import types

from ansible_collections.imageferry.glance.plugins.module_utils._export import subject
from ansible_collections.imageferry.glance.plugins.module_utils._volume.file import FileVolume


def test_a_host_without_an_identity_goes_by_its_name(monkeypatch, tmp_path):
    disk = subject.Subject("", types.SimpleNamespace(path="/disk"), None, [], None, None)
    machine_id = tmp_path / "machine-id"
    monkeypatch.setattr(subject, "_MACHINE_ID", str(machine_id))
    nameless = disk.key
    for nothing in ("", "uninitialized\n"):
        machine_id.write_text(nothing)
        assert disk.key == nameless
        monkeypatch.setattr(subject.os, "uname", lambda: types.SimpleNamespace(nodename="another"))
        assert disk.key != nameless
        monkeypatch.undo()
        monkeypatch.setattr(subject, "_MACHINE_ID", str(machine_id))
    machine_id.write_text("0123456789abcdef0123456789abcdef\n")
    assert disk.key != nameless


def test_a_disk_is_judged_once_no_import_can_replace_it_any_more(tmp_path):
    path, other = tmp_path / "disk", tmp_path / "other"
    path.write_bytes(bytes(512))
    other.write_bytes(bytes(1024))
    rules = subject.Rules("raw", None, flatten=True, live=True, quiesce="never", scratch_dir=None)

    def replace():
        with FileVolume(str(path)) as importing, importing.locked(0):
            begun.set()
            time.sleep(0.3)
            os.replace(other, path)

    begun = threading.Event()
    threading.Thread(target=replace).start()
    begun.wait()
    with subject.subjects({"domain": None, "path": str(path)}, rules, None, 10) as [found]:
        assert found.virtual_size == 1024
