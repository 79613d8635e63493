# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A qcow2 on a volume: the room that it gets on a block device, and what is left once qemu-img has written it."""

from __future__ import annotations

import os

from ansible_collections.imageferry.glance.plugins.module_utils._errors import DamagedImage, UnsupportedFormat
from ansible_collections.imageferry.glance.plugins.module_utils._image import qemu_img
from ansible_collections.imageferry.glance.plugins.module_utils._image.qcow2 import Qcow2Header
from ansible_collections.imageferry.glance.plugins.module_utils._sizes import parse_share
from ansible_collections.imageferry.glance.plugins.module_utils._volume.interface import Staged, Volume

FULL = "full"


def check_headroom(headroom: str) -> None:
    """
    :raises InvalidOption: C(headroom) is neither V(full) nor a size nor a percentage.
    """
    if headroom != FULL:
        parse_share(headroom, 0, "headroom")


def size_on_block(headroom: str, used: int, fully_allocated: int, virtual_size: int) -> int:
    """The bytes that a qcow2 gets on a block device.

    :param headroom: what it can grow by: bytes, a share of its virtual size, or V(full) for all that it ever can.
    :param used: the bytes that it has now.
    :param fully_allocated: the bytes that it has once all of its disk was written to.
    :raises InvalidOption: C(headroom) is neither V(full) nor a size nor a percentage.
    """
    most = max(used, fully_allocated)
    return most if headroom == FULL else min(most, used + parse_share(headroom, virtual_size, "headroom"))


def check_can_grow(header: Qcow2Header, label: str) -> None:
    """
    :raises UnsupportedFormat: qemu gives it no larger disk.
    """
    if header.version == 2 and header.snapshots:
        raise UnsupportedFormat(
            f"{label} is a qcow2 of version 2 with internal snapshots, which qemu does not grow.",
            "Remove them, or convert it.",
        )


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
