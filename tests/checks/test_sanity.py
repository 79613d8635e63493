# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible's own sanity tests, all of them and with no ignore file, by both ends of the supported range.

The newest ansible-core runs them all, the oldest those that depend on which one it is; the others are linters, which
would say the same of the same files again. Where there is no newest, the oldest runs all.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.imageferry.glance.tests.checks.interpreters import find_interpreters

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "sanity"
VENVS = {
    "oldest": Path(sys.prefix),
    "newest": Path(os.environ.get("IMAGEFERRY_NEWEST_VENV", ROOT / ".cache" / "newest-venv")),
}

OF_THE_CORE = ("action-plugin-docs", "ansible-doc", "import", "runtime-metadata", "validate-modules")


@pytest.fixture(scope="module")
def runs():
    """A run by each ansible-core that is installed; both at once, as each keeps one processor busy."""
    link_interpreters(CACHE / "bin")
    installed = {core: venv for core, venv in VENVS.items() if (venv / "bin" / "ansible-test").exists()}
    started = {core: start(CACHE / core, venv, _tests(core, installed)) for core, venv in installed.items()}
    yield started
    for run in started.values():
        run.kill()
        run.wait()


def _tests(core, installed):
    return [f"--test={name}" for name in OF_THE_CORE] if core == "oldest" and "newest" in installed else []


@pytest.mark.parametrize("core", VENVS)
def test_sanity(core, runs):
    if core not in runs:
        reason = VENVS[core].with_name(VENVS[core].name + ".missing")
        pytest.skip(reason.read_text().strip() if reason.exists() else f"{VENVS[core]} does not exist")
    status = runs[core].wait()
    output = (CACHE / core / "output").read_text()
    if status or "All targets skipped" in output:
        pytest.fail(output, pytrace=False)


def start(folder, venv, options):
    """Starts sanity tests on a copy of the collection, which must stand in a folder of the collection's name."""
    collection = folder / "ansible_collections" / "imageferry" / "glance"
    copy_collection(collection)
    provide_pip(folder / "home")
    environment = {**os.environ, "HOME": str(folder / "home"), "PATH": f"{CACHE / 'bin'}:{os.environ['PATH']}"}
    with (folder / "output").open("w") as output:
        return subprocess.Popen(
            [venv / "bin" / "ansible-test", "sanity", "--local", "--color", "no", *options],
            cwd=collection, env=environment, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip


def copy_collection(destination):
    """Copies what git has, or would take."""
    shutil.rmtree(destination, ignore_errors=True)
    listing = ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in names:
        if name and (ROOT / name).is_file():  # a file that is deleted, but not yet in git, is still listed
            (destination / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, destination / name, follow_symlinks=False)
    # Else ansible-test asks the repository around this folder, and finds nothing.
    subprocess.run(["git", "init", "--quiet", destination], check=True)


def provide_pip(home):
    """Puts this machine's own pip where ansible-test looks before it downloads one from outside the package index.

    The names hold the version of pip that ansible-core 2.19 and 2.21 ask for; the next ansible-core has another.
    """
    cache = home / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    for version in ("24_2", "25_2"):
        (cache / f"get_pip_{version}.py").write_text("import ensurepip\nensurepip.bootstrap(default_pip=True)\n")


def link_interpreters(folder):
    """Links the interpreters that work: ansible-test takes each python3.N on PATH for one, also a shim that is none."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for (major, minor), path in find_interpreters().items():
        (folder / f"python{major}.{minor}").symlink_to(path)
