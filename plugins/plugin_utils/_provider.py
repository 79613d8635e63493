# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a cloud's image service is, and what it lets this user do."""

from __future__ import annotations

import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import InvalidOption
from ansible_collections.imageferry.glance.plugins.plugin_utils._cloud import Cloud


def describe_provider(cloud: Cloud) -> dict[str, t.Any]:
    """The C(provider) of glance_provider_info; nothing in the cloud is changed.

    :raises FerryError: the image service cannot be used at all.
    """
    newest = cloud.get("/images", params={"limit": 1, "status": "active"}).json()["images"]
    image_id = newest[0]["id"] if newest else None
    schema = _optional(cloud, "/schemas/image").get("properties", {})
    return {
        **cloud.endpoint,
        **cloud.identity(),
        "validate_certs": cloud.verifies,
        "stores": [{**store, "default": store.get("default") == "true"} for store in _stores(cloud)],
        "import_methods": _optional(cloud, "/info/import").get("import-methods", {}).get("value", []),
        "disk_formats": _choices(schema, "disk_format"),
        "container_formats": _choices(schema, "container_format"),
        "quota": _optional(cloud, "/info/usage").get("usage", {}),
        "permissions": {"list": True, "create": _may_create(cloud, image_id), **_may_download(cloud, image_id)},
    }


def check_stores(cloud: Cloud, wanted: t.Sequence[str]) -> None:
    """Sees that Glance has stores with these ids.

    :raises InvalidOption: it lacks one.
    """
    known = [store["id"] for store in _stores(cloud)] if wanted else []
    for store in wanted:
        if store not in known:
            remedy = f"Choose among {', '.join(known)}." if known else "Leave out 'stores': it has none to choose from."
            raise InvalidOption(f"This Glance has no store '{store}'.", remedy)


def _stores(cloud: Cloud) -> list[dict[str, t.Any]]:
    found: list[dict[str, t.Any]] = _optional(cloud, "/info/stores").get("stores", [])
    return found


def _optional(cloud: Cloud, path: str) -> dict[str, t.Any]:
    """What Glance says there; nothing where this version or this user has no such page."""
    response = cloud.ask("GET", path)
    answer: dict[str, t.Any] = response.json() if response.status_code == 200 else {}
    return answer


def _choices(schema: dict[str, t.Any], name: str) -> list[str]:
    return [value for value in schema.get(name, {}).get("enum", []) if value is not None]


def _may_create(cloud: Cloud, image_id: str | None) -> bool | None:
    """Whether images may be created; None when that cannot be told.

    Glance says it without creating one when asked for an image with an id that is taken: 403, or else 409.
    """
    if image_id is None:
        return None
    request = {"id": image_id, "disk_format": "raw", "container_format": "bare"}
    return {403: False, 409: True}.get(cloud.ask("POST", "/images", json=request).status_code)


def _may_download(cloud: Cloud, image_id: str | None) -> dict[str, bool | None]:
    """Whether images may be downloaded, and in parts; None when that cannot be told."""
    if image_id is None:
        return {"download": None, "ranges": None}
    with cloud.ask("GET", f"/images/{image_id}/file", headers={"Range": "bytes=0-0"}, stream=True) as response:
        # Not every store can serve a part: it refuses with 400, or sends the whole image.
        known = {206: (True, True), 200: (True, False), 400: (True, False), 403: (False, None)}
        download, ranges = known.get(response.status_code, (None, None))
        return {"download": download, "ranges": ranges}
