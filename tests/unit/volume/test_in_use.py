# SPDX-License-Identifier: GPL-3.0-or-later
"""Whoever has a file in use is seen."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import VolumeInUse
from ansible_collections.imageferry.glance.plugins.module_utils._volume import in_use
from ansible_collections.imageferry.glance.plugins.module_utils._volume.file import FileVolume


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    return path


@contextlib.contextmanager
def running(*command):
    """A program, from the moment that it says something to the end of the block."""
    program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        program.stdin.write(b"read 0 512\n")
        program.stdin.flush()
        assert program.stdout.readline()
        yield program.pid
    finally:
        program.kill()
        program.communicate()


def user_of(path):
    with FileVolume(str(path)) as volume:
        try:
            volume.check_not_in_use()
        except VolumeInUse as err:
            return str(err)
    return None


def lock_on(path):
    with open(path, "rb") as file:
        return in_use._lock_holder(file.fileno())


def test_nobody_uses_a_file_that_is_there(disk):
    assert user_of(disk) is None and lock_on(disk) is None


@pytest.mark.parametrize("options", [[], ["-r"]])
def test_qemu_is_seen_by_its_process_and_by_its_locks(disk, options):
    with running("qemu-io", *options, "-f", "raw", disk) as pid:
        assert f"process {pid} (qemu-io)" in user_of(disk)
        assert "qemu" in lock_on(disk)
    assert user_of(disk) is None and lock_on(disk) is None


def test_qemu_nbd_is_seen(disk, tmp_path):
    socket = tmp_path / "socket"
    server = subprocess.Popen(["qemu-nbd", "-k", socket, "-f", "raw", "-t", disk])
    try:
        deadline = time.monotonic() + 10
        while not socket.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert "qemu-nbd" in user_of(disk) and lock_on(disk)
    finally:
        server.kill()
        server.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="a loop device needs root")
def test_a_loop_device_is_seen(disk):
    device = subprocess.run(["losetup", "-f", "--show", disk], check=True, capture_output=True, text=True).stdout
    try:
        assert device.strip() in user_of(disk)
    finally:
        subprocess.run(["losetup", "-d", device.strip()], check=True)


@pytest.mark.parametrize("lock", ["fcntl.lockf(file, fcntl.LOCK_EX)", "fcntl.flock(file, fcntl.LOCK_SH)", "0"])
def test_another_program_that_has_it_open_is_seen(disk, lock):
    hold = f"import fcntl, sys; file = open(sys.argv[1], 'r+b'); {lock}; print('', flush=True); input(); input()"
    with running(sys.executable, "-c", hold, disk) as pid:
        assert f"process {pid}" in user_of(disk)
        if "lockf" in lock:
            assert f"process {pid}" in lock_on(disk)
