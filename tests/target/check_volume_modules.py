# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tries volume, volume_info and volume_extend on LVM: on a host that target_host.py has started.

    python3 check_volume_modules.py VG

VG is an empty volume group on storage that may be overwritten. Needs root, lvm2, qemu-img, and Ansible and the
collection in PYTHONPATH.
"""

from __future__ import annotations

import json
import subprocess
import sys
import traceback
import typing as t

MIB = 1 << 20
VG = sys.argv[1]


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def play(module: str, check: bool = False, **arguments: t.Any) -> dict[str, t.Any]:
    """Runs a module as Ansible does on a host."""
    done = subprocess.run(
        [sys.executable, "-m", f"ansible_collections.imageferry.glance.plugins.modules.{module}"],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_check_mode": check}}),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return t.cast("dict[str, t.Any]", json.loads(done.stdout))


def on(lv: str, **arguments: t.Any) -> dict[str, t.Any]:
    return {"vg": VG, "lv": lv, **arguments}


def size(lv: str) -> int:
    return int(run("lvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "lv_size", f"{VG}/{lv}"))


def free() -> int:
    return int(run("vgs", "--noheadings", "--units", "b", "--nosuffix", "-o", "vg_free", VG))


def changes(module: str, **arguments: t.Any) -> dict[str, t.Any]:
    """It changes what check mode foretells, and nothing the second time."""
    foretold = play(module, check=True, **arguments)
    done = play(module, **arguments)
    assert done.get("changed") and done["diff"] == foretold.get("diff"), (foretold, done)
    again = play(module, **arguments)
    assert again.get("changed") is False, again
    return done


def clones() -> None:
    """A thin snapshot holds what its origin held, knows where it is from, and keeps the origin from being removed."""
    run("lvcreate", "-y", "-T", "-L", "256m", f"{VG}/pool")
    for image_format, grown in (("raw", "size"), ("qcow2", "virtual_size")):
        play("volume", **on("golden", thin_pool="pool", size="30MiB", format=image_format))
        run("qemu-io", "-f", image_format, "-c", "write -P 7 1M 64k", f"/dev/{VG}/golden")
        made = changes("volume", **on("web-01", clone_of=on("golden"), size="50MiB"))
        assert made["volume"]["format"] == image_format and made["volume"]["clone_of"] == f"{VG}/golden", made
        run("qemu-io", "-f", image_format, "-c", "read -P 7 1M 64k", "-c", "read -P 0 40M 1M", f"/dev/{VG}/web-01")
        run("lvchange", "--addtag", "web", f"{VG}/web-01")
        clone = play("volume_info", **on("web-01"))["volume"]
        assert clone["tags"] == ["web"] and clone["permissions"] == "writeable" and clone["thin_pool"] == "pool", clone
        assert 0 < clone["data_percent"] < 20, clone
        assert clone["provenance"]["source"] == f"{VG}/golden" and clone[grown] >= 50 * MIB, clone
        assert clone["format_source"] == "provenance" and clone["allocated"] < 8 * MIB, clone
        assert play("volume_info", **on("golden"))["volume"]["clones"] == [f"{VG}/web-01"]
        for check in (True, False):
            refused = play("volume", check, **on("golden", state="absent"))
            assert (refused["error"], refused["clones"]) == ("has_clones", [f"{VG}/web-01"]), refused
        run("lvchange", "-an", f"{VG}/web-01")
        run("vgchange", "-ay", VG)  # as at the start of the host
        run("qemu-io", "-f", image_format, "-c", "write -P 8 1M 64k", f"/dev/{VG}/web-01")
        run("qemu-io", "-f", image_format, "-c", "read -P 7 1M 64k", f"/dev/{VG}/golden")
        for lv in ("web-01", "golden"):
            changes("volume", **on(lv, state="absent"))
    run("lvremove", "-y", f"{VG}/pool")


def not_clones() -> None:
    """What is no thin logical volume is not cloned, and what is there is no clone because it was asked for."""
    play("volume", **on("thick", size="8MiB"))
    assert play("volume", **on("x", clone_of=on("thick")))["error"] == "unsupported_format"
    assert play("volume", path="/var/tmp/x", clone_of=on("thick"))["error"] == "unsupported_format"
    run("lvcreate", "-y", "-T", "-L", "64m", f"{VG}/pool")
    for lv in ("golden", "other"):
        play("volume", **on(lv, size="8MiB", thin_pool="pool"))
    assert play("volume", **on("other", clone_of=on("golden")))["error"] == "volume_exists"
    assert play("volume", **on("x", clone_of=on("golden", format="raw"), format="qcow2"))["error"] == "invalid_option"
    run("lvremove", "-y", f"{VG}/thick", f"{VG}/pool")


def extents() -> None:
    """A raw disk becomes whole extents, whatever is asked for; what it gains reads as zeros."""
    made = changes("volume", **on("raw", size=10 * MIB + 1))
    assert made["volume"]["virtual_size"] == size("raw") == 12 * MIB, made
    grown = changes("volume_extend", **on("raw", size="13MiB"))
    assert grown["after"] == {"size": 16 * MIB, "virtual_size": 16 * MIB} and size("raw") == 16 * MIB, grown
    assert play("volume_extend", **on("raw", size="1PiB"))["error"] == "no_space"
    run("lvremove", "-y", f"{VG}/raw")


def shares() -> None:
    """A share of what is free is taken once; a qcow2's disk is as large as fits with its tables."""
    for image_format in ("raw", "qcow2"):
        for share, part in (("50%FREE", 0.5), ("100%FREE", 1.0)):
            changes("volume", **on("db", size="16MiB", format=image_format))
            room = free() + size("db")
            grown = changes("volume_extend", **on("db", size=share))
            assert room * part - 8 * MIB <= size("db") <= room * part, (size("db"), room)
            assert size("db") - grown["after"]["virtual_size"] < size("db") // 1000 + 8 * MIB, grown
            if image_format == "qcow2":
                run("qemu-img", "check", "-q", "-f", "qcow2", f"/dev/{VG}/db")
            run("lvremove", "-y", f"{VG}/db")


def main() -> int:
    failed = 0
    for check in (clones, not_clones, extents, shares):
        try:
            check()
            print(f"{check.__name__}: ok", flush=True)
        except Exception:
            failed = 1
            print(f"{check.__name__}: FAILED\n{traceback.format_exc()}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
