# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running qemu-img on files that have passed the check of their header, with its resources limited."""

from __future__ import annotations

import resource
import shutil
import subprocess

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    DamagedImage,
    MissingDependency,
    UnsafeImage,
)
from ansible_collections.imageferry.glance.plugins.module_utils._image.qcow2 import check_tables

_MEMORY = 1024**3
_CPU_SECONDS = 120
_CHECK_CANNOT = 63  # qemu-img(1): checks are not supported by the image format


def require_qemu_img() -> str:
    """The path of qemu-img.

    :raises MissingDependency: it is not installed.
    """
    found = shutil.which("qemu-img")
    if found is None:
        raise MissingDependency(
            "qemu-img is not installed on this host, and a qcow2 cannot be checked without it.",
            "Install qemu-utils (Debian, Ubuntu) or qemu-img (Fedora, RHEL, SUSE).",
        )
    return found


def check(fd: int, image_format: str) -> None:
    """Lets C(qemu-img check) look at the structure of the image in the open file C(fd).

    :raises DamagedImage: it finds errors; leaked clusters are none.
    :raises UnsafeImage: it needed more time than a sound image makes it need.
    :raises MissingDependency: there is no qemu-img.
    """
    if image_format == "qcow2":
        check_tables(fd)
    command = [require_qemu_img(), "check", "-q", "-f", image_format, f"/proc/self/fd/{fd}"]
    run = subprocess.run(  # pylint: disable=ansible-bad-function
        command, pass_fds=(fd,), preexec_fn=_limit, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if run.returncode < 0:
        raise UnsafeImage(
            f"qemu-img check of the {image_format} was ended by signal {-run.returncode}; it has {_CPU_SECONDS} s of "
            "processor time."
        )
    if run.returncode not in (0, 3, _CHECK_CANNOT):
        said = run.stderr.decode(errors="replace").strip().splitlines() or ["nothing more"]
        raise DamagedImage(f"qemu-img check finds the {image_format} damaged ({said[-1].split(': ')[-1]}).")


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
