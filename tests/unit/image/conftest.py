# SPDX-License-Identifier: GPL-3.0-or-later
"""Images made by the real qemu-img, and disks to make them of."""

from __future__ import annotations

import contextlib
import random
import subprocess

import pytest
from ansible_collections.imageferry.glance.tests.unit.image.raw_disk import RawDisk

MIB = 1024**2


def run(*command):
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def make(tmp_path):
    """Makes an image of a format with options, and writes data into it as commands of qemu-io say."""

    def make(image_format="qcow2", options="", size="10M", writes=(), arguments=()):
        path = tmp_path / f"image.{image_format}"
        create = ["qemu-img", "create", "-f", image_format, *arguments]
        run(*create, *(["-o", options] if options else []), path, size)
        for write in writes:
            run("qemu-io", "-f", image_format, "-c", write, path)
        return path

    return make


@pytest.fixture
def disk(tmp_path):
    """A raw disk with data, holes and zeros of all lengths, that does not end with a cluster."""

    def disk(size=20 * MIB + 4096, seed=1):
        rng, path = random.Random(seed), tmp_path / f"disk{seed}"
        with open(path, "wb") as file:
            position = 0
            while position < size:
                length = min(rng.choice([512, 4096, 65536, 300_000, 2 * MIB]), size - position)
                if rng.random() < 0.6:
                    file.seek(position)
                    file.write(rng.choice([rng.randbytes(length), b"text " * (length // 5), bytes(length)]))
                position += length
            file.truncate(size)
        return path

    return disk


@pytest.fixture
def flat():
    """Opens a raw file as a flat disk."""
    with contextlib.ExitStack() as opened:
        yield lambda path: RawDisk(opened.enter_context(open(path, "rb", buffering=0)).fileno())


@pytest.fixture
def image(tmp_path):
    """Writes a body into a file, as it is sent."""

    def image(body, name="image"):
        with open(tmp_path / name, "wb", buffering=0) as file:
            for piece in body.pieces():
                file.write(piece)
        assert (tmp_path / name).stat().st_size == body.length
        return tmp_path / name

    return image


@pytest.fixture
def same_disk():
    """Has qemu-img see whether a qcow2 is sound, without leaks, and the same as a raw disk."""

    def same_disk(path, raw):
        run("qemu-img", "check", "-f", "qcow2", path)
        run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", path, raw)

    return same_disk
