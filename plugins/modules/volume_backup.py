#!/usr/bin/python
# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: volume_backup
short_description: Back up a disk, or the disks of a guest, to Glance
version_added: 0.1.0
description:
  - Keeps the content of a disk as one more image of a backup set. The disk is exported as by
    M(imageferry.glance.glance_image_export), from a running guest at one moment, and no image goes for it.
  - A disk whose content is in its newest backup already is not sent again; that it was seen to be so is noted once a
    day. One that has come back to the content of an older backup is not sent either, and that backup counts as one of
    this moment, too.
  - An image becomes a backup once Glance's own size and hashes were held against what was sent. One that was broken
    off never is, and is removed by the next run.
  - M(imageferry.glance.backup_info) lists the backups, M(imageferry.glance.backup_prune) removes old ones, and the
    role P(imageferry.glance.image_restore#role) brings them back.
options:
  set:
    description: Name of the backup set.
    type: str
    required: true
  host:
    description:
      - The host that the disk is said to be of. By default the inventory's name of the host; something lasting for
        guests that move between hosts, such as the name of their cluster.
    type: str
  label:
    description:
      - What the disk is called in the set. By default its address, as C(/srv/web01.img), C(vg0/db01) or
        C(default/web01.qcow2). The disks of a guest are always called C(guest/vda).
    type: str
  time:
    description: The moment that the backup is said to be of, such as V(2026-01-31T12:00:00Z). The present by default.
    type: str
  domain:
    description: Name or UUID of a libvirt guest whose disks are backed up, all as they are at the same moment.
    type: str
  disks:
    description: The disks of O(domain), such as V(vda). All that the guest writes to by default.
    type: list
    elements: str
  format:
    description: Disk format of the images. V(keep) is the disk's own.
    type: str
    choices: [keep, raw, qcow2]
    default: qcow2
  visibility:
    description: Who sees the images.
    type: str
    choices: [private, shared, community, public]
    default: private
  protected:
    description: Whether the images are protected from deletion.
    type: bool
  tags:
    description: Tags that the images have.
    type: list
    elements: str
  properties:
    description: Properties that the images have.
    type: dict
author:
  - ImageFerry contributors (@imageferry)
seealso:
  - module: imageferry.glance.backup_info
  - module: imageferry.glance.backup_prune
extends_documentation_fragment:
  - imageferry.glance._cloud
  - imageferry.glance._volume
  - imageferry.glance._export
  - imageferry.glance._transfer
  - imageferry.glance._attributes
  - imageferry.glance._attributes.cloud
attributes:
  check_mode:
    support: partial
    details:
      - An idle disk is read and compared, as in a real run. That of a running guest is not, and taken for changed.
  diff_mode:
    support: full
  idempotent:
    support: full
    details:
      - On the next day, a second run notes that the content is still the same.
  async:
    support: none
"""

EXAMPLES = r"""
- name: Back up a guest, running or not
  imageferry.glance.volume_backup:
    cloud: prod
    set: nightly
    domain: db01
    compress: zstd

- name: Back up a logical volume
  imageferry.glance.volume_backup:
    cloud: prod
    set: nightly
    vg: vg0
    lv: files
    source_format: raw
    protected: true
"""

RETURN = r"""
msg:
  description: What was done, and why.
  returned: always
  type: str
  sample: "Backed up: its content has changed."
error:
  description: Stable code of the error's cause.
  returned: failure
  type: str
  sample: volume_in_use
time:
  description: The moment that the backup is said to be of.
  returned: success
  type: str
  sample: "2026-01-31T12:00:00Z"
labels:
  description: What the disks are called in the set.
  returned: success
  type: list
  elements: str
  sample: [db01/vda, db01/vdb]
image:
  description: The image, with Glance's own fields; what they will be in check mode. Of the first of several disks.
  returned: success
  type: dict
volume:
  description: The disk, its C(label), C(path), C(format), C(virtual_size) in bytes, and whether it is C(live).
  returned: success
  type: dict
transfer:
  description: What was moved, as by M(imageferry.glance.glance_image_export), of the first of several disks.
  returned: when bytes were moved
  type: dict
disks:
  description: For each disk of O(domain) its C(disk), C(msg), C(changed), C(image), C(volume) and C(transfer).
  returned: success, with O(domain)
  type: list
  elements: dict
"""
