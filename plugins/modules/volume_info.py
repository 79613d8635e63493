#!/usr/bin/python
# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks at a disk on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: volume_info
short_description: Look at a disk on a host
version_added: 0.1.0
description:
  - Tells of a file, logical volume, block device or volume of a libvirt pool what is on it - format and sizes, which
    image it holds, whether an import to it is unfinished, what it is laid over, and who uses it. Nothing is changed.
  - A volume that is not there is no error, but RV(volume.exists) is V(false).
  - Guests are only seen where python3-libvirt is installed and libvirt runs.
options:
  format:
    description:
      - The disk's format. By default it is the one that was recorded when the disk was imported or created, or the one
        that a guest's definition in libvirt says.
      - Where nobody says it, it is what the first bytes look like, see RV(volume.format_source). A guest can write
        anything to a raw disk, so a disk that only looks like a qcow2 is described, but what it is laid over is not
        opened.
    type: str
    choices: [raw, qcow2, iso]
  check:
    description:
      - Whether to have qemu-img check the structure of a qcow2, with limited resources. It reads all of the image's
        tables. A volume in use is never checked.
    type: bool
    default: false
  content:
    description:
      - Whether to read all of an idle disk, with what it is laid over, and tell the identity of its content, which is
        the same whatever its format. Backups and exported images are told by it. A file that was not written to since
        it was last read is not read again.
    type: bool
    default: false
  content_size:
    description:
      - The size of the disk whose content is asked for, in bytes or with a unit, where the volume may be larger, as
        logical volumes are. What follows has to be zeros. The whole disk by default.
    type: str
author:
  - ImageFerry contributors (@imageferry)
extends_documentation_fragment:
  - imageferry.glance._volume
  - imageferry.glance._attributes
  - imageferry.glance._attributes.volume
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
  async:
    support: full
"""

EXAMPLES = r"""
- name: Look at a guest's disk
  imageferry.glance.volume_info:
    path: /var/lib/libvirt/images/web01.qcow2
  register: web01

- name: Stop where a guest still runs on it
  ansible.builtin.assert:
    that: web01.volume.in_use is none

- name: See that a disk is sound before it is exported
  imageferry.glance.volume_info:
    vg: vg0
    lv: db01
    format: qcow2
    check: true
  register: db01
  failed_when: db01.volume.health.errors | default(0) + db01.volume.health.corruptions | default(0) > 0
"""

RETURN = r"""
error:
  description: Stable code of the error's cause.
  returned: failure
  type: str
  sample: volume_invalid
volume:
  description:
    - The volume, by its C(type), C(path), and C(vg) and C(lv) or C(pool) and C(volume). What is beyond C(exists) and
      C(unfinished), and is not of the volume group, is only there when it exists.
  returned: success
  type: dict
  contains:
    exists:
      description: Whether it is there.
      type: bool
    unfinished:
      description: Whether an import to it was begun and not completed.
      type: bool
    node:
      description: The device node that its C(path) leads to.
      returned: of a block device
      type: str
      sample: /dev/sdb
    uuid:
      description: LVM's UUID of it.
      returned: of a logical volume that exists
      type: str
      sample: 8r5Zfa-9Kx1-0tQe-xrYk-Bvtu-DVD1-x3KqWp
    layout:
      description: How LVM lays it out, in the words of lvs(8).
      returned: of a logical volume that exists
      type: str
      sample: thin,sparse
    thin_pool:
      description: Name of the thin pool that it is in; null for a thick one.
      returned: of a logical volume that exists
      type: str
    data_percent:
      description:
        - The part of a thin one that takes up room in its pool, in percent, as RV(volume.allocated) is in bytes. Null
          for a thick one, and where LVM does not say it, as of one that is not active.
      returned: of a logical volume that exists
      type: float
    active:
      description: Whether it is active.
      returned: of a logical volume that exists
      type: bool
    permissions:
      description: Whether LVM lets it be written to, in the words of lvs(8).
      returned: of a logical volume that exists
      type: str
      sample: writeable
    tags:
      description: Its tags, without this collection's own, which hold the RV(volume.provenance).
      returned: of a logical volume that exists
      type: list
      elements: str
    extent_size:
      description: Bytes of an extent of the volume group.
      returned: of a logical volume
      type: int
    group_free:
      description: Bytes that are free in the volume group.
      returned: of a logical volume
      type: int
    format:
      description: The disk's format.
      type: str
      sample: qcow2
    format_source:
      description:
        - Who says so - the V(option), the V(provenance) that was recorded with the disk, a V(guest) in libvirt, or
          V(detected) from the first bytes.
      type: str
    size:
      description: Bytes of the volume.
      type: int
    allocated:
      description: Bytes of storage behind it; null where the storage does not say.
      type: int
    virtual_size:
      description: Bytes of the disk that a guest sees; null when the format does not show it.
      type: int
    provenance:
      description: The image that it holds, with Glance's C(metadata); null when none is known.
      type: dict
    backing_chain:
      description:
        - The images that a qcow2 is laid over, the nearest first, each with its C(path), its C(format) (null where the
          header does not say it), whether it C(exists) and its C(virtual_size) (null where it was not looked at).
      type: list
      elements: dict
    clones:
      description: The thin clones that stand on it, files by their path, logical volumes as C(vg/lv).
      type: list
      elements: str
    in_use:
      description: Who uses it, in words; null when nobody does.
      type: str
      sample: /var/lib/libvirt/images/web01.qcow2 is in use by process 4711 (qemu-system-x86).
    guests:
      description:
        - The guests that have it, running or only defined, each with the domain's name as C(guest), whether it is
          C(running), the disk's C(target), C(format), C(read_only), and whether it is only C(backing) the guest's disk.
          Null where there is no libvirt to ask.
      type: list
      elements: dict
    holes:
      description: The volume's C(data_bytes), C(hole_bytes), and the C(extents) that its data lies in.
      type: dict
    health:
      description:
        - What qemu-img found, the number of C(errors), C(corruptions) and C(leaks); or V(false) for C(checked), and the
          C(reason).
      returned: with O(check=true)
      type: dict
    content:
      description:
        - The identity of the disk's content; null while a guest that runs may write to it, and where more than zeros
          follows after O(content_size).
      returned: with O(content=true)
      type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.imageferry.glance.plugins.module_utils._arguments import (
    EXISTING_VOLUME_RULES,
    volume_info_spec,
)
from ansible_collections.imageferry.glance.plugins.module_utils._disk.info import info_task
from ansible_collections.imageferry.glance.plugins.module_utils._module import run_module


def main() -> None:
    module = AnsibleModule(volume_info_spec(), supports_check_mode=True, **EXISTING_VOLUME_RULES)
    run_module(module, lambda: info_task(module))


if __name__ == "__main__":
    main()
