# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The data plane of guest_cdrom: from a task's options to its result."""

from __future__ import annotations

import time
import typing as t
import xml.etree.ElementTree as ET

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.imageferry.glance.plugins.module_utils._disk.guest import describe_guest
from ansible_collections.imageferry.glance.plugins.module_utils._disk.state import read_disk
from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    GuestNotRunning,
    NoCdDrive,
    UnsupportedFormat,
    VolumeInvalid,
    VolumeNotFound,
)
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt import disc_server, served_disc
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.connection import required_connection
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.disks import change_medium, planes_of
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.guests import (
    find_element,
    find_guest,
    is_open,
    is_same,
    list_drives,
)
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.served_disc import Disc, ServedDisc
from ansible_collections.imageferry.glance.plugins.module_utils._volume.choose import open_volume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.interface import Volume

Medium = dict[str, t.Any]

_LOOK = 0.5
_SOURCE = {"file", "dev", "dir", "protocol", "pool", "type"}  # what says of a medium where it lies


def cdrom_task(module: AnsibleModule) -> dict[str, t.Any]:
    """Has a disc be in a guest's drive, or none; returns the task's result.

    :raises FerryError: it cannot be so.
    """
    params = module.params
    with required_connection() as connection:
        task = _Task(module, connection, find_guest(connection, params["guest"]))
        if params["_wait"]:
            return task.watch(params["_wait"])
        with served_disc.alone():
            if not module.check_mode:
                served_disc.end_unused(connection)
            if params["state"] == "ejected":
                return task.eject()
            if params["_image"]:
                return task.renew_image() if params["state"] == "renewed" else task.insert_image()
            with open_volume(params) as volume:
                return task.insert_volume(volume)


class _Task:
    """What is to become of a drive of a guest."""

    def __init__(self, module: AnsibleModule, connection: t.Any, domain: t.Any) -> None:
        self._params, self._is_check = module.params, module.check_mode
        self._connection, self._domain = connection, domain
        self._planes = planes_of(domain)
        self._target = self._find_drive(self._params["target"])
        self._before = self._medium(self._planes[0])

    def _find_drive(self, wanted: str | None) -> str:
        drives = [
            drive.target
            for drive in list_drives(self._connection, self._domain, self._planes[0])
            if drive.device == "cdrom"
        ]
        if wanted in drives or (wanted is None and drives):
            return wanted or drives[0]
        guest = self._domain.name()
        if drives:
            raise NoCdDrive(f"The guest {guest} has no CD drive {wanted}.", f"It has {', '.join(drives)}.")
        raise NoCdDrive(f"The guest {guest} has no CD drive.")

    def eject(self) -> dict[str, t.Any]:
        """Has no disc be in the drive."""
        planes = [live for live in self._planes if self._medium(live)]
        self._change(planes, None)
        if planes and not self._is_check:
            served_disc.end_unused(self._connection)
        return self._result(bool(planes), None, "ejected", "Nothing to do: there is no disc in")

    def insert_volume(self, volume: Volume) -> dict[str, t.Any]:
        """Has an ISO on this host be in the drive."""
        _check_is_iso(volume)
        medium = {"path": volume.path, "image": None}
        planes = [live for live in self._planes if not self._holds(live, volume.path)]
        self._change(planes, _describe_volume(volume))
        if planes and not self._is_check:
            served_disc.end_unused(self._connection)
        return self._result(bool(planes), medium, f"{volume.label} inserted", f"Nothing to do: {volume.label} is in")

    def renew_image(self) -> dict[str, t.Any]:
        """Has an image that is in the drive be readable for longer; one that is not stays out of it."""
        disc = self._disc()
        if self._domain.isActive() and self._place_of(disc).is_in_drive():
            return self.insert_image()
        told = self._result(False, self._before, "", f"Nothing to do: '{disc.name}' is not in")
        return {**told, "inserted": False}

    def insert_image(self) -> dict[str, t.Any]:
        """Has an image be in the drive that stays where Glance holds it."""
        if not self._domain.isActive():
            raise GuestNotRunning(
                f"The guest {self._domain.name()} is shut off, and only a running one reads an image from Glance.",
                "Start it first, or import the image with imageferry.glance.glance_image_import and insert that.",
            )
        disc = self._disc()
        place = self._place_of(disc)
        medium = {"path": None, "image": {"id": disc.image_id, "name": disc.name}}
        inserted, served = place.is_in_drive(), place.is_served()
        if not self._is_check:
            if served:
                place.renew(disc.token)
            else:
                place.serve(disc)
            if not inserted:
                self._change([True], place.describe())
                served_disc.end_unused(self._connection)
        done = f"'{disc.name}' {'served again' if inserted else 'inserted'}"
        renewed = f"A new token {'would be' if self._is_check else 'was'} handed out: '{disc.name}' is in"
        return self._result(not (inserted and served), medium, done, renewed)

    def watch(self, seconds: float) -> dict[str, t.Any]:
        """Renews the token of an image that is in the drive, and waits for so long, or until it is ejected."""
        disc = self._disc()
        with served_disc.alone():
            place = self._place_of(disc)
            if place.is_in_drive() and place.is_served():
                place.renew(disc.token)
        deadline = time.monotonic() + seconds
        while (inserted := place.is_in_drive()) and time.monotonic() < deadline:
            time.sleep(min(_LOOK, seconds))
        return {"changed": False, "inserted": inserted}

    def _place_of(self, disc: Disc) -> ServedDisc:
        return ServedDisc(self._domain, self._target, disc.image_id, disc.name)

    def _disc(self) -> Disc:
        image, params = self._params["_image"], self._params
        files = {
            disc_server.CA: params["_ca_data"],
            disc_server.CERT: params["_client_cert"],
            disc_server.KEY: params["_client_key"],
        }
        return Disc(
            image["id"],
            image["name"] or image["id"],
            image["url"],
            image["size"],
            params["validate_certs"] is not False,
            params["_token"] or "",
            {name: text for name, text in files.items() if text},
        )

    def _change(self, planes: t.Sequence[bool], medium: ET.Element | None) -> None:
        if not self._is_check:
            change_medium(self._domain, planes, self._target, medium, self._params["force"])

    def _medium(self, live: bool) -> Medium | None:
        """What is in the drive: a C(path) of this host, or an C(image) in Glance, or something else."""
        element = find_element(self._domain, self._target, live)
        source = element.find("source") if element is not None else None
        if source is None or not _SOURCE & set(source.keys()):
            return None
        path = self._path(live)
        claim = served_disc.find_claim(self._domain, self._target) if live and path is None else None
        return {"path": path, "image": {"id": claim.image_id, "name": claim.name} if claim else None}

    def _path(self, live: bool) -> str | None:
        drives = list_drives(self._connection, self._domain, live)
        return next((drive.path for drive in drives if drive.target == self._target), None)

    def _holds(self, live: bool, path: str) -> bool:
        """Whether the file or device is in the drive, and that closed; a drive that is not there needs nothing."""
        element, held = find_element(self._domain, self._target, live), self._path(live)
        if element is None:
            return True
        return held is not None and is_same(held, path) and not is_open(element)

    def _result(self, changed: bool, medium: Medium | None, done: str, already: str) -> dict[str, t.Any]:
        guest = self._domain.name()
        drive = f"{self._target} of the guest {guest}"
        msg = f"{'Would be ' if self._is_check else ''}{done}: {drive}." if changed else f"{already} {drive}."
        after = self._shown(medium)
        return {
            "changed": changed,
            "msg": msg[0].upper() + msg[1:],
            "guest": describe_guest(self._domain),
            "target": self._target,
            "inserted": medium is not None,
            "medium": medium,
            "diff": {"before": self._shown(self._before) if changed else after, "after": after},
        }

    def _shown(self, medium: Medium | None) -> dict[str, t.Any]:
        facts = {"guest": self._domain.name(), "target": self._target}
        return {"state": "inserted", **facts, **medium} if medium else {"state": "ejected", **facts}


def _check_is_iso(volume: Volume) -> None:
    disk = read_disk(volume, None, ())
    if disk is None:
        raise VolumeNotFound(f"{volume.label} does not exist.")
    if volume.is_unfinished():
        raise VolumeInvalid(f"An import to {volume.label} was not completed.", "Run the import again first.")
    if disk.format not in ("iso", "raw"):
        raise UnsupportedFormat(f"{volume.label} is {disk.format}, and no ISO.", "Insert an ISO.")


def _describe_volume(volume: Volume) -> ET.Element:
    element = ET.Element("disk", type="block" if volume.is_block else "file")
    ET.SubElement(element, "driver", name="qemu", type="raw")
    ET.SubElement(element, "source", {"dev" if volume.is_block else "file": volume.path})
    return element
