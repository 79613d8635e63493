# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Having Glance itself bring an image's bytes where they are to be (Image API v2, "Interoperable image import")."""

from __future__ import annotations

import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import CloudError, ImportFailed
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.exchange import public_url
from ansible_collections.imageferry.glance.plugins.plugin_utils._cloud import Cloud
from ansible_collections.imageferry.glance.plugins.plugin_utils._image_spec import Image
from ansible_collections.imageferry.glance.plugins.plugin_utils._progress import IMPORTING
from ansible_collections.imageferry.glance.plugins.plugin_utils._record import wait_until

_FAILED = "os_glance_failed_import"
_LOCK = "os_glance_import_task"  # Glance takes it away last: an image that is active may still be written to before

Show = t.Callable[[Image], None]


def web_download(
    cloud: Cloud, image: Image, url: str, stores: t.Sequence[str] | None, timeout: float, show: Show
) -> Image:
    """Has Glance fill a queued image from an address, and returns it once it is active.

    :param stores: ids of the stores that get it; None for Glance's default one.
    :param timeout: seconds.
    :param show: called now and then with the image as it is.
    :raises ImportFailed: Glance could not.
    :raises ImageNotReady: it took longer.
    """
    body: dict[str, t.Any] = {"method": {"name": "web-download", "uri": url}}
    if stores:
        body["stores"] = list(stores)
    return _import(cloud, image, body, lambda now: now["status"] == "active", timeout, show, url)


def missing_stores(image: Image, stores: t.Sequence[str]) -> list[str]:
    """The ids among V(stores) of those that do not hold the image."""
    return [store for store in stores if store not in stores_of(image)]


def stores_of(image: Image) -> list[str]:
    """The ids of the stores that hold the image."""
    return sorted(filter(None, image.get("stores", "").split(",")))


def copy_to_stores(cloud: Cloud, image: Image, stores: t.Sequence[str], timeout: float, show: Show) -> Image:
    """Has Glance copy an active image to stores that do not hold it; see L(web_download)."""
    body = {"method": {"name": "copy-image"}, "stores": list(stores), "all_stores_must_succeed": True}
    return _import(cloud, image, body, lambda now: not missing_stores(now, stores), timeout, show)


def _import(
    cloud: Cloud,
    image: Image,
    body: dict[str, t.Any],
    is_done: t.Callable[[Image], bool],
    timeout: float,
    show: Show,
    url: str = "",
) -> Image:
    earlier = {task["id"] for task in _tasks(cloud, image) or ()}

    def look(now: Image) -> None:
        tasks = _tasks(cloud, image)
        if tasks is None:
            _check_stores(now)
        else:
            _check_tasks(now, [task for task in tasks if task["id"] not in earlier], url)
        show(now)

    _begin(cloud, image, body, url)
    return wait_until(
        cloud,
        image["id"],
        lambda now: is_done(now) and not now.get(IMPORTING) and _LOCK not in now,
        timeout,
        look,
    )


def _begin(cloud: Cloud, image: Image, body: dict[str, t.Any], url: str) -> None:
    try:
        cloud.post(f"/images/{image['id']}/import", json=body)
    except CloudError as err:  # as of an address that Glance must not fetch from
        raise ImportFailed(_without_secrets(err.what, url)) from None


def _without_secrets(said: str, url: str) -> str:
    """What Glance says, which may show the address as it was given."""
    return said.replace(url, public_url(url)) if url else said


def _tasks(cloud: Cloud, image: Image) -> list[dict[str, t.Any]] | None:
    """Glance's tasks for this image; None where it is older than API 2.12, which has no list of them."""
    response = cloud.ask("GET", f"/images/{image['id']}/tasks")
    return response.json()["tasks"] if response.status_code == 200 else None


def _check_tasks(image: Image, tasks: list[dict[str, t.Any]], url: str) -> None:
    """Raises what Glance says of an import that has failed, without what may be secret in the address."""
    failed = [task for task in tasks if task["status"] == "failure"]
    if failed:
        said = " ".join((failed[-1].get("message") or "it does not say why").split()).rstrip(".")
        raise ImportFailed(f"Glance could not import '{image['name']}': {_without_secrets(said, url)}.")


def _check_stores(image: Image) -> None:
    if image.get(_FAILED) and not image.get(IMPORTING):
        raise ImportFailed(f"Glance could not import '{image['name']}' to {image[_FAILED]}.")
