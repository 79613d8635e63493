# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Counts what an import to ever more hosts asks of the control plane: ``python benchmarks/fleet.py --venv CLOUD_VENV``.

The playbook import_image brings one image to so many hosts, all of them this machine, from a real Glance. What is
printed are the requests to Glance, apart from the one body that each host gets, and to Keystone, Glance's own among
them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "cloud")]
import embedded_cloud  # noqa: E402

SIZE = 1024**2
FORKS = 20
HOST = "host{} ansible_connection=local ansible_python_interpreter=/usr/bin/python3\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, required=True, help="of the cloud")
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 10, 50, 100])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cloud_options = embedded_cloud.CloudOptions(state=folder / "cloud", venv=options.venv)
        with embedded_cloud.EmbeddedCloud(cloud_options) as cloud:
            environment = {**os.environ, "OS_CLIENT_CONFIG_FILE": str(cloud.clouds_yaml), "OS_CLOUD": "demo"}
            upload(options.venv, folder / "image", environment)
            print(f"{'hosts':>6} {'Glance':>7} {'bodies':>7} {'Keystone':>9} {'seconds':>8}")
            for count in options.hosts:
                logs = cloud.glance_access_log, cloud.keystone_access_log
                before = [len(log.read_text().splitlines()) for log in logs]
                seconds = run(folder / str(count), count, environment)
                glance, keystone = [log.read_text().splitlines()[seen:] for log, seen in zip(logs, before, strict=True)]
                bodies = sum("/file" in line and " 206 " not in line for line in glance)
                print(
                    f"{count:>6} {len(glance) - bodies:>7} {bodies:>7} {len(keystone):>9} {seconds:>8.1f}", flush=True
                )


def upload(venv: Path, image: Path, environment: dict[str, str]) -> None:
    """Puts an image into Glance that is none but noise."""
    image.write_bytes(os.urandom(SIZE))
    command = [venv / "bin" / "openstack", "image", "create", "--disk-format=raw", f"--file={image}", "fleet"]
    subprocess.run(command, env=environment, check=True, capture_output=True)


def run(folder: Path, count: int, environment: dict[str, str]) -> float:
    """Imports it to so many hosts; returns the seconds that it took."""
    folder.mkdir()
    inventory = folder / "inventory"
    inventory.write_text("".join(HOST.format(number) for number in range(count)))
    begun = time.monotonic()
    subprocess.run(
        [
            Path(sys.prefix) / "bin" / "ansible-playbook",
            f"--inventory={inventory}",
            f"--forks={FORKS}",
            "--extra-vars=image=fleet",
            f"--extra-vars=path={folder}/{{{{ inventory_hostname }}}}",
            "imageferry.glance.import_image",
        ],
        env={**environment, "ANSIBLE_HOME": str(folder / "ansible")},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.monotonic() - begun


if __name__ == "__main__":
    main()
