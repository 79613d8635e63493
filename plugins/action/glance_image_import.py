# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control plane of glance_image_import."""

from __future__ import annotations

import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._arguments import (
    IMPORT_RULES,
    cloud_spec,
    import_spec,
)
from ansible_collections.imageferry.glance.plugins.module_utils._errors import TokenExpired
from ansible_collections.imageferry.glance.plugins.module_utils._sizes import parse_size
from ansible_collections.imageferry.glance.plugins.plugin_utils._action import FerryAction, cloud_options
from ansible_collections.imageferry.glance.plugins.plugin_utils._catalogue import find_image
from ansible_collections.imageferry.glance.plugins.plugin_utils._cloud import Cloud
from ansible_collections.imageferry.glance.plugins.plugin_utils._inspect import judge
from ansible_collections.imageferry.glance.plugins.plugin_utils._once import once

_CONTROLLER_ONLY = {*cloud_spec(), "image", "latest"} - {"validate_certs"}
_FILE_OPTIONS = [
    "owner",
    "group",
    "mode",
    "seuser",
    "serole",
    "setype",
    "selevel",
    "unsafe_writes",
    "attributes",
    "attr",
]


class ActionModule(FerryAction):
    """Finds and judges the image on the controller, and has the host fetch it."""

    _supports_async = True

    def work(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        spec = {**import_spec(), **{name: {"type": "raw"} for name in _FILE_OPTIONS}}
        _checked, params = self.validate_argument_spec(spec, **IMPORT_RULES)
        arguments = {key: value for key, value in self._task.args.items() if key not in _private_names()}
        if params["url"]:
            return self._fetch(arguments, task_vars)
        try:
            return self._fetch_image(params, arguments, task_vars, expired=None)
        except TokenExpired as err:
            return self._fetch_image(params, arguments, task_vars, expired=err.facts["token"])

    def _fetch_image(
        self,
        params: dict[str, t.Any],
        arguments: dict[str, t.Any],
        task_vars: dict[str, t.Any],
        expired: str | None,
    ) -> dict[str, t.Any]:
        wanted = {name: params[name] for name in ("image", "latest", "max_virtual_size")}
        options = cloud_options(params)
        found = once(
            self.question({**options, **wanted}),
            lambda: _find(options, wanted),
            outdated=lambda answer: expired is not None and answer["token"] == expired,
        )
        result = self._fetch(
            {
                **arguments,
                "url": found["url"],
                "validate_certs": found["verifies"],
                "_image": found["image"],
                "_token": found["token"],
                "_ca_data": found["ca_data"],
            },
            task_vars,
        )
        if result.get("error") == TokenExpired.code and expired is None:
            raise TokenExpired(str(result["msg"]), token=found["token"])
        return result

    def _fetch(self, arguments: dict[str, t.Any], task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        result: dict[str, t.Any] = self._execute_module(
            module_name="imageferry.glance.glance_image_import",
            module_args=arguments,
            task_vars=task_vars,
            wrap_async=bool(self._task.async_val),
        )
        return result


def _private_names() -> set[str]:
    """Options that only this plugin may set, or that stay on the controller."""
    return {name for name in import_spec() if name.startswith("_")} | _CONTROLLER_ONLY


def _find(options: dict[str, t.Any], wanted: dict[str, t.Any]) -> dict[str, t.Any]:
    """All that a host needs to fetch the image."""
    cloud = Cloud(options)
    image = find_image(cloud, wanted["image"], wanted["latest"])
    judge(cloud, image, parse_size(wanted["max_virtual_size"], "max_virtual_size"))
    ca_data = None
    if cloud.ca_cert:
        with open(cloud.ca_cert, encoding="ascii") as file:
            ca_data = file.read()
    return {
        "image": image,
        "url": cloud.image_url(f"/images/{image['id']}/file"),
        "token": cloud.token(),
        "verifies": cloud.verifies,
        "ca_data": ca_data,
    }
