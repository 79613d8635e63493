# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding images in Glance."""

from __future__ import annotations

import re
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    AmbiguousImage,
    ImageNotFound,
    ImageNotReady,
)
from ansible_collections.imageferry.glance.plugins.plugin_utils._cloud import Cloud

Image = dict[str, t.Any]

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_PAGE = 200


def list_images(cloud: Cloud, query: t.Mapping[str, t.Any]) -> t.Iterator[Image]:
    """Every image that matches Glance's own C(query), with Glance's own fields, page by page."""
    path: str | None = "/images"
    options: dict[str, t.Any] = {"params": {"limit": _PAGE, **query}}
    while path:
        page = cloud.get(path, **options).json()
        yield from page["images"]
        following = page.get("next")
        path, options = (following.removeprefix("/v2") if following else None), {}


def find_image(cloud: Cloud, name_or_id: str, latest: bool) -> Image:
    """The one active image with this id or name.

    :param latest: whether to take the newest of several.
    :raises ImageNotFound, AmbiguousImage, ImageNotReady: there is none, more than one, or none that is active.
    """
    if _UUID.fullmatch(name_or_id):
        try:
            images: list[Image] = [cloud.get(f"/images/{name_or_id}").json()]
        except ImageNotFound:
            images = []
    else:
        images = list(list_images(cloud, {"name": name_or_id, "sort": "created_at:desc"}))
    active = [image for image in images if image["status"] == "active"]
    if len(active) == 1 or (active and latest):
        return active[0]
    if active:
        raise AmbiguousImage(
            f"{len(active)} active images are called '{name_or_id}': "
            + "; ".join(f"{image['id']} of {image['created_at']}" for image in active)
            + ".",
            candidates=[{key: image[key] for key in ("id", "name", "created_at", "size")} for image in active],
        )
    if images:
        raise ImageNotReady(f"The image '{name_or_id}' is {images[0]['status']}, not active.")
    raise ImageNotFound(f"No image has the id or name '{name_or_id}'.")
