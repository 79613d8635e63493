# SPDX-License-Identifier: GPL-3.0-or-later
"""What is written as a qcow2 is sound to qemu-img, to our own decoder and to Glance, and is the disk."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    InvalidOption,
    MissingDependency,
    SourceChanged,
    StorageError,
    UnsupportedFormat,
)
from ansible_collections.imageferry.glance.plugins.module_utils._image import zstd
from ansible_collections.imageferry.glance.plugins.module_utils._image.blocks import DataMap
from ansible_collections.imageferry.glance.plugins.module_utils._image.content import ContentHasher, survey
from ansible_collections.imageferry.glance.plugins.module_utils._image.decode import Qcow2Decoder
from ansible_collections.imageferry.glance.plugins.module_utils._image.qcow2 import CLUSTER_SIZES
from ansible_collections.imageferry.glance.plugins.module_utils._image.qcow2_compressed import CompressedQcow2Body
from ansible_collections.imageferry.glance.plugins.module_utils._image.qcow2_writer import (
    Geometry,
    Qcow2Body,
    ones,
)
from ansible_collections.imageferry.glance.plugins.module_utils._nbd.interface import Extent
from ansible_collections.imageferry.glance.plugins.module_utils._volume.sparse import SparseWriter

from .conftest import run

MIB = 1024**2
TIB = 1024**4
ROOT = Path(__file__).parents[3]
CLOUD_PYTHON = Path(os.environ.get("IMAGEFERRY_CLOUD_VENV", ROOT / ".cache" / "cloud-venv")) / "bin" / "python"


def body_of(disk, **options):
    """An uncompressed body of all that the disk's extents say."""
    return Qcow2Body(disk, DataMap.of(disk), **options)


@pytest.fixture
def compressed():
    """Makes compressed bodies, ready to be sent."""
    made = []

    def compressed(disk, compression_type="zlib", **options):
        body = CompressedQcow2Body(disk, DataMap.of(disk), compression_type, **options)
        made.append(body)
        body.prepare()
        return body

    yield compressed
    for body in made:
        body.close()


def length_of(disk, compression_type, level):
    body = CompressedQcow2Body(disk, DataMap.of(disk), compression_type, level)
    body.prepare()
    return body.length


@pytest.fixture
def decoded(tmp_path):
    """Has our own decoder read a qcow2, for which it keeps no more than the bytes between compressed clusters."""

    def decoded(path, spooled=0):
        with open(path, "rb", buffering=0) as source, open(tmp_path / "decoded", "w+b") as target:
            decoder = Qcow2Decoder(SparseWriter(target.fileno()), str(tmp_path))
            buffer, position = bytearray(MIB), 0
            while length := source.readinto(buffer):
                decoder.write(buffer, length, position)
                position += length
            decoder.finish(position)
        assert decoder.spooled_bytes <= spooled
        return tmp_path / "decoded"

    return decoded


def info(path):
    """What qemu-img says of a qcow2."""
    said = subprocess.run(["qemu-img", "info", "--output=json", "-f", "qcow2", path], check=True, capture_output=True)
    return json.loads(said.stdout)


def spools_in(folder):
    """Open files that have no name in a folder any more."""
    links = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    return [link for link in links if link.startswith(f"{folder}/") and link.endswith(" (deleted)")]


# --- uncompressed ---


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
@pytest.mark.parametrize("cluster_size", CLUSTER_SIZES)
def test_the_image_is_the_disk(disk, flat, image, same_disk, decoded, cluster_size, compat):
    raw = disk()
    hasher = ContentHasher(raw.stat().st_size)
    path = image(body_of(flat(raw), cluster_size=cluster_size, compat=compat, hasher=hasher))
    same_disk(path, raw)
    run("cmp", decoded(path), raw)
    said = info(path)
    assert (said["cluster-size"], said["format-specific"]["data"]["compat"]) == (cluster_size, compat)
    assert said["virtual-size"] == raw.stat().st_size
    assert hasher.identity == survey(flat(raw), lambda _offset: None).identity


@pytest.mark.parametrize("size", [0, 512, 65536 - 512, 65536, 65536 + 512, MIB + 65536, 3 * MIB - 512])
@pytest.mark.parametrize("seed", range(3))
def test_a_disk_of_any_size(disk, flat, image, compressed, same_disk, decoded, size, seed):
    raw = disk(size, seed)
    for body, padding in ((body_of(flat(raw)), 0), (compressed(flat(raw)), 3 * 65536)):
        path = image(body)
        same_disk(path, raw)
        run("cmp", decoded(path, padding), raw)


def test_a_size_is_rounded_up_to_a_sector(tmp_path, image, compressed, same_disk):
    (tmp_path / "raw").write_bytes(b"x" * 70_000)
    for body in (body_of(full(70_000)), compressed(full(70_000))):
        path = image(body)
        same_disk(path, tmp_path / "raw")
        assert info(path)["virtual-size"] == 70_144


def test_it_is_no_larger_than_what_qemu_writes(disk, flat, tmp_path):
    raw = disk()
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, tmp_path / "converted")
    body = Qcow2Body(flat(raw), survey(flat(raw), lambda _offset: None).data)
    assert body.length <= (tmp_path / "converted").stat().st_size


def test_zeros_that_a_survey_found_are_left_out(tmp_path, flat, image, same_disk):
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(8 * MIB) + b"x" + bytes(MIB))
    known = survey(flat(raw), lambda _offset: None)
    assert body_of(flat(raw)).length > 9 * MIB
    path = image(Qcow2Body(flat(raw), known.data))
    same_disk(path, raw)
    assert path.stat().st_size == (1 + 1 + 2 + 2) * 65536  # header, L1; L2 and its cluster; refcounts


def test_a_body_may_be_given_again(disk, flat, compressed, tmp_path):
    raw = disk(5 * MIB)
    bodies = [body_of(flat(raw)), compressed(flat(raw)), compressed(flat(raw), spool_dir=str(tmp_path))]
    for body in bodies:
        assert body.repeatable
        pieces = body.pieces()
        first = bytes(next(pieces)) + bytes(next(pieces))
        pieces.close()
        whole = b"".join(map(bytes, body.pieces()))
        assert whole.startswith(first)
        assert whole == b"".join(map(bytes, body.pieces()))
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


class Made:
    """A disk that does not lie anywhere.

    :param content: what is read, wherever.
    :param fails_at: an offset that cannot be read.
    """

    def __init__(self, size, extents=(), content=b"x", fails_at=None):
        self.size, self.content, self.fails_at = size, content, fails_at
        self._extents = extents
        self.reads = 0

    def extents(self):
        return iter(self._extents)

    def read_into(self, buffer, offset):
        self.reads += 1
        if self.fails_at is not None and offset <= self.fails_at < offset + len(buffer):
            raise StorageError(f"{self.fails_at} cannot be read.")
        buffer[:] = (self.content * (len(buffer) // len(self.content) + 1))[: len(buffer)]


def full(size, content=b"x", fails_at=None):
    """A disk without holes."""
    return Made(size, [Extent(0, size, False)], content, fails_at)


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_an_empty_tebibyte_is_a_small_image_at_once(image, compressed, decoded, compat):
    disk = Made(TIB, [Extent(0, TIB, True)])
    started = time.monotonic()
    for body in (body_of(disk, compat=compat), compressed(disk, compat=compat)):
        path = image(body)
        assert path.stat().st_size == 4 * 65536
        run("qemu-img", "check", "-f", "qcow2", path)
        assert info(path)["virtual-size"] == TIB
        assert decoded(path).stat().st_blocks == 0
    assert disk.reads == 0
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("cluster_size", [4096, 65536, 2 * MIB])
def test_data_at_both_ends_of_a_large_disk(tmp_path, flat, image, same_disk, compressed, cluster_size):
    with open(tmp_path / "raw", "wb") as file:
        file.truncate(TIB)
        for place in (0, TIB // 2 - 5, TIB - 10):
            os.pwrite(file.fileno(), b"0123456789", place)
    disk = flat(tmp_path / "raw")
    for body in (body_of(disk, cluster_size=cluster_size), compressed(disk, "zstd", cluster_size=cluster_size)):
        same_disk(image(body), tmp_path / "raw")


def test_glance_finds_nothing_wrong(disk, flat, image, compressed):
    """Its own check, with its own library."""
    if not CLOUD_PYTHON.exists():
        pytest.skip("there is no environment with Glance")
    inspect = """
        import sys
        from oslo_utils.imageutils import format_inspector
        found = format_inspector.detect_file_format(sys.argv[1])
        found.safety_check()
        print(found, found.virtual_size)
    """
    raw = disk()
    bodies = [body_of(flat(raw)), body_of(flat(raw), compat="0.10"), compressed(flat(raw))]
    for body in [*bodies, compressed(flat(raw), "zstd")]:
        command = [CLOUD_PYTHON, "-c", textwrap.dedent(inspect), image(body)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert said.split() == ["qcow2", str(raw.stat().st_size)]


def test_what_cannot_be_is_refused():
    for size, message in [(256, "256"), (4 * MIB, "4194304"), (65537, "65537")]:
        with pytest.raises(InvalidOption, match=message):
            Geometry(MIB, size, "1.1")
    with pytest.raises(InvalidOption, match="compat"):
        Geometry(MIB, 65536, "1.0")
    with pytest.raises(UnsupportedFormat, match="129 GiB"):
        Geometry(129 * 1024**3, 512, "1.1")
    for compression_type, level in [("lz4", None), ("zlib", 10), ("zlib", 0), ("zstd", 20)]:
        with pytest.raises(InvalidOption):
            CompressedQcow2Body(full(MIB), DataMap(MIB), compression_type, level)
    with pytest.raises(InvalidOption, match="zstd"):
        CompressedQcow2Body(full(MIB), DataMap(MIB), "zstd", compat="0.10")


def test_refcounts_count_themselves():
    """Wherever the data end, and their blocks and these blocks' table begin or grow."""
    geometry = Geometry(64 * MIB, 512, "1.1")
    for count in [*range(3, 1100), *range(32_000, 33_100, 7)]:
        end = count * 512
        tail = b"".join(map(bytes, geometry.tail(ones(count), end)))
        assert len(tail) == geometry.length(end) - end
        total, blocks = count + len(tail) // 512, -(-(count + len(tail) // 512) // 256)
        table = struct.unpack(f">{blocks}Q", tail[: blocks * 8])
        assert table == tuple(range(end + len(tail) - blocks * 512, end + len(tail), 512))
        assert tail[table[0] - end :] == (b"\0\1" * total).ljust(blocks * 512, b"\0")
        assert not any(tail[blocks * 8 : table[0] - end])


@pytest.mark.parametrize("cluster_size", CLUSTER_SIZES)
def test_a_disk_as_large_as_qemu_allows(cluster_size):
    """The L1 table, which has 32 MiB at most, sets the limit."""
    largest = 32 * MIB // 8 * (cluster_size // 8) * cluster_size
    assert Geometry(largest - largest // 16, cluster_size, "1.1").l1_size * 8 == 30 * MIB
    with pytest.raises(UnsupportedFormat):
        Geometry(largest + 512, cluster_size, "1.1")


# --- compressed ---


@pytest.mark.parametrize("compression_type", ["zlib", "zstd"])
@pytest.mark.parametrize("cluster_size", CLUSTER_SIZES)
def test_the_compressed_image_is_the_disk(
    disk, flat, image, compressed, same_disk, decoded, tmp_path, cluster_size, compression_type
):
    raw = disk(20 * MIB + 4096 if cluster_size >= 4096 else 3 * MIB + 512)
    known, hasher = survey(flat(raw), lambda _offset: None), ContentHasher(raw.stat().st_size)
    options = {"cluster_size": cluster_size, "hasher": hasher}
    path = image(compressed(flat(raw), compression_type, spool_dir=str(tmp_path), **options))
    same_disk(path, raw)
    run("cmp", decoded(path, 4 * MIB), raw)
    assert hasher.identity == known.identity
    assert info(path)["format-specific"]["data"]["compression-type"] == compression_type
    again = image(compressed(flat(raw), compression_type, threads=1, **options), "again")
    run("cmp", path, again)
    assert hasher.identity == known.identity


@pytest.mark.parametrize("compression_type", ["zlib", "zstd"])
@pytest.mark.parametrize("cluster_size", [4096, 65536, 2 * MIB])
def test_it_is_as_small_as_what_qemu_compresses(disk, flat, compressed, tmp_path, cluster_size, compression_type):
    raw, options = disk(), f"compression_type={compression_type},cluster_size={cluster_size}"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", options, raw, tmp_path / "converted")
    body = compressed(flat(raw), compression_type, cluster_size=cluster_size)
    assert body.length <= (tmp_path / "converted").stat().st_size * 1.01 + 2 * cluster_size


def test_zlib_goes_with_the_oldest_qcow2(disk, flat, image, compressed, same_disk):
    raw = disk()
    path = image(compressed(flat(raw), compat="0.10"))
    same_disk(path, raw)
    assert info(path)["format-specific"]["data"]["compat"] == "0.10"


def test_a_level_compresses_more():
    rng = random.Random(1)
    words = [rng.randbytes(rng.randrange(2, 8)).hex() for _number in range(3000)]
    disk = full(8 * MIB, " ".join(rng.choices(words, k=200_000)).encode())
    for compression_type in ("zlib", "zstd"):
        fast, small = (length_of(disk, compression_type, level) for level in (1, 9))
        assert small < fast


@pytest.mark.parametrize("pattern", ["CI", "CCCI", "CIII", "I" * 40 + "C" * 3, "IC" * 5 + "ZZ", "I", "Z"])
@pytest.mark.parametrize("cluster_size", [4096, 65536, MIB])
def test_incompressible_clusters_are_stored_as_they_are(
    tmp_path, flat, image, compressed, same_disk, decoded, pattern, cluster_size
):
    rng = random.Random(7)
    kinds = {
        "C": lambda: rng.randbytes(cluster_size // 2).ljust(cluster_size, b"\1"),
        "I": lambda: rng.randbytes(cluster_size),
        "Z": lambda: bytes(cluster_size),
    }
    kind_of = (pattern * 200)[: 24 * MIB // cluster_size if cluster_size > 4096 else 200]
    raw = tmp_path / "raw"
    raw.write_bytes(b"".join(kinds[kind]() for kind in kind_of))
    path = image(compressed(flat(raw), cluster_size=cluster_size))
    same_disk(path, raw)
    run("cmp", decoded(path, path.stat().st_size // 2), raw)
    said = subprocess.run(["qemu-img", "check", "--output=json", "-f", "qcow2", path], check=True, capture_output=True)
    assert json.loads(said.stdout).get("compressed-clusters", 0) == kind_of.count("C")
    needed = kind_of.count("I") * cluster_size + kind_of.count("C") * cluster_size * 0.52
    windows = len(kind_of) * cluster_size // max(4 * MIB, 4 * cluster_size) + 1
    room = windows if set(kind_of) >= {"C", "I"} else 1  # half of it, mostly
    assert path.stat().st_size <= needed + (room + 5) * cluster_size


def test_clusters_of_zeros_are_left_out(compressed, image):
    body = compressed(full(64 * MIB, b"\0"))
    assert body.length == 4 * 65536
    run("qemu-img", "check", "-f", "qcow2", image(body))


@pytest.mark.parametrize("spooled", [True, False])
def test_what_cannot_be_read_ends_it(tmp_path, spooled):
    before = threading.active_count()
    disk = full(64 * MIB, b"text", fails_at=20 * MIB + 7)
    with pytest.raises(StorageError, match="20971527"):
        list(body_of(disk).pieces())
    body = CompressedQcow2Body(disk, DataMap.of(disk), spool_dir=str(tmp_path) if spooled else None)
    with pytest.raises(StorageError, match="20971527"):
        body.prepare()
    assert threading.active_count() == before
    assert disk.reads < 60
    assert not spools_in(tmp_path)


def test_the_spool_has_no_name_and_is_given_back(disk, flat, compressed, tmp_path):
    (tmp_path / "spool").mkdir()
    body = compressed(flat(disk()), spool_dir=str(tmp_path / "spool"))
    assert len(spools_in(tmp_path / "spool")) == 1
    assert not os.listdir(tmp_path / "spool")
    body.close()
    assert not spools_in(tmp_path / "spool")


def test_who_is_told_of_progress_can_end_it(tmp_path):
    disk = full(32 * MIB, b"text")
    body, told = CompressedQcow2Body(disk, DataMap.of(disk), spool_dir=str(tmp_path)), []

    def stop(offset):
        told.append(offset)
        if offset == 5 * MIB:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        body.prepare(stop)
    assert told == [MIB, 2 * MIB, 3 * MIB, 4 * MIB, 5 * MIB]
    assert not spools_in(tmp_path)


def test_the_length_is_not_known_before_it_is_compressed():
    with pytest.raises(ValueError, match="compressed"):
        print(CompressedQcow2Body(full(MIB), DataMap(MIB)).length)


@pytest.fixture
def small_folder(tmp_path):
    """A file system of 4 MiB; needs root."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder)
    yield folder
    run("umount", folder)


@pytest.mark.parametrize("size", [32, 6])
def test_what_does_not_fit_into_the_spool_is_compressed_twice(small_folder, tmp_path, image, same_disk, size):
    """Whether a look at a few blocks shows it, or the spool is full in the midst of it."""
    content = random.Random(1).randbytes(MIB + 1)
    disk, raw = full(size * MIB, content), tmp_path / "raw"
    raw.write_bytes((content * size)[:MIB] * size)
    body = CompressedQcow2Body(disk, DataMap.of(disk), "zstd", spool_dir=str(small_folder))
    body.prepare()
    assert body.spooled_bytes == 0 and not spools_in(small_folder)
    same_disk(image(body), raw)
    assert disk.reads <= 3 * size


def test_much_data_that_compresses_well_need_no_room(small_folder, image, compressed):
    body = compressed(full(64 * MIB, b"text"), "zstd", spool_dir=str(small_folder))
    run("qemu-img", "check", "-f", "qcow2", image(body))


@pytest.mark.parametrize("other", [b"other text", None])
def test_a_disk_that_changes_after_all_is_noticed(compressed, other):
    """Before the last of it is sent, also where it is stored in as many bytes as before."""
    rng = random.Random(1)
    disk = full(8 * MIB, b"text" if other else rng.randbytes(MIB))
    body = compressed(disk, hasher=ContentHasher(disk.size))
    assert sum(map(len, body.pieces())) == body.length
    disk.content = other or rng.randbytes(MIB)
    with pytest.raises(SourceChanged):
        print(sum(map(len, body.pieces())))


def test_without_libzstd_there_is_no_zstd(monkeypatch):
    monkeypatch.setattr(zstd, "_library", lambda: None)
    with pytest.raises(MissingDependency, match="libzstd"):
        CompressedQcow2Body(full(MIB), DataMap(MIB), "zstd")


# --- memory ---

MEASURE = """
    import json, sys
    sys.path.insert(0, sys.argv[1])
    from ansible_collections.imageferry.glance.plugins.module_utils._image.blocks import DataMap
    from ansible_collections.imageferry.glance.plugins.module_utils._image.qcow2_compressed import CompressedQcow2Body
    from ansible_collections.imageferry.glance.plugins.module_utils._image.qcow2_writer import Qcow2Body
    class Disk:
        size = int(sys.argv[2])
        def read_into(self, buffer, offset):
            buffer[:8] = offset.to_bytes(8, "big")
    def peak():
        return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) // 1024
    disk, before = Disk(), peak()
    data = DataMap(disk.size)
    for number in range(3000):
        start = disk.size // 3000 * number
        data.add(start, start + 300000)
    body = Qcow2Body(disk, data) if sys.argv[3] == "none" else CompressedQcow2Body(disk, data, sys.argv[3], threads=2)
    if sys.argv[3] != "none":
        body.prepare()
    length = sum(len(piece) for piece in body.pieces())
    print(json.dumps([peak() - before, length == body.length]))
"""


@pytest.mark.parametrize("compression_type", ["none", "zstd"])
@pytest.mark.parametrize("size", [2 * 1024**3, 8 * TIB])
def test_the_size_of_a_disk_takes_no_memory(size, compression_type):
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), os.environ["PYTHONPATH"].split(":")[0]]
    command += [str(size), compression_type]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    memory, whole = json.loads(done.stdout)
    assert whole
    assert memory < 24
