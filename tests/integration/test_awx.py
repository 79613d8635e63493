# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection in AWX: its assets, its execution environment, and jobs as AWX has ansible-runner run them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import ansible_runner
import pytest
import yaml
from awx_plugins.credentials.plugins import ManagedCredentialType
from awx_plugins.credentials.plugins import openstack as builtin_openstack
from awx_plugins.interfaces._temporary_private_credential_api import Credential
from awx_plugins.interfaces._temporary_private_inject_api import inject_credential
from awx_stand_in import StandIn
from conftest import CLOUD_VENV, HOST_PYTHON, MIB, ROOT, connect, descendants, wait_for
from faulty_proxy import GOOD, Fault, FaultyProxy

VENV = Path(sys.prefix)
ASSETS = yaml.safe_load((ROOT / "awx" / "assets.yml").read_text())
TEMPLATES = {Path(template["playbook"]).stem: template for template in ASSETS["job_templates"]}
LOOKS = [GOOD] * 4  # the controller asks twice for versions, finds the image, and reads its header
BEGUN = re.compile(r"host0: .* of 64\.3 MiB")  # of the qcow2 that is sent; the disk, which is read before, has 64.0
HALFWAY = re.compile(r"host0: disk-raw: 50 % of 64\.0 MiB")


def questions(template):
    return template["related"]["survey_spec"]["spec"]


def answered(playbook, **answers):
    """What AWX hands to a job: an answer to each question, empty or its default where nothing was answered."""
    asked = {question["variable"]: question.get("default", "") for question in questions(TEMPLATES[playbook])}
    assert set(answers) <= set(asked)
    return {**asked, **answers}


class Job:
    """Jobs as AWX runs them, each of them with this private data directory.

    :param folder: the private data directory; a container would have it as C(/runner).
    """

    def __init__(self, folder, monkeypatch):
        self.folder = folder
        self.home = folder / "home"
        for name in ("env", "inventory", "home"):
            (folder / name).mkdir(parents=True)
        (folder / "project").symlink_to(ROOT)
        # A host does not have the environment of the job.
        python = folder / "python"
        python.write_text(f'#!/bin/sh\nexec env -u OS_CLIENT_CONFIG_FILE -u REQUESTS_CA_BUNDLE {HOST_PYTHON} "$@"\n')
        python.chmod(0o755)
        host = f"host0 ansible_connection=local ansible_python_interpreter={python}\n"
        (folder / "inventory" / "hosts").write_text(host)
        (folder / "env" / "settings").write_text(json.dumps({"pexpect_timeout": 1, "suppress_ansible_output": True}))
        for name in ("OS_CLOUD", "PYTHONPATH"):
            monkeypatch.delenv(name, raising=False)
        self.environment = {
            "PATH": f"{VENV / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "ANSIBLE_HOME": str(self.home / ".ansible"),
            # Ansible looks up the home of a local host's user, whatever HOME says.
            "ANSIBLE_ASYNC_DIR": str(self.home / ".ansible_async"),
            "ANSIBLE_REMOTE_TMP": str(self.home / ".ansible" / "tmp"),
            "ANSIBLE_FORCE_COLOR": "True",
        }
        self.events = []

    def give(self, kind, **inputs):
        """Gives a credential to the next jobs, by AWX's own code."""
        environment = {}
        inject_credential(kind, Credential(inputs), environment, {}, [], str(self.folder))
        outside = {name: re.sub("^/runner", str(self.folder), value) for name, value in environment.items()}
        self.environment |= outside

    def run(self, playbook, until=None, verbosity=0, **variables):
        """Runs a playbook of the project, or what of it there is until its output has V(until); returns the status."""
        (self.folder / "env" / "envvars").write_text(json.dumps(self.environment))
        (self.folder / "env" / "extravars").write_text(json.dumps(variables))
        self.events = []
        return ansible_runner.run(
            private_data_dir=str(self.folder),
            playbook=f"playbooks/{playbook}.yml",
            verbosity=verbosity,
            event_handler=lambda event: self.events.append(event) or True,
            cancel_callback=lambda: bool(until and until.search(self.output)) and self._end_container(),
        ).status

    def _end_container(self):
        """Ends what runs on the controller, as the end of its container does; what it has started on hosts stays."""
        for pid in descendants(os.getpid()):
            if str(self.folder / "inventory").encode() in command_line(pid):
                os.kill(pid, signal.SIGKILL)
        return True

    @property
    def output(self):
        return "\n".join(event["stdout"] for event in self.events)

    def result_of(self, module):
        """What the last task with this module returned on the only host, by its event."""
        told = [event["event_data"] for event in self.events if event["event"] in ("runner_on_ok", "runner_on_failed")]
        return [data["res"] for data in told if data["task_action"] == module][-1]

    def has_ended_on_host(self):
        return not any(str(self.home).encode() in command_line(pid) for pid in os.listdir("/proc"))


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture
def job(tmp_path, monkeypatch):
    return Job(tmp_path / "runner", monkeypatch)


@pytest.fixture
def clouds_type():
    """The credential type that is imported into AWX."""
    (described,) = ASSETS["credential_types"]
    known = {name: described[name] for name in ("name", "kind", "inputs", "injectors")}
    return ManagedCredentialType(namespace="", **known)


@pytest.fixture
def far(cloud, tmp_path):
    """A way to Glance that halts, with a certificate that only a CA of its own vouches for; and that CA's."""
    folder = tmp_path / "certificates"
    subprocess.run([CLOUD_VENV / "bin" / "python", ROOT / "tests" / "cloud" / "certificates.py", folder], check=True)
    (folder / "server.pem").write_text((folder / "server.crt").read_text() + (folder / "server.key").read_text())
    proxy = FaultyProxy(cloud.image_url, folder / "server.pem")
    # For longer than a transfer goes on which nobody watches, however often it asks again.
    proxy.programme(*LOOKS, Fault(cut=32 * MIB, stall=60), *[Fault(cut=1, stall=60)] * 3)
    yield proxy, (folder / "ca.crt").read_text()
    proxy.stop()


def test_a_cancelled_job_has_told_how_far_it_was_and_the_next_goes_on(job, clouds_type, cloud, far, images, tmp_path):
    proxy, certificates = far
    clouds = yaml.safe_load(cloud.clouds_yaml.read_text())["clouds"]
    clouds["far"] = {**clouds["demo"], "image_endpoint_override": proxy.url("/v2")}
    job.give(clouds_type, clouds_yaml=yaml.safe_dump({"clouds": clouds}), cloud="demo", ca_cert=certificates)
    variables = answered("import_image", image="disk-raw", path=f"{tmp_path}/volume")

    assert job.run("import_image", until=HALFWAY, **{**variables, "cloud": "far"}) == "canceled", job.output
    wait_for(job.has_ended_on_host, timeout=180)
    assert not (tmp_path / "volume").exists()

    assert job.run("import_image", verbosity=4, **variables) == "successful", job.output
    result = job.result_of("imageferry.glance.glance_image_import")
    assert result["changed"] and 0 < result["transfer"]["resumed_from"] <= 33 * MIB
    assert "an earlier run had brought" in str(job.result_of("ansible.builtin.debug")["msg"])
    assert (tmp_path / "volume").read_bytes() == images["disk-raw"].read_bytes()

    kept = [path for path in (job.folder / "artifacts").rglob("*") if path.is_file()]
    assert len(kept) > len(job.events) > 0
    assert [path for path in kept if re.search(rb"demo-pw|admin-pw|gAAAA", path.read_bytes())] == []


def test_a_backup_that_was_cancelled_is_none_and_the_next_job_makes_it(job, clouds_type, cloud, tmp_path):
    disk = tmp_path / "disk"
    disk.write_bytes(os.urandom(64 * MIB))
    job.give(clouds_type, clouds_yaml=cloud.clouds_yaml.read_text(), cloud="demo")
    volume = {"path": str(disk), "source_format": "raw"}
    slow = {"image_backup_volumes": [{**volume, "rate_limit": "256KiB"}]}
    variables = {**answered("backup"), "backup_set": "cancelled"}
    glance = connect(cloud).image
    there = {image.id for image in glance.images()}

    def made():
        found = [image for hidden in (False, True) for image in glance.images(is_hidden=hidden)]
        return [image for image in found if image.id not in there]

    assert job.run("backup", until=BEGUN, **variables, **slow) == "canceled", job.output
    assert [image.status for image in made()] in (["queued"], ["saving"])
    wait_for(job.has_ended_on_host, timeout=180)

    assert job.run("backup", **variables, image_backup_volumes=[volume]) == "successful", job.output
    assert re.search(r"host0 +changed +\S+ Backed up", job.output), job.output
    (backup,) = made()
    assert backup.status == "active" and backup.properties["owner_specified.imageferry.backup.set"] == "cancelled"


def test_awxs_own_openstack_credential_will_do(job, cloud, images, tmp_path):
    auth = yaml.safe_load(cloud.clouds_yaml.read_text())["clouds"]["demo"]["auth"]
    job.give(
        builtin_openstack, host=auth["auth_url"], username="demo", password=auth["password"],
        project=auth["project_name"], project_domain_name="Default", domain="Default", region="RegionOne",
        verify_ssl=True,
    )  # fmt: skip
    answers = answered("import_image", image="disk-qcow2", path=f"{tmp_path}/volume")
    (job.folder / "answers.json").write_text(json.dumps(answers))
    run = subprocess.run(
        [VENV / "bin" / "ansible-navigator", "run", job.folder / "project" / "playbooks" / "import_image.yml",
         "--inventory", job.folder / "inventory" / "hosts", "--extra-vars", f"@{job.folder}/answers.json",
         "--execution-environment", "false", "--mode", "stdout", "--playbook-artifact-enable", "false",
         "--log-file", job.folder / "navigator.log"],
        env={**os.environ, **job.environment}, cwd=job.folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"host0 +changed +Imported", run.stdout), run.stdout
    assert (tmp_path / "volume").read_bytes() == images["disk-qcow2"].read_bytes()


def test_the_assets_can_be_imported_again_and_again(tmp_path):
    awx = StandIn()
    command = [VENV / "bin" / "awx", "--conf.host", awx.url().rstrip("/"), "--conf.token", "a", "-f", "yaml", "import"]
    for _attempt in range(2):
        with (ROOT / "awx" / "assets.yml").open() as file:
            run = subprocess.run(
                command, env={"HOME": str(tmp_path)}, stdin=file, capture_output=True, text=True, check=False
            )
        assert run.returncode == 0 and awx.refused == [], (run.stdout, run.stderr, awx.refused)
    awx.stop()
    for resource, assets in ASSETS.items():
        for asset, imported in zip(assets, awx.assets[resource], strict=True):
            assert set(asset) - {"natural_key", "related"} == set(imported) - {"id"}, "AWX has no such field"
    assert awx.surveys == {asset["name"]: asset["related"]["survey_spec"] for asset in ASSETS["job_templates"]}
    assert {asset["project"] for asset in awx.assets["job_templates"]} == {1}
    assert {asset["execution_environment"] for asset in awx.assets["job_templates"]} == {1}


@pytest.mark.parametrize("playbook", TEMPLATES)
def test_a_survey_asks_for_what_its_playbook_takes(playbook):
    header, body = (ROOT / TEMPLATES[playbook]["playbook"]).read_text().split("\n- name: ", 1)
    told = set(re.findall(r"\w+", " ".join(re.findall(r"^# (\w+(?:, \w+)*(?=  |$)| +or .*)", header, re.MULTILINE))))
    for question in questions(TEMPLATES[playbook]):
        name = question["variable"]
        assert name in told, f"the playbook's header does not tell of {name}"
        assert re.search(rf"\b{name}\b", body), f"the playbook does not use {name}"
        defaults = re.findall(rf"\b{name} \| default\(([^()]*)\)", body)
        wrong = [default for default in defaults if default != "''" and not default.endswith(", true")]
        assert not wrong, f"an empty {name}, which is what AWX gives if nobody answers, is taken for one"


def test_the_execution_environment_has_the_collection_and_all_that_it_needs(tmp_path):
    """All but what takes a container: its files are made, and the collection is installed as they say."""
    environment = {**os.environ, "PATH": f"{VENV / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path)}

    def run(*command):
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("ansible-builder", "create", "-f", ROOT / "awx" / "execution-environment.yml", "-c", tmp_path)
    requirements = yaml.safe_load((tmp_path / "_build" / "requirements.yml").read_text())
    (collection,) = requirements["collections"]
    collection.update(name=f"git+file://{ROOT}", version="HEAD")
    (tmp_path / "requirements.yml").write_text(yaml.safe_dump(requirements))
    run("ansible-galaxy", "collection", "install", "-r", "requirements.yml", "--collections-path", tmp_path)
    found = yaml.safe_load(run("ansible-builder", "introspect", tmp_path))
    needed = {kind: {line.split("  #")[0] for line in found[kind]} for kind in ("python", "system")}
    assert needed == {"python": lines(ROOT / "requirements.txt"), "system": lines(ROOT / "bindep.txt")}
    assert (tmp_path / "ansible_collections" / "imageferry" / "glance" / "playbooks" / "import_image.yml").exists()


def lines(path):
    return {line for line in path.read_text().splitlines() if line and not line.startswith("#")}
