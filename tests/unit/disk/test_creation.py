# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks that are made on logical volumes and devices, and those that are not, as something is there."""

from __future__ import annotations

import os
import signal

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._disk.creation import Wanted, create, plan_creation
from ansible_collections.imageferry.glance.plugins.module_utils._errors import VolumeExists, VolumeInUse
from ansible_collections.imageferry.glance.plugins.module_utils._volume.block_writer import (
    BlockWriter,
    exclusive_device,
)
from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import Provenance

MIB = 1 << 20
IMAGE = Provenance("an id", "a name", "sha512", "00ff", 7, "raw")


def import_to(volume):
    with volume.staged(0, IMAGE, False) as staged:
        staged.reserve(8 * MIB)
        staged.sink.write(bytearray(b"image" * 1000), 5000, 0)
        staged.sink.finish(5000)
        staged.publish(IMAGE, over=False)


@pytest.mark.parametrize(("image_format", "is_blank"), [("raw", False), ("qcow2", False), ("qcow2", True)])
def test_what_came_to_be_there_since_the_plan_is_not_written_over(logical, image_format, is_blank):
    if is_blank:
        create(logical(), Wanted("raw", 8 * MIB, None, "off"), None)
        logical.run("lvchange", *(option for tag in logical.tags() for option in ("--deltag", tag)))
    wanted, volume = Wanted(image_format, 8 * MIB, None, "off"), logical()
    assert plan_creation(volume, wanted, None, None).action == "create"
    import_to(logical())
    before = logical.content()
    with pytest.raises(VolumeExists, match="meanwhile"):
        create(volume, wanted, None)
    assert logical.content() == before and logical().provenance().source == "an id"


def kill_while_writing(monkeypatch, action):
    """Runs C(action) in a process that is killed before it has written its zeros."""
    pid = os.fork()
    if not pid:
        monkeypatch.setattr(BlockWriter, "finish", lambda *_arguments: os.kill(os.getpid(), signal.SIGKILL))
        try:
            action()
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_a_disk_whose_making_was_killed_is_made_again(logical, monkeypatch, image_format):
    killed = Wanted("raw", 16 * MIB, None, "off")
    kill_while_writing(monkeypatch, lambda: create(logical(), killed, None))
    assert logical().is_unfinished()
    wanted, volume = Wanted(image_format, 8 * MIB, None, "off"), logical()
    change = plan_creation(volume, wanted, None, None)
    assert change.action == "create" and change.before == {"state": "unfinished"}
    with exclusive_device(logical.device), pytest.raises(VolumeInUse):
        plan_creation(volume, wanted, None, None)
    create(volume, wanted, None)
    assert plan_creation(logical(), wanted, None, None).before == change.after
    assert b"\xff" not in logical.content()[8 * MIB :]


def test_an_import_that_was_killed_is_not_written_over(logical, monkeypatch):
    kill_while_writing(monkeypatch, lambda: import_to(logical()))
    for image_format in ("raw", "qcow2"):
        with pytest.raises(VolumeExists, match="state: absent"):
            plan_creation(logical(), Wanted(image_format, 8 * MIB, None, "off"), None, None)
