# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Python interpreters of this machine that a virtual environment can be made with."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

Version = tuple[int, int]

_SHIPPED = [(3, minor) for minor in range(8, 16)]
_PROBE = "import ensurepip, sys, venv; print(*sys.version_info[:2], sys.executable)"


def find_interpreters() -> dict[Version, Path]:
    """The first interpreter of each version that works: those on PATH come before those of pyenv and uv."""
    found: dict[Version, Path] = {}
    for candidate in _candidates():
        run = subprocess.run([candidate, "-I", "-c", _PROBE], capture_output=True, text=True, check=False)
        if run.returncode == 0:  # a shim of pyenv exists for versions that it will not run
            major, minor, executable = run.stdout.split(maxsplit=2)
            found.setdefault((int(major), int(minor)), Path(executable.strip()))
    return found


def newest_interpreter(oldest: Version, newest: Version) -> Path | None:
    """The newest interpreter within these bounds; None if there is none."""
    found = {version: path for version, path in find_interpreters().items() if oldest <= version <= newest}
    return found[max(found)] if found else None


def _candidates() -> Iterator[Path]:
    home = Path.home()
    folders = [Path(folder) for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if folder]
    folders += sorted(Path(os.environ.get("PYENV_ROOT", home / ".pyenv")).glob("versions/*/bin"), reverse=True)
    folders += sorted((home / ".local/share/uv/python").glob("*/bin"), reverse=True)
    for folder in folders:
        for major, minor in _SHIPPED:
            path = folder / f"python{major}.{minor}"
            if os.access(path, os.X_OK):
                yield path
