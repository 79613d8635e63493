# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The disks of a running guest as they were at one moment, by libvirt's pull backup.

Whoever reads them talks to the guest's own QEMU. What the guest writes meanwhile, QEMU copies aside first, to a
scratch file. See C(virDomainBackupBegin) of libvirt-domain, and https://libvirt.org/formatbackup.html.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import secrets
import shutil
import time
import typing as t
import xml.etree.ElementTree as ET

from ansible_collections.imageferry.glance.plugins.module_utils._errors import BackupRefused, VolumeInUse

_RUN = "/run/libvirt/qemu"  # where a confined QEMU may make sockets
_PREFIX = "imageferry-backup-"
_FOR_DEVICES = "/var/lib/libvirt/images"
_CLAIM, _SOCKET = "claim", "socket"
_AGENT = "org.qemu.guest_agent.0"
_END_TIMEOUT = 30.0
_POLL = 0.1


class LiveDisk(t.NamedTuple):
    """A disk of a running guest.

    :param target: its name in the guest, such as C(vda).
    :param path: the file or device that it lies in, beside which a scratch file has its place.
    """

    target: str
    path: str


class Backup(t.NamedTuple):
    """Disks that do not change any more.

    :param socket: of the NBD server; each disk's export is called like its target.
    :param quiesced: whether the guest's file systems were frozen at the moment that the disks are of.
    """

    socket: str
    quiesced: bool


@contextlib.contextmanager
def backup(domain: t.Any, disks: t.Sequence[LiveDisk], quiesce: str, scratch_dir: str | None) -> t.Iterator[Backup]:
    """Holds the disks of a running guest as they are now, all at the same moment, until this ends.

    What an earlier run has left of its own, as it was killed, is ended and removed first.

    :param domain: the guest, a C(libvirt.virDomain).
    :param quiesce: V(auto) freezes the guest's file systems for a moment where an agent in it can, V(always) insists,
        V(never) does not.
    :param scratch_dir: where scratch files go; None for beside a file, and libvirt's images for a device.
    :raises VolumeInUse: another export of this guest is going on.
    :raises BackupRefused: libvirt, QEMU or the guest's agent refuses.
    """
    _end_abandoned(domain)
    token = secrets.token_hex(8)
    scratch = {disk.target: _scratch_path(disk, token, scratch_dir) for disk in disks}
    folder = os.path.join(_RUN, _PREFIX + token)
    with _claimed(folder, domain, list(scratch.values())):
        socket = os.path.join(folder, _SOCKET)
        _give_to_qemu(folder, domain)
        try:
            quiesced = _begin(domain, _describe(socket, scratch), quiesce)
            yield Backup(socket, quiesced)
        finally:
            _end(domain, socket)
            _remove(scratch.values())


def _describe(socket: str, scratch: t.Mapping[str, str]) -> str:
    """The C(domainbackup) element."""
    root = ET.Element("domainbackup", mode="pull")
    ET.SubElement(root, "server", transport="unix", socket=socket)
    disks = ET.SubElement(root, "disks")
    for target, path in scratch.items():
        disk = ET.SubElement(disks, "disk", name=target, backup="yes", type="file", exportname=target)
        ET.SubElement(disk, "scratch", file=path)
    return ET.tostring(root, encoding="unicode")


def _scratch_path(disk: LiveDisk, token: str, scratch_dir: str | None) -> str:
    beside = os.path.dirname(disk.path) if os.path.isfile(disk.path) else _FOR_DEVICES
    return os.path.join(scratch_dir or beside, f".{_PREFIX}{token}-{disk.target}")


@contextlib.contextmanager
def _claimed(folder: str, domain: t.Any, scratch: list[str]) -> t.Iterator[None]:
    """Notes in a new folder what belongs to this run, and holds a lock there for as long as it lives."""
    os.mkdir(folder, 0o700)
    try:
        with open(os.path.join(folder, _CLAIM), "w", encoding="utf-8") as claim:
            fcntl.flock(claim, fcntl.LOCK_EX)
            json.dump({"guest": domain.UUIDString(), "scratch": scratch}, claim)
            claim.flush()
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _give_to_qemu(folder: str, domain: t.Any) -> None:
    """Lets this guest's QEMU make its socket in the folder, which nobody else can look into."""
    try:
        with open(f"/run/libvirt/qemu/{domain.name()}.pid", encoding="ascii") as file:
            owner = os.stat(f"/proc/{int(file.read())}")
    except (OSError, ValueError) as err:
        raise BackupRefused(f"The QEMU of the guest {domain.name()} is not found: {err}.") from err
    os.chown(folder, owner.st_uid, owner.st_gid)


def _begin(domain: t.Any, described: str, quiesce: str) -> bool:
    """Starts the backup; whether the guest's file systems were frozen at its moment."""
    import libvirt

    with _frozen(domain, quiesce) as frozen:
        try:
            domain.backupBegin(described, None, 0)
        except libvirt.libvirtError as err:
            raise BackupRefused(f"libvirt refuses to back up the guest {domain.name()}: {err}.") from err
    return frozen


@contextlib.contextmanager
def _frozen(domain: t.Any, quiesce: str) -> t.Iterator[bool]:
    import libvirt

    if quiesce == "never" or (quiesce == "auto" and not _has_agent(domain)):
        yield False
        return
    try:
        domain.fsFreeze()
    except libvirt.libvirtError as err:
        if quiesce == "always":
            raise BackupRefused(
                f"The file systems of the guest {domain.name()} cannot be frozen: {err}.",
                "Have qemu-guest-agent run in the guest, or set 'quiesce: auto'.",
            ) from err
        yield False
        return
    try:
        yield True
    finally:
        with contextlib.suppress(libvirt.libvirtError):  # an agent that froze them thaws them by itself in time
            domain.fsThaw()


def _has_agent(domain: t.Any) -> bool:
    """Whether a guest agent is connected."""
    targets = ET.fromstring(domain.XMLDesc()).iterfind("./devices/channel/target")  # noqa: S314 (it is libvirt's own)
    return any(target.get("name") == _AGENT and target.get("state") == "connected" for target in targets)


def _end(domain: t.Any, socket: str) -> None:
    """Ends the backup that answers at C(socket), and waits until QEMU has let go of its scratch files."""
    import libvirt

    deadline = time.monotonic() + _END_TIMEOUT
    while _running_backup(domain) == socket and time.monotonic() < deadline:
        with contextlib.suppress(libvirt.libvirtError):
            domain.abortJob()
        time.sleep(_POLL)


def _running_backup(domain: t.Any) -> str | None:
    """The socket of the backup of this guest that is going on; None when none is, or it has none."""
    import libvirt

    try:
        described = domain.backupGetXMLDesc()
    except libvirt.libvirtError:
        return None
    server = ET.fromstring(described).find("server")  # noqa: S314 (it is libvirt's own)
    return server.get("socket") if server is not None else None


def _end_abandoned(domain: t.Any) -> None:
    """Ends the guest's backup if a run of this collection has begun it and is gone, and removes what is left of such.

    :raises VolumeInUse: that run is alive.
    """
    for folder in glob.glob(f"{_RUN}/{_PREFIX}*"):
        with contextlib.suppress(OSError, ValueError), open(os.path.join(folder, _CLAIM), encoding="utf-8") as file:
            claim = json.load(file)
            if claim["guest"] != domain.UUIDString():
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise VolumeInUse(
                    f"Another export of the guest {domain.name()} is going on.", "Wait until it has ended."
                ) from None
            _end(domain, os.path.join(folder, _SOCKET))
            _remove(claim["scratch"])
            shutil.rmtree(folder, ignore_errors=True)


def _remove(paths: t.Iterable[str]) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
