# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The content of disks whose files have not been written to since it was seen, so that they need not be read again."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time

from ansible_collections.imageferry.glance.plugins.module_utils._export.stamp import Stamp
from ansible_collections.imageferry.glance.plugins.module_utils._volume.ledger import FOLDER

_SETTLED = 2.0  # seconds; within the clock tick of its last write, a file may change without showing it


class Recollection:
    """What this host remembers of one disk.

    :param key: what tells the disk from all others.
    :param stamp: of its files as they are; None where nothing would tell that they have changed.
    """

    def __init__(self, key: str, stamp: Stamp | None, folder: str = FOLDER) -> None:
        self._folder = os.path.join(folder, "contents")
        self._path = os.path.join(self._folder, f"{key}.json")
        self._stamp = stamp

    def identity(self) -> str | None:
        """The disk's content identity; None when it is not known, or no longer."""
        if self._stamp is None:
            return None
        try:
            with open(self._path, encoding="utf-8") as file:
                kept = json.load(file)
            return str(kept["identity"]) if kept["stamp"] == self._stamp else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, identity: str) -> None:
        """Remembers it, unless the files were written to just before; a disk that cannot be kept is read again."""
        if self._stamp is None or max(float(layer[4]) for layer in self._stamp) / 1e9 > time.time() - _SETTLED:
            return
        with contextlib.suppress(OSError):
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            handle, draft = tempfile.mkstemp(dir=self._folder)
            with open(handle, "w", encoding="utf-8") as file:
                json.dump({"identity": identity, "stamp": self._stamp}, file)
            os.replace(draft, self._path)
