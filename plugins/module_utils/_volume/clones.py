# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The clones that stand on a file: qcow2 overlays whose header names it as what they are laid over.

A file keeps the paths of its clones in other folders in the extended attribute C(user.imageferry.clones). Those that
are gone, or have become something else, no longer count; overlays in the same folder are found without a note. A raw
disk is no overlay, whatever header its guest has written to it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import FerryError, HasClones, NoSpace
from ansible_collections.imageferry.glance.plugins.module_utils._image.backing import read_backing, read_head
from ansible_collections.imageferry.glance.plugins.module_utils._image.qcow2 import HEADER_SIZE, MAGIC
from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import read_provenance

XATTR = "user.imageferry.clones"
_REMEDY_OF_FILES = "Remove these clones first, or have each stand for itself with 'qemu-img rebase -b \"\"'."
_UNREADABLE = {errno.ENODATA, errno.ENOTSUP, errno.EOPNOTSUPP}
_FULL = {errno.ENOSPC, errno.E2BIG, errno.ERANGE}


def check_no_clones(label: str, clones: list[str]) -> None:
    """
    :param clones: files by their path, logical volumes as C(vg/lv).
    :raises HasClones: there are some.
    """
    if clones:
        are_files = clones[0].startswith("/")
        raise HasClones(
            f"{label} is what {', '.join(clones)} stands on.", _REMEDY_OF_FILES if are_files else None, clones=clones
        )


def find_clones(path: str) -> list[str]:
    """The paths of the overlays that stand on the file at C(path), sorted."""
    try:
        base = os.stat(path)
    except OSError:
        return []
    candidates = {*_noted(path), *_neighbours(path)}
    return sorted(other for other in candidates if _stands_on(other, base))


def note_clone(path: str, clone: str) -> None:
    """Notes that the file at C(clone) will stand on the one at C(path).

    :raises NoSpace: the file system has no room for the note.
    :raises OSError: it cannot be noted otherwise; only where the file system has extended attributes.
    """
    folder = _folder(path)
    if _folder(clone) == folder:
        return
    noted = sorted(other for other in {*find_clones(path), clone} if _folder(other) != folder)
    try:
        os.setxattr(path, XATTR, json.dumps(noted).encode())
    except OSError as err:
        if err.errno in _FULL:
            raise NoSpace(
                f"{path} can note no more clones in other folders than the {len(noted) - 1} that it has.",
                "Make the clone in the folder of what it stands on, or import the image once more for it.",
            ) from err
        if err.errno not in _UNREADABLE:
            raise


def _folder(path: str) -> str:
    return os.path.dirname(os.path.realpath(path))


def _noted(path: str) -> list[str]:
    try:
        noted = json.loads(os.getxattr(path, XATTR))
    except (OSError, ValueError):
        return []
    return [clone for clone in noted if isinstance(clone, str)] if isinstance(noted, list) else []


def _neighbours(path: str) -> t.Iterator[str]:
    with contextlib.suppress(OSError), os.scandir(_folder(path)) as entries:
        yield from (entry.path for entry in entries if entry.is_file(follow_symlinks=False))


def _stands_on(clone: str, base: os.stat_result) -> bool:
    head = read_head(clone) or b""
    if not head.startswith(MAGIC) or len(head) < HEADER_SIZE:
        return False
    try:
        backing = read_backing(head, _folder(clone))
        named = backing is not None and backing.is_file and os.path.samestat(os.stat(backing.path), base)
        return named and not _is_known_as_raw(clone)
    except (OSError, ValueError, FerryError):
        return False


def _is_known_as_raw(path: str) -> bool:
    folder, name = os.path.split(path)
    with open(path, "rb") as file:
        folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            held = read_provenance(file.fileno(), folder_fd, name)
        finally:
            os.close(folder_fd)
    return held is not None and held.format == "raw"
