# SPDX-License-Identifier: GPL-3.0-or-later
"""volume_info, volume_extend and volume on files of this machine; under running guests, see test_guests.py."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import types
from concurrent import futures
from pathlib import Path

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._volume.file import FileVolume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import Provenance
from conftest import (
    HOST_PYTHON,
    MIB,
    Playbook,
    descendants,
    loop_device,
    qemu_img,
    qemu_io,
    small_folder,
    virtual_size,
    wait_for,
)


@pytest.fixture
def web(tmp_path):
    """An HTTP server of the files in a folder."""
    folder = tmp_path / "web"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield types.SimpleNamespace(folder=folder, url=f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


def write(path, image_format, pattern, offset="1M"):
    subprocess.run(["qemu-io", "-f", image_format, "-c", f"write -P {pattern} {offset} 64k", path], check=True,
                   capture_output=True)  # fmt: skip


def content(path, image_format, folder):
    """The disk in the image as raw bytes."""
    raw = folder / "content.raw"
    qemu_img("convert", "-f", image_format, "-O", "raw", path, raw)
    return raw.read_bytes()


def command_of(pid):
    """The words of a process's command; none when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
    except OSError:
        return []


def test_a_playbook_makes_looks_at_and_grows_a_disk(tmp_path):
    run = Playbook(tmp_path / "play", types.SimpleNamespace(clouds_yaml="/nowhere"), host_python=HOST_PYTHON)
    assert run(f"path: {tmp_path}/disk\nsize: 8MiB", "--diff", module="volume")["changed"]
    assert '+    "virtual_size": 8388608' in run.output
    assert run(f"path: {tmp_path}/disk", module="volume_info")["volume"]["virtual_size"] == 8 * MIB
    assert run(f"path: {tmp_path}/disk\nsize: 16MiB", module="volume_extend")["changed"]


# --- volume ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_a_blank_disk_is_made_once_and_grown(play, tmp_path, image_format):
    path = tmp_path / "disk"
    task = f"path: {path}\nformat: {image_format}\nsize: 16MiB\nmode: '0640'"

    predicted = play("volume", task, check=True)
    assert predicted["changed"] and not path.exists()
    made = play("volume", task)
    assert made["changed"] and made["diff"] == predicted["diff"]
    assert virtual_size(path, image_format) == 16 * MIB and not any(content(path, image_format, tmp_path))
    assert path.stat().st_mode & 0o777 == 0o640

    write(path, image_format, 7)
    assert not play("volume", task)["changed"]
    assert not play("volume", f"path: {path}\nformat: {image_format}\nsize: 1MiB")["changed"]
    larger = f"path: {path}\nformat: {image_format}\nsize: 32MiB"
    predicted, grown = play("volume", larger, check=True), play("volume", larger)
    assert grown["changed"] and grown["diff"] == predicted["diff"]
    assert virtual_size(path, image_format) == 32 * MIB and content(path, image_format, tmp_path)[MIB] == 7
    assert not play("volume", larger)["changed"]


def test_storage_is_reserved_when_asked_for(play, tmp_path):
    play("volume", f"path: {tmp_path}/raw\nsize: 8MiB\npreallocation: falloc")
    assert (tmp_path / "raw").stat().st_blocks * 512 >= 8 * MIB
    play("volume", f"path: {tmp_path}/qcow2\nformat: qcow2\ncluster_size: 1MiB\nsize: 8MiB\npreallocation: full")
    assert (tmp_path / "qcow2").stat().st_blocks * 512 >= 8 * MIB
    assert json.loads(qemu_img("info", "-f", "qcow2", "--output=json", tmp_path / "qcow2"))["cluster-size"] == MIB


def test_something_else_in_its_place_is_an_error(play, tmp_path):
    qemu_img("create", "-f", "qcow2", tmp_path / "disk", "8M")
    before = (tmp_path / "disk").read_bytes()
    assert play("volume", f"path: {tmp_path}/disk\nsize: 8MiB")["error"] == "volume_exists"
    assert play("volume", f"path: {tmp_path}/new")["error"] == "invalid_option"
    assert play("volume", f"path: {tmp_path}/new\nsize: 1MiB\ncluster_size: 64KiB")["error"] == "invalid_option"
    assert (tmp_path / "disk").read_bytes() == before and not (tmp_path / "new").exists()


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_clones_start_as_their_base_and_keep_it_from_harm(play, tmp_path, image_format):
    base, folder = tmp_path / "base", tmp_path / "elsewhere"
    folder.mkdir()
    play("volume", f"path: {base}\nformat: {image_format}\nsize: 8MiB")
    write(base, image_format, 7)
    before = base.read_bytes()
    task = f"path: {folder}/clone\nclone_of: {{path: {base}}}\nsize: 16MiB"

    predicted = play("volume", task, check=True)
    assert predicted["changed"] and not any(folder.iterdir())
    assert play("volume", task)["diff"] == predicted["diff"]
    assert not play("volume", task)["changed"]
    clone = folder / "clone"
    assert content(clone, "qcow2", tmp_path) == content(base, image_format, tmp_path).ljust(16 * MIB, b"\0")
    assert clone.stat().st_blocks * 512 < MIB

    info = play("volume_info", f"path: {clone}")["volume"]
    assert info["backing_chain"] == [
        {"path": str(base), "format": image_format, "exists": True, "virtual_size": 8 * MIB}
    ]
    assert play("volume_info", f"path: {base}")["volume"]["clones"] == [str(clone)]
    for module, change in (("volume", "state: absent"), ("volume_extend", "size: 32MiB")):
        refused = play(module, f"path: {base}\n{change}")
        assert refused["error"] == "has_clones" and refused["clones"] == [str(clone)]
    assert base.read_bytes() == before

    assert play("volume", f"path: {tmp_path}/other\nsize: 8MiB")["changed"]
    other = play("volume", f"path: {tmp_path}/other\nclone_of: {{path: {base}}}\nformat: qcow2")
    assert other["error"] == "volume_exists"
    assert play("volume", f"path: {clone}\nstate: absent")["changed"]
    assert play("volume", f"path: {base}\nstate: absent")["changed"] and not base.exists()


def test_what_cannot_be_cloned_is_not(play, tmp_path):
    task = f"path: {tmp_path}/clone\nclone_of: {{path: {tmp_path}/base}}"
    assert play("volume", task)["error"] == "volume_not_found"
    qemu_img("create", "-f", "qcow2", tmp_path / "base", "8M")
    guessed = play("volume", task)  # nobody says that it is a qcow2
    assert guessed["error"] == "volume_invalid" and "'clone_of.format: qcow2'" in guessed["msg"]
    named = f"path: {tmp_path}/clone\nclone_of: {{path: {tmp_path}/base, format: qcow2}}"
    assert play("volume", named + "\nsize: 1MiB")["error"] == "invalid_option"
    assert play("volume", named + "\nformat: raw")["error"] == "invalid_option"
    assert not (tmp_path / "clone").exists()
    assert play("volume", named)["changed"]


def test_a_removed_disk_can_be_wiped(play, tmp_path):
    path, witness = tmp_path / "disk", tmp_path / "witness"
    path.write_bytes(b"secret" * 100000)
    os.link(path, witness)
    task = f"path: {path}\nstate: absent\nwipe: true"
    assert play("volume", task, check=True)["changed"] and path.exists()
    with open(path, "rb"):
        assert play("volume", task)["error"] == "volume_in_use"
    assert witness.read_bytes().startswith(b"secret")
    assert play("volume", task)["changed"] and not path.exists()
    assert witness.stat().st_size == 600000 and not any(witness.read_bytes())
    assert not play("volume", task)["changed"]


def test_a_device_is_only_wiped_and_once(play, tmp_path):
    backing = tmp_path / "backing"
    backing.write_bytes(bytes(2 * MIB) + b"secret" + bytes(2 * MIB - 6))
    with loop_device(backing) as device:
        task = f"device: {device}\nstate: absent"
        for check in (True, False):
            refused = play("volume", task, check)
            assert refused["error"] == "volume_invalid" and "wipe: true" in refused["msg"], refused
        predicted = play("volume", f"{task}\nwipe: true", check=True)
        assert predicted["msg"].startswith("Would wipe") and b"secret" in backing.read_bytes()
        wiped = play("volume", f"{task}\nwipe: true")
        assert wiped["changed"] and wiped["diff"] == predicted["diff"] and backing.read_bytes() == bytes(4 * MIB)
        for check in (True, False):
            assert not play("volume", f"{task}\nwipe: true", check)["changed"]
        play("volume", f"device: {device}\nsize: 1MiB\nformat: qcow2")
        assert play("volume", f"{task}\nwipe: true")["changed"] and backing.read_bytes() == bytes(4 * MIB)


WANTED = Provenance("https://example.org/image", None, "sha512", "00ff", None, "raw")


@contextlib.contextmanager
def importing(path):
    """An import that has brought part of the file; it is given up at the end."""
    with FileVolume(str(path)) as volume, contextlib.suppress(KeyboardInterrupt), volume.staged(0, WANTED, True) as new:
        new.sink.write(bytearray(b"secret" * 100000), 600000, 0)
        yield path.parent / volume.partial
        raise KeyboardInterrupt


@pytest.mark.parametrize("exists", [False, True])
def test_what_an_import_left_that_was_given_up_is_removed_as_well(play, tmp_path, exists):
    disks = tmp_path / "disks"
    disks.mkdir()
    task = f"path: {disks}/disk\nstate: absent\nwipe: true"
    if exists:
        (disks / "disk").write_bytes(b"disk")
    with importing(disks / "other") as other, contextlib.ExitStack() as opened:
        left = []
        for name in ("disk.imageferry-source", "disk"):
            with importing(disks / name) as partial:
                refused = [play("volume", task, check)["error"] for check in (True, False)]
                assert refused == ["volume_in_use"] * 2
            left.append(opened.enter_context(open(partial, "rb")))
        predicted = play("volume", task, check=True)
        assert len(list(disks.iterdir())) == 3 + exists
        removed = play("volume", task)
        assert removed["changed"] and removed["diff"] == predicted["diff"]
        told = "an import that was given up had left {} and {}.".format(*(file.name for file in left))
        assert removed["msg"].endswith(told) and predicted["msg"].endswith(told), removed
        assert list(disks.iterdir()) == [other]
        assert [file.read() for file in left] == [bytes(600000)] * 2
        assert not play("volume", task)["changed"]


# --- volume_extend -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_a_disk_is_grown_to_at_least_the_size(play, tmp_path, image_format):
    path = tmp_path / "disk"
    qemu_img("create", "-f", image_format, path, "8M")
    write(path, image_format, 7)
    task = f"path: {path}\nformat: {image_format}\nsize: {16 * MIB - 100}"
    predicted, grown = play("volume_extend", task, check=True), play("volume_extend", task)
    assert grown["changed"] and grown["diff"] == predicted["diff"]
    assert (grown["before"]["virtual_size"], grown["after"]["virtual_size"]) == (8 * MIB, 16 * MIB)
    assert virtual_size(path, image_format) == 16 * MIB and content(path, image_format, tmp_path)[MIB] == 7
    assert not play("volume_extend", task)["changed"]
    smaller = play("volume_extend", f"path: {path}\nformat: {image_format}\nsize: 1MiB")
    assert not smaller["changed"] and "ever shrunk" in smaller["msg"]


def test_an_overlay_is_grown_without_its_base(play, tmp_path):
    base, overlay = tmp_path / "base", tmp_path / "overlay"
    qemu_img("create", "-f", "raw", base, "8M")
    qemu_img("create", "-f", "qcow2", "-b", "base", "-F", "raw", overlay)
    before = base.read_bytes()
    assert play("volume_extend", f"path: {overlay}\nformat: qcow2\nsize: 16MiB")["changed"]
    assert virtual_size(overlay, "qcow2") == 16 * MIB and base.read_bytes() == before
    base.rename(tmp_path / "gone")
    assert play("volume_extend", f"path: {overlay}\nformat: qcow2\nsize: 32MiB")["error"] == "unsafe_image"


def test_an_overlay_shorter_than_its_base_does_not_show_its_end(play, tmp_path):
    base, overlay = tmp_path / "base", tmp_path / "overlay"
    qemu_img("create", "-f", "raw", base, "8M")
    qemu_img("create", "-f", "qcow2", "-b", base, "-F", "raw", overlay, "4M")
    assert play("volume_extend", f"path: {overlay}\nformat: qcow2\nsize: 8MiB")["error"] == "unsupported_format"
    assert virtual_size(overlay, "qcow2") == 4 * MIB


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("size: +1GiB", "invalid_option"),
        ("size: 50%FREE", "invalid_option"),
        ("size: large", "invalid_option"),
        ("size: 1GiB", "volume_invalid"),  # only its own content says that it is a qcow2
        ("size: 1GiB\nformat: qcow2\nonly: volume", "invalid_option"),
    ],
)
def test_what_cannot_be_grown_is_left_alone(play, tmp_path, change, error):
    path = tmp_path / "disk"
    qemu_img("create", "-f", "qcow2", path, "8M")
    before = path.read_bytes()
    assert play("volume_extend", f"path: {path}\n{change}")["error"] == error
    assert path.read_bytes() == before
    assert play("volume_extend", f"path: {path}.not\nsize: 1GiB")["error"] == "volume_not_found"


@pytest.mark.parametrize(
    ("offset", "value", "error"),
    [
        (32, struct.pack(">I", 1), "unsupported_format"),  # encrypted
        (79, b"\x02", "image_damaged"),  # marked as corrupt
        (79, b"\x04", "unsafe_image"),  # an external data file
        (0, b"raw!", "format_mismatch"),
    ],
)
def test_a_qcow2_that_qemu_should_not_open_is_not_grown(play, tmp_path, offset, value, error):
    path = tmp_path / "disk"
    qemu_img("create", "-f", "qcow2", path, "8M")
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(value)
    before = path.read_bytes()
    assert play("volume_extend", f"path: {path}\nformat: qcow2\nsize: 16MiB")["error"] == error
    assert path.read_bytes() == before


@pytest.mark.parametrize("module", ["volume", "volume_extend", "glance_image_import"])
def test_a_disk_is_not_grown_while_an_import_has_it(play, web, tmp_path, module):
    image = (web.folder / "image").write_bytes(b"image" * 1000) and hashlib.sha256(b"image" * 1000).hexdigest()
    task = f"path: {tmp_path}/disk\nsize: 1MiB"
    if module == "glance_image_import":
        task += f"\nurl: {web.url}/image\nsource_format: raw\nchecksum: sha256:{image}"
        assert play(module, task)["changed"]
    else:
        assert play("volume", task)["changed"]
    with futures.ThreadPoolExecutor() as pool, FileVolume(str(tmp_path / "disk")) as disk:
        with disk.locked(0):
            growing = pool.submit(play, module, task.replace("1MiB", "8MiB"))
            time.sleep(1.5)
            assert disk.stat().size == MIB and not growing.done()
            disk.grow(4 * MIB)
        assert growing.result()["changed"] and disk.stat().size == 8 * MIB


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_an_import_grows_the_disk_that_holds_its_image_already(play, web, tmp_path, image_format):
    carry = functools.partial(play, "glance_image_import", python=sys.executable)  # which has requests
    image, path = web.folder / "image", tmp_path / "disk"
    qemu_img("create", "-f", image_format, image, "8M")
    write(image, image_format, 7)
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    task = f"url: {web.url}/image\nchecksum: sha256:{digest}\npath: {path}\nformat: {image_format}"
    assert carry(task)["changed"] and virtual_size(path, image_format) == 8 * MIB
    write(path, image_format, 9, "2M")

    larger = f"{task}\nsize: 16MiB"
    predicted = carry(larger, check=True)
    assert predicted["changed"] and "Would grow" in predicted["msg"] and virtual_size(path, image_format) == 8 * MIB
    grown = carry(larger)
    assert grown["changed"] and grown["msg"].startswith(f"Grown: {path} from 8.0 MiB to 16.0 MiB")
    assert grown["diff"] == predicted["diff"] and grown["volume"]["virtual_size"] == 16 * MIB
    sizes = [grown["diff"][when]["virtual_size"] for when in ("before", "after")]
    assert sizes == [8 * MIB, 16 * MIB] == [8 * MIB, virtual_size(path, image_format)]
    held = content(path, image_format, tmp_path)
    assert (held[MIB], held[2 * MIB], any(held[8 * MIB :])) == (7, 9, False)
    assert not carry(larger)["changed"] and not carry(task)["changed"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_conversion_ends_with_its_module_and_can_be_run_again(play, web, tmp_path, monkeypatch, number):
    carry = functools.partial(play, "glance_image_import", python=sys.executable)  # which has requests
    raw, image = tmp_path / "raw", web.folder / "image"
    raw.write_bytes(os.urandom(16 * MIB))
    qemu_img("convert", "-f", "raw", "-O", "vmdk", raw, image)
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    task = f"url: {web.url}/image\nsource_format: vmdk\nchecksum: sha256:{digest}\npath: {tmp_path}/disk\nformat: raw"
    slow = tmp_path / "slow" / "qemu-img"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\nverb=$1; shift; [ $verb = convert ] && verb="convert -r 1M"\n'
                    f'exec {shutil.which("qemu-img")} $verb "$@"\n')  # fmt: skip
    slow.chmod(0o755)
    with monkeypatch.context() as slowly, futures.ThreadPoolExecutor() as pool:
        slowly.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
        running = pool.submit(carry, task)
        (converting,) = wait_for(lambda: [pid for pid in descendants(os.getpid()) if "convert" in command_of(pid)])
        os.kill(int(Path(f"/proc/{converting}/stat").read_text().rpartition(")")[2].split()[1]), number)
        with pytest.raises(AssertionError):  # it says nothing
            running.result()
    wait_for(lambda: not command_of(converting), timeout=2)
    assert carry(f"{task}\nlock_timeout: 0")["changed"] and (tmp_path / "disk").read_bytes() == raw.read_bytes()


def test_an_iso_that_becomes_a_raw_disk_has_the_size_that_is_asked_for(play, web, tmp_path):
    (web.folder / "image").write_bytes(bytes(0x8000) + b"\1CD001".ljust(2048, b"\0"))
    task = f"url: {web.url}/image\nallow_unverified: true\nsource_format: iso\nformat: raw\npath: {tmp_path}/disk"
    made = play("glance_image_import", f"{task}\nsize: 1MiB", python=sys.executable)
    assert made["volume"]["virtual_size"] == (tmp_path / "disk").stat().st_size == MIB
    assert not play("glance_image_import", f"{task}\nsize: 1MiB")["changed"]


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_a_size_becomes_whole_sectors(play, web, tmp_path, image_format):
    qemu_img("create", "-f", image_format, web.folder / "image", "8M")
    task = f"url: {web.url}/image\nallow_unverified: true\npath: {tmp_path}/disk\nformat: {image_format}\nsize: 8388609"
    made = play("glance_image_import", task, python=sys.executable)
    assert made["volume"]["virtual_size"] == virtual_size(tmp_path / "disk", image_format) == 8 * MIB + 512
    assert not play("glance_image_import", task)["changed"]


def test_a_qcow2_that_qemu_does_not_grow_is_refused_before_it_comes(play, web, tmp_path):
    image = web.folder / "image"
    qemu_img("create", "-f", "qcow2", "-o", "compat=0.10", image, "8M")
    qemu_img("snapshot", "-c", "before", image)
    task = f"url: {web.url}/image\nallow_unverified: true\npath: {tmp_path}/disk\nformat: qcow2"
    refused = play("glance_image_import", f"{task}\nsize: 16MiB", python=sys.executable)
    assert refused["error"] == "unsupported_format" and not (tmp_path / "disk").exists(), refused
    assert play("glance_image_import", task, python=sys.executable)["changed"]


def test_no_room_for_parts_that_have_to_wait_is_told_apart_from_that_for_the_disk(play, web, tmp_path):
    image = web.folder / "image"
    qemu_img("create", "-f", "qcow2", "-o", "cluster_size=4k", image, "8M")
    qemu_io(image, "qcow2", "write -P 7 0 8M")
    qemu_img("resize", "-f", "qcow2", image, "100M")  # its L1 table moves behind all that it maps
    task = f"url: {web.url}/image\nallow_unverified: true\nsource_format: qcow2\nformat: raw\npath: {tmp_path}/disk"
    with small_folder(tmp_path / "small", "1m") as folder:
        refused = play("glance_image_import", f"{task}\nstaging_dir: {folder}", python=sys.executable)
    assert refused["error"] == "no_space" and not (tmp_path / "disk").exists(), refused
    assert f"in {folder}" in refused["msg"] and "'staging_dir'" in refused["msg"]


def test_a_converted_disk_is_judged_by_the_size_that_qemu_sees(play, web, tmp_path):
    """A VMDK's footer says another one than its header, and QEMU goes by the footer."""
    image, marker = web.folder / "image", struct.pack("<QII", 1, 0, 3).ljust(512, b"\0")
    qemu_img("create", "-f", "vmdk", "-o", "subformat=streamOptimized", image, "8M")
    content = bytearray(image.read_bytes())
    footer = bytearray(content[:512])
    footer[12:20] = struct.pack("<Q", 256 * MIB // 512)
    content[56:64] = b"\xff" * 8  # where its grains are, the footer says
    image.write_bytes(content + bytes(-len(content) % 512) + marker + footer + bytes(512))
    task = f"url: {web.url}/image\nsource_format: vmdk\nallow_unverified: true\npath: {tmp_path}/disk\nformat: raw"
    refused = play("glance_image_import", f"{task}\nmax_virtual_size: 64MiB", python=sys.executable)
    assert refused["error"] == "image_too_large" and not (tmp_path / "disk").exists(), refused
    assert play("glance_image_import", task, python=sys.executable)["volume"]["virtual_size"] == 256 * MIB


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_a_disk_that_is_adopted_is_grown_at_once(play, web, tmp_path, image_format):
    carry = functools.partial(play, "glance_image_import", python=sys.executable)
    image, path = web.folder / "image", tmp_path / "disk"
    qemu_img("create", "-f", image_format, image, "8M")
    write(image, image_format, 7)
    path.write_bytes(image.read_bytes())
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    task = f"url: {web.url}/image\nchecksum: sha256:{digest}\npath: {path}\nformat: {image_format}\nsize: 16MiB"
    predicted, adopted = carry(task, check=True), carry(task)
    assert adopted["msg"].startswith(f"Adopted: {path} ") and "from 8.0 MiB to 16.0 MiB" in adopted["msg"], adopted
    assert adopted["diff"] == predicted["diff"] and adopted["diff"]["after"]["hash_value"] == digest
    assert adopted["volume"]["virtual_size"] == virtual_size(path, image_format) == 16 * MIB
    assert content(path, image_format, tmp_path)[MIB] == 7 and not carry(task)["changed"]


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_only_the_zeros_of_a_raw_image_get_storage_as_it_comes(play, web, tmp_path, image_format):
    image, path = web.folder / "image", tmp_path / "disk"
    qemu_img("create", "-f", image_format, image, "8M")
    write(image, image_format, 0)
    task = f"url: {web.url}/image\nallow_unverified: true\npath: {path}\nformat: {image_format}\npreallocation: falloc"
    assert play("glance_image_import", task, python=sys.executable)["changed"]
    assert (path.stat().st_blocks * 512 >= path.stat().st_size) == (image_format == "raw")


def test_a_hash_that_was_not_seen_before_is_held_against_the_content(play, web, tmp_path):
    carry = functools.partial(play, "glance_image_import", python=sys.executable)
    image, path = web.folder / "image", tmp_path / "disk"
    image.write_bytes(b"old" * 100000)
    task = f"url: {web.url}/image\npath: {path}\nformat: raw"

    def verified(algorithm):
        return f"{task}\nchecksum: {algorithm}:{hashlib.new(algorithm, image.read_bytes()).hexdigest()}"

    assert carry(f"{task}\nallow_unverified: true")["changed"]
    for wrong in (f"{task}\nchecksum: sha256:{'0' * 64}", f"{task}\nchecksum: sha256:{'0' * 64}\nformat: qcow2"):
        refused = carry(wrong)
        assert refused["error"] == "volume_exists" and "of which no sha256 is known" in refused["msg"], refused
    assert carry(f"{task}\nchecksum: sha256:{'0' * 64}\noverwrite: different")["error"] == "checksum_mismatch"
    os.truncate(path, 400000)  # grown since
    for algorithm in ("sha256", "sha512"):
        assert carry(verified(algorithm))["msg"].startswith("Adopted")
        assert not carry(verified(algorithm))["changed"]
    assert not carry(f"{task}\nallow_unverified: true")["changed"] and path.stat().st_size == 400000

    image.write_bytes(b"new" * 100000)
    assert carry(verified("sha256"))["error"] == "volume_exists"
    replaced = carry(verified("sha256") + "\noverwrite: different")
    assert replaced["msg"].startswith("Replaced") and path.read_bytes() == image.read_bytes()


def test_the_hash_of_a_converted_image_cannot_be_held_against_the_disk(play, web, tmp_path):
    carry = functools.partial(play, "glance_image_import", python=sys.executable)
    image, path = web.folder / "image", tmp_path / "disk"
    qemu_img("create", "-f", "qcow2", image, "8M")
    task = f"url: {web.url}/image\nsource_format: qcow2\nformat: raw\npath: {path}"
    assert carry(f"{task}\nallow_unverified: true")["changed"]
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    assert carry(f"{task}\nchecksum: sha256:{digest}")["error"] == "volume_exists"
    assert carry(f"{task}\nchecksum: sha256:{digest}\noverwrite: different")["msg"].startswith("Replaced")
    assert not carry(f"{task}\nchecksum: sha256:{digest}")["changed"]


def test_a_hash_that_the_user_chose_will_do_and_one_that_nobody_knows_is_none(play, web, tmp_path):
    carry = functools.partial(play, "glance_image_import", python=sys.executable)
    (web.folder / "image").write_bytes(b"image")
    task = f"url: {web.url}/image\npath: {tmp_path}/disk\nformat: raw\noverwrite: always\nchecksum: "
    assert carry(f"{task}md5:{hashlib.md5(b'image').hexdigest()}")["changed"]
    assert carry(f"{task}md5:{'0' * 32}")["error"] == "checksum_mismatch"
    assert carry(f"{task}md7:{'0' * 32}")["error"] == "unverifiable"
    allowed = carry(f"{task}md7:{'0' * 32}\nallow_unverified: true")
    assert allowed["changed"] and allowed["volume"]["provenance"]["hash_algo"] is None


@pytest.mark.parametrize(
    ("options", "path", "error"),
    [
        ("format: raw", os.environ["PATH"], "unverifiable"),
        ("format: raw\nchecksum: md7:00000000", os.environ["PATH"], "unverifiable"),
        ("format: qcow2\nallow_unverified: true", "/nowhere", "missing_dependency"),
        ("format: qcow2\ncluster_size: 3000", os.environ["PATH"], "invalid_option"),
        ("format: qcow2\ncompat: '0.10'\ncompress: zstd", os.environ["PATH"], "invalid_option"),
        ("format: raw\nheadroom: a lot", os.environ["PATH"], "invalid_option"),
        ("format: raw\nsize: 16EiB", os.environ["PATH"], "invalid_option"),
        ("format: raw\nallow_unverified: true\ntimeout: 0", os.environ["PATH"], "invalid_option"),
        (
            "format: raw\nsource_format: qcow2\nallow_unverified: true\nstaging_dir: /nowhere",
            os.environ["PATH"],
            "invalid_option",
        ),
    ],
)
def test_check_mode_refuses_what_an_import_refuses(
    request, libraries, web, tmp_path, monkeypatch, options, path, error
):
    monkeypatch.setenv("PATH", path)
    play = request.getfixturevalue("play")
    (web.folder / "image").write_bytes(b"image")
    task = f"url: {web.url}/image\npath: {tmp_path}/disk\n{options}"
    for check in (True, False):
        assert play("glance_image_import", task, check, sys.executable).get("error") == error
    assert not list(tmp_path.glob("*disk*"))


# --- volume_info -------------------------------------------------------------------------------------------------


def test_what_is_not_there_is_no_error(play, tmp_path):
    info = play("volume_info", f"path: {tmp_path}/disk")
    assert not info["failed"] and not info["changed"] and info["volume"]["exists"] is False
    assert play("volume_info", f"path: {tmp_path}")["error"] == "volume_invalid"


def test_a_read_only_device_is_looked_at_and_not_changed(play, web, tmp_path):
    (tmp_path / "backing").write_bytes(b"x" * MIB)
    (web.folder / "image").write_bytes(b"y" * MIB)
    with loop_device(tmp_path / "backing", "--read-only") as device:
        info = play("volume_info", f"device: {device}")
        assert not info["failed"] and (info["volume"]["size"], info["volume"]["in_use"]) == (MIB, None)
        image = f"url: {web.url}/image\nsource_format: raw\nallow_unverified: true\noverwrite: always"
        changes = {"volume": "state: absent\nwipe: true", "volume_extend": "size: 2MiB", "glance_image_import": image}
        for module, change in changes.items():
            for check in (True, False):
                refused = play(module, f"device: {device}\n{change}", check=check)
                assert refused["error"] == "volume_invalid" and f"{device} is read-only" in refused["msg"]


def test_sizes_holes_and_users_are_told(play, tmp_path):
    path = tmp_path / "disk"
    with open(path, "wb") as file:
        file.truncate(16 * MIB)
        for position in (0, 8 * MIB):
            file.seek(position)
            file.write(b"x" * MIB)
    volume = play("volume_info", f"path: {path}")["volume"]
    assert volume["holes"] == {"data_bytes": 2 * MIB, "hole_bytes": 14 * MIB, "extents": 2}
    assert (volume["size"], volume["virtual_size"], volume["format"]) == (16 * MIB, 16 * MIB, "raw")
    assert volume["in_use"] is None and volume["format_source"] == "detected"
    with open(path, "rb"):
        assert "in use by process" in play("volume_info", f"path: {path}")["volume"]["in_use"]


def test_what_a_guest_wrote_into_its_disk_opens_nothing(play, tmp_path):
    secret, disk = tmp_path / "secret", tmp_path / "disk"
    qemu_img("create", "-f", "qcow2", secret, "8M")
    play("volume", f"path: {disk}\nsize: 8MiB")
    hostile = tmp_path / "hostile"
    qemu_img("create", "-f", "qcow2", "-b", secret, "-F", "qcow2", hostile)
    with open(disk, "r+b") as file:
        file.write(hostile.read_bytes())
    volume = play("volume_info", f"path: {disk}\ncheck: true")["volume"]
    assert (volume["format"], volume["format_source"]) == ("raw", "provenance")
    assert volume["backing_chain"] == [] and volume["health"]["checked"] is False
    assert play("volume_extend", f"path: {disk}\nsize: 16MiB")["changed"] and disk.stat().st_size == 16 * MIB

    secret.unlink()
    unknown = play("volume_info", f"path: {hostile}\ncheck: true")["volume"]
    assert unknown["format_source"] == "detected" and unknown["health"]["checked"], "who followed it would miss secret"
    assert unknown["backing_chain"] == [{"path": str(secret), "format": "qcow2", "exists": None, "virtual_size": None}]


def test_damage_is_found(play, tmp_path):
    path = tmp_path / "disk"
    qemu_img("create", "-f", "qcow2", path, "8M")
    write(path, "qcow2", 7)
    task = f"path: {path}\nformat: qcow2\ncheck: true"
    assert play("volume_info", task)["volume"]["health"]["corruptions"] == 0
    with open(path, "r+b") as file:
        table = struct.unpack(">Q", os.pread(file.fileno(), 8, 48))[0]
        block = struct.unpack(">Q", os.pread(file.fileno(), 8, table))[0]
        os.pwrite(file.fileno(), bytes(64), block)  # refcounts of clusters that are in use
    assert play("volume_info", task)["volume"]["health"]["corruptions"] > 0
    with open(path, "rb"):
        assert play("volume_info", task)["volume"]["health"]["checked"] is False


# --- host_volumes_info -------------------------------------------------------------------------------------------


def test_what_was_brought_to_a_host_is_listed(play, tmp_path, web):
    (web.folder / "image").write_bytes(b"image" * 1000)
    folder = tmp_path / "disks"
    folder.mkdir()
    sha256 = hashlib.sha256(b"image" * 1000).hexdigest()
    imported = f"url: {web.url}/image\nsource_format: raw\nchecksum: sha256:{sha256}\npath: {folder}/imported"
    assert play("glance_image_import", imported)["changed"]
    (folder / "adopted").write_bytes(b"image" * 1000)
    assert play("glance_image_import", imported.replace("/imported", "/adopted"))["msg"].startswith("Adopted")
    assert play("volume", f"path: {folder}/blank\nsize: 1MiB")["changed"]
    assert play("volume", f"path: {folder}/clone\nclone_of: {{path: {folder}/imported}}")["changed"]
    (folder / "stranger").write_bytes(b"x")
    (folder / ".begun.imageferry-partial").write_bytes(b"x")
    (folder / ".given-up.imageferry-partial").touch()

    listed = play("host_volumes_info", f"folders: [{folder}, {folder}/nowhere]\nvgs: []")["volumes"]
    volumes = {os.path.basename(volume["path"]): volume for volume in listed if volume["path"].startswith(str(folder))}
    assert list(volumes) == ["adopted", "begun", "blank", "clone", "imported"]
    assert [volume["imported"] for volume in volumes.values()] == [False, False, False, False, True]
    assert [volume["unfinished"] for volume in volumes.values()] == [False, True, False, False, False]
    assert [volumes[name]["provenance"]["adopted"] for name in ("adopted", "imported")] == [True, False]
    (tmp_path / "other").symlink_to(folder)
    fewer = play("host_volumes_info", f"folders: [{folder}]\nvgs: []\nexclude: [{tmp_path}/other/imported]")["volumes"]
    assert f"{folder}/imported" not in [volume["path"] for volume in fewer] and len(fewer) == len(listed) - 1
    held = volumes["imported"]
    assert held["provenance"]["hash_value"] == sha256 and held["virtual_size"] == 5000
    assert held["clones"] == [f"{folder}/clone"] and volumes["clone"]["format"] == "qcow2"


def test_only_images_are_replaced_where_only_those_may_be(play, tmp_path, web):
    for name in ("old", "new"):
        (web.folder / name).write_bytes(name.encode() * 1000)
    path = tmp_path / "disk"
    task = "url: {url}/{name}\nsource_format: raw\nallow_unverified: true\npath: {path}\noverwrite: imported"
    asked = {name: task.format(url=web.url, name=name, path=path) for name in ("old", "new")}
    for name in ("old", "new"):
        assert play("glance_image_import", asked[name], check=True)["changed"]
        assert play("glance_image_import", asked[name])["changed"] and path.read_bytes().startswith(name.encode())
    path.unlink()
    path.write_bytes(b"something else")
    assert play("glance_image_import", asked["new"])["error"] == "volume_exists"
    path.unlink()
    play("volume", f"path: {path}\nsize: 1MiB")
    refused = play("glance_image_import", asked["new"])
    assert refused["error"] == "volume_exists" and "holds a disk that was made blank" in refused["msg"]
