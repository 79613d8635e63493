# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a running transfer and its controller tell each other, through a folder on the host.

The transfer writes how far it is, and asks for a new token; whoever watches reads the one and answers the other.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import InvalidOption, TokenExpired

_INTERVAL = 1.0
_RENEWAL_TIMEOUT = 120.0
_POLL = 0.2


def control_folder(transfer_id: str) -> str:
    """The folder of the transfer with this id, of the user who runs it.

    :raises InvalidOption: it is no such id.
    """
    if not re.fullmatch(r"[0-9a-f]{8,64}", transfer_id):
        raise InvalidOption(f"'{transfer_id}' is not the id of a transfer.")
    base = os.environ.get("ANSIBLE_ASYNC_DIR") or "~/.ansible_async"
    return os.path.join(os.path.expanduser(base), "imageferry", transfer_id)


class SilentControl:
    """Nobody watches, and nobody renews a token."""

    tokens = None

    def advance(self, position: int, size: int | None) -> None:
        """Tells nobody."""

    def close(self) -> None:
        """Leaves nothing behind, as nothing was there."""


class Control:
    """The transfer's side of the folder; only its user can look into it."""

    def __init__(self, transfer_id: str) -> None:
        self._folder = control_folder(transfer_id)
        self._started = time.time()
        self._written = 0.0
        self._state: dict[str, t.Any] = {"position": 0, "size": None, "wants_token": False}
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        os.chmod(self._folder, 0o700)
        self._write()

    @property
    def tokens(self) -> Control:
        """Where new tokens come from."""
        return self

    def advance(self, position: int, size: int | None) -> None:
        """Tells how many bytes have arrived; written down once a second."""
        self._state.update(position=position, size=size)
        if time.monotonic() - self._written >= _INTERVAL:
            self._write()

    def renew(self) -> str:
        """Asks for a new token and waits for it.

        :raises TokenExpired: nobody brought one in time.
        """
        path = os.path.join(self._folder, "token")
        self._state["wants_token"] = True
        self._write()
        deadline = time.monotonic() + _RENEWAL_TIMEOUT
        while time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
                token = file.read()
                os.unlink(path)
                self._state["wants_token"] = False
                self._write()
                return token
            time.sleep(_POLL)
        raise TokenExpired("The token expired, and the controller brought no new one.")

    def close(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self) -> None:
        state = {**self._state, "pid": os.getpid(), "started": self._started, "now": time.time()}
        _write_private(os.path.join(self._folder, "progress.json"), json.dumps(state))
        self._written = time.monotonic()


def read_progress(transfer_id: str) -> dict[str, t.Any] | None:
    """How far a transfer is: C(position), C(size), C(started), C(now), C(wants_token), C(alive).

    None before it has begun and after it has ended.
    """
    try:
        with open(os.path.join(control_folder(transfer_id), "progress.json"), encoding="utf-8") as file:
            state: dict[str, t.Any] = json.load(file)
    except FileNotFoundError:
        return None
    state["alive"] = os.path.exists(f"/proc/{state['pid']}")
    return state


def deliver_token(transfer_id: str, token: str) -> None:
    """Brings a new token to a transfer that wants one."""
    _write_private(os.path.join(control_folder(transfer_id), "token"), token)


def _write_private(path: str, text: str) -> None:
    """Puts a file in place whole, readable by this user alone."""
    draft = path + ".new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(draft)
    with open(
        os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w", encoding="utf-8"
    ) as file:
        file.write(text)
    os.replace(draft, path)
