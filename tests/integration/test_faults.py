# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults on the way, seen as a user sees them: the whole task, from ansible-playbook to the file."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.control import SilentControl
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.digest import Digest
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.exchange import HttpOptions
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.receive import Reception
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.source import HttpSource
from ansible_collections.imageferry.glance.plugins.module_utils._volume.sparse import SparseWriter

from .conftest import CLOUD_VENV

sys.path.insert(0, str(Path(__file__).resolve().parent))
from faulty_proxy import Fault, FaultyProxy, FileServer

MIB = 1024**2


@pytest.fixture(scope="module")
def server(images):
    server = FileServer(images["disk-qcow2"].parent)
    yield server
    server.stop()


@pytest.fixture
def proxy(server):
    proxy = FaultyProxy(server.url())
    yield proxy
    proxy.stop()


@pytest.fixture
def task(proxy, images, tmp_path):
    """An import through the proxy; C(tmp_path/volume) is where it goes."""
    checksum = hashlib.sha512(images["disk-qcow2"].read_bytes()).hexdigest()
    return (
        f"url: {proxy.url('/disk.qcow2')}\nchecksum: sha512:{checksum}\nsource_format: qcow2\n"
        f"path: {tmp_path}/volume\nretries: 1\ntimeout: 1\n"
    )


def is_untouched(tmp_path):
    return os.listdir(tmp_path) == ["play"]


def test_a_network_that_fails_in_many_ways_delivers_in_the_end(import_image, images, proxy, task, tmp_path):
    proxy.programme(
        Fault(status=503),
        Fault(cut=MIB // 4, reset=True),
        Fault(cut=MIB // 4, stall=3),
        Fault(status=416),
        Fault(flip=MIB // 2),
    )
    result = import_image(task + "retries: 5\n")
    assert result["changed"] and (tmp_path / "volume").read_bytes() == images["disk-qcow2"].read_bytes()
    assert (result["transfer"]["reconnects"], result["transfer"]["restarts"]) == (3, 2)
    proxy.seen.clear()
    assert not import_image(task)["changed"] and proxy.gets == []


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(cut=MIB // 4, drop_range=True), "transfer_failed"),
        (Fault(flip=MIB // 2), "checksum_mismatch"),
        (Fault(status=404), "image_not_found"),
    ],
)
def test_a_network_that_never_delivers_leaves_nothing(import_image, proxy, task, tmp_path, fault, error):
    proxy.programme(then=itertools.repeat(fault))
    result = import_image(task)
    assert result["failed"] and result["error"] == error and is_untouched(tmp_path)
    if error == "checksum_mismatch":  # and the next plain run succeeds
        proxy.programme()
        assert import_image(task)["changed"]


def test_what_was_there_stays_when_the_new_one_does_not_come(import_image, proxy, task, tmp_path):
    (tmp_path / "volume").write_text("precious")
    proxy.programme(then=itertools.repeat(Fault(flip=MIB // 2)))
    assert import_image(task + "overwrite: different")["error"] == "checksum_mismatch"
    assert (tmp_path / "volume").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["play", "volume"]


def test_a_redirect_to_another_server_gets_no_header_and_shows_no_secret(import_image, server, proxy, task, tmp_path):
    elsewhere = FaultyProxy(server.url())
    try:
        proxy.programme(Fault(status=302, headers={"Location": elsewhere.url("/disk.qcow2?key=s3cret")}))
        assert import_image(task + "headers: {X-Key: s3cret}", "-vvvv")["changed"]
    finally:
        elsewhere.stop()
    assert proxy.gets[0].headers["x-key"] == "s3cret"
    assert len(elsewhere.gets) == 1 and "x-key" not in elsewhere.gets[0].headers
    assert "key=s3cret" not in import_image.output


def test_a_hostile_qcow2_of_a_right_hash_is_refused(import_image, proxy, images, tmp_path):
    path = images["disk-qcow2"].with_name("hostile")
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", path, "1M"], check=True
    )
    checksum = hashlib.sha512(path.read_bytes()).hexdigest()
    task = f"url: {proxy.url('/hostile')}\nchecksum: sha512:{checksum}\npath: {tmp_path}/volume\n"
    assert import_image(task + "source_format: qcow2")["error"] == "unsafe_image"
    assert import_image(task + "source_format: raw")["error"] == "format_mismatch"
    assert is_untouched(tmp_path)


def test_a_real_glance_continues_after_a_cut_and_a_renewed_token(cloud, images, tmp_path):
    token = openstack(cloud, "token", "issue", "-c", "id")
    image = openstack(cloud, "image", "show", "disk-raw", "-c", "id")
    proxy = FaultyProxy(cloud.image_url)
    supply = type("Tokens", (), {"renew": lambda self: token})()
    options = HttpOptions(token="an expired one", tokens=supply)
    source = HttpSource(proxy.url(f"/v2/images/{image}/file"), images["disk-raw"].stat().st_size, options)
    digest = Digest("sha512", hashlib.sha512(images["disk-raw"].read_bytes()).hexdigest())
    try:
        proxy.programme(Fault(), Fault(cut=20 * MIB))  # the first is Glance's own 401
        with open(tmp_path / "disk", "w+b") as file:
            received = Reception(source, SparseWriter(file.fileno()), digest, lambda *_: None, SilentControl()).run()
    finally:
        source.close()
        proxy.stop()
    assert (received.reconnects, received.restarts) == (1, 0)
    assert [seen.headers.get("range") for seen in proxy.gets] == [None, None, f"bytes={20 * MIB}-"]


def openstack(cloud, *command):
    program = [CLOUD_VENV / "bin" / "openstack", "--os-cloud", "demo", *command, "-f", "value"]
    environment = {**os.environ, "OS_CLIENT_CONFIG_FILE": str(cloud.clouds_yaml)}
    return subprocess.run(program, env=environment, check=True, capture_output=True, text=True).stdout.strip()


def test_nothing_listens_there(import_image, task, tmp_path, proxy):
    proxy.stop()
    result = import_image(task)
    assert result["error"] == "connection_failed" and str(proxy.port) in result["msg"] and is_untouched(tmp_path)
