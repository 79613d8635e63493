# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One answer for all hosts of a play: what the controller asked once for a task, it does not ask again.

Each host of a play is served by a process of its own, and all of them share this run's private temporary folder,
which Ansible removes at its end. Files in it are readable by this user alone, as tokens are among them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import time
import typing as t

from ansible import constants as C
from ansible_collections.imageferry.glance.plugins.module_utils._errors import FerryError

ERROR_LIFETIME = 30.0
"""Seconds for which an error is everybody's answer."""

Answer = dict[str, t.Any]


def once(key: t.Any, produce: t.Callable[[], Answer]) -> Answer:
    """What V(produce) returned, or raised, the first time this run came here with V(key).

    :param key: plain values; the question.
    :param produce: asks it; called by one process at a time.
    :raises FerryError: what V(produce) raised less than L(ERROR_LIFETIME) ago: a wrong password is not tried once for
        each host, but a service that is back is asked again.
    """
    name = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
    path = os.path.join(C.DEFAULT_LOCAL_TMP, f"imageferry-{name}.json")
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        stored = json.loads(file.read() or "null")
        if stored is None or time.time() - stored.get("failed_at", math.inf) > ERROR_LIFETIME:
            stored = _ask(produce)
            file.seek(0)
            file.truncate()
            json.dump(stored, file)
    if "error" in stored:
        raise FerryError.from_dict(stored["error"])
    answer: Answer = stored["answer"]
    return answer


def _ask(produce: t.Callable[[], Answer]) -> dict[str, t.Any]:
    try:
        return {"answer": produce()}
    except FerryError as err:
        return {"error": err.to_dict(), "failed_at": time.time()}
