# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  source_format:
    description:
      - The disk's format. By default it is the one that was recorded when the disk was imported or created, or the one
        that a guest's definition in libvirt says.
      - Needed where nobody says it and the disk looks like something other than V(raw), as a guest can write anything
        to a raw disk.
    type: str
    choices: [raw, qcow2, iso]
  live:
    description: Whether the disk of a running guest may be exported. V(false) asks for the guest to be shut down.
    type: bool
    default: true
  quiesce:
    description:
      - Whether a running guest's file systems are frozen at the moment that the export is of. V(auto) does so where the
        guest has an agent, V(always) fails where it has none, V(never) leaves the guest alone.
    type: str
    choices: [auto, always, never]
    default: auto
  scratch_dir:
    description:
      - Folder, that QEMU can reach, for what a running guest overwrites while its disk is read. By default the one that
        the disk's file is in, and C(/var/lib/libvirt/images) for a device.
      - It needs room for a tenth of the data on the disks before anything is read, and more for a guest that writes
        much. If it is full all the same, QEMU has the guest's own writes fail, or pauses the guest.
    type: path
  compat:
    description: Version of a qcow2, V(0.10) for version 2, which the oldest of QEMUs understand.
    type: str
    choices: ["0.10", "1.1"]
    default: "1.1"
  cluster_size:
    description: Size of a qcow2's clusters.
    type: str
    default: 64KiB
  compress:
    description:
      - Compresses the clusters of a qcow2, in this way. V(zstd) needs libzstd, which comes with QEMU.
      - A V(zstd) one is opened by QEMU from 5.1 on, where that is built with it; Debian 11's is not. V(zlib) is
        understood by all.
      - The compressed bytes, and nothing else, are kept in O(spool_dir) until their number is known. Where they do not
        fit, the disk is read and compressed a second time instead, which must bring the same.
    type: str
    choices: [zlib, zstd]
  spool_dir:
    description: Folder for compressed bytes, C(/var/tmp) by default. Nothing is kept there if its space is too small.
    type: path
  stores:
    description:
      - Ids of the stores of Glance that hold the image, as M(imageferry.glance.glance_provider_info) lists them. By
        default the one that Glance chooses.
      - The first gets the bytes, and Glance copies them to the others before the image is shown. An image that holds
        the content already is copied to those that it is missing from. Most clouds allow administrators only to copy.
    type: list
    elements: str
  reread:
    description:
      - Whether to read a disk also when its files have not been written to since their content was last seen, by what
        the file system says.
    type: bool
    default: false
  lock_timeout:
    description: Seconds to wait for an import to the same volume before failing.
    type: int
    default: 60
  host_interface:
    description:
      - Which endpoint of the catalogue the hosts push to, while the controller uses O(interface). For hosts that sit in
        the cloud's internal network. The same as O(interface) by default.
    type: str
    choices: [admin, internal, public]
"""
