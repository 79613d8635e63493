# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a backup has to undo, noted for the next run in case that this one, or the host, ends before it did.

One file a backup, of lines of JSON of which each adds to those before, where nobody but root can write: what it names
is removed. Whoever runs the backup holds it locked.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import VolumeInUse
from ansible_collections.imageferry.glance.plugins.module_utils._volume.ledger import FOLDER
from ansible_collections.imageferry.glance.plugins.module_utils._volume.storage import storage_errors

_FOLDER = os.path.join(FOLDER, "backups")
_ENDING = ".json"


class Claim:
    """A backup of this run, or one that another run has left.

    :param token: what its files are called after.
    :param fd: of its file, locked.
    :param noted: what it says.
    """

    def __init__(self, token: str, fd: int, noted: dict[str, t.Any]) -> None:
        self.token = token
        self._fd, self._noted = fd, noted

    @classmethod
    def make(cls, token: str, guest: str, scratch: t.Sequence[str]) -> Claim:
        """A new one; it is locked and says all when it gets its name.

        :param guest: its UUID.
        :param scratch: the paths of its scratch files.
        :raises FerryError: nothing can be noted on this host.
        """
        draft = os.path.join(_FOLDER, f".{token}")
        with storage_errors(f"note a backup in {_FOLDER}"):
            os.makedirs(_FOLDER, mode=0o700, exist_ok=True)
            claim = cls(token, os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), {})
            fcntl.flock(claim._fd, fcntl.LOCK_EX)
            claim.note(guest=guest, scratch=list(scratch))
            os.rename(draft, _path(token))
        return claim

    @property
    def scratch(self) -> list[str]:
        """The paths of its scratch files."""
        return list(self._noted["scratch"])

    @property
    def frozen(self) -> bool:
        """Whether the guest's file systems may be frozen."""
        return bool(self._noted.get("frozen"))

    def note(self, **facts: t.Any) -> None:
        """Adds to what it says, and has it on the storage."""
        self._noted.update(facts)
        with storage_errors(f"note a backup in {_FOLDER}"):
            os.write(self._fd, json.dumps(facts).encode() + b"\n")
            os.fsync(self._fd)

    def drop(self) -> None:
        """Forgets it, as all is undone."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_path(self.token))

    def close(self) -> None:
        """Lets go of it; what is not dropped is for the next run."""
        os.close(self._fd)


def abandoned(guest: str) -> t.Iterator[Claim]:
    """The backups of a guest whose runs are gone, each held until the next.

    :raises VolumeInUse: a run is alive.
    """
    for path in glob.glob(_path("*")):
        with contextlib.suppress(FileNotFoundError), open(path, "r+b", buffering=0) as file:
            noted = _read(file)
            if noted.get("guest") != guest:
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise VolumeInUse("Another export of the guest is going on.", "Wait until it has ended.") from None
            yield Claim(os.path.basename(path)[: -len(_ENDING)], file.fileno(), noted)


def _read(lines: t.Iterable[bytes]) -> dict[str, t.Any]:
    noted: dict[str, t.Any] = {}
    for line in lines:
        with contextlib.suppress(ValueError):  # a power cut may have torn the last one
            noted.update(json.loads(line))
    return noted


def _path(token: str) -> str:
    return os.path.join(_FOLDER, token + _ENDING)
