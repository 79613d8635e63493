#!/usr/bin/python
# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts a disc into a guest's CD drive, or takes it out."""

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_cdrom
short_description: Insert an ISO into a guest's CD drive, or eject it
version_added: 0.1.0
description:
  - Has an ISO be in a CD drive of a libvirt guest, or none. The ISO is a file, logical volume, block device or volume
    of a pool on the host; or it stays in Glance, and the guest reads it there, without a copy on the host.
  - An ISO of the host is put into the drive of a guest that runs at once, and into its definition; it may also be shut
    off. An image that is read in Glance is there for a running guest only, and no longer after it was shut off.
  - An image in Glance is judged by its header first. The host reads what the guest asks for and keeps the last 16 MiB
    of it. The guest's QEMU gets neither the token nor a way to Glance. What reads the image runs on the host until it
    is ejected, replaced, or the guest is shut off.
notes:
  - A token ends, an hour after it was issued unless Keystone's C([token] expiration) says otherwise. The host has no
    password to get another, so each run of the same task hands out a new one, which changes nothing. Run it on a timer
    with O(state=renewed), which does not bring a disc back that was ejected meanwhile; or have the task stay and do so,
    with O(renew_for).
  - What the guest reads from Glance after its token has ended is held back for 20 seconds, goes on as soon as there is
    a new token, and fails otherwise. Later reads work again once there is one. What is kept can always be read.
  - If what reads the image on the host is killed, the guest's reads fail until the task is run again. QEMU then
    connects anew at one of the guest's next reads, and where libvirt knows of NBD's reconnecting, holds them back up to
    30 seconds for that.
options:
  guest:
    description: Name or UUID of the guest, a domain of libvirt's system instance.
    type: str
    required: true
  state:
    description:
      - Whether the disc is to be in the drive, or none. With V(renewed) an O(image) gets a new token if it is still in
        the drive of the running guest, and nothing is done otherwise.
    type: str
    choices: [inserted, renewed, ejected]
    default: inserted
  target:
    description: The drive's name in the guest's definition, such as V(sda). The first CD drive by default.
    type: str
  image:
    description: Id or name of the image in Glance that the guest is to read there. Its disk format has to be V(iso).
    type: str
  latest:
    description: Whether to take the newest of several images of that name.
    type: bool
    default: false
  host_interface:
    description:
      - The endpoint of the image service in the catalogue that the host reads from. By default the one that the
        controller uses.
    type: str
    choices: [admin, internal, public]
  force:
    description: Whether to open the drive of a running guest also when that has locked it.
    type: bool
    default: false
  renew_for:
    description:
      - Seconds for which the task stays, and renews the token before it expires. It ends as soon as the disc is ejected
        or the guest is shut off. Only for O(image).
    type: int
    default: 0
  _wait:
    description: For this collection's own use. Seconds to watch the drive.
    type: float
    default: 0
author:
  - ImageFerry contributors (@imageferry)
extends_documentation_fragment:
  - imageferry.glance._cloud
  - imageferry.glance._volume
  - imageferry.glance._controller
  - imageferry.glance._controller.import
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
- name: Insert an ISO that is on the host
  imageferry.glance.guest_cdrom:
    guest: web01
    path: /var/lib/libvirt/images/debian-12-netinst.iso

- name: Have a running guest read a rescue system where Glance holds it, for the next hour
  imageferry.glance.guest_cdrom:
    cloud: prod
    guest: web01
    image: rescue-cd
    renew_for: 3600

- name: Let the guest read it for longer, on a timer, for as long as it is in the drive
  imageferry.glance.guest_cdrom:
    cloud: prod
    guest: web01
    image: rescue-cd
    state: renewed

- name: Take it out again
  imageferry.glance.guest_cdrom:
    guest: web01
    state: ejected
"""

RETURN = r"""
msg:
  description: What was done.
  returned: always
  type: str
  sample: "'rescue-cd' inserted: sda of the guest web01."
error:
  description: Stable code of the error's cause.
  returned: failure
  type: str
  sample: no_cd_drive
candidates:
  description: The images that have the name, each with its C(id), C(name), C(created_at), C(size) and C(status).
  returned: when there are several, and one was meant
  type: list
  elements: dict
guest:
  description: The guest, with its C(name), C(uuid), and whether it is C(running).
  returned: success
  type: dict
target:
  description: The drive.
  returned: success
  type: str
  sample: sda
inserted:
  description:
    - Whether a disc is in the drive; with O(state=renewed) whether it is this one, and with O(renew_for) when the task
      ends.
  returned: success
  type: bool
medium:
  description:
    - What is in the drive, the C(path) of an ISO of the host, or the C(id) and C(name) of an C(image) in Glance. Null
      when it is empty.
  returned: success
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.imageferry.glance.plugins.module_utils._arguments import GUEST_CDROM_RULES, guest_cdrom_spec
from ansible_collections.imageferry.glance.plugins.module_utils._disk.cdrom import cdrom_task
from ansible_collections.imageferry.glance.plugins.module_utils._module import run_module


def main() -> None:
    module = AnsibleModule(guest_cdrom_spec(), supports_check_mode=True, **GUEST_CDROM_RULES)
    run_module(module, lambda: cdrom_task(module))


if __name__ == "__main__":
    main()
