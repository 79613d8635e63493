# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control plane of glance_image_import."""

from __future__ import annotations

import posixpath
import typing as t
import urllib.parse

from ansible.module_utils.basic import FILE_COMMON_ARGUMENTS
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
from ansible_collections.imageferry.glance.plugins.plugin_utils._handover import hand_over, trust_arguments
from ansible_collections.imageferry.glance.plugins.plugin_utils._inspect import judge
from ansible_collections.imageferry.glance.plugins.plugin_utils._progress import WORTH_WATCHING
from ansible_collections.imageferry.glance.plugins.plugin_utils._token import TokenChain
from ansible_collections.imageferry.glance.plugins.plugin_utils._watch import run_watched

_MODULE = "glance_image_import"
_SPEC = {**import_spec(), **FILE_COMMON_ARGUMENTS}
_FOR_HOST = set(_SPEC) - set(cloud_spec()) - {"image", "latest", "host_interface", "progress"} | {"validate_certs"}
_FILES_ON_HOST = ("ca_cert", "client_cert", "client_key")


class ActionModule(FerryAction):
    """Finds and judges the image on the controller, and has the host fetch it."""

    _supports_async = True

    def work(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        params = self.options(_SPEC, **IMPORT_RULES)
        # What a user writes into a private option has no effect: only this plugin sets them.
        arguments = {name: params[name] for name in _FOR_HOST if params[name] is not None and not name.startswith("_")}
        if params["url"]:
            arguments.update({name: params[name] for name in _FILES_ON_HOST if params[name] is not None})
            name = posixpath.basename(urllib.parse.urlsplit(params["url"]).path)
            return self._carry(arguments, task_vars, None, None, params["progress"] and name)
        wanted = {
            name: params[name] for name in ("image", "latest", "max_virtual_size", "host_interface", "decompress")
        }
        options = cloud_options(params)
        found = self.ask_once({**options, **wanted}, lambda: _find(options, wanted))
        tokens = TokenChain(found["token"], options)
        image = found["image"]
        arguments.update(trust_arguments(found), url=found["url"], _image=image, _token=tokens.current())
        label = params["progress"] and (image["name"] or image["id"])
        return self._carry(arguments, task_vars, tokens, image["size"], label)

    def _carry(
        self,
        arguments: dict[str, t.Any],
        task_vars: dict[str, t.Any],
        tokens: TokenChain | None,
        size: int | None,
        label: str | None,
    ) -> dict[str, t.Any]:
        """Has the host fetch C(size) bytes; see L(run_watched) for the rest."""
        unwatched = self._task.async_val or self.is_check
        if not unwatched and (size is None or size >= WORTH_WATCHING):
            return run_watched(self, _MODULE, arguments, task_vars, tokens, label)
        result = self.run_module(_MODULE, arguments, task_vars)
        if tokens and result.get("error") == TokenExpired.code:
            result = self.run_module(_MODULE, {**arguments, "_token": tokens.renew()}, task_vars)
        return result


def _find(options: dict[str, t.Any], wanted: dict[str, t.Any]) -> dict[str, t.Any]:
    """All that a host needs to fetch the image."""
    cloud = Cloud(options)
    image = find_image(cloud, wanted["image"], wanted["latest"])
    limit = parse_size(wanted["max_virtual_size"], "max_virtual_size")
    if wanted["decompress"] == "none":  # what else there is inside, the host sees when it is decompressed
        judge(cloud, image, limit)
    return hand_over(cloud, image, wanted["host_interface"])
