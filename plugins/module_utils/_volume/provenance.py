# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the bytes of a volume came from, kept with the volume.

On a file it is the extended attribute C(user.imageferry); where the file system has none, a hidden JSON file beside
the volume. The sidecar names the inode it speaks of, so that it says nothing about a file put there by others; while a
file is replaced it speaks of both, as nobody knows which one a power cut leaves there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import json
import os
import re
import typing as t

XATTR = "user.imageferry"
IMAGE_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_MAX_SIDECAR = 1 << 20
_NO_XATTR = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSPC, errno.E2BIG, errno.ERANGE}


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Which image a volume holds.

    :param source: the image's id in Glance, or the URL without user information and query.
    :param name: the image's name, if it has one.
    :param hash_algo: the algorithm that the bytes were verified with (Glance's C(os_hash_algo)), None if unverified.
    :param hash_value: its hexadecimal digest.
    :param size: the image's size in bytes, as its server holds it.
    :param format: the volume's disk format.
    :param metadata: what else Glance knows of the image that a guest or a later export needs: tags, properties, …
    :param adopted: whether the volume was there with the image's content before this collection knew of it.
    :param imported_at: when the import was completed, UTC, ISO 8601; None in what is asked for or still being written.
    """

    source: str
    name: str | None
    hash_algo: str | None
    hash_value: str | None
    size: int | None
    format: str
    imported_at: str | None = None
    metadata: dict[str, t.Any] | None = None
    adopted: bool = False

    @property
    def is_image(self) -> bool:
        """Whether it came as an image: of a disk that was made here, the source is a word or another volume."""
        return "://" in self.source or IMAGE_ID.fullmatch(self.source) is not None

    def is_same_image(self, wanted: Provenance) -> bool:
        """Whether both speak of the same bytes: by hash where they can be compared, else by source.

        Glance never changes an image's bytes; those at an address may be others than those that a hash was given for.
        """
        if self.hash_value and self.hash_algo == wanted.hash_algo:
            return self.hash_value == wanted.hash_value
        return self.source == wanted.source and not self.is_doubtful(wanted)

    def is_doubtful(self, wanted: Provenance) -> bool:
        """Whether it is of the same address, but of no hash that could be compared with that of C(wanted)."""
        is_comparable = not wanted.hash_value or (self.hash_value and self.hash_algo == wanted.hash_algo)
        return self.source == wanted.source and not is_comparable and not IMAGE_ID.fullmatch(self.source)

    def is_same_download(self, other: Provenance) -> bool:
        """Whether the beginning of the one is the beginning of the other: the same bytes of the same origin."""
        return self._download() == other._download()

    def _download(self) -> Provenance:
        return dataclasses.replace(self, name=None, metadata=None)

    def to_dict(self) -> dict[str, t.Any]:
        """Plain values, as returned to the user."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: t.Any) -> Provenance | None:
        """What L(to_dict) made; None for what cannot be that."""
        try:
            known = {field.name for field in dataclasses.fields(cls)}
            return cls(**{key: value for key, value in values.items() if key in known})
        except (TypeError, AttributeError):
            return None

    def completed(self) -> Provenance:
        """The same, of an import that is completed now."""
        now = datetime.datetime.now(datetime.timezone.utc)
        return dataclasses.replace(self, imported_at=now.strftime("%Y-%m-%dT%H:%M:%SZ"))


def read_provenance(fd: int, folder: int, name: str) -> Provenance | None:
    """The provenance of the open file C(fd), called C(name) in C(folder); None if it has none."""
    try:
        data = os.getxattr(fd, XATTR)
    except OSError as err:
        if err.errno not in (errno.ENODATA, *_NO_XATTR):
            raise
        data = json.dumps(_read_sidecar(folder, name).get(str(os.fstat(fd).st_ino))).encode()
    return _parse(data)


def read_mark(fd: int) -> Provenance | None:
    """What is being written to the open file C(fd); None if that is not known."""
    try:
        return _parse(os.getxattr(fd, XATTR))
    except OSError as err:
        if err.errno not in (errno.ENODATA, *_NO_XATTR):
            raise
        return None


def write_mark(provenance: Provenance, fd: int) -> None:
    """Notes what is being written to the open file C(fd); where that cannot be noted, an import starts over."""
    try:
        os.setxattr(fd, XATTR, _dump(dataclasses.replace(provenance, metadata=None)))
    except OSError as err:
        if err.errno not in _NO_XATTR:
            raise


def write_provenance(provenance: Provenance, fd: int, folder: int, name: str) -> None:
    """Keeps C(provenance) with the open file C(fd), which is or will be called C(name) in C(folder).

    What is known of the file that has this name now stays known, until L(forget_replaced).

    :raises OSError: neither an extended attribute nor a file beside it can be written.
    """
    data = _dump(provenance)
    try:
        os.setxattr(fd, XATTR, data)
    except OSError as err:
        if err.errno not in _NO_XATTR:
            raise
        with contextlib.suppress(OSError):
            os.removexattr(fd, XATTR)  # the mark of when it was being written
        there = _of_named(_read_sidecar(folder, name), folder, name)
        _write_sidecar({**there, str(os.fstat(fd).st_ino): json.loads(data)}, folder, name)


def forget_replaced(folder: int, name: str) -> None:
    """Drops what is kept beside the file C(name) in C(folder) of others that had its name, or were to have it."""
    records = _read_sidecar(folder, name)
    kept = _of_named(records, folder, name)
    if records and not kept:
        forget_provenance(folder, name)
    elif kept != records:
        _write_sidecar(kept, folder, name)


def forget_provenance(folder: int, name: str) -> None:
    """Removes what is kept beside the file C(name) in C(folder), once that is gone."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_sidecar(name), dir_fd=folder)


def drop_provenance(fd: int, folder: int, name: str) -> None:
    """Forgets, durably, which image the open file C(fd), called C(name) in C(folder), holds."""
    try:
        os.removexattr(fd, XATTR)
    except OSError as err:
        if err.errno not in (errno.ENODATA, *_NO_XATTR):
            raise
    forget_provenance(folder, name)
    os.fsync(fd)
    os.fsync(folder)


def _sidecar(name: str) -> str:
    return f".{name}.imageferry.json"


def _dump(provenance: Provenance) -> bytes:
    return json.dumps(provenance.to_dict()).encode()


def _parse(data: bytes) -> Provenance | None:
    try:
        return Provenance.from_dict(json.loads(data))
    except (ValueError, RecursionError):
        return None


def _of_named(records: dict[str, t.Any], folder: int, name: str) -> dict[str, t.Any]:
    """Those of C(records) that speak of the file that is called C(name) now."""
    try:
        inode = str(os.lstat(name, dir_fd=folder).st_ino)
    except FileNotFoundError:
        return {}
    return {inode: records[inode]} if inode in records else {}


def _read_sidecar(folder: int, name: str) -> dict[str, t.Any]:
    """What is kept beside the file C(name), by the inode that it speaks of."""
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        handle = os.open(_sidecar(name), flags, dir_fd=folder)
    except OSError as err:
        if err.errno in (errno.ENOENT, errno.ELOOP, errno.ENAMETOOLONG):
            return {}
        raise
    try:
        records = json.loads(os.read(handle, _MAX_SIDECAR))
        return records if isinstance(records, dict) else {}
    except (IsADirectoryError, ValueError, RecursionError):
        return {}
    finally:
        os.close(handle)


def _write_sidecar(records: dict[str, t.Any], folder: int, name: str) -> None:
    draft = _sidecar(name) + ".new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(draft, dir_fd=folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(draft, flags, 0o600, dir_fd=folder), "w", encoding="utf-8") as file:
        json.dump(records, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(draft, _sidecar(name), src_dir_fd=folder, dst_dir_fd=folder)
