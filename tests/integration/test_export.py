# SPDX-License-Identifier: GPL-3.0-or-later
"""glance_image_export from this machine's own disks, to a real Glance; those of running guests, see test_guests.py."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sqlite3
import time
from pathlib import Path

import pytest
import yaml
from ansible_collections.imageferry.glance.plugins.module_utils._errors import ImageConflict
from ansible_collections.imageferry.glance.plugins.plugin_utils import _record
from ansible_collections.imageferry.glance.plugins.plugin_utils._cloud import Cloud
from conftest import (
    HOST_PYTHON,
    MIB,
    Playbook,
    connect,
    download,
    kill_with_all_that_it_started,
    listed,
    loop_device,
    qemu_img,
    qemu_io,
    record,
    same_disk,
    small_folder,
    wait_for,
)

CONTENTS = Path("/var/lib/imageferry/contents")


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(MIB))
    return path


def identities(glance, name):
    return sorted(image["id"] for image in listed(glance, name))


@pytest.fixture
def chain(tmp_path):
    """Three images over one another, with holes, and with zeros over data."""
    base, middle, top = (tmp_path / name for name in ("base", "middle", "top"))
    qemu_img("create", "-f", "raw", base, "32M")
    qemu_io(base, "raw", "write -P 1 1M 2M", "write -P 2 30M 1M")
    qemu_img("create", "-f", "qcow2", "-b", base, "-F", "raw", middle, "48M")
    qemu_io(middle, "qcow2", "write -P 3 2M 2M", "write -P 4 40M 64k")
    qemu_img("create", "-f", "qcow2", "-b", middle, "-F", "qcow2", top)
    qemu_io(top, "qcow2", "write -z 1M 512k", "write -P 5 47M 1M")
    return top


@pytest.mark.parametrize(
    ("options", "image_format"),
    [("format: raw", "raw"), ("format: keep", "qcow2"), ("{format: qcow2, compress: zlib}", "qcow2"),
     ("{compress: zstd, cluster_size: 1MiB}", "qcow2"), ("compat: '0.10'", "qcow2")],
)  # fmt: skip
def test_a_chain_becomes_one_image(export, glance, chain, tmp_path, options, image_format):
    name = f"chain {options}"
    task = yaml.safe_dump({"path": str(chain), "source_format": "qcow2", "name": name, **yaml.safe_load(
        options if options.startswith("{") else f"{{{options}}}")})  # fmt: skip
    predicted = export(task, "--check", "--diff")
    assert predicted["changed"] and not listed(glance, name), predicted
    made = export(task, "--diff")
    assert made["changed"] and made["diff"] == predicted["diff"], made
    (image,) = listed(glance, name)
    stored = record(glance, image)
    assert stored["status"] == "active" and not stored["os_hidden"] and stored["disk_format"] == image_format
    assert stored["min_disk"] == 0 and "owner_specified.imageferry.export" not in stored
    assert made["transfer"]["bytes"] == stored["size"]
    assert ("compress" in options) == (0 < made["transfer"]["staged_bytes"] < stored["size"])
    copy = download(glance, stored, tmp_path / "copy")
    assert same_disk(chain, "qcow2", copy, image_format)
    if "0.10" in options:
        assert json.loads(qemu_img("info", "--output=json", copy))["format-specific"]["data"]["compat"] == "0.10"

    again = export(task)
    assert not again["changed"] and "transfer" not in again and len(listed(glance, name)) == 1


def test_a_chain_is_exported_down_to_its_base(export, glance, chain, tmp_path):
    task = f"path: {chain}\nsource_format: qcow2\nname: part\nformat: raw\non_existing: new"
    parts = {}
    for base in ("middle", "base"):
        made = export(f"{task}\nbase: {tmp_path / base}")
        assert made["changed"], made
        parts[base] = download(glance, record(glance, made["image"]), tmp_path / f"above-{base}").read_bytes()
    top = bytes(47 * MIB) + b"\5" * MIB
    middle = bytes(2 * MIB) + b"\3" * 2 * MIB + bytes(36 * MIB) + b"\4" * 65536
    assert parts["middle"] == top and parts["base"] == middle + top[len(middle) :]
    assert not export(f"{task}\nbase: {tmp_path / 'middle'}\nflatten: false", "--check")["changed"]
    assert export(task, "--check")["changed"], "the whole is another content"
    refused = export(f"{task}\nbase: {tmp_path}/other")
    assert refused["error"] == "invalid_option" and str(tmp_path / "middle") in refused["msg"]


def test_the_content_decides_not_the_format(export, glance, tmp_path):
    disk, other = tmp_path / "disk.raw", tmp_path / "other.qcow2"
    disk.write_bytes(os.urandom(MIB) + bytes(3 * MIB) + os.urandom(MIB))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", disk, other)
    first = export(f"path: {disk}\nname: golden")
    assert first["changed"] and first["transfer"]["zero_bytes"] == 3 * MIB
    same = export(f"path: {other}\nsource_format: qcow2\nname: golden\nformat: qcow2\ntags: [blue]")
    assert same["changed"] and "transfer" not in same and "tags" in same["msg"]
    assert record(glance, first["image"])["tags"] == ["blue"]

    qemu_io(other, "qcow2", "write -P 9 2M 64k")
    refused = export(f"path: {other}\nsource_format: qcow2\nname: golden\non_existing: fail")
    assert refused["error"] == "image_exists"
    predicted = export(f"path: {other}\nsource_format: qcow2\nname: golden", "--check")
    replaced = export(f"path: {other}\nsource_format: qcow2\nname: golden")
    assert predicted["changed"] and replaced["changed"] and predicted["diff"] == replaced["diff"]
    (image,) = listed(glance, "golden")
    assert image["id"] == replaced["image"]["id"] != first["image"]["id"]

    disk.write_bytes(os.urandom(2 * MIB))
    assert export(f"path: {disk}\nname: golden\non_existing: new")["changed"]
    assert len(listed(glance, "golden")) == 2


def test_what_does_not_fit_into_spool_dir_is_compressed_twice(export, glance, tmp_path):
    disk = tmp_path / "disk"
    disk.write_bytes(os.urandom(6 * MIB))
    with small_folder(tmp_path / "small", "4m") as folder:
        made = export(f"path: {disk}\nname: twice\nformat: qcow2\ncompress: zlib\nspool_dir: {folder}")
    assert made["changed"] and made["transfer"]["staged_bytes"] == 0, made
    (image,) = listed(glance, "twice")
    assert same_disk(disk, "raw", download(glance, record(glance, image), tmp_path / "copy"), "qcow2")


def test_a_snapshot_in_a_qcow2_is_exported(export, glance, tmp_path):
    disk = tmp_path / "disk"
    qemu_img("create", "-f", "qcow2", disk, "8M")
    qemu_io(disk, "qcow2", "write -P 1 0 1M")
    qemu_img("snapshot", "-c", "before", disk)
    qemu_io(disk, "qcow2", "write -P 2 0 2M")
    task = f"path: {disk}\nsource_format: qcow2\nname: then\nformat: raw\nsnapshot: before"
    assert export(task)["changed"]
    (image,) = listed(glance, "then")
    copy = download(glance, record(glance, image), tmp_path / "copy")
    assert copy.read_bytes() == b"\1" * MIB + bytes(7 * MIB)
    assert not export(task)["changed"]
    unknown = export(task.replace("before", "never"))
    assert unknown["error"] == "invalid_option" and "before" in unknown["msg"]


def test_what_is_imported_comes_back_as_it_was(export, glance, project, tmp_path):
    disk = tmp_path / "disk"
    qemu_img("create", "-f", "qcow2", disk, "16M")
    qemu_io(disk, "qcow2", "write -P 7 3M 1M")
    described = {"tags": ["golden"], "properties": {"os_distro": "debian", "hw_disk_bus": "virtio"}, "min_ram": 256}
    assert export(yaml.safe_dump({"path": str(disk), "source_format": "qcow2", "name": "origin", **described}))[
        "changed"
    ]
    back = tmp_path / "back"
    imported = export(f"image: origin\npath: {back}\nformat: raw", module="glance_image_import")
    assert imported["changed"], imported
    same = export(f"path: {back}\nname: origin\nformat: qcow2")
    assert not same["changed"], same


def test_disk_and_metadata_come_back_through_every_pair_of_formats(export, glance, tmp_path):
    raw, qcow2 = tmp_path / "raw", tmp_path / "qcow2"
    raw.write_bytes(bytes(MIB) + os.urandom(MIB) + bytes(2 * MIB))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, qcow2)
    about = {"tags": ["golden"], "os_distro": "debian", "hw_disk_bus": "virtio", "min_ram": 256, "min_disk": 1}
    for path in (raw, qcow2):
        origin = {"name": f"from {path.name}", "disk_format": path.name, "container_format": "bare", **about}
        image = glance.post("/images", json=origin).json()
        headers = {"Content-Type": "application/octet-stream"}
        glance.put(f"/images/{image['id']}/file", data=path.read_bytes(), headers=headers).raise_for_status()
    formats = ("raw", "qcow2")
    place = f"path: '{tmp_path}/{{{{ item[0] }}}}-{{{{ item[1] }}}}'"
    there = f"{place}\nimage: 'from {{{{ item[0] }}}}'\nformat: '{{{{ item[1] }}}}'"
    done = export(there, module="glance_image_import", loop=list(itertools.product(formats, repeat=2)))
    assert done["changed"] and not done.get("failed"), done
    back = f"{place}\nname: '{{{{ item | join(\" \") }}}}'\nformat: '{{{{ item[2] }}}}'"
    routes = list(itertools.product(formats, repeat=3))
    done = export(back, loop=routes)
    assert done["changed"] and not done.get("failed"), done
    for route in routes:
        (image,) = listed(glance, " ".join(route))
        stored = record(glance, image)
        assert {name: stored[name] for name in about} == about, route
        assert same_disk(raw, "raw", download(glance, stored, tmp_path / "copy"), route[2]), route


def test_a_raw_disk_that_looks_like_another_goes_as_qcow2(export, glance, tmp_path):
    base, disk = tmp_path / "base", tmp_path / "disk"
    base.write_bytes(os.urandom(MIB))
    qemu_img("create", "-f", "qcow2", "-b", base, "-F", "raw", disk)
    task = f"path: {disk}\nsource_format: raw\nname: looks"
    refused = export(task)
    assert refused["error"] == "format_mismatch" and "'format: qcow2'" in refused["msg"], refused
    assert not listed(glance, "looks")
    assert export(f"{task}\nformat: qcow2")["changed"]
    (image,) = listed(glance, "looks")
    assert same_disk(disk, "raw", download(glance, record(glance, image), tmp_path / "copy"), "qcow2")


def test_an_image_is_in_the_stores_that_are_asked_for(export, glance, project, disk):
    task = f"path: {disk}\nname: stored\nstores: "
    unknown = export(f"{task} [nowhere]")
    assert unknown["error"] == "invalid_option" and "store1, store2" in unknown["msg"], unknown
    refused = export(f"{task} [store2, store1]")
    assert refused["error"] == "access_denied" and not listed(glance, "stored"), "only administrators may copy"
    admin = connect(project, "admin").image
    try:
        made = export(f"{task} [store2]\ncloud: admin")
        assert record(admin, made["image"])["stores"] == "store2"
        both = f"{task} [store1, store2]\ncloud: admin"
        predicted, copied = export(both, "--check"), export(both)
        assert copied["changed"] and predicted["diff"] == copied["diff"] and "copied to store1" in copied["msg"], copied
        disk.write_bytes(os.urandom(MIB))
        new = export(both)
        for result in (copied, new):
            assert sorted(result["image"]["stores"].split(",")) == ["store1", "store2"], result
        assert not export(both)["changed"]
    finally:
        for image in listed(admin, "stored"):
            admin.delete_image(image["id"])


@pytest.mark.parametrize(
    ("task", "error"),
    [
        ("path: /nowhere/disk", "volume_invalid"),
        ("{path: DISK, compress: zstd}", "invalid_option"),
        ("{path: TOP, flatten: false, source_format: qcow2}", "invalid_option"),
        ("{path: TOP}", "volume_invalid"),
        ("{domain: no-such-guest, disk: vda}", "guest_not_found"),
        ("{path: DISK, members: [p], visibility: private}", "invalid_option"),
        ("{path: DISK, properties: {os_glance_x: '1'}}", "invalid_option"),
        ("{path: DISK, spool_dir: /nowhere, format: qcow2, compress: zlib}", "invalid_option"),
    ],
)
def test_what_cannot_be_exported_leaves_nothing(export, glance, chain, tmp_path, task, error):
    disk = tmp_path / "disk"
    disk.write_bytes(os.urandom(MIB))
    named = yaml.safe_load(task.replace("DISK", str(disk)).replace("TOP", str(chain)))
    refused = export(yaml.safe_dump({"name": "refused", **named}))
    assert refused["error"] == error, refused
    assert not listed(glance, "refused")


def test_what_is_to_be_done_is_said_in_words_of_an_export(export, chain, tmp_path):
    assert "Set 'source_format: qcow2' if it is, or 'source_format: raw'." in export(f"path: {chain}\nname: x")["msg"]
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(MIB)
        refused = export(f"path: {disk}\nname: x")
    assert refused["error"] == "volume_in_use" and refused["msg"].endswith(". Stop what uses it first."), refused


def test_a_protected_image_is_not_replaced(export, glance, tmp_path):
    disk = tmp_path / "disk"
    disk.write_bytes(os.urandom(MIB))
    first = export(f"path: {disk}\nname: kept\nprotected: true")
    disk.write_bytes(os.urandom(MIB))
    refused = export(f"path: {disk}\nname: kept")
    assert "unprotect" not in refused["msg"] and "'on_existing: new'" in refused["msg"]
    assert refused["error"] == "image_protected" and [image["id"] for image in listed(glance, "kept")] == [
        first["image"]["id"]
    ]
    glance.update_image(first["image"]["id"], is_protected=False)


@pytest.mark.parametrize("kind", ["path", "device"])
def test_a_disk_that_is_written_to_is_no_image(export, glance, tmp_path, kind):
    backing = tmp_path / "disk"
    backing.write_bytes(os.urandom(4 * MIB))
    with contextlib.nullcontext(backing) if kind == "path" else loop_device(backing) as disk:
        run = export.start(f"{kind}: {disk}\nsource_format: raw\nname: torn-{kind}\nrate_limit: 1MiB")
        wait_for(lambda: any(image["status"] == "saving" for image in listed(glance, f"torn-{kind}")))
        with disk.open("r+b") as file:
            file.write(b"changed")
        assert export.finish(run)["error"] == "source_changed"
        assert not listed(glance, f"torn-{kind}")
        assert export(f"{kind}: {disk}\nsource_format: raw\nname: torn-{kind}")["changed"]


def test_a_killed_export_is_cleaned_up_by_the_next(export, glance, tmp_path):
    disk, other = tmp_path / "disk", tmp_path / "other"
    for path in (disk, other):
        path.write_bytes(os.urandom(4 * MIB))
    foreign = glance.post("/images", json={"name": "killed", "disk_format": "raw", "container_format": "bare"}).json()
    run = export.start(f"path: {disk}\nname: killed\nrate_limit: 1MiB")
    wait_for(lambda: any(image["status"] == "saving" for image in listed(glance, "killed")))
    kill_with_all_that_it_started(run)
    assert len(listed(glance, "killed")) == 2
    wait_for(lambda: all(image["status"] != "saving" for image in listed(glance, "killed")))
    assert export(f"path: {other}\nname: killed\non_existing: new")["changed"]
    assert len(listed(glance, "killed")) == 3, "another disk's leftovers are not this one's"
    assert export(f"path: {disk}\nname: killed\non_existing: new")["changed"]
    assert sorted(image["status"] for image in listed(glance, "killed")) == ["active", "active", "queued"]
    assert foreign["id"] in [image["id"] for image in listed(glance, "killed")]


def test_an_unchanged_file_is_not_read_again(export, tmp_path):
    disk = tmp_path / "disk"
    disk.write_bytes(os.urandom(MIB))
    os.utime(disk, (time.time() - 60, time.time() - 60))
    assert export(f"path: {disk}\nname: remembered")["changed"]
    assert not export(f"path: {disk}\nname: remembered")["changed"]
    (kept,) = (path for path in CONTENTS.iterdir() if str(disk) in path.read_text())
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "identity": "1:another"}))
    assert export(f"path: {disk}\nname: remembered", "--check")["changed"], "what is kept is believed"
    assert not export(f"path: {disk}\nname: remembered\nreread: true", "--check")["changed"]


def test_what_no_hash_is_known_of_is_sent_again(export, glance, project, disk):
    """Glance's settings have changed since its newest image; as none of its requests can make it say so."""
    before = export(f"path: {disk}\nname: other hash")["image"]["id"]
    with sqlite3.connect(project.glance.folder / "glance.db") as database:
        database.execute("UPDATE images SET os_hash_algo = 'sha256' WHERE id = ?", [before])
    disk.write_bytes(os.urandom(MIB))
    sent = len([line for line in project.glance_access_log.read_text().splitlines() if '"PUT ' in line])
    made = export(f"path: {disk}\nname: other hash")
    assert made["changed"] and identities(glance, "other hash") == [made["image"]["id"]], made
    lines = wait_for(lambda: project.glance_access_log.read_text().splitlines())
    assert len([line for line in lines if '"PUT ' in line]) == sent + 2


def test_a_replacement_that_was_broken_off_is_ended_by_the_next_run(export, glance, disk):
    task = f"path: {disk}\nname: half replaced"
    first = export(task)["image"]
    disk.write_bytes(os.urandom(MIB))
    second = export(f"{task}\non_existing: new")["image"]
    predicted = export(task, "--check")
    assert identities(glance, "half replaced") == sorted([first["id"], second["id"]])
    done = export(task)
    assert predicted["changed"] and done["changed"] and predicted["diff"] == done["diff"] and first["id"] in done["msg"]
    assert identities(glance, "half replaced") == [second["id"]] and not export(task)["changed"]


def test_a_retired_image_is_not_the_one_that_holds_the_content(export, glance, project, disk, monkeypatch):
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(project.clouds_yaml))

    class InUse(Cloud):
        def delete(self, path, **options):
            raise ImageConflict("A volume is a clone of it.")

    content, task = disk.read_bytes(), f"path: {disk}\nname: retired"
    old = export(task)["image"]
    disk.write_bytes(os.urandom(MIB))
    export(f"{task}\non_existing: new")
    cloud = InUse({"cloud": "demo", "interface": "public"})
    assert _record.retire(cloud, record(glance, old)) == "is still in use, and hidden"
    assert not export(task)["changed"], "the retired one is left alone"
    disk.write_bytes(content)
    back = export(task)
    assert back["changed"] and not record(glance, back["image"])["os_hidden"], back
    assert identities(glance, "retired") == [back["image"]["id"]]


def test_an_id_is_for_the_first_image(export, glance, disk):
    chosen = "5d1c4f0c-2f0b-4b0e-9d0a-6a3c1b1f7e11"
    task = f"path: {disk}\nname: chosen\nid: {chosen}"
    assert export(task)["image"]["id"] == chosen
    disk.write_bytes(os.urandom(MIB))
    second = export(task)
    assert second["changed"] and identities(glance, "chosen") == [second["image"]["id"]] != [chosen]
    glance.delete_image(second["image"]["id"])
    burnt = export(task)
    assert burnt["error"] == "image_conflict" and "leave 'id' out" in burnt["msg"], burnt


def test_a_leftover_goes_also_when_nothing_is_to_be_sent(export, glance, disk):
    content, task = disk.read_bytes(), f"path: {disk}\nname: left"
    made = export(task)["image"]
    disk.write_bytes(os.urandom(4 * MIB))
    run = export.start(f"{task}\nrate_limit: 1MiB")
    wait_for(lambda: any(image["status"] == "saving" for image in listed(glance, "left")))
    kill_with_all_that_it_started(run)
    wait_for(lambda: all(image["status"] != "saving" for image in listed(glance, "left")))
    doomed = export("name: left\nstate: absent", "--check", module="glance_image")
    assert [image["id"] for image in doomed["images"]] == [made["id"]], "a draft is no image yet"
    disk.write_bytes(content)
    export(task, "--check")
    assert len(listed(glance, "left")) == 2
    assert not export(task)["changed"] and identities(glance, "left") == [made["id"]]


def test_two_exports_of_one_disk_do_not_disturb_each_other(export, glance, project, tmp_path, disk):
    disk.write_bytes(os.urandom(2 * MIB))
    task = f"path: {disk}\nname: twice\nrate_limit: 1MiB"
    other = Playbook(tmp_path / "other", project, host_python=HOST_PYTHON)
    runs = export.start(task), other.start(f"cloud: demo\n{task}", module="glance_image_export")
    done = export.finish(runs[0]), other.finish(runs[1])
    assert {result.get("error") for result in done} <= {None, "volume_in_use"}, done
    assert any(result["changed"] for result in done) and len(listed(glance, "twice")) == 1


def test_a_host_that_looks_alike_leaves_the_drafts_of_another(export, glance, disk):
    """As clones do that have the same machine-id."""
    disk.write_bytes(os.urandom(4 * MIB))
    run = export.start(f"path: {disk}\nname: alike\nrate_limit: 1MiB")
    wait_for(lambda: any(image["status"] == "saving" for image in listed(glance, "alike")))
    kill_with_all_that_it_started(run)
    done = export(f"path: {disk}\nname: its clone", hosts=2, when="inventory_hostname == 'host1'")
    assert done["host1"]["changed"] and len(listed(glance, "alike")) == 1, done


def test_a_disk_is_remembered_as_what_it_was_read_as(export, tmp_path):
    disk = tmp_path / "disk"
    qemu_img("create", "-f", "qcow2", disk, "1M")
    os.utime(disk, (time.time() - 60, time.time() - 60))
    assert export(f"path: {disk}\nname: as\nsource_format: qcow2")["changed"]
    assert export(f"path: {disk}\nname: as\nsource_format: raw", "--check")["changed"]
