# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The data plane of glance_image_import: from a task's options to its result."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.imageferry.glance.plugins.module_utils._disk.growth import SECTOR
from ansible_collections.imageferry.glance.plugins.module_utils._disk.qcow2 import check_headroom
from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    InvalidOption,
    UnsupportedFormat,
)
from ansible_collections.imageferry.glance.plugins.module_utils._http import (
    Addresses,
    hide_addresses,
    hide_headers,
    http_options,
)
from ansible_collections.imageferry.glance.plugins.module_utils._image.formats import FORMATS
from ansible_collections.imageferry.glance.plugins.module_utils._image.qcow2 import check_kind
from ansible_collections.imageferry.glance.plugins.module_utils._image.qemu_img import Qcow2Options
from ansible_collections.imageferry.glance.plugins.module_utils._import.plan import (
    Plan,
    carry_out,
    describe_volume,
    make_plan,
)
from ansible_collections.imageferry.glance.plugins.module_utils._import.request import ImportRequest
from ansible_collections.imageferry.glance.plugins.module_utils._module import mode_of_new_file
from ansible_collections.imageferry.glance.plugins.module_utils._sizes import format_size, parse_size, round_up
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.checksum import read_checksum
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.control import Control, SilentControl
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.digest import Digest
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.exchange import HttpOptions, public_url
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.parallel import (
    ParallelSource,
    parse_connections,
)
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.receive import Received
from ansible_collections.imageferry.glance.plugins.module_utils._volume.choose import open_volume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.interface import Volume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import Provenance

_NOT_KEPT = {
    *("id", "name", "size", "virtual_size", "checksum", "os_hash_algo", "os_hash_value", "disk_format"),
    *("container_format", "status", "visibility", "protected", "os_hidden", "owner", "created_at", "updated_at"),
    *("file", "schema", "self", "locations", "direct_url", "stores", "deleted", "deleted_at", "is_base"),
}
"""What Glance says of an image that the volume does not need to keep: kept already, about the cloud, or fleeting."""


def import_task(module: AnsibleModule) -> dict[str, t.Any]:
    """Imports as the module's options say; returns the task's result.

    :raises FerryError: it failed.
    """
    params = module.params
    given = hide_addresses(module)
    control = Control(params["_transfer"]) if params["_transfer"] else SilentControl()
    options = dataclasses.replace(
        http_options(module, control.tokens),
        headers=hide_headers(module),
        connections=parse_connections(params["connections"]),
    )
    try:
        request = _request(module, given, options)
        with open_volume(params, mode_of_new_file(module), _preallocation(request)) as volume:
            if module.check_mode:
                plan, received = make_plan(request, volume), None
            else:
                plan, received = carry_out(
                    request, volume, lambda: ParallelSource(given.url, request.wanted.size, options), control
                )
            return _result(module, request, volume, plan, received)
    finally:
        control.close()


def _request(module: AnsibleModule, given: Addresses, options: HttpOptions) -> ImportRequest:
    params = module.params
    source_format = params["_image"]["disk_format"] if params["_image"] else _source_format(params)
    check_headroom(params["headroom"])
    volume_format = source_format if params["format"] == "keep" else params["format"]
    if volume_format not in FORMATS or (volume_format == "iso" and source_format != "iso"):
        raise UnsupportedFormat(
            f"A volume cannot be made {volume_format} of an image that is {source_format}.",
            "Set 'format: raw' or 'format: qcow2'.",
        )
    if params["_image"]:
        wanted = _wanted_image(params, volume_format)
    else:
        wanted = _wanted_url(params, given, options, volume_format)
    return ImportRequest(
        wanted=wanted,
        source_format=source_format,
        decompress=params["decompress"],
        qcow2=_qcow2_options(params, volume_format),
        preallocation=params["preallocation"],
        min_size=_min_size(params),
        headroom=params["headroom"],
        staging_dir=params["staging_dir"],
        overwrite=params["overwrite"],
        takes_md5=params["checksum"] is not None,
        allow_unverified=params["allow_unverified"],
        max_virtual_size=parse_size(params["max_virtual_size"], "max_virtual_size"),
        lock_timeout=params["lock_timeout"],
    )


def _preallocation(request: ImportRequest) -> str:
    """The storage of a new file; a qcow2 that is not converted has what it comes with."""
    return "off" if request.wanted.format == "qcow2" and request.method == "verbatim" else request.preallocation


def _source_format(params: dict[str, t.Any]) -> str:
    """The format of the image at an address."""
    declared: str = params["source_format"] or params["format"]
    if declared == "keep":
        raise InvalidOption("The format of the image at 'url' is never guessed.", "Set 'source_format'.")
    return declared


def _min_size(params: dict[str, t.Any]) -> int:
    """The least virtual size: what is asked for, and what the image needs by Glance's C(min_disk), in GiB."""
    asked = round_up(parse_size(params["size"], "size"), SECTOR) if params["size"] else 0
    return max(asked, ((params["_image"] or {}).get("min_disk") or 0) * 1024**3)


def _qcow2_options(params: dict[str, t.Any], volume_format: str) -> Qcow2Options | None:
    """How a qcow2 is to be written; None when nothing is said of that."""
    given = {name: params[name] for name in ("compat", "cluster_size", "compress") if params[name] is not None}
    if not given:
        return None
    if volume_format != "qcow2":
        raise InvalidOption(f"'{min(given)}' is for a qcow2, and the volume will be {volume_format}.")
    if "cluster_size" in given:
        given["cluster_size"] = parse_size(given["cluster_size"], "cluster_size")
    if "compress" in given:
        if params["preallocation"] != "off":
            raise InvalidOption(
                "A compressed qcow2 cannot be preallocated.", "Leave out 'compress' or 'preallocation'."
            )
        given.update(compress=True, compression_type=given["compress"])
    options = Qcow2Options(**given)
    check_kind(options.cluster_size, options.compat, options.compression_type)
    return options


def _wanted_image(params: dict[str, t.Any], volume_format: str) -> Provenance:
    image = params["_image"]
    in_glance = ((image.get("os_hash_algo"), image.get("os_hash_value")), ("md5", image.get("checksum")))
    digest = _usable(params, [Digest(algorithm, value) for algorithm, value in in_glance if value])
    metadata = {key: value for key, value in image.items() if value is not None and not _is_fleeting(key)}
    known = {"name": image.get("name"), "size": image.get("size"), "metadata": metadata}
    return dataclasses.replace(_provenance(image["id"], digest, volume_format), **known)


def _usable(params: dict[str, t.Any], digests: list[Digest]) -> Digest | None:
    """The first of the image's hashes; where none is needed, one that this host does not know is none."""
    return next((digest for digest in digests if digest.is_known or not params["allow_unverified"]), None)


def _provenance(source: str, digest: Digest | None, volume_format: str) -> Provenance:
    return Provenance(source, None, digest and digest.algorithm, digest and digest.value, None, volume_format)


def _is_fleeting(key: str) -> bool:
    """Whether Glance's field C(key) speaks of the upload (also the notes that tools keep on it) or of the cloud."""
    return key in _NOT_KEPT or key.startswith("owner_specified.")


def _wanted_url(params: dict[str, t.Any], given: Addresses, options: HttpOptions, volume_format: str) -> Provenance:
    digests = [read_checksum(given.checksum, given.url, options)] if given.checksum else []
    return _provenance(public_url(given.url), _usable(params, digests), volume_format)


_DONE = {
    "unchanged": ("Nothing to do", "Nothing to do"),
    "grow": ("Grown", "Would grow"),
    "adopt": ("Adopted", "Would adopt"),
    "import": ("Imported", "Would import"),
    "replace": ("Replaced", "Would replace"),
}


def _result(
    module: AnsibleModule, request: ImportRequest, volume: Volume, plan: Plan, received: Received | None
) -> dict[str, t.Any]:
    changed = plan.action != "unchanged"
    diff = _diff(plan, request.wanted)
    if volume.stat() is not None and not volume.is_block:
        # The attributes of a file that was not there before are no news.
        news = {} if plan.action in ("import", "replace") else diff
        attributes = module.load_file_common_arguments(module.params, path=volume.path)
        changed = module.set_fs_attributes_if_different(attributes, changed, diff=news)
    result = {
        "changed": changed,
        "msg": f"{_DONE[plan.action][module.check_mode]}: {plan.reason}{_how(received)}.",
        "volume": describe_volume(volume, request.wanted.format),
        "image": module.params["_image"] or {"url": request.wanted.source},
        "diff": diff,
    }
    if received is not None:
        result["transfer"] = received.to_dict()
    return result


def _how(received: Received | None) -> str:
    """What is remarkable about a transfer, to go on a sentence with."""
    if received is None:
        return ""
    if received.resumed_from:
        return f"; an earlier run had brought {format_size(received.resumed_from)} of {format_size(received.size)}"
    return f"; it was started over, as {received.restarted}" if received.restarted else ""


def _diff(plan: Plan, wanted: Provenance) -> dict[str, dict[str, t.Any]]:
    """What changes: the image, and the sizes of the disk that holds it already."""
    before = _known(plan.before)
    after = before if plan.action in ("unchanged", "grow") else _known(wanted)
    if plan.growth is not None:
        before, after = {**before, **plan.growth.before.to_dict()}, {**after, **plan.growth.after.to_dict()}
    return {"before": before, "after": after}


def _known(provenance: Provenance | None) -> dict[str, t.Any]:
    """A provenance without what no prediction can know."""
    facts = provenance.to_dict() if provenance else {}
    return {key: facts[key] for key in ("source", "name", "hash_algo", "hash_value", "format") if key in facts}
