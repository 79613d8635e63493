# SPDX-License-Identifier: GPL-3.0-or-later
"""volume_backup, backup_info and backup_prune against a real Glance."""

from __future__ import annotations

import datetime
import subprocess
import time

import pytest
import yaml
from ansible_collections.imageferry.glance.plugins.module_utils._arguments import cloud_spec
from ansible_collections.imageferry.glance.plugins.plugin_utils._backup import (
    Keep,
    backup_images,
    doomed,
    let_go,
    points,
)
from ansible_collections.imageferry.glance.plugins.plugin_utils._cloud import Cloud
from ansible_collections.imageferry.glance.plugins.plugin_utils._moment import now
from conftest import (
    HOST_PYTHON,
    InProject,
    Playbook,
    connect,
    download,
    kill_with_all_that_it_started,
    qemu_img,
    qemu_io,
    wait_for,
)

MARK = "owner_specified.imageferry.backup"


@pytest.fixture(scope="module")
def project(cloud, tmp_path_factory):
    return InProject(cloud, f"backups-{time.monotonic_ns()}", tmp_path_factory.mktemp("project") / "clouds.yaml")


@pytest.fixture
def run(tmp_path, project):
    """Runs one of the modules, as a user does."""
    playbook = Playbook(tmp_path / "play", project, host_python=HOST_PYTHON)

    def run(module, *arguments, **task):
        cloud = {} if module == "volume_info" else {"cloud": "demo"}
        return playbook(yaml.safe_dump({**cloud, **task}), *arguments, module=module)

    run.playbook = playbook
    return run


@pytest.fixture
def disk(tmp_path):
    """A disk of which nothing is known but what is in it."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", path, "16M")
    write(path, 1)
    return path


def write(path, pattern):
    qemu_io(path, "qcow2", f"write -P {pattern} 1M 1M")


def images(project, name):
    glance = connect(project).image
    found = [image for hidden in (False, True) for image in glance.images(is_hidden=hidden)]
    records = [glance.get(f"/images/{image.id}").json() for image in found]
    return [record for record in records if record.get(f"{MARK}.set") == name]


def test_a_disk_is_kept_at_every_moment_that_it_changed(run, project, disk, tmp_path):
    task = {"set": "moments", "path": str(disk), "source_format": "qcow2", "compress": "zlib"}
    predicted = run("volume_backup", "--check", "--diff", time="2026-01-01", **task)
    assert predicted["changed"] and not images(project, "moments")
    first = run("volume_backup", time="2026-01-01", **task)
    assert first["changed"] and first["diff"]["after"].keys() == predicted["diff"]["after"].keys()
    assert first["msg"] == "Backed up: it is new in the set moments."
    again = run("volume_backup", time="2026-01-01T06:00:00Z", **task)
    assert not again["changed"] and "transfer" not in again, "the same content, on the same day"
    write(disk, 2)
    assert run("volume_backup", time="2026-01-02", **task)["msg"] == "Backed up: its content has changed."
    write(disk, 1)
    back = run("volume_backup", time="2026-01-03", **task)
    assert back["changed"] and "transfer" not in back, "this content is in the first backup"

    listed = run("backup_info", set="moments")["backups"]
    assert [(point["time"][:10], point["newest"]) for point in listed] == [
        ("2026-01-01", False), ("2026-01-02", False), ("2026-01-03", True),
    ]  # fmt: skip
    assert listed[0]["image"] == listed[2]["image"] != listed[1]["image"]
    assert {point["disk"] for point in listed} == {str(disk)} and listed[0]["host"] == "host0"
    assert (listed[0]["format"], listed[0]["volume"]) == ("qcow2", {"path": str(disk)})
    looked = run("volume_info", path=str(disk), format="qcow2", content=True)["volume"]
    assert looked["content"] == listed[2]["content"] != listed[1]["content"]
    as_small = run("volume_info", path=str(disk), format="qcow2", content=True, content_size="4MiB")["volume"]
    assert as_small["content"] not in (None, looked["content"])
    run("volume_extend", path=str(disk), format="qcow2", size="20MiB")
    larger = run("volume_info", path=str(disk), format="qcow2", content=True, content_size="16MiB")["volume"]
    assert larger["content"] == looked["content"]
    beyond = run("volume_info", path=str(disk), format="qcow2", content=True, content_size="1MiB")["volume"]
    assert beyond["content"] is None
    (then,) = run("backup_info", set="moments", at="2026-01-02T23:00:00Z")["backups"]
    assert then["image"] == listed[1]["image"]
    glance = connect(project).image
    copy = download(glance, glance.get(f"/images/{then['image']}").json(), tmp_path / "copy")
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "read -P 2 1M 1M", copy], check=True, capture_output=True)

    rule = {"set": "moments", "keep_last": 1}
    would = run("backup_prune", "--check", **rule)
    pruned = run("backup_prune", **rule)
    assert would["changed"] and would["removed"] == pruned["removed"] and would["diff"] == pruned["diff"]
    assert [removed["deleted"] for removed in pruned["removed"]] == [False, True]
    (kept,) = run("backup_info", set="moments")["backups"]
    assert kept["time"] == "2026-01-03T00:00:00Z" and kept["image"] == listed[0]["image"]
    assert not run("backup_prune", **rule)["changed"]
    assert [image["id"] for image in images(project, "moments")] == [kept["image"]]


def test_what_is_protected_goes_only_when_that_is_asked_for(run, project, disk):
    task = {"set": "protected", "path": str(disk), "source_format": "qcow2", "protected": True}
    for day in (1, 2):
        write(disk, day)
        assert run("volume_backup", time=f"2026-01-0{day}", **task)["changed"]
    assert run("backup_prune", set="protected", keep_last=1)["error"] == "image_protected"
    assert len(images(project, "protected")) == 2
    assert not run("backup_prune", set="protected", min_age="5000w")["changed"]
    assert run("backup_prune", set="protected", keep_last=1, unprotect=True)["changed"]
    assert len(images(project, "protected")) == 1
    assert run("backup_prune", set="protected", unprotect=True)["error"] == "invalid_option"


def test_an_image_that_is_current_again_is_not_pruned(run, project, disk, monkeypatch):
    task = {"set": "returns", "path": str(disk), "source_format": "qcow2"}
    for day in (1, 2):
        write(disk, day)
        run("volume_backup", time=f"2026-01-0{day}", **task)
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(project.clouds_yaml))
    cloud = Cloud({**dict.fromkeys(cloud_spec()), "cloud": "demo"})
    rule = Keep(last=1, daily=0, weekly=0, monthly=0, min_age=datetime.timedelta())
    (going,) = doomed(points(backup_images(cloud, "returns")), rule, now())
    write(disk, 1)
    run("volume_backup", time="2026-01-03", **task)
    assert (let_go(cloud, going, False).lost, going.left) == (["2026-01-01T00:00:00Z"], [])
    listed = run("backup_info", set="returns")["backups"]
    assert [point["time"][:10] for point in listed] == ["2026-01-02", "2026-01-03"]
    assert let_go(cloud, going, False).lost == []


def test_a_backup_that_was_broken_off_is_none(run, project, disk):
    write(disk, 7)
    qemu_io(disk, "qcow2", "write -P 9 0 16M")
    task = {"set": "killed", "path": str(disk), "source_format": "qcow2"}
    playbook = run.playbook
    slow = yaml.safe_dump({"cloud": "demo", **task, "rate_limit": "1MiB"})
    begun = playbook.start(slow, module="volume_backup")
    wait_for(lambda: any(image["status"] == "saving" for image in images(project, "killed")))
    kill_with_all_that_it_started(begun)
    assert run("backup_info", set="killed")["backups"] == []
    assert run("volume_backup", **task)["changed"]
    assert len(run("backup_info", set="killed")["backups"]) == 1
    assert [image["status"] for image in images(project, "killed")] == ["active"], "nothing is left of the first"


def test_a_draft_that_has_all_its_bytes_is_no_backup_yet(run, project, disk):
    task = {"set": "draft", "path": str(disk), "source_format": "qcow2"}
    made = run("volume_backup", **task)["image"]
    draft = "owner_specified.imageferry.export"
    headers = {"Content-Type": "application/openstack-images-v2.1-json-patch"}
    patch = [{"op": "add", "path": f"/{draft}", "value": "somebody's"}]
    connect(project).image.patch(f"/images/{made['id']}", json=patch, headers=headers).raise_for_status()
    assert run("backup_info", set="draft")["backups"] == []
    assert run("volume_backup", **task)["msg"] == "Backed up: it is new in the set draft."
