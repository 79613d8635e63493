# SPDX-License-Identifier: GPL-3.0-or-later
"""What tells a disk from all others."""

from __future__ import annotations

import types

from ansible_collections.imageferry.glance.plugins.module_utils._export import subject


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
