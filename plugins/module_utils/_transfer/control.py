# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a running transfer and its watcher tell each other, through a folder on the host.

The transfer writes down how far it is, and asks for a new token; the watcher, who looks in every few seconds from the
controller, reads the one and answers the other. A transfer that nobody looks at any more ends by itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import threading
import time
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import Abandoned, TokenExpired

ABANDONED_AFTER = 90.0
"""The seconds after which a transfer that nobody looks at gives up: its controller died, or the job was cancelled."""

_INTERVAL = 0.5
_RENEWAL_TIMEOUT = 120.0
_POLL = 0.1


class SilentControl:
    """Nobody watches, and nobody renews a token."""

    tokens = None

    def advance(self, position: int, size: int | None) -> None:
        """Tells nobody."""

    def convert(self, percent: float) -> None:
        """Tells nobody."""

    def close(self) -> None:
        """Leaves nothing behind, as nothing was there."""


class Control:
    """The transfer's side of C(folder); only its user can look into it.

    The lock on its file C(alive) is held as long as the transfer's process lives. A thread keeps the state up to date,
    so that it can be read while the transfer waits for bytes, and interrupts the transfer when nobody reads it.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._state: dict[str, t.Any] = {"position": 0, "size": None, "converted": None, "wants_token": False}
        self._unseen = 0.0
        self._writing = threading.Lock()
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self._alive = open(self._path("alive"), "w", encoding="utf-8")  # noqa: SIM115 - open until the end
        fcntl.flock(self._alive, fcntl.LOCK_EX)
        with open(self._path("watched"), "w", encoding="utf-8"):
            pass
        signal.signal(signal.SIGUSR1, self._give_up)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tell, daemon=True)
        self._thread.start()

    @property
    def tokens(self) -> Control:
        """Where new tokens come from."""
        return self

    def advance(self, position: int, size: int | None) -> None:
        """Tells how many bytes have arrived."""
        self._state.update(position=position, size=size)

    def convert(self, percent: float) -> None:
        """Tells how much of what has arrived is converted."""
        self._state.update(converted=percent)

    def renew(self) -> str:
        """Asks for a new token and waits for it.

        :raises TokenExpired: nobody brought one in time, or there is none.
        """
        self._state["wants_token"] = True
        token, deadline = None, time.monotonic() + _RENEWAL_TIMEOUT
        while token is None and time.monotonic() < deadline:
            time.sleep(_POLL)
            with contextlib.suppress(FileNotFoundError), open(self._path("token"), encoding="utf-8") as file:
                token = file.read()
                os.unlink(self._path("token"))
        self._state["wants_token"] = False
        self._write()
        if not token:
            raise TokenExpired("The token expired, and the controller brought no new one.")
        return token

    def close(self) -> None:
        """Removes the folder."""
        self._ended.set()
        self._thread.join()
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._alive.close()

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def _tell(self) -> None:
        last, since = 0, time.monotonic()  # the clock that files are dated by may be set meanwhile
        while True:
            self._write()
            with contextlib.suppress(OSError):
                looked = os.stat(self._path("watched")).st_mtime_ns
                if looked != last:
                    last, since = looked, time.monotonic()
            self._unseen = time.monotonic() - since
            if self._unseen > ABANDONED_AFTER:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
                return
            if self._ended.wait(_INTERVAL):
                return

    def _give_up(self, _signal: int, _frame: t.Any) -> None:
        """Interrupts whatever the transfer does, a read that waits for bytes included."""
        raise Abandoned(f"The controller has not asked for this transfer for {self._unseen:.0f} seconds.")

    def _write(self) -> None:
        with self._writing, contextlib.suppress(OSError):  # it is tried again soon
            _write_private(self._path("progress.json"), json.dumps(self._state))


class Watch:
    """The watcher's side of C(folder)."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def look(self) -> dict[str, t.Any] | None:
        """How far the transfer is: C(position), C(size), C(converted), C(wants_token).

        None when none runs (yet, or any more).
        """
        try:
            os.utime(os.path.join(self._folder, "watched"))
            with open(os.path.join(self._folder, "alive"), encoding="utf-8") as alive:
                if not _is_locked(alive):
                    return None
            with open(os.path.join(self._folder, "progress.json"), encoding="utf-8") as file:
                state: dict[str, t.Any] = json.load(file)
                return state
        except FileNotFoundError:
            return None

    def deliver_token(self, token: str) -> None:
        """Brings a new token to a transfer that wants one; an empty one says that there is none."""
        with contextlib.suppress(FileNotFoundError):
            _write_private(os.path.join(self._folder, "token"), token)


def _is_locked(file: t.IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


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
