#!/usr/bin/python
# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Grows a disk on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: volume_extend
short_description: Grow a disk on a host, also under a running guest
version_added: 0.1.0
description:
  - Grows a file or logical volume, and the raw or qcow2 disk on it, to at least O(size). A volume that is large enough
    is left alone; none is ever shrunk.
  - All that can be checked is checked before anything is changed. A logical volume is extended first, by whole extents,
    then the disk on it. One with a qcow2 becomes so large that the disk fits when all of it is written.
  - The disk of a running guest grows through libvirt, so that the guest sees it at once; it needs python3-libvirt on
    the host. A disk that anything else uses is not grown.
  - Only the disk grows. Partitions, the backup header of a GPT (which the larger disk no longer has at its end) and
    file systems are left to the guest, where cloud-init's C(growpart) and C(resizefs) do it at the next start.
options:
  size:
    description:
      - The least size of the disk, in bytes or with a unit such as V(200GiB).
      - For a logical volume that is not in a thin pool also V(50%FREE), a share of what the volume has and what is free
        in its group, taken together. Unlike LVM's own C(+50%FREE) that is the same after the volume has grown, so that
        a second run changes nothing. V(100%FREE) takes all that is free. A qcow2 on it gets as large a disk as fits.
      - V(+10GiB) is refused, as every run would grow the volume again.
    type: str
    required: true
  format:
    description:
      - The disk's format. By default it is the one that was recorded when the disk was imported or created, or the one
        that a guest's definition in libvirt says.
      - Needed where nobody says it and the disk looks like something other than V(raw), as a guest can write anything
        to a raw disk.
    type: str
    choices: [raw, qcow2]
  only:
    description:
      - Grows only the V(volume), or only the V(image) on it. A raw disk is the volume itself, so that this makes no
        difference. An image that grows alone may become larger than its volume can hold.
    type: str
    choices: [volume, image]
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
- name: Give the database room
  imageferry.glance.volume_extend:
    vg: vg0
    lv: db01
    size: 200GiB

- name: Grow a qcow2 that was not made by this collection
  imageferry.glance.volume_extend:
    path: /var/lib/libvirt/images/web01.qcow2
    format: qcow2
    size: 40GiB

- name: Take all that is free in the volume group
  imageferry.glance.volume_extend:
    vg: vg0
    lv: backup
    size: 100%FREE
"""

RETURN = r"""
msg:
  description: What was done, and why.
  returned: always
  type: str
  sample: "Extended vg0/db01 from 100 GiB to 200 GiB (107374182400 to 214748364800 bytes)."
error:
  description: Stable code of the error's cause.
  returned: failure
  type: str
  sample: no_space
clones:
  description: The clones that stand on the disk, files by their path, logical volumes as C(vg/lv).
  returned: when it fails because of them
  type: list
  elements: str
volume:
  description: The volume, by its C(type), C(path), and C(vg) and C(lv) or C(pool) and C(volume).
  returned: success
  type: dict
before:
  description:
    - Bytes before. C(size) is the volume's, and missing for a qcow2 in a file, which grows as it is written.
      C(virtual_size) is what a guest sees.
  returned: success
  type: dict
  sample: {"size": 107374182400, "virtual_size": 107374182400}
after:
  description: Bytes afterwards, also in check mode.
  returned: success
  type: dict
  sample: {"size": 214748364800, "virtual_size": 214748364800}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.imageferry.glance.plugins.module_utils._arguments import (
    EXISTING_VOLUME_RULES,
    volume_extend_spec,
)
from ansible_collections.imageferry.glance.plugins.module_utils._disk.extend import extend_task
from ansible_collections.imageferry.glance.plugins.module_utils._module import run_module


def main() -> None:
    module = AnsibleModule(volume_extend_spec(), supports_check_mode=True, **EXISTING_VOLUME_RULES)
    run_module(module, lambda: extend_task(module))


if __name__ == "__main__":
    main()
