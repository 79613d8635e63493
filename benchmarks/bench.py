# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures the import against what people use instead, side by side in one run: ``make bench``.

The contenders take turns, so that a machine that gets slower gets slower for all; what is printed are medians, and
ratios of them. They fetch from a real Glance on this machine. The import is the module as it runs on a host, with the
arguments that the controller gives it; Ansible's connection is not part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "cloud"))
import background  # noqa: E402
import embedded_cloud  # noqa: E402
import sample_images  # noqa: E402

MIB = 1024**2
GIB = 1024**3
BLOCK = 64 * 1024
MODULE = ROOT / "plugins" / "modules" / "glance_image_import.py"


class Measured(NamedTuple):
    """What runs of one contender took: medians, memory in bytes of the largest of its processes."""

    seconds: float
    memory: float


class Bench:
    """A cloud with an image in it, a file to fetch it to, and those who do it."""

    def __init__(self, folder: Path, venv: Path, cloud: embedded_cloud.EmbeddedCloud, image: Path) -> None:
        self.folder, self.venv, self.file = folder, venv, image
        self.target = folder / "target"
        environment = {**os.environ, "OS_CLIENT_CONFIG_FILE": str(cloud.clouds_yaml), "OS_CLOUD": "demo"}
        self.environment = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
        self.image = self.openstack("image", "create", "--disk-format=raw", f"--file={image}", image.name)
        self.image["properties"] |= self.openstack("image", "show", self.image["id"])["properties"]
        self.token = self.openstack("token", "issue")["id"]
        self.url = f"{cloud.image_url}/v2/images/{self.image['id']}/file"
        self.headers = folder / "headers"
        background.write_private(self.headers, f"X-Auth-Token: {self.token}\n")

    def openstack(self, *arguments: str) -> dict:
        command = [self.venv / "bin" / "openstack", *arguments, "-f", "json"]
        return json.loads(subprocess.run(command, env=self.environment, check=True, capture_output=True).stdout)

    def run(self, command: list, **environment: str) -> tuple[float, int]:
        """The seconds and the memory that a command takes."""
        started = time.monotonic()
        with (self.folder / "output").open("wb") as output:
            process = subprocess.Popen(command, env={**self.environment, **environment}, stdout=output, stderr=output)
            _pid, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{command[0]} failed:\n{(self.folder / 'output').read_text()}")
        return time.monotonic() - started, usage.ru_maxrss * 1024

    def curl(self) -> tuple[float, int]:
        return self.run(["curl", "-sSf", "-H", f"@{self.headers}", "-o", self.target, self.url])

    def sha512(self) -> tuple[float, int]:
        return self.run(["openssl", "dgst", "-sha512", self.file])

    def image_save(self) -> tuple[float, int]:
        command = [self.venv / "bin" / "openstack", "image", "save", "--chunk-size=1048576"]
        return self.run([*command, f"--file={self.target}", self.image["id"]])

    def import_verified(self) -> tuple[float, int]:
        hashes = {name: self.image["properties"][name] for name in ("os_hash_algo", "os_hash_value")}
        return self.import_image(hashes)

    def import_unverified(self) -> tuple[float, int]:
        return self.import_image({})

    def import_image(self, hashes: dict[str, str]) -> tuple[float, int]:
        arguments = {
            "url": self.url,
            "path": str(self.target),
            "allow_unverified": not hashes,
            "_image": {"id": self.image["id"], "disk_format": "raw", "size": self.file.stat().st_size, **hashes},
            "_token": self.token,
            "_ansible_remote_tmp": str(self.folder),
        }
        given = self.folder / "arguments.json"
        background.write_private(given, json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))
        return self.run([sys.executable, MODULE, given], PYTHONPATH=str(ROOT / ".cache" / "collections"))

    def compare(self, rounds: int, *contenders: Callable[[], tuple[float, int]]) -> list[Measured]:
        """The medians of so many rounds in which each contender has its turn, after one that does not count."""
        runs: list[list[tuple[float, int]]] = [[] for _contender in contenders]
        for number in range(rounds + 1):
            for contender, results in zip(contenders, runs, strict=True):
                result = contender()
                self.target.unlink(missing_ok=True)
                if number:
                    results.append(result)
        return [Measured(*map(statistics.median, zip(*results, strict=True))) for results in runs]

    def allocation(self) -> float:
        """What an imported file takes of its storage, divided by the image's blocks that are not zeros."""
        self.import_verified()
        with self.file.open("rb") as file:
            blocks = sum(block.count(0) < len(block) for block in iter(lambda: file.read(BLOCK), b""))
        taken = self.target.stat().st_blocks * 512
        self.target.unlink()
        return taken / (blocks * BLOCK)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, required=True, help="virtual environment with Glance and Keystone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=float, default=4, metavar="GIB", help="of the half-empty raw image (default: 4)")
    parser.add_argument("--folder", type=Path, help="to fetch to (default: in memory, where there is room)")
    options = parser.parse_args()
    size = int(options.size * GIB)
    with tempfile.TemporaryDirectory(dir=options.folder or roomy(3 * size)) as name:
        folder = Path(name)
        cloud_options = embedded_cloud.CloudOptions(state=folder / "cloud", venv=options.venv)
        with embedded_cloud.EmbeddedCloud(cloud_options) as cloud:
            table(options, folder, cloud, size)


def roomy(size: int) -> Path:
    """A folder in memory if it holds so many bytes, as storage is not what is to be measured."""
    memory = Path("/dev/shm")  # noqa: S108 - the folder made in it is private
    return memory if memory.is_dir() and shutil.disk_usage(memory).free > size else Path(tempfile.gettempdir())


def table(options: argparse.Namespace, folder: Path, cloud: embedded_cloud.EmbeddedCloud, size: int) -> None:
    bench = Bench(folder, options.venv, cloud, sample_images.half_empty_raw(size))
    curl, sha512, save, verified, unverified = bench.compare(
        options.rounds, bench.curl, bench.sha512, bench.image_save, bench.import_verified, bench.import_unverified
    )
    print(f"A half-empty raw image of {options.size:g} GiB to {folder.parent}, medians of {options.rounds}\n")
    print(f"{'':32}{'seconds':>8}{'MiB/s':>8}{'peak MiB':>10}")
    for label, measured in {
        "curl -o, not verified": curl,
        "sha512 alone, not fetched": sha512,
        "openstack image save, 1 MiB": save,
        "import, verified and sparse": verified,
        "import, allow_unverified": unverified,
    }.items():
        print(f"{label:32}{measured.seconds:8.2f}{size / MIB / measured.seconds:8.0f}{measured.memory / MIB:10.0f}")
    small = Bench(folder, options.venv, cloud, sample_images.half_empty_raw(size // 4))
    (small_import,) = small.compare(1, small.import_verified)
    hashed = verified.seconds / max(curl.seconds, sha512.seconds)
    print(f"\n{'P1 verified / max(curl, sha512)':40}{hashed:6.2f}  at most 1.10")
    print(f"{'P2 unverified / curl':40}{unverified.seconds / curl.seconds:6.2f}  at most 0.60")
    print(f"{'P3 image save / verified':40}{save.seconds / verified.seconds:6.2f}  at least 2.2")
    print(f"{'P8 allocated / not zero':40}{bench.allocation():6.3f}  at most 1.01")
    print(f"{'P9 peak memory at the size / a quarter':40}{verified.memory / small_import.memory:6.2f}  1.00")


if __name__ == "__main__":
    main()
