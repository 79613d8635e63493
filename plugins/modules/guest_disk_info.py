#!/usr/bin/python
# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists the disks of a guest."""

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_disk_info
short_description: List the disks of a guest
version_added: 0.1.0
description:
  - Tells of a libvirt guest of the host, which may run or be shut off, which disks and drives it has and what lies
    behind them. Nothing is changed.
options:
  guest:
    description: Name or UUID of the guest, a domain of libvirt's system instance.
    type: str
    required: true
author:
  - ImageFerry contributors (@imageferry)
extends_documentation_fragment:
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
- name: List the disks of a guest
  imageferry.glance.guest_disk_info:
    guest: web01
  register: web01

- name: Look at each of them that lies on this host
  imageferry.glance.volume_info:
    path: "{{ item }}"
  loop: "{{ web01.disks | map(attribute='path') | select('match', '/(?!dev/)') }}"
"""

RETURN = r"""
error:
  description: Stable code of the error's cause.
  returned: failure
  type: str
  sample: guest_not_found
guest:
  description: The guest.
  returned: success
  type: dict
  contains:
    name:
      description: Its name.
      type: str
    uuid:
      description: Its UUID.
      type: str
    running:
      description: Whether it runs, or is paused.
      type: bool
disks:
  description:
    - Its disks and drives, in the order of its definition; those of a running guest are as they are now, which its
      definition may not say.
  returned: success
  type: list
  elements: dict
  contains:
    target:
      description: Its name in the definition.
      type: str
      sample: vda
    bus:
      description: The bus that it is on.
      type: str
      sample: virtio
    device:
      description: V(disk), V(cdrom), V(floppy) or V(lun).
      type: str
      sample: disk
    path:
      description: The file or device of this host; null when it lies elsewhere, or the drive is empty.
      type: str
      sample: /var/lib/libvirt/images/web01.qcow2
    format:
      description: Its format, in qemu's words; null where the definition does not say.
      type: str
      sample: qcow2
    read_only:
      description: Whether the guest may only read it.
      type: bool
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.imageferry.glance.plugins.module_utils._arguments import guest_disk_info_spec
from ansible_collections.imageferry.glance.plugins.module_utils._disk.guest import guest_info_task
from ansible_collections.imageferry.glance.plugins.module_utils._module import run_module


def main() -> None:
    module = AnsibleModule(guest_disk_info_spec(), supports_check_mode=True)
    run_module(module, lambda: guest_info_task(module))


if __name__ == "__main__":
    main()
