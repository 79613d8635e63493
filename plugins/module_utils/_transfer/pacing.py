# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Too slow, too fast, too soon: the least and most bytes a second of a transfer, and the pauses between attempts."""

from __future__ import annotations

import time

_SLICE = 4096
_MAX_PAUSE = 60.0


class Pace:
    """Sees whether a connection brings at least so many bytes a second, over windows of some seconds each.

    Only the time spent waiting for the network counts: a slow disk is not the server's fault.
    """

    def __init__(self, min_speed: float, window: float) -> None:
        self.enough = min_speed * window
        self._window = window
        self._count = 0
        self._seconds = 0.0

    def is_too_slow(self, count: int, seconds: float) -> bool:
        """Notes C(count) bytes that took C(seconds) to come; whether a window has ended with too few."""
        self._count += count
        self._seconds += seconds
        if self._seconds < self._window:
            return False
        too_slow = self._count < self.enough
        self._count, self._seconds = 0, 0.0
        return too_slow


class Brake:
    """Keeps a transfer to so many bytes a second, by not reading what would come sooner; TCP does the rest."""

    def __init__(self, rate: int | None) -> None:
        self._rate = rate
        self._free_at = 0.0  # the time until which the bytes read so far are to take

    def next_read(self, view: memoryview) -> memoryview:
        """As much of C(view) as may be filled at once, so that a slow transfer is an even one."""
        return view[: max(_SLICE, self._rate // 4)] if self._rate else view

    def hold(self, count: int) -> None:
        """Waits as long as C(count) bytes are to take."""
        if self._rate:
            self._free_at = max(self._free_at, time.monotonic()) + count / self._rate
            time.sleep(max(0.0, self._free_at - time.monotonic()))


def pause_before_retry(failures: int, wanted: float | None = None) -> None:
    """Waits before the next try, longer each time.

    :param failures: how many have failed.
    :param wanted: the seconds that the server wants to be left alone, if it said so.
    """
    time.sleep(min(wanted, _MAX_PAUSE) if wanted is not None else _backoff(failures))


def _backoff(failures: int) -> float:
    return min(0.5 * 2.0 ** (failures - 1), _MAX_PAUSE)
