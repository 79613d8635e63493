# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import InvalidOption
from ansible_collections.imageferry.glance.plugins.module_utils._sizes import (
    format_size,
    parse_rate,
    parse_share,
    parse_size,
    round_up,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [("512", 512), (7, 7), ("1K", 1024), ("20GiB", 20 * 1024**3), ("1.5T", 3 * 1024**4 // 2), ("8 MB", 8 * 1024**2)],
)
def test_sizes_are_read(text, size):
    assert parse_size(text, "size") == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1", "10%", "+1GiB", "1XB", "16EiB", "4097PiB", "9" * 5000, "9" * 5000 + ".5"]
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(InvalidOption, match="size"):
        parse_size(text, "size")


@pytest.mark.parametrize(
    ("text", "rate"), [(None, None), ("2048", 2048), ("50MiB", 50 * 1024**2), ("1.5M/s", 3 * 2**19)]
)
def test_rates_are_read(text, rate):
    assert parse_rate(text, "rate_limit") == rate


@pytest.mark.parametrize("text", ["", "0", "1023", "fast", "10MiB/h", "-1"])
def test_what_is_no_rate_is_refused(text):
    with pytest.raises(InvalidOption, match="rate_limit"):
        parse_rate(text, "rate_limit")


def test_sizes_are_written():
    assert [format_size(n) for n in (0, 1023, 1536, 5 * 1024**3)] == ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]


def test_a_size_is_rounded_up_to_whole_units():
    assert [round_up(size, 4096) for size in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]


@pytest.mark.parametrize(("text", "size"), [("25%", 250), ("12.5 %", 125), ("1K", 1024), (7, 7)])
def test_a_share_is_of_the_whole_and_a_size_is_a_size(text, size):
    assert parse_share(text, 1000, "headroom") == size
