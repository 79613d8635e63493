# SPDX-License-Identifier: GPL-3.0-or-later
"""What the decoder makes of a qcow2 is what qemu-img makes of it, byte by byte, and of a broken one nothing."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import textwrap

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import DamagedImage, FerryError
from ansible_collections.imageferry.glance.plugins.module_utils._image import decode, zstd
from ansible_collections.imageferry.glance.plugins.module_utils._image.decode import NotStreamable, Qcow2Decoder
from ansible_collections.imageferry.glance.plugins.module_utils._volume.sparse import SparseWriter

from .conftest import run

MIB = 1024**2
ENTRY, OFFSET = struct.Struct(">Q"), 0x00FFFFFFFFFFFE00


def decode_file(path, target, spool_folder, piece=MIB, end=None):
    """Streams a file through the decoder as an import does."""
    with open(path, "rb", buffering=0) as source, open(target, "w+b") as file:
        decoder = Qcow2Decoder(SparseWriter(file.fileno()), str(spool_folder))
        size = os.fstat(source.fileno()).st_size if end is None else end
        buffer, position = bytearray(MIB), 0
        while position < size and (length := source.readinto(memoryview(buffer)[: min(piece, size - position)])):
            decoder.write(buffer, length, position)
            position += length
        decoder.finish(size)
    return decoder


@pytest.fixture
def same(tmp_path):
    """Decodes an image and compares the disk with what qemu-img makes of it."""

    def same(path, piece=MIB):
        decoder = decode_file(path, tmp_path / "decoded", tmp_path, piece)
        run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, tmp_path / "expected")
        run("cmp", tmp_path / "decoded", tmp_path / "expected")
        return decoder

    return same


@pytest.fixture
def convert(tmp_path):
    def convert(source, *arguments, name="converted"):
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", *arguments, source, tmp_path / name)
        return tmp_path / name

    return convert


SIZES = [512 << bits for bits in range(13)]


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
@pytest.mark.parametrize("cluster_size", SIZES)
def test_a_converted_image_needs_no_spool(disk, convert, same, cluster_size, compat):
    decoder = same(convert(disk(), "-o", f"compat={compat},cluster_size={cluster_size}"))
    if cluster_size >= 4096:  # below, the refcount table grows and leaves its old places behind
        assert decoder.spooled_bytes == 0


@pytest.mark.parametrize("cluster_size", SIZES)
def test_a_compressed_image(disk, convert, same, cluster_size):
    path = disk() if cluster_size >= 4096 else disk(2 * MIB + 512)
    decoder = same(convert(path, "-c", "-o", f"cluster_size={cluster_size}"))
    assert decoder.spooled_bytes <= 2 * MIB


@pytest.mark.parametrize("cluster_size", [4096, 65536, 2 * MIB])
def test_an_image_compressed_with_zstd(disk, convert, same, cluster_size):
    same(convert(disk(), "-c", "-o", f"compression_type=zstd,cluster_size={cluster_size}"))


def test_an_image_compressed_with_zstd_is_known_by_its_head(disk, convert, monkeypatch):
    path = convert(disk(), "-c", "-o", "compression_type=zstd")
    monkeypatch.setattr(zstd, "_library", lambda: None)
    with pytest.raises(NotStreamable, match="zstd"):
        decode.check_streamable(path.read_bytes()[:65536])


@pytest.mark.parametrize("piece", [65536, 65536 + 512, 99_999])
@pytest.mark.parametrize("arguments", [["-o", "cluster_size=64k"], ["-c", "-o", "cluster_size=4k"]])
def test_pieces_of_any_size(disk, convert, same, piece, arguments):
    same(convert(disk(), *arguments), piece)


@pytest.mark.parametrize("arguments", [["-W", "-m", "8"], ["-c", "-W", "-m", "8"]])
def test_clusters_out_of_order(disk, convert, same, arguments):
    same(convert(disk(), *arguments))


@pytest.mark.parametrize("kind", ["metadata", "falloc", "full"])
@pytest.mark.parametrize("cluster_size", ["4k", "64k"])
def test_a_preallocated_image(make, same, kind, cluster_size):
    same(make(options=f"preallocation={kind},cluster_size={cluster_size}"))
    same(make(options=f"preallocation={kind}", writes=["write -P 7 1M 2M", "write -z 5M 1M"]))


@pytest.mark.parametrize("size", ["0", "512", "65536", "1M", "1T"])
def test_an_empty_image(make, tmp_path, size):
    decoder = decode_file(make(size=size), tmp_path / "decoded", tmp_path)
    wanted = {"1M": MIB, "1T": 1 << 40}.get(size) or int(size)
    assert (tmp_path / "decoded").stat().st_size == decoder.zero_bytes == wanted
    assert (tmp_path / "decoded").stat().st_blocks == 0


@pytest.mark.parametrize("size", [512, 65536 - 512, 65536 + 512, MIB + 65536, MIB - 512])
def test_the_last_cluster_may_be_a_part(disk, convert, same, size):
    same(convert(disk(size, 3)))
    same(convert(disk(size, 3), "-c"))


def scribble(path, rng, count, size, version=3):
    """Writes, overwrites and discards at random, in single sectors and in megabytes."""
    commands = []
    for _number in range(count):
        length = rng.choice([512, 4096, 65536, 200 * 1024])
        offset = rng.randrange(0, (size - length) // 512) * 512
        kinds = [f"write -P {rng.randrange(1, 256)}"] * 4 + ["discard"] + (["write -z", "write -zu"] * (version > 2))
        commands += ["-c", f"{rng.choice(kinds)} {offset} {length}"]
    run("qemu-io", "-f", "qcow2", "-d", "unmap", *commands, path)


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
@pytest.mark.parametrize("cluster_size", [512, 4096, 65536, MIB])
@pytest.mark.parametrize("seed", range(4))
def test_what_a_guest_wrote(make, same, cluster_size, compat, seed):
    rng = random.Random(seed)
    path = make(options=f"compat={compat},cluster_size={cluster_size}", size="24M")
    scribble(path, rng, 60, 24 * MIB, 2 if compat == "0.10" else 3)
    same(path)
    run("qemu-img", "snapshot", "-c", "before", path)  # from now on data come before the tables that map them
    scribble(path, rng, 60, 24 * MIB, 2 if compat == "0.10" else 3)
    same(path)
    if compat == "1.1":  # qemu-img does not resize one of version 2 that has snapshots
        run("qemu-img", "resize", path, "300M")  # its L1 moves to the end
        scribble(path, rng, 20, 300 * MIB)
        same(path)


def test_a_snapshot_gone_back_to(make, same):
    path = make(writes=["write -P 7 1M 3M"])
    run("qemu-img", "snapshot", "-c", "before", path)
    run("qemu-io", "-f", "qcow2", "-c", "write -P 8 2M 4M", path)
    run("qemu-img", "snapshot", "-a", "before", path)
    same(path)


@pytest.mark.parametrize("arguments", [[], ["-c"]])
def test_a_guest_that_writes_to_a_converted_image(disk, convert, same, arguments):
    path = convert(disk(), *arguments)
    scribble(path, random.Random(5), 80, 20 * MIB)
    same(path)


def test_a_late_l1_needs_the_spool(make, same):
    path = make(options="cluster_size=4k", writes=["write -P 7 0 8M"])
    run("qemu-img", "resize", path, "100M")
    assert same(path).spooled_bytes > 8 * MIB


def test_tables_that_would_make_too_much_wait_are_left_to_the_spool(make, same, monkeypatch):
    path = make(options="cluster_size=4k", size="64M")
    scribble(path, random.Random(6), 300, 64 * MIB)
    monkeypatch.setattr(decode, "_MOST_WAITING", 30)
    assert same(path).spooled_bytes > 5 * MIB


def test_the_disk_may_be_given_more_room(make, tmp_path):
    path = make(writes=["write -P 7 1M 2M"])
    with open(tmp_path / "decoded", "w+b") as file:
        decoder = Qcow2Decoder(SparseWriter(file.fileno()), str(tmp_path), 32 * MIB)
        content = bytearray(path.read_bytes())
        decoder.write(content, len(content), 0)
        decoder.restart()
        decoder.write(content, len(content), 0)
        decoder.finish(len(content))
        assert os.fstat(file.fileno()).st_size == 32 * MIB
        assert decoder.zero_bytes == 8 * MIB
    assert (tmp_path / "decoded").read_bytes()[MIB : 3 * MIB] == b"\7" * 2 * MIB


@pytest.mark.parametrize("arguments", [[], ["-c"], ["-o", "cluster_size=512"], ["-c", "-o", "cluster_size=4k"]])
def test_a_truncated_image_is_refused_or_whole_all_the_same(disk, convert, tmp_path, arguments):
    source = disk(4 * MIB + 4096, 11)
    path = convert(source, *arguments)
    size, refused = path.stat().st_size, 0
    rng = random.Random(7)
    assert size > MIB // 4
    for end in [1, 72, 4096, size - 1, size - 512, size - 4096, *(rng.randrange(1, size) for _number in range(40))]:
        try:
            decode_file(path, tmp_path / "decoded", tmp_path, end=end)
        except DamagedImage:
            refused += 1
        else:  # what is cut off was no part of the disk
            assert (tmp_path / "decoded").read_bytes() == source.read_bytes()
    assert refused >= 38


def entries_of(path):
    """The offset of the L1 table and of the first L2 table."""
    with open(path, "rb") as file:
        l1 = ENTRY.unpack(os.pread(file.fileno(), 8, 40))[0]
        return l1, ENTRY.unpack(os.pread(file.fileno(), 8, l1))[0] & OFFSET


def patch(path, offset, *values):
    with open(path, "r+b") as file:
        os.pwrite(file.fileno(), b"".join(map(ENTRY.pack, values)), offset)


USED = 1 << 63


@pytest.mark.parametrize(
    "change",
    [
        lambda l1, l2: (l1 + 8, USED | l2),  # one table twice
        lambda l1, l2: (l1, USED | l1),  # a table that is its own
        lambda l1, l2: (l1, USED | l2 + 512),
        lambda l1, l2: (l1, USED | OFFSET & ~0xFFFF),
        lambda l1, l2: (l2, USED | l2),
        lambda l1, l2: (l2, USED | l1),
        lambda l1, l2: (l2, USED | 0x10000),
        lambda l1, l2: (l2 + 8, *[USED | l2 + 0x10000] * 2),  # one cluster twice
        lambda l1, l2: (l2, USED | l2 + 0x10200),
        lambda l1, l2: (l2, USED | OFFSET & ~0xFFFF),
        lambda l1, l2: (l2, *[USED | OFFSET & ~0xFFFF] * 8192),
        lambda l1, l2: (l2, 1 << 62 | l2 + 0x10000),
        lambda l1, l2: (l2, 1 << 62 | (1 << 54) - 1),
        lambda l1, l2: (l2, *[1 << 62 | 0xFF << 54 | l2 + 0x10000] * 8192),
    ],
)
def test_a_hostile_image_is_refused(make, tmp_path, change):
    path = make(size="2G", writes=["write -P 7 0 4M"])
    patch(path, *change(*entries_of(path)))
    with pytest.raises(DamagedImage):
        decode_file(path, tmp_path / "decoded", tmp_path)


def test_zero_clusters_of_version_2_are_refused(make, tmp_path):
    path = make(options="compat=0.10", writes=["write -P 7 0 4M"])
    patch(path, entries_of(path)[1], 1)
    with pytest.raises(DamagedImage, match="version 2"):
        decode_file(path, tmp_path / "decoded", tmp_path)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("arguments", [[], ["-c"]])
def test_an_image_with_flipped_bits_does_no_harm(disk, convert, tmp_path, seed, arguments):
    """It is refused, or makes some disk of its size."""
    path = convert(disk(MIB, 9), *arguments, "-o", "cluster_size=4k")
    sound, rng = path.read_bytes(), random.Random(seed)
    for _number in range(60):
        content = bytearray(sound)
        for _flip in range(rng.choice([1, 8])):
            content[rng.randrange(48, min(len(content), 40960))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        try:
            decode_file(path, tmp_path / "decoded", tmp_path)
        except (FerryError, NotStreamable):
            continue
        assert (tmp_path / "decoded").stat().st_size == MIB


MEASURE = """
    import json, os, sys
    sys.path.insert(0, sys.argv[1])
    from ansible_collections.imageferry.glance.plugins.module_utils._image.decode import Qcow2Decoder
    from ansible_collections.imageferry.glance.plugins.module_utils._volume.sparse import SparseWriter
    def peak():
        return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) // 1024
    with open(sys.argv[2], "rb", buffering=0) as source, open(sys.argv[3], "w+b") as target:
        before, buffer, position = peak(), bytearray(1 << 20), 0
        decoder = Qcow2Decoder(SparseWriter(target.fileno()), os.path.dirname(sys.argv[3]))
        while length := source.readinto(buffer):
            decoder.write(buffer, length, position)
            position += length
        decoder.finish(position)
    print(json.dumps([peak() - before, decoder.spooled_bytes]))
"""


def fragmented(path, tables):
    """An image whose L2 tables come first, and map every other cluster from the last one to the first.

    Its data are a hole of the file; the refcounts are nobody's.
    """
    cluster, entries = 4096, 512
    l1, l2 = 2 * cluster, (2 + -(-tables * 8 // cluster)) * cluster
    first = l2 + tables * cluster
    count = tables * entries // 2
    with open(path, "wb") as file:
        file.write(struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 3, 0, 0, 12, tables * entries * cluster, 0, tables, l1,
                               cluster, 1, 0, 0) + struct.pack(">QQQII", 0, 0, 0, 4, 104))  # fmt: skip
        file.seek(l1)
        file.write(b"".join(ENTRY.pack(USED | l2 + number * cluster) for number in range(tables)))
        file.seek(l2)
        for number in range(tables * entries):
            file.write(ENTRY.pack(0 if number % 2 else USED | first + (count - 1 - number // 2) * cluster))
        file.truncate(first + count * cluster)


@pytest.mark.parametrize("tables", [16, 2200])  # the larger one maps more pieces than may wait
def test_fragmented_tables_take_bounded_memory(tmp_path, tables):
    fragmented(tmp_path / "image", tables)
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), os.environ["PYTHONPATH"].split(":")[0]]
    done = subprocess.run([*command, tmp_path / "image", tmp_path / "raw"], check=True, capture_output=True, text=True)
    memory, spooled = json.loads(done.stdout)
    assert memory < 32
    assert bool(spooled) == (tables > 16)
