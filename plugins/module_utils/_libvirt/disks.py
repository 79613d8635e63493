# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Giving a guest disks and media, and taking them away, as it runs and in its definition."""

from __future__ import annotations

import contextlib
import itertools
import string
import time
import typing as t
import xml.etree.ElementTree as ET

from ansible_collections.imageferry.glance.plugins.module_utils._errors import GuestKeepsDisk, GuestRefused
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.guests import Drive, find_element, is_open

_PREFIXES = {"virtio": "vd", "scsi": "sd", "sata": "sd", "usb": "sd", "ide": "hd"}
BUSES = tuple(_PREFIXES)
_POLL = 0.2
_UNPLUGGING = "already in the process of unplug"  # QEMU's words for a guest that an earlier run has asked


def planes_of(domain: t.Any) -> list[bool]:
    """Where a guest has disks: V(True) as it runs, V(False) in its definition."""
    return [live for live, there in ((True, domain.isActive()), (False, domain.isPersistent())) if there]


def next_target(bus: str, taken: t.Collection[str]) -> str:
    """The first name on a bus that no disk has."""
    letters = string.ascii_lowercase
    suffixes = itertools.chain(letters, map("".join, itertools.product(letters, repeat=2)))
    return next(name for suffix in suffixes if (name := _PREFIXES[bus] + suffix) not in taken)


def describe_disk(drive: Drive, is_block: bool) -> str:
    """The C(disk) element of a disk of this host, whose format is named, so that nobody guesses it."""
    kind = "block" if is_block else "file"
    element = ET.Element("disk", type=kind, device=drive.device)
    ET.SubElement(element, "driver", name="qemu", type=drive.format or "raw")
    ET.SubElement(element, "source", {"dev" if is_block else "file": drive.path or ""})
    ET.SubElement(element, "target", dev=drive.target, bus=drive.bus or "")
    if drive.read_only:
        ET.SubElement(element, "readonly")
    return ET.tostring(element, encoding="unicode")


def attach(domain: t.Any, planes: t.Iterable[bool], described: str) -> None:
    """Gives a guest the disk that is described.

    :raises GuestRefused: libvirt or QEMU refuses.
    """
    with _refusals(domain, "attach the disk to"):
        domain.attachDeviceFlags(described, _flags(planes))


def detach(domain: t.Any, targets: t.Mapping[bool, str], timeout: float) -> None:
    """Takes a disk from a guest, and waits until one that runs has let go of it.

    :param targets: where the disk is, see L(planes_of), and at which target there.
    :param timeout: the seconds to wait for that.
    :raises GuestKeepsDisk: it took longer.
    :raises GuestRefused: libvirt or QEMU refuses.
    """
    for live, target in targets.items():
        element = find_element(domain, target, live)
        if element is None:
            continue
        with _refusals(domain, f"detach {target} from", but=_UNPLUGGING):
            domain.detachDeviceFlags(ET.tostring(element, encoding="unicode"), _flags([live]))
        if live:
            _wait_until_gone(domain, target, timeout)


def _wait_until_gone(domain: t.Any, target: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while find_element(domain, target, live=True) is not None:
        if time.monotonic() > deadline:
            raise GuestKeepsDisk(f"The running guest {domain.name()} has not let go of {target} in {timeout:g} s.")
        time.sleep(_POLL)


def _flags(planes: t.Iterable[bool]) -> int:
    import libvirt

    flags = 0
    for live in planes:
        flags |= libvirt.VIR_DOMAIN_AFFECT_LIVE if live else libvirt.VIR_DOMAIN_AFFECT_CONFIG
    return flags


def change_medium(domain: t.Any, planes: t.Iterable[bool], target: str, medium: ET.Element | None, force: bool) -> None:
    """Puts a medium into the drive at C(target), or takes it out.

    :param medium: the C(disk) element whose type, driver and source describe it; None for no medium.
    :param force: whether to open the drive even if the guest has locked it.
    :raises GuestRefused: libvirt, QEMU or the guest refuses.
    """
    import libvirt

    for live in planes:
        element = find_element(domain, target, live)
        if element is None:
            continue
        flags = _flags([live]) | (libvirt.VIR_DOMAIN_DEVICE_MODIFY_FORCE if force and live else 0)
        was_open = is_open(element)
        for drive in element.findall("target"):
            drive.attrib.pop("tray", None)
        # A medium that libvirt takes to be there is not inserted again, and a drive that the guest opened stays so.
        for content in [None, medium] if was_open and medium is not None else [medium]:
            _fill(element, content)
            with _refusals(domain, f"change the medium in {target} of"):
                domain.updateDeviceFlags(ET.tostring(element, encoding="unicode"), flags)


def _fill(drive: ET.Element, medium: ET.Element | None) -> None:
    """Has the element of a drive describe the medium."""
    for name in ("source", "backingStore", "driver"):
        for child in drive.findall(name):
            drive.remove(child)
    drive.set("type", medium.get("type", "file") if medium is not None else "file")
    drive[:0] = list(medium) if medium is not None else []


@contextlib.contextmanager
def _refusals(domain: t.Any, attempt: str, but: str | None = None) -> t.Iterator[None]:
    """Turns what libvirt refuses into this collection's error.

    :param but: words of a refusal that is none.
    """
    import libvirt

    try:
        yield
    except libvirt.libvirtError as err:
        if but is not None and but in str(err):
            return
        said = str(err).rstrip(".")
        raise GuestRefused(f"libvirt could not {attempt} the guest {domain.name()}: {said}.") from err
