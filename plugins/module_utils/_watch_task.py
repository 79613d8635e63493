# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The data plane of transfer_info: looking at a transfer that runs as one of Ansible's background jobs."""

from __future__ import annotations

import json
import os
import time
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._transfer.control import Watch

_POLL = 0.1


def watch_task(params: dict[str, t.Any]) -> dict[str, t.Any]:
    """What there is to tell of a transfer, as soon as its watcher has something to do, or at C(wait) seconds."""
    watch = Watch(params["folder"])
    if params["token"] is not None:
        watch.deliver_token(params["token"])
    deadline = time.monotonic() + params["wait"]
    while True:
        progress = watch.look()
        result = _take_result(params["results_file"])
        wants_token = progress is not None and progress["wants_token"] and params["token"] is None
        if result is not None or wants_token or time.monotonic() >= deadline:
            return {"changed": False, "progress": progress, "result": result}
        time.sleep(_POLL)


def _take_result(path: str) -> dict[str, t.Any] | None:
    """What the job returned, taken away from the host; None while it runs."""
    try:
        with open(path, encoding="utf-8") as file:
            content: dict[str, t.Any] = json.load(file)
    except (FileNotFoundError, ValueError):  # not there yet, or not whole
        return None
    if content.get("finished") is False or content.get("finished") == 0:
        return None
    os.unlink(path)
    return content
