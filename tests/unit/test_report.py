# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import base64
import datetime
import hashlib
from pathlib import Path

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.imageferry.glance.plugins.filter.report import report
from ansible_collections.imageferry.glance.plugins.plugin_utils._report import build_report, escape_all
from ansible_collections.imageferry.glance.plugins.plugin_utils._timeline import Axis, show_time

TEMPLATES = Path(__file__).resolve().parents[2] / "playbooks" / "templates"
OLD, NEW, OTHER = "11111111-0000-0000-0000-000000000001", "11111111-0000-0000-0000-000000000002", "1" * 8
TODAY = datetime.date(2026, 6, 18)


def image(image_id=OLD, created="2026-05-01T00:00:00Z", digest="old", **more):
    return {
        "id": image_id, "name": "debian-12", "status": "active", "disk_format": "qcow2", "size": 2**30,
        "created_at": created, "updated_at": created, "os_hash_algo": "sha512", "os_hash_value": digest, **more,
    }  # fmt: skip


def volume(source=OLD, digest="old", **more):
    provenance = {"source": source, "name": "debian-12", "hash_algo": "sha512", "hash_value": digest,
                  "imported_at": "2026-05-02T00:00:00Z"}  # fmt: skip
    return {
        "type": "file", "path": "/srv/a", "exists": True, "unfinished": False, "imported": True, "size": 2**20,
        "allocated": 2**19, "virtual_size": 2**30, "format": "raw", "clones": [], "guests": [],
        "provenance": provenance, **more,
    }  # fmt: skip


def point(time, seen=None, **more):
    return {"set": "nightly", "host": "web01", "disk": "vg0/db", "time": time, "seen": seen, "image": f"image-{time}",
            "size": 10, "status": "active", "newest": False, **more}  # fmt: skip


def made(images=(), volumes=(), points=(), days=7, hosts=None):
    hosts = {"web01": {"volumes": list(volumes)}} if hosts is None else hosts
    return build_report([{"glance_images": list(images)}], hosts, {"backups": list(points)}, days, TODAY)


def kinds(shown):
    return [finding["kind"] for finding in shown["findings"]]


ADOPTED = volume(imported=False)
ADOPTED["provenance"]["adopted"] = True
REPLACED = image(NEW, "2026-06-01T00:00:00Z", "new")


@pytest.mark.parametrize(
    ("images", "held", "state"),
    [
        ([image()], volume(), "current"),
        ([image(digest=None)], volume(digest=None), "current"),
        ([image(), REPLACED], volume(), "outdated"),
        ([REPLACED], volume(), "outdated"),
        ([image(), REPLACED], ADOPTED, "outdated"),
        ([image(), {**REPLACED, "os_hash_value": "old"}], volume(), "current"),
        ([image(), {**REPLACED, "status": "queued"}], volume(), "current"),
        ([image(), {**REPLACED, "os_hidden": True}], volume(), "current"),
        ([image(), {**REPLACED, "name": "debian-13"}], volume(), "current"),
        ([image(), image(NEW, "2026-04-01T00:00:00Z", "older")], volume(), "current"),
        ([image(NEW, "2026-04-01T00:00:00Z", "older")], volume(), "gone"),
        ([], volume(), "gone"),
        ([image(NEW)], volume(), "current"),
        ([], volume("https://example.org/debian-12"), "current"),
        ([image(), REPLACED], volume(unfinished=True), "unfinished"),
        ([], {"path": "/srv/a", "exists": False, "unfinished": True, "imported": False, "provenance": None},
         "unfinished"),
        ([], volume("blank", imported=False), "made"),
        ([], {"vg": "vg0", "lv": "a", "exists": True, "error": {"msg": "It is not active."}}, "unread"),
    ],
)  # fmt: skip
def test_a_disk_is_held_against_the_images(images, held, state):
    shown = made(images, [held])
    assert shown["hosts"]["list"][0]["disks"][0]["state"] == state
    assert kinds(shown) == ([] if state in ("current", "made") else [state])


def test_an_image_is_only_gone_where_the_cloud_has_answered():
    failed = [{"failed": True, "msg": "Nothing listens there.\nCheck it."}]
    shown = build_report(failed, {"web01": {"volumes": [volume()]}}, {}, 7, TODAY)
    assert kinds(shown) == ["silent"] and shown["images"]["problem"] == "Nothing listens there."


def test_what_the_cloud_does_not_tell_needs_care():
    shown = build_report(
        [{"failed": True, "msg": "No such user."}], {}, {"failed": True, "msg": "No such user."}, 7, TODAY
    )
    told = [(finding["what"], finding["text"], finding["anchor"]) for finding in shown["findings"]]
    assert told == [
        ("The image service", "No such user.", "images"), ("The list of backups", "No such user.", "backups")
    ]  # fmt: skip


def test_disks_say_what_they_hold():
    clone = volume("/srv/base", imported=False)
    held = [volume(), volume("blank", imported=False, vg="vg0", lv="b"), clone, volume("https://example.org/x")]
    held[-1]["provenance"]["name"] = None
    disks = made([image()], held)["hosts"]["list"][0]["disks"]
    assert [disk["holds"] for disk in disks] == ["debian-12", "blank", "clone of /srv/base", "https://example.org/x"]
    assert [disk["label"] for disk in disks[:2]] == ["/srv/a", "vg0/b"]
    assert (disks[0]["allocated"], disks[0]["virtual_size"], disks[0]["imported"]) == (
        "512 KiB", "1.0 GiB", "2026-05-02 00:00",
    )  # fmt: skip


def test_hosts_that_do_not_answer_are_shown():
    hosts = {
        "b": {"volumes": [volume()]},
        "a": {"unreachable": True, "msg": "No route\nto host"},
        "c": {"failed": True},
    }
    shown = made([image()], hosts=hosts)
    assert kinds(shown) == ["silent", "silent"]
    assert [host["name"] for host in shown["hosts"]["list"]] == ["a", "b", "c"]
    assert shown["hosts"]["list"][0]["problem"] == "could not be reached: No route"
    assert (shown["hosts"]["count"], shown["hosts"]["answered"], shown["hosts"]["disks"]) == (3, 1, 1)


def test_images_say_who_uses_them():
    images = [image(), image(NEW, digest="new", name="other"), image(OTHER, digest="q", name="queued", status="queued")]
    shown = made(images, [volume(), volume()])["images"]
    assert [(use["host"], use["count"]) for use in shown["list"][0]["used_by"]] == [("web01", 2)]
    assert [entry["unused"] for entry in shown["list"]] == [False, True, False] and shown["unused_size"] == "1.0 GiB"


def test_images_of_backups_are_shown_as_backups():
    kept = point("2026-06-17T00:00:00Z", image=NEW)
    shown = made([image(), image(NEW, digest="new")], points=[kept])
    assert [entry["id"] for entry in shown["images"]["list"]] == [OLD] and shown["backups"]["count"] == 1


def test_a_restored_disk_is_as_it_should_be_whatever_was_backed_up_since():
    kept = [point("2026-06-16T00:00:00Z", image=OLD), point("2026-06-17T00:00:00Z", image=NEW)]
    shown = made([image(), REPLACED], [volume()], kept)
    assert kinds(shown) == [] and shown["hosts"]["list"][0]["disks"][0]["image_id"] is None


@pytest.mark.parametrize(
    ("safety", "found"),
    [
        ({"verdict": "unsafe", "reason": "It lies.", "error": "format_mismatch"}, ["unsafe"]),
        ({"verdict": "unknown", "reason": "Glance answered 403.", "error": "access_denied"}, ["unread"]),
        ({"verdict": "unknown", "reason": "The image's header was not read."}, []),
    ],
)
def test_unsafe_images_and_those_that_cannot_be_judged_need_care(safety, found):
    assert kinds(made([image(safety=safety)])) == found


@pytest.mark.parametrize(
    ("time", "seen", "old"),
    [
        ("2026-06-11T23:00:00Z", None, False),
        ("2026-06-10T23:59:59Z", None, True),
        ("2026-05-01T00:00:00Z", "2026-06-12", False),
        ("2026-05-01T00:00:00Z", "2026-06-10", True),
    ],
)
def test_backups_grow_old(time, seen, old):
    shown = made(points=[point("2026-04-01T00:00:00Z"), point(time, seen)])
    assert shown["backups"]["sets"][0]["disks"][0]["old"] is old
    assert kinds(shown) == ["old_backup"] * old


def test_backups_are_shown_by_set_and_disk():
    points = [point("2026-06-01T00:00:00Z"), point("2026-06-11T00:00:00Z", newest=True), point("2026-06-06T00:00:00Z"),
              point("2026-06-05T00:00:00Z", set="offsite"), point("2026-06-05T00:00:00Z", host="web02")]  # fmt: skip
    sets = made(points=points)["backups"]["sets"]
    assert [(group["name"], [disk["host"] for disk in group["disks"]]) for group in sets] == [
        ("nightly", ["web01", "web02"]), ("offsite", ["web01"]),
    ]  # fmt: skip
    assert [(point["time"][:10], point["left"]) for point in sets[0]["disks"][0]["points"]] == [
        ("2026-06-11", 100.0), ("2026-06-06", 50.0), ("2026-06-01", 0.0),
    ]  # fmt: skip


def test_an_image_of_two_points_is_counted_once():
    points = [point("2026-06-01T00:00:00Z", image="one"), point("2026-06-09T00:00:00Z", image="one")]
    shown = made(points=points)["backups"]
    assert (shown["count"], shown["size"], shown["sets"][0]["size"]) == (2, "10 B", "10 B")


@pytest.mark.parametrize(
    ("first", "last", "labels"),
    [
        ("2026-06-01T12:00:00Z", "2026-06-05T11:00:00Z", ["2 Jun", "3 Jun", "4 Jun", "5 Jun"]),
        ("2026-06-01T00:30:00Z", "2026-06-01T03:10:00Z", ["1:00", "2:00", "3:00"]),
        ("2026-06-01T00:00:00Z", "2026-06-01T00:00:00Z", []),
    ],
)
def test_the_timeline_has_round_marks(first, last, labels):
    assert [tick["label"] for tick in Axis([{"time": first}, {"time": last}]).ticks()] == labels


@pytest.mark.parametrize("years", [1, 3, 30])
def test_a_long_timeline_has_few_marks(years):
    ticks = Axis([{"time": "2000-01-01"}, {"time": f"{2000 + years}-01-01"}]).ticks()
    assert 3 <= len(ticks) <= 7 and all(0 <= tick["left"] <= 100 for tick in ticks)


def test_the_newest_change_is_among_the_data():
    assert made()["newest"] is None
    assert made([image()], [volume()])["newest"] == "2026-05-02 00:00"
    assert made([image()], [volume()], [point("2026-06-17T02:03:00+02:00")])["newest"] == "2026-06-17 00:03"


def test_what_is_no_time_is_not_shown():
    assert show_time(None) is None and show_time("yesterday") is None and show_time("2026-06-01") == "2026-06-01"


def test_all_text_is_escaped():
    value = escape_all({"<a>": ['"<script>"', {"b": ("'", 1, None)}]})
    assert value == {"&lt;a&gt;": ["&quot;&lt;script&gt;&quot;", {"b": ["&#x27;", 1, None]}]}
    shown = report([{"glance_images": [image(name="<b>")]}], {"<i>": {"volumes": [volume()]}}, today="2026-06-18")
    assert "<" not in repr(shown)


@pytest.mark.parametrize("wrong", [{"backup_days": "many"}, {"today": "today"}])
def test_what_is_no_number_or_date_is_refused(wrong):
    with pytest.raises(AnsibleFilterError, match="is a number"):
        report([], {}, **wrong)


def test_a_browser_runs_the_script():
    """Its digest is in the page's Content-Security-Policy."""
    digest = hashlib.sha256((TEMPLATES / "report.js").read_bytes().strip()).digest()
    assert f"'sha256-{base64.b64encode(digest).decode()}'" in (TEMPLATES / "report.html.j2").read_text()
