# SPDX-License-Identifier: GPL-3.0-or-later
"""What roles make of what modules tell them."""

from __future__ import annotations

from pathlib import Path

from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

ROLES = Path(__file__).resolve().parents[2] / "roles"


def variable(role, name, **known):
    """A variable of a role, with the results of tasks that are known."""
    loader = DataLoader()
    path = str(ROLES / role / "vars" / "main.yml")
    variables = {**loader.load_from_file(path, trusted_as_template=True), **known}
    return Templar(loader, variables=variables).template(variables[name])


def test_a_library_is_rid_only_of_what_was_brought_to_it():
    def seen(name, **provenance):
        held = {"source": "an id", "adopted": False, **provenance}
        return {"volume": {"path": f"/srv/{name}", "in_use": None, "guests": [], "provenance": held}}

    results = [seen("brought.iso"), seen("adopted.iso", adopted=True), seen("blank.iso", source="blank")]
    results.append({"volume": {**seen("foreign.iso")["volume"], "provenance": None}})
    assert variable("iso_library", "__iso_library_surplus", __iso_library_seen={"results": results}) == ["brought.iso"]


def test_a_disk_that_is_there_is_not_predicted_to_be_attached_again():
    def predicted(before, after):
        done = {"changed": True, "diff": {"before": before, "after": after}}
        known = {"ansible_check_mode": True, "__image_import_done": done, "__image_import_diff": done["diff"]}
        return variable("image_import", "__image_import_is_predicted", **known)

    image = {"source": "an id"}
    assert predicted({}, image) and predicted({"source": "another"}, image)
    assert not predicted({**image, "size": 1}, {**image, "size": 2})
    assert not predicted({"mode": "0600"}, {"mode": "0644"})
