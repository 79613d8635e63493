# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The data planes of guest_disk_info and guest_disk: from a task's options to its result."""

from __future__ import annotations

import contextlib
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.imageferry.glance.plugins.module_utils._disk.attachment import Attachment, GuestDisks, Wish
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.connection import required_connection
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.disks import attach, describe_disk, detach
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.guests import Drive, find_guest, list_drives
from ansible_collections.imageferry.glance.plugins.module_utils._volume.choose import open_volume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.interface import Volume

_WAIT = 60.0


def guest_info_task(module: AnsibleModule) -> dict[str, t.Any]:
    """The disks of a guest.

    :raises GuestNotFound: there is no such guest.
    """
    with required_connection() as connection:
        domain = find_guest(connection, module.params["guest"])
        drives = list_drives(connection, domain)
        return {"changed": False, "guest": describe_guest(domain), "disks": [drive.to_dict() for drive in drives]}


def guest_disk_task(module: AnsibleModule) -> dict[str, t.Any]:
    """Has a guest have a disk, or not; returns the task's result.

    :raises FerryError: it cannot be so.
    """
    params = module.params
    with contextlib.ExitStack() as opened:
        connection = opened.enter_context(required_connection())
        domain = find_guest(connection, params["guest"])
        named = any(params[option] for option in ("path", "device", "vg", "pool"))
        volume = opened.enter_context(open_volume(params)) if named else None
        if params["state"] == "detached" or volume is None:
            return _detach(module, connection, domain, volume)
        return _attach(module, connection, domain, volume)


def _attach(module: AnsibleModule, connection: t.Any, domain: t.Any, volume: Volume) -> dict[str, t.Any]:
    params = module.params
    wish = Wish(params["target"], params["bus"], params["format"], params["read_only"])
    plan = GuestDisks(connection, domain).plan_attaching(volume, wish)
    if plan.planes and plan.drive and not module.check_mode:
        with volume.locked(_WAIT):  # an import may have begun meanwhile
            volume.activate()  # libvirt does not; and whose disk it is shows only then
            plan = GuestDisks(connection, domain).plan_attaching(volume, wish)
            if plan.planes and plan.drive:
                attach(domain, plan.planes, describe_disk(plan.drive, volume.is_block))
    target = plan.drive.target if plan.drive else ""
    done = "Would attach" if module.check_mode else "Attached"
    if plan.planes:
        msg = f"{done} {volume.label} to the guest {domain.name()} as {target}{_only(plan)}."
    else:
        msg = f"Nothing to do: the guest {domain.name()} has {volume.label} as {target}."
    return _result(domain, plan, msg, plan.drive if plan.was_there else None, plan.drive)


def _detach(module: AnsibleModule, connection: t.Any, domain: t.Any, volume: Volume | None) -> dict[str, t.Any]:
    target = module.params["target"]
    plan = GuestDisks(connection, domain).plan_detaching(volume.path if volume else None, target)
    if plan.drive is None:
        what = volume.label if volume else f"disk {target}"
        return _result(domain, plan, f"Nothing to do: the guest {domain.name()} has no {what}.", None, None)
    if not module.check_mode:
        detach(domain, {live: drive.target for live, drive in plan.planes.items()}, module.params["timeout"])
    done = "Would detach" if module.check_mode else "Detached"
    msg = f"{done} {plan.drive.target} from the guest {domain.name()}{_only(plan)}."
    return _result(domain, plan, msg, plan.drive, None)


def _only(plan: Attachment) -> str:
    """Where alone something is done, as the rest was done before."""
    if len(plan.planes) != 1 or not plan.was_there:
        return ""
    return " as it runs" if True in plan.planes else " in its definition"


def _result(domain: t.Any, plan: Attachment, msg: str, before: Drive | None, after: Drive | None) -> dict[str, t.Any]:
    guest = domain.name()
    return {
        "changed": bool(plan.planes),
        "msg": msg,
        "guest": describe_guest(domain),
        "disk": plan.drive.to_dict() if plan.drive else None,
        "diff": {"before": _shown(guest, before), "after": _shown(guest, after)},
    }


def _shown(guest: str, drive: Drive | None) -> dict[str, t.Any]:
    if drive is None:
        return {"state": "detached"}
    facts = {name: value for name, value in drive.to_dict().items() if name != "device"}
    return {"state": "attached", "guest": guest, **facts}


def describe_guest(domain: t.Any) -> dict[str, t.Any]:
    """Which guest it is, as returned to the user."""
    return {"name": domain.name(), "uuid": domain.UUIDString(), "running": bool(domain.isActive())}
