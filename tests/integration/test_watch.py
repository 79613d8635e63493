# SPDX-License-Identifier: GPL-3.0-or-later
"""Transfers that take a while: progress, a token that expires, secrets, and who goes away meanwhile."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import MIB, Playbook, running_cloud, through_proxy, upload, wait_for
from faulty_proxy import GOOD, Fault, FaultyProxy

LINE = re.compile(r"^host0: disk-raw: \d+ % of 64\.0 MiB, \S+ [KMG]?i?B/s(, \d+ s left)?$", re.MULTILINE)
LOOKS = [GOOD] * 5  # the controller asks for versions, finds the image, and reads its header


@pytest.fixture(scope="module")
def short_cloud(tmp_path_factory, disk_files):
    """A cloud whose tokens live for six seconds, with the raw disk in it."""
    with running_cloud(tmp_path_factory.mktemp("short"), token_lifetime=6) as cloud:
        upload(cloud, "disk-raw", disk_files["disk-raw"], "raw")
        yield cloud


@pytest.fixture
def slow(import_image, cloud):
    """Starts an import that halts for a while in the middle."""
    proxy = FaultyProxy(cloud.image_url)

    def start(path, stall, *arguments, options="", cut=32 * MIB, **keywords):
        proxy.programme(*LOOKS, Fault(cut=cut, stall=stall))
        task = f"{through_proxy(cloud, proxy)}\nimage: disk-raw\npath: {path}\n{options}"
        return import_image.start(task, *arguments, **keywords)

    yield start
    proxy.stop()


def partial(path):
    return path.with_name(f".{path.name}.imageferry-partial")


def has_begun(path):
    return partial(path).exists() and partial(path).stat().st_size > 0


def same(path, other):
    return subprocess.run(["cmp", path, other], check=False).returncode == 0


def test_progress_is_shown_in_lines(slow, import_image, images, tmp_path):
    result = import_image.finish(slow(tmp_path / "volume", stall=7))
    assert result["changed"] and result["transfer"]["reconnects"] == 1 and same(images["disk-raw"], tmp_path / "volume")
    assert 2 <= len(LINE.findall(import_image.output)) <= 7, import_image.output
    assert "host0: disk-raw: 50 % of 64.0 MiB" in import_image.output


def test_progress_can_be_turned_off(slow, import_image, tmp_path):
    assert import_image.finish(slow(tmp_path / "volume", stall=2, options="progress: false"))["changed"]
    assert "disk-raw: " not in import_image.output


def test_nothing_is_left_behind(slow, import_image, tmp_path):
    import_image.finish(slow(tmp_path / "volume", stall=0))
    assert os.listdir(import_image.home / ".ansible_async") == []
    # Ansible's own wrapper looks every five seconds whether its job has ended.
    wait_for(lambda: not os.listdir(import_image.home / ".ansible" / "tmp"))
    assert sorted(os.listdir(tmp_path)) == ["play", "volume"]


def test_a_token_that_expires_is_renewed_while_bytes_move(short_cloud, disk_files, tmp_path):
    proxy = FaultyProxy(short_cloud.image_url)
    proxy.programme(*LOOKS, Fault(cut=24 * MIB, stall=7), Fault(), Fault(cut=24 * MIB, stall=7))
    run = Playbook(tmp_path / "play", short_cloud)
    result = run(f"{through_proxy(short_cloud, proxy)}\nimage: disk-raw\npath: {tmp_path}/volume")
    proxy.stop()
    assert result["changed"] and same(disk_files["disk-raw"], tmp_path / "volume")
    assert result["transfer"]["restarts"] == 0
    bodies = [seen for seen in proxy.gets if seen.path.endswith("/file")][1:]
    continued = [seen for seen in bodies if seen.headers.get("range")]
    assert continued and continued[-1].headers["x-auth-token"] != bodies[0].headers["x-auth-token"]


def test_a_token_that_cannot_be_renewed_is_said(short_cloud, tmp_path):
    proxy = FaultyProxy(short_cloud.image_url)
    proxy.programme(*LOOKS, Fault(cut=24 * MIB, stall=7))
    run = Playbook(tmp_path / "play", short_cloud)
    started = run.start(f"{through_proxy(short_cloud, proxy)}\nimage: disk-raw\npath: {tmp_path}/volume")
    wait_for(lambda: has_begun(tmp_path / "volume"))
    short_cloud.keystone.stop()
    try:
        result = run.finish(started)
    finally:
        short_cloud.start()
        proxy.stop()
    assert result["failed"] and result["error"] == "token_expired", result
    assert run(f"cloud: demo\nimage: disk-raw\npath: {tmp_path}/volume")["transfer"]["resumed_from"] > 0, run.output


@pytest.mark.parametrize("poll", [1, 0])
def test_the_users_own_async_works(slow, import_image, images, tmp_path, poll):
    result = import_image.finish(slow(tmp_path / "volume", 2, **{"async": 300, "poll": poll}))
    if poll:
        assert result["changed"] and result["transfer"]["bytes"] == 64 * MIB, import_image.output
    else:
        assert result["ansible_job_id"] and not result["finished"]
    wait_for((tmp_path / "volume").exists)
    assert same(images["disk-raw"], tmp_path / "volume") and not LINE.search(import_image.output)


def test_secrets_are_not_shown(slow, import_image, cloud, tmp_path):
    import_image.home.chmod(0o755)
    run = slow(tmp_path / "volume", 4, "-vvvv", "--diff")
    wait_for(lambda: has_begun(tmp_path / "volume"))
    shown = [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"gAAAA" in read(path)]
    assert shown == [], "a token is in the arguments of a program"
    assert any(import_image.home.rglob("AnsiballZ_glance_image_import.py")), "this is where the host keeps its files"
    holding = [path for path in import_image.home.rglob("*") if b"gAAAA" in read(path)]
    open_to_others = [path for path in holding if is_open_to_others(path, import_image.home)]
    assert open_to_others == []
    result = import_image.finish(run)
    everything = import_image.output + str(result)
    assert "gAAAA" not in everything and "demo-pw" not in everything


def read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def is_open_to_others(path, top):
    """Whether somebody else may read a file: it and each folder above it let them."""
    chain = [path, *path.parents]
    return all(
        os.stat(part).st_mode & (stat.S_IROTH if part.is_file() else stat.S_IXOTH)
        for part in chain[: chain.index(top) + 1]
    )


def test_a_password_in_auth_masks_nothing_and_is_not_shown(import_image, cloud, tmp_path):
    auth = yaml.safe_load(cloud.clouds_yaml.read_text())["clouds"]["demo"]["auth"]
    task = yaml.safe_dump({"auth": auth, "region_name": "RegionOne", "image": "disk-qcow2", "path": f"{tmp_path}/demo"})
    result = import_image(task, "-vvvv")
    assert result["volume"]["path"] == f"{tmp_path}/demo", "the project's name, demo, is no secret"
    assert "demo-pw" not in import_image.output


@pytest.mark.parametrize("percent", [30, 60, 90])
def test_a_killed_transfer_is_gone_on_with(slow, import_image, images, tmp_path, percent):
    size = 64 * MIB * percent // 100
    run = slow(tmp_path / "volume", 60, cut=size)
    wait_for(lambda: has_begun(tmp_path / "volume"))
    programs = programs_with(str(import_image.home).encode())
    (module,) = [path for path in programs if b"_image_import.py" in read(path) and b"async" not in read(path)]
    wait_for(lambda: progress(import_image.home) >= size // MIB * MIB)
    os.kill(int(module.parent.name), signal.SIGKILL)
    result = import_image.finish(run)
    assert result["failed"] and sorted(os.listdir(tmp_path)) == [partial(tmp_path / "volume").name, "play"]

    result = import_image(f"cloud: demo\nimage: disk-raw\npath: {tmp_path}/volume")
    transfer = result["transfer"]
    assert 0 < transfer["resumed_from"] <= size and transfer["bytes"] == 64 * MIB - transfer["resumed_from"]
    assert "an earlier run had brought" in result["msg"]
    assert same(images["disk-raw"], tmp_path / "volume") and sorted(os.listdir(tmp_path)) == ["play", "volume"]
    assert not import_image(f"cloud: demo\nimage: disk-raw\npath: {tmp_path}/volume")["changed"]


def progress(home):
    """The bytes that have arrived, as the host tells its watcher."""
    told = [json.loads(path.read_text()) for path in (home / ".ansible_async").glob("*/progress.json")]
    return told[0]["position"] if told else 0


def test_a_transfer_that_nobody_watches_ends(slow, import_image, tmp_path):
    """A job that is cancelled, or a controller that dies, leaves nothing running for ever."""
    run = slow(tmp_path / "volume", 120, options="timeout: 200")
    wait_for(lambda: has_begun(tmp_path / "volume"))
    run.send_signal(signal.SIGINT)
    run.communicate()
    assert programs_with(str(import_image.home).encode())
    wait_for(lambda: not programs_with(str(import_image.home).encode()), timeout=150)
    assert sorted(os.listdir(tmp_path)) == [partial(tmp_path / "volume").name, "play"]
    result = import_image(f"cloud: demo\nimage: disk-raw\npath: {tmp_path}/volume")
    assert result["transfer"]["resumed_from"] > 0


def programs_with(text):
    """The command lines, in /proc, of the programs that have it in theirs."""
    return [path for path in Path("/proc").glob("[0-9]*/cmdline") if text in read(path)]
