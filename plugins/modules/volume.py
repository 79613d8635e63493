#!/usr/bin/python
# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes and removes disks on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: volume
short_description: Make a blank disk or a thin clone on a host, or remove a disk
version_added: 0.1.0
description:
  - Has a blank raw or qcow2 disk be there, or a thin clone of one that is there, such as an imported image. A clone
    takes up only what its guest writes, so one image serves as the template of many guests.
  - A disk that is there and is what was asked for is left alone, whatever a guest has written to it; one that is too
    small is grown as by M(imageferry.glance.volume_extend). Something else in its place is an error.
  - What clones stand on is not imported over, extended or removed, by any module of this collection, as long as they
    are there. A clone of a file is a qcow2 whose header names its base and the base's format.
  - A clone of a logical volume in a thin pool is a thin snapshot of it, in the same pool and of the same format. It
    stays what it is when its origin is written to or grown; only the removal of the origin is refused.
options:
  state:
    description:
      - Whether the disk is to be there. V(absent) removes it with all that it holds.
      - It also removes what an import to it has left that was interrupted and never gone on with - the hidden partial
        file beside a file, and the copy that was to be converted, in the folder where it is by default; not one in
        another C(staging_dir). An import that is going on is an error.
    type: str
    choices: [present, absent]
    default: present
  size:
    description:
      - The least size of the disk, in bytes or with a unit such as V(20GiB). Needed for a blank one that is not there
        yet; by default a clone is as large as what it is a clone of, and never smaller.
    type: str
  format:
    description:
      - The disk's format. By default V(qcow2) for a clone of a file, for that of a logical volume what it is a clone
        of, otherwise V(raw).
    type: str
    choices: [raw, qcow2]
  cluster_size:
    description: Size of the clusters of a new qcow2, a power of two such as V(64KiB), which is also qemu's own.
    type: str
  preallocation:
    description:
      - Storage that a new disk gets at once, in qemu's words. V(off) for none, V(metadata) for the tables of a qcow2,
        V(falloc) reserves all of it, V(full) writes all of it.
    type: str
    choices: ["off", metadata, falloc, full]
    default: "off"
  clone_of:
    description:
      - The disk that a thin clone is made of. It has to be whole, and no guest may write to it.
      - Both are files, also those of a pool, or both are logical volumes of one volume group, named by O(vg) and O(lv)
        and by O(clone_of.vg) and O(clone_of.lv), the one that is cloned in a thin pool. No other disk is cloned.
    type: dict
    suboptions:
      path:
        description: Absolute path of the file.
        type: path
      device:
        description: Path of the block device.
        type: path
      vg:
        description: Name of the volume group.
        type: str
      lv:
        description: Name of the logical volume.
        type: str
      pool:
        description: Name of the libvirt pool.
        type: str
      volume:
        description: Name of the volume in the libvirt pool.
        type: str
      format:
        description:
          - Its format. By default the one that was recorded when it was imported or created; needed for any other disk
            that looks like something other than V(raw).
        type: str
        choices: [raw, qcow2]
  wipe:
    description:
      - Whether a disk that is removed is overwritten with zeros first.
      - A O(device) cannot be removed, only wiped. It is left alone when all of it reads as zeros already, which is
        found out by reading it.
    type: bool
    default: false
author:
  - ImageFerry contributors (@imageferry)
extends_documentation_fragment:
  - imageferry.glance._volume
  - imageferry.glance._volume.new
  - imageferry.glance._attributes
  - imageferry.glance._attributes.volume
  - ansible.builtin.files
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
- name: Make a blank disk for data
  imageferry.glance.volume:
    vg: vg0
    lv: db01-data
    size: 100GiB

- name: Have the golden image on the host once
  imageferry.glance.glance_image_import:
    cloud: prod
    image: debian-12
    path: /var/lib/libvirt/images/debian-12.qcow2

- name: Give each guest a disk of its own that starts as the golden image
  imageferry.glance.volume:
    path: "/var/lib/libvirt/images/{{ item }}.qcow2"
    clone_of:
      path: /var/lib/libvirt/images/debian-12.qcow2
    size: 20GiB
    owner: libvirt-qemu
    mode: "0600"
  loop: [web01, web02, web03]

- name: The same with logical volumes, where the golden image was imported with thin_pool
  imageferry.glance.volume:
    vg: vg0
    lv: "{{ item }}"
    clone_of:
      vg: vg0
      lv: debian-12
    size: 20GiB
  loop: [web01, web02, web03]

- name: Remove a disk so that nobody reads what was on it
  imageferry.glance.volume:
    path: /var/lib/libvirt/images/web03.qcow2
    state: absent
    wipe: true
"""

RETURN = r"""
msg:
  description: What was done, and why.
  returned: always
  type: str
  sample: "Created: /var/lib/libvirt/images/web01.qcow2 did not exist."
error:
  description: Stable code of the error's cause.
  returned: failure
  type: str
  sample: has_clones
clones:
  description: The clones that stand on the disk, files by their path, logical volumes as C(vg/lv).
  returned: when O(state=absent) fails because of them
  type: list
  elements: str
volume:
  description:
    - The volume, by its C(type), C(path), and C(vg) and C(lv) or C(pool) and C(volume), with its C(state), C(format),
      C(virtual_size) in bytes, and C(clone_of), the base of a new clone.
  returned: success
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.imageferry.glance.plugins.module_utils._arguments import VOLUME_RULES, volume_module_spec
from ansible_collections.imageferry.glance.plugins.module_utils._disk.volume import volume_task
from ansible_collections.imageferry.glance.plugins.module_utils._module import run_module


def main() -> None:
    module = AnsibleModule(volume_module_spec(), supports_check_mode=True, add_file_common_args=True, **VOLUME_RULES)
    run_module(module, lambda: volume_task(module))


if __name__ == "__main__":
    main()
