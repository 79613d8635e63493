# SPDX-License-Identifier: GPL-3.0-or-later
"""glance_image_info and glance_image_facts against a real Glance."""

from __future__ import annotations

import pytest


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
        ("properties: {os_distro: none}", []),
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


def test_facts_are_facts(import_image):
    result = import_image("cloud: demo\nname: disk-raw", module="glance_image_facts")
    assert names(result["ansible_facts"]) == ["disk-raw"] and not result["changed"]
