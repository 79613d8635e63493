# SPDX-License-Identifier: GPL-3.0-or-later
"""A transfer ends when nobody looks at it any more; how it is watched for real, see test_watch.py."""

from __future__ import annotations

import os
import time

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import Abandoned
from ansible_collections.imageferry.glance.plugins.module_utils._transfer import control


def test_a_transfer_that_is_watched_goes_on_when_the_clock_is_set(tmp_path, monkeypatch):
    monkeypatch.setattr(control, "ABANDONED_AFTER", 1.0)
    monkeypatch.setattr(control, "_INTERVAL", 0.05)
    transfer = control.Control(str(tmp_path / "transfer"))
    before_it_was_set = time.time() - 3600
    try:
        for look in range(12):
            os.utime(tmp_path / "transfer" / "watched", (before_it_was_set + look,) * 2)
            time.sleep(0.1)
        with pytest.raises(Abandoned):
            time.sleep(10)
    finally:
        transfer.close()
