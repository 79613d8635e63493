# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One token for all hosts of a play, and one new one for all when it has expired."""

from __future__ import annotations

import time
import typing as t

from ansible_collections.imageferry.glance.plugins.plugin_utils._cloud import Cloud
from ansible_collections.imageferry.glance.plugins.plugin_utils._once import once

_MARGIN = 60.0

Token = dict[str, t.Any]


def issue_token(cloud: Cloud) -> Token:
    """A new token: C(value), and C(good_until), the time on this machine's clock until which it is worth using.

    Keystone's clock may differ from this one, so only the token's lifetime is taken from it.
    """
    value, lifetime = cloud.token()
    if lifetime is None:
        return {"value": value, "good_until": None}
    return {"value": value, "good_until": time.time() + lifetime - min(_MARGIN, lifetime / 4)}


class TokenChain:
    """The tokens of a play, each the successor of one that was used up.

    :param first: the token that the play began with.
    :param options: of the cloud that issues them, see L(Cloud).
    """

    def __init__(self, first: Token, options: dict[str, t.Any]) -> None:
        self._token = first
        self._options = options

    def current(self) -> str | None:
        """A token that has not expired, as far as is known.

        :raises FerryError: Keystone refuses a new one.
        """
        while self._token["good_until"] is not None and time.time() >= self._token["good_until"]:
            self.renew()
        value: str | None = self._token["value"]
        return value

    def good_for(self) -> float | None:
        """The seconds for which the token is still worth using; None for one that does not expire."""
        good_until = self._token["good_until"]
        return None if good_until is None else max(0.0, good_until - time.time())

    def renew(self) -> str:
        """The successor of the last token that was handed out: the same for all hosts that had that one.

        :raises FerryError: Keystone refuses a new one.
        """
        self._token = once({"after": self._token["value"]}, lambda: issue_token(Cloud(self._options)))
        value: str = self._token["value"]
        return value
