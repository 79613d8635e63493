# SPDX-License-Identifier: GPL-3.0-or-later
"""What the target host does around its emulator. That it boots and can be reached is what Molecule's scenarios need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "target"))
import target_host
from background import ProcessStatus


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A system that takes no time to make, and has nothing to boot."""
    folder = tmp_path / "system"
    folder.mkdir()
    for name in ("disk.raw", "vmlinuz", "initrd.img"):
        (folder / name).write_bytes(bytes(4096))
    monkeypatch.setattr(target_host, "system", lambda _cache: target_host.System(folder))
    return target_host.System(folder)


@pytest.fixture
def host(tmp_path, system):
    started = target_host.TargetHost(target_host.TargetOptions(state=tmp_path / "state", accelerator="tcg"))
    yield started
    started.stop()


@pytest.fixture
def bystander():
    """A process that is no host."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_a_start_that_fails_leaves_nothing_running(host):
    with pytest.raises(target_host.TargetError, match="QEMU has ended"):
        host.start()
    assert not host.running and host.pid == 0


def test_a_start_that_is_interrupted_leaves_nothing_running(host, monkeypatch):
    seen = []

    def interrupt():
        seen.append(host.pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(target_host.System, "boot_options", lambda *_: ["-S", "-display", "none"])
    monkeypatch.setattr(host, "_wait_for_login", interrupt)
    with pytest.raises(KeyboardInterrupt):
        host.start()
    assert seen[0] and ProcessStatus.of(seen[0]) is None


def test_what_runs_is_started_once_and_stopped_once_by_any_process(host, monkeypatch):
    monkeypatch.setattr(target_host.System, "boot_options", lambda *_: ["-S", "-display", "none"])
    monkeypatch.setattr(target_host.TargetHost, "_wait_for_login", lambda _: None)
    monkeypatch.setattr(target_host, "STOP_TIMEOUT", 0)
    monkeypatch.setattr(target_host.TargetHost, "ssh", lambda *_: ["false"])
    other = target_host.TargetHost(host.options)
    assert host.start() and not host.start() and not other.start()
    assert other.running and (other.pid, other.port) == (host.pid, host.port)
    inventory = json.loads(host.inventory.read_text())["all"]["hosts"]["target"]
    assert inventory["ansible_port"] == host.port and Path(inventory["ansible_ssh_private_key_file"]).exists()
    assert other.stop() and not host.running and not host.stop()


def test_a_process_that_has_got_the_id_of_a_host_is_left_alone(host, bystander):
    host.state.mkdir()
    record = {"pid": bystander.pid, "started": 1, "port": 1, "accelerator": "tcg"}
    (host.state / "target.json").write_text(json.dumps(record))
    assert not target_host.TargetHost(host.options).stop()
    assert bystander.poll() is None


def test_a_folder_with_other_files_is_left_alone(host):
    host.state.mkdir()
    (host.state / "letter").touch()
    with pytest.raises(target_host.TargetError, match="holds other files"):
        host.start()
    assert [path.name for path in host.state.iterdir()] == ["letter"]


def test_an_accelerator_without_a_kernel_that_comes_up_is_not_taken(tmp_path, system, monkeypatch):
    monkeypatch.setattr(target_host.os, "access", lambda *_: True)
    monkeypatch.setattr(target_host, "PROBE_TIMEOUT", 1)
    assert target_host.best_accelerator(system, tmp_path) == "tcg"
    monkeypatch.setattr(target_host, "comes_up", lambda *_: True)
    assert target_host.best_accelerator(system, tmp_path) == "tcg", "asked again"
    assert target_host.best_accelerator(system, tmp_path / "other") == "kvm"
