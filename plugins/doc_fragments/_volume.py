# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  path:
    description:
      - Absolute path of a file on the host. Its folder has to exist.
      - Exactly one of O(path), O(device), O(vg) with O(lv), and O(pool) with O(volume) says where the disk is.
    type: path
  device:
    description:
      - Absolute path of a block device on the host, which has to be there; best one in C(/dev/disk/by-id), that is the
        same after a restart.
      - The path of a logical volume means the same as O(vg) and O(lv).
    type: path
  vg:
    description: Name of an LVM volume group on the host.
    type: str
  lv:
    description: Name of a logical volume in O(vg).
    type: str
  pool:
    description: Name of a storage pool of libvirt on the host, of its system instance. It has to be active.
    type: str
  volume:
    description: Name of a volume in O(pool), as C(virsh vol-list) shows it.
    type: str
"""

    # For modules that also make one.
    NEW = r"""
options:
  thin_pool:
    description:
      - Name of the thin pool in the same volume group in which a new logical volume is made. One that is there stays
        what it is.
    type: str
"""
