# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Glance and Keystone, real images in them, and ansible-playbook as a user runs it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ansible
import ansible_collections.imageferry.glance as collection
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


def kill_with_all_that_it_started(run):
    """SIGKILL for a run of L(Playbook), so that nothing of it can clean up."""
    for pid in [run.pid, *descendants(run.pid)]:
        os.kill(pid, signal.SIGKILL)
    run.communicate()


@contextlib.contextmanager
def loop_device(backing, *options):
    """A loop device over the file, with 4096-byte sectors, as new disks have them."""
    if os.geteuid() != 0:
        pytest.skip("a loop device needs root")
    attach = ["losetup", "--sector-size=4096", *options, "--find", "--show", backing]
    done = subprocess.run(attach, capture_output=True, check=False, text=True)
    if done.returncode:
        pytest.skip(f"no loop device: {done.stderr}")
    try:
        yield Path(done.stdout.strip())
    finally:
        subprocess.run(["losetup", "--detach", done.stdout.strip()], check=True)


@contextlib.contextmanager
def small_folder(folder, size):
    """A file system of this size, which mount is told, such as C(4m)."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def descendants(pid):
    """The processes that it has started, and those that these have."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            if parent == pid:
                found += [int(path.parent.name), *descendants(int(path.parent.name))]
    return found


def wait_for(condition, timeout=60):
    """Waits until C(condition) is true, and returns what it is."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.05)
    return found


def qemu_img(*arguments):
    return subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def project(cloud, tmp_path_factory):
    """A project of a file's own, for its exports."""
    return InProject(cloud, f"project-{time.monotonic_ns()}", tmp_path_factory.mktemp("project") / "clouds.yaml")


@pytest.fixture
def export(tmp_path, project):
    """Exports as a user does, on a host with the distribution's Python, libnbd and libvirt."""
    run = Playbook(tmp_path / "play", project, host_python=HOST_PYTHON)

    def export(task, *arguments, **options):
        described = yaml.safe_dump({"cloud": "demo", **yaml.safe_load(task)})
        return run(described, *arguments, **{"module": "glance_image_export", **options})

    export.finish = run.finish
    export.start = lambda task: run.start(f"cloud: demo\n{task}", module="glance_image_export")
    return export


@pytest.fixture
def glance(project):
    return connect(project).image


def listed(glance, name):
    return [image for hidden in (False, True) for image in glance.images(is_hidden=hidden) if image["name"] == name]


def record(glance, image):
    return glance.get(f"/images/{image['id']}").json()


def qemu_io(path, image_format, *commands):
    asked = [part for command in commands for part in ("-c", command)]
    subprocess.run(["qemu-io", "-f", image_format, *asked, path], check=True, capture_output=True)


def download(glance, image, path):
    """The image's bytes, in a file that has passed qemu's own check."""
    with glance.get(f"/images/{image['id']}/file", stream=True) as response, path.open("wb") as file:
        for piece in response.iter_content(MIB):
            file.write(piece)
    if image["disk_format"] == "qcow2":
        assert "No errors were found" in qemu_img("check", "-f", "qcow2", path)
    return path


def same_disk(path, image_format, copy, copy_format):
    return "identical" in qemu_img("compare", "-f", image_format, "-F", copy_format, path, copy)


@pytest.fixture(scope="session")
def libraries(tmp_path_factory):
    """A folder from which the host's Python gets Ansible and the collections, and nothing else."""
    folder = tmp_path_factory.mktemp("libraries")
    (folder / "ansible").symlink_to(Path(ansible.__file__).parent)
    (folder / "ansible_collections").symlink_to(Path(next(iter(collection.__path__))).parents[1])
    return folder


@pytest.fixture
def play(libraries, tmp_path):
    """Runs a module as a host does, without a playbook around it."""

    def play(module, task, check=False, python=HOST_PYTHON):
        environment = {**os.environ, "PYTHONPATH": str(libraries), "HOME": str(tmp_path)}
        arguments = {**yaml.safe_load(task), "_ansible_check_mode": check, "_ansible_remote_tmp": str(tmp_path)}
        run = subprocess.run(
            [python, "-m", f"ansible_collections.imageferry.glance.plugins.modules.{module}"],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert run.stdout, run.stderr
        return {"failed": False, **json.loads(run.stdout)}

    return play


def virtual_size(path, image_format):
    return json.loads(qemu_img("info", "-U", "-f", image_format, "--output=json", path))["virtual-size"]
