# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which kind of volume the options mean."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import MissingDependency, VolumeInvalid
from ansible_collections.imageferry.glance.plugins.module_utils._volume.device import DeviceVolume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.file import FileVolume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.in_use import sysfs
from ansible_collections.imageferry.glance.plugins.module_utils._volume.interface import Volume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.lvm import LvmVolume, split_mapped_name
from ansible_collections.imageferry.glance.plugins.module_utils._volume.pool import PoolVolume


@contextlib.contextmanager
def open_volume(params: dict[str, t.Any], mode: int = 0o600, preallocation: str = "off") -> t.Iterator[Volume]:
    """The volume that the options of C(volume_spec) name.

    :param mode: the permission bits of a new file.
    :param preallocation: the storage of a new file; see L(FileVolume).
    :raises VolumeInvalid: it is not where a volume can be.
    """
    with _choose(params, mode, preallocation) as volume:
        yield volume


def _choose(params: dict[str, t.Any], mode: int, preallocation: str) -> contextlib.AbstractContextManager[Volume]:
    if params.get("path"):
        return FileVolume(params["path"], mode, preallocation)
    if params.get("device"):
        return _device(params["device"])
    if params.get("pool"):
        return PoolVolume(params["pool"], params["volume"], params.get("thin_pool"), mode, preallocation)
    return LvmVolume(params["vg"], params["lv"], params.get("thin_pool"))


def _device(path: str) -> DeviceVolume | LvmVolume:
    """The device at C(path); a logical volume is one whichever way it is named, so that it holds the same."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return _inactive(path)
    except OSError as err:
        raise VolumeInvalid(f"The device {path} cannot be opened: {err.strerror}.") from err
    if stat.S_ISBLK(found.st_mode) and _mapped(found.st_rdev, "uuid").startswith("LVM-"):
        volume = LvmVolume(*split_mapped_name(_mapped(found.st_rdev, "name")))
        if volume.stat() is None:
            raise VolumeInvalid(f"{path} is an inner part of a logical volume.")
        return volume
    return DeviceVolume(path)


def _inactive(path: str) -> LvmVolume:
    """The logical volume of which C(path) would be the node, were it active."""
    named = re.fullmatch("/dev/([^/]+)/([^/]+)", path)
    if named:
        names = split_mapped_name(named[2]) if named[1] == "mapper" else (named[1], named[2])
        with contextlib.suppress(VolumeInvalid, MissingDependency):
            volume = LvmVolume(*names)
            if volume.stat() is not None:
                return volume
    raise VolumeInvalid(f"There is no device {path}.", "Name one that is there, or create it with 'vg' and 'lv'.")


def _mapped(rdev: int, fact: str) -> str:
    try:
        with open(f"{sysfs(rdev)}/dm/{fact}", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""
