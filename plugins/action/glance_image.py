# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole of glance_image: it runs on the controller."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleError
from ansible_collections.imageferry.glance.plugins.module_utils._arguments import (
    IMAGE_MODULE_RULES,
    image_module_spec,
)
from ansible_collections.imageferry.glance.plugins.module_utils._errors import InvalidOption
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.checksum import read_checksum
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.exchange import HttpOptions
from ansible_collections.imageferry.glance.plugins.plugin_utils._action import FerryAction, cloud_options
from ansible_collections.imageferry.glance.plugins.plugin_utils._cloud import Cloud
from ansible_collections.imageferry.glance.plugins.plugin_utils._content import open_content
from ansible_collections.imageferry.glance.plugins.plugin_utils._image_spec import ImageSpec
from ansible_collections.imageferry.glance.plugins.plugin_utils._image_state import Wish, keep, remove
from ansible_collections.imageferry.glance.plugins.plugin_utils._progress import ImageProgress, Silence
from ansible_collections.imageferry.glance.plugins.plugin_utils._token import TokenChain, issue_token
from ansible_collections.imageferry.glance.plugins.plugin_utils._upload import Order

_RECORD = (
    "name", "disk_format", "container_format", "visibility", "protected", "hidden", "tags", "properties", "min_disk",
    "min_ram", "members", "active", "purge_tags", "purge_properties", "purge_members",
)  # fmt: skip
_CONTENT = ("src", "url", "checksum", "import_method", "stores")


class ActionModule(FerryAction):
    """Does what the task asks, once for all hosts of a play that ask for the same."""

    def work(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        params = self.options(image_module_spec(), **IMAGE_MODULE_RULES)
        _check_sense(params)
        if params["src"]:
            params["src"] = self._find(params["src"])
        return self.ask_once({**params, "check_mode": self.is_check}, lambda: _do(params, self.is_check))

    def _find(self, path: str) -> str:
        """A file of the playbook's or role's folder C(files), as ansible.builtin.copy finds it."""
        try:
            found: str = self._find_needle("files", path)
        except AnsibleError as err:
            raise InvalidOption(f"'src: {path}' is not on the controller.", "Check the path.") from err
        return found


def _check_sense(params: dict[str, t.Any]) -> None:
    """Refuses what would have no meaning, before anything is asked.

    :raises InvalidOption: there is some.
    """
    absent, method = params["state"] == "absent", params["import_method"]
    if absent:
        _refuse(params, "with 'state: absent'", *_CONTENT)
    elif params["filter"] is not None:
        raise InvalidOption("'filter' is for 'state: absent'.", "Name the image with 'name' or 'id'.")
    if method == "copy-image":
        _refuse(params, "with 'import_method: copy-image'", "url", "checksum")
    elif method == "web-download":
        _refuse(params, "with 'import_method: web-download'", "headers")
    elif not params["src"] and not params["url"]:
        _refuse(params, "without 'src' or 'url'", "checksum", "stores")
    elif len(params["stores"] or ()) > 1:
        raise InvalidOption(
            "An upload goes to one store.", "Copy the image to more stores with 'import_method: copy-image'."
        )


def _refuse(params: dict[str, t.Any], where: str, *names: str) -> None:
    given = [name for name in names if params[name] is not None]
    if given:
        raise InvalidOption(f"'{given[0]}' has no meaning {where}.", "Leave it out.")


def _do(params: dict[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    spec = ImageSpec(**{name: params[name] for name in _RECORD})
    progress = ImageProgress(params["name"] or params["id"]) if params["progress"] else Silence()
    cloud = Cloud(cloud_options(params))
    order = _order(cloud, params, spec, progress) if params["src"] or params["url"] else None
    wish = Wish(params, spec, order, check_mode, progress.importing)
    return remove(cloud, wish) if params["state"] == "absent" else keep(cloud, wish)


def _order(cloud: Cloud, params: dict[str, t.Any], spec: ImageSpec, progress: Silence) -> Order:
    """The image to make if there is none with this content."""
    options = HttpOptions(headers={str(name): str(value) for name, value in (params["headers"] or {}).items()})
    location = params["url"] or params["src"]
    return Order(
        spec=spec,
        content=open_content(params["src"], params["url"], options) if params["import_method"] is None else None,
        url=params["url"],
        checksum=read_checksum(params["checksum"], location, options) if params["checksum"] else None,
        stores=params["stores"],
        timeout=params["timeout"],
        tokens=TokenChain(issue_token(cloud), cloud_options(params)),
        progress=progress,
        on_import=progress.importing,
    )
