# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The unit tests of what runs on hosts, with the oldest Python of a host."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VENV = os.environ.get("IMAGEFERRY_HOST39_VENV", ROOT / ".cache" / "host39-venv")


def test_the_unit_tests_pass_with_the_oldest_python():
    run = subprocess.run([Path(__file__).with_name("host39"), VENV], capture_output=True, text=True, check=False)
    print(run.stdout, run.stderr)
    assert run.returncode == 0
    if run.stdout.startswith("hosts: skipped: "):
        pytest.skip(run.stdout.removeprefix("hosts: skipped: ").strip())
