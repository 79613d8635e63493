# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Moments on a line from the first backup to the last."""

from __future__ import annotations

import datetime
import math
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import InvalidOption
from ansible_collections.imageferry.glance.plugins.plugin_utils._moment import parse_time

_HOUR, _DAY = 3600, 86400
_STEPS = (
    (_HOUR, "%H:%M"), (3 * _HOUR, "%H:%M"), (6 * _HOUR, "%H:%M"),
    (_DAY, "%d %b"), (2 * _DAY, "%d %b"), (7 * _DAY, "%d %b"), (14 * _DAY, "%d %b"),
    (30 * _DAY, "%b %Y"), (91 * _DAY, "%b %Y"), (365 * _DAY, "%Y"),
)  # fmt: skip
_MOST_TICKS = 6


def read_time(text: t.Any) -> datetime.datetime | None:
    """The moment that a text means, as L(parse_time); None for what is no moment."""
    try:
        return parse_time(str(text))
    except InvalidOption:
        return None


def show_time(text: t.Any) -> str | None:
    """The moment for people, in UTC: V(2026-11-27 07:25), or only its date where no hour was given."""
    moment = read_time(text)
    if moment is None:
        return None
    only_date = len(str(text)) <= len("2026-11-27")
    return moment.astimezone(datetime.timezone.utc).strftime("%Y-%m-%d" if only_date else "%Y-%m-%d %H:%M")


class Axis:
    """A line from the earliest of the points to the latest.

    :param points: each with its C(time).
    """

    def __init__(self, points: t.Sequence[t.Mapping[str, t.Any]]) -> None:
        moments = [moment.timestamp() for point in points if (moment := read_time(point["time"]))]
        self._start, self._end = min(moments, default=0.0), max(moments, default=0.0)

    def position(self, time: str) -> float:
        """Where a moment is, in percent of the line; a lone one is at its end."""
        moment = read_time(time)
        if moment is None or self._start == self._end:
            return 100.0
        return round(100 * (moment.timestamp() - self._start) / (self._end - self._start), 2)

    def ticks(self) -> list[dict[str, t.Any]]:
        """Round moments along the line, with what is written there."""
        length = self._end - self._start
        step, form = next((step for step in _STEPS if length / step[0] < _MOST_TICKS), _STEPS[-1])
        step *= max(1, math.ceil(length / step / _MOST_TICKS))
        moments = range(math.ceil(self._start / step) * step, math.floor(self._end) + 1, step) if length else ()
        return [
            {
                "left": round(100 * (moment - self._start) / length, 2),
                "label": datetime.datetime.fromtimestamp(moment, datetime.timezone.utc).strftime(form).lstrip("0"),
            }
            for moment in moments
        ]
