# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A new image in Glance from bytes that the controller has, or that Glance fetches: whole, verified, or not there."""

from __future__ import annotations

import contextlib
import datetime
import typing as t
from dataclasses import dataclass

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    ChecksumMismatch,
    FerryError,
    Unverifiable,
)
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.digest import Digest
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.exchange import HttpOptions
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.outgoing import Progress
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.upload import ALGORITHMS, upload
from ansible_collections.imageferry.glance.plugins.plugin_utils._cloud import Cloud
from ansible_collections.imageferry.glance.plugins.plugin_utils._content import Content, Digests
from ansible_collections.imageferry.glance.plugins.plugin_utils._glance_import import web_download
from ansible_collections.imageferry.glance.plugins.plugin_utils._image_spec import Image, ImageSpec
from ansible_collections.imageferry.glance.plugins.plugin_utils._record import (
    UPLOAD_OF,
    create,
    delete,
    discard,
    leftovers,
    no_known_hash,
    publish,
    show,
)
from ansible_collections.imageferry.glance.plugins.plugin_utils._token import TokenChain

_FORGOTTEN = datetime.timedelta(minutes=5)


@dataclass
class Order:
    """An image to make.

    :param content: its bytes; None where Glance fetches them.
    :param url: where Glance fetches them.
    :param checksum: what they must hash to; None where that is not known before.
    :param stores: ids of the stores that get it; None for Glance's default one.
    :param timeout: seconds that Glance may take to fetch them.
    :param tokens: for the upload.
    :param progress: told how many bytes are sent.
    :param on_import: called with the image while Glance fetches it.
    """

    spec: ImageSpec
    content: Content | None
    url: str | None
    checksum: Digest | None
    stores: t.Sequence[str] | None
    timeout: float
    tokens: TokenChain
    progress: Progress
    on_import: t.Callable[[Image], None]
    image_id: str | None = None


def make_image(cloud: Cloud, order: Order) -> Image:
    """Makes the image, verifies what Glance holds, and lets others see it only then.

    :raises FerryError: it failed, and nothing is left of it.
    """
    draft = create(cloud, order.spec, order.image_id, {UPLOAD_OF: order.spec.name or ""})
    try:
        _remove_forgotten(cloud, draft)
        if order.content is None:
            image = web_download(cloud, draft, order.url or "", order.stores, order.timeout, order.on_import)
            known = hashes_of(image)
        else:
            image, known = _send(cloud, draft, order, order.content)
        if order.checksum:
            verify_promise(known, order.checksum)
        return publish(cloud, image, order.spec, [UPLOAD_OF])
    except BaseException:  # whatever it is, nothing is left behind
        discard(cloud, draft)
        raise


def _remove_forgotten(cloud: Cloud, draft: Image) -> None:
    """Removes what a run left behind that was killed; one that is still at work would have been heard of since."""
    for image in leftovers(cloud, UPLOAD_OF):
        age = _time(draft["created_at"]) - _time(image["updated_at"])  # both by Glance's clock
        is_alike = image["id"] != draft["id"] and image[UPLOAD_OF] == draft[UPLOAD_OF]
        if is_alike and image["status"] in ("queued", "active") and age >= _FORGOTTEN:
            with contextlib.suppress(FerryError):
                delete(cloud, image, unprotect=True)


def _time(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))


def _send(cloud: Cloud, draft: Image, order: Order, content: Content) -> tuple[Image, Digests]:
    """Sends the bytes to Glance; returns the image, and the hashes of what was sent."""
    verify, certificate = cloud.trust()
    options = HttpOptions(
        headers={"X-Image-Meta-Store": order.stores[0]} if order.stores else {},
        token=order.tokens.current(),
        tokens=order.tokens,
        verify=verify,
        client_cert=certificate,
    )
    algorithms = {*ALGORITHMS, *([order.checksum.algorithm] if order.checksum else [])}
    url = cloud.image_url(f"/images/{draft['id']}/file")
    sent = upload(content, url, options, order.progress, sorted(algorithms))
    if sent.verified is None:
        raise no_known_hash()
    return show(cloud, draft["id"]), {digest.algorithm: digest.value for digest in sent.digests}


def hashes_of(image: Image) -> Digests:
    """What Glance computed of an image's bytes."""
    known = {image.get("os_hash_algo"): image.get("os_hash_value"), "md5": image.get("checksum")}
    return {name: value for name, value in known.items() if name and value}


def verify_promise(known: Digests, checksum: Digest) -> None:
    """Holds the hashes that the bytes have against the one that was promised.

    :raises ChecksumMismatch: it is another.
    :raises Unverifiable: it is of another kind.
    """
    if checksum.algorithm not in known:
        raise Unverifiable(
            f"'checksum' is a {checksum.algorithm}, but Glance computed {' and '.join(sorted(known)) or 'no hash'}.",
            "Give a checksum of the kind that this Glance computes.",
        )
    if known[checksum.algorithm] != checksum.value:
        raise ChecksumMismatch(
            f"The {checksum.algorithm} is {known[checksum.algorithm]}, not {checksum.value} as 'checksum' says."
        )
