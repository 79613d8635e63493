# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lines that say how far something is that the user waits for."""

from __future__ import annotations

import time
import typing as t

from ansible.utils.display import Display
from ansible_collections.imageferry.glance.plugins.module_utils._sizes import format_size
from ansible_collections.imageferry.glance.plugins.plugin_utils._image_spec import Image

WORTH_WATCHING = 64 * 1024**2
"""Bytes; a smaller transfer is over before anybody could look."""

IMPORTING = "os_glance_importing_to_stores"
"""What Glance lists there is still to come, separated by commas."""

_INTERVAL = 5.0  # seconds between two lines of one image


class Silence:
    """Nobody wants to know how far an image is."""

    def advance(self, position: int, size: int | None) -> None:
        """Of an upload of so many bytes."""

    def importing(self, image: Image) -> None:
        """Of an import that Glance does."""


class ImageProgress(Silence):
    """Lines that say how far an image is that the user waits for.

    :param label: what is made.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._line = ProgressLine(label)
        self._shown = time.monotonic()

    def advance(self, position: int, size: int | None) -> None:
        if (size is None or size >= WORTH_WATCHING) and self._is_time():
            self._line.show({"position": position, "size": size, "converted": None})

    def importing(self, image: Image) -> None:
        if self._is_time():
            Display().display(f"{self._label}: {describe_import(image)}")

    def _is_time(self) -> bool:
        if time.monotonic() - self._shown < _INTERVAL:
            return False
        self._shown = time.monotonic()
        return True


class ProgressLine:
    """Lines that say how far a transfer is.

    :param label: the host, and what is moved.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._last: tuple[float, int] = (time.monotonic(), 0)

    def show(self, progress: t.Mapping[str, t.Any]) -> None:
        """Writes a line: share, rate since the last line, time left at that rate."""
        now, position, size = time.monotonic(), progress["position"], progress["size"]
        if progress["converted"] is not None:
            Display().display(f"{self._label}: {progress['converted']:.0f} % converted")
            return
        rate = max(0.0, (position - self._last[1]) / max(now - self._last[0], 0.001))
        self._last = (now, position)
        Display().display(f"{self._label}: {describe_progress(position, size, rate)}")


def describe_import(image: Image) -> str:
    """How far Glance is with bringing an image to its stores, in words: C(active, still on its way to store2)."""
    pending = image.get(IMPORTING)
    return f"{image['status']}, still on its way to {pending.replace(',', ', ')}" if pending else image["status"]


def describe_progress(position: int, size: int | None, rate: float) -> str:
    """How far C(position) of C(size) bytes is at C(rate) bytes a second, in words.

    C(45 % of 3.0 GiB, 312 MiB/s, 7 s left); without a size C(1.4 GiB, 312 MiB/s).
    """
    speed = f"{format_size(rate)}/s"
    if not size:
        return f"{format_size(position)}, {speed}"
    parts = [f"{100 * position // size} % of {format_size(size)}", speed]
    if rate > 0:
        parts.append(f"{_duration((size - position) / rate)} left")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, hours = divmod(round(seconds / 60), 60)[::-1]
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
