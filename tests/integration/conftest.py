# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Glance and Keystone, real images in them, and ansible-playbook as a user runs it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import openstack as openstacksdk
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "cloud"), str(ROOT / "tests" / "integration")]
import embedded_cloud  # noqa: E402

CLOUD_VENV = Path(os.environ.get("IMAGEFERRY_CLOUD_VENV", ROOT / ".cache" / "cloud-venv"))
MIB = 1024**2
HOST_PYTHON = "/usr/bin/python3"  # the distribution's, which its python3-libvirt and python3-libnbd go with


@contextlib.contextmanager
def running_cloud(folder, **options):
    with embedded_cloud.EmbeddedCloud(embedded_cloud.CloudOptions(state=folder, venv=CLOUD_VENV, **options)) as cloud:
        yield cloud


@pytest.fixture(scope="session")
def cloud(tmp_path_factory):
    with running_cloud(tmp_path_factory.mktemp("cloud")) as running:
        yield running


@pytest.fixture(scope="session")
def disk_files(tmp_path_factory):
    """A disk with a file system and files as raw, and the same as qcow2."""
    folder = tmp_path_factory.mktemp("images")
    tree = folder / "tree"
    tree.mkdir()
    for number in range(8):
        (tree / f"file{number}").write_bytes(hashlib.sha256(bytes([number])).digest() * 20000)
    raw, qcow2 = folder / "disk.raw", folder / "disk.qcow2"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, raw, "64M"], check=True)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2], check=True)
    return {"disk-raw": raw, "disk-qcow2": qcow2}


@pytest.fixture(scope="session")
def images(cloud, disk_files):
    """The files of the images in Glance, by name."""
    upload_images(cloud, disk_files)
    return disk_files


def upload_images(cloud, disk_files):
    """Puts the images into Glance that most tests look for."""
    raw, qcow2 = disk_files["disk-raw"], disk_files["disk-qcow2"]
    upload(cloud, "disk-raw", raw, "raw", "--tag", "golden", "--property", "os_distro=debian", "--private")
    for name in ("disk-qcow2", "twice", "twice"):
        upload(cloud, name, qcow2, "qcow2")
    upload(cloud, "a-lie", qcow2, "raw")
    connect(cloud).image.post("/images", json={"name": "unfinished"})


class InProject:
    """A cloud, with a project of its own that its user demo works in.

    :param clouds_yaml: where the description of the cloud goes that says so.
    """

    def __init__(self, cloud, project, clouds_yaml):
        self._cloud = cloud
        self.clouds_yaml = clouds_yaml
        described = yaml.safe_load(cloud.clouds_yaml.read_text())
        described["clouds"]["demo"]["auth"]["project_name"] = project
        openstack(cloud, "project", "create", project, user="admin")
        openstack(cloud, "role", "add", "--user", "demo", "--project", project, "member", user="admin")
        clouds_yaml.write_text(yaml.safe_dump(described))

    def __getattr__(self, name):
        return getattr(self._cloud, name)


def connect(cloud, user="demo"):
    """A session of openstacksdk."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OS_CLIENT_CONFIG_FILE", str(cloud.clouds_yaml))
        return openstacksdk.connect(cloud=user)


def openstack(cloud, *arguments, user="demo"):
    """Runs the openstack command as a user would; returns what it prints."""
    command = [CLOUD_VENV / "bin" / "openstack", "--os-cloud", user, *arguments]
    environment = {**os.environ, "OS_CLIENT_CONFIG_FILE": str(cloud.clouds_yaml)}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


def upload(cloud, name, path, disk_format, *options):
    return openstack(
        cloud, "image", "create", "-f", "value", "-c", "id", "--disk-format", disk_format,
        "--container-format", "bare", "--file", path, *options, name,
    )  # fmt: skip


def through_proxy(cloud, proxy, **settings):
    """The cloud, with an image service that is reached through the proxy, and other settings of clouds.yaml."""
    entry = yaml.safe_load(cloud.clouds_yaml.read_text())["clouds"]["demo"]
    return "cloud: " + yaml.safe_dump(
        {**entry, "image_endpoint_override": proxy.url("/v2"), **settings}, default_flow_style=True, width=10000
    )


class Playbook:
    """Runs one task with ansible-playbook and returns what each host got.

    :param folder: for its files; its subfolder C(home) is the user's home.
    :param venv: the virtual environment whose ansible-playbook it is.
    :param host_python: the interpreter of the hosts.
    """

    def __init__(self, folder, cloud, venv=Path(sys.prefix), host_python=sys.executable):
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        self.program = Path(venv) / "bin" / "ansible-playbook"
        self.host_python = host_python
        self.environment = {
            **os.environ,
            "HOME": str(self.home),
            # Ansible looks up the home of a local host's user, whatever HOME says.
            "ANSIBLE_ASYNC_DIR": str(self.home / ".ansible_async"),
            "ANSIBLE_REMOTE_TMP": str(self.home / ".ansible" / "tmp"),
            "OS_CLIENT_CONFIG_FILE": str(cloud.clouds_yaml),
            "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
            "ANSIBLE_FORKS": "10",
        }
        self.environment.pop("PYTHONPATH", None)
        self.output = ""

    def start(self, task, *arguments, hosts=1, module="glance_image_import", **keywords):
        """Begins to run one task, with the keywords of a task such as C(retries)."""
        inventory, playbook = self.folder / "inventory", self.folder / "playbook.yml"
        inventory.write_text(
            "".join(
                f"host{number} ansible_connection=local ansible_python_interpreter={self.host_python}\n"
                for number in range(hosts)
            )
        )
        outcomes = "{{ dict(ansible_play_hosts | zip(ansible_play_hosts | map('extract', hostvars, 'outcome'))) }}"
        tasks = [
            {
                f"imageferry.glance.{module}": yaml.safe_load(task),
                "register": "outcome",
                "ignore_errors": True,
                **keywords,
            },
            {
                "ansible.builtin.copy": {"dest": str(self.result), "mode": "0600", "content": outcomes},
                "run_once": True,
                "check_mode": False,
                "diff": False,
            },
        ]
        playbook.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
        command = [self.program, "-i", inventory, playbook, *arguments]
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def finish(self, run):
        """Waits for the task's end; what each host got, or the only host."""
        self.output = run.communicate()[0]
        assert run.returncode == 0, self.output
        returned = json.loads(self.result.read_text())
        return returned if len(returned) > 1 else returned["host0"]

    def __call__(self, task, *arguments, **options):
        return self.finish(self.start(task, *arguments, **options))

    @property
    def result(self):
        return self.folder / "result.json"


@pytest.fixture
def import_image(tmp_path, cloud, images):
    return Playbook(tmp_path / "play", cloud)


@pytest.fixture
def find_images(import_image):
    def find(task):
        return import_image(task, module="glance_image_info")

    return find


def wait_for(condition, timeout=60):
    """Waits until C(condition) is true, and returns what it is."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.05)
    return found


def qemu_img(*arguments):
    return subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True, text=True).stdout


def virsh(*arguments, check=True):
    command = ["virsh", "-q", "-c", "qemu:///system", *map(str, arguments)]
    return subprocess.run(command, check=check, capture_output=True, text=True)


@pytest.fixture(scope="session")
def libvirt():
    """A libvirt that runs, for the tests alone where none did."""
    if not shutil.which("libvirtd") or not shutil.which("virsh"):
        pytest.skip("libvirt is not installed")
    if subprocess.run([HOST_PYTHON, "-c", "import libvirt"], capture_output=True, check=False).returncode:
        pytest.skip("python3-libvirt is not installed")
    started = []
    if virsh("version", check=False).returncode:
        if os.geteuid() != 0:
            pytest.skip("libvirt does not run, and starting it needs root")
        started = [subprocess.Popen([program], stderr=subprocess.DEVNULL) for program in ("virtlogd", "libvirtd")]
    try:
        wait_for(lambda: virsh("version", check=False).returncode == 0)
        yield
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait()


@pytest.fixture(scope="session")
def guest(libvirt):
    """A running guest with the disks C(raw), C(qcow2) and C(overlay), which is laid over C(base).

    It has nothing to boot, and keeps its disks open. There is one for all tests, as libvirt may look at QEMU anew for
    every guest that is defined, which takes long where there is a KVM that does not work.
    """
    # QEMU has to reach the folder as its own user.
    folder = Path(tempfile.mkdtemp(prefix="imageferry-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    for name in ("raw", "qcow2", "base"):
        qemu_img("create", "-f", "raw" if name == "raw" else "qcow2", folder / name, "8M")
    qemu_img("create", "-f", "qcow2", "-b", folder / "base", "-F", "qcow2", folder / "overlay")
    name = f"imageferry-test-{os.getpid()}"
    disks = "".join(
        f"<disk type='file' device='disk'><driver name='qemu' type='{'raw' if disk == 'raw' else 'qcow2'}'/>"
        f"<source file='{folder / disk}'/><target dev='{target}' bus='virtio'/></disk>"
        for target, disk in (("vda", "raw"), ("vdb", "qcow2"), ("vdc", "overlay"))
    )
    (folder / "guest.xml").write_text(
        f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory>"
        f"<os><type arch='x86_64'>hvm</type></os><devices>{disks}</devices></domain>"
    )
    try:
        virsh("define", folder / "guest.xml")
        started = virsh("start", name, check=False)
        if started.returncode:
            pytest.skip(f"no guest can be started here: {started.stderr.strip()}")
        yield types.SimpleNamespace(name=name, folder=folder)
    finally:
        virsh("destroy", name, check=False)
        virsh("undefine", name, check=False)
        shutil.rmtree(folder)
