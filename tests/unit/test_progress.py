# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.imageferry.glance.plugins.plugin_utils._watch import describe_progress

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
