# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is to be done once qemu-img has written a qcow2 to a volume."""

from __future__ import annotations

import os

from ansible_collections.imageferry.glance.plugins.module_utils._errors import DamagedImage
from ansible_collections.imageferry.glance.plugins.module_utils._image import qemu_img
from ansible_collections.imageferry.glance.plugins.module_utils._volume.interface import Staged, Volume


def complete_qcow2(volume: Volume, staged: Staged) -> None:
    """Checks the qcow2 in C(staged), and brings it to the storage; on a device nothing old is to be read behind it.

    :raises DamagedImage: it is none.
    """
    used = qemu_img.check(staged.fd, "qcow2")
    end = used if volume.is_block else os.fstat(staged.fd).st_size
    if not end:
        raise DamagedImage(f"qemu-img has left nothing in {volume.label}.")
    staged.sink.wrote(end)
    staged.sink.finish(end)
