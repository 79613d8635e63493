# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a volume came from is kept on every file system, and only for the file that it is true of."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import (
    Provenance,
    read_provenance,
    write_provenance,
)

HELD = Provenance("an id", "a name", "sha512", "00ff", 7, "raw", "2026-01-01T00:00:00Z")
SIDECAR = ".disk.imageferry.json"


@pytest.fixture(params=["tmpfs", "ramfs"])
def folder(request, mount):
    """On tmpfs there are extended attributes, on ramfs there are none."""
    return mount(request.param)


class Disk:
    """The file C(disk) in a folder, open."""

    def __init__(self, folder):
        self.path = folder / "disk"

    def __enter__(self):
        self.path.touch()
        self.folder = os.open(self.path.parent, os.O_RDONLY)
        self.fd = os.open(self.path, os.O_RDWR)
        return self

    def __exit__(self, *_exc):
        os.close(self.fd)
        os.close(self.folder)

    def write(self, provenance):
        write_provenance(provenance, self.fd, self.folder, "disk")

    def read(self):
        return read_provenance(self.fd, self.folder, "disk")


def test_it_is_kept(folder):
    with Disk(folder) as disk:
        assert disk.read() is None
        disk.write(HELD)
        disk.write(replace(HELD, name="another"))
        assert disk.read() == replace(HELD, name="another")
    assert sorted(os.listdir(folder)) == ([SIDECAR, "disk"] if "ramfs" in str(folder) else ["disk"])


def test_it_says_nothing_about_another_file(folder):
    with Disk(folder) as disk:
        disk.write(HELD)
        (folder / "new").write_text("")
        (folder / "new").rename(folder / "disk")
    with Disk(folder) as disk:
        assert disk.read() is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"1": {}}', b"\xff" * 100, b"[" * 100000])
def test_a_sidecar_that_makes_no_sense_is_not_believed(mount, content):
    folder = mount("ramfs")
    (folder / SIDECAR).write_bytes(content)
    with Disk(folder) as disk:
        assert disk.read() is None
        inode = os.fstat(disk.fd).st_ino
        for value in (None, [], {}, {"source": 1}, "text"):
            (folder / SIDECAR).write_text(json.dumps({str(inode): value}))
            assert disk.read() is None


@pytest.mark.parametrize("suffix", ["", ".new"])
@pytest.mark.parametrize("kind", ["symlink", "link", "fifo", "folder"])
def test_a_sidecar_that_is_no_file_harms_nobody(mount, kind, suffix):
    folder = mount("ramfs")
    victim, place = folder / "victim", folder / (SIDECAR + suffix)
    victim.write_text("precious")
    if kind == "symlink":
        place.symlink_to(victim)
    elif kind == "link":
        os.link(victim, place)
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place.mkdir()
    with Disk(folder) as disk:
        assert disk.read() is None
        if kind == "folder":
            with pytest.raises(OSError, match="directory"):
                disk.write(HELD)
        else:
            disk.write(HELD)
            assert disk.read() == HELD
    assert victim.read_text() == "precious"


def test_the_same_image_is_known_by_its_hash_else_by_its_source():
    assert HELD.is_same_image(replace(HELD, source="other", name=None, imported_at=None))
    assert not HELD.is_same_image(replace(HELD, hash_value="00fe"))
    assert not HELD.is_same_image(replace(HELD, hash_algo="md5", source="other"))
    assert replace(HELD, hash_value=None).is_same_image(replace(HELD, hash_value=None))
    assert HELD.is_same_image(replace(HELD, hash_algo=None, hash_value=None))


@pytest.mark.parametrize("known", [{"hash_algo": "md5"}, {"hash_algo": None, "hash_value": None}])
def test_only_of_an_image_in_glance_a_hash_that_cannot_be_compared_is_no_news(known):
    in_glance = replace(HELD, source="6f1b2c3d-0000-4000-8000-00000000abcd")
    assert replace(in_glance, **known).is_same_image(in_glance)
    assert not replace(in_glance, **known).is_doubtful(in_glance)
    assert not replace(HELD, **known).is_same_image(HELD) and replace(HELD, **known).is_doubtful(HELD)
