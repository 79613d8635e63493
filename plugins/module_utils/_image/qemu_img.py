# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running qemu-img on what has passed the check of its header, with its resources limited.

Every run gets open files, and their formats by name: nothing is probed, and no path is looked up again.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import tempfile
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    DamagedImage,
    FerryError,
    MissingDependency,
    NoSpace,
    StorageError,
    UnsafeImage,
)
from ansible_collections.imageferry.glance.plugins.module_utils._image.qcow2 import check_tables

_MEMORY = 1024**3
_CONVERT_MEMORY = 4 * 1024**3  # of addresses: each thread that compresses reserves 64 MiB of them and more
_ARENAS = "2"  # mallopt(3): else each of up to 64 threads of a busy qemu-img may reserve 64 MiB more, and it aborts
_CPU_SECONDS = 120
_LONG_CHECK_SECONDS = 600  # of a disk of this host's own, which may have been written to for years
_CONVERT_CPU_SECONDS = 24 * 3600  # a disk of 8 TiB, compressed, may take that long
_PR_SET_PDEATHSIG = 1  # prctl(2)
_CHECK_CANNOT = 63  # qemu-img(1): checks are not supported by the image format
_FULL = ("No space left on device", "Disk quota exceeded", "File too large")
_WRITING = ("error while writing", "Could not resize", "Could not create", "Read-only file system")
_PROGRESS = re.compile(rb"\(([\d.]+)/100%\)")
_DRIVERS = {"iso": "raw", "vhd": "vpc"}  # Glance's word: QEMU's, where they differ


@dataclasses.dataclass(frozen=True)
class Qcow2Options:
    """How a qcow2 is written; None leaves it to qemu-img.

    :param compat: V(0.10) or V(1.1).
    :param cluster_size: in bytes.
    :param compression_type: V(zlib) or V(zstd).
    :param compress: whether a conversion compresses the clusters.
    :param preallocation: V(off), V(metadata), V(falloc) or V(full).
    """

    compat: str | None = None
    cluster_size: int | None = None
    compression_type: str | None = None
    compress: bool = False
    preallocation: str | None = None

    def arguments(self) -> list[str]:
        """The C(-o) of qemu-img."""
        names = ("compat", "cluster_size", "compression_type", "preallocation")
        chosen = [f"{name}={getattr(self, name)}" for name in names if getattr(self, name) is not None]
        return ["-o", ",".join(chosen)] if chosen else []


_DEFAULTS = Qcow2Options()


class Measured(t.NamedTuple):
    """The bytes that an image will take up: with the data that there are, and with every cluster allocated."""

    required: int
    fully_allocated: int


def require_qemu_img() -> str:
    """The path of qemu-img.

    :raises MissingDependency: it is not installed.
    """
    found = shutil.which("qemu-img")
    if found is None:
        raise MissingDependency(
            "qemu-img is not installed on this host, and images cannot be checked or converted without it.",
            "Install qemu-utils (Debian, Ubuntu) or qemu-img (Fedora, RHEL, SUSE).",
        )
    return found


def check(fd: int, image_format: str) -> int | None:
    """Lets C(qemu-img check) look at the structure of the image in the open file C(fd).

    :returns: the bytes up to the end of the last cluster in use; None where the format has no such thing.
    :raises DamagedImage: it finds errors; leaked clusters are none.
    :raises UnsafeImage: it needed more time than a sound image makes it need.
    :raises MissingDependency: there is no qemu-img.
    """
    if image_format == "qcow2":
        check_tables(fd)
    said = _run("check", "--output=json", *_alone(fd, image_format), fds=(fd,), accepted=(0, 3, _CHECK_CANNOT))
    return t.cast("int | None", json.loads(said or b"{}").get("image-end-offset"))


def count_faults(fd: int) -> dict[str, int]:
    """What C(qemu-img check) finds in the qcow2 in the open file C(fd): C(errors), C(corruptions) and C(leaks).

    :raises DamagedImage: its tables cannot be right, or QEMU cannot open it.
    :raises UnsafeImage: it needed more time than a sound image makes it need.
    """
    check_tables(fd)
    said = _run("check", "--output=json", *_alone(fd, "qcow2"), fds=(fd,), accepted=(0, 2, 3),
                limits=(_LONG_CHECK_SECONDS, _MEMORY))  # fmt: skip
    found = json.loads(said)
    fields = {"errors": "check-errors", "corruptions": "corruptions", "leaks": "leaks"}
    return {name: int(found.get(field, 0)) for name, field in fields.items()}


def info(fd: int, image_format: str) -> dict[str, t.Any]:
    """What C(qemu-img info) says of the image in the open file C(fd) alone.

    :raises DamagedImage: QEMU cannot open it.
    """
    said = _run("info", "-U", "--output=json", "-f", _driver(image_format), _name(fd), fds=(fd,))
    return t.cast("dict[str, t.Any]", json.loads(said))


def virtual_size(fd: int, image_format: str) -> int:
    """The bytes of the disk of the image in the open file C(fd), as QEMU sees it: some headers say several sizes.

    :raises DamagedImage: QEMU cannot open it.
    """
    return int(info(fd, image_format)["virtual-size"])


def measure(fd: int, source_format: str, target_format: str, options: Qcow2Options = _DEFAULTS) -> Measured:
    """What the image in the open file C(fd) will take up in another format, uncompressed.

    :raises DamagedImage: QEMU cannot open it.
    """
    return _measure(target_format, options, "-f", _driver(source_format), _name(fd), fds=(fd,))


def measure_blank(size: int, target_format: str, options: Qcow2Options = _DEFAULTS) -> Measured:
    """What a new disk of C(size) bytes will take up."""
    return _measure(target_format, options, "--size", str(size))


def create(
    fd: int,
    image_format: str,
    size: int,
    options: Qcow2Options = _DEFAULTS,
    backing: tuple[str, str] | None = None,
) -> None:
    """Makes the open file or block device C(fd) a blank image; a raw one on a device is left as it is.

    :param size: of the disk, in bytes.
    :param backing: path and format of the image that a qcow2 is laid over; it is not opened.
    :raises NoSpace, StorageError: it cannot be written.
    """
    if image_format == "raw":
        if not _is_block(fd):
            os.ftruncate(fd, 0)
            os.ftruncate(fd, size)
        return
    below = ("-u", "-b", backing[0], "-F", backing[1]) if backing else ()
    _run("create", "-q", "-f", _driver(image_format), *options.arguments(), *below, _name(fd), str(size), fds=(fd,))


def resize(fd: int, image_format: str, size: int) -> None:
    """Grows the disk in the open file C(fd) to C(size) bytes, without the images that a qcow2 is laid over.

    :raises NoSpace, StorageError: it cannot be written.
    """
    _run("resize", "-q", *_alone(fd, image_format), str(size), fds=(fd,))


def convert(
    source_fd: int,
    source_format: str,
    target_fd: int,
    target_format: str,
    size: int,
    options: Qcow2Options = _DEFAULTS,
    on_progress: t.Callable[[float], None] | None = None,
    target_is_zero: bool = False,
) -> None:
    """Converts an image into the open file or block device C(target_fd), durably.

    :param size: of the new disk in bytes, at least the source's L(virtual_size); what is behind that one on a block
        device stays as it was.
    :param on_progress: is told the part that is done, from 0 to 1; what it raises ends the conversion.
    :param target_is_zero: whether a raw block device reads as zeros before; a file is emptied first.
    :raises DamagedImage, UnsafeImage: the source cannot be read, or takes more than a sound one does.
    :raises NoSpace, StorageError: the target cannot be written.
    """
    on_block = _is_block(target_fd)
    create(target_fd, target_format, size, options)
    if target_format == "raw":
        blank = target_is_zero or not on_block
    else:  # what a device held before shows through clusters that are allocated and never written
        blank = not on_block or options.preallocation in (None, "off")
    arguments = ["-n", "-f", _driver(source_format), "-O", _driver(target_format)]
    arguments += ["--target-is-zero"] * blank + ["-c"] * options.compress
    arguments += ["-W"] * (options.compress or target_format == "raw")  # clusters of a qcow2 had better be in order
    arguments += ["-t", "none"] * on_block + ["-p"] * (on_progress is not None)
    fds = (source_fd, target_fd)
    _run(
        "convert",
        *arguments,
        *map(_name, fds),
        fds=fds,
        limits=(_CONVERT_CPU_SECONDS, _CONVERT_MEMORY),
        on_progress=on_progress,
    )
    os.fsync(target_fd)


def _measure(target_format: str, options: Qcow2Options, *source: str, fds: tuple[int, ...] = ()) -> Measured:
    said = json.loads(
        _run("measure", "--output=json", "-O", _driver(target_format), *options.arguments(), *source, fds=fds)
    )
    return Measured(said["required"], said["fully-allocated"])


def _driver(image_format: str) -> str:
    return _DRIVERS.get(image_format, image_format)


def _name(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def _alone(fd: int, image_format: str) -> list[str]:
    """The image in the open file C(fd) for qemu-img; a qcow2 without what its header says is below it."""
    if image_format != "qcow2":
        return ["-f", _driver(image_format), _name(fd)]
    file = {"driver": "host_device" if _is_block(fd) else "file", "filename": _name(fd)}
    return ["json:" + json.dumps({"driver": "qcow2", "backing": None, "file": file})]


def _is_block(fd: int) -> bool:
    return stat.S_ISBLK(os.fstat(fd).st_mode)


def _run(
    verb: str,
    *arguments: str,
    fds: tuple[int, ...] = (),
    accepted: tuple[int, ...] = (0,),
    limits: tuple[int, int] | None = None,
    on_progress: t.Callable[[float], None] | None = None,
) -> bytes:
    """Runs qemu-img and returns what it printed.

    :param limits: seconds of processor time, and bytes of memory.
    :raises FerryError: it ended otherwise than C(accepted).
    """
    seconds, memory = limits or (_CPU_SECONDS, _MEMORY)
    command = [require_qemu_img(), verb, *arguments]
    printed = bytearray()
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(  # pylint: disable=ansible-bad-function
            command,
            pass_fds=fds,
            preexec_fn=_limiter(seconds, memory),  # noqa: PLW1509 (it only sets limits)
            env={**os.environ, "LC_ALL": "C", "MALLOC_ARENA_MAX": _ARENAS},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
        ) as process,
    ):
        output = t.cast("t.IO[bytes]", process.stdout)
        try:
            while some := os.read(output.fileno(), 1 << 16):
                if on_progress is None:
                    printed += some
                elif done := _PROGRESS.findall(some):
                    on_progress(float(done[-1]) / 100)
        except BaseException:
            process.kill()
            raise
        process.wait()
        complaints.seek(0)
        lines = complaints.read(1 << 16).decode(errors="replace").strip().splitlines()
    if process.returncode not in accepted:
        raise _error(verb, process.returncode, lines, seconds, memory)
    return bytes(printed)


def _error(verb: str, code: int, lines: list[str], seconds: int, memory: int) -> FerryError:
    if code == -signal.SIGKILL:
        return StorageError(
            f"qemu-img {verb} was killed.", "See whether this host ran out of memory, and run the task again."
        )
    if code == -signal.SIGXFSZ:
        return NoSpace(f"qemu-img {verb} reached this host's limit for the size of a file.")
    if code < 0:
        return UnsafeImage(
            f"qemu-img {verb} was ended by signal {-code}; it has {seconds} s of processor time and "
            f"{memory >> 20} MiB of memory."
        )
    reason = (lines or ["nothing more"])[-1]
    if any(words in reason for words in _FULL):
        return NoSpace(f"qemu-img {verb} cannot write: {reason.split(': ')[-1]}.")
    if verb in ("create", "resize") or any(words in reason for words in _WRITING):
        return StorageError(f"qemu-img {verb} cannot write: {reason.split(': ')[-1]}.")
    return DamagedImage(f"qemu-img {verb} finds the image damaged ({reason.split(': ')[-1]}).")


def _limiter(seconds: int, memory: int) -> t.Callable[[], None]:
    """Limits the process that calls it, and has it end with this one, however this one ends."""
    libc, parent = ctypes.CDLL(None), os.getpid()

    def limit() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # which has ended already
            os.kill(os.getpid(), signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))

    return limit
