# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A volume that is a file.

Bytes are received into a partial file beside the final one, which appears whole or not at all. All names are looked
up in the folder that was opened first, without following links, so nobody can swap what is written to.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
import time
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    FerryError,
    NoSpace,
    VolumeExists,
    VolumeInUse,
    VolumeInvalid,
)
from ansible_collections.imageferry.glance.plugins.module_utils._volume.clones import check_no_clones, find_clones
from ansible_collections.imageferry.glance.plugins.module_utils._volume.holes import data_runs
from ansible_collections.imageferry.glance.plugins.module_utils._volume.in_use import find_user, taken
from ansible_collections.imageferry.glance.plugins.module_utils._volume.interface import VolumeSize
from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import (
    Provenance,
    drop_provenance,
    forget_provenance,
    forget_replaced,
    read_mark,
    read_provenance,
    write_mark,
    write_provenance,
)
from ansible_collections.imageferry.glance.plugins.module_utils._volume.sparse import BLOCK, SparseWriter, write_zeros
from ansible_collections.imageferry.glance.plugins.module_utils._volume.storage import storage_errors

_LOCK_POLL = 0.2
_PARTIAL = ".imageferry-partial"


class FileVolume:
    """The file at C(path), there or not yet.

    :param path: absolute path of the file; the folder that holds it has to exist.
    :param mode: the permission bits of a new file; one that replaces another has the other's, and its owner.
    :param preallocation: the storage that a new file has from the beginning, in qemu's words: V(off) for none where
        there are zeros, V(falloc) for all of it, V(full) for all of it written.
    :raises VolumeInvalid: there is no such folder, or C(path) is not the path of a file.
    """

    is_block = False

    def __init__(self, path: str, mode: int = 0o600, preallocation: str = "off") -> None:
        parent, self.name = os.path.split(path)
        if not os.path.isabs(path) or not self.name:
            raise VolumeInvalid(f"'path: {path}' is not the absolute path of a file.", "Give the file's whole path.")
        self.path = self.label = path
        self.mode = mode
        self.preallocation = preallocation
        self.partial = f".{self.name}{_PARTIAL}"
        try:
            self._folder = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as err:
            raise VolumeInvalid(
                f"The folder {parent} cannot be opened: {err.strerror}.", "Create it, or choose another place."
            ) from err

    def __enter__(self) -> FileVolume:
        return self

    def __exit__(self, *_exc: object) -> None:
        os.close(self._folder)

    def stat(self) -> VolumeSize | None:
        """What is at the path; None when nothing is.

        :raises VolumeInvalid: something other than a regular file is.
        """
        found = self._file()
        return VolumeSize(found.st_size, found.st_blocks * 512) if found else None

    def _file(self) -> os.stat_result | None:
        found = self._lstat(self.name)
        if found is not None and not stat.S_ISREG(found.st_mode):
            raise VolumeInvalid(f"{self.path} is {_kind(found.st_mode)}, not a file.")
        return found

    def describe(self) -> dict[str, t.Any]:
        """Its address in the words of the options."""
        return {"type": "file", "path": self.path}

    def provenance(self) -> Provenance | None:
        """Which image the file holds, as far as is known."""
        with self.open() as fd:
            held = read_provenance(fd, self._folder, self.name)
        return held if held and held.imported_at else None  # a partial file that somebody renamed is none

    def is_unfinished(self) -> bool:
        """Never: what is being written has another name."""
        return False

    def begun(self) -> Provenance | None:
        """Never anything, see L(is_unfinished)."""
        return None

    def has_partial(self) -> bool:
        """Whether an interrupted import has left something to go on with."""
        found = self._lstat(self.partial)
        return found is not None and found.st_size > 0

    def holds_given_up(self) -> bool:
        """Whether an import that was given up has left a partial file.

        :raises VolumeInUse: one is going on.
        """
        found = self._lstat(self.partial)
        if found is None or not stat.S_ISREG(found.st_mode) or not self._is_own(found):
            return False
        with storage_errors(f"look at {self.partial} beside {self.path}"):
            fd = os.open(self.partial, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._folder)
        try:
            if not self._lock(fd):
                raise taken(self.path)
        finally:
            os.close(fd)
        return True

    def remove_given_up(self, wipe: bool) -> None:
        """Removes what an import that was given up has left, if it has.

        :param wipe: whether zeros are written over it before.
        :raises VolumeInUse: another import is going on.
        """
        fd = self._lock_partial(time.monotonic())
        try:
            with storage_errors(f"remove {self.partial} beside {self.path}"):
                if wipe:
                    _zero(fd)
                os.unlink(self.partial, dir_fd=self._folder)
        finally:
            os.close(fd)

    @staticmethod
    def name_of_partial(name: str) -> str | None:
        """The name of the file that the partial file called C(name) is to become; None when it is no partial file."""
        return name[1 : -len(_PARTIAL)] if name.startswith(".") and name.endswith(_PARTIAL) else None

    def is_blank(self) -> bool:
        """Never: a file that somebody made is something, whatever it holds."""
        return False

    def check_writable(self) -> None:
        """Nothing: a file is replaced by another, or grown, by whoever may."""

    @contextlib.contextmanager
    def open(self) -> t.Iterator[int]:
        """The file that is there, open for reading."""
        with storage_errors(f"read {self.path}"):
            fd = os.open(self.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._folder)
        try:
            yield fd
        finally:
            os.close(fd)

    def activate(self) -> None:
        """Nothing: a file is always there to be opened."""

    def adopt(self, provenance: Provenance) -> None:
        """Records that the file that is there holds an image."""
        with self.open() as fd, storage_errors(f"record where {self.path} came from"):
            write_provenance(provenance.completed(), fd, self._folder, self.name)

    def check_not_in_use(self) -> None:
        """
        :raises VolumeInUse: somebody has the file that is there in use.
        :raises HasClones: clones stand on it.
        """
        with self.open() as fd:
            user = find_user(fd)
        if user:
            raise VolumeInUse(f"{self.path} is in use by {user}.")
        check_no_clones(self.label, self.clones())

    def clones(self) -> list[str]:
        """The paths of the overlays that stand on it."""
        return find_clones(self.path)

    def grow(self, size: int, zeroed: bool = True) -> VolumeSize:  # pylint: disable=unused-argument
        """Gives the file C(size) bytes where it has less; what it gains is a hole.

        :raises VolumeInvalid: it is not there.
        """
        found = self._file()
        if found is None:
            raise VolumeInvalid(f"There is no file {self.path}.", "Create it, or import an image to it.")
        if found.st_size < size:
            with storage_errors(f"grow {self.path}"):
                fd = os.open(self.name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
                try:
                    os.ftruncate(fd, size)
                    os.fsync(fd)
                finally:
                    os.close(fd)
        grown = self.stat()
        return grown or VolumeSize(size, None)

    def remove(self, wipe: bool) -> None:
        """Removes the file, and what is known of it, if it is there.

        :param wipe: whether zeros are written over it before.
        :raises VolumeInUse: somebody has it in use.
        """
        found = self._file()
        if found is None:
            return
        with self.locked(0), storage_errors(f"remove {self.path}"):
            self.check_not_in_use()
            if wipe:
                self._wipe()
            os.unlink(self.name, dir_fd=self._folder)
            forget_provenance(self._folder, self.name)
            os.fsync(self._folder)

    def _wipe(self) -> None:
        fd = os.open(self.name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
        try:
            drop_provenance(fd, self._folder, self.name)  # a half wiped one must not be taken for whole
            _zero(fd)
        finally:
            os.close(fd)

    def check_space(self, size: int) -> None:
        """
        :raises NoSpace: the file system has not C(size) bytes free.
        """
        with storage_errors(f"look at {self.path}"):
            status = os.fstatvfs(self._folder)
        free = status.f_bavail * status.f_frsize
        if free < size:
            raise NoSpace(f"{self.path} needs {size} bytes, and its file system has {free} free.")

    @contextlib.contextmanager
    def locked(self, wait: float) -> t.Iterator[None]:
        """Keeps imports to it away; what an interrupted one has brought stays. See L(Volume.locked).

        Where the file system can only be read, nobody on this host could import.
        """
        if os.fstatvfs(self._folder).f_flag & os.ST_RDONLY:
            yield
            return
        fd = self._lock_partial(time.monotonic() + wait)
        try:
            yield
        finally:
            if not os.fstat(fd).st_size and self._is_partial(fd):
                os.unlink(self.partial, dir_fd=self._folder)
            os.close(fd)

    @contextlib.contextmanager
    def staged(self, wait: float, wanted: Provenance, resumable: bool) -> t.Iterator[StagedFile]:
        """A partial file of one's own beside the file; see L(Volume.staged)."""
        fd = self._lock_partial(time.monotonic() + wait)
        staged = StagedFile(self, fd)
        keep = False
        try:
            with storage_errors(f"prepare {self.partial} beside {self.path}"):
                staged.prepare(wanted if resumable else None)
            yield staged
        except BaseException as err:
            interrupted = err.resumable if isinstance(err, FerryError) else not isinstance(err, Exception)
            keep = interrupted and resumable and os.fstat(fd).st_size > 0
            raise
        finally:
            if not staged.published and not keep and self._is_partial(fd):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.partial, dir_fd=self._folder)
            os.close(fd)

    def _lock_partial(self, deadline: float) -> int:
        """Opens and locks the partial file; it is this process's alone as long as it stays open."""
        while True:
            fd, made = self._open_partial()
            locked = claimed = False
            try:
                locked = self._lock(fd)
                claimed = locked and self._claim(fd, made)
            finally:
                if not claimed:
                    os.close(fd)
            if claimed:
                return fd
            if not locked and time.monotonic() > deadline:
                raise taken(self.path)
            if not locked:
                time.sleep(_LOCK_POLL)

    def _lock(self, fd: int) -> bool:
        with storage_errors(f"lock {self.partial} beside {self.path}"):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    def _open_partial(self) -> tuple[int, bool]:
        """The partial file, open, and whether it was made for that."""
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        while True:
            found = self._lstat(self.partial)
            if found is not None and not stat.S_ISREG(found.st_mode):
                raise VolumeInvalid(
                    f"{self.partial} beside {self.path} is {_kind(found.st_mode)}.", "Remove it, if it is not in use."
                )
            made = found is None
            new = os.O_CREAT | os.O_EXCL if made else 0
            overtaken = FileExistsError if made else FileNotFoundError
            with storage_errors(f"create {self.partial} beside {self.path}"), contextlib.suppress(overtaken):
                return os.open(self.partial, flags | new, 0o600, dir_fd=self._folder), made

    def _claim(self, fd: int, made: bool) -> bool:
        """Whether the locked C(fd) still is the partial file, and nobody else's file under that name.

        :param made: whether this process has made it, so that it is its own, whomever the file system gives it to.
        """
        if not self._is_partial(fd):
            return False  # its owner published or removed it meanwhile
        mine = os.fstat(fd)
        with storage_errors(f"take over {self.partial} beside {self.path}"):
            if not made and (mine.st_nlink != 1 or not self._is_own(mine)):
                os.unlink(self.partial, dir_fd=self._folder)  # the name only; the file behind it is not ours to write
                return False
            os.fchmod(fd, 0o600)
        return True

    def _is_own(self, found: os.stat_result) -> bool:
        """Whether a file in the folder is one of this user's, who may be another one there: NFS and CIFS map users."""
        if found.st_uid == os.geteuid():
            return True
        try:
            with tempfile.TemporaryFile(dir=f"/proc/self/fd/{self._folder}") as made:
                return os.fstat(made.fileno()).st_uid == found.st_uid
        except OSError:
            return False

    def _is_partial(self, fd: int) -> bool:
        """Whether the partial file's name still leads to the open file C(fd)."""
        named = self._lstat(self.partial)
        return named is not None and os.path.samestat(named, os.fstat(fd))

    def _lstat(self, name: str) -> os.stat_result | None:
        try:
            with storage_errors(f"look at {self.path}"):
                return os.lstat(name, dir_fd=self._folder)
        except FileNotFoundError:
            return None

    def publish(self, fd: int, provenance: Provenance, over: bool) -> None:
        """Makes the whole and verified partial file C(fd) the file, durably: file, name, folder."""
        with storage_errors(f"publish {self.path}"):
            if not self._is_partial(fd):
                raise VolumeInvalid(f"{self.partial} beside {self.path} was removed or replaced during the import.")
            self._take_after(fd, self._file() if over else None)
            try:
                write_provenance(provenance.completed(), fd, self._folder, self.name)
                os.fsync(fd)
                if over:
                    os.rename(self.partial, self.name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
                else:
                    self._rename_new()
                os.fsync(self._folder)
            finally:
                with contextlib.suppress(OSError):
                    forget_replaced(self._folder, self.name)

    def _take_after(self, fd: int, existing: os.stat_result | None) -> None:
        """Gives C(fd) the permission bits, and as far as may be the owner, of the file that it will replace."""
        if existing is not None:
            with contextlib.suppress(PermissionError):
                os.fchown(fd, existing.st_uid, existing.st_gid)
        os.fchmod(fd, existing.st_mode & 0o7777 if existing else self.mode)

    def _rename_new(self) -> None:
        """Renames the partial file unless something has come into being at the path meanwhile."""
        try:
            os.link(self.partial, self.name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except FileExistsError as err:
            raise VolumeExists(f"{self.path} came into being during the import.") from err
        except OSError as err:
            if err.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            if self._lstat(self.name) is not None:  # no hard links here: the best that can be done
                raise VolumeExists(f"{self.path} came into being during the import.") from err
            os.rename(self.partial, self.name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        else:
            os.unlink(self.partial, dir_fd=self._folder)


class StagedFile:
    """A partial file on its way to become a volume's file."""

    def __init__(self, volume: FileVolume, fd: int) -> None:
        self.fd = fd
        self.sink = SparseWriter(fd, volume.preallocation)
        self.published = False
        self.held = 0  # bytes at its beginning that an earlier run has brought
        self._volume = volume

    def prepare(self, wanted: Provenance | None) -> None:
        """Keeps what an earlier run has brought of C(wanted), nothing else."""
        mark = read_mark(self.fd) if wanted else None
        if wanted and mark and mark.is_same_download(wanted):
            # Bytes are written in their order, so all before the last one are there; that one may be half of a block.
            self.held = os.fstat(self.fd).st_size // BLOCK * BLOCK
        os.ftruncate(self.fd, self.held)
        if wanted:
            write_mark(wanted, self.fd)

    def reserve(self, size: int | None, certain: int = 0) -> None:
        """
        :raises NoSpace: the file system has no room for what is certain to be written.
        """
        if self._volume.preallocation != "off":
            certain = max(size or 0, certain)
        self._volume.check_space(certain - self.held)

    def publish(self, provenance: Provenance, over: bool) -> None:
        """Puts the file in place; see L(Staged.publish)."""
        self._volume.publish(self.fd, provenance, over)
        self.published = True


def _zero(fd: int) -> None:
    """Writes zeros over all data of the file, durably; its holes stay, as there may be no room for all of them."""
    for start, end in data_runs(fd, os.fstat(fd).st_size):
        write_zeros(fd, start, end)
    os.fsync(fd)


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISBLK, "a block device"),
        (stat.S_ISCHR, "a character device"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((name for test, name in kinds if test(mode)), "something else")
