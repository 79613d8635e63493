# SPDX-License-Identifier: GPL-3.0-or-later
"""glance_image_info and glance_image_facts against a real Glance."""

from __future__ import annotations

import json

import pytest
from conftest import MIB, InProject, Playbook, connect, openstack, through_proxy, upload, upload_images
from faulty_proxy import GOOD, Fault, FaultyProxy


@pytest.fixture(scope="module")
def cloud(cloud, tmp_path_factory):
    """The cloud of all tests, but in a project in which nobody else leaves images."""
    return InProject(cloud, "discovery", tmp_path_factory.mktemp("discovery") / "clouds.yaml")


@pytest.fixture(scope="module")
def images(cloud, disk_files):
    upload_images(cloud, disk_files)
    return disk_files


def names(result):
    return [image["name"] for image in result["glance_images"]]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ("", ["a-lie", "disk-qcow2", "disk-raw", "twice", "twice"]),
        ("name: disk-*", ["disk-qcow2", "disk-raw"]),
        ("name: disk-raw", ["disk-raw"]),
        ("name: '*-lie'", ["a-lie"]),
        ("disk_format: [qcow2]\nsort: ['name:desc']", ["twice", "twice", "disk-qcow2"]),
        ("name: twice\nlatest: true", ["twice"]),
        ("size_min: 64MiB", ["disk-raw"]),
        ("status: [queued]", []),
        ("tags: [none-has-it]", []),
        ("tags: [golden]", ["disk-raw"]),
        ("tags: [golden, none-has-it]", []),
        ("properties: {os_distro: none}", []),
        ("properties: {os_distro: debian}", ["disk-raw"]),
        ("visibility: private", ["disk-raw"]),
        ("visibility: public", []),
        ("owner: 00000000000000000000000000000000", []),
        ("size_max: 32MiB\ndisk_format: [raw]", ["a-lie"]),
        ("created_after: '2020-01-01T00:00:00Z'\nname: disk-*", ["disk-qcow2", "disk-raw"]),
        ("created_before: '2020-01-01T00:00:00Z'", []),
        ("created_before: '2020-01-01 12:00:00+02:00'", []),
        ("updated_after: '2099-01-01'", []),
        ("updated_before: '2099-01-01T00:00:00Z'\nname: disk-raw", ["disk-raw"]),
        ("status: []\ndisk_format: []\nname: unfinished", ["unfinished"]),
        ("image: disk-raw", ["disk-raw"]),
        ("image: nowhere", []),
    ],
)
def test_images_are_found(find_images, options, found):
    assert names(find_images(f"cloud: demo\n{options}")) == found


def test_headers_are_read_only_where_asked(find_images, cloud):
    before = cloud.glance_access_log.read_text().count("/file")
    unread = find_images("cloud: demo")["glance_images"]
    assert {image["safety"]["verdict"] for image in unread} == {"unknown"}
    assert cloud.glance_access_log.read_text().count("/file") == before

    read = {image["name"]: image for image in find_images("cloud: demo\ninspect: always")["glance_images"]}
    assert read["disk-raw"]["safety"]["verdict"] == read["disk-qcow2"]["safety"]["verdict"] == "safe"
    assert read["a-lie"]["safety"] == {
        "verdict": "unsafe",
        "error": "format_mismatch",
        "reason": "The image is declared to be raw, but its content is qcow2.",
    }
    assert read["disk-qcow2"]["virtual_size"] == 64 * 1024**2


def test_glances_own_fields_are_unchanged(find_images, cloud):
    (found,) = find_images("cloud: demo\nname: disk-raw")["glance_images"]
    told = json.loads(openstack(cloud, "image", "show", "-f", "json", found["id"]))
    for field in ("id", "checksum", "created_at", "disk_format", "min_disk", "owner", "size", "status", "visibility"):
        assert found[field] == told[field]
    assert found["os_distro"] == "debian" and found["tags"] == ["golden"]
    assert (found["virtual_size"], found["virtual_size_source"], found["supported"]) == (64 * MIB, "glance", True)
    assert names(find_images(f"cloud: demo\nimage: {found['id']}")) == ["disk-raw"]


def test_what_cannot_be_asked_is_said(find_images):
    assert find_images("cloud: demo\nsize_min: 3 parsecs")["error"] == "invalid_option"
    assert find_images("cloud: demo\nsort: ['colour:asc']")["error"] == "cloud_error"
    assert find_images("cloud: demo\nupdated_before: 30d")["error"] == "invalid_option"


def test_pages_have_no_end(tmp_path, cloud):
    """More images than a page of Glance's holds, in few requests."""
    connection = connect(cloud, "alt")
    for number in range(450):
        connection.image.post("/images", json={"name": f"many-{number:03}"})
    before = len(cloud.glance_access_log.read_text().splitlines())
    find = Playbook(tmp_path / "play", cloud)
    found = find("cloud: alt\nstatus: [queued]\ndisk_format: []\nname: many-*", module="glance_image_info")
    assert names(found) == [f"many-{number:03}" for number in range(450)]
    assert len(cloud.glance_access_log.read_text().splitlines()) - before <= 5


def test_many_hosts_ask_once(import_image, cloud):
    logs = (cloud.glance_access_log, cloud.keystone_access_log)
    before = [len(log.read_text().splitlines()) for log in logs]
    found = import_image("cloud: demo", module="glance_image_info", hosts=50)
    assert len(found) == 50 and all(len(result["glance_images"]) == 5 for result in found.values())
    asked = [len(log.read_text().splitlines()) - count for log, count in zip(logs, before)]
    # Glance asks Keystone about the token, too.
    assert asked[0] <= 3 and asked[1] <= 4, asked


def test_a_header_that_comes_in_pieces_is_read_whole(find_images, cloud):
    """What shows that an ISO is one comes after 32 KiB, in the fourth piece."""
    image = upload(cloud, "in-pieces", "/usr/lib/ipxe/ipxe.iso", "iso")
    proxy = FaultyProxy(cloud.image_url)
    proxy.programme(*[GOOD] * 4, Fault(trickle=100 * 1024))
    (found,) = find_images(f"{through_proxy(cloud, proxy)}\nimage: {image}\ninspect: always")["glance_images"]
    proxy.stop()
    openstack(cloud, "image", "delete", image)
    assert proxy.gets[-1].headers["range"] == "bytes=0-65535" and found["safety"]["verdict"] == "safe"


def test_an_image_that_cannot_be_read_is_not_called_unsafe(find_images, cloud):
    proxy = FaultyProxy(cloud.image_url)
    proxy.programme(*[GOOD] * 4, Fault(status=403))
    (found,) = find_images(f"{through_proxy(cloud, proxy)}\nname: disk-raw\ninspect: always")["glance_images"]
    proxy.stop()
    assert (found["safety"]["verdict"], found["safety"]["error"]) == ("unknown", "access_denied")


def test_facts_are_facts(import_image):
    result = import_image("cloud: demo\nname: disk-raw", module="glance_image_facts")
    assert names(result["ansible_facts"]) == ["disk-raw"] and not result["changed"]


def test_the_cloud_can_be_named_once_for_all_modules(import_image):
    defaults = {"group/imageferry.glance.glance": {"cloud": "demo"}}
    result = import_image("name: disk-raw", module="glance_image_info", module_defaults=defaults)
    assert names(result) == ["disk-raw"]
