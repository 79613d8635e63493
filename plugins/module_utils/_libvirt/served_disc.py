# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An image in Glance as the disc in a running guest's drive: who serves it, and when that ends.

Each has a private folder with its token, and a program of its own, L(disc_server). The socket lies in the guest's own
folder, which its QEMU may reach also where AppArmor confines it, and which libvirt removes with the guest.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import typing as t
import xml.etree.ElementTree as ET

from ansible_collections.imageferry.glance.plugins.module_utils._errors import GuestRefused, TransferFailed
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt import disc_server
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.guests import (
    RUN,
    find_element,
    is_open,
    owner_of_qemu,
)

_PREFIX = f"{RUN}/imageferry-cdrom-"
_OF_GUEST = "/var/lib/libvirt/qemu/domain-{}-*"
_CLAIM, _LOG, _PROGRAM = "claim", "log", "server.py"
_PATH = "/usr/bin:/bin:/usr/sbin:/sbin"
_START_TIMEOUT = 120.0
_END_TIMEOUT = 5.0
_POLL = 0.05
_PATIENCE = 20.0  # seconds that a read waits for a new token: less than the 30 after which guests reset the drive
_RECONNECT = "30"  # seconds for which QEMU holds a read back while nobody serves; older libvirts pass over it


class Disc(t.NamedTuple):
    """An image that a guest reads where Glance holds it.

    :param url: its address in Glance.
    :param size: its bytes.
    :param verify: whether to check Glance's certificate.
    :param token: that Glance wants.
    :param files: the certificates, by the names that L(disc_server) has for them.
    """

    image_id: str
    name: str
    url: str
    size: int
    verify: bool
    token: str
    files: dict[str, str]


class Claim(t.NamedTuple):
    """What a folder is for."""

    guest: str
    target: str
    image_id: str
    name: str
    socket: str


class ServedDisc:
    """The place of a disc in a drive of a running guest, served or not yet.

    :param target: of the drive.
    :raises GuestRefused: libvirt's folder of the guest is not found.
    """

    def __init__(self, domain: t.Any, target: str, image_id: str, name: str) -> None:
        self._domain = domain
        socket = os.path.join(_folder_of_guest(domain), f"imageferry-{target}-{image_id[:8]}")
        self.claim = Claim(domain.UUIDString(), target, image_id, name, socket)
        self._folder = f"{_PREFIX}{self.claim.guest}-{target}-{image_id}"

    def is_in_drive(self) -> bool:
        """Whether the guest has it in its drive, which is closed."""
        return _is_used(self._domain, self.claim)

    def is_served(self) -> bool:
        """Whether it is served, so that the guest can read it."""
        return _is_alive(self._folder)

    def describe(self) -> ET.Element:
        """The medium, for L(change_medium)."""
        element = ET.Element("disk", type="network")
        ET.SubElement(element, "driver", name="qemu", type="raw")
        source = ET.SubElement(element, "source", protocol="nbd")
        ET.SubElement(source, "host", transport="unix", socket=self.claim.socket)
        ET.SubElement(source, "reconnect", delay=_RECONNECT)
        return element

    def renew(self, token: str) -> None:
        """Has the next read use this token."""
        draft = os.path.join(self._folder, f"{disc_server.TOKEN}.new")
        _write(draft, token)
        os.rename(draft, os.path.join(self._folder, disc_server.TOKEN))

    def serve(self, disc: Disc) -> None:
        """Starts to serve it, until it is ended, or its guest has gone.

        :raises TransferFailed: Glance does not give it to this host.
        :raises GuestRefused: the guest's QEMU is not found.
        """
        _end(self._folder)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.claim.socket)  # that of a server which was killed
        os.mkdir(self._folder, 0o700)
        try:
            self._start(disc)
        except BaseException:
            _end(self._folder)
            raise

    def _start(self, disc: Disc) -> None:
        settings: disc_server.Settings = {
            "url": disc.url, "size": disc.size, "verify": disc.verify, "socket": self.claim.socket,
            "patience": _PATIENCE,
        }  # fmt: skip
        files = {
            **disc.files,
            disc_server.TOKEN: disc.token,
            disc_server.SETTINGS: json.dumps(settings),
            _CLAIM: json.dumps(self.claim._asdict()),
            _PROGRAM: inspect.getsource(disc_server),
        }
        for name, text in files.items():
            _write(os.path.join(self._folder, name), text)
        log = os.path.join(self._folder, _LOG)
        with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as errors:
            process = subprocess.Popen(  # pylint: disable=ansible-bad-function
                [sys.executable, "-I", os.path.join(self._folder, _PROGRAM), self._folder],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                cwd="/",
                env={"PATH": _PATH},
                start_new_session=True,
            )
        self._wait_until_served(process, log)
        owner = owner_of_qemu(self._domain)
        os.lchown(self.claim.socket, owner.st_uid, owner.st_gid)  # QEMU may put a link in its place

    def _wait_until_served(self, process: subprocess.Popen[bytes], log: str) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while not (os.path.exists(self.claim.socket) and self.is_served()):
            if process.poll() is not None or time.monotonic() > deadline:
                with open(log, encoding="utf-8", errors="replace") as file:
                    said = (file.read().strip().splitlines() or ["no answer in time"])[-1]
                process.kill()
                raise TransferFailed(
                    f"This host cannot read the image '{self.claim.name}': {said.rstrip('.')}.",
                    "See that the host reaches Glance; 'host_interface' names another endpoint.",
                )
            time.sleep(_POLL)


def find_claim(domain: t.Any, target: str) -> Claim | None:
    """The disc that is in a drive of a guest; None when it is none of these."""
    for _folder, claim in _claims():
        if claim.guest == domain.UUIDString() and claim.target == target and _is_used(domain, claim):
            return claim
    return None


def end_unused(connection: t.Any) -> None:
    """Ends all that serve a disc which is in no drive any more, or whose guest has gone."""
    import libvirt

    for folder, claim in _claims():
        used = False
        with contextlib.suppress(libvirt.libvirtError):
            used = _is_used(connection.lookupByUUIDString(claim.guest), claim)
        if not used:
            _end(folder)
            with contextlib.suppress(OSError):
                os.unlink(claim.socket)


@contextlib.contextmanager
def alone() -> t.Iterator[None]:
    """Keeps others from starting and ending discs on this host until this ends."""
    os.makedirs(RUN, exist_ok=True)
    with open(os.open(f"{_PREFIX}lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _claims() -> t.Iterator[tuple[str, Claim]]:
    for folder in glob.glob(f"{_PREFIX}*/"):
        try:
            with open(os.path.join(folder, _CLAIM), encoding="utf-8") as file:
                claim = Claim(**json.load(file))
        except (OSError, ValueError, TypeError):  # it has just been removed
            continue
        yield folder, claim


def _is_used(domain: t.Any, claim: Claim) -> bool:
    if not domain.isActive():
        return False
    element = find_element(domain, claim.target, live=True)
    host = element.find("source/host") if element is not None else None
    if element is None or host is None:
        return False
    return host.get("socket") == claim.socket and not is_open(element)


def _is_alive(folder: str) -> bool:
    """Whether the program that serves a disc runs, which holds a lock."""
    try:
        with open(os.path.join(folder, disc_server.LOCK), "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def _end(folder: str) -> None:
    """Ends what serves the disc of a folder, and removes the folder."""
    deadline = time.monotonic() + _END_TIMEOUT
    with contextlib.suppress(OSError, ValueError):
        with open(os.path.join(folder, disc_server.PID), encoding="ascii") as file:
            pid = int(file.read())
        while _is_alive(folder):
            os.kill(pid, signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL)
            time.sleep(_POLL)
    shutil.rmtree(folder, ignore_errors=True)


def _folder_of_guest(domain: t.Any) -> str:
    found = glob.glob(_OF_GUEST.format(domain.ID()))
    if len(found) != 1:
        raise GuestRefused(
            f"libvirt's folder of the running guest {domain.name()} is not found in {os.path.dirname(_OF_GUEST)}.",
            "See that libvirt runs this guest in its system instance.",
        )
    return found[0]


def _write(path: str, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
