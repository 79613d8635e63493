# SPDX-License-Identifier: GPL-3.0-or-later
"""glance_image_export from this machine's own disks, to a real Glance; those of running guests, see test_guests.py."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

import pytest
import yaml
from conftest import (
    MIB,
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
    assert export(f"path: {back}\nname: round trip")["changed"]
    (image,) = listed(glance, "round trip")
    stored = record(glance, image)
    assert (stored["tags"], stored["os_distro"], stored["hw_disk_bus"], stored["min_ram"]) == (
        ["golden"], "debian", "virtio", 256)  # fmt: skip
    assert same_disk(disk, "qcow2", download(glance, stored, tmp_path / "copy"), "raw")


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


def test_a_disk_is_remembered_as_what_it_was_read_as(export, tmp_path):
    disk = tmp_path / "disk"
    qemu_img("create", "-f", "qcow2", disk, "1M")
    os.utime(disk, (time.time() - 60, time.time() - 60))
    assert export(f"path: {disk}\nname: as\nsource_format: qcow2")["changed"]
    assert export(f"path: {disk}\nname: as\nsource_format: raw", "--check")["changed"]
