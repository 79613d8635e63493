# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest is given is ready to be opened; guests and libvirt: tests/integration/test_guests.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._disk import guest
from ansible_collections.imageferry.glance.plugins.module_utils._disk.attachment import Attachment
from ansible_collections.imageferry.glance.plugins.module_utils._disk.creation import Wanted, create
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.guests import Drive

MIB = 1 << 20


@pytest.mark.parametrize("check_mode", [False, True])
def test_a_logical_volume_is_activated_for_the_guest_before_others_that_have_it_are_looked_for(
    logical, monkeypatch, check_mode
):
    """There is no libvirt here."""
    create(logical(), Wanted("raw", 8 * MIB, None, "off"), None)
    logical.run("lvchange", "--activate", "n")
    drive = Drive("vdb", "virtio", "disk", logical().path, "raw", False)
    active = []

    def plan(volume, _wish):
        volume.check_not_in_use()
        active.append(logical.is_active())
        return Attachment(drive, [False], False)

    monkeypatch.setattr(guest, "GuestDisks", lambda *_arguments: SimpleNamespace(plan_attaching=plan))
    monkeypatch.setattr(guest, "attach", lambda *_arguments: active.append(logical.is_active()))
    params = dict.fromkeys(("target", "bus", "format", "read_only"))
    domain = SimpleNamespace(name=lambda: "web", UUIDString=lambda: "", isActive=lambda: False)
    module = SimpleNamespace(params=params, check_mode=check_mode)
    assert guest._attach(module, None, domain, logical())["changed"]
    assert active == ([False] if check_mode else [False, True, True])
