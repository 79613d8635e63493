# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The disks of a running guest as they were at one moment, by libvirt's pull backup.

Whoever reads them talks to the guest's own QEMU. What the guest writes meanwhile, QEMU copies aside first, to a
scratch file. See C(virDomainBackupBegin) of libvirt-domain, and https://libvirt.org/formatbackup.html.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
import typing as t
import xml.etree.ElementTree as ET

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    BackupRefused,
    GuestRefused,
    InvalidOption,
    NoSpace,
)
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.claim import Claim, abandoned
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.guests import RUN, owner_of_qemu
from ansible_collections.imageferry.glance.plugins.module_utils._sizes import format_size

_PREFIX = "imageferry-backup-"
_FOR_DEVICES = "/var/lib/libvirt/images"
_AGENT = "org.qemu.guest_agent.0"
_END_TIMEOUT = 30.0
_THAW_TIMEOUT = 10.0
_ALLOCATION = 1  # of virDomainBlockInfo
_SHARE = 10  # of the disks' data that has to fit, one in so many bytes
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
    :raises NoSpace: there is clearly too little room for scratch files.
    :raises BackupRefused: libvirt, QEMU or the guest's agent refuses.
    """
    _end_abandoned(domain)
    token = secrets.token_hex(8)
    scratch = {disk.target: _scratch_path(disk, token, scratch_dir) for disk in disks}
    _check_room(domain, scratch)
    with contextlib.closing(Claim.make(token, domain.UUIDString(), list(scratch.values()))) as claim:
        try:
            socket = _make_socket_place(claim, domain)
            quiesced = _begin(domain, _describe(socket, scratch), quiesce, claim)
            yield Backup(socket, quiesced)
        finally:
            with contextlib.suppress(BackupRefused):  # it stays claimed then, and the next run says so
                _undo(domain, claim)


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


def _check_room(domain: t.Any, scratch: t.Mapping[str, str]) -> None:
    """Sees that a part of the disks' data fits: what the guest will overwrite is not known, and where it does not fit,
    QEMU has the guest's writes fail.

    :raises NoSpace: it does not.
    """
    data: dict[int, int] = {}  # by file system
    for target, path in scratch.items():
        folder = os.path.dirname(path)
        if not os.path.isdir(folder):
            raise InvalidOption(f"{folder}, where a scratch file is to be, is no folder on this host.")
        file_system = os.stat(folder).st_dev
        data[file_system] = data.get(file_system, 0) + int(domain.blockInfo(target)[_ALLOCATION])
        status = os.statvfs(folder)
        free = status.f_bavail * status.f_frsize
        if free < data[file_system] // _SHARE:
            raise NoSpace(
                f"What the guest {domain.name()} overwrites while its disks are read is kept in {folder}, which has "
                f"{format_size(free)} free for disks with {format_size(data[file_system])} of data.",
                "Make room for a tenth at least, or name another 'scratch_dir'.",
            )


def _folder(claim: Claim) -> str:
    """Where QEMU makes its socket."""
    return os.path.join(RUN, _PREFIX + claim.token)


def _socket(claim: Claim) -> str:
    return os.path.join(_folder(claim), "socket")


def _make_socket_place(claim: Claim, domain: t.Any) -> str:
    """The path at which this guest's QEMU can make its socket, in a folder that nobody else can look into."""
    folder = _folder(claim)
    os.mkdir(folder, 0o700)
    try:
        owner = owner_of_qemu(domain)
    except GuestRefused as err:
        raise BackupRefused(err.what) from err
    os.chown(folder, owner.st_uid, owner.st_gid)
    return _socket(claim)


def _begin(domain: t.Any, described: str, quiesce: str, claim: Claim) -> bool:
    """Starts the backup; whether the guest's file systems were frozen at its moment."""
    import libvirt

    with _frozen(domain, quiesce, claim) as frozen:
        try:
            domain.backupBegin(described, None, 0)
        except libvirt.libvirtError as err:
            raise BackupRefused(f"libvirt refuses to back up the guest {domain.name()}: {err}.") from err
    return frozen


@contextlib.contextmanager
def _frozen(domain: t.Any, quiesce: str, claim: Claim) -> t.Iterator[bool]:
    """Whether the guest's file systems are frozen meanwhile. An agent does not thaw them by itself: it is noted first.

    :raises BackupRefused: they cannot be frozen, or thawed.
    """
    if quiesce == "never" or (quiesce == "auto" and not _has_agent(domain)) or not _freeze(domain, quiesce, claim):
        yield False
        return
    try:
        yield True
    finally:
        _thaw(domain, claim)


def _freeze(domain: t.Any, quiesce: str, claim: Claim) -> bool:
    import libvirt

    claim.note(frozen=True)
    try:
        domain.fsFreeze()
    except libvirt.libvirtError as err:
        if err.get_error_code() == libvirt.VIR_ERR_AGENT_UNRESPONSIVE:  # only its answer may be lost
            with contextlib.suppress(libvirt.libvirtError):
                domain.fsThaw()
        claim.note(frozen=False)
        if quiesce == "always":
            raise BackupRefused(
                f"The file systems of the guest {domain.name()} cannot be frozen: {err}.",
                "Have qemu-guest-agent run in the guest, or set 'quiesce: auto'.",
            ) from err
        return False
    return True


def _thaw(domain: t.Any, claim: Claim) -> None:
    """Thaws the guest's file systems, which may be frozen, and notes it.

    :raises BackupRefused: they stay frozen.
    """
    import libvirt

    deadline = time.monotonic() + _THAW_TIMEOUT
    while _is_running(domain):
        try:
            domain.fsThaw()
            break
        except libvirt.libvirtError as err:
            if time.monotonic() > deadline:
                raise BackupRefused(
                    f"The file systems of the guest {domain.name()} were frozen, and cannot be thawed: {err}.",
                    f"Run 'virsh domfsthaw {domain.name()}' on the host, or restart qemu-guest-agent in the guest.",
                ) from err
        time.sleep(_POLL)
    claim.note(frozen=False)


def _is_running(domain: t.Any) -> bool:
    import libvirt

    try:
        return bool(domain.isActive())
    except libvirt.libvirtError:  # it is no more
        return False


def _has_agent(domain: t.Any) -> bool:
    """Whether a guest agent is connected."""
    targets = ET.fromstring(domain.XMLDesc()).iterfind("./devices/channel/target")  # noqa: S314 (it is libvirt's own)
    return any(target.get("name") == _AGENT and target.get("state") == "connected" for target in targets)


def _undo(domain: t.Any, claim: Claim) -> None:
    """Thaws the guest, ends its backup and removes what is left of it; what cannot be undone stays claimed.

    :raises BackupRefused: something cannot.
    """
    try:
        if claim.frozen:
            _thaw(domain, claim)
    finally:
        _end(domain, _socket(claim))
        _remove(claim.scratch)
        shutil.rmtree(_folder(claim), ignore_errors=True)
    claim.drop()


def _end(domain: t.Any, socket: str) -> None:
    """Ends the backup that answers at C(socket), and waits until QEMU has let go of its scratch files.

    :raises BackupRefused: it goes on.
    """
    import libvirt

    deadline = time.monotonic() + _END_TIMEOUT
    while _running_backup(domain) == socket:
        if time.monotonic() > deadline:
            raise BackupRefused(
                f"An earlier backup of the guest {domain.name()} does not end.",
                f"Run 'virsh domjobabort {domain.name()}' on the host, and see libvirt's log there.",
            )
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
    """Undoes the backups of the guest whose runs of this collection are gone.

    :raises VolumeInUse: such a run is alive.
    :raises BackupRefused: one cannot be undone. Of a guest that stays frozen this is said once, as nobody can tell
        whether it still is.
    """
    for claim in abandoned(domain.UUIDString()):
        try:
            _undo(domain, claim)
        except BackupRefused:
            claim.note(frozen=False)
            raise


def _remove(paths: t.Iterable[str]) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
