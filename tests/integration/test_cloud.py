# SPDX-License-Identifier: GPL-3.0-or-later
"""The embedded cloud, started and stopped as tests, the demo and people do it."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import openstack
import pytest
import requests
from background import ProcessStatus, wait_until
from embedded_cloud import CloudError, CloudOptions, EmbeddedCloud, read_access_log

ROOT = Path(__file__).resolve().parents[2]
CLOUD_VENV = Path(os.environ.get("IMAGEFERRY_CLOUD_VENV", ROOT / ".cache" / "cloud-venv"))
PLAYBOOK = ROOT / "tests" / "cloud" / "cloud.yml"


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Options of clouds of these tests' own, which share a folder: only the first start is a cold one."""
    folder = tmp_path_factory.mktemp("own-cloud")
    yield lambda **choices: CloudOptions(state=folder, venv=CLOUD_VENV, **choices)
    EmbeddedCloud(CloudOptions(state=folder)).stop()


@pytest.fixture(scope="module")
def play(options, tmp_path_factory):
    """Runs cloud.yml and a play that looks for the cloud; says how many tasks changed something, None if it failed."""
    playbook = tmp_path_factory.mktemp("play") / "playbook.yml"
    is_told = {"that": "hostvars.localhost.embedded_cloud.clouds_yaml == cloud_folder ~ '/clouds.yaml'"}
    look = {"hosts": "localhost", "gather_facts": False, "tasks": [{"ansible.builtin.assert": is_told}]}
    playbook.write_text(json.dumps([{"ansible.builtin.import_playbook": str(PLAYBOOK)}, look]))

    def run(*arguments, **variables):
        variables = {"cloud_folder": str(options().state), "cloud_venv": str(CLOUD_VENV), **variables}
        command = [f"{sys.prefix}/bin/ansible-playbook", playbook, "-e", json.dumps(variables), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        run.output = done.stdout + done.stderr
        return None if done.returncode else int(re.search(r"changed=(\d+)", run.output)[1])

    return run


@pytest.fixture
def unusual(options, play):
    """A cloud that has every option, started by the playbook."""
    chosen = {"tls": True, "token_lifetime": 5, "ranges": "refuse", "stores": ["fast", "slow"], "size_quota": 2**20}
    assert play(**{f"cloud_{name}": value for name, value in chosen.items()}) == 1
    with EmbeddedCloud(options(**{**chosen, "stores": ("fast", "slow")})) as cloud:
        yield cloud


def connect(cloud, **overrides):
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OS_CLIENT_CONFIG_FILE", str(cloud.clouds_yaml))
        return openstack.connect(cloud="demo", **overrides)


def upload(connection, data):
    return connection.image.create_image(secrets.token_hex(4), data=data, disk_format="raw", container_format="bare")


def download(connection, image, **headers):
    return connection.image.get(f"/images/{image.id}/file", headers=headers)


def timed(action):
    began = time.monotonic()
    result = action()
    return result, time.monotonic() - began


def pids(cloud):
    return [server.pid for server in cloud.servers.values()]


def test_a_start_is_cold_once_and_idempotent(options, capsys):
    cloud = EmbeddedCloud(options())
    started, cold = timed(cloud.start)
    image = upload(connect(cloud), b"kept")
    before, addresses = pids(cloud), (cloud.auth_url, cloud.image_url)

    other = EmbeddedCloud(options())
    again, repeated = timed(other.start)
    assert started and not again and other.running and pids(other) == before
    with pytest.raises(CloudError, match="already runs with ranges=serve"):
        EmbeddedCloud(options(ranges="refuse")).start()
    assert pids(EmbeddedCloud(options())) == before and cloud.running

    assert other.stop() and not other.stop() and not cloud.running
    started, warm = timed(cloud.start)
    assert started and (cloud.auth_url, cloud.image_url) == addresses
    assert download(connect(cloud), image).content == b"kept"
    cloud.stop()
    with capsys.disabled():
        print(f"\ncloud start: cold {cold:.1f} s, warm {warm:.1f} s, running {repeated:.2f} s")


def test_a_cloud_that_died_in_part_is_stopped_and_started_again(options):
    with EmbeddedCloud(options()) as cloud:
        os.killpg(cloud.glance.pid, signal.SIGKILL)
        keystone = cloud.keystone.pid
        assert wait_until(lambda: not cloud.running, 10) and cloud.start()
        assert cloud.running and cloud.keystone.pid != keystone and ProcessStatus.of(keystone) is None
    assert not cloud.leftovers


def test_what_the_cloud_did_not_start_is_not_stopped(options):
    cloud = EmbeddedCloud(options())
    cloud.stop()
    record = cloud.state / "cloud.json"
    written = json.loads(record.read_text())
    # The id of a process that ended went to another one, which works in the same folder.
    with subprocess.Popen(["sleep", "60"], cwd=cloud.keystone.folder, start_new_session=True) as stranger:
        started = ProcessStatus.of(stranger.pid).started - 1
        record.write_text(json.dumps({**written, "keystone": {**written["keystone"], "pid": stranger.pid,
                                                              "started": started}}))  # fmt: skip
        try:
            later = EmbeddedCloud(options())
            assert not later.running and not later.stop()
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(CloudError, match="holds other files"):
        EmbeddedCloud(CloudOptions(state=tmp_path, venv=CLOUD_VENV)).start()
    assert os.listdir(tmp_path) == ["precious"]


def test_every_option_has_an_effect(unusual):
    assert unusual.auth_url.startswith("https:") and unusual.image_url.startswith("https:")
    connection = connect(unusual)
    headers = {"X-Auth-Token": connection.auth_token}
    asked = {"url": f"{unusual.image_url}/v2/images", "headers": headers, "verify": str(unusual.ca_cert), "timeout": 20}
    assert requests.get(**asked).status_code == 200
    expired_at = time.monotonic() + 5.5

    with pytest.raises(requests.exceptions.SSLError):
        requests.get(**{**asked, "verify": requests.certs.where()})
    with pytest.raises(openstack.exceptions.SDKException, match="CERTIFICATE_VERIFY_FAILED"):
        connect(unusual, cacert=requests.certs.where()).authorize()

    time.sleep(max(0.0, expired_at - time.monotonic()))
    assert requests.get(**asked).status_code == 401

    connection = connect(unusual)
    image = upload(connection, b"0123456789")
    assert download(connection, image, Range="bytes=3-6").status_code == 400
    assert download(connection, image).content == b"0123456789"

    stores = connection.image.get("/info/stores").json()["stores"]
    assert [(store["id"], store.get("default")) for store in stores] == [("fast", "true"), ("slow", None)]
    with pytest.raises(openstack.exceptions.HttpException, match="413"):
        upload(connect(unusual), bytes(2 * 2**20))


def test_ranges_are_served(cloud):
    connection = connect(cloud)
    image = upload(connection, b"0123456789")
    try:
        answer = download(connection, image, Range="bytes=3-6")
        assert (answer.status_code, answer.content) == (206, b"3456")
    finally:
        connection.image.delete_image(image)


def test_ranges_are_ignored(options):
    with EmbeddedCloud(options(ranges="ignore")) as cloud:
        connection = connect(cloud)
        answer = download(connection, upload(connection, b"0123456789"), Range="bytes=3-6")
        assert (answer.status_code, answer.content) == (200, b"0123456789")

        def logged():
            return any(
                (r.range, r.status, r.sent) == ("bytes=3-6", 200, 10) for r in read_access_log(cloud.glance_access_log)
            )

        assert wait_until(logged, 10)


def test_the_playbook_is_idempotent_and_predicts(options, play, tmp_path):
    assert play("--check", cloud_folder=f"{tmp_path}/new") == 1 and not (tmp_path / "new").exists()
    assert play() == 1
    running = EmbeddedCloud(options())
    assert running.running
    assert play() == play("--check") == 0
    assert play(cloud_ranges="refuse") is None and "stop it first" in play.output
    assert play("--check", cloud_state="stopped") == 1
    assert pids(EmbeddedCloud(options())) == pids(running) and running.running
    assert play(cloud_state="stopped") == 1 and not running.running
    assert play(cloud_state="stopped") == play("--check", cloud_state="stopped") == 0


def test_the_playbook_refuses_other_states(play):
    assert play(cloud_state="absent") is None and "started or stopped" in play.output
