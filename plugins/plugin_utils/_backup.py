# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups of disks: images that say of which set, host and disk they are, and at which moments it held their content.

An image is one content of a disk. It has a moment more when the disk comes to hold that content again, so the disk as
it was at any time is in the image with the last moment before. An image without these properties, or without bytes, is
no backup; they appear together with the image, once Glance's own hashes were held against what was sent.
"""

from __future__ import annotations

import datetime
import json
import typing as t
from dataclasses import replace

from ansible_collections.imageferry.glance.plugins.module_utils._errors import ImageNotFound
from ansible_collections.imageferry.glance.plugins.plugin_utils import _record
from ansible_collections.imageferry.glance.plugins.plugin_utils._cloud import Cloud
from ansible_collections.imageferry.glance.plugins.plugin_utils._export import CONTENT, Export, Surveyed
from ansible_collections.imageferry.glance.plugins.plugin_utils._image_spec import Image, ImageSpec, plan_update
from ansible_collections.imageferry.glance.plugins.plugin_utils._moment import format_time, parse_time

_PREFIX = "owner_specified.imageferry.backup."
SET, HOST, DISK = f"{_PREFIX}set", f"{_PREFIX}host", f"{_PREFIX}disk"
TIMES = f"{_PREFIX}times"
"""The moments, ascending, with commas between."""

FORMAT, SIZE, VOLUME = f"{_PREFIX}format", f"{_PREFIX}size", f"{_PREFIX}volume"
"""The disk's own format, its bytes, and where it lay, as JSON in the words of the options."""

GUEST = f"{_PREFIX}guest"
"""The name of the guest that had the disk when it was backed up with it."""

SEEN = f"{_PREFIX}seen"
"""The last day on which a run found the disk to hold this content."""

_LONGEST_NAME = 255  # Image API v2


class Point(t.NamedTuple):
    """A disk as it was at one moment.

    :param time: UTC, ISO 8601.
    :param newest: whether none of this disk is newer.
    """

    set: str
    host: str
    disk: str
    time: str
    image: Image
    newest: bool

    @property
    def moment(self) -> datetime.datetime:
        """Its time."""
        return parse_time(self.time)

    def to_dict(self) -> dict[str, t.Any]:
        """Plain values, as returned to the user."""
        image = self.image
        shown = ("name", "size", "disk_format", "status", "protected")
        return {
            **{name: getattr(self, name) for name in ("set", "host", "disk", "time", "newest")},
            "seen": image.get(SEEN),
            "guest": image.get(GUEST),
            "format": image.get(FORMAT),
            "volume": json.loads(image.get(VOLUME, "null")),
            "image": image["id"],
            "content": image.get(CONTENT),
            **{name: image.get(name) for name in shown},
            "virtual_size": int(image[SIZE]) if SIZE in image else None,
        }


def times_of(image: Image) -> list[str]:
    """The moments at which the disk held the image's content, ascending."""
    return sorted(filter(None, image.get(TIMES, "").split(",")))


def backup_images(cloud: Cloud, name: str | None) -> list[Image]:
    """The images of this project that are whole backups.

    :param name: of the set; None for all sets.
    """
    query = {"status": "active", **({SET: name} if name else {})}
    return [image for image in _record.own_images(cloud, query) if _is_backup(image) and name in (None, image[SET])]


def _is_backup(image: Image) -> bool:
    return image["status"] == "active" and not _record.is_draft(image) and {SET, HOST, DISK, TIMES} <= image.keys()


def points(images: t.Iterable[Image]) -> list[Point]:
    """What can be restored, by set, host, disk and time."""
    found = sorted(
        ((image[SET], image[HOST], image[DISK], time, image) for image in images for time in times_of(image)),
        key=lambda point: point[:4],
    )
    newest = {point[:3]: point[3] for point in found}
    return [Point(*point, newest=point[3] == newest[point[:3]]) for point in found]


class Address(t.NamedTuple):
    """Which disk a backup is of.

    :param guest: that it is backed up with, None where it is so by itself.
    """

    set: str
    host: str
    disk: str
    guest: str | None = None

    @property
    def image_name(self) -> str:
        """What its images are called, for people."""
        return f"{self.set}/{self.host}/{self.disk.lstrip('/')}"[:_LONGEST_NAME]

    def is_of(self, image: Image) -> bool:
        """Whether the image is one of this disk."""
        return (image[SET], image[HOST], image[DISK]) == self[:3]


class BackupExport(Export):
    """One disk's way to its backup.

    :param address: whose backup it is.
    :param time: the moment that it is of.
    """

    done = ("Backed up", "Would back up")

    def __init__(self, cloud: Cloud, address: Address, time: str, params: t.Mapping[str, t.Any]) -> None:
        self._address = address
        self._time = time
        super().__init__(cloud, address.image_name, params)

    def _find(self) -> list[Image]:
        """The disk's backups, the newest first."""
        images = [image for image in backup_images(self._cloud, self._address.set) if self._address.is_of(image)]
        return sorted(images, key=lambda image: times_of(image)[-1:], reverse=True)

    def reason(self) -> str:
        """Why a new image is needed, in words."""
        return "its content has changed" if self._present else f"it is new in the set {self._address.set}"

    def predicted(self, surveyed: Surveyed) -> tuple[dict[str, t.Any], dict[str, t.Any]]:
        """Nothing, as no image goes for it, and what will be said of the one that will be."""
        _before, after = super().predicted(surveyed)
        return {}, after

    def _spec(self, surveyed: Surveyed, present: Image | None = None) -> ImageSpec:
        spec = super()._spec(surveyed, present)
        is_newest = present is not None and present is self._present[0]
        times = times_of(present) if present else []
        marks = {
            **dict(zip((SET, HOST, DISK, GUEST), self._address, strict=True)),
            TIMES: ",".join(times if is_newest else [*times, self._time]),
            FORMAT: surveyed.volume["format"],
            SIZE: surveyed.virtual_size,
            VOLUME: json.dumps(_place(surveyed.volume)),
            SEEN: max(self._time[:10], (present or {}).get(SEEN, "")),
        }
        return replace(spec, properties={**spec.properties, **marks})


def _place(volume: dict[str, t.Any]) -> dict[str, str]:
    """Where a volume lies, in the words of the options that name one."""
    for names in (("pool", "volume"), ("vg", "lv")):
        if names[0] in volume:
            return {name: volume[name] for name in names}
    return {"device" if volume["type"] == "device" else "path": volume["path"]}


class Keep(t.NamedTuple):
    """What is kept of each disk's backups; the newest always is.

    :param last: the newest, so many.
    :param daily: the newest of each of the last days that have any, so many; and so on.
    :param min_age: nothing goes that the disk still held so long ago, which it did until it held something else.
    """

    last: int
    daily: int
    weekly: int
    monthly: int
    min_age: datetime.timedelta

    def choose(self, of_disk: t.Sequence[Point], moment: datetime.datetime) -> dict[str, list[str]]:
        """The times of those that stay, each with the reasons why.

        :param of_disk: all of one disk.
        :param moment: what is the present.
        """
        newest_first = sorted(of_disk, key=lambda point: point.moment, reverse=True)
        kept: dict[str, list[str]] = {newest_first[0].time: ["newest"]} if newest_first else {}
        held_until = moment
        for point in newest_first:
            if moment - held_until < self.min_age:
                kept.setdefault(point.time, []).append("young")
            held_until = point.moment
        for reason, count, period in self._rules():
            begun: set[str] = set()
            for point in newest_first:
                name = period(point.moment)
                if name not in begun and len(begun) < count:
                    begun.add(name)
                    kept.setdefault(point.time, []).append(reason)
        return kept

    def _rules(self) -> list[tuple[str, int, t.Callable[[datetime.datetime], str]]]:
        return [
            ("last", self.last, format_time),
            ("daily", self.daily, lambda moment: moment.strftime("%Y-%m-%d")),
            ("weekly", self.weekly, lambda moment: moment.strftime("%G-W%V")),
            ("monthly", self.monthly, lambda moment: moment.strftime("%Y-%m")),
        ]


class Doomed(t.NamedTuple):
    """An image that loses moments, and goes when it has none left."""

    image: Image
    left: list[str]
    lost: list[str]

    @classmethod
    def of(cls, image: Image, lost: t.Container[str]) -> Doomed:
        """The image without these moments."""
        times = times_of(image)
        return cls(image, [time for time in times if time not in lost], [time for time in times if time in lost])


def doomed(found: t.Sequence[Point], keep: Keep, moment: datetime.datetime) -> list[Doomed]:
    """The images that are to lose moments.

    :param found: all points of the disks that are looked at.
    """
    disks: dict[tuple[str, str, str], list[Point]] = {}
    for point in found:
        disks.setdefault((point.set, point.host, point.disk), []).append(point)
    result = []
    for of_disk in disks.values():
        kept = keep.choose(of_disk, moment)
        going = {point.time for point in of_disk} - kept.keys()
        images = {point.image["id"]: point.image for point in of_disk}.values()
        result += [item for item in (Doomed.of(image, going) for image in images) if item.lost]
    return result


def let_go(cloud: Cloud, item: Doomed, unprotect: bool) -> Doomed:
    """Takes its moments from an image, and removes it when it has none left; returns what has come of that.

    It is looked at once more, as it may have got a moment since it was listed.

    :raises ProtectedImage: it would have to go, and is protected.
    """
    try:
        item = Doomed.of(_record.show(cloud, item.image["id"]), item.lost)
    except ImageNotFound:
        return item._replace(lost=[])
    if item.left and item.lost:
        spec = ImageSpec(properties={TIMES: ",".join(item.left)})
        _record.apply(cloud, item.image, plan_update(item.image, spec, _record.members(cloud, item.image)))
    elif item.lost:
        _record.delete(cloud, item.image, unprotect)
    return item
