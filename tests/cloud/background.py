# Copyright (c) imageferry.glance contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that run in the background, started by one process and stopped by another.

What the other one has to know is in a folder of the program's own. Needs the standard library only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"


def cache_folder(name: str) -> Path:
    """The folder for this user's files of that name that can be made again."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "imageferry" / name


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, all at once."""
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    draft.replace(path)


@dataclasses.dataclass(frozen=True)
class ProcessStatus:
    """The part of /proc/PID/stat that tells one process from a later one with the same id."""

    group: int
    started: int

    @classmethod
    def of(cls, pid: int) -> ProcessStatus | None:
        """The status of a process, None when it has ended (a zombie has, too)."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else cls(group=int(fields[2]), started=int(fields[19]))


def works_in(pid: int, folder: Path) -> bool:
    """Whether a folder is the working directory of a process."""
    try:
        return Path(f"/proc/{pid}/cwd").samefile(folder)
    except OSError:
        return False


def tail(log: Path, lines: int = 40) -> str:
    """The end of a log file."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return "\n".join(text.splitlines()[-lines:])


def wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    """Wait for a condition to hold. False if it does not in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def listen(port: int) -> socket.socket:
    """A socket that listens on a port of loopback: on the given one, or where that is taken on any free one."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(64)
    except OSError:
        listener.close()
        if not port:
            raise
        return listen(0)
    return listener


class StateFolder:
    """The folder of a program's files, with a record of what runs.

    - kind: what the folder is for, in a word
    - error: raised for a folder that is somebody else's
    """

    def __init__(self, path: Path, kind: str, error: type[Exception]) -> None:
        """Describe a folder. Nothing happens before `make`."""
        self.path = Path(os.path.abspath(path.expanduser()))
        self._kind = kind
        self._error = error

    def make(self) -> None:
        """Make the folder, unless it is there with other files in it."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / "lock").exists() and any(self.path.iterdir()):
            raise self._error(f"{self.path} holds other files, and no {self._kind}")
        self.path.chmod(0o700)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from starting or stopping what runs at the same time."""
        with (self.path / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @property
    def _record(self) -> Path:
        return self.path / f"{self._kind}.json"

    @property
    def record(self) -> dict[str, Any] | None:
        """What the last process noted that started or stopped something here; None before the first one."""
        return json.loads(self._record.read_text(encoding="utf-8")) if self._record.exists() else None

    def note(self, record: Mapping[str, Any]) -> None:
        """Write the record down."""
        write_private(self._record, json.dumps(record, indent=2) + "\n")
