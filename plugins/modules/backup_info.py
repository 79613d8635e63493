#!/usr/bin/python
# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: backup_info
short_description: List the backups that are in Glance
version_added: 0.1.0
description:
  - Lists what M(imageferry.glance.volume_backup) has kept of this project, each disk as it was at a moment. Only whole,
    verified backups are listed.
  - Runs on the controller whatever host the play is on, and asks once for all hosts of a play.
options:
  set:
    description: Name of a backup set. All sets by default.
    type: str
  host:
    description: The host whose disks they are. All hosts by default.
    type: str
  disk:
    description: What the disk is called in the set, such as V(vg0/db01). All disks by default.
    type: str
  guest:
    description: Name of the guest whose disks they are, and with which they were backed up.
    type: str
  at:
    description:
      - A moment such as V(2026-01-31T12:00:00Z). Of each disk only the last backup before it is listed, which is what
        the disk held then.
    type: str
  newest:
    description: Whether only the newest backup of each disk is listed.
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
    support: none
  idempotent:
    support: full
  async:
    support: none
"""

EXAMPLES = r"""
- name: See what there is of a guest
  imageferry.glance.backup_info:
    cloud: prod
    set: nightly
    guest: db01
  register: found

- name: Show it
  ansible.builtin.debug:
    msg: "{{ item.time }} {{ item.disk }} {{ item.size | human_readable }}"
  loop: "{{ found.backups }}"
  loop_control:
    label: "{{ item.image }}"
"""

RETURN = r"""
error:
  description: Stable code of the error's cause.
  returned: failure
  type: str
  sample: auth_failed
backups:
  description: The backups, sorted by set, host, disk and time.
  returned: success
  type: list
  elements: dict
  contains:
    set:
      description: Name of the backup set.
      type: str
    host:
      description: The host whose disk it is.
      type: str
    disk:
      description: What the disk is called in the set.
      type: str
    time:
      description: The moment that it is of, UTC, ISO 8601.
      type: str
      sample: "2026-01-31T12:00:00Z"
    newest:
      description: Whether none of this disk is newer.
      type: bool
    guest:
      description: Name of the guest that the disk was backed up with; null where that was done by itself.
      type: str
    seen:
      description: The last day on which a run found the disk to hold just this content.
      type: str
      sample: "2026-02-03"
    image:
      description: Id of the image. Several backups are in the same image where a disk came back to an older content.
      type: str
    name:
      description: The image's name.
      type: str
    size:
      description: The image's bytes.
      type: int
    virtual_size:
      description: Bytes of the disk.
      type: int
    disk_format:
      description: The image's disk format.
      type: str
    status:
      description: The image's status.
      type: str
    protected:
      description: Whether the image is protected from deletion.
      type: bool
    format:
      description: The format of the disk itself.
      type: str
    volume:
      description: Where the disk lay, as C(path), C(device), C(vg) and C(lv), or C(pool) and C(volume).
      type: dict
    content:
      description: The identity of the disk's content, which does not depend on formats and holes.
      type: str
"""
