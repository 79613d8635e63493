# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The data plane of glance_image_export: what the disks are, and later their way to Glance."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    FormatMismatch,
    GuestRunning,
    SourceChanged,
)
from ansible_collections.imageferry.glance.plugins.module_utils._export.body import ImageForm, make_body
from ansible_collections.imageferry.glance.plugins.module_utils._export.recollection import Recollection
from ansible_collections.imageferry.glance.plugins.module_utils._export.subject import (
    Opened,
    Rules,
    Subject,
    opened_flat,
    subjects,
)
from ansible_collections.imageferry.glance.plugins.module_utils._http import http_options
from ansible_collections.imageferry.glance.plugins.module_utils._image.blocks import DataMap
from ansible_collections.imageferry.glance.plugins.module_utils._image.body import Body
from ansible_collections.imageferry.glance.plugins.module_utils._image.content import (
    Beginning,
    ContentHasher,
    is_zero_from,
    survey,
)
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.connection import connected
from ansible_collections.imageferry.glance.plugins.module_utils._sizes import parse_size
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.control import Control, SilentControl
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.exchange import HttpOptions
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.upload import Sent, upload

_AS_QCOW2 = "A guest can make its raw disk look like another format, so that Glance refuses it: set 'format: qcow2'."
_STORE = "X-Image-Meta-Store"  # Image API v2, "Upload binary image data"


def export_task(module: AnsibleModule) -> dict[str, t.Any]:
    """Says what the disks are, and where C(_images) says where to, brings them there; returns what the controller asks.

    :raises FerryError: it failed.
    """
    params = module.params
    control = Control(params["_transfer"]) if params["_transfer"] else SilentControl()
    names = ("source_format", "snapshot", "flatten", "live", "quiesce", "scratch_dir", "base")
    rules = Rules(**{name: params[name] for name in names})
    pushed: list[dict[str, t.Any]] = []
    try:
        with contextlib.ExitStack() as held:
            connection = held.enter_context(connected())
            found = held.enter_context(subjects(params, rules, connection, params["lock_timeout"]))
            if params["_images"] is None:
                return {"changed": False, "disks": [_describe(params, subject, rules, control) for subject in found]}
            headers = {_STORE: params["stores"][0]} if params["stores"] else {}
            options = dataclasses.replace(http_options(module, control.tokens), headers=headers)
            with opened_flat(found, rules, connection) as disks:
                for subject, disk in zip(found, disks):
                    recollection = _recollection(subject)
                    with subject.held_still():
                        pushed.append(_push(params, subject, disk, options, control))
                    recollection.keep(pushed[-1]["identity"])
            return {"changed": True, "disks": pushed}
    finally:
        control.close()


def content_of(params: dict[str, t.Any], connection: t.Any) -> str | None:
    """The identity of what is on an idle disk.

    None while a guest that runs may write to it, and where it is not what is on a disk of C(content_size) bytes.

    :param params: the options of C(volume_info_spec).
    :param connection: to libvirt, None where there is none.
    :raises FerryError: it cannot be read.
    """
    size = None if params["content_size"] is None else parse_size(params["content_size"], "content_size")
    rules = Rules(params["format"], None, flatten=True, live=False, quiesce="never", scratch_dir=None)
    with contextlib.suppress(GuestRunning), subjects({**params, "domain": None}, rules, connection, None) as [subject]:
        if size in (None, subject.virtual_size):
            return _identity(subject, rules, SilentControl(), reread=False)
        return _identity_of_beginning(subject, rules, size)
    return None


def _identity_of_beginning(subject: Subject, rules: Rules, size: int) -> str | None:
    """The identity of the first C(size) bytes, if only zeros follow: a volume may be larger than what is on it."""
    with opened_flat([subject], rules, None) as [disk]:
        if disk.flat.size < size or not is_zero_from(disk.flat, size):
            return None
        return survey(Beginning(disk.flat, size), lambda _position: None).identity


def _describe(
    params: dict[str, t.Any], subject: Subject, rules: Rules, control: Control | SilentControl
) -> dict[str, t.Any]:
    """What the controller needs to know to decide what is to be done."""
    known = params["_known"].get(subject.name)
    is_asked = known and subject.guest is None
    identity = _identity(subject, rules, control, params["reread"]) if is_asked else None
    held = subject.disk.provenance
    image_format = subject.disk.format if params["format"] == "keep" else params["format"]
    _form(params, image_format).check()
    return {
        "disk": subject.name,
        "key": subject.key,
        "image_format": image_format,
        "identity": identity,
        "virtual_size": subject.virtual_size,
        "metadata": (held.metadata if held else None) or {},
        "volume": {**subject.volume.describe(), "label": subject.volume.label, "format": subject.disk.format,
                   "virtual_size": subject.virtual_size, "live": subject.guest is not None},
    }  # fmt: skip


def _identity(subject: Subject, rules: Rules, control: Control | SilentControl, reread: bool) -> str:
    """The content of an idle disk, read unless it is remembered."""
    recollection = _recollection(subject)
    identity = None if reread else recollection.identity()
    if identity is None:
        with opened_flat([subject], rules, None) as [disk], subject.held_still():
            size = disk.flat.size
            identity = survey(disk.flat, lambda position: control.advance(position, size)).identity
        recollection.keep(identity)
    return identity


def _push(
    params: dict[str, t.Any],
    subject: Subject,
    disk: Opened,
    options: HttpOptions,
    control: Control | SilentControl,
) -> dict[str, t.Any]:
    """Brings one disk, which holds still, to where the controller says, unless its content is there already."""
    image, flat = params["_images"][subject.name], disk.flat
    told = {"disk": subject.name, "virtual_size": flat.size, "quiesced": disk.quiesced}

    def read(position: int) -> None:
        control.advance(position, flat.size)

    data, looked = DataMap.of(flat), None
    if (subject.guest and image["known"]) or data.data_bytes >= flat.size:  # storage that knows no holes may have some
        looked = survey(flat, read)
        if looked.identity in image["known"]:
            return {**told, "identity": looked.identity, "transfer": None}
        data = looked.data
    hasher = ContentHasher(flat.size)
    with make_body(flat, data, _form(params, image["format"]), hasher, read) as (body, staged):
        sent = _send(body, image, options, control)
    if looked is not None and looked.identity != hasher.identity:
        raise SourceChanged(f"{subject.volume.label} was written to while it was read.")
    transfer = sent.to_dict(flat.size - data.data_bytes, staged)
    return {**told, "identity": hasher.identity, "transfer": transfer, "digests": sent.digests}


def _send(body: Body, image: dict[str, t.Any], options: HttpOptions, control: Control | SilentControl) -> Sent:
    try:
        return upload(body, image["url"], options, control, image["hashes"])
    except FormatMismatch as err:
        raise FormatMismatch(err.what, _AS_QCOW2 if image["format"] == "raw" else None) from err


def _form(params: dict[str, t.Any], image_format: str) -> ImageForm:
    cluster_size = parse_size(params["cluster_size"], "cluster_size")
    return ImageForm(image_format, params["compat"], cluster_size, params["compress"], params["spool_dir"])


def _recollection(subject: Subject) -> Recollection:
    return Recollection(_memory_key(subject), subject.lasting_stamp())


def _memory_key(subject: Subject) -> str:
    """What tells what is read from all else that the disk could be read as."""
    read_as = (subject.key, subject.disk.format, subject.snapshot_id or "", str(len(subject.links)))
    return hashlib.sha256("\0".join(read_as).encode()).hexdigest()[:32]
