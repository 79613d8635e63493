# SPDX-License-Identifier: GPL-3.0-or-later
"""An import waits for another one to the same device, and for nobody else."""

from __future__ import annotations

import os
import subprocess
import time
from concurrent import futures

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import VolumeInUse
from ansible_collections.imageferry.glance.plugins.module_utils._import.plan import carry_out
from ansible_collections.imageferry.glance.plugins.module_utils._import.request import ImportRequest
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.control import SilentControl
from ansible_collections.imageferry.glance.plugins.module_utils._volume.block_writer import exclusive_device
from ansible_collections.imageferry.glance.plugins.module_utils._volume.device import DeviceVolume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.ledger import Ledger
from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import Provenance

MIB = 1 << 20
IMAGE = Provenance("an id", "a name", "sha512", "00ff", MIB, "raw")


def request(lock_timeout):
    return ImportRequest(
        wanted=IMAGE, source_format="raw", decompress="none", qcow2=None, preallocation="off", min_size=0,
        headroom="full", overwrite="different", takes_md5=False, allow_unverified=False, max_virtual_size=MIB,
        lock_timeout=lock_timeout, staging_dir=None,
    )  # fmt: skip


def open_source():
    raise AssertionError("there is nothing to receive")


@pytest.fixture
def device(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    (tmp_path / "backing").write_bytes(bytes(MIB))
    made = subprocess.run(["losetup", "-f", "--show", tmp_path / "backing"], capture_output=True, text=True,
                          check=False)  # fmt: skip
    if made.returncode:
        pytest.skip("there are no loop devices here")
    yield made.stdout.strip()
    subprocess.run(["losetup", "-d", made.stdout.strip()], check=True)


@pytest.fixture
def volumes(device, tmp_path):
    ledger = Ledger(str(tmp_path / "ledger"))
    with DeviceVolume(device, ledger) as first, DeviceVolume(device, ledger) as second:
        yield first, second


def test_a_second_import_to_a_device_waits_for_the_first_and_has_nothing_to_do(volumes):
    first, second = volumes
    with futures.ThreadPoolExecutor() as pool:
        with first.staged(0, IMAGE, True) as staged:
            staged.reserve(MIB)
            with pytest.raises(VolumeInUse, match="Another task imports"):
                carry_out(request(0), second, open_source, SilentControl())
            waiting = pool.submit(carry_out, request(20), second, open_source, SilentControl())
            time.sleep(0.3)
            assert not waiting.done()
            staged.sink.finish(MIB)
            staged.publish(IMAGE, False)
        assert waiting.result()[0].action == "unchanged"


def test_an_import_does_not_wait_for_a_guest(volumes, device):
    began = time.monotonic()
    with exclusive_device(device), pytest.raises(VolumeInUse, match="is mounted"):
        carry_out(request(20), volumes[0], open_source, SilentControl())
    assert time.monotonic() - began < 15
