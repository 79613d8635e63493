# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles and modules on a whole host."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_all_molecule_scenarios_pass():
    run = subprocess.run(
        [Path(__file__).with_name("molecule"), sys.prefix], capture_output=True, text=True, check=False
    )
    print(run.stdout, run.stderr)
    assert run.returncode == 0
