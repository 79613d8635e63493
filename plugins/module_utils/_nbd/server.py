# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An idle disk, with all that it is laid over, served by qemu-nbd to this process alone."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import stat
import subprocess
import tempfile
import time
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    MissingDependency,
    StorageError,
    VolumeInUse,
)
from ansible_collections.imageferry.glance.plugins.module_utils._nbd.client import MAX_READERS, NbdDisk

_START_TIMEOUT = 30.0
_POLL = 0.02
_ADDRESSES = 4 * 1024**3  # bytes; it needs some tens of MiB
_LOCKED = "lock"  # qemu: Failed to get shared "write" lock


class Layer(t.NamedTuple):
    """One image of a chain: an open file, whose format qemu is told."""

    fd: int
    format: str


@contextlib.contextmanager
def served(layers: t.Sequence[Layer], label: str, snapshot_id: str | None = None) -> t.Iterator[NbdDisk]:
    """The disk that the layers make, the uppermost first; it is read, and nothing of it is opened by its name.

    qemu-nbd ends when the last connection to it does, and so with this process, however that ends. As long as it runs,
    its locks keep away everybody who would write to a layer with qemu.

    :param label: how messages call the disk.
    :param snapshot_id: the internal snapshot of the one qcow2 layer that is read instead of its present content.
    :raises MissingDependency: there is no qemu-nbd, or no libnbd.
    :raises VolumeInUse: another qemu writes to a layer.
    :raises StorageError: the disk cannot be opened.
    """
    folder = tempfile.mkdtemp(prefix="imageferry-nbd-")
    socket = os.path.join(folder, "socket")
    server = None
    try:
        server = _start(layers, socket, snapshot_id)
        with _connect(server, socket, label) as disk:
            yield disk
    finally:
        if server is not None:
            server.kill()
            server.communicate()
        shutil.rmtree(folder, ignore_errors=True)


def _start(layers: t.Sequence[Layer], socket: str, snapshot_id: str | None) -> subprocess.Popen[str]:
    program = shutil.which("qemu-nbd")
    if program is None:
        raise MissingDependency(
            "qemu-nbd is not installed on this host, and disks cannot be read without it.",
            "Install qemu-utils (Debian, Ubuntu) or qemu-img (Fedora, RHEL, SUSE).",
        )
    snapshot = [] if snapshot_id is None else [f"--load-snapshot=snapshot.id={snapshot_id}"]
    return subprocess.Popen(  # pylint: disable=ansible-bad-function
        [program, "--read-only", f"--shared={MAX_READERS + 1}", f"--socket={socket}", *snapshot, _json(layers)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        pass_fds=[layer.fd for layer in layers],
        preexec_fn=_limit,  # noqa: PLW1509 (it only sets limits)
    )


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _json(layers: t.Sequence[Layer]) -> str:
    """The whole chain in qemu's words (qemu-qmp-ref(7), BlockdevOptions), so that no header is asked what is below."""
    node: dict[str, t.Any] | None = None
    for fd, image_format in reversed(layers):
        file = {
            "driver": "host_device" if stat.S_ISBLK(os.fstat(fd).st_mode) else "file",
            "filename": f"/proc/self/fd/{fd}",
        }
        below = {"backing": node} if image_format == "qcow2" else {}
        node = {"driver": image_format, "file": file, **below}
    return "json:" + json.dumps(node)


def _connect(server: subprocess.Popen[str], socket: str, label: str) -> NbdDisk:
    deadline = time.monotonic() + _START_TIMEOUT
    while True:
        try:
            return NbdDisk(socket, "", label)
        except StorageError:
            if server.poll() is not None:
                raise _failure(server, label) from None
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL)


def _failure(server: subprocess.Popen[str], label: str) -> Exception:
    said = " ".join((server.communicate()[1] or "").split())
    if _LOCKED in said:
        return VolumeInUse(f"Another qemu writes to {label}.")
    return StorageError(f"qemu-nbd cannot open {label}: {said}.")
