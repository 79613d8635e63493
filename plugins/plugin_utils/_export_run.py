# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Having a host look at disks, deciding, having it push those that are needed, and showing what came of them."""

from __future__ import annotations

import hashlib
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._arguments import (
    cloud_spec,
    export_spec,
)
from ansible_collections.imageferry.glance.plugins.module_utils._errors import TokenExpired
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.digest import Digest
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.upload import ALGORITHMS
from ansible_collections.imageferry.glance.plugins.plugin_utils._action import FerryAction, cloud_options
from ansible_collections.imageferry.glance.plugins.plugin_utils._cloud import Cloud
from ansible_collections.imageferry.glance.plugins.plugin_utils._export import Export, Leftovers, Renewal, Surveyed
from ansible_collections.imageferry.glance.plugins.plugin_utils._progress import WORTH_WATCHING
from ansible_collections.imageferry.glance.plugins.plugin_utils._provider import check_stores
from ansible_collections.imageferry.glance.plugins.plugin_utils._record import hash_algorithm, no_known_hash
from ansible_collections.imageferry.glance.plugins.plugin_utils._token import TokenChain, issue_token
from ansible_collections.imageferry.glance.plugins.plugin_utils._watch import run_watched

_MODULE = "glance_image_export"
_FOR_HOST = set(export_spec()) - set(cloud_spec()) - {"id", "host_interface", "progress"} | {"validate_certs"}


def run_export(
    action: FerryAction,
    cloud: Cloud,
    params: dict[str, t.Any],
    exports: t.Mapping[str, Export],
    task_vars: dict[str, t.Any],
) -> dict[str, t.Any]:
    """Brings the disks to their images; returns the task's result.

    :param params: the options of L(export_spec), as validated.
    :param exports: the disks' ways to their images, by the name that the options give the disk, or nothing.
    """
    host = _Host(action, cloud, params, task_vars)
    check_stores(cloud, params["stores"] or [])
    leftovers = None if action.is_check else Leftovers(cloud)
    looked = host.look({name: export.known for name, export in exports.items()})
    if "disks" not in looked:
        return looked
    surveyed = [_surveyed(found, task_vars["inventory_hostname"]) for found in looked["disks"]]
    disks = [_Disk(exports[found.disk], found) for found in surveyed]
    missing = [disk for disk in disks if not disk.is_there()]
    if not action.is_check:
        try:
            failure = _push(host, missing) if missing else None
            if failure is not None:
                return failure
            for disk in disks:
                disk.settle()
            if leftovers:
                leftovers.remove({disk.surveyed.key for disk in disks})
        finally:
            for disk in missing:
                disk.export.discard()  # of those that were not shown, whatever has happened
    return _result(disks, bool(params["disks"]))


def _surveyed(found: dict[str, t.Any], host: str) -> Surveyed:
    """What a host has found; its own key may be that of another, as of a clone."""
    key = hashlib.sha256(f"{host}\0{found['key']}".encode()).hexdigest()[:32]
    return Surveyed(**{**found, "key": key})


class _Host:
    """The host's part of the work."""

    def __init__(
        self, action: FerryAction, cloud: Cloud, params: dict[str, t.Any], task_vars: dict[str, t.Any]
    ) -> None:
        self._action, self._cloud, self._params, self._task_vars = action, cloud, params, task_vars
        # What a user writes into a private option has no effect: only this plugin sets them.
        self._arguments = {
            name: params[name] for name in _FOR_HOST if params[name] is not None and not name.startswith("_")
        }

    def look(self, known: dict[str, list[str]]) -> dict[str, t.Any]:
        """What the host says of the disks; it reads those of which contents are known."""
        reads = any(known.values()) and not self._action.is_check
        return self._run({"_known": known}, None, reads)

    def push(self, disks: t.Sequence[_Disk], hashes: t.Sequence[str]) -> dict[str, t.Any]:
        """What the host says of how it brought the disks to their drafts.

        :param hashes: the algorithms to hash with what is sent.
        """
        options = cloud_options(self._params)
        token = self._action.ask_once({"token": options}, lambda: issue_token(self._cloud))
        tokens = TokenChain(token, options)
        client_cert, client_key = self._cloud.client_certificate()
        targets = {disk.surveyed.disk: {**self._target(disk), "hashes": list(hashes)} for disk in disks}
        arguments: dict[str, t.Any] = {
            "_images": targets,
            "_known": {},
            "_token": tokens.current(),
            "_ca_data": self._cloud.ca_data(),
            "_client_cert": client_cert,
            "_client_key": client_key,
            "validate_certs": self._cloud.verifies,
        }
        if self._params["disks"]:
            arguments["disks"] = [item for item in self._params["disks"] if item["disk"] in targets]
        sizes = [disk.surveyed.virtual_size for disk in disks]
        return self._run(arguments, tokens, any(size is None or size >= WORTH_WATCHING for size in sizes))

    def likely_hashes(self) -> t.Sequence[str]:
        """The one algorithm that is enough most likely; all where a second try would need an id a second time."""
        algorithm = hash_algorithm(self._cloud)
        return ALGORITHMS if algorithm is None or self._params["id"] else [algorithm]

    def _target(self, disk: _Disk) -> dict[str, t.Any]:
        image = disk.export.draft(disk.surveyed)
        url = self._cloud.image_url(f"/images/{image['id']}/file", self._params["host_interface"])
        return {"url": url, "format": disk.surveyed.image_format, "known": disk.export.known}

    def _run(self, more: dict[str, t.Any], tokens: TokenChain | None, is_long: bool) -> dict[str, t.Any]:
        arguments = {**self._arguments, **more}
        if is_long:
            name = self._params["name"] or self._params["domain"]
            return run_watched(
                self._action, _MODULE, arguments, self._task_vars, tokens, self._params["progress"] and name
            )
        result = self._action.run_module(_MODULE, arguments, self._task_vars)
        if tokens and result.get("error") == TokenExpired.code:
            arguments["_token"] = tokens.renew()
            result = self._action.run_module(_MODULE, arguments, self._task_vars)
        return result


class _Disk:
    """One disk, from what its host has found to the image that it is in.

    :param surveyed: how its host has found it.
    """

    def __init__(self, export: Export, surveyed: Surveyed) -> None:
        self.export, self.surveyed = export, surveyed
        self._transfer: dict[str, t.Any] | None = None
        self.unverified: str | None = None
        self._renewal = export.decide(surveyed)
        self._new = self._renewal is None
        if self._renewal is None:
            self._before, self._after = export.predicted(surveyed)
            self._image: dict[str, t.Any] = {"name": export.name, **self._after}
        else:
            self._meet(self._renewal)

    def is_there(self) -> bool:
        """Whether an image holds the content already."""
        return not self._new

    def take(self, pushed: dict[str, t.Any]) -> None:
        """Verifies the image that its host has pushed, or meets the one that turned out to be there."""
        self.surveyed = self.surveyed._replace(identity=pushed["identity"], virtual_size=pushed["virtual_size"])
        transfer = pushed["transfer"]
        self._new = transfer is not None
        if not self._new:
            self.export.discard()
            self._meet(self.export.renewal(self.surveyed))
            return
        digests = [Digest(*digest) for digest in pushed["digests"]]
        self.unverified = self.export.verify(self.surveyed, transfer["bytes"], digests)
        self._transfer = {**transfer, "quiesced": pushed["quiesced"]}

    def settle(self) -> None:
        """Shows the image that is new, or brings the one up to date that was there already."""
        if self._new:
            self._image = self.export.publish(self.surveyed)
        elif self._renewal is not None:
            self._image = self.export.settle(self._renewal)

    def _meet(self, renewal: Renewal) -> None:
        """Takes note of the image that holds the content already, and of what there is to do for it."""
        self._renewal, self._image = renewal, renewal.image
        self._before, self._after = renewal.before, renewal.after

    def result(self) -> dict[str, t.Any]:
        """What there is to say of it."""
        changed = self._new or (self._renewal is not None and self._renewal.is_needed)
        volume = {**self.surveyed.volume, "virtual_size": self.surveyed.virtual_size}
        said = {"changed": changed, "msg": self._message(), "image": self._image, "volume": volume,
                "diff": {"before": self._before, "after": self._after if changed else self._before}}  # fmt: skip
        return {**said, "transfer": self._transfer} if self._transfer else said

    def _message(self) -> str:
        if self._new:
            return f"{self.export.done[not self._transfer]}: {self.export.reason()}."
        if self._renewal and self._renewal.is_needed:
            return f"'{self.export.name}' holds the content already; {self._renewal.summary()}."
        return f"Nothing to do: '{self.export.name}' holds the content already."


def _push(host: _Host, disks: t.Sequence[_Disk]) -> dict[str, t.Any] | None:
    """Has the host push the disks, and verifies their images; what the host says when it failed.

    :raises Unverifiable: Glance computes no hash that the host can.
    """
    failure, unknown = _try_push(host, disks, host.likely_hashes())
    if failure is None and unknown:
        failure, unknown = _try_push(host, disks, sorted({*ALGORITHMS, *filter(None, unknown)}))
        if unknown:
            raise no_known_hash()
    return failure


def _try_push(
    host: _Host, disks: t.Sequence[_Disk], hashes: t.Sequence[str]
) -> tuple[dict[str, t.Any] | None, list[str]]:
    """What the host says when it failed, and what Glance hashes with where it is none of C(hashes)."""
    answer = host.push(disks, hashes)
    if "disks" not in answer:
        return answer, []
    pushed = {found["disk"]: found for found in answer["disks"]}
    for disk in disks:
        disk.take(pushed[disk.surveyed.disk])
    return None, [disk.unverified for disk in disks if disk.unverified is not None]


def _result(disks: t.Sequence[_Disk], several: bool) -> dict[str, t.Any]:
    results = [{"disk": disk.surveyed.disk, **disk.result()} for disk in disks]
    if not several:
        return {name: value for name, value in results[0].items() if name != "disk"}
    return {
        **results[0],
        "changed": any(result["changed"] for result in results),
        "msg": " ".join(result["msg"] for result in results),
        "diff": [result.pop("diff") for result in results],
        "disks": results,
    }
