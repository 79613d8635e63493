# SPDX-License-Identifier: GPL-3.0-or-later
"""Images made by the real qemu-img."""

from __future__ import annotations

import subprocess

import pytest


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
