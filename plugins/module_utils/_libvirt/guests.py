# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guests that use a disk, and growing it under one that runs."""

from __future__ import annotations

import os
import stat
import typing as t
import xml.etree.ElementTree as ET

from ansible_collections.imageferry.glance.plugins.module_utils._errors import StorageError


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


def find_guests(connection: t.Any, path: str) -> list[GuestDisk]:
    """The disks of all guests, running or only defined, that lie in the file or device at C(path), by name."""
    wanted = identity(path)
    if connection is None or wanted is None:
        return []
    found = [disk for domain in _domains(connection) for disk in _disks(connection, domain, wanted)]
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


def _disks(connection: t.Any, domain: t.Any, wanted: tuple[str, int, int]) -> t.Iterator[GuestDisk]:
    import libvirt

    try:
        name, running, described = domain.name(), bool(domain.isActive()), domain.XMLDesc()
    except libvirt.libvirtError:  # it was undefined meanwhile
        return
    for element in ET.fromstring(described).iterfind("./devices/disk"):  # noqa: S314 (it is libvirt's own)
        layer: ET.Element | None = element
        while layer is not None:
            source, driver = layer.find("source"), layer.find("format" if layer is not element else "driver")
            path = _source_path(connection, source)
            if path is not None and identity(path) == wanted:
                target = element.find("target")
                yield GuestDisk(
                    name,
                    running,
                    target.get("dev", "") if target is not None else "",
                    driver.get("type") if driver is not None else None,
                    element.find("readonly") is not None,
                    layer is not element,
                )
            layer = layer.find("backingStore")


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
