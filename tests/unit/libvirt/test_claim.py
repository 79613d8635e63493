# SPDX-License-Identifier: GPL-3.0-or-later
"""What a backup has to undo is known to the next run, also after a power cut."""

from __future__ import annotations

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import VolumeInUse
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt import claim


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(claim, "_FOLDER", str(tmp_path))
    return tmp_path


def test_a_torn_line_takes_nothing_from_those_before(folder):
    made = claim.Claim.make("token", "a guest", ["/scratch"])
    made.note(frozen=True)
    with pytest.raises(VolumeInUse):
        list(claim.abandoned("a guest"))
    made.close()
    with (folder / "token.json").open("ab") as file:
        file.write(b'{"froz')
    (left,) = [(found.token, found.scratch, found.frozen) for found in claim.abandoned("a guest")]
    assert left == ("token", ["/scratch"], True)
    assert not list(claim.abandoned("another guest"))
