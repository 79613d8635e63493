# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The data plane of glance_image_import: from a task's options to its result."""

from __future__ import annotations

import dataclasses
import os
import typing as t
import urllib.parse

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    InvalidOption,
    UnsupportedFormat,
    Unverifiable,
)
from ansible_collections.imageferry.glance.plugins.module_utils._import import (
    ImportRequest,
    Plan,
    carry_out,
    describe_volume,
    make_plan,
)
from ansible_collections.imageferry.glance.plugins.module_utils._module import hide_headers
from ansible_collections.imageferry.glance.plugins.module_utils._sizes import format_size, parse_rate, parse_size
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.control import Control, SilentControl
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.digest import Digest, find_in_list
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.receive import Received
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.source import (
    HttpOptions,
    HttpSource,
    public_url,
)
from ansible_collections.imageferry.glance.plugins.module_utils._volume.file import FileVolume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import Provenance

_DEFAULT_MODE, _PRIVATE_MODE = 0o666, 0o600
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
    control = Control(params["_transfer"]) if params["_transfer"] else SilentControl()
    options = HttpOptions(
        headers=hide_headers(module),
        token=params["_token"],
        tokens=control.tokens,
        verify=_certificates(module),
        timeout=params["timeout"],
        retries=params["retries"],
        rate_limit=parse_rate(params["rate_limit"], "rate_limit"),
    )
    try:
        request = _request(module, options)
        with FileVolume(params["path"], _mode_of_new_file(params["mode"])) as volume:
            if module.check_mode:
                plan, received = make_plan(request, volume), None
            else:
                source = HttpSource(params["url"], request.wanted.size, options)
                try:
                    plan, received = carry_out(request, volume, source, control)
                finally:
                    source.close()
            return _result(module, request, volume, plan, received)
    finally:
        control.close()


def _certificates(module: AnsibleModule) -> bool | str:
    """How to check the server's certificate: the CA's certificates come as text, as the file is on the controller."""
    if module.params["validate_certs"] is False:
        return False
    if not module.params["_ca_data"]:
        return True
    path = os.path.join(module.tmpdir, "ca.pem")
    with open(path, "w", encoding="ascii") as file:
        file.write(module.params["_ca_data"])
    return path


def _request(module: AnsibleModule, options: HttpOptions) -> ImportRequest:
    params = module.params
    return ImportRequest(
        wanted=_wanted_image(params) if params["_image"] else _wanted_url(params, options),
        overwrite=params["overwrite"],
        allow_unverified=params["allow_unverified"],
        max_virtual_size=parse_size(params["max_virtual_size"], "max_virtual_size"),
        lock_timeout=params["lock_timeout"],
    )


def _mode_of_new_file(asked: t.Any) -> int:
    """A mode that is asked for is set at the end, so that nobody reads the file before who may not read it after."""
    umask = os.umask(0)
    os.umask(umask)
    return _PRIVATE_MODE if asked is not None else _DEFAULT_MODE & ~umask


def _wanted_image(params: dict[str, t.Any]) -> Provenance:
    image = params["_image"]
    if params["format"] not in ("keep", image["disk_format"]):
        raise UnsupportedFormat(
            f"The image is {image['disk_format']}, and is not converted to {params['format']}.", "Set 'format: keep'."
        )
    algorithm, value = image.get("os_hash_algo"), image.get("os_hash_value")
    if not value:
        algorithm, value = ("md5", image["checksum"]) if image.get("checksum") else (None, None)
    metadata = {key: value for key, value in image.items() if value is not None and not _is_fleeting(key)}
    return Provenance(
        image["id"], image.get("name"), algorithm, value, image.get("size"), image["disk_format"], metadata=metadata
    )


def _is_fleeting(key: str) -> bool:
    """Whether Glance's field C(key) speaks of the upload (also openstacksdk's own notes on it) or of the cloud."""
    return key in _NOT_KEPT or key.startswith("owner_specified.openstack.")


def _wanted_url(params: dict[str, t.Any], options: HttpOptions) -> Provenance:
    declared = params["source_format"] or params["format"]
    if declared == "keep":
        raise InvalidOption("The format of the image at 'url' is never guessed.", "Set 'source_format'.")
    if params["format"] not in ("keep", declared):
        raise UnsupportedFormat(
            f"The image is {declared}, and is not converted to {params['format']}.", "Set 'format: keep'."
        )
    digest = _checksum(params, options) if params["checksum"] else None
    return Provenance(
        public_url(params["url"]), None, digest and digest.algorithm, digest and digest.value, None, declared
    )


def _checksum(params: dict[str, t.Any], options: HttpOptions) -> Digest:
    """The checksum as given, or as found in the list at the address given."""
    algorithm, _separator, rest = params["checksum"].partition(":")
    if not rest.startswith(("http://", "https://")):
        return Digest.parse(params["checksum"])
    here, there = urllib.parse.urlsplit(params["url"])[:2], urllib.parse.urlsplit(rest)[:2]
    own = options if here == there else dataclasses.replace(options, headers={})
    source = HttpSource(rest, None, own)
    try:
        listed = find_in_list(source.read_text(), algorithm, urllib.parse.urlsplit(params["url"]).path.split("/")[-1])
    finally:
        source.close()
    if listed is None:
        raise Unverifiable(f"{public_url(rest)} has no line for this file.", "Check the address of the list.")
    return listed


_DONE = {
    "unchanged": ("Nothing to do", "Nothing to do"),
    "adopt": ("Adopted", "Would adopt"),
    "import": ("Imported", "Would import"),
    "replace": ("Replaced", "Would replace"),
}


def _result(
    module: AnsibleModule, request: ImportRequest, volume: FileVolume, plan: Plan, received: Received | None
) -> dict[str, t.Any]:
    changed = plan.action != "unchanged"
    diff = {"before": _diff(plan.before), "after": _diff(request.wanted if changed else plan.before)}
    if volume.stat() is not None:
        # The attributes of a file that was not there before are no news.
        news = {} if plan.action in ("import", "replace") else diff
        attributes = module.load_file_common_arguments(module.params)
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


def _diff(provenance: Provenance | None) -> dict[str, t.Any]:
    """A provenance without what no prediction can know."""
    facts = provenance.to_dict() if provenance else {}
    return {key: facts[key] for key in ("source", "name", "hash_algo", "hash_value", "format") if key in facts}
