# SPDX-License-Identifier: GPL-3.0-or-later
"""What is written reads as it came, and zeros take no room."""

from __future__ import annotations

import os
import random

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._volume.sparse import BLOCK, SparseWriter


def write(path, pieces, size=None):
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    writer, offset = SparseWriter(fd), 0
    for piece in pieces:
        # The buffer is longer than what is in it, and holds what was there before.
        writer.write(bytearray(piece) + b"stale" * 100, len(piece), offset)
        offset += len(piece)
    writer.finish(offset)
    os.close(fd)
    return writer.zero_bytes


@pytest.mark.parametrize("seed", range(8))
def test_any_pattern_of_zeros_and_data_reads_as_it_came(tmp_path, seed):
    noise = random.Random(seed)
    blocks = [bytes(BLOCK) if noise.random() < 0.5 else noise.randbytes(BLOCK) for _number in range(32)]
    blocks[-1] = blocks[-1][: noise.randrange(1, BLOCK)]
    pieces = [b"".join(blocks[start : start + 4]) for start in range(0, 32, 4)]
    zeros = write(tmp_path / "disk", pieces)
    assert (tmp_path / "disk").read_bytes() == b"".join(blocks)
    assert zeros == sum(len(block) for block in blocks if not any(block))
    assert (tmp_path / "disk").stat().st_blocks * 512 <= 32 * BLOCK - zeros + BLOCK


@pytest.mark.parametrize(
    "content", [b"\1" + bytes(BLOCK - 1), bytes(BLOCK - 1) + b"\1", bytes(BLOCK) + b"\1", b"\0", b""]
)
def test_one_byte_at_an_edge_is_not_lost(tmp_path, content):
    write(tmp_path / "disk", [content])
    assert (tmp_path / "disk").read_bytes() == content


def test_a_fresh_start_leaves_nothing_of_the_first(tmp_path):
    fd = os.open(tmp_path / "disk", os.O_RDWR | os.O_CREAT, 0o600)
    writer = SparseWriter(fd)
    writer.write(bytearray(b"x" * 3 * BLOCK), 3 * BLOCK, 0)
    writer.restart()
    writer.write(bytearray(3 * BLOCK), 3 * BLOCK, 0)
    writer.finish(3 * BLOCK)
    os.close(fd)
    assert (tmp_path / "disk").read_bytes() == bytes(3 * BLOCK) and writer.zero_bytes == 3 * BLOCK
    assert (tmp_path / "disk").stat().st_blocks == 0


@pytest.mark.parametrize("preallocation", ["falloc", "full"])
def test_zeros_have_storage_when_asked_for(tmp_path, preallocation):
    content = bytes(2 * BLOCK) + b"data" * BLOCK + bytes(3 * BLOCK)
    fd = os.open(tmp_path / "disk", os.O_RDWR | os.O_CREAT, 0o600)
    writer = SparseWriter(fd, preallocation)
    writer.write(bytearray(content), len(content), 0)
    writer.finish(len(content) + BLOCK)
    holes = os.lseek(fd, 0, os.SEEK_HOLE) < len(content) + BLOCK
    os.close(fd)
    assert (tmp_path / "disk").read_bytes() == content + bytes(BLOCK)
    assert (tmp_path / "disk").stat().st_blocks * 512 >= len(content) + BLOCK
    assert holes == (preallocation == "falloc")
