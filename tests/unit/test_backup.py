# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which backups can be restored, and which are kept."""

from __future__ import annotations

import datetime

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import InvalidOption
from ansible_collections.imageferry.glance.plugins.plugin_utils._backup import (
    DISK,
    HOST,
    SET,
    TIMES,
    Keep,
    doomed,
    points,
)
from ansible_collections.imageferry.glance.plugins.plugin_utils._moment import format_time, parse_time

NOW = parse_time("2026-06-30T12:00:00Z")


def image(name, *times, disk="vg0/db01"):
    return {"id": name, "status": "active", SET: "nightly", HOST: "host1", DISK: disk, TIMES: ",".join(times)}


def keep(last=0, daily=0, weekly=0, monthly=0, **min_age):
    return Keep(last, daily, weekly, monthly, datetime.timedelta(**min_age))


def left(images, rule):
    """The times that stay of each image; none of one that goes."""
    lost = {item.image["id"]: item.left for item in doomed(points(images), rule, NOW)}
    return {image["id"]: lost.get(image["id"], image[TIMES].split(",")) for image in images}


def daily_images(count):
    return [image(f"day{day}", format_time(NOW - datetime.timedelta(days=day))) for day in range(count)]


def test_moments_are_read_as_they_are_written():
    assert format_time(parse_time("2026-01-31")) == "2026-01-31T00:00:00Z"
    assert format_time(parse_time("2026-01-31T12:00:00+02:00")) == "2026-01-31T10:00:00Z"
    assert format_time(parse_time("2026-01-31t12:00:00z")) == "2026-01-31T12:00:00Z"
    with pytest.raises(InvalidOption, match="yesterday"):
        parse_time("yesterday")


def test_points_are_in_order_and_the_newest_of_each_disk_is_known():
    images = [image("a", "2026-01-01T00:00:00Z", "2026-01-03T00:00:00Z"), image("b", "2026-01-02T00:00:00Z")]
    found = points([*images, image("c", "2026-01-01T00:00:00Z", disk="other")])
    assert [(point.disk, point.time[8:10], point.image["id"], point.newest) for point in found] == [
        ("other", "01", "c", True),
        ("vg0/db01", "01", "a", False),
        ("vg0/db01", "02", "b", False),
        ("vg0/db01", "03", "a", True),
    ]
    assert points([]) == []


@pytest.mark.parametrize(
    ("rule", "days"),
    [
        (keep(last=3), [0, 1, 2]),
        (keep(daily=2), [0, 1]),
        (keep(weekly=2), [0, 2]),  # 30 June 2026 is a Tuesday, the 28th a Sunday
        (keep(monthly=3), [0, 30, 61]),  # 30 June, 31 May, 30 April
        (keep(last=1, days=3), [0, 1, 2, 3]),
        (keep(last=2, monthly=2), [0, 1, 30]),
    ],
)
def test_what_a_rule_keeps_stays(rule, days):
    kept = [name for name, times in left(daily_images(90), rule).items() if times]
    assert kept == [f"day{day}" for day in days]


def test_of_one_day_the_newest_is_kept():
    images = [image("noon", "2026-06-01T12:00:00Z"), image("evening", "2026-06-01T18:00:00Z")]
    images.append(image("today", "2026-06-30T00:00:00Z"))
    assert [name for name, times in left(images, keep(daily=2)).items() if times] == ["evening", "today"]


def test_what_the_disk_held_until_lately_is_young():
    days = {"x": "2026-01-01", "y": "2026-06-29T12:00", "z": "2026-06-30"}
    images = [image(name, format_time(parse_time(day))) for name, day in days.items()]
    assert [name for name, times in left(images, keep(last=1, days=2)).items() if times] == ["x", "y", "z"]
    assert [name for name, times in left(images, keep(last=1, hours=18)).items() if times] == ["y", "z"]


def test_the_newest_of_each_disk_always_stays():
    images = [image("old", "2020-01-01T00:00:00Z"), image("new", "2026-01-01T00:00:00Z", disk="other")]
    assert all(left(images, keep()).values())


def test_an_image_loses_moments_before_it_goes():
    images = [image("a", "2026-01-01T00:00:00Z", "2026-01-03T00:00:00Z"), image("b", "2026-01-02T00:00:00Z")]
    assert left(images, keep(last=1)) == {"a": ["2026-01-03T00:00:00Z"], "b": []}
