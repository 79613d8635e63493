# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a report shows: the images of a cloud, what hosts hold of them, the backups, and what of all this needs care.

Nothing here depends on the hour at which a report is made, so that one that tells nothing new is the same file.
"""

from __future__ import annotations

import collections
import datetime
import html
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._sizes import format_size
from ansible_collections.imageferry.glance.plugins.plugin_utils._timeline import Axis, read_time, show_time

Facts = dict[str, t.Any]
Named = t.Mapping[str, t.Any]

FINDINGS = ("silent", "unsafe", "unread", "unfinished", "outdated", "gone", "old_backup")
"""What needs care, the most pressing first."""

_LONGEST_MESSAGE = 300


def build_report(
    images: t.Sequence[Named], hosts: t.Mapping[str, Named], backups: Named, backup_days: int, today: datetime.date
) -> Facts:
    """All that the page shows, as plain values.

    :param images: results of glance_image_info.
    :param hosts: the result of host_volumes_info, by host.
    :param backups: the result of backup_info.
    :param backup_days: how many days the newest backup of a disk may be old.
    """
    points = backups.get("backups") or []
    axis = Axis(points)
    catalogue = Catalogue(images, {point["image"] for point in points})
    shown_hosts = [_host(name, result, catalogue) for name, result in sorted(hosts.items())]
    shown_images = [_image(image, shown_hosts) for image in catalogue.images if not catalogue.is_backup(image)]
    sets = _sets(points, axis, backup_days, today)
    unlisted = _problem([backups])
    findings = _unasked(catalogue.problem, unlisted) + _findings(shown_images, shown_hosts, sets, backup_days)
    return {
        "newest": _newest(catalogue.images, hosts, points),
        "backup_days": backup_days,
        "findings": findings,
        "images": {"problem": catalogue.problem, "list": shown_images, **_images_summary(shown_images, shown_hosts)},
        "hosts": _hosts_summary(shown_hosts),
        "backups": {
            "problem": unlisted,
            "ticks": axis.ticks(),
            "sets": sets,
            "count": len(points),
            "size": _stored(points),
        },
    }


def escape_all(value: t.Any) -> t.Any:
    """The same values with every text, also the keys of mappings, fit for HTML, so that no template can forget it."""
    if isinstance(value, str):
        return html.escape(value)
    if isinstance(value, t.Mapping):
        return {escape_all(key): escape_all(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [escape_all(inner) for inner in value]
    return value


class Catalogue:
    """The images of a cloud, as what hosts hold is held against them.

    :param results: those of glance_image_info.
    :param backups: the ids of those that are backups.
    """

    def __init__(self, results: t.Sequence[Named], backups: t.Container[str]) -> None:
        self._backups = backups
        images: list[Named] = [image for result in results for image in result.get("glance_images") or []]
        self.images = sorted(images, key=lambda image: (str(image.get("name") or "").lower(), image["id"]))
        self.problem = _problem(results)
        self._by_id: dict[str, Named] = {image["id"]: image for image in self.images}
        self._by_hash: dict[tuple[str, str] | None, Named] = {_hash(image): image for image in self.images}
        self._by_hash.pop(None, None)

    def is_backup(self, image: Named) -> bool:
        """Whether it is one of the backups, which are not shown among the images."""
        return image["id"] in self._backups

    def holding(self, provenance: Named) -> Named | None:
        """The image that a volume came from, or another one with the same bytes."""
        digest = (str(provenance.get("hash_algo")), str(provenance.get("hash_value")))
        return self._by_id.get(provenance["source"]) or self._by_hash.get(digest)

    def newer(self, provenance: Named) -> Named | None:
        """The newest active image of the same name, if it is newer than what a volume holds, and has other bytes.

        None for what was restored: a disk has all its backups under one name, and a later one is no newer edition.
        """
        own = self.holding(provenance)
        if own is not None and self.is_backup(own):
            return None
        since = read_time((own or {}).get("created_at") or provenance.get("imported_at"))
        named = [image for image in self.images if _offered(image) and image.get("name") == provenance.get("name")]
        newest = max(named, key=lambda image: str(image.get("created_at") or ""), default=None)
        created = read_time(newest.get("created_at")) if newest else None
        if newest is None or since is None or created is None or created <= since or _same(newest, own, provenance):
            return None
        return newest


def _hash(image: Named) -> tuple[str, str] | None:
    return (image["os_hash_algo"], image["os_hash_value"]) if image.get("os_hash_value") else None


def _same(image: Named, own: Named | None, provenance: Named) -> bool:
    held = {provenance.get("hash_value"), (own or {}).get("os_hash_value")} - {None}
    return image.get("os_hash_value") in held


def _offered(image: Named) -> bool:
    return image.get("status") == "active" and not image.get("os_hidden")


def _failed(result: Named) -> bool:
    return bool(result.get("failed") or result.get("unreachable"))


def _problem(results: t.Sequence[Named]) -> str | None:
    """What went wrong, in the first line of the first message; None if nothing did."""
    failed = next((result for result in results if _failed(result)), None)
    if failed is None:
        return None
    first = str(failed.get("msg") or "").strip().partition("\n")[0]
    return first[:_LONGEST_MESSAGE] or "It failed, and did not say why."


def _size(count: int | None) -> str | None:
    return None if count is None else format_size(count)


# --- images ------------------------------------------------------------------------------------------------------


def _image(image: Named, hosts: t.Sequence[Facts]) -> Facts:
    disks = {host["name"]: [disk for disk in host["disks"] if disk["image_id"] == image["id"]] for host in hosts}
    used_by = [
        {"host": host, "count": len(found), "disks": [disk["label"] for disk in found], "anchor": found[0]["anchor"]}
        for host, found in disks.items()
        if found
    ]
    safety = image.get("safety") or {}
    return {
        "id": image["id"],
        "anchor": f"image-{image['id']}",
        "name": image.get("name") or "(no name)",
        "format": image.get("disk_format"),
        "bytes": image.get("size") or 0,
        "size": _size(image.get("size")),
        "virtual_size": _size(image.get("virtual_size")),
        "status": image.get("status"),
        "hidden": bool(image.get("os_hidden")),
        "visibility": image.get("visibility"),
        "protected": bool(image.get("protected")),
        "verdict": safety.get("verdict", "unknown"),
        "reason": safety.get("reason"),
        "error": safety.get("error"),
        "tags": sorted(image.get("tags") or []),
        "created": show_time(image.get("created_at")),
        "used_by": used_by,
        "unused": _offered(image) and not used_by,
    }


def _images_summary(images: t.Sequence[Facts], hosts: t.Sequence[Facts]) -> Facts:
    unused = [image for image in images if image["unused"]]
    answered = [host for host in hosts if not host["problem"]]
    return {
        "count": len(images),
        "size": _size(sum(image["bytes"] for image in images)),
        "unused": len(unused) if answered else 0,
        "unused_size": _size(sum(image["bytes"] for image in unused)),
    }


# --- hosts -------------------------------------------------------------------------------------------------------


def _host(name: str, result: Named, catalogue: Catalogue) -> Facts:
    volumes = [] if _failed(result) else result.get("volumes") or []
    disks = [_disk(volume, f"disk-{name}-{number}", catalogue) for number, volume in enumerate(volumes, 1)]
    reason = _problem([result])
    if reason:
        reason = f"could not be {'reached' if result.get('unreachable') else 'asked'}: {reason}"
    return {
        "name": name,
        "anchor": f"host-{name}",
        "problem": reason,
        "disks": disks,
        "bytes": sum(disk["bytes"] for disk in disks),
        "size": _size(sum(disk["bytes"] for disk in disks)),
    }


def _disk(volume: Named, anchor: str, catalogue: Catalogue) -> Facts:
    provenance = volume.get("provenance") or {}
    state, note, image = _state(volume, provenance, catalogue)
    occupied = volume.get("size") if volume.get("allocated") is None else volume["allocated"]
    return {
        "label": f"{volume['vg']}/{volume['lv']}" if volume.get("vg") else volume.get("path"),
        "pool": volume.get("pool"),
        "anchor": anchor,
        "holds": _holds(volume, provenance),
        "image_id": image["id"] if image and not catalogue.is_backup(image) else None,
        "source": provenance.get("source"),
        "imported": show_time(provenance.get("imported_at")),
        "format": volume.get("format"),
        "bytes": occupied or 0,
        "allocated": _size(occupied),
        "virtual_size": _size(volume.get("virtual_size")),
        "guests": volume.get("guests"),
        "clones": volume.get("clones") or [],
        "state": state,
        "note": note,
    }


def _holds(volume: Named, provenance: Named) -> str:
    if not provenance:
        return "not known yet" if volume.get("unfinished") else "not known"
    if _has_image(volume, provenance) or volume.get("unfinished"):
        return str(provenance.get("name") or provenance["source"])
    return "blank" if provenance["source"] == "blank" else f"clone of {provenance['source']}"


def _state(volume: Named, provenance: Named, catalogue: Catalogue) -> tuple[str, str, Named | None]:
    """How a volume is, why, and the image in Glance that it holds."""
    if volume.get("error"):
        return "unread", str(volume["error"].get("msg") or volume["error"].get("error")), None
    has_image = _has_image(volume, provenance)
    image = catalogue.holding(provenance) if has_image else None
    if volume.get("unfinished"):
        return "unfinished", "An import to it was begun and not completed.", image
    if not has_image:
        return "made", "", None
    if newer := catalogue.newer(provenance):
        return "outdated", f"A newer {newer['name']} is in Glance since {show_time(newer['created_at'])}.", image
    if image is None and "://" not in provenance["source"] and catalogue.problem is None:
        return "gone", f"The image {provenance['source']} is not, or no longer, in this cloud.", None
    return "current", "", image


def _has_image(volume: Named, provenance: Named) -> bool:
    return bool(provenance and (volume.get("imported") or provenance.get("adopted")))


def _hosts_summary(hosts: t.Sequence[Facts]) -> Facts:
    largest = max((host["bytes"] for host in hosts), default=0)
    return {
        "list": [{**host, "share": round(100 * host["bytes"] / largest, 1) if largest else 0} for host in hosts],
        "count": len(hosts),
        "answered": sum(not host["problem"] for host in hosts),
        "disks": sum(len(host["disks"]) for host in hosts),
        "size": _size(sum(host["bytes"] for host in hosts)),
    }


# --- backups -----------------------------------------------------------------------------------------------------


def _sets(points: t.Sequence[Named], axis: Axis, days: int, today: datetime.date) -> list[Facts]:
    by_set: dict[str, dict[tuple[str, str], list[Named]]] = collections.defaultdict(
        lambda: collections.defaultdict(list)
    )
    for point in points:
        by_set[str(point.get("set") or "")][point["host"], point["disk"]].append(point)
    return [
        {
            "name": name or "(no set)",
            "anchor": f"set-{number}",
            "disks": [
                _backed_up(host, disk, of_disk, axis, days, today) for (host, disk), of_disk in sorted(disks.items())
            ],
            "count": sum(map(len, disks.values())),
            "size": _stored([point for of_disk in disks.values() for point in of_disk]),
        }
        for number, (name, disks) in enumerate(sorted(by_set.items()), 1)
    ]


def _stored(points: t.Sequence[Named]) -> str:
    """The size of their images, of which each may be several points."""
    return format_size(sum({point["image"]: point.get("size") or 0 for point in points}.values()))


def _backed_up(host: str, disk: str, points: t.Sequence[Named], axis: Axis, days: int, today: datetime.date) -> Facts:
    """A disk, with its points from the newest to the oldest."""
    ordered = sorted(points, key=lambda point: str(point["time"]), reverse=True)
    moments = [moment for point in ordered for moment in (read_time(point["time"]), read_time(point.get("seen")))]
    last = max((moment for moment in moments if moment), default=None)
    return {
        "host": host,
        "disk": disk,
        "last": last.strftime("%Y-%m-%d") if last else None,
        "old": last is None or (today - last.date()).days > days,
        "points": [
            {
                "left": axis.position(point["time"]),
                "time": show_time(point["time"]),
                "seen": show_time(point.get("seen")),
                "image": point["image"],
                "name": point.get("name"),
                "format": point.get("disk_format"),
                "size": _size(point.get("size")),
                "virtual_size": _size(point.get("virtual_size")),
                "status": point.get("status"),
                "protected": bool(point.get("protected")),
                "newest": bool(point.get("newest")),
            }
            for point in ordered
        ],
    }


# --- all of it ---------------------------------------------------------------------------------------------------


def _unasked(images: str | None, backups: str | None) -> list[Facts]:
    """That it is not known whether all is well, as a part of the cloud could not be asked, for these reasons."""
    parts = (("The image service", images, "images"), ("The list of backups", backups, "backups"))
    return [_finding("silent", None, part, problem, anchor) for part, problem, anchor in parts if problem]


def _findings(
    images: t.Sequence[Facts], hosts: t.Sequence[Facts], sets: t.Sequence[Facts], backup_days: int
) -> list[Facts]:
    found = [
        _finding("silent", host["name"], None, f"It {host['problem']}", host["anchor"])
        for host in hosts
        if host["problem"]
    ]
    found += [
        _finding(kind, None, image["name"], image["reason"], image["anchor"])
        for image in images
        if (kind := _concern(image))
    ]
    found += [
        _finding(disk["state"], host["name"], disk["label"], disk["note"], disk["anchor"])
        for host in hosts
        for disk in host["disks"]
        if disk["note"]
    ]
    found += [
        _finding("old_backup", disk["host"], disk["disk"], _age(disk, backup_days), group["anchor"])
        for group in sets
        for disk in group["disks"]
        if disk["old"]
    ]
    return sorted(found, key=lambda finding: FINDINGS.index(finding["kind"]))


def _concern(image: Facts) -> str | None:
    """The kind of finding that an image is, if it is one: its header says ill of it, or could not be read."""
    if image["verdict"] == "unsafe":
        return "unsafe"
    return "unread" if image["error"] else None


def _finding(kind: str, host: str | None, what: str | None, text: str | None, anchor: str) -> Facts:
    return {"kind": kind, "host": host, "what": what, "text": text, "anchor": anchor}


def _age(disk: Facts, days: int) -> str:
    allowed = "a day" if days == 1 else f"{days} days"
    return f"Last backed up or seen unchanged on {disk['last']}, more than {allowed} ago."


def _newest(images: t.Sequence[Named], hosts: t.Mapping[str, Named], points: t.Sequence[Named]) -> str | None:
    """When the last of all that is shown happened."""
    moments = [read_time(image.get("updated_at")) for image in images]
    moments += [read_time(point.get(field)) for point in points for field in ("time", "seen")]
    moments += [
        read_time((volume.get("provenance") or {}).get("imported_at"))
        for result in hosts.values()
        for volume in result.get("volumes") or []
    ]
    last = max((moment for moment in moments if moment), default=None)
    return show_time(last.isoformat()) if last else None
