# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a virtual environment, unless it stands there already with just these requirements."""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from interpreters import Version, newest_interpreter


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("requirements", type=Path, nargs="+", help="files for pip")
    parser.add_argument("--python", required=True, metavar="OLDEST[-NEWEST]", help="such as 3.11, or 3.12-3.14")
    parser.add_argument(
        "--optional",
        action="store_true",
        help="where there is no such Python, say so in FOLDER.missing instead of failing",
    )
    options = parser.parse_args()
    folder: Path = options.folder.absolute()
    stamp, missing = folder / ".done", folder.with_name(folder.name + ".missing")
    key = _key(folder, options.python, options.requirements)
    if stamp.is_file() and stamp.read_text() == key and _works(folder):
        return 0
    shutil.rmtree(folder, ignore_errors=True)
    missing.unlink(missing_ok=True)
    python = newest_interpreter(*_bounds(options.python))
    if python is None:
        reason = f"no Python {options.python} with venv and ensurepip was found on PATH, in pyenv or in uv"
        print(f"{folder.name}: {reason}", file=sys.stderr)
        if options.optional:
            folder.parent.mkdir(parents=True, exist_ok=True)
            missing.write_text(reason + "\n")
        return 0 if options.optional else 1
    print(f"{folder.name}: installing with {python}", flush=True)
    subprocess.run([python, "-m", "venv", folder], check=True)
    # Twice quiet: errors are still shown, warnings about the indexes that this machine does not have are not.
    install = [f"{folder}/bin/pip", "install", "--quiet", "--quiet", "--disable-pip-version-check"]
    run = subprocess.run([*install, *(f"--requirement={path}" for path in options.requirements)], check=False)
    if run.returncode == 0:
        stamp.write_text(key)
    return run.returncode


def _key(folder: Path, python: str, requirements: list[Path]) -> str:
    """What the environment depends on; its own path too, as its scripts name that."""
    parts = [str(folder), python, *(path.read_text() for path in requirements)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _works(folder: Path) -> bool:
    """Whether its interpreter is still installed."""
    return subprocess.run([folder / "bin" / "python", "-c", ""], check=False).returncode == 0


def _bounds(text: str) -> tuple[Version, Version]:
    oldest, _dash, newest = text.partition("-")
    return _version(oldest), _version(newest or oldest)


def _version(text: str) -> Version:
    major, minor = text.split(".")
    return int(major), int(minor)


if __name__ == "__main__":
    sys.exit(main())
