#!/usr/bin/python
# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: glance_image_facts
short_description: Find images in Glance, as facts
version_added: 0.1.0
description:
  - Finds images, by default active ones in formats that this collection carries, however many there are.
  - Runs on the controller whatever host the play is on, and asks once for all hosts of a play.
author:
  - ImageFerry contributors (@imageferry)
extends_documentation_fragment:
  - imageferry.glance._cloud
  - imageferry.glance._discovery
  - imageferry.glance._attributes
  - imageferry.glance._attributes.cloud
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
  async:
    support: none
"""

EXAMPLES = r"""
- name: Find the newest Debian image
  imageferry.glance.glance_image_facts:
    cloud: prod
    name: debian-12*
    latest: true
    inspect: always
"""

RETURN = r"""
error:
  description: Stable code of the error's cause.
  returned: failure
  type: str
  sample: auth_failed
ansible_facts:
  description:
    - The images, as C(glance_images), each with Glance's own fields unchanged, and
      C(virtual_size) in bytes with C(virtual_size_source) (V(glance) or V(header)), C(supported), and C(safety), a
      C(verdict) (V(safe), V(unsafe), V(unknown)) and its C(reason).
  returned: success
  type: dict
"""
