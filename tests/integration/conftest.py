# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Glance and Keystone, real images in them, and ansible-playbook as a user runs it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "cloud"))
import embedded_cloud  # noqa: E402

CLOUD_VENV = Path(os.environ.get("IMAGEFERRY_CLOUD_VENV", ROOT / ".cache" / "cloud-venv"))


@pytest.fixture(scope="session")
def cloud(tmp_path_factory):
    options = embedded_cloud.CloudOptions(state=tmp_path_factory.mktemp("cloud"), venv=CLOUD_VENV)
    with embedded_cloud.EmbeddedCloud(options) as running:
        yield running


@pytest.fixture(scope="session")
def images(cloud, tmp_path_factory):
    """The files of the images in Glance, by name."""
    folder = tmp_path_factory.mktemp("images")
    tree = folder / "tree"
    tree.mkdir()
    for number in range(8):
        (tree / f"file{number}").write_bytes(hashlib.sha256(bytes([number])).digest() * 20000)
    raw = folder / "disk.raw"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, raw, "64M"], check=True)
    qcow2 = folder / "disk.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2], check=True)
    found = {"disk-raw": raw, "disk-qcow2": qcow2, "a-lie": qcow2, "twice": qcow2}
    for name, path in [*found.items(), ("twice", qcow2)]:
        upload(cloud, name, path, "qcow2" if name in ("disk-qcow2", "twice") else "raw")
    return found


def upload(cloud, name, path, disk_format):
    command = [CLOUD_VENV / "bin" / "openstack", "--os-cloud", "demo", "image", "create", "-f", "value", "-c", "id"]
    command += ["--disk-format", disk_format, "--container-format", "bare", "--file", path, name]
    subprocess.run(command, env={**os.environ, "OS_CLIENT_CONFIG_FILE": str(cloud.clouds_yaml)}, check=True)


class Playbook:
    """Runs one task with ansible-playbook and returns what each host got."""

    def __init__(self, folder, cloud):
        self.folder = folder
        self.environment = {
            **os.environ,
            "OS_CLIENT_CONFIG_FILE": str(cloud.clouds_yaml),
            "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
            "ANSIBLE_FORKS": "10",
        }
        self.output = ""

    def __call__(self, task, *arguments, hosts=1, module="glance_image_import"):
        inventory = self.folder / "inventory"
        inventory.write_text(
            "".join(
                f"host{number} ansible_connection=local ansible_python_interpreter={sys.executable}\n"
                for number in range(hosts)
            )
        )
        result = self.folder / "result.json"
        playbook = self.folder / "playbook.yml"
        outcomes = "{{ dict(ansible_play_hosts | zip(ansible_play_hosts | map('extract', hostvars, 'outcome'))) }}"
        tasks = [
            {
                f"imageferry.glance.{module}": yaml.safe_load(task),
                "register": "outcome",
                "ignore_errors": True,
            },
            {
                "ansible.builtin.copy": {"dest": str(result), "mode": "0600", "content": outcomes},
                "run_once": True,
                "check_mode": False,
                "diff": False,
            },
        ]
        playbook.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
        program = Path(sys.executable).with_name("ansible-playbook")
        run = subprocess.run(
            [program, "-i", inventory, playbook, *arguments],
            env=self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        self.output = run.stdout + run.stderr
        assert run.returncode == 0, self.output
        returned = json.loads(result.read_text())
        return returned if hosts > 1 else returned["host0"]


@pytest.fixture
def import_image(tmp_path, cloud, images):
    folder = tmp_path / "play"
    folder.mkdir()
    return Playbook(folder, cloud)


@pytest.fixture
def find_images(import_image):
    def find(task):
        return import_image(task, module="glance_image_info")

    return find
