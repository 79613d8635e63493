# SPDX-License-Identifier: GPL-3.0-or-later
"""Compressed images come out whole, or not at all."""

from __future__ import annotations

import gzip
import lzma
import random
import subprocess

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    DamagedImage,
    FormatMismatch,
    ImageTooLarge,
    MissingDependency,
    UnsafeImage,
)
from ansible_collections.imageferry.glance.plugins.module_utils._image import zstd as library
from ansible_collections.imageferry.glance.plugins.module_utils._image.decompress import Decompressor

MIB = 1024**2
CONTENT = random.Random(1).randbytes(2 * MIB) + bytes(5 * MIB) + b"text " * MIB


def zstd(data, *arguments):
    return subprocess.run(["zstd", "-c", *arguments], input=data, check=True, capture_output=True).stdout


COMPRESS = {"gzip": gzip.compress, "xz": lzma.compress, "zstd": zstd}
codecs = pytest.mark.parametrize("codec", COMPRESS)


class Kept:
    """A sink that keeps what it is given."""

    zero_bytes = 0

    def __init__(self):
        self.content, self.lengths, self.finished = bytearray(), [], None

    def restart(self):
        self.content.clear()

    def write(self, buffer, length, offset):
        assert offset == len(self.content)
        self.content += buffer[:length]
        self.lengths.append(length)

    def finish(self, size):
        self.finished = size


def expand(data, codec="auto", max_size=64 * MIB, piece=MIB, check_head=len):
    kept = Kept()
    sink = Decompressor(kept, codec, max_size, check_head)
    for position in range(0, len(data), piece):
        part = bytearray(data[position : position + piece])
        sink.write(part, len(part), position)
    sink.finish(len(data))
    assert kept.finished == len(kept.content)
    return kept


@codecs
@pytest.mark.parametrize("how", ["auto", "named"])
@pytest.mark.parametrize("piece", [MIB, 70_000])
def test_an_image_comes_out(codec, how, piece):
    kept = expand(COMPRESS[codec](CONTENT), codec if how == "named" else "auto", piece=piece)
    assert kept.content == CONTENT
    assert set(kept.lengths[:-1]) == {MIB}


@codecs
def test_several_members_are_one_image(codec):
    compress = COMPRESS[codec]
    assert expand(compress(CONTENT[:MIB]) + compress(CONTENT[MIB:])).content == CONTENT


def test_what_is_not_compressed_comes_through():
    assert expand(CONTENT).content == expand(CONTENT, "none").content == CONTENT
    packed = gzip.compress(CONTENT)
    assert expand(packed, "none").content == packed


@codecs
def test_another_compression_than_named_is_refused(codec):
    with pytest.raises(FormatMismatch, match=codec):
        expand(CONTENT, codec)


@codecs
@pytest.mark.parametrize("missing", [1, 4, 9, MIB, -20])
def test_a_truncated_one_is_damaged(codec, missing):
    data = COMPRESS[codec](CONTENT)
    with pytest.raises(DamagedImage):
        expand(data[:-missing])


@codecs
@pytest.mark.parametrize("garbage", [b"x", b"garbage" * 1000])
def test_garbage_after_the_end_is_damage(codec, garbage):
    with pytest.raises(DamagedImage):
        expand(COMPRESS[codec](CONTENT) + garbage)


@codecs
def test_a_flipped_bit_is_damage(codec):
    data = bytearray(COMPRESS[codec](CONTENT) if codec != "zstd" else zstd(CONTENT, "--check"))
    data[MIB] ^= 4
    with pytest.raises(DamagedImage):
        expand(data)


@codecs
def test_a_bomb_is_stopped(codec):
    with pytest.raises(ImageTooLarge, match=r"8\.0 MiB"):
        expand(COMPRESS[codec](bytes(80 * MIB)), max_size=8 * MIB)


@codecs
def test_the_head_is_judged_before_anything_is_handed_on(codec):
    heads = []

    def refuse(head):
        heads.append(head)
        raise UnsafeImage("No.")

    with pytest.raises(UnsafeImage, match="No"):
        expand(COMPRESS[codec](CONTENT), check_head=refuse)
    assert heads == [CONTENT[:65536]]
    short = []
    expand(COMPRESS[codec](b"short"), check_head=short.append)
    assert short == [b"short"]


def test_a_window_that_takes_too_much_memory_is_refused():
    with pytest.raises(UnsafeImage, match="memory"):
        expand(zstd(CONTENT, "--ultra", "-22", "--long=30"))
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 512 * MIB}]
    with pytest.raises(UnsafeImage, match="memory"):
        expand(lzma.compress(b"x", filters=filters))


@codecs
def test_it_starts_again(codec):
    data, kept = bytearray(COMPRESS[codec](CONTENT)), Kept()
    sink = Decompressor(kept, codec, 64 * MIB, len)
    sink.write(data, MIB, 0)
    sink.restart()
    sink.write(data, len(data), 0)
    sink.finish(len(data))
    assert kept.content == CONTENT


def test_without_zstd_it_says_so(monkeypatch):
    monkeypatch.setattr(library, "_library", lambda: None)
    with pytest.raises(MissingDependency, match="zstd"):
        expand(zstd(CONTENT))
