# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in check_mode and return changed status prediction without modifying target.
  diff_mode:
    description: Will return details on what has changed, when in diff mode.
  idempotent:
    description: When run twice in a row with the same arguments, the second invocation indicates no change.
  async:
    description: Supports being used with the C(async) keyword.
"""

    # For the modules that reach a cloud.
    CLOUD = r"""
options: {}
attributes:
  action_group:
    description: Use C(group/imageferry.glance.glance) in C(module_defaults) to set defaults for this module.
    support: full
    membership:
      - imageferry.glance.glance
"""

    # For the modules that look after volumes: a group of their own, as they have no option 'cloud'.
    VOLUME = r"""
options: {}
attributes:
  action_group:
    description: Use C(group/imageferry.glance.volume) in C(module_defaults) to set defaults for this module.
    support: full
    membership:
      - imageferry.glance.volume
"""
