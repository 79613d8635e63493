# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What this host remembers of its block volumes, which have no room for it themselves.

One JSON file a volume, replaced as a whole: which image is being written and how far it is, which one is there.
What cannot be read, or is about another volume, says nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import time
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._volume.in_use import taken
from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import Provenance
from ansible_collections.imageferry.glance.plugins.module_utils._volume.storage import storage_errors

FOLDER = "/var/lib/imageferry"

_LOCK_POLL = 0.2


@dataclasses.dataclass(frozen=True)
class Record:
    """What is known of one volume.

    :param unfinished: the image that is being written to it; None when none is.
    :param held: the bytes of it, from the first, that surely are on the storage.
    :param created: whether the volume came into being for this image, so that it may go with it.
    :param complete: the image that it holds, where the volume itself cannot say so.
    """

    unfinished: Provenance | None = None
    held: int = 0
    created: bool = False
    complete: Provenance | None = None


class Ledger:
    """The records of all volumes, and the locks that keep two imports to one volume apart.

    :param folder: where they are; made when first written to, for this user alone.
    """

    def __init__(self, folder: str = FOLDER) -> None:
        self._folder = folder

    def read(self, key: str) -> Record:
        """What is known of the volume C(key); an empty record when nothing is."""
        try:
            with open(self._path(key, "json"), encoding="utf-8") as file:
                values = json.load(file)
            return _parse(values) if values["key"] == key else Record()
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return Record()

    def write(self, key: str, record: Record) -> None:
        """Keeps C(record), durably.

        :raises OSError: it cannot be written.
        """
        self._make_folder()
        path = self._path(key, "json")
        draft = path + ".new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(draft, flags, 0o600), "w", encoding="utf-8") as file:
            json.dump({"key": key, **dataclasses.asdict(record)}, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(draft, path)
        self._sync_folder()

    def forget(self, key: str) -> None:
        """Drops what is known of the volume C(key)."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(key, "json"))
            self._sync_folder()

    @contextlib.contextmanager
    def lock(self, name: str, wait: float, label: str) -> t.Iterator[None]:
        """Keeps others that lock C(name) out.

        :param wait: the seconds to wait for them.
        :param label: how messages call the volume.
        :raises VolumeInUse: they went on for longer.
        """
        path = self._path(name, "lock")
        with storage_errors(f"lock {label}"):
            self._make_folder()
            fd = _lock_file(path, time.monotonic() + wait)
        if fd is None:
            raise taken(label)
        try:
            yield
        finally:
            os.unlink(path)
            os.close(fd)

    def _path(self, key: str, kind: str) -> str:
        return os.path.join(self._folder, f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.{kind}")

    def _make_folder(self) -> None:
        os.makedirs(self._folder, mode=0o700, exist_ok=True)

    def _sync_folder(self) -> None:
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _lock_file(path: str, deadline: float) -> int | None:
    """The locked file C(path), open; None when somebody else had it for too long."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.lstat(path), os.fstat(fd)):
                return fd
        except FileNotFoundError:
            pass  # its owner has removed it meanwhile
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(fd)
                return None
            time.sleep(_LOCK_POLL)
        os.close(fd)


def _parse(values: dict[str, t.Any]) -> Record:
    return Record(
        unfinished=Provenance.from_dict(values["unfinished"]),
        held=max(0, int(values["held"])),
        created=values["created"] is True,
        complete=Provenance.from_dict(values["complete"]),
    )
