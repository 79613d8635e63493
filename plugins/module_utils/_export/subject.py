# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The disks that an export is of: found, judged, and opened flat."""

from __future__ import annotations

import contextlib
import hashlib
import os
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._disk.state import Disk, check_can_change, read_disk
from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    GuestRunning,
    HasClones,
    InvalidOption,
    SourceChanged,
    UnsupportedFormat,
    VolumeInUse,
    VolumeInvalid,
    VolumeNotFound,
)
from ansible_collections.imageferry.glance.plugins.module_utils._export.stamp import Stamp, is_device, stamp
from ansible_collections.imageferry.glance.plugins.module_utils._image import qemu_img
from ansible_collections.imageferry.glance.plugins.module_utils._image.backing import Link
from ansible_collections.imageferry.glance.plugins.module_utils._image.formats import FORMATS
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.backup import Backup, LiveDisk, backup
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.guests import (
    GuestDisk,
    find_guest,
    find_guest_disk,
    find_guests,
)
from ansible_collections.imageferry.glance.plugins.module_utils._nbd.client import NbdDisk
from ansible_collections.imageferry.glance.plugins.module_utils._nbd.interface import FlatDisk
from ansible_collections.imageferry.glance.plugins.module_utils._nbd.server import Layer, served
from ansible_collections.imageferry.glance.plugins.module_utils._volume.choose import open_volume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.interface import Volume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.storage import storage_errors

_MACHINE_ID = "/etc/machine-id"  # machine-id(5)


class Rules(t.NamedTuple):
    """Which disks may be exported, and how a running guest is treated.

    :param source_format: the format that the user says the disk has.
    :param snapshot: the name or id of the internal snapshot of a qcow2 that is wanted instead of its present content.
    :param flatten: whether a disk that is laid over others is exported together with them, not refused.
    :param live: whether the disk of a running guest may be exported.
    :param quiesce: see L(backup).
    :param scratch_dir: see L(backup).
    :param base: the path of the image of the chain that is left out, with all below it.
    """

    source_format: str | None
    snapshot: str | None
    flatten: bool
    live: bool
    quiesce: str
    scratch_dir: str | None
    base: str | None = None


class Subject(t.NamedTuple):
    """One disk to be exported.

    :param name: which one it is among several: the guest's word for it, or nothing.
    :param links: the images that it is laid over, as far as they are read.
    :param guest: the running guest's disk that it is; None when it is idle.
    :param snapshot_id: of the internal snapshot that is read.
    """

    name: str
    volume: Volume
    disk: Disk
    links: list[Link]
    guest: GuestDisk | None
    snapshot_id: str | None

    @property
    def virtual_size(self) -> int | None:
        """The bytes that a guest sees; None where only an opened disk can tell."""
        return None if self.snapshot_id else self.disk.virtual_size

    @property
    def key(self) -> str:
        """What tells this host's disk from all others, also at the next run."""
        machine = ""
        with contextlib.suppress(OSError), open(_MACHINE_ID, encoding="ascii") as file:
            machine = file.read().strip()
        if machine in ("", "uninitialized"):
            machine = os.uname().nodename
        return hashlib.sha256(f"{machine}\0{self.volume.path}".encode()).hexdigest()[:32]

    @property
    def paths(self) -> list[str]:
        """Of all images of the chain, the uppermost first."""
        return [self.volume.path, *(link.path for link in self.links)]

    def lasting_stamp(self) -> Stamp | None:
        """What also shows at the next run whether somebody wrote to the disk; None where nothing does.

        A guest that runs writes to it, and of a device nothing lasts.
        """
        is_kept = self.guest is None and not self.volume.is_block and not any(map(is_device, self.paths))
        return stamp(self.paths) if is_kept else None

    @contextlib.contextmanager
    def held_still(self) -> t.Iterator[None]:
        """Watches a disk, which is open, while it is read; that of a running guest is read as of one moment anyway.

        :raises SourceChanged: somebody wrote to it.
        """
        before = stamp(self.paths) if self.guest is None else None
        yield
        if before is not None and stamp(self.paths) != before:
            raise SourceChanged(f"{self.volume.label} was written to while it was read.")


@contextlib.contextmanager
def subjects(
    params: dict[str, t.Any], rules: Rules, connection: t.Any, wait: float | None
) -> t.Iterator[list[Subject]]:
    """The disks that a task's options name.

    :param connection: to libvirt, None where there is none.
    :param wait: the seconds to wait for imports to them, which are kept away from before anything is judged until this
        ends; None to let them be.
    :raises FerryError: one is not there, or is not one that can be exported.
    """
    with contextlib.ExitStack() as opened:
        if params["domain"] is None:
            volume = opened.enter_context(_kept(params, wait))
            yield [_find(volume, "", rules, connection)]
            return
        domain = find_guest(connection, params["domain"])
        found = []
        for target in [item["disk"] for item in params["disks"] or [params]]:
            disk, path = find_guest_disk(connection, domain, target)
            volume = opened.enter_context(_kept(_address(path), wait))
            own = rules if disk.format is None else rules._replace(source_format=disk.format)
            found.append(_find(volume, target, own, connection, domain.name()))
        yield found


def _address(path: str) -> dict[str, t.Any]:
    """What a guest's disk lies on, in the words of the options; a logical volume that is not active has no node."""
    is_block = is_device(path) or (path.startswith("/dev/") and not os.path.exists(path))
    return {"device" if is_block else "path": path}


@contextlib.contextmanager
def _kept(address: dict[str, t.Any], wait: float | None) -> t.Iterator[Volume]:
    with open_volume(address) as volume, contextlib.ExitStack() as kept:
        if wait is not None:
            kept.enter_context(volume.locked(wait))
        yield volume


def _find(volume: Volume, name: str, rules: Rules, connection: t.Any, owner: str | None = None) -> Subject:
    guests = find_guests(connection, volume.path)
    disk = read_disk(volume, rules.source_format, guests)
    if disk is None:
        raise VolumeNotFound(f"There is no {volume.label}.", "Check the address of the disk that is to be exported.")
    running = _writer(volume, guests, owner, rules)
    if not any(guest.running for guest in guests):  # nobody writes to what guests only read or stand on
        with contextlib.suppress(HasClones):
            volume.check_not_in_use()
    if disk.format not in FORMATS:
        raise UnsupportedFormat(f"{volume.label} is {disk.format}, and can be exported only if it is raw or qcow2.")
    if running is None:
        check_can_change(volume, disk, "source_format")
    links = _above_base(volume, disk.chain(volume.path), rules, running)
    if links and not rules.flatten:
        raise InvalidOption(
            f"{volume.label} is laid over {links[0].path}, and 'flatten' is false.",
            "Leave out 'flatten' to export the disk as a guest sees it.",
        )
    return Subject(name, volume, disk, links, running, _snapshot(volume, disk, rules, running))


def _writer(volume: Volume, guests: t.Sequence[GuestDisk], owner: str | None, rules: Rules) -> GuestDisk | None:
    """The running guest that writes to the volume; None when none does.

    :param owner: the one that may; None for any, but only one, as each knows only what itself writes.
    :raises GuestRunning: there is one, and it was to be left alone.
    :raises VolumeInUse: another does.
    """
    writers = [guest for guest in guests if guest.running and not guest.backing and not guest.read_only]
    if writers and not rules.live:
        raise GuestRunning(f"{volume.label} is the disk {writers[0].target} of the running guest {writers[0].guest}.")
    names = sorted({writer.guest for writer in writers})
    if names and names != [owner or names[0]]:
        raise VolumeInUse(
            f"{volume.label} is shared, and running guests may write to it: {', '.join(names)}.",
            "Shut down all of them, or all but the one that is exported.",
        )
    return writers[0] if writers else None


def _above_base(volume: Volume, chain: list[Link], rules: Rules, running: GuestDisk | None) -> list[Link]:
    """The part of the chain that is exported with the disk."""
    if rules.base is None:
        return chain
    if running is not None:
        raise InvalidOption(
            f"{volume.label} is the disk of a running guest, and libvirt backs that up with all that it is laid over.",
            "Leave out 'base', or shut down the guest.",
        )
    paths = [os.path.realpath(link.path) for link in chain]
    if os.path.realpath(rules.base) in paths:
        return chain[: paths.index(os.path.realpath(rules.base))]
    below = ", ".join(link.path for link in chain) or "nothing"
    raise InvalidOption(f"{volume.label} is not laid over {rules.base}, but over {below}.")


def _snapshot(volume: Volume, disk: Disk, rules: Rules, running: GuestDisk | None) -> str | None:
    """The id of the internal snapshot that is asked for."""
    if rules.snapshot is None:
        return None
    if disk.format != "qcow2" or running is not None:
        raise InvalidOption(f"{volume.label} is no idle qcow2, and so no internal snapshot of it can be exported.")
    with volume.open() as fd:
        known = qemu_img.info(fd, "qcow2").get("snapshots", [])
    for snapshot in known:
        if rules.snapshot in (snapshot["name"], snapshot["id"]):
            return str(snapshot["id"])
    names = ", ".join(snapshot["name"] for snapshot in known) or "none"
    raise InvalidOption(f"{volume.label} has no snapshot '{rules.snapshot}'.", f"Set 'snapshot' to one of: {names}.")


class Opened(t.NamedTuple):
    """A disk that can be read.

    :param quiesced: whether it is of a moment at which a running guest's file systems were frozen.
    """

    flat: FlatDisk
    quiesced: bool


@contextlib.contextmanager
def opened_flat(found: t.Sequence[Subject], rules: Rules, connection: t.Any) -> t.Iterator[list[Opened]]:
    """The disks, each as one flat stream that does not change; those of a running guest are of the same moment.

    :raises FerryError: one cannot be opened.
    """
    with contextlib.ExitStack() as opened:
        running = [subject for subject in found if subject.guest is not None]
        held = Backup("", quiesced=False)
        if running and running[0].guest is not None:
            domain = find_guest(connection, running[0].guest.guest)
            live = [LiveDisk(_target(subject), subject.volume.path) for subject in running]
            held = opened.enter_context(backup(domain, live, rules.quiesce, rules.scratch_dir))
        disks = []
        for subject in found:
            disk = NbdDisk(held.socket, _target(subject), subject.volume.label) if subject.guest else _served(subject)
            disks.append(Opened(opened.enter_context(disk), held.quiesced and subject.guest is not None))
        yield disks


def _target(subject: Subject) -> str:
    return subject.guest.target if subject.guest else ""


@contextlib.contextmanager
def _served(subject: Subject) -> t.Iterator[NbdDisk]:
    with contextlib.ExitStack() as opened:
        layers = [Layer(opened.enter_context(subject.volume.open()), _driver(subject.disk.format))]
        for link in subject.links:
            with storage_errors(f"read {link.path}"):
                file = opened.enter_context(open(link.path, "rb"))
            layers.append(Layer(file.fileno(), _driver(link.format or "")))
        yield opened.enter_context(served(layers, subject.volume.label, subject.snapshot_id))


def _driver(image_format: str) -> str:
    """QEMU's word for one of L(FORMATS)."""
    if image_format not in FORMATS:
        raise VolumeInvalid(f"A {image_format} image is in the chain, and only raw and qcow2 ones can be read.")
    return "raw" if image_format == "iso" else image_format
