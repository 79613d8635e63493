# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to be done for an image's record to say what is asked."""

from __future__ import annotations

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import InvalidOption
from ansible_collections.imageferry.glance.plugins.plugin_utils._image_spec import ImageSpec, describe, plan_update

IMAGE = {
    "id": "d8f2", "name": "debian", "disk_format": "qcow2", "container_format": "bare", "visibility": "shared",
    "protected": False, "os_hidden": False, "min_disk": 2, "min_ram": 0, "tags": ["old", "golden"], "status": "active",
    "size": 10, "os_hash_algo": "sha512", "os_hash_value": "ab", "checksum": "cd", "owner": "p1", "self": "/v2/images",
    "file": "/v2/images/d8f2/file", "schema": "/v2/schemas/image", "created_at": "then", "updated_at": "now",
    "virtual_size": 20, "stores": "store1", "os_glance_importing_to_stores": "", "os_distro": "debian",
    "kernel_id": None, "owner_specified.openstack.md5": "cd",
}  # fmt: skip


def plan(**wanted):
    return plan_update(IMAGE, ImageSpec(**wanted), ["m1"])


def test_nothing_asked_is_nothing_to_do():
    update = plan()
    assert not update and (update.patch, update.joining, update.leaving, update.action) == ([], [], [], None)


def test_what_is_so_already_is_nothing_to_do():
    assert not plan(
        name="debian", disk_format="qcow2", container_format="bare", visibility="shared", protected=False, hidden=False,
        tags=["golden"], properties={"os_distro": "debian", "hw_none": None}, min_disk=2, min_ram=0, members=["m1"],
        active=True,
    )  # fmt: skip


def test_a_description_holds_no_more_than_a_user_can_change_and_what_the_bytes_are():
    described = describe(IMAGE, ["m2", "m1"])
    assert list(described) == sorted(described)
    assert described["properties"] == {"os_distro": "debian", "owner_specified.openstack.md5": "cd"}
    assert described["tags"] == ["golden", "old"] and described["members"] == ["m1", "m2"]
    assert not {"owner", "self", "file", "schema", "stores", "created_at", "updated_at"} & set(described)


@pytest.mark.parametrize(
    ("wanted", "patch"),
    [
        ({"name": "new"}, [{"op": "replace", "path": "/name", "value": "new"}]),
        ({"min_disk": 0}, [{"op": "replace", "path": "/min_disk", "value": 0}]),
        ({"hidden": True}, [{"op": "replace", "path": "/os_hidden", "value": True}]),
        ({"protected": True}, [{"op": "replace", "path": "/protected", "value": True}]),
        ({"tags": ["a"]}, [{"op": "replace", "path": "/tags", "value": ["a", "golden", "old"]}]),
        ({"tags": ["a"], "purge_tags": True}, [{"op": "replace", "path": "/tags", "value": ["a"]}]),
        ({"tags": [], "purge_tags": True}, [{"op": "replace", "path": "/tags", "value": []}]),
        ({"purge_tags": True}, []),
        ({"properties": {"os_distro": "sid"}}, [{"op": "replace", "path": "/os_distro", "value": "sid"}]),
        ({"properties": {"os_distro": None}}, [{"op": "remove", "path": "/os_distro"}]),
        ({"properties": {"a/b~c": 4}}, [{"op": "add", "path": "/a~1b~0c", "value": "4"}]),
        ({"properties": {"hw_qemu_guest_agent": True}},
         [{"op": "add", "path": "/hw_qemu_guest_agent", "value": "True"}]),
        ({"properties": {"x": "1"}, "purge_properties": True},
         [{"op": "remove", "path": "/os_distro"}, {"op": "add", "path": "/x", "value": "1"}]),
    ],
)  # fmt: skip
def test_what_differs_is_patched(wanted, patch):
    assert plan(**wanted).patch == patch


def test_members_come_and_go():
    added = plan_update(IMAGE, ImageSpec(members=["m3"]), ["m1", "m2"])
    assert (added.joining, added.leaving, added.patch) == (["m3"], [], [])
    assert added.before["members"] == ["m1", "m2"] and added.after["members"] == ["m1", "m2", "m3"]
    purged = plan_update(IMAGE, ImageSpec(members=["m3"], purge_members=True), ["m1", "m2"])
    assert (purged.joining, purged.leaving) == (["m3"], ["m1", "m2"])


def test_only_shared_images_have_members():
    with pytest.raises(InvalidOption, match="is private"):
        plan(visibility="private", members=["m3"])
    private = plan(visibility="private")
    assert private.after["members"] == [] and private.leaving == []


@pytest.mark.parametrize(
    ("status", "active", "action"),
    [("active", False, "deactivate"), ("deactivated", True, "reactivate"), ("active", True, None),
     ("deactivated", False, None), ("active", None, None), ("queued", True, None)],
)  # fmt: skip
def test_an_image_is_put_in_and_out_of_use(status, active, action):
    assert plan_update({**IMAGE, "status": status}, ImageSpec(active=active)).action == action


@pytest.mark.parametrize(
    "name", ["id", "size", "status", "owner", "os_hash_value", "os_glance_failed_import", "name", "tags", "os_hidden"]
)
def test_names_that_are_not_a_users_are_refused(name):
    with pytest.raises(InvalidOption, match=name):
        ImageSpec(properties={name: "x"})


@pytest.mark.parametrize("value", [{"a": 1}, ["a"]])
def test_a_property_is_a_text(value):
    with pytest.raises(InvalidOption, match="write it as one"):
        ImageSpec(properties={"x": value})


def test_the_format_of_an_image_with_bytes_stays():
    with pytest.raises(InvalidOption, match="upload another image"):
        plan(disk_format="raw")
    queued = plan_update({**IMAGE, "status": "queued"}, ImageSpec(disk_format="raw"))
    assert queued.patch == [{"op": "replace", "path": "/disk_format", "value": "raw"}]
