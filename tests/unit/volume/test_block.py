# SPDX-License-Identifier: GPL-3.0-or-later
"""What is written to a block device reads as it came, and nothing that was there before can be read after it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    FerryError,
    NoSpace,
    StorageError,
    TransferFailed,
    VolumeInUse,
)
from ansible_collections.imageferry.glance.plugins.module_utils._volume import block_writer
from ansible_collections.imageferry.glance.plugins.module_utils._volume.block_writer import (
    BlockMap,
    BlockWriter,
    Thin,
    Zeroer,
)
from ansible_collections.imageferry.glance.plugins.module_utils._volume.device import DeviceVolume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.ledger import Ledger, Record
from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import Provenance
from ansible_collections.imageferry.glance.plugins.module_utils._volume.sparse import BLOCK

WANTED = Provenance("an id", "a name", "sha512", "00ff", 7, "raw")
OTHER = Provenance("other", None, "sha512", "11ff", 7, "raw")
SIZE = 40 * BLOCK + 4096  # the last block of the device is not a whole one
MIB = 1 << 20


@pytest.fixture
def device(make_device):
    return make_device(SIZE)


def content_of(device):
    with open(device, "rb") as file:
        return file.read()


def make_image(seed, size):
    noise = random.Random(seed)
    blocks = [bytes(BLOCK) if noise.random() < 0.5 else noise.randbytes(BLOCK) for _number in range(size // BLOCK + 1)]
    return b"".join(blocks)[:size]


def write(writer, image, ranges):
    for start, end in ranges:
        # The buffer is longer than what is in it, and holds what was there before.
        writer.write(bytearray(image[start:end]) + b"stale" * 100, end - start, start)


def in_order(image, step=MIB):
    return [(start, min(start + step, len(image))) for start in range(0, len(image), step)]


@pytest.fixture
def writer(device):
    writer = BlockWriter(device)
    yield writer
    writer.close()


@pytest.mark.parametrize("size", [SIZE, SIZE - 1, 20 * BLOCK, 20 * BLOCK + 1, 513, 1, 0])
def test_a_used_device_reads_as_the_image_and_zeros_to_its_end(device, writer, size):
    image = make_image(size, size)
    write(writer, image, in_order(image))
    writer.finish(size)
    assert content_of(device) == image + bytes(SIZE - size)
    zeros = [image[start : start + BLOCK] for start in range(0, size, BLOCK)]
    assert writer.zero_bytes == sum(len(piece) for piece in zeros if not any(piece))


@pytest.mark.parametrize("seed", range(6))
def test_pieces_of_any_length_in_any_order_read_as_they_came(device, writer, seed):
    noise = random.Random(seed)
    image = make_image(seed, SIZE - noise.randrange(3 * BLOCK))
    cuts = sorted({0, len(image), *(noise.randrange(len(image)) for _number in range(60))})
    ranges = list(zip(cuts, cuts[1:]))
    noise.shuffle(ranges)
    write(writer, image, ranges)
    writer.finish(len(image))
    assert content_of(device) == image + bytes(SIZE - len(image))


def test_zeros_over_what_was_written_are_written(device, writer):
    write(writer, b"x" * 4 * BLOCK, [(0, 4 * BLOCK)])
    write(writer, b"x" * BLOCK + bytes(2 * BLOCK + 7), [(BLOCK, 3 * BLOCK + 7)])
    writer.finish(4 * BLOCK)
    assert content_of(device)[: 4 * BLOCK] == b"x" * BLOCK + bytes(2 * BLOCK + 7) + b"x" * (BLOCK - 7)


def test_a_fresh_start_leaves_nothing_of_the_first(device, writer):
    write(writer, b"x" * 30 * BLOCK, [(0, 30 * BLOCK)])
    writer.restart()
    write(writer, bytes(BLOCK) + b"y", [(0, BLOCK + 1)])
    writer.finish(BLOCK + 1)
    assert content_of(device) == bytes(BLOCK) + b"y" + bytes(SIZE - BLOCK - 1) and writer.zero_bytes == BLOCK


@pytest.mark.parametrize("end", [BLOCK + 100, 2 * BLOCK, SIZE])
def test_what_another_program_wrote_stays_and_nothing_old_after_it(device, writer, end):
    os.pwrite(writer.fd, b"y" * end, 0)
    writer.wrote(end)
    writer.finish(end)
    assert content_of(device) == b"y" * end + bytes(SIZE - end)


def test_more_than_the_device_holds_does_not_fit(writer):
    with pytest.raises(OSError, match="No space"):
        write(writer, b"x" * (SIZE + 1), [(40 * BLOCK, SIZE + 1)])
    with pytest.raises(OSError, match="No space"):
        writer.finish(SIZE + 1)


@pytest.mark.parametrize("failing", ["_punch_hole", "_punch_hole _zero_out"])
def test_devices_that_cannot_zero_get_zeros(device, monkeypatch, failing):
    """Which of the ways a loop device takes depends on the file system below it."""
    asked = []

    def refuse(*_args):
        asked.append(True)
        raise OSError(95, "Operation not supported")

    for name in failing.split():
        monkeypatch.setattr(block_writer, name, refuse)
    fd = os.open(device, os.O_RDWR | os.O_DIRECT)
    Zeroer(fd).zero(4096, 30 * BLOCK + 4096)
    os.close(fd)
    content = content_of(device)
    assert len(asked) == len(failing.split())
    assert content == b"\xff" * 4096 + bytes(30 * BLOCK) + b"\xff" * (SIZE - 30 * BLOCK - 4096)


def test_holes_of_a_fresh_thin_device_are_left_alone_where_its_chunks_are_zeroed(device):
    """No thin pool can be had without a device mapper; what a loop device shows is what is not written."""
    writer = BlockWriter(device, Thin(4 * BLOCK, True), fresh=True)
    write(writer, b"x" * BLOCK, [(0, BLOCK)])
    writer.finish(SIZE)
    writer.close()
    assert content_of(device) == b"x" * BLOCK + b"\xff" * (SIZE - BLOCK)


def test_chunks_of_a_fresh_thin_device_that_are_touched_are_zeroed_where_the_pool_does_not(device):
    writer = BlockWriter(device, Thin(4 * BLOCK, False), fresh=True)
    writer.write(bytearray(b"x" * BLOCK), BLOCK, 5 * BLOCK)
    writer.finish(SIZE)
    writer.close()
    touched = bytes(BLOCK) + b"x" * BLOCK + bytes(2 * BLOCK)
    assert content_of(device) == b"\xff" * 4 * BLOCK + touched + b"\xff" * (SIZE - 8 * BLOCK)


def test_a_device_in_use_is_not_opened(device):
    fd = os.open(device, os.O_RDWR | os.O_EXCL)
    with pytest.raises(VolumeInUse, match=device):
        BlockWriter(device)
    os.close(fd)


def test_the_map_tells_the_gaps():
    noise = random.Random(1)
    for _round in range(200):
        marked, blocks = set(), BlockMap()
        for _number in range(noise.randrange(6)):
            first = noise.randrange(80)
            end = first + noise.randrange(1, 40)
            blocks.add(first, end)
            marked |= set(range(first, end))
        first, end = sorted(noise.randrange(150) for _number in range(2))
        told = {number for start, after in blocks.gaps(first, end) for number in range(start, after)}
        assert told == set(range(first, end)) - marked
        assert all(number in blocks for number in marked) and 200 not in blocks


# --- the volume


@pytest.fixture
def ledger(tmp_path):
    return Ledger(str(tmp_path / "ledger"))


def carry(volume, image, fail=None, wanted=WANTED, resumable=True):
    with volume.staged(0, wanted, resumable) as staged:
        staged.reserve(len(image))
        write(
            staged.sink, image, [(max(start, staged.held), end) for start, end in in_order(image) if end > staged.held]
        )
        if fail:
            raise fail
        staged.sink.finish(len(image))
        staged.publish(wanted, False)
        return staged.held


def test_a_device_holds_an_image_once_it_is_published(device, ledger):
    image = make_image(1, 33 * BLOCK + 5)
    with DeviceVolume(device, ledger) as volume:
        assert volume.provenance() is None and not volume.is_unfinished() and not volume.is_blank()
        with volume.staged(0, WANTED, True) as staged:
            staged.reserve(len(image))
            assert volume.is_unfinished() and volume.provenance() is None
            volume.check_not_in_use()  # by others than us
            write(staged.sink, image, in_order(image))
            staged.sink.finish(len(image))
            staged.publish(WANTED, True)
        assert volume.provenance().source == "an id" and volume.provenance().imported_at
        assert not volume.is_unfinished() and volume.stat().size == SIZE
        with open(device, "rb") as file:  # one's own
            volume.remove(wipe=True)
            assert file.read(1) == b"\0"
        assert volume.is_blank() and volume.provenance() is None
    assert content_of(device) == bytes(SIZE)


def test_an_interrupted_import_goes_on_and_a_failed_one_starts_over(device, ledger):
    image = make_image(2, 39 * BLOCK + 5)
    with DeviceVolume(device, ledger) as volume:
        for fail, held in ((TransferFailed("x"), 39 * BLOCK), (KeyboardInterrupt(), 39 * BLOCK), (ValueError(), 0)):
            with pytest.raises(type(fail)):
                carry(volume, image, fail)
            assert volume.is_unfinished()
            with volume.staged(0, WANTED, True) as staged:
                assert staged.held == held
                assert b"".join(map(bytes, staged.sink.read_back(held))) == image[:held]
        with pytest.raises(TransferFailed):
            carry(volume, image, TransferFailed("x"))
        with volume.staged(0, OTHER, True) as staged:
            assert staged.held == 0
        with volume.staged(0, WANTED, False) as staged:
            assert staged.held == 0
        assert carry(volume, image) == 39 * BLOCK
    assert content_of(device) == image + bytes(SIZE - len(image))


KILLED = """
    import os, signal, sys
    from ansible_collections.imageferry.glance.plugins.module_utils._volume import block_writer
    from ansible_collections.imageferry.glance.plugins.module_utils._volume.device import DeviceVolume
    from ansible_collections.imageferry.glance.plugins.module_utils._volume.ledger import Ledger
    from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import Provenance

    device, ledger, image, until = sys.argv[1:]
    block_writer.SETTLE_BYTES, block_writer.SETTLE_SECONDS = 4 << 20, 0
    wanted = Provenance("an id", "a name", "sha512", "00ff", 7, "raw")
    with open(image, "rb") as file, DeviceVolume(device, Ledger(ledger)) as volume:
        with volume.staged(0, wanted, True) as staged:
            staged.reserve(os.path.getsize(image))
            for offset in range(0, int(until), 1 << 20):
                piece = bytearray(file.read(1 << 20))
                staged.sink.write(piece, len(piece), offset)
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("until", "held"), [(0, 0), (3, 0), (4, 4), (11, 8), (12, 12)])
def test_a_killed_import_goes_on_at_the_last_note(make_device, ledger, tmp_path, until, held):
    device, image = make_device(16 * MIB), make_image(3, 12 * MIB)
    (tmp_path / "image").write_bytes(image)
    script = textwrap.dedent(KILLED)
    arguments = [device, str(tmp_path / "ledger"), str(tmp_path / "image"), str(until * MIB)]
    killed = subprocess.run([sys.executable, "-c", script, *arguments], check=False)
    assert killed.returncode == -signal.SIGKILL
    with DeviceVolume(device, ledger) as volume:
        assert volume.is_unfinished()
        assert carry(volume, image) == held * MIB
    assert content_of(device) == image + bytes(4 * MIB)


def test_the_ledger_of_another_device_is_not_believed(make_device, ledger):
    image = make_image(4, 20 * BLOCK)
    first, second = make_device(SIZE), make_device(SIZE)
    with DeviceVolume(first, ledger) as volume, DeviceVolume(second, ledger) as other:
        carry(volume, image)
        assert volume.key() != other.key()
        assert other.provenance() is None and not other.is_unfinished()
        entry = ledger._path(volume.key(), "json")
        os.rename(entry, ledger._path(other.key(), "json"))
        assert other.provenance() is None


def test_a_device_made_anew_at_the_same_path_holds_nothing(make_device, ledger, tmp_path):
    with DeviceVolume(make_device(SIZE), ledger) as volume:
        carry(volume, make_image(4, 20 * BLOCK))
        key = volume.key()
    make_device.detach()
    with DeviceVolume(make_device(SIZE), ledger) as volume:
        assert volume.key() != key and volume.provenance() is None


def test_a_disk_that_is_too_large_is_refused_before_the_device_is_touched(device, ledger):
    with DeviceVolume(device, ledger) as volume:
        with pytest.raises(NoSpace, match=str(SIZE)):
            carry(volume, bytes(SIZE + 1))
        assert not volume.is_unfinished()
    assert content_of(device) == b"\xff" * SIZE


def test_a_device_in_use_is_refused_before_it_is_marked(make_device, ledger, tmp_path):
    device = make_device(16 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", device], check=True)
    folder = tmp_path / "mounted"
    folder.mkdir()
    subprocess.run(["mount", device, folder], check=True)
    try:
        with DeviceVolume(device, ledger) as volume:
            with pytest.raises(VolumeInUse, match=str(folder)):
                carry(volume, bytes(BLOCK))
            assert not volume.is_unfinished()
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_program_that_has_the_device_open_is_seen_by_whichever_node(device, ledger, tmp_path):
    os.mknod(tmp_path / "node", os.stat(device).st_mode, os.stat(device).st_rdev)
    with open(tmp_path / "node", "rb") as node:
        program = subprocess.Popen(["sleep", "60"], stdin=node)
    try:
        with DeviceVolume(device, ledger) as volume, pytest.raises(VolumeInUse, match=f"process {program.pid}"):
            volume.check_not_in_use()
    finally:
        program.kill()
        program.wait()


def test_a_second_import_to_the_device_waits_or_gives_up(device, ledger, tmp_path):
    (tmp_path / "link").symlink_to(device)
    with DeviceVolume(device, ledger) as volume, DeviceVolume(str(tmp_path / "link"), ledger) as other:
        with (
            volume.staged(0, WANTED, True),
            pytest.raises(VolumeInUse, match="Another task imports"),
            other.staged(0, WANTED, True),
        ):
            pass
        with other.staged(0, WANTED, True):
            pass


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"key": 1}', b"\xff" * 100, b"[" * 100000])
def test_a_ledger_that_makes_no_sense_says_nothing(ledger, content):
    ledger.write("key", Record(WANTED, 3, True))
    assert ledger.read("key") == Record(WANTED, 3, True)
    with open(ledger._path("key", "json"), "wb") as file:
        file.write(content)
    assert ledger.read("key") == Record()


def test_what_the_body_of_an_import_raises_is_not_taken_for_a_fault_of_the_lock(device, ledger):
    with DeviceVolume(device, ledger) as volume, pytest.raises(FileNotFoundError, match="theirs"):
        carry(volume, bytes(BLOCK), FileNotFoundError("theirs"))
    with DeviceVolume(device, ledger) as volume, pytest.raises(OSError, match="theirs") as caught:
        carry(volume, bytes(BLOCK), OSError("theirs"))
    assert not isinstance(caught.value, FerryError)


def test_a_device_that_cannot_be_wiped_to_its_end_is_not_taken_for_whole(device, ledger, monkeypatch):
    def fail(*_args):
        raise OSError(5, "Input/output error")

    with DeviceVolume(device, ledger) as volume:
        carry(volume, make_image(1, SIZE))
        monkeypatch.setattr(BlockWriter, "finish", fail)
        with pytest.raises(StorageError, match="wipe"):
            volume.remove(wipe=True)
        assert volume.provenance() is None
