#!/usr/bin/python
# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Imports an image to a file on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: glance_image_import
short_description: Bring an image from Glance, or any HTTP server, to a volume on a host
version_added: 0.1.0
description:
  - The controller finds the image in Glance and judges its header; the host pulls the bytes itself, in one pass and
    constant memory, verifies them, and only then calls the volume whole.
  - The volume is a file, an LVM logical volume, a block device, or in a libvirt pool. A logical volume is created with
    the size that the image needs, and extended when it is there and too small.
  - The host needs no OpenStack library, and never sees a password.
  - With O(url) instead of O(image) the host reads from any HTTP or HTTPS server, and no OpenStack is involved.
  - Zeros become holes, on block devices they are zeroed the fast way that the device knows, to its very end. Where the
    image came from, and what Glance knows of it, is kept with the volume (as an extended attribute or hidden file, as
    LVM tags), so that a second run changes nothing, even after a guest has written to the disk.
  - An import that was interrupted, by the network, a time-out, or the end of its process or its host, leaves a hidden
    partial file beside O(path), or a logical volume that is tagged as unfinished; the next run goes on with it, after
    seeing that it is the same image, and verifies the whole. Without a hash, on a file system without extended
    attributes, and when the image is converted or decompressed on its way, it starts over.
  - A qcow2 becomes a raw disk on its way, without a copy in between; other conversions receive a verified copy first,
    see O(staging_dir), and leave the rest to qemu-img.
  - A volume is at least as large as the image's C(min_disk) says.
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
    description:
      - Address of an image on an HTTP or HTTPS server, read by the host itself.
      - O(ca_cert), O(client_cert) and O(client_key) then name files on the host.
      - The host's environment variables C(http_proxy), C(https_proxy) and C(no_proxy) are honoured, always.
    type: str
  host_interface:
    description:
      - Which endpoint of the catalogue the hosts fetch from, while the controller uses O(interface). For hosts that sit
        in the cloud's internal network. The same as O(interface) by default.
    type: str
    choices: [admin, internal, public]
  headers:
    description:
      - Request headers to send to O(url). They are never sent to another host, and their values are never shown.
    type: dict
  checksum:
    description:
      - What the bytes at O(url) must hash to, as C(algorithm:digest).
      - The digest may also be the address of a list such as C(SHA512SUMS).
      - A volume that was imported from O(url) with no hash, or one of another algorithm, is the image only if its
        content hashes to this. What was converted or decompressed cannot be told so, and is something else.
    type: str
  source_format:
    description: Disk format of the image at O(url). It is never guessed; O(format) is used when it is not given.
    type: str
    choices: [raw, qcow2, iso, vmdk, vhd, vhdx, vdi]
  decompress:
    description:
      - How the image is compressed as a whole, as many are that web servers offer; V(auto) tells by its first bytes.
      - The hash is that of the compressed bytes. C(.zst) needs libzstd on the host, which dpkg and rpm bring along.
    type: str
    choices: [none, auto, gzip, xz, zstd]
    default: none
  format:
    description:
      - Disk format of the volume. V(keep) is the image's own, V(raw) and V(qcow2) convert any other.
      - Images in V(vmdk), V(vhd), V(vhdx) and V(vdi) have to be converted.
    type: str
    choices: [keep, raw, qcow2, iso]
    default: keep
  size:
    description:
      - The least virtual size of the volume, in bytes or with a unit such as V(20GiB). By default, and at least, the
        image's own. It is rounded up to whole sectors of 512 bytes. A volume that is there and smaller is grown; none
        is ever shrunk.
    type: str
  headroom:
    description:
      - The room that a qcow2 on a block device gets beyond what it takes up now, in bytes or with a unit, or as a
        percentage of its virtual size. V(full) for as much as it can ever take up.
      - When its disk is grown later, it gets as much again beyond what it takes up by then; under a running guest,
        which alone knows how much that is, beyond what the device has.
    type: str
    default: full
  preallocation:
    description:
      - Storage for a raw file's zeros, in qemu's words. V(off) leaves holes, V(falloc) reserves it, V(full) writes it.
      - For a qcow2 it applies only where one is made by conversion.
    type: str
    choices: ["off", falloc, full]
    default: "off"
  compat:
    description: Version of a qcow2, C(0.10) for version 2. The image is written anew where this is given.
    type: str
    choices: ["0.10", "1.1"]
  cluster_size:
    description: Size of a qcow2's clusters, such as V(64KiB). The image is written anew where this is given.
    type: str
  compress:
    description:
      - Compresses the clusters of a qcow2, in this way. The image is written anew where this is given.
      - There is no V(zstd) with O(compat=0.10).
    type: str
    choices: [zlib, zstd]
  staging_dir:
    description:
      - Folder for what cannot be written to the volume at once. By default it is the volume's own for files, and
        C(/var/tmp) for block devices.
      - It holds the whole image while it is converted (not from qcow2 to raw); its space is checked first then.
      - It also holds those parts of a qcow2 that becomes raw which come before its tables say where they belong. That
        is hardly anything of one that qemu-img has written, and nobody knows before how much.
    type: path
  overwrite:
    description:
      - What to do when the volume holds something else. V(never) fails, V(imported) replaces another image that was
        imported there and fails at anything else, V(different) replaces whatever it is, V(always) imports again
        whatever is there.
      - A new file takes the old one's place only when it is whole and verified. A block device is written in place,
        after all that can be checked before was checked. A volume in use is never replaced.
    type: str
    choices: [never, imported, different, always]
    default: never
  allow_unverified:
    description:
      - Carry an image that has no hash, or only an md5 of Glance's, as releases before Rocky left them. Without it such
        an image is an error, as others can be made to have the same md5. The md5 is verified all the same; one in
        O(checksum) is the user's choice, and needs no more.
      - A hash of an algorithm that the host does not know then counts as none.
    type: bool
    default: false
  max_virtual_size:
    description: Largest disk that is accepted, in bytes or with a unit such as V(500GiB).
    type: str
    default: 8TiB
  lock_timeout:
    description: Seconds to wait for another import to the same volume before failing.
    type: int
    default: 60
author:
  - ImageFerry contributors (@imageferry)
extends_documentation_fragment:
  - imageferry.glance._cloud
  - imageferry.glance._volume
  - imageferry.glance._volume.new
  - imageferry.glance._transfer
  - imageferry.glance._transfer.download
  - imageferry.glance._controller
  - imageferry.glance._controller.watched
  - imageferry.glance._controller.import
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

- name: Give each web server a logical volume with the disk
  imageferry.glance.glance_image_import:
    cloud: prod
    image: debian-12
    vg: vg0
    lv: "{{ inventory_hostname }}"
    format: raw
    size: 20GiB

- name: Put an appliance that came as a VMDK into a libvirt pool
  imageferry.glance.glance_image_import:
    cloud: prod
    image: appliance
    pool: default
    volume: appliance.qcow2
    format: qcow2

- name: Write a compressed image to a disk
  imageferry.glance.glance_image_import:
    url: https://images.example.com/appliance.raw.xz
    checksum: sha256:https://images.example.com/SHA256SUMS
    source_format: raw
    decompress: xz
    device: /dev/disk/by-id/wwn-0x5000c500a1b2c3d4

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
candidates:
  description: The images that have the name, each with its C(id), C(name), C(created_at), C(size) and C(status).
  returned: when there are several, and one was meant
  type: list
  elements: dict
clones:
  description: The clones that stand on the disk, files by their path, logical volumes as C(vg/lv).
  returned: when it fails because of them
  type: list
  elements: str
volume:
  description:
    - The volume, C(type), C(path), C(format), and C(vg) and C(lv) or C(pool) and C(volume); when it exists C(size),
      C(allocated), C(virtual_size) in bytes, and C(provenance), the image that it holds with Glance's C(metadata).
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
    staged_bytes:
      description: Bytes that were kept in O(staging_dir) meanwhile.
      type: int
    connections:
      description: The most connections that were used at the same time.
      type: int
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.imageferry.glance.plugins.module_utils._arguments import IMPORT_RULES, import_spec
from ansible_collections.imageferry.glance.plugins.module_utils._import.task import import_task
from ansible_collections.imageferry.glance.plugins.module_utils._module import run_module


def main() -> None:
    module = AnsibleModule(import_spec(), supports_check_mode=True, add_file_common_args=True, **IMPORT_RULES)
    run_module(module, lambda: import_task(module))


if __name__ == "__main__":
    main()
