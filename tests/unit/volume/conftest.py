# SPDX-License-Identifier: GPL-3.0-or-later
"""Small file systems of different kinds, mounted for a test."""

from __future__ import annotations

import contextlib
import os
import subprocess

import pytest


@pytest.fixture
def mount(tmp_path):
    """Mounts a file system and returns its folder; needs root."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    with contextlib.ExitStack() as mounted:

        def mount(kind, *options):
            folder = tmp_path / f"mounted-{kind}"
            folder.mkdir()
            done = subprocess.run(["mount", "-t", kind, *options, kind, folder], capture_output=True, check=False)
            if done.returncode != 0:
                pytest.skip(f"{kind} cannot be mounted here")
            mounted.callback(subprocess.run, ["umount", folder], check=True)
            return folder

        yield mount


@pytest.fixture(params=[512, 4096])
def make_device(request, tmp_path):
    """Makes loop devices of sectors of both sizes, full of 0xff; needs root."""
    attached = []

    def make(size):
        backing = tmp_path / f"backing-{len(list(tmp_path.glob('backing-*')))}"
        backing.write_bytes(b"\xff" * size)
        command = ["losetup", "--find", "--show", "--sector-size", str(request.param), backing]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"loop devices cannot be had here: {done.stderr.strip()}")
        attached.append(done.stdout.strip())
        return attached[-1]

    def detach():
        while attached:
            subprocess.run(["losetup", "--detach", attached.pop()], check=True)

    make.detach = detach
    yield make
    detach()
