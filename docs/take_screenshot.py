# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes docs/docsite/rst/report.webp, a picture of the playbook report's page, of a data center that is made up here.

``make picture`` runs it.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import subprocess
import sys
import tempfile
import typing as t
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "docsite" / "rst" / "report.webp"
TODAY = "2026-06-18"
BROWSER_OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip

# The page on a desk, light, and its backups on a phone, dark.
_SCENE = """\
<!doctype html>
<style>
html { background: #e6eff3; }
iframe { position: absolute; border: 0; box-shadow: 0 18px 50px rgb(4 36 48 / .35); }
.desk { left: 40px; top: 40px; width: 1240px; height: 1200px; border-radius: 14px; color-scheme: light; }
.phone {
  right: 40px; top: 390px; width: 390px; height: 800px; border: 10px solid #05090c; border-radius: 40px;
  color-scheme: dark;
}
</style>
<iframe class="desk" src="report.html"></iframe>
<iframe class="phone" src="report.html#backups"></iframe>
"""
_MIB, _GIB = 1024**2, 1024**3
_GUEST_DISKS = (("db", 0, 37), ("mail", 1, 21), ("git", 0, 62))


def write_page(path: Path, given: dict[str, t.Any], title: str = "Data center Rotterdam") -> None:
    """The page as the playbook writes it of these results."""
    task = {
        "name": "Write the page",
        "ansible.builtin.template": {
            "src": str(ROOT / "playbooks" / "templates" / "report.html.j2"),
            "dest": str(path),
            "mode": "0644",
            "lstrip_blocks": True,
        },
        "vars": {
            "shown": "{{ given.images | imageferry.glance.report(given.hosts, given.backups, 7, given.today) }}",
            "page_title": title,
            "cloud_name": "prod",
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        facts, playbook = Path(folder, "given.json"), Path(folder, "playbook.yml")
        facts.write_text(json.dumps({"given": given}))
        playbook.write_text(
            json.dumps([{"hosts": "localhost", "gather_facts": False, "vars_files": [str(facts)], "tasks": [task]}])
        )
        program = Path(sys.prefix) / "bin" / "ansible-playbook"
        here = ["-i", "localhost,", "-c", "local", "-e", f"ansible_python_interpreter={sys.executable}"]
        run = subprocess.run([program, *here, playbook], capture_output=True, text=True, check=False)
        if run.returncode:
            raise RuntimeError(run.stdout + run.stderr)


def example() -> dict[str, t.Any]:
    """Results of the tasks that ask a cloud and six hosts, of which some need care."""
    images = {image["id"]: image for image in _images()}
    points = _points()
    images.update({point["image"]: _image_of(point) for point in points})
    return {
        "images": [{"glance_images": list(images.values())}],
        "hosts": _hosts(),
        "backups": {"backups": points},
        "today": TODAY,
    }


def _id(name: str) -> str:
    return str(uuid.UUID(hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()))


def _image(name: str, created: str, disk_format: str, size: float, virtual: float, **more: t.Any) -> dict[str, t.Any]:
    key = f"{name} {created}"
    return {
        "id": _id(key), "name": name, "disk_format": disk_format, "size": int(size * _MIB),
        "virtual_size": int(virtual * _GIB) or int(size * _MIB), "status": "active", "visibility": "public",
        "protected": False, "os_hidden": False, "tags": [], "created_at": created, "updated_at": created,
        "os_hash_algo": "sha512", "os_hash_value": hashlib.sha512(key.encode()).hexdigest(),
        "safety": {"verdict": "safe", "reason": "The header refers to no other file, and its geometry is possible."},
        **more,
    }  # fmt: skip


def _images() -> list[dict[str, t.Any]]:
    lie = {"verdict": "unsafe", "reason": "The image is declared to be raw, but its content is qcow2."}
    return [
        _image("almalinux-9", "2026-05-28T09:12:00Z", "qcow2", 561, 10, tags=["golden", "el9"]),
        _image("debian-12", "2026-03-02T10:40:00Z", "qcow2", 418, 3, tags=["golden"], os_hidden=True),
        _image("debian-12", "2026-06-09T10:31:00Z", "qcow2", 424, 3, tags=["golden"], protected=True),
        _image("debian-13-netinst.iso", "2026-04-19T16:05:00Z", "iso", 784, 0, tags=["iso"]),
        _image("ubuntu-24.04", "2026-05-11T08:00:00Z", "qcow2", 596, 3.5, tags=["golden"]),
        _image("vendor-appliance", "2026-06-15T13:22:00Z", "raw", 912, 0, visibility="shared", safety=lie),
        _image("web-golden", "2026-06-16T07:45:00Z", "raw", 20480, 20, tags=["release"], visibility="private"),
        _image("windows-2025", "2026-02-20T11:58:00Z", "qcow2", 7331, 40, tags=["golden", "virtio"]),
    ]


def _held(path: str, image: tuple[str, str] | None, size: float, virtual: float, guests: t.Sequence[str] = (),
          **more: t.Any) -> dict[str, t.Any]:  # fmt: skip
    parts = path.split("/")
    place = {"vg": parts[2], "lv": parts[3]} if path.startswith("/dev/") else {}
    source = _id(" ".join(image)) if image else "blank"
    digest = hashlib.sha512(" ".join(image).encode()).hexdigest() if image else None
    return {
        "type": "lv" if place else "file", "path": path, **place, "exists": True, "unfinished": False,
        "format": "raw" if place else "qcow2", "size": int(size * _GIB), "allocated": int(size * _GIB),
        "virtual_size": int(virtual * _GIB), "imported": image is not None, "clones": [], "guests": list(guests),
        "provenance": {
            "source": source, "name": image[0] if image else None, "hash_algo": "sha512", "hash_value": digest,
            "imported_at": "2026-06-16T20:14:00Z" if image and image[1] > "2026-06" else "2026-05-29T20:02:00Z",
        },
        **more,
    }  # fmt: skip


def _hosts() -> dict[str, dict[str, t.Any]]:
    web, debian = ("web-golden", "2026-06-16T07:45:00Z"), ("debian-12", "2026-06-09T10:31:00Z")
    old_debian, ubuntu = ("debian-12", "2026-03-02T10:40:00Z"), ("ubuntu-24.04", "2026-05-11T08:00:00Z")
    alma, windows = ("almalinux-9", "2026-05-28T09:12:00Z"), ("windows-2025", "2026-02-20T11:58:00Z")
    folder = "/var/lib/libvirt/images"
    clone = {"provenance": {"source": f"{folder}/debian-12.qcow2", "imported_at": None}}
    return {
        "kvm-01": {"volumes": [
            _held("/dev/vg0/db", alma, 60, 60, ["db"]),
            _held("/dev/vg0/git", old_debian, 40, 40, ["git"]),
            _held("/dev/vg0/scratch", None, 12, 12, ["db"]),
        ]},
        "kvm-02": {"volumes": [
            _held(f"{folder}/debian-12.qcow2", debian, 1.1, 3, pool="default", clones=[f"{folder}/ci-1.qcow2"]),
            _held(f"{folder}/ci-1.qcow2", None, 2.4, 20, ["ci-1"], pool="default", **clone),
            _held(f"{folder}/mail.qcow2", ubuntu, 21.7, 50, ["mail"], pool="default"),
        ]},
        "kvm-03": {"volumes": [
            _held("/dev/vg0/web-1", web, 20, 20, ["web-1"]),
            _held("/dev/vg0/web-2", web, 20, 20, ["web-2"], unfinished=True),
            _held("/dev/vg0/office", windows, 40, 40, ["office"]),
        ]},
        "kvm-04": {
            "unreachable": True,
            "msg": "Failed to connect to the host via ssh: connect to host kvm-04 port 22: No route to host",
        },
        "edge-paris": {"volumes": [
            _held("/srv/images/router.qcow2", ("vyos-1.4", "2025-11-03T00:00:00Z"), 1.8, 8, guests=(), format="qcow2"),
        ]},
    }  # fmt: skip


def _points() -> list[dict[str, t.Any]]:
    today = datetime.date.fromisoformat(TODAY)
    points = []
    for guest, skipped, size in _GUEST_DISKS:
        days = [ago for ago in (*range(14), 16, 23, 30, 44) if ago >= skipped * 9 and (ago + size) % 5]
        points += [
            _point("nightly", f"kvm-0{1 + skipped}", f"{guest}/vda", today, ago, size, ago == days[0]) for ago in days
        ]
    points += [_point("offsite", "kvm-01", "vg0/db", today, ago, 41, ago == 3) for ago in (3, 17, 31, 45)]
    points += [_point("offsite", "edge-paris", "/srv/images/router.qcow2", today, ago, 1, ago == 4) for ago in (4, 32)]
    return points


def _point(
    name: str, host: str, disk: str, today: datetime.date, ago: int, size: int, newest: bool
) -> dict[str, t.Any]:
    day = (today - datetime.timedelta(days=ago)).isoformat()
    time = f"{day}T{2 + size % 3:02}:{size % 60:02}:00Z"
    return {
        "set": name, "host": host, "disk": disk, "time": time, "seen": day, "newest": newest,
        "image": _id(f"{name} {host} {disk} {time}"), "name": f"{name}/{host}/{disk}",
        "size": size * _GIB - ago * 97 * _MIB % _GIB, "virtual_size": size * 2 * _GIB, "disk_format": "qcow2",
        "status": "active", "protected": ago > 28, "content": "",
    }  # fmt: skip


def _image_of(point: dict[str, t.Any]) -> dict[str, t.Any]:
    known = {key: point[key] for key in ("name", "size", "status", "disk_format")}
    return {**known, "id": point["image"], "created_at": point["time"], "updated_at": point["time"]}


def take(page: Path, picture: Path, width: int, height: int) -> None:
    """A picture of the page, as a browser shows it in a window of that size."""
    with tempfile.TemporaryDirectory() as profile:
        command = ["chromium", *BROWSER_OPTIONS, f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        subprocess.run([*command, f"--screenshot={picture}", page.as_uri()], check=True, capture_output=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        write_page(Path(made, "report.html"), example())
        Path(made, "scene.html").write_text(_SCENE)
        take(Path(made, "scene.html"), PICTURE, 1520, 1280)
