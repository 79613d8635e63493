#!/usr/bin/python
# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Imports an image to a file on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: glance_image_import
short_description: Bring an image from Glance, or any HTTP server, to a file on a host
version_added: 0.1.0
description:
  - The controller finds the image in Glance and judges its header; the host pulls the bytes itself, in one pass and
    constant memory, verifies them, and only then puts the file in place.
  - The host needs no OpenStack library, and never sees a password.
  - With O(url) instead of O(image) the host reads from any HTTP or HTTPS server, and no OpenStack is involved.
  - Zeros become holes. Where the image came from is kept with the file, so that a second run changes nothing, even
    after a guest has written to the disk.
  - An import that was interrupted, by the network, a time-out, or the end of its process or its host, leaves a hidden
    partial file beside O(path); the next run goes on with it, after seeing that it is the same image, and verifies the
    whole. Without a hash, or on a file system without extended attributes, it starts over.
  - Images that could open other files on the host, are not in the format that is said of them, or are damaged, are
    refused before a byte lands, and once more from the bytes that landed.
options:
  image:
    description:
      - Id or name of the image in Glance.
      - A name that several active images have is an error that lists them, unless O(latest=true).
    type: str
  latest:
    description: Take the newest of several active images of the same name.
    type: bool
    default: false
  url:
    description: Address of an image on an HTTP or HTTPS server, read by the host itself.
    type: str
  headers:
    description:
      - Request headers to send to O(url). They are never sent to another host, and their values are never shown.
    type: dict
  checksum:
    description:
      - What the bytes at O(url) must hash to, as C(algorithm:digest).
      - The digest may also be the address of a list such as C(SHA512SUMS).
    type: str
  source_format:
    description: Disk format of the image at O(url). It is never guessed; O(format) is used when it is not given.
    type: str
    choices: [raw, qcow2, iso]
  path:
    description: Absolute path of the file on the host. Its folder has to exist.
    type: path
    required: true
  format:
    description: Disk format of the file. Another one than the image's own is an error.
    type: str
    choices: [keep, raw, qcow2, iso]
    default: keep
  overwrite:
    description:
      - What to do when O(path) holds something else. V(never) fails, V(different) replaces it, V(always) imports
        again whatever is there.
      - The new file takes the old one's place only when it is whole and verified. A file in use is never replaced.
    type: str
    choices: [never, different, always]
    default: never
  allow_unverified:
    description: Carry an image that has no hash at all. Without it such an image is an error.
    type: bool
    default: false
  max_virtual_size:
    description: Largest disk that is accepted, in bytes or with a unit such as V(500GiB).
    type: str
    default: 8TiB
  lock_timeout:
    description: Seconds to wait for another import to the same O(path) before failing.
    type: int
    default: 60
author:
  - ImageFerry contributors (@imageferry)
extends_documentation_fragment:
  - imageferry.glance._cloud
  - imageferry.glance._transfer
  - imageferry.glance._controller
  - imageferry.glance._attributes
  - imageferry.glance._attributes.cloud
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
    details:
      - Ansible then watches the job, so that no progress is shown, and the token is not renewed.
"""

EXAMPLES = r"""
- name: Put the golden image on every host
  imageferry.glance.glance_image_import:
    cloud: prod
    image: debian-12
    path: /var/lib/libvirt/images/debian-12.qcow2
    owner: libvirt-qemu
    mode: "0600"

- name: Import from a web server, verified by its own list of hashes
  imageferry.glance.glance_image_import:
    url: https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-genericcloud-amd64.qcow2
    checksum: sha512:https://cloud.debian.org/images/cloud/bookworm/latest/SHA512SUMS
    source_format: qcow2
    path: /var/lib/libvirt/images/debian-12.qcow2
"""

RETURN = r"""
msg:
  description: What was done, and why.
  returned: always
  type: str
  sample: "Imported: /var/lib/libvirt/images/debian-12.qcow2 did not exist."
error:
  description: Stable code of the error's cause.
  returned: failure
  type: str
  sample: checksum_mismatch
volume:
  description:
    - The file, C(type), C(path), C(format); when it exists C(size), C(allocated), C(virtual_size) in bytes, and
      C(provenance), the image that it holds.
  returned: success
  type: dict
image:
  description: The image, with Glance's own fields, or C(url) alone.
  returned: success
  type: dict
transfer:
  description:
    - What was moved.
  returned: when bytes were moved
  type: dict
  contains:
    bytes:
      description: Bytes that came over the network in this run.
      type: int
    resumed_from:
      description: Bytes that an earlier run had brought already.
      type: int
    zero_bytes:
      description: Bytes of them that are zeros, and became holes.
      type: int
    seconds:
      description: Seconds that it took.
      type: float
    rate:
      description: Bytes a second.
      type: int
    reconnects:
      description: How often a connection was made again.
      type: int
    restarts:
      description: How often it began again from the first byte.
      type: int
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.imageferry.glance.plugins.module_utils._arguments import IMPORT_RULES, import_spec
from ansible_collections.imageferry.glance.plugins.module_utils._import_task import import_task
from ansible_collections.imageferry.glance.plugins.module_utils._module import run_module


def main() -> None:
    module = AnsibleModule(import_spec(), supports_check_mode=True, add_file_common_args=True, **IMPORT_RULES)
    run_module(module, lambda: import_task(module))


if __name__ == "__main__":
    main()
