# SPDX-License-Identifier: GPL-3.0-or-later
"""An image that is read by NBD where a server holds it, by qemu's own client."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt import disc_server

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "integration"))
from faulty_proxy import GOOD, Fault, FaultyProxy, FileServer

pytestmark = pytest.mark.skipif(not shutil.which("qemu-io"), reason="qemu-io is not installed")
BLOCK = disc_server.BLOCK
CONTENT = b"".join(bytes([number]) * BLOCK for number in range(1, 4)) + b"the end"


@pytest.fixture
def proxy(tmp_path):
    (tmp_path / "image").write_bytes(CONTENT)
    server = FileServer(tmp_path)
    proxy = FaultyProxy(server.url())
    yield proxy
    proxy.stop()
    server.stop()


class Disc:
    """The image, served from C(folder)."""

    def __init__(self, folder, url, patience):
        self.folder, self.socket = folder, folder / "socket"
        folder.mkdir()
        self.said = ""
        self.hold("first")
        settings = {"url": url, "size": len(CONTENT), "verify": True, "socket": str(self.socket), "patience": patience}
        (folder / "settings.json").write_text(json.dumps(settings))
        command = [sys.executable, "-I", disc_server.__file__, folder]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while not self.socket.exists() and self.process.poll() is None:
            time.sleep(0.02)

    def hold(self, token):
        draft = self.folder / "token.draft"  # a read that goes on must not see half of it
        draft.write_text(token)
        draft.replace(self.folder / "token")

    def run(self, command, *options):
        run = ["qemu-io", *options, "-f", "raw", "-c", command, f"nbd+unix:///?socket={self.socket}"]
        return subprocess.run(run, capture_output=True, text=True, check=False)

    def reads(self, number, byte):
        """Whether the block of this number is full of the byte."""
        answered = self.run(f"read -P {byte} {number * BLOCK} {BLOCK}", "-r")
        return answered.returncode == 0 and "failed" not in answered.stdout

    def error(self):
        """What it has said, once it was ended."""
        self.process.terminate()
        self.said = self.said or self.process.communicate()[1]
        return self.said


@pytest.fixture
def serve(tmp_path):
    discs = []

    def serve(url, patience=0):
        discs.append(Disc(tmp_path / "disc", url, patience))
        return discs[-1]

    yield serve
    for disc in discs:
        disc.error()


def test_an_image_is_read_and_nothing_else(serve, proxy):
    disc = serve(proxy.url("/image"))
    assert disc.reads(0, 1) and disc.reads(2, 3)
    asked = [seen.headers["range"] for seen in proxy.gets]
    assert asked == [f"bytes=0-{BLOCK - 1}", f"bytes={2 * BLOCK}-{3 * BLOCK - 1}"], "each block once"
    assert {seen.headers["x-auth-token"] for seen in proxy.gets} == {"first"}
    assert disc.run("write 0 512").returncode != 0 and disc.reads(0, 1)
    assert stat.S_IMODE(os.stat(disc.socket).st_mode) == 0o600


def test_a_token_that_is_refused_is_replaced(serve, proxy):
    proxy.programme(GOOD, Fault(status=401), Fault(status=401))
    disc = serve(proxy.url("/image"))
    assert not disc.reads(1, 2), "the token has expired"
    disc.hold("second")
    proxy.programme()
    assert disc.reads(1, 2)
    assert proxy.gets[-1].headers["x-auth-token"] == "second"


def test_a_read_waits_for_a_token_that_is_not_refused(serve, proxy):
    proxy.programme(GOOD, Fault(status=401), Fault(status=401))
    disc = serve(proxy.url("/image"), patience=60)
    with ThreadPoolExecutor() as pool:
        reading = pool.submit(disc.reads, 1, 2)
        for number, token in enumerate(("second", "third"), 2):
            while len(proxy.gets) < number and not reading.done():
                time.sleep(0.02)
            disc.hold(token)
        assert reading.result()
    assert [seen.headers["x-auth-token"] for seen in proxy.gets] == ["first", "first", "second", "third"]


def test_a_read_does_not_wait_for_ever(serve, proxy):
    proxy.programme(GOOD, *[Fault(status=401)] * 9)
    disc, begun = serve(proxy.url("/image"), patience=1), time.monotonic()
    assert not disc.reads(1, 2) and time.monotonic() - begun >= 1 and len(proxy.gets) == 2
    assert "expired" in disc.error()


def test_a_connection_that_breaks_is_made_again(serve, proxy):
    proxy.programme(GOOD, Fault(cut=1000), Fault(cut=1000, reset=True))
    assert serve(proxy.url("/image")).reads(1, 2)


@pytest.mark.parametrize(
    "fault",
    [Fault(status=302, headers={"Location": "http://127.0.0.1:1/image"}), Fault(drop_range=True), Fault(status=500)],
)
def test_only_what_was_asked_for_is_taken(serve, proxy, fault):
    proxy.programme(GOOD, fault)
    disc = serve(proxy.url("/image"))
    assert not disc.reads(1, 2) and disc.reads(0, 1)
    assert "Glance answered" in disc.error() and len(proxy.gets) == 2


def test_an_image_that_cannot_be_read_is_not_served(serve, proxy):
    proxy.programme(Fault(status=404))
    disc = serve(proxy.url("/image"))
    assert disc.process.wait() == 1 and not disc.socket.exists() and "404" in disc.error()
