#!/usr/bin/python
# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks at a transfer that runs in the background."""

from __future__ import annotations

DOCUMENTATION = r"""
module: transfer_info
short_description: Look at a transfer that runs in the background
version_added: 0.1.0
description:
  - How M(imageferry.glance.glance_image_import), M(imageferry.glance.glance_image_export) and
    M(imageferry.glance.volume_backup) watch a transfer on a host, show its progress, and bring it a new token. There is
    no need to use it in a playbook.
options:
  folder:
    description: Folder on the host through which the transfer and its watcher talk.
    type: path
    required: true
  results_file:
    description: File in which Ansible keeps the background job's result. It is removed once it has been read.
    type: path
    required: true
  wait:
    description: Seconds to wait for the transfer to end or to ask for a token, before telling how far it is.
    type: float
    default: 0
  token:
    description: A new token for a transfer that has asked for one.
    type: str
author:
  - ImageFerry contributors (@imageferry)
extends_documentation_fragment:
  - imageferry.glance._attributes
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
- name: See how far a transfer is
  imageferry.glance.transfer_info:
    folder: ~/.ansible_async/imageferry-0123456789abcdef
    results_file: ~/.ansible_async/j446321458137.9122
"""

RETURN = r"""
progress:
  description: How far the transfer is; null when none runs.
  returned: success
  type: dict
  contains:
    position:
      description: Bytes that have arrived.
      type: int
    size:
      description: Bytes that there are; null while that is unknown.
      type: int
    converted:
      description: Percent that are converted of what has arrived; null before all of it has.
      type: float
    wants_token:
      description: Whether the transfer waits for a new token.
      type: bool
result:
  description: What the background job returned; null while it runs.
  returned: success
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.imageferry.glance.plugins.module_utils._arguments import WATCH_SPEC
from ansible_collections.imageferry.glance.plugins.module_utils._module import run_module
from ansible_collections.imageferry.glance.plugins.module_utils._watch_task import watch_task


def main() -> None:
    module = AnsibleModule(WATCH_SPEC, supports_check_mode=True)
    run_module(module, lambda: watch_task(module.params))


if __name__ == "__main__":
    main()
