# SPDX-License-Identifier: GPL-3.0-or-later
"""glance_image_import against a real Glance."""

from __future__ import annotations

import os
import subprocess

import pytest


@pytest.mark.parametrize("name", ["disk-raw", "disk-qcow2"])
def test_an_image_becomes_a_verified_file_once(import_image, images, tmp_path, name):
    path = tmp_path / "volume"
    task = f"cloud: demo\nimage: {name}\npath: {path}\nmode: '0640'"

    predicted = import_image(task, "--check")
    assert predicted["changed"] and not path.exists()

    first = import_image(task)
    assert first["changed"] and path.read_bytes() == images[name].read_bytes()
    assert os.stat(path).st_mode & 0o777 == 0o640
    assert first["transfer"]["bytes"] == path.stat().st_size
    assert predicted["diff"] == first["diff"]
    assert sorted(os.listdir(path.parent)) == ["play", "volume"]

    path.write_bytes(b"written by a guest" + path.read_bytes()[18:])
    second = import_image(task)
    assert not second["changed"] and path.read_bytes().startswith(b"written by a guest")


def test_zeros_become_holes(import_image, images, tmp_path):
    result = import_image(f"cloud: demo\nimage: disk-raw\npath: {tmp_path}/volume")
    with open(images["disk-raw"], "rb") as file:
        blocks = sum(any(block) for block in iter(lambda: file.read(65536), b""))
    assert result["volume"]["allocated"] <= blocks * 65536 * 1.01
    assert result["transfer"]["zero_bytes"] == result["volume"]["size"] - blocks * 65536


def test_something_else_is_not_overwritten_unless_asked(import_image, images, tmp_path):
    path = tmp_path / "volume"
    path.write_text("precious")
    task = f"cloud: demo\nimage: disk-qcow2\npath: {path}"
    assert import_image(task)["error"] == "volume_exists"
    assert path.read_text() == "precious"

    with open(path, "rb"):
        assert import_image(task + "\noverwrite: different")["error"] == "volume_in_use"
    assert path.read_text() == "precious"

    assert import_image(task + "\noverwrite: different")["changed"]
    assert path.read_bytes() == images["disk-qcow2"].read_bytes()


def test_the_same_content_is_adopted(import_image, images, tmp_path):
    path = tmp_path / "volume"
    path.write_bytes(images["disk-qcow2"].read_bytes())
    before = path.stat().st_ino
    task = f"cloud: demo\nimage: disk-qcow2\npath: {path}"
    assert import_image(task)["msg"].startswith("Adopted") and path.stat().st_ino == before
    assert not import_image(task)["changed"]


@pytest.mark.parametrize(
    ("image", "options", "error"),
    [
        ("a-lie", "", "format_mismatch"),
        ("nowhere", "", "image_not_found"),
        ("twice", "", "image_ambiguous"),
        ("disk-qcow2", "format: raw", "unsupported_format"),
        ("disk-qcow2", "max_virtual_size: 1MiB", "image_too_large"),
    ],
)
def test_what_cannot_be_carried_is_refused_before_a_byte_lands(import_image, tmp_path, image, options, error):
    result = import_image(f"cloud: demo\nimage: {image}\npath: {tmp_path}/volume\n{options}")
    assert result["failed"] and result["error"] == error
    assert os.listdir(tmp_path) == ["play"]


def test_the_newest_of_several_can_be_asked_for(import_image, tmp_path):
    assert import_image(f"cloud: demo\nimage: twice\nlatest: true\npath: {tmp_path}/volume")["changed"]


def test_a_cloud_that_is_not_described_is_named(import_image, tmp_path):
    result = import_image(f"cloud: nowhere\nimage: disk-raw\npath: {tmp_path}/volume")
    assert result["error"] == "cloud_not_found" and "nowhere" in result["msg"]


def test_many_hosts_ask_the_cloud_once(import_image, cloud, tmp_path):
    before = len(cloud.glance_access_log.read_text().splitlines())
    keystone = len(cloud.keystone_access_log.read_text().splitlines())
    outcomes = import_image(
        f"cloud: demo\nimage: disk-qcow2\npath: '{tmp_path}/{{{{ inventory_hostname }}}}'", hosts=10
    )
    assert all(outcome["changed"] for outcome in outcomes.values())
    requests = cloud.glance_access_log.read_text().splitlines()[before:]
    bodies = [line for line in requests if "/file" in line and " 206 " not in line]
    assert len(bodies) == 10 and len(requests) - len(bodies) <= 5
    # Glance checks the token with Keystone as well; both together stay far below one request for each host.
    assert len(cloud.keystone_access_log.read_text().splitlines()) - keystone <= 6


def test_secrets_are_not_shown(import_image, tmp_path):
    import_image(f"cloud: demo\nimage: disk-qcow2\npath: {tmp_path}/volume", "-vvvv")
    assert "gAAAA" not in import_image.output and "demo-pw" not in import_image.output


def test_two_imports_to_one_path_agree(import_image, images, tmp_path):
    outcomes = import_image(f"cloud: demo\nimage: disk-raw\npath: {tmp_path}/volume", hosts=3)
    assert sorted(outcome["changed"] for outcome in outcomes.values()) == [False, False, True]
    assert subprocess.run(["cmp", images["disk-raw"], tmp_path / "volume"], check=False).returncode == 0
