# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a report on images, hosts and backups shows."""

from __future__ import annotations

import datetime
import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.imageferry.glance.plugins.plugin_utils._report import build_report, escape_all

DOCUMENTATION = r"""
name: report
short_description: Sum up images, what hosts hold of them, and backups
version_added: 0.1.0
description:
  - Holds what hosts hold against the images of a cloud, and its backups against their age. Results of tasks that failed
    are welcome, and shown as such.
  - The playbook C(imageferry.glance.report) makes its page of this.
  - Every text that it returns is escaped for HTML.
  - It returns the same for the same input all day long.
positional: _input, hosts, backups
options:
  _input:
    description: Results of M(imageferry.glance.glance_image_info).
    type: list
    elements: dict
    required: true
  hosts:
    description: The result of M(imageferry.glance.host_volumes_info), by host.
    type: dict
    required: true
  backups:
    description: The result of M(imageferry.glance.backup_info).
    type: dict
    default: {}
  backup_days:
    description: How many days the newest backup of a disk may be old.
    type: int
    default: 7
  today:
    description: The date, UTC, that the age of backups is counted to, as V(2026-01-31). Today's by default.
    type: str
author:
  - ImageFerry contributors (@imageferry)
"""

EXAMPLES = r"""
- name: Say what is out of date
  ansible.builtin.debug:
    msg: "{{ ([found] | imageferry.glance.report({'web01': held})).findings | map(attribute='text') }}"
"""

RETURN = r"""
_value:
  description:
    - What the page shows of the C(images), the C(hosts) and the C(backups), each with its counts and sizes; when the
      C(newest) of all this happened; and the C(findings), what needs care, each of a C(kind) - V(silent) of a host
      or a part of the cloud, V(unsafe) of an image, V(unread) of an image or of a disk on a host, V(unfinished),
      V(outdated) and V(gone) of such a disk, V(old_backup) of a backed up disk - with its C(host), C(what) it is and a
      C(text).
  type: dict
"""


def report(
    images: list[dict[str, t.Any]],
    hosts: dict[str, dict[str, t.Any]],
    backups: dict[str, t.Any] | None = None,
    backup_days: int | str = 7,
    today: str | None = None,
) -> dict[str, t.Any]:
    """See DOCUMENTATION."""
    try:
        days = int(backup_days)
        date = datetime.date.fromisoformat(str(today)) if today else datetime.datetime.now(datetime.timezone.utc).date()
    except ValueError as err:
        raise AnsibleFilterError(f"'backup_days' is a number, and 'today' a date such as 2026-01-31: {err}") from err
    shown: dict[str, t.Any] = escape_all(build_report(images, hosts, backups or {}, days, date))
    return shown


class FilterModule:
    """This collection's filters."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """By their names."""
        return {"report": report}
