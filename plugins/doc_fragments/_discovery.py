# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  image:
    description: Id or name of an image.
    type: str
  name:
    description: Name of the images, or a pattern with C(*), C(?) and C([...]) as in a shell.
    type: str
  status:
    description: Statuses to include; an empty list for all.
    type: list
    elements: str
    default: [active]
  disk_format:
    description: Disk formats to include, those that this collection carries by default; an empty list for all.
    type: list
    elements: str
    default: [raw, qcow2, iso, vmdk, vhd, vhdx, vdi]
  tags:
    description: Tags that the images all have.
    type: list
    elements: str
    default: []
  visibility:
    description: Visibility of the images; community images are only found when asked for.
    type: str
    choices: [all, public, private, shared, community]
  owner:
    description: Id of the project that owns the images.
    type: str
  properties:
    description: Any other properties and the values that they have.
    type: dict
    default: {}
  size_min:
    description: Smallest size, in bytes or with a unit such as V(2GiB).
    type: str
  size_max:
    description: Largest size, in bytes or with a unit.
    type: str
  created_after:
    description: Earliest creation, UTC, as V(2026-01-31T00:00:00Z).
    type: str
  created_before:
    description: Latest creation, UTC, as V(2026-01-31T00:00:00Z).
    type: str
  updated_after:
    description: Earliest last change, UTC, as V(2026-01-31T00:00:00Z).
    type: str
  updated_before:
    description: Latest last change, UTC, as V(2026-01-31T00:00:00Z).
    type: str
  sort:
    description: Glance's sort keys and directions.
    type: list
    elements: str
    default: [name:asc, created_at:desc]
  latest:
    description: Return only the newest of the images found.
    type: bool
    default: false
  inspect:
    description:
      - When to read an image's header, a ranged request for each image. V(needed) is when Glance does not know the
        virtual size; only a header that was read gives a verdict on the image's safety.
    type: str
    choices: [never, needed, always]
    default: needed
  max_virtual_size:
    description: Disks larger than this are judged unsafe.
    type: str
    default: 8TiB
"""
