# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An import: what is asked for, whether anything has to be done, and doing it."""

from __future__ import annotations

import dataclasses
import os
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    DamagedImage,
    FerryError,
    Unverifiable,
    VolumeExists,
)
from ansible_collections.imageferry.glance.plugins.module_utils._image import qemu_img
from ansible_collections.imageferry.glance.plugins.module_utils._image.formats import HEAD_SIZE, ImageFacts, check_head
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.digest import Digest
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.receive import BUFFER, Received, Reception
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.source import HttpSource
from ansible_collections.imageferry.glance.plugins.module_utils._volume.file import storage_errors
from ansible_collections.imageferry.glance.plugins.module_utils._volume.interface import Staged, Volume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import Provenance

_QCOW2_OVERHEAD = 2
"""How many times larger than its disk a qcow2 may be; its own structure takes a thousandth, snapshots the rest."""


@dataclasses.dataclass(frozen=True)
class ImportRequest:
    """What is to be imported, and under which rules.

    :param wanted: the provenance that the volume will have.
    :param overwrite: V(never), V(different) or V(always).
    :param allow_unverified: whether an image without any hash may be carried.
    :param max_virtual_size: the largest disk, in bytes.
    :param lock_timeout: seconds to wait for another import to the same volume.
    """

    wanted: Provenance
    overwrite: str
    allow_unverified: bool
    max_virtual_size: int
    lock_timeout: float

    @property
    def digest(self) -> Digest | None:
        """The hash that the bytes must have."""
        if self.wanted.hash_algo and self.wanted.hash_value:
            return Digest(self.wanted.hash_algo, self.wanted.hash_value)
        return None


class Plan(t.NamedTuple):
    """What is to be done, and why: C(action) is V(unchanged), V(adopt), V(import) or V(replace)."""

    action: str
    reason: str
    before: Provenance | None = None


def make_plan(request: ImportRequest, volume: Volume) -> Plan:
    """Decides what an import has to do; changes nothing.

    :raises VolumeExists: something else is there, and may not be replaced.
    :raises VolumeInUse: what is there would have to be replaced, and is in use.
    :raises VolumeInvalid: what is there is not a file.
    """
    there = volume.stat()
    if there is None:
        return Plan("import", f"{volume.label} did not exist")
    if volume.is_unfinished():
        volume.check_not_in_use()
        return Plan("import", f"an import to {volume.label} had not been completed")
    held = volume.provenance()
    if request.overwrite != "always":
        if held is not None and held.is_same_image(request.wanted):
            return Plan("unchanged", f"{volume.label} already holds this image", held)
        if held is None and _has_content(request, volume, there.size):
            return Plan("adopt", f"{volume.label} already had this image's content, and is now known as it")
    holds = f"the image {held.name or held.source}" if held else "something of unknown origin"
    if request.overwrite == "never":
        raise VolumeExists(f"{volume.label} exists and holds {holds}.")
    volume.check_not_in_use()
    return Plan("replace", f"{volume.label} held {holds}", held)


def carry_out(
    request: ImportRequest, volume: Volume, source: HttpSource, watcher: t.Any
) -> tuple[Plan, Received | None]:
    """Does what L(make_plan) decides, and returns it with what was received.

    :raises FerryError: it failed; what was there before is untouched, and at most a part to go on with is left.
    """
    plan = make_plan(request, volume)
    if plan.action in ("import", "replace"):
        with volume.staged(request.lock_timeout, request.wanted, request.digest is not None) as staged:
            plan = make_plan(request, volume)  # again: another import may have ended while this one waited
            if plan.action in ("import", "replace"):
                return plan, _fetch(request, volume, source, watcher, staged, plan)
    if plan.action == "adopt":
        volume.adopt(request.wanted)
    return plan, None


def _fetch(
    request: ImportRequest, volume: Volume, source: HttpSource, watcher: t.Any, staged: Staged, plan: Plan
) -> Received:
    if request.digest is None and not request.allow_unverified:
        raise Unverifiable("There is no hash to verify the image with.")
    is_qcow2 = request.wanted.format == "qcow2"
    if is_qcow2:
        qemu_img.require_qemu_img()

    source.learn_size()

    def check_first(head: bytes, size: int | None) -> None:
        _judge(request, head, size)
        staged.reserve(size, 0 if request.wanted.format == "raw" else size or 0)  # a raw disk may be mostly holes

    limit = request.max_virtual_size * (_QCOW2_OVERHEAD if is_qcow2 else 1)
    with storage_errors(f"write {volume.label}"):
        reception = Reception(source, staged.sink, request.digest, check_first, watcher, limit)
        received = reception.run(staged.held)
    if not received.size:
        raise DamagedImage("The image is empty.")
    _judge(request, os.pread(staged.fd, HEAD_SIZE, 0), received.size)
    if is_qcow2:
        qemu_img.check(staged.fd, "qcow2")
    if plan.action == "replace" and volume.stat() is not None:
        volume.check_not_in_use()
    staged.publish(dataclasses.replace(request.wanted, size=received.size), over=plan.action == "replace")
    return received


def _judge(request: ImportRequest, head: bytes, size: int | None) -> ImageFacts:
    return check_head(head, request.wanted.format, size, request.max_virtual_size)


def _has_content(request: ImportRequest, volume: Volume, size: int) -> bool:
    """Whether the file holds the image's very bytes; it is only read when its size is the image's."""
    if request.digest is None or (request.wanted.size is not None and request.wanted.size != size):
        return False
    hasher = request.digest.hasher()
    with (
        volume.open() as fd,
        storage_errors(f"read {volume.label}"),
        open(fd, "rb", buffering=0, closefd=False) as file,
    ):
        buffer = bytearray(BUFFER)
        while length := file.readinto(buffer):
            hasher.update(memoryview(buffer)[:length])
    return hasher.hexdigest() == request.digest.value


def describe_volume(volume: Volume, image_format: str) -> dict[str, t.Any]:
    """The C(volume) of a task's result."""
    facts: dict[str, t.Any] = {**volume.describe(), "format": image_format}
    there = volume.stat()
    if there is not None:
        with volume.open() as fd:
            head = os.pread(fd, HEAD_SIZE, 0)
        held = volume.provenance()
        try:
            virtual_size = check_head(head, image_format, there.size, None).virtual_size
        except FerryError:  # a guest has written to it since
            virtual_size = None
        facts.update(
            size=there.size,
            allocated=there.allocated,
            virtual_size=virtual_size,
            provenance=held.to_dict() if held else None,
        )
    return facts
