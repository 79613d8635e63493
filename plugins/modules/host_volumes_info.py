#!/usr/bin/python
# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists the volumes of a host that this collection looks after."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_volumes_info
short_description: List what this collection has brought to a host
version_added: 0.1.0
description:
  - Finds all files, logical volumes and volumes of libvirt pools that this collection has imported, made or begun on a
    host, by what is kept with them, and says of each what it holds. Nothing is changed.
  - Volumes that others have made are not listed; M(imageferry.glance.volume_info) looks at any single one.
options:
  folders:
    description:
      - Folders whose files are looked at, not those of their subfolders, beside the folders of all active pools of
        libvirt. One that is not there holds none.
    type: list
    elements: path
    default: [/var/lib/libvirt/images]
  vgs:
    description: Volume groups whose logical volumes are looked at. All by default.
    type: list
    elements: str
  exclude:
    description: Paths of volumes that are left out, by whichever name they are known here.
    type: list
    elements: path
    default: []
author:
  - ImageFerry contributors (@imageferry)
seealso:
  - module: imageferry.glance.volume_info
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
- name: See what a host holds
  imageferry.glance.host_volumes_info:
    folders: [/var/lib/libvirt/images, /srv/iso]
  register: held

- name: Name those whose import was broken off
  ansible.builtin.debug:
    msg: "{{ held.volumes | selectattr('unfinished') | map(attribute='path') }}"
"""

RETURN = r"""
error:
  description: Stable code of the error's cause.
  returned: failure
  type: str
  sample: storage_error
volumes:
  description:
    - The volumes, sorted by their C(path), each by its C(type), and C(vg) and C(lv) or C(pool) and C(volume). What is
      beyond C(provenance) is only there when it exists. Of logical volumes there is also all that
      M(imageferry.glance.volume_info) returns of them.
  returned: success
  type: list
  elements: dict
  contains:
    exists:
      description: Whether it is there; a file appears only when its import is completed.
      type: bool
    unfinished:
      description: Whether an import to it was begun and not completed.
      type: bool
    imported:
      description:
        - Whether it holds an image that was imported; not so where it was made blank or as a clone, or was there before
          and turned out to hold the image, which C(provenance) tells as C(adopted).
      type: bool
    provenance:
      description: The image that it holds, with Glance's C(metadata); null when none is known.
      type: dict
    format:
      description: The disk's format.
      type: str
      sample: qcow2
    size:
      description: Bytes of the volume.
      type: int
    allocated:
      description: Bytes of storage behind it; null where the storage does not say.
      type: int
    virtual_size:
      description: Bytes of the disk that a guest sees; null when the format does not show it.
      type: int
    clones:
      description: The thin clones that stand on it, files by their path, logical volumes as C(vg/lv).
      type: list
      elements: str
    guests:
      description: Names of the guests that have it, running or only defined; null where there is no libvirt to ask.
      type: list
      elements: str
    error:
      description: Why nothing more is said of a logical volume that is tagged as this collection's.
      returned: when it cannot be looked at
      type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.imageferry.glance.plugins.module_utils._arguments import host_volumes_spec
from ansible_collections.imageferry.glance.plugins.module_utils._disk.inventory import inventory_task
from ansible_collections.imageferry.glance.plugins.module_utils._module import run_module


def main() -> None:
    module = AnsibleModule(host_volumes_spec(), supports_check_mode=True)
    run_module(module, lambda: inventory_task(module))


if __name__ == "__main__":
    main()
