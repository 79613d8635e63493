#!/usr/bin/python
# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attaches a disk to a guest, or detaches it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_disk
short_description: Attach a disk of a host to a guest, or detach it
version_added: 0.1.0
description:
  - Has a libvirt guest have a file, logical volume, block device or volume of a pool as one of its disks, or not. A
    guest that runs gets or loses it at once, and in its definition, so that it is the same after its next start.
  - The disk's format is named to QEMU. A disk whose import is unfinished, or whose format is nobody's word but its own,
    is refused.
  - Detaching never removes what is on the disk; M(imageferry.glance.volume) does.
options:
  guest:
    description: Name or UUID of the guest, a domain of libvirt's system instance.
    type: str
    required: true
  state:
    description: Whether the guest is to have the disk.
    type: str
    choices: [attached, detached]
    default: attached
  target:
    description:
      - The disk's name in the guest's definition, such as V(vdb). By default the next free one of the bus.
      - With O(state=detached), this or the volume says which disk. If both do, they have to mean the same.
    type: str
  bus:
    description:
      - The bus that a new disk is on, V(virtio) by default.
      - QEMU gives a running guest no disk on V(ide) or V(sata), and has no disk there that is only read.
    type: str
    choices: [virtio, scsi, sata, ide, usb]
  format:
    description:
      - The disk's format. By default the one that was recorded when it was imported or created; needed for any other
        disk that looks like something other than V(raw).
    type: str
    choices: [raw, qcow2]
  read_only:
    description: Whether the guest may only read it. Several guests may have a disk that all of them only read.
    type: bool
    default: false
  timeout:
    description: Seconds to wait until a running guest has let go of a disk.
    type: int
    default: 60
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
    support: full
  idempotent:
    support: full
  async:
    support: full
"""

EXAMPLES = r"""
- name: Make a disk for data
  imageferry.glance.volume:
    vg: vg0
    lv: db01-data
    size: 100GiB

- name: Attach it to the guest, whether it runs or not
  imageferry.glance.guest_disk:
    guest: db01
    vg: vg0
    lv: db01-data

- name: Attach a rescue system that the guest cannot write to
  imageferry.glance.guest_disk:
    guest: db01
    path: /var/lib/libvirt/images/rescue.qcow2
    bus: usb
    read_only: true
  register: rescue

- name: Detach it again
  imageferry.glance.guest_disk:
    guest: db01
    target: "{{ rescue.disk.target }}"
    state: detached
"""

RETURN = r"""
msg:
  description: What was done.
  returned: always
  type: str
  sample: Attached vg0/db01-data to the guest db01 as vdb.
error:
  description: Stable code of the error's cause.
  returned: failure
  type: str
  sample: target_taken
guest:
  description: The guest, with its C(name), C(uuid), and whether it is C(running).
  returned: success
  type: dict
disk:
  description: The disk, as M(imageferry.glance.guest_disk_info) shows it; null when there was none to detach.
  returned: success
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.imageferry.glance.plugins.module_utils._arguments import GUEST_DISK_RULES, guest_disk_spec
from ansible_collections.imageferry.glance.plugins.module_utils._disk.guest import guest_disk_task
from ansible_collections.imageferry.glance.plugins.module_utils._module import run_module


def main() -> None:
    module = AnsibleModule(guest_disk_spec(), supports_check_mode=True, **GUEST_DISK_RULES)
    run_module(module, lambda: guest_disk_task(module))


if __name__ == "__main__":
    main()
