# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.imageferry.glance.plugins.plugin_utils import _progress
from ansible_collections.imageferry.glance.plugins.plugin_utils._progress import (
    WORTH_WATCHING,
    ImageProgress,
    describe_progress,
)

MIB = 1024**2
GIB = 1024**3


@pytest.mark.parametrize(
    ("position", "size", "rate", "said"),
    [
        (0, 3 * GIB, 0, "0 % of 3.0 GiB, 0 B/s"),
        (GIB, 3 * GIB, 512 * MIB, "33 % of 3.0 GiB, 512 MiB/s, 4 s left"),
        (GIB, 3 * GIB, 17 * MIB, "33 % of 3.0 GiB, 17.0 MiB/s, 2 min left"),
        (GIB, 1024 * GIB, 100 * MIB, "0 % of 1.0 TiB, 100 MiB/s, 2 h 55 min left"),
        (3 * GIB, 3 * GIB, 1, "100 % of 3.0 GiB, 1 B/s, 0 s left"),
        (1536 * MIB, None, 312 * MIB, "1.5 GiB, 312 MiB/s"),
    ],
)
def test_progress_is_told_in_words(position, size, rate, said):
    assert describe_progress(position, size, rate) == said


@pytest.fixture
def clock(monkeypatch):
    """The time, which goes on by a second with each line that might be shown; and the lines."""
    seconds, lines = iter(range(1000)), []
    monkeypatch.setattr(_progress.time, "monotonic", lambda: float(next(seconds)))
    monkeypatch.setattr(_progress.Display, "display", lambda _self, line: lines.append(line))
    return lines


def test_a_copy_to_stores_is_told_of_every_few_seconds(clock):
    progress = ImageProgress("backup")
    for _second in range(14):
        progress.importing({"status": "active", "os_glance_importing_to_stores": "store1,store2"})
    assert clock == ["backup: active, still on its way to store1, store2"] * 2
    for _second in range(10):
        progress.importing({"status": "importing"})
    assert clock[2:] == ["backup: importing"] * 2


def test_an_upload_too_small_to_be_seen_is_not_told_of(clock):
    progress = ImageProgress("small")
    for _second in range(20):
        progress.advance(1, WORTH_WATCHING - 1)
    assert not clock
