# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where an import puts what cannot be written to its volume at once, and what those that were given up have left."""

from __future__ import annotations

import contextlib
import os
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import VolumeInvalid
from ansible_collections.imageferry.glance.plugins.module_utils._volume.file import FileVolume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.interface import Volume

_COPY = ".imageferry-source"
_BIG_STAGING = "/var/tmp"  # noqa: S108 - file-hierarchy(7): for large files that need not last


def staging_folder(volume: Volume, asked: str | None) -> str:
    """The folder: beside a file, as there is room for it, unless another one is asked for."""
    return asked or (_BIG_STAGING if volume.is_block else os.path.dirname(volume.path))


def copy_path(volume: Volume, folder: str) -> str:
    """The path of the file whose partial one is the copy that an image is converted from."""
    name = "-".join(volume.label.strip("/").split("/")[-2 if volume.is_block else -1 :])
    return os.path.join(folder, name + _COPY)


def name_of_volume(name: str) -> str:
    """What a file in a folder of volumes is called, or is to be, when an import to it has come to its end.

    :param name: of a volume, of its partial file, or of that of the copy that it is to be converted from.
    """
    whole = FileVolume.name_of_partial(name)
    return name if whole is None else whole[: -len(_COPY)] if whole.endswith(_COPY) else whole


def has_begun(volume: FileVolume) -> bool:
    """Whether an interrupted import has left something to go on with, beside the file or as the file's partial one."""
    if volume.has_partial():
        return True
    with contextlib.suppress(VolumeInvalid), FileVolume(copy_path(volume, staging_folder(volume, None))) as copy:
        return copy.has_partial()
    return False  # its name would be too long


@contextlib.contextmanager
def left_behind(volume: Volume) -> t.Iterator[list[FileVolume]]:
    """The files of which imports to C(volume) that were given up have left partial ones, in folders that are known.

    :raises VolumeInUse: an import is going on.
    """
    paths = [copy_path(volume, staging_folder(volume, None)), *([] if volume.is_block else [volume.path])]
    with contextlib.ExitStack() as opened:
        found = []
        for path in paths:
            with contextlib.suppress(VolumeInvalid, FileNotFoundError):  # no import can have been there, or it ends
                file = opened.enter_context(FileVolume(path))
                if file.holds_given_up():
                    found.append(file)
        yield found
