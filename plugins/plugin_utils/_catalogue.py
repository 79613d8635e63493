# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding images in Glance."""

from __future__ import annotations

import fnmatch
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    AmbiguousImage,
    DamagedImage,
    FerryError,
    FormatMismatch,
    ImageNotFound,
    ImageNotReady,
    ImageTooLarge,
    MissingDependency,
    UnsafeImage,
    UnsupportedFormat,
)
from ansible_collections.imageferry.glance.plugins.module_utils._image.formats import SOURCE_FORMATS
from ansible_collections.imageferry.glance.plugins.module_utils._sizes import parse_size
from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import IMAGE_ID
from ansible_collections.imageferry.glance.plugins.plugin_utils._cloud import Cloud
from ansible_collections.imageferry.glance.plugins.plugin_utils._inspect import judge
from ansible_collections.imageferry.glance.plugins.plugin_utils._moment import format_time, parse_time

Image = dict[str, t.Any]

_PAGE = 200
_BOUNDS = ("created_after", "created_before", "updated_after", "updated_before")
_FAULTS = (DamagedImage, FormatMismatch, ImageTooLarge, UnsafeImage, UnsupportedFormat)
"""What is wrong with an image itself; other errors only keep it from being judged."""


def list_images(cloud: Cloud, query: t.Mapping[str, t.Any]) -> t.Iterator[Image]:
    """Every image that matches Glance's own C(query), with Glance's own fields, page by page."""
    path: str | None = "/images"
    name = query.get("name")
    if name is not None:  # Glance takes what is before a colon for an operator, and has none for a name alone
        query = {**query, "name": f"eq:{name}"}
    options: dict[str, t.Any] = {"params": {"limit": _PAGE, **query}}
    while path:
        page = cloud.get(path, **options).json()
        # Glance's database may tell neither Debian from debian nor a name from one with a blank behind it.
        yield from (image for image in page["images"] if name in (None, image["name"]))
        following = page.get("next")
        path, options = (following.removeprefix("/v2") if following else None), {}


def find_image(cloud: Cloud, name_or_id: str, latest: bool) -> Image:
    """The one active image with this id or name.

    :param latest: whether to take the newest of several.
    :raises ImageNotFound, AmbiguousImage, ImageNotReady: there is none, more than one, or none that is active.
    """
    if IMAGE_ID.fullmatch(name_or_id):
        try:
            images: list[Image] = [cloud.get(f"/images/{name_or_id}").json()]
        except ImageNotFound:
            images = []
    else:
        images = list(list_images(cloud, {"name": name_or_id, "sort": "created_at:desc"}))
    active = [image for image in images if image["status"] == "active"]
    told = ("id", "name", "created_at", "size", "status")
    if len(active) == 1 or (active and latest):
        return active[0]
    if active:
        raise AmbiguousImage(
            f"{len(active)} active images are called '{name_or_id}': "
            + "; ".join(f"{image['id']} of {image['created_at']}" for image in active)
            + ".",
            candidates=[{key: image[key] for key in told} for image in active],
        )
    if images:
        raise ImageNotReady(f"The image '{name_or_id}' is {images[0]['status']}, not active.")
    raise ImageNotFound(f"No image has the id or name '{name_or_id}'.")


def discover(cloud: Cloud, wanted: t.Mapping[str, t.Any]) -> list[Image]:
    """The images that a task's options ask for, each with what this collection knows of it beside Glance's fields.

    :param wanted: the options of L(discovery_spec), as validated.
    """
    wanted = {**wanted, **{option: parse_time(wanted[option], option) for option in _BOUNDS if wanted[option]}}
    query = _query(wanted)
    if wanted["image"] and IMAGE_ID.fullmatch(wanted["image"]):
        query["id"] = wanted["image"]
    elif wanted["image"]:
        query["name"] = wanted["image"]
    found = [image for image in list_images(cloud, query) if _matches(image, wanted)]
    if wanted["latest"]:
        found = sorted(found, key=lambda image: image["created_at"])[-1:]
    limit = parse_size(wanted["max_virtual_size"], "max_virtual_size")
    return [assess(cloud, image, wanted["inspect"], limit) for image in found]


def _query(wanted: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """What Glance filters and sorts by itself (Image API v2, "List images")."""
    query: dict[str, t.Any] = {**wanted["properties"], "sort": ",".join(wanted["sort"])}
    for option in ("status", "disk_format"):
        if wanted[option]:
            query[option] = "in:" + ",".join(wanted[option])
    for option in ("visibility", "owner"):
        if wanted[option]:
            query[option] = wanted[option]
    for option in ("size_min", "size_max"):
        if wanted[option]:
            query[option] = parse_size(wanted[option], option)
    if wanted["tags"]:
        query["tag"] = wanted["tags"]
    for date in ("created", "updated"):
        if wanted[f"{date}_after"]:
            query[f"{date}_at"] = f"gte:{format_time(wanted[f'{date}_after'])}"
    if wanted["name"] and not set(wanted["name"]) & set("*?["):
        query["name"] = wanted["name"]
    return query


def _matches(image: Image, wanted: t.Mapping[str, t.Any]) -> bool:
    """What Glance cannot filter by: a pattern, and a second bound on the same date."""
    name = image.get("name") or ""
    if wanted["name"] and not fnmatch.fnmatchcase(name, wanted["name"]):
        return False
    return all(
        not wanted[f"{date}_before"] or parse_time(image[f"{date}_at"]) <= wanted[f"{date}_before"]
        for date in ("created", "updated")
    )


def assess(cloud: Cloud, image: Image, inspect: str, limit: int) -> Image:
    """Adds C(virtual_size) and its source, C(supported) and C(safety) to an image's own fields."""
    known = image.get("virtual_size")
    facts = {"virtual_size": known, "virtual_size_source": "glance" if known is not None else None}
    known_format = image["disk_format"] in SOURCE_FORMATS
    supported = known_format and image["container_format"] == "bare" and image["status"] == "active"
    safety = {"verdict": "unknown", "reason": "The image's header was not read."}
    if supported and inspect != "never" and (inspect == "always" or known is None):
        try:
            head = judge(cloud, image, limit)
            safety = {"verdict": "safe", "reason": "The header refers to no other file, and its geometry is possible."}
            if known is None:
                facts = {"virtual_size": head.virtual_size, "virtual_size_source": "header"}
        except MissingDependency:
            raise
        except FerryError as err:
            verdict = "unsafe" if isinstance(err, _FAULTS) else "unknown"
            safety = {"verdict": verdict, "reason": err.what, "error": err.code}
    return {**image, **facts, "supported": supported, "safety": safety}
