# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Moments, as people write them and as they are kept."""

from __future__ import annotations

import datetime

from ansible_collections.imageferry.glance.plugins.module_utils._errors import InvalidOption

_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


def parse_time(text: str, option: str = "time") -> datetime.datetime:
    """A moment as ISO 8601 writes it; UTC where it does not say.

    :raises InvalidOption: it is none.
    """
    try:
        moment = datetime.datetime.fromisoformat(text.strip().upper().replace("Z", "+00:00"))
    except ValueError as err:
        raise InvalidOption(
            f"'{option}: {text}' is no moment.", "Write one such as 2026-01-31T12:00:00Z or 2026-01-31."
        ) from err
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.timezone.utc)


def format_time(moment: datetime.datetime) -> str:
    """The moment in UTC, to the second."""
    return moment.astimezone(datetime.timezone.utc).strftime(_FORMAT)


def now() -> datetime.datetime:
    """The present moment."""
    return datetime.datetime.now(datetime.timezone.utc)
