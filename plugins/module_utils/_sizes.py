# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes as people write and read them."""

from __future__ import annotations

import re

from ansible_collections.imageferry.glance.plugins.module_utils._errors import InvalidOption

_SLOWEST = 1024
_MOST = 1 << 62  # what no storage holds, and the kernel's offsets of 63 bits still do
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_PERCENT = re.compile(r"(\d{1,9}(?:\.\d+)?)\s*%")
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?:(?P<unit>[KMGTPE])(?:i?B)?|B)?", re.IGNORECASE)


def parse_size(text: str | int, option: str) -> int:
    """The bytes that V(text) means: V(20GiB), V(1.5T), V(512) or an int.

    Units are powers of 1024 with or without the C(i), as qemu-img and LVM take them.

    :param option: the option's name, for the message.
    :raises InvalidOption: it is not a size, or one that no storage has.
    """
    match = _SIZE.fullmatch(str(text).strip())
    if match is None:
        raise InvalidOption(f"'{option}: {text}' is not a size.", "Write bytes, or a number with a unit such as 20GiB.")
    unit = 1024 ** ("KMGTPE".index(match["unit"].upper()) + 1) if match["unit"] else 1
    if float(match["number"]) * unit > _MOST:
        raise InvalidOption(f"No storage holds the bytes of '{option}: {text}'.", "Write a smaller size.")
    return int(float(match["number"]) * unit) if "." in match["number"] else int(match["number"]) * unit


def parse_share(text: str | int, whole: int, option: str) -> int:
    """The bytes that V(text) means, where it may also be a percentage of C(whole) bytes: V(25%).

    :raises InvalidOption: it is neither a size nor a percentage.
    """
    match = _PERCENT.fullmatch(str(text).strip())
    return int(whole * float(match[1]) / 100) if match else parse_size(text, option)


def parse_rate(text: str | None, option: str) -> int | None:
    """The bytes a second that V(text) means: V(20MiB) or V(20MiB/s); None for None.

    :raises InvalidOption: it is not a rate, or nothing would ever arrive at it.
    """
    if text is None:
        return None
    rate = parse_size(text.strip().removesuffix("/s"), option)
    if rate < _SLOWEST:
        raise InvalidOption(
            f"'{option}: {text}' is less than {_SLOWEST} bytes a second.", "Allow more, or none at all."
        )
    return rate


def format_size(count: float) -> str:
    """V(count) bytes for people, in powers of 1024: V(1.5 GiB)."""
    for unit in _UNITS:
        if count < 1024 or unit == _UNITS[-1]:
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


def round_up(size: int, unit: int) -> int:
    """The smallest multiple of C(unit) bytes that holds C(size)."""
    return -(-size // unit) * unit
