# SPDX-License-Identifier: GPL-3.0-or-later
"""What roles make of what modules tell them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible_collections.imageferry.glance.plugins.module_utils._arguments import (
    backup_spec,
    cloud_spec,
    export_spec,
    import_spec,
)

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


OF_ALL = {*cloud_spec(), "host_interface", "progress"}  # which a role has one of for all its disks
OF_A_SET = {"set", "host", "time", "protected"}


@pytest.mark.parametrize(
    ("role", "options", "spec", "beside"),
    [
        ("image_import", ["image_import_images"], import_spec(), OF_ALL),
        ("image_sync", ["image_sync_images"], import_spec(), OF_ALL),
        ("image_export", ["image_export_disks"], export_spec(), OF_ALL),
        ("image_backup", ["image_backup_volumes", "image_backup_guests"], backup_spec(), OF_ALL | OF_A_SET),
    ],
)
def test_a_role_takes_all_options_of_its_module(role, options, spec, beside):
    known = DataLoader().load_from_file(str(ROLES / role / "meta" / "argument_specs.yml"))["argument_specs"]["main"]
    taken = {name for option in options for name in known["options"][option]["options"]}
    assert {name for name in spec if not name.startswith("_")} - beside - taken == set()
    said = "".join(path.read_text() for part in ("tasks", "vars") for path in (ROLES / role / part).iterdir())
    assert role == "image_sync" or set(spec) & taken <= set(re.findall(r"_wanted\.(\w+)", said))
