# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether an import has anything to do, and doing it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._disk.creation import BLANK
from ansible_collections.imageferry.glance.plugins.module_utils._disk.growth import Growth, grow, plan_growth
from ansible_collections.imageferry.glance.plugins.module_utils._disk.state import read_disk
from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    FerryError,
    VolumeExists,
    VolumeInUse,
)
from ansible_collections.imageferry.glance.plugins.module_utils._image.formats import HEAD_SIZE, check_head
from ansible_collections.imageferry.glance.plugins.module_utils._import.methods import check_can_fetch, fetch
from ansible_collections.imageferry.glance.plugins.module_utils._import.request import ImportRequest
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.connection import connected
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.receive import Received, Source, Watcher
from ansible_collections.imageferry.glance.plugins.module_utils._volume.interface import Volume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import Provenance
from ansible_collections.imageferry.glance.plugins.module_utils._volume.sparse import pieces
from ansible_collections.imageferry.glance.plugins.module_utils._volume.storage import storage_errors


class Plan(t.NamedTuple):
    """What is to be done, and why: C(action) is V(unchanged), V(grow), V(adopt), V(import) or V(replace).

    :param growth: what growing it takes, and the sizes before and after.
    """

    action: str
    reason: str
    before: Provenance | None = None
    growth: Growth | None = None


def make_plan(request: ImportRequest, volume: Volume) -> Plan:
    """Decides what an import has to do; changes nothing.

    :raises VolumeExists: something else is there, and may not be replaced.
    :raises VolumeInUse: what is there would have to be replaced, and is in use.
    :raises VolumeInvalid: what is there can be no volume of this kind.
    :raises Unverifiable, MissingDependency: see L(check_can_fetch).
    """
    plan = _decide(request, volume)
    if plan.action in ("import", "replace"):
        check_can_fetch(request)
    return plan


def _decide(request: ImportRequest, volume: Volume) -> Plan:
    there = volume.stat()
    if there is None:
        return Plan("import", f"{volume.label} did not exist")
    held = volume.provenance()
    if volume.is_unfinished() or (held is None and volume.is_blank()):
        volume.check_writable()
        volume.check_not_in_use()
        why = "an import to it had not been completed" if volume.is_unfinished() else "nothing but zeros was on it"
        return Plan("import", f"{volume.label} was there, and {why}")
    if request.overwrite != "always":
        if held is not None and held.is_same_image(request.wanted) and held.format == request.wanted.format:
            return _plan_held(request, volume, held)
        if request.is_copy and _has_content(request, volume, there.size, held):
            return _plan_adopted(request, volume, held)
    holds = _named(held)
    if held is not None and held.is_doubtful(request.wanted):
        holds += f", of which no {request.wanted.hash_algo} is known"
    is_image = held is not None and held.is_image
    if request.overwrite == "never" or (request.overwrite == "imported" and not is_image):
        raise VolumeExists(f"{volume.label} exists and holds {holds}.")
    volume.check_writable()
    volume.check_not_in_use()
    return Plan("replace", f"{volume.label} held {holds}", held)


def _named(held: Provenance | None) -> str:
    """What a volume holds, in words."""
    if held is None:
        return "something of unknown origin"
    if held.is_image:
        return f"the image {held.name or held.source} as {held.format}"
    return "a disk that was made blank" if held.source == BLANK else f"a clone of {held.source}"


def _plan_held(request: ImportRequest, volume: Volume, held: Provenance) -> Plan:
    """What is left to do where the image is already: giving its disk the size that is asked for."""
    growth = _plan_growth(request, volume)
    if growth is None:
        return Plan("unchanged", f"{volume.label} already holds this image", held)
    return Plan("grow", growth.reason, held, growth)


def _plan_adopted(request: ImportRequest, volume: Volume, held: Provenance | None) -> Plan:
    """What is to be done where the image's content is already, and nobody knows it for that."""
    reason = f"{volume.label} already had this image's content, and is now known as it"
    growth = _plan_growth(request, volume)
    return Plan("adopt", f"{reason}; it grows: {growth.reason}" if growth else reason, held, growth)


def _plan_growth(request: ImportRequest, volume: Volume) -> Growth | None:
    """What it takes to give the image's disk the size that is asked for; None when it has it."""
    image_format = request.wanted.format
    disk = read_disk(volume, image_format, ()) if request.min_size and image_format in ("raw", "qcow2") else None
    if disk is None or disk.virtual_size is None or disk.virtual_size >= request.min_size:
        return None
    with connected() as connection:
        growth = plan_growth(volume, str(request.min_size), image_format, None, connection, request.headroom)
    return growth if growth.changes else None


def carry_out(
    request: ImportRequest, volume: Volume, open_source: t.Callable[[], Source], watcher: Watcher
) -> tuple[Plan, Received | None]:
    """Does what L(make_plan) decides, and returns it with what was received.

    :param open_source: called only if there is anything to receive.
    :raises FerryError: it failed; a file that was there before is untouched, a device is marked as unfinished from its
        first byte on; at most a part to go on with is left.
    """
    plan = _first_plan(request, volume)
    if plan.action in ("adopt", "grow"):
        with volume.locked(request.lock_timeout):
            plan = make_plan(request, volume)  # again: others may have written to it while this one waited
            _settle(request, volume, plan)
    if plan.action in ("import", "replace"):
        resumable = request.is_copy and request.digest is not None
        with volume.staged(request.lock_timeout, request.wanted, resumable) as staged:
            plan = make_plan(request, volume)  # again: another import may have ended while this one waited
            if plan.action in ("import", "replace"):
                with contextlib.closing(open_source()) as source:
                    received = fetch(request, volume, source, staged, watcher)
                if plan.action == "replace" and volume.stat() is not None:
                    volume.check_not_in_use()
                provenance = dataclasses.replace(request.wanted, size=received.size)
                staged.publish(provenance, over=plan.action == "replace")
                return plan, received
            _settle(request, volume, plan)
    return plan, None


def _first_plan(request: ImportRequest, volume: Volume) -> Plan:
    """What L(make_plan) decides, once no other import to the volume goes on that has it in use."""
    try:
        return make_plan(request, volume)
    except VolumeInUse:
        with volume.locked(request.lock_timeout):
            return make_plan(request, volume)


def _settle(request: ImportRequest, volume: Volume, plan: Plan) -> None:
    """Does what takes no transfer."""
    if plan.action == "adopt":
        held = plan.before
        size = request.wanted.size or (held.size if held else None)
        volume.adopt(dataclasses.replace(request.wanted, size=size, adopted=held.adopted if held else True))
    if plan.growth is not None:
        with connected() as connection:
            grow(volume, plan.growth, connection)


def _has_content(request: ImportRequest, volume: Volume, size: int, held: Provenance | None) -> bool:
    """Whether the volume holds the image's very bytes, as nothing that is known of it says.

    It is only read when its size allows that; what is known to be from there may have been grown.
    """
    is_enough = request.is_verifiable or request.allow_unverified
    if request.digest is None or not is_enough or not (held is None or held.is_doubtful(request.wanted)):
        return False
    end = request.wanted.size or (held.size if held else None)
    if volume.is_block and end is None:
        return False
    if end is not None and (size < end if volume.is_block or held else size != end):
        return False
    hasher = request.digest.hasher()
    with volume.open() as fd, storage_errors(f"read {volume.label}"):
        for piece in pieces(fd, size if end is None else end):
            hasher.update(piece)
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
