# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The chain of images below a qcow2 overlay, as the headers name them; qemu has no part in reading it."""

from __future__ import annotations

import os
import re
import stat
import struct
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import DamagedImage, UnsafeImage
from ansible_collections.imageferry.glance.plugins.module_utils._image.formats import HEAD_SIZE, detect
from ansible_collections.imageferry.glance.plugins.module_utils._image.qcow2 import (
    HEADER_SIZE,
    MAGIC,
    Qcow2Header,
    read_extensions,
    read_virtual_size,
)

_NAME = struct.Struct(">QI")  # backing_file_offset and backing_file_size of docs/interop/qcow2.rst
_NAME_AT, _HEADER_LENGTH_AT = 8, 100
_BACKING_FORMAT = 0xE2792ACA
_LONGEST_NAME = 1023
_LONGEST_CHAIN = 64
_PROTOCOL = re.compile(r"[^:/]*:")  # qemu's path_has_protocol: a colon before the first slash


class Backing(t.NamedTuple):
    """The image that an overlay is laid over, as the overlay's header names it.

    :param path: absolute where it is a file; the name itself where it is something else, such as C(nbd://…).
    :param format: None where the header does not say it, so that qemu would guess.
    :param is_file: whether the name is that of a file or a device.
    """

    path: str
    format: str | None
    is_file: bool


class Link(t.NamedTuple):
    """One image of a chain; C(exists) and C(virtual_size) in bytes are None where it was not looked at."""

    path: str
    format: str | None
    exists: bool | None
    virtual_size: int | None


def read_backing(head: bytes, folder: str) -> Backing | None:
    """What the qcow2 with these first bytes is laid over; None when it stands for itself.

    :param folder: where the overlay lies; relative names start there.
    :raises DamagedImage: the name is not where the header says.
    """
    offset, length = _NAME.unpack_from(head, _NAME_AT)
    if not offset:
        return None
    name = head[offset : offset + length]
    if not 0 < length <= _LONGEST_NAME or len(name) < length:
        raise DamagedImage("The qcow2's header names a backing file that cannot be read from it.")
    text = os.fsdecode(name)
    if _PROTOCOL.match(text) and not text.startswith("file:"):
        return Backing(text, _backing_format(head), False)
    return Backing(os.path.normpath(os.path.join(folder, text.removeprefix("file:"))), _backing_format(head), True)


def _backing_format(head: bytes) -> str | None:
    version, header_length = int.from_bytes(head[4:8], "big"), int.from_bytes(head[_HEADER_LENGTH_AT:104], "big")
    for kind, start, length in read_extensions(head, header_length if version >= 3 else HEADER_SIZE):
        if kind == _BACKING_FORMAT:
            return head[start : start + length].decode("ascii", "replace")
    return None


def read_chain(head: bytes, path: str, follow: bool) -> list[Link]:
    """The images below the qcow2 at C(path), the nearest first.

    :param head: its first L(HEAD_SIZE) bytes.
    :param follow: whether to open what it names; not when a guest may have written the header.
    """
    links: list[Link] = []
    seen = {os.path.realpath(path)}
    while len(links) < _LONGEST_CHAIN:
        backing = read_backing(head, os.path.dirname(os.path.realpath(path)))
        if backing is None:
            return links
        below = read_head(backing.path) if follow and backing.is_file else None
        links.append(_link(backing, below, follow))
        path = backing.path
        if below is None or backing.format != "qcow2" or not below.startswith(MAGIC) or os.path.realpath(path) in seen:
            return links
        seen.add(os.path.realpath(path))
        head = below
    return links


def _link(backing: Backing, head: bytes | None, followed: bool) -> Link:
    exists = os.path.exists(backing.path) if followed and backing.is_file else None
    size = None
    if head is not None and backing.format == "qcow2" and head.startswith(MAGIC):
        size = read_virtual_size(head)
    elif head is not None and backing.format == "raw":
        size = file_size(backing.path)
    return Link(backing.path, backing.format, exists, size)


def read_head(path: str) -> bytes | None:
    """The first bytes of the file or block device at C(path); None when they cannot be read.

    What is something else is not opened, as that alone has effects: it rewinds a tape, and starts a watchdog.
    """
    try:
        if not _holds_bytes(os.stat(path)):
            return None
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):  # of a name with a null byte
        return None
    try:
        return os.pread(fd, HEAD_SIZE, 0) if _holds_bytes(os.fstat(fd)) else None
    except OSError:
        return None
    finally:
        os.close(fd)


def _holds_bytes(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)


def file_size(path: str) -> int | None:
    """The bytes of the file or block device at C(path); None when it cannot be opened."""
    try:
        with open(path, "rb") as file:
            return file.seek(0, os.SEEK_END)
    except OSError:
        return None


def check_alone(head: bytes, size: int | None) -> Qcow2Header:
    """Judges a qcow2 of this host, which unlike one from outside may lie over other images; these are not opened.

    :raises UnsafeImage, UnsupportedFormat, DamagedImage: see L(Qcow2Header.check).
    """
    header = Qcow2Header.parse(head)
    header._replace(backing_file_offset=0).check(size)
    return header


def check_overlay(head: bytes, path: str, size: int | None) -> tuple[Qcow2Header, list[Link]]:
    """Judges a qcow2 of this host and the images that it lies over.

    :raises UnsafeImage: an image of its chain is missing, is no file, or is in a format that would be guessed.
    :raises UnsupportedFormat, DamagedImage: see L(check_alone).
    """
    header = check_alone(head, size)
    chain = read_chain(head, path, follow=True)
    for link in chain:
        if link.virtual_size is None:  # so it is for all but raw and qcow2 images that can be read
            raise UnsafeImage(
                f"{path} is laid over {link.path}, which is missing, or whose format its header does not say.",
                "Mend the chain with 'qemu-img rebase -u -b BASE -F FORMAT'.",
            )
    if header.backing_file_offset and chain[-1].format == "qcow2" and _goes_on(chain[-1].path):
        raise UnsafeImage(f"The backing chain of {path} does not end.", "Mend it with 'qemu-img rebase'.")
    return header, chain


def _goes_on(path: str) -> bool:
    head = read_head(path) or b""
    return detect(head) == "qcow2" and read_backing(head, os.path.dirname(path)) is not None
