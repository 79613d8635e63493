# SPDX-License-Identifier: GPL-3.0-or-later
"""A transfer ends when nobody looks at it any more; how it is watched for real, see test_watch.py."""

from __future__ import annotations

import os
import shutil
import time

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import Abandoned, TokenExpired
from ansible_collections.imageferry.glance.plugins.module_utils._transfer import control


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "transfer"


@pytest.fixture
def transfer(folder, monkeypatch):
    monkeypatch.setattr(control, "_INTERVAL", 0.05)
    running = control.Control(str(folder))
    yield running
    running.close()


@pytest.mark.usefixtures("transfer")
def test_a_transfer_that_is_watched_goes_on_when_the_clock_is_set(folder, monkeypatch):
    monkeypatch.setattr(control, "ABANDONED_AFTER", 1.0)
    before_it_was_set = time.time() - 3600
    for look in range(12):
        os.utime(folder / "watched", (before_it_was_set + look,) * 2)
        time.sleep(0.1)
    with pytest.raises(Abandoned):
        time.sleep(10)


@pytest.mark.usefixtures("transfer")
def test_a_transfer_whose_folder_is_gone_ends_too(folder, monkeypatch):
    monkeypatch.setattr(control, "ABANDONED_AFTER", 0.5)
    shutil.rmtree(folder)
    with pytest.raises(Abandoned):
        time.sleep(3)


def test_what_could_not_be_told_is_told_once_there_is_room(transfer, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(control, "_RENEWAL_TIMEOUT", 0.1)
    folder.rename(tmp_path / "away")
    transfer.advance(7, 9)
    with pytest.raises(TokenExpired):
        transfer.renew()
    (tmp_path / "away").rename(folder)
    deadline = time.monotonic() + 3
    while (told := control.Watch(str(folder)).look()) is None or told["position"] != 7:
        assert time.monotonic() < deadline, told
        time.sleep(0.05)
