#!/usr/bin/python
# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Exports a disk of a host to an image."""

from __future__ import annotations

DOCUMENTATION = r"""
module: glance_image_export
short_description: Keep a disk of a host as an image in Glance
version_added: 0.1.0
description:
  - The host reads the disk, flat and with its holes, and pushes it to Glance itself, as raw or qcow2 made on its way,
    without a temporary file. It needs no OpenStack library, and never sees a password.
  - The disk is a file, an LVM logical volume, a block device, in a libvirt pool, or one of a libvirt guest. What it is
    laid over (snapshots, a template) is exported with it.
  - The disk of a guest that runs is exported as it was at one moment, through libvirt's pull backup, with the guest's
    file systems frozen for that moment where an agent in the guest can. Several disks of one guest share the moment.
  - Whether anything is to be done is decided by the content, which is the same whatever the format, the holes and the
    compression. It is kept as the image's property C(owner_specified.imageferry.content). An image of the same name, of
    this project, that has the disk's content is only brought up to date in what is said of it; no byte is uploaded.
  - A new image is hidden until Glance's own size and hashes were held against what was sent. Only then is the one that
    it replaces deleted. When anything fails, no image is left of it, and what was there before stays.
  - What was killed before it could clean up after itself is cleaned up by the next export of the same disk.
options:
  domain:
    description: Name or UUID of a libvirt guest on the host, whose O(disk) or O(disks) are exported.
    type: str
  disk:
    description: The disk's name in the guest O(domain), such as V(vda).
    type: str
  disks:
    description: Several disks of the guest O(domain), as they were at the same moment.
    type: list
    elements: dict
    suboptions:
      disk:
        description: The disk's name in the guest, such as V(vda).
        type: str
        required: true
      name:
        description: Name of its image.
        type: str
        required: true
  snapshot:
    description: Name or id of an internal snapshot of a qcow2, which is exported instead of what the disk holds now.
    type: str
  flatten:
    description: Whether a disk that is laid over others is exported together with them. V(false) refuses it.
    type: bool
    default: true
  base:
    description:
      - Path of an image that the disk is laid over, which is left out with all below it. The new image holds only what
        lies above, and reads as zeros where nothing there holds data.
      - That is what was written since the disk was laid over O(base), to be kept or looked at; it is seldom a disk that
        boots. Nor is it an overlay, as an image in Glance has no backing file; put over O(base) again, it does not tell
        zeros that were written from what was not written.
      - For disks that no running guest writes to. A template below a running guest is exported by its own O(path).
    type: path
  name:
    description: Name of the image.
    type: str
  id:
    description:
      - Id that the first image of this name gets. One that takes another's place gets one that Glance makes up, as it
        does by default.
      - Glance never gives an id twice, so that an export that has failed has used it up.
    type: str
  format:
    description: Disk format of the image. V(keep) is the disk's own.
    type: str
    choices: [keep, raw, qcow2, iso]
    default: keep
  container_format:
    description: Container format of the image.
    type: str
    default: bare
  visibility:
    description: Who sees the image. A new one is C(shared) unless the cloud says otherwise.
    type: str
    choices: [private, shared, community, public]
  protected:
    description: Whether the image is protected from deletion.
    type: bool
  hidden:
    description: Whether the image is left out of lists.
    type: bool
  tags:
    description: Tags that the image has.
    type: list
    elements: str
  properties:
    description: Properties that the image has, such as C(os_distro) and C(hw_disk_bus).
    type: dict
  min_disk:
    description: The least size in GiB of a disk that the image is put on, if it is to be larger than the disk exported.
    type: int
  min_ram:
    description: The least memory in MiB of a guest that runs it.
    type: int
  members:
    description: Ids of the projects that the image is shared with.
    type: list
    elements: str
  keep_metadata:
    description:
      - Whether the image gets the tags, properties and requirements of the image that the disk was imported from, as
        far as the other options say nothing else. Visibility, protection, members and container format are of an image
        and not of a disk, and never taken over.
    type: bool
    default: true
  on_existing:
    description:
      - What to do when an image of this name, of this project, has another content. V(replace) deletes it once the new
        one is there and verified, also when an earlier run was broken off before it did. V(new) leaves it beside the
        new one, V(fail) fails.
    type: str
    choices: [replace, new, fail]
    default: replace
author:
  - ImageFerry contributors (@imageferry)
extends_documentation_fragment:
  - imageferry.glance._cloud
  - imageferry.glance._volume
  - imageferry.glance._export
  - imageferry.glance._transfer
  - imageferry.glance._controller
  - imageferry.glance._controller.watched
  - imageferry.glance._controller.export
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
  async:
    support: none
    details:
      - The controller has work to do after the host's. The task shows its progress by itself.
"""

EXAMPLES = r"""
- name: Keep today's disk as an image
  imageferry.glance.glance_image_export:
    cloud: prod
    path: /var/lib/libvirt/images/web01.qcow2
    name: web01-golden
    format: qcow2
    compress: zstd

- name: Keep the disks of a running guest as they are at one moment
  imageferry.glance.glance_image_export:
    cloud: prod
    domain: db01
    disks:
      - { disk: vda, name: db01-system }
      - { disk: vdb, name: db01-data }
    format: qcow2
    visibility: private

- name: Make a public image of a logical volume, beside the one of last month
  imageferry.glance.glance_image_export:
    cloud: prod
    vg: vg0
    lv: template
    source_format: raw
    name: debian-12
    format: qcow2
    visibility: public
    properties:
      os_distro: debian
    on_existing: new
"""

RETURN = r"""
msg:
  description: What was done, and why.
  returned: always
  type: str
  sample: "Exported: there is no image 'web01-golden'."
error:
  description: Stable code of the error's cause.
  returned: failure
  type: str
  sample: volume_in_use
image:
  description: The image, with Glance's own fields; what they will be in check mode. Of the first of several disks.
  returned: success
  type: dict
volume:
  description: The disk, its C(label), C(path), C(format), C(virtual_size) in bytes, and whether it is C(live).
  returned: success
  type: dict
transfer:
  description: What was moved, of the first of several disks.
  returned: when bytes were moved
  type: dict
  contains:
    bytes:
      description: Bytes that went over the network.
      type: int
    zero_bytes:
      description: Bytes of the disk that are known to be zeros. A qcow2 goes without them.
      type: int
    staged_bytes:
      description: Bytes that were kept in O(spool_dir) meanwhile; 0 where they did not fit, and all was read twice.
      type: int
    seconds:
      description: Seconds that it took.
      type: float
    rate:
      description: Bytes a second.
      type: int
    quiesced:
      description: Whether a running guest's file systems were frozen at the moment that the export is of.
      type: bool
disks:
  description: For each of O(disks) its C(disk), C(msg), C(changed), C(image), C(volume) and C(transfer).
  returned: success, with O(disks)
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.imageferry.glance.plugins.module_utils._arguments import EXPORT_RULES, export_spec
from ansible_collections.imageferry.glance.plugins.module_utils._export.task import export_task
from ansible_collections.imageferry.glance.plugins.module_utils._module import run_module


def main() -> None:
    module = AnsibleModule(export_spec(), supports_check_mode=True, **EXPORT_RULES)
    run_module(module, lambda: export_task(module))


if __name__ == "__main__":
    main()
