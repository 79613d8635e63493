# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guests that use a disk, and growing it under one that runs."""

from __future__ import annotations

import contextlib
import os
import stat
import typing as t
import xml.etree.ElementTree as ET

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    GuestNotFound,
    GuestRefused,
    StorageError,
    VolumeInvalid,
)

RUN = "/run/libvirt/qemu"
"""Where libvirt notes its QEMUs, and where a confined one may make sockets."""


class GuestDisk(t.NamedTuple):
    """A disk of a guest, as libvirt's domain XML describes it.

    :param guest: the domain's name.
    :param running: whether it runs, or is paused.
    :param target: the disk's name in the guest, such as C(vda).
    :param format: the disk's format, in qemu's words.
    :param read_only: whether the guest may only read it.
    :param backing: whether it is not the disk itself, but an image below it.
    """

    guest: str
    running: bool
    target: str
    format: str | None
    read_only: bool
    backing: bool

    def to_dict(self) -> dict[str, t.Any]:
        """Plain values, as returned to the user."""
        return dict(self._asdict())


class Drive(t.NamedTuple):
    """What a guest has at a target: a disk, or a drive with or without a medium.

    :param target: its name in the guest, such as C(vda).
    :param bus: such as C(virtio).
    :param device: C(disk), C(cdrom), C(floppy) or C(lun).
    :param path: the file or device of this host that is read; None for one elsewhere, or no medium.
    :param format: in qemu's words; None where the definition does not say.
    :param read_only: whether the guest may only read it.
    """

    target: str
    bus: str | None
    device: str
    path: str | None
    format: str | None
    read_only: bool

    def to_dict(self) -> dict[str, t.Any]:
        """Plain values, as returned to the user."""
        return dict(self._asdict())


def list_drives(connection: t.Any, domain: t.Any, live: bool = True) -> list[Drive]:
    """The disks and drives of a guest, in the order of its definition.

    :param live: whether as they are now, and not as they will be after the guest's next start.
    """
    return [
        Drive(
            disk.target,
            _attribute(element, "target", "bus"),
            element.get("device", "disk"),
            _source_path(connection, element.find("source")),
            disk.format,
            disk.read_only,
        )
        for element, disk in _described(domain, live)
    ]


def is_open(element: ET.Element) -> bool:
    """Whether the drive of an element is open."""
    return _attribute(element, "target", "tray") == "open"


def owner_of_qemu(domain: t.Any) -> os.stat_result:
    """What says who runs the QEMU of a running guest.

    :raises GuestRefused: it is not found.
    """
    try:
        with open(f"{RUN}/{domain.name()}.pid", encoding="ascii") as file:
            return os.stat(f"/proc/{int(file.read())}")
    except (OSError, ValueError) as err:
        raise GuestRefused(f"The QEMU of the guest {domain.name()} is not found: {err}.") from err


def find_element(domain: t.Any, target: str, live: bool) -> ET.Element | None:
    """The element in the domain XML of what the guest has at C(target); see L(list_drives)."""
    return next((element for element, disk in _described(domain, live) if disk.target == target), None)


def find_guests(connection: t.Any, path: str) -> list[GuestDisk]:
    """The disks of all guests, running or only defined, that lie in the file or device at C(path), by name."""
    domains = _domains(connection) if connection is not None else []
    found = [disk for domain in domains for disk in _disks(connection, domain, path)]
    return sorted(found, key=lambda disk: (disk.guest, disk.target))


def identity(path: str) -> tuple[str, int, int] | None:
    """What makes two paths the same file or block device; None when nothing is there."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    if stat.S_ISBLK(found.st_mode):
        return "device", found.st_rdev, 0
    return "file", found.st_dev, found.st_ino


def is_same(path: str, other: str) -> bool:
    """Whether two paths lead to the same file or block device; a logical volume that is not active has just a path."""
    found = identity(path)
    return path == other or (found is not None and found == identity(other))


def find_guest(connection: t.Any, name: str) -> t.Any:
    """The guest (C(libvirt.virDomain)) with this name or UUID.

    :raises GuestNotFound: there is none, or no libvirt.
    """
    if connection is None:
        raise GuestNotFound(f"There is no libvirt on this host to ask for the guest {name}.")
    import libvirt

    for look_up in (connection.lookupByName, connection.lookupByUUIDString):
        with contextlib.suppress(libvirt.libvirtError):
            return look_up(name)
    raise GuestNotFound(f"This host has no guest {name}.")


def find_guest_disk(connection: t.Any, domain: t.Any, target: str) -> tuple[GuestDisk, str]:
    """The guest's disk C(target), and the path that it lies at.

    :raises GuestNotFound: the guest has no such disk.
    :raises VolumeInvalid: it lies elsewhere than in a file or on a device of this host.
    """
    disks = [(element, disk) for element, disk in _described(domain) if element.get("device", "disk") == "disk"]
    for element, disk in disks:
        if disk.target == target:
            path = _source_path(connection, element.find("source"))
            if path is None:
                raise VolumeInvalid(
                    f"The disk {target} of the guest {domain.name()} is neither a file nor a device of this host."
                )
            return disk, path
    known = ", ".join(disk.target for _element, disk in disks) or "none"
    raise GuestNotFound(f"The guest {domain.name()} has no disk {target}.", f"Set 'disk' to one that it has: {known}.")


def grow_live(connection: t.Any, disk: GuestDisk, size: int) -> None:
    """Gives a running guest's disk C(size) bytes, so that the guest sees them (virDomainBlockResize).

    :raises StorageError: libvirt or QEMU refuses.
    """
    import libvirt

    try:
        connection.lookupByName(disk.guest).blockResize(disk.target, size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    except libvirt.libvirtError as err:
        raise StorageError(
            f"libvirt could not grow {disk.target} of the guest {disk.guest}: {err}.", "See libvirt's log on this host."
        ) from err


def seen_size(connection: t.Any, disks: t.Sequence[GuestDisk]) -> int | None:
    """The bytes that the running guest among C(disks) sees; None when none runs, or libvirt cannot tell."""
    running = [disk for disk in disks if disk.running and not disk.backing]
    if not running:
        return None
    import libvirt

    try:
        return int(connection.lookupByName(running[0].guest).blockInfo(running[0].target)[0])
    except libvirt.libvirtError:
        return None


def _domains(connection: t.Any) -> list[t.Any]:
    import libvirt

    try:
        return list(connection.listAllDomains())
    except libvirt.libvirtError:
        return []


def _disks(connection: t.Any, domain: t.Any, wanted: str) -> t.Iterator[GuestDisk]:
    for element, disk in _described(domain):
        layer: ET.Element | None = element
        while layer is not None:
            path = _source_path(connection, layer.find("source"))
            if path is not None and is_same(path, wanted):
                own = layer is element
                yield disk if own else disk._replace(format=_attribute(layer, "format", "type"), backing=True)
            layer = layer.find("backingStore")


def _described(domain: t.Any, live: bool = True) -> t.Iterator[tuple[ET.Element, GuestDisk]]:
    """The disks of a guest, CD drives among them, each with its element in the domain XML."""
    import libvirt

    try:
        flags = 0 if live else libvirt.VIR_DOMAIN_XML_INACTIVE
        name, running, described = domain.name(), bool(domain.isActive()), domain.XMLDesc(flags)
    except libvirt.libvirtError:  # it was undefined meanwhile
        return
    for element in ET.fromstring(described).iterfind("./devices/disk"):  # noqa: S314 (it is libvirt's own)
        target, image_format = _attribute(element, "target", "dev"), _attribute(element, "driver", "type")
        read_only = element.find("readonly") is not None
        yield element, GuestDisk(name, running, target or "", image_format, read_only, backing=False)


def _attribute(element: ET.Element, child: str, name: str) -> str | None:
    found = element.find(child)
    return found.get(name) if found is not None else None


def _source_path(connection: t.Any, source: ET.Element | None) -> str | None:
    if source is None:
        return None
    if source.get("pool"):
        return _volume_path(connection, source.get("pool", ""), source.get("volume", ""))
    return source.get("file") or source.get("dev")


def _volume_path(connection: t.Any, pool: str, volume: str) -> str | None:
    import libvirt

    try:
        return str(connection.storagePoolLookupByName(pool).storageVolLookupByName(volume).path())
    except libvirt.libvirtError:  # the pool is not started, or the volume is gone
        return None
