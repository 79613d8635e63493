#!/usr/bin/python
# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: backup_prune
short_description: Remove old backups of a set from Glance
version_added: 0.1.0
description:
  - Removes the backups of a set that none of the options keep, for each disk by itself. The newest of each disk always
    stays.
  - A backup is kept if any of the options keeps it. Days, weeks and months without any backup do not count; weeks are
    those of ISO 8601, and all are of UTC.
  - An image goes when none of the backups that are in it is kept.
  - Runs on the controller whatever host the play is on, and once for all hosts of a play.
options:
  set:
    description: Name of the backup set.
    type: str
    required: true
  host:
    description: The host whose backups are looked at. All hosts by default.
    type: str
  disks:
    description:
      - What the disks are called in the set whose backups are looked at. All disks by default; where none is listed,
        only the other options are checked.
    type: list
    elements: str
  keep_last:
    description: How many of the newest are kept.
    type: int
    default: 0
  keep_daily:
    description: Of how many of the last days that have any, the newest is kept.
    type: int
    default: 0
  keep_weekly:
    description: Of how many of the last weeks that have any, the newest is kept.
    type: int
    default: 0
  keep_monthly:
    description: Of how many of the last months that have any, the newest is kept.
    type: int
    default: 0
  min_age:
    description:
      - What the disk held within this time is kept in any case, so also what it held at its beginning. A number of V(m)
        minutes, V(h), V(d) or V(w).
    type: str
    default: 0d
  unprotect:
    description: Whether to remove images that are protected. Otherwise one that would have to go is an error.
    type: bool
    default: false
author:
  - ImageFerry contributors (@imageferry)
extends_documentation_fragment:
  - imageferry.glance._cloud
  - imageferry.glance._attributes
  - imageferry.glance._attributes.cloud
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
  async:
    support: none
"""

EXAMPLES = r"""
- name: Keep a week of days, a month of weeks and half a year of months
  imageferry.glance.backup_prune:
    cloud: prod
    set: nightly
    keep_daily: 7
    keep_weekly: 4
    keep_monthly: 6
    min_age: 2d
"""

RETURN = r"""
msg:
  description: What was done.
  returned: always
  type: str
  sample: Removed 3 of 21 backups.
error:
  description: Stable code of the error's cause.
  returned: failure
  type: str
  sample: image_protected
removed:
  description:
    - The backups that were removed, each by its C(host), C(disk), C(time) and C(image), and whether the image was
      C(deleted), too.
  returned: success
  type: list
  elements: dict
"""
