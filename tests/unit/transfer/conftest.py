# SPDX-License-Identifier: GPL-3.0-or-later
"""A real server, a faulty proxy before it, and an import's way from an address to a file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import sys
from pathlib import Path

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._image.formats import check_head
from ansible_collections.imageferry.glance.plugins.module_utils._transfer import pacing as pacing_module
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.digest import Digest
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.exchange import HttpOptions
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.parallel import ParallelSource
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.receive import Reception
from ansible_collections.imageferry.glance.plugins.module_utils._volume.file import FileVolume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import Provenance

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "integration"))
import faulty_proxy


def make_content(size: int) -> bytes:
    """A third of it zeros, the rest different at each place."""
    noise = random.Random(size)
    data = bytearray(noise.getrandbits(8 * size).to_bytes(size, "little"))
    data[size // 3 : 2 * size // 3] = bytes(2 * size // 3 - size // 3)
    return bytes(data)


CONTENT = make_content(3 * 1024**2 + 777)
DIGEST = Digest("sha512", hashlib.sha512(CONTENT).hexdigest())


class Watcher:
    def advance(self, position, size):
        pass


def check_raw(head, size):
    check_head(head, "raw", size, None)


class Fetch:
    """Carries what is at an address to a file, which appears whole and verified or not at all."""

    def __init__(self, folder):
        self.path = folder / "disk"

    def __call__(self, url, size=None, expected=DIGEST, limit=None, **options):
        provenance = Provenance(url, None, None, None, None, "raw")
        source = ParallelSource(url, size, HttpOptions(**{"timeout": 5, **options}))
        with (
            contextlib.closing(source),
            FileVolume(str(self.path)) as volume,
            volume.staged(1, provenance, False) as staged,
        ):
            received = Reception(source, staged.sink, expected, check_raw, Watcher(), limit).run()
            staged.publish(provenance, False)
        assert self.path.read_bytes() == CONTENT
        return received

    def fails(self, error, *args, **options):
        with pytest.raises(error) as caught:
            self(*args, **options)
        assert os.listdir(self.path.parent) == []
        return str(caught.value)


@pytest.fixture
def fetch(tmp_path):
    folder = tmp_path / "volumes"
    folder.mkdir()
    return Fetch(folder)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    (folder / "image").write_bytes(CONTENT)
    return folder


@pytest.fixture(scope="session")
def server(folder):
    server = faulty_proxy.FileServer(folder)
    yield server
    server.stop()


@pytest.fixture
def proxy(server):
    proxy = faulty_proxy.FaultyProxy(server.url())
    yield proxy
    proxy.stop()


@pytest.fixture
def other_proxy(server):
    proxy = faulty_proxy.FaultyProxy(server.url())
    yield proxy
    proxy.stop()


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """The pauses that would have been made between attempts, which are not."""
    made = []
    wanted = pacing_module._backoff
    monkeypatch.setattr(pacing_module, "_backoff", lambda failures: made.append(wanted(failures)) or 0)
    return made
