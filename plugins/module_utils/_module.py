# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one place where this collection meets AnsibleModule: errors become C(fail_json), results C(exit_json)."""

from __future__ import annotations

import os
import traceback
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.imageferry.glance.plugins.module_utils._errors import FerryError

_DEFAULT_MODE, _PRIVATE_MODE = 0o666, 0o600


def run_module(module: AnsibleModule, work: t.Callable[[], dict[str, t.Any]]) -> None:
    """Does C(work) and returns its result to Ansible, or its error with a stable C(error) code."""
    try:
        result = work()
    except FerryError as err:
        module.fail_json(**err.result())
    except Exception as err:  # anything else is a fault of ours, and still needs its code
        failure = FerryError(f"{type(err).__name__}: {err}.")
        module.fail_json(exception=traceback.format_exc(), **failure.result())
    else:
        module.exit_json(**result)


def mode_of_new_file(module: AnsibleModule) -> int:
    """The permission bits that a file is made with.

    A C(mode) that is asked for is set at the end, so that nobody reads the file before who may not read it after.
    """
    umask = os.umask(0)
    os.umask(umask)
    return _PRIVATE_MODE if module.params["mode"] is not None else _DEFAULT_MODE & ~umask
