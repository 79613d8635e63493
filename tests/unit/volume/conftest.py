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
