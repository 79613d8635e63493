# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tries volumes on LVM, which needs a kernel with a device mapper: on a host that target_host.py has started.

    python3 check_volumes.py VG

VG is an empty volume group on storage that may be overwritten. Needs root, lvm2, and the collection in PYTHONPATH.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import tempfile
import traceback
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    FerryError,
    NoSpace,
    TransferFailed,
    VolumeInUse,
    VolumeInvalid,
)
from ansible_collections.imageferry.glance.plugins.module_utils._volume.choose import open_volume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.ledger import Ledger
from ansible_collections.imageferry.glance.plugins.module_utils._volume.lvm import UNFINISHED, LvmVolume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import Provenance

MIB = 1 << 20
POOLS = {"zeroed": "y", "unzeroed": "n"}
WANTED = Provenance("an id", "a näme", "sha512", "00ff", 7, "raw", metadata={"properties": {"os": "linux" * 400}})
LEDGER = Ledger(os.path.join(tempfile.mkdtemp(), "ledger"))


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def fails(kind: type[FerryError], action: t.Callable[..., t.Any], *arguments: t.Any) -> str:
    try:
        action(*arguments)
    except kind as err:
        return str(err)
    raise AssertionError(f"no {kind.__name__}")


def make_image(seed: int, size: int) -> bytes:
    noise = random.Random(seed)
    return b"".join(noise.randbytes(MIB) if index % 3 == 0 else bytes(MIB) for index in range(size // MIB)) + b"end"


def carry(volume: LvmVolume, image: bytes, fail: BaseException | None = None) -> int:
    with volume.staged(0, WANTED, True) as staged:
        staged.reserve(len(image))
        assert UNFINISHED in run("lvs", "-o", "lv_tags", volume.label)
        for start in range(staged.held, len(image), MIB):
            piece = bytearray(image[start : start + MIB])
            staged.sink.write(piece, len(piece), start)
        if fail:
            raise fail
        staged.sink.finish(len(image))
        staged.publish(WANTED, True)
        return staged.held


def check_holds(vg: str, lv: str, image: bytes) -> None:
    run("udevadm", "settle")
    with LvmVolume(vg, lv, ledger=LEDGER) as volume:
        held, there = volume.provenance(), volume.stat()
        assert held and held.completed() == WANTED.completed() and not volume.is_unfinished(), held
        with volume.open() as fd, open(fd, "rb", closefd=False) as file:
            content = file.read()
        assert there and content == image + bytes(there.size - len(image)), "other bytes"


def spoil(path: str) -> None:
    with open(path, "rb+", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\xff" * MIB):
            pass


def thick(vg: str) -> None:
    """A new one on storage that others have used, another image over it, and one that makes it grow."""
    run("lvcreate", "-y", "-L", "64m", "-n", "used", vg)
    spoil(f"/dev/{vg}/used")
    run("lvremove", "-y", f"{vg}/used")
    for image in (make_image(1, 10 * MIB), make_image(2, 7 * MIB), make_image(3, 22 * MIB)):
        with LvmVolume(vg, "web-01", ledger=LEDGER) as volume:
            assert carry(volume, image) == 0
        check_holds(vg, "web-01", image)
    with LvmVolume(vg, "web-01", ledger=LEDGER) as volume, open(volume.path, "rb"):
        assert volume.grow(25 * MIB).size == 28 * MIB
    check_holds(vg, "web-01", image)
    grow_after_a_kill(vg)
    check_holds(vg, "web-01", image)
    run("lvchange", "-an", f"{vg}/web-01")
    with open_volume({"device": f"/dev/{vg}/web-01"}) as named:
        assert named.provenance() and not named.is_blank()
        named.check_not_in_use()
    assert not os.path.exists(f"/dev/{vg}/web-01")
    with open_volume({"vg": vg, "lv": "web-01"}) as named:
        named.remove(wipe=True)
        assert named.stat() is None


def grow_after_a_kill(vg: str) -> None:
    """What a run that was killed as it zeroed has left is in nobody's way."""
    with LvmVolume(vg, "web-01", ledger=LEDGER) as volume:
        facts, there = volume.describe(), volume.stat()
    run("lvcreate", "-y", "-L", "4m", "-n", f"imageferry.gained.{facts['uuid']}", "--addtag", UNFINISHED, vg)
    with LvmVolume(vg, "web-01", ledger=LEDGER) as volume:
        assert there and volume.describe()["group_free"] == facts["group_free"]
        assert volume.grow(there.size + MIB).size == there.size + 4 * MIB
    assert "gained" not in run("lvs", vg)


def thin(vg: str) -> None:
    """What is zeros takes nothing of the pool, at first and when it is used again, and nothing old is read."""
    for pool, zero in POOLS.items():
        run("lvcreate", "-y", "-T", "-L", "256m", "-c", "256k", "-Z", zero, f"{vg}/{pool}")
        run("lvcreate", "-y", "-V", "128m", "-T", f"{vg}/{pool}", "-n", "used")
        spoil(f"/dev/{vg}/used")
        run("lvremove", "-y", f"{vg}/used")
        image = make_image(4, 60 * MIB)
        for again in (make_image(5, 30 * MIB), image):
            with LvmVolume(vg, "thin", pool, ledger=LEDGER) as volume:
                carry(volume, again)
            check_holds(vg, "thin", again)
            with LvmVolume(vg, "thin", ledger=LEDGER) as volume:
                there = volume.stat()
                assert there and there.allocated is not None and there.allocated <= len(again) // 3 + 2 * MIB, there
        with LvmVolume(vg, "thin", ledger=LEDGER) as volume:
            volume.remove(wipe=False)
        run("lvremove", "-y", f"{vg}/{pool}")


def external(vg: str) -> None:
    """What is zeros is so also where a thin one stands on a volume outside of its pool, and after it is wiped."""
    run("lvcreate", "-y", "-L", "32m", "-n", "base", vg)
    spoil(f"/dev/{vg}/base")
    run("lvchange", "-an", f"{vg}/base")
    run("lvchange", "--permission", "r", f"{vg}/base")
    run("lvcreate", "-y", "-T", "-L", "128m", f"{vg}/pool")
    run("lvcreate", "-y", "-s", "--thinpool", f"{vg}/pool", "-n", "over", f"{vg}/base")
    run("lvcreate", "-y", "-s", "-kn", "-n", "over-over", f"{vg}/over")
    for lv in ("over", "over-over"):
        with LvmVolume(vg, lv, ledger=LEDGER) as volume:
            carry(volume, make_image(7, 20 * MIB))
        check_holds(vg, lv, make_image(7, 20 * MIB))
    with LvmVolume(vg, "over-over", ledger=LEDGER) as volume:
        with volume.locked(0):
            volume.wipe()
        with volume.open() as fd:
            assert not any(os.pread(fd, 32 * MIB, 0))
    run("lvremove", "-y", f"{vg}/over-over", f"{vg}/over", f"{vg}/pool", f"{vg}/base")


def interrupted(vg: str) -> None:
    """One that came into being goes with an import that failed, and stays with one that can go on."""
    image = make_image(6, 20 * MIB)
    for pool in (None, "pool"):
        if pool:
            run("lvcreate", "-y", "-T", "-L", "128m", f"{vg}/{pool}")
        with LvmVolume(vg, "db", pool, ledger=LEDGER) as volume:
            fails(NoSpace, carry, volume, image, NoSpace("x"))
            assert volume.stat() is None
            fails(TransferFailed, carry, volume, image, TransferFailed("x"))
            assert volume.is_unfinished() and volume.provenance() is None
            assert carry(volume, image) == 20 * MIB
        check_holds(vg, "db", image)
        with LvmVolume(vg, "db", ledger=LEDGER) as volume:
            fails(NoSpace, carry, volume, image, NoSpace("x"))
            assert volume.is_unfinished() and volume.stat()
            volume.remove(wipe=False)
    run("lvremove", "-y", f"{vg}/pool")


def refused(vg: str) -> None:
    """What is too large, in use, special, or not there is refused, and left as it was."""
    with LvmVolume(vg, "huge", ledger=LEDGER) as volume, volume.staged(0, WANTED, True) as staged:
        assert "free" in fails(NoSpace, staged.reserve, 1 << 50)
    fails(VolumeInvalid, LvmVolume("nowhere", "x", ledger=LEDGER).stat)
    run("lvcreate", "-y", "-L", "64m", "-n", "origin", vg)
    run("mkfs.ext4", "-q", f"/dev/{vg}/origin")
    with tempfile.TemporaryDirectory() as folder:
        run("mount", f"/dev/{vg}/origin", folder)
        try:
            with LvmVolume(vg, "origin", ledger=LEDGER) as volume:
                assert folder in fails(VolumeInUse, carry, volume, b"x")
                assert not volume.is_unfinished()
        finally:
            run("umount", folder)
    run("lvcreate", "-y", "-s", "-L", "16m", "-n", "snap", f"{vg}/origin")
    for lv in ("origin", "snap"):
        with LvmVolume(vg, lv, ledger=LEDGER) as volume:
            assert volume.stat() and "snapshot" in fails(VolumeInvalid, carry, volume, b"x")
            volume.check_not_in_use()  # which is for those who only read, too
    run("lvremove", "-y", f"{vg}/origin")
    run("lvcreate", "-y", "-L", "16m", "-n", "fixed", vg)
    run("lvchange", "--permission", "r", f"{vg}/fixed")
    with LvmVolume(vg, "fixed", ledger=LEDGER) as volume:
        volume.check_not_in_use()
        for change in (volume.grow, volume.remove):
            assert "read-only" in fails(VolumeInvalid, change, 32 * MIB)
    run("lvremove", "-y", f"{vg}/fixed")
    run("lvcreate", "-y", "-T", "-L", "64m", f"{vg}/pool")
    assert "pool" in fails(VolumeInvalid, LvmVolume(vg, "pool", ledger=LEDGER).stat)
    fails(VolumeInvalid, lambda: open_volume({"device": f"/dev/mapper/{vg}-pool_tmeta"}).__enter__())
    run("lvremove", "-y", f"{vg}/pool")


def main() -> int:
    failed = 0
    for check in (thick, thin, external, interrupted, refused):
        try:
            check(sys.argv[1])
            print(f"{check.__name__}: ok", flush=True)
        except Exception:
            failed = 1
            print(f"{check.__name__}: FAILED\n{traceback.format_exc()}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
