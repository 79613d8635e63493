# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The data planes of guest_disk_info and guest_disk: from a task's options to its result."""

from __future__ import annotations

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.connection import required_connection
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.guests import find_guest, list_drives


def guest_info_task(module: AnsibleModule) -> dict[str, t.Any]:
    """The disks of a guest.

    :raises GuestNotFound: there is no such guest.
    """
    with required_connection() as connection:
        domain = find_guest(connection, module.params["guest"])
        drives = list_drives(connection, domain)
        return {"changed": False, "guest": describe_guest(domain), "disks": [drive.to_dict() for drive in drives]}


def describe_guest(domain: t.Any) -> dict[str, t.Any]:
    """Which guest it is, as returned to the user."""
    return {"name": domain.name(), "uuid": domain.UUIDString(), "running": bool(domain.isActive())}
