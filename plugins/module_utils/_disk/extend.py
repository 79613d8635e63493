# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The data plane of volume_extend: from a task's options to its result."""

from __future__ import annotations

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.imageferry.glance.plugins.module_utils._disk.growth import grow_alone, plan_growth
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.connection import connected
from ansible_collections.imageferry.glance.plugins.module_utils._volume.choose import open_volume


def extend_task(module: AnsibleModule) -> dict[str, t.Any]:
    """Grows a volume and its disk; returns the task's result.

    :raises FerryError: it cannot be grown.
    """
    params = module.params
    with open_volume(params) as volume, connected() as connection:
        growth = plan_growth(volume, params["size"], params["format"], params["only"], connection)
        if growth.changes and not module.check_mode:
            growth = grow_alone(volume, params["size"], params["format"], params["only"], connection)
        before, after = growth.before.to_dict(), growth.after.to_dict()
        told = f"; the running guest {growth.guest.guest} sees it" if growth.guest else ""
        verb = ("Would extend" if module.check_mode else "Extended") if growth.changes else "Nothing to do"
        return {
            "changed": growth.changes,
            "msg": f"{verb}{' ' if growth.changes else ': '}{growth.reason}{told}.",
            "volume": volume.describe(),
            "before": before,
            "after": after,
            "diff": {"before": before, "after": after},
        }
