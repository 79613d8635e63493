# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Making, changing and removing the records of images in Glance."""

from __future__ import annotations

import contextlib
import time
import typing as t
from dataclasses import replace

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    FerryError,
    ImageConflict,
    ImageNotFound,
    ImageNotReady,
    ProtectedImage,
    Unverifiable,
)
from ansible_collections.imageferry.glance.plugins.plugin_utils._catalogue import list_images
from ansible_collections.imageferry.glance.plugins.plugin_utils._cloud import Cloud
from ansible_collections.imageferry.glance.plugins.plugin_utils._image_spec import Image, ImageSpec, Update, plan_update

UPLOAD_OF = "owner_specified.imageferry.upload"
"""The property with its name that an image of glance_image has until it is whole and verified."""

EXPORT_OF = "owner_specified.imageferry.export"
"""The property with its disk that an exported image has until then."""

RETIRED = "owner_specified.imageferry.retired"
"""The property of an image whose place another has taken, and that its storage could not let go of."""

_UNPUBLISHED = ("queued", "saving", "uploading", "importing", "active")  # in the order in which a draft has them
_ID_TAKEN = "Glance never gives an id twice, not even after a failed run: choose another, or leave 'id' out."
_DISCARD_PAUSES = (0, 0.5, 2)  # seconds
_FIRST_WAIT, _LONGEST_WAIT = 0.2, 5.0  # seconds between two looks


def create(
    cloud: Cloud,
    spec: ImageSpec,
    image_id: str | None = None,
    extra_properties: t.Mapping[str, str] | None = None,
) -> Image:
    """A new, queued image: a draft, that nobody else sees, and that can be removed, until L(publish).

    :param image_id: its id; Glance chooses one by default.
    :param extra_properties: what it has until it is published, such as a mark to find what was left unfinished.
    :raises FerryError: see L(Cloud.get); L(ImageConflict) where the id is taken.
    """
    properties = {name: text for name, text in spec.properties.items() if text is not None}
    draft = {**spec.fields(), "visibility": "private", "protected": False, "os_hidden": True}
    body = {**properties, **(extra_properties or {}), **draft, "tags": sorted(set(spec.tags or ()))}
    if image_id is not None:
        body["id"] = image_id
    try:
        image: Image = cloud.post("/images", json=body).json()
    except ImageConflict as err:
        raise ImageConflict(err.what, _ID_TAKEN if image_id is not None else None) from err
    return image


def publish(cloud: Cloud, image: Image, spec: ImageSpec, drop: t.Iterable[str] = ()) -> Image:
    """Makes a draft that has its bytes what V(spec) says; without a word on it, shared with nobody yet, as Glance does.

    :param drop: the properties that only a draft has.
    """
    return apply(cloud, image, plan_update(image, published(spec, drop)))


def published(spec: ImageSpec, drop: t.Iterable[str]) -> ImageSpec:
    """What a draft is to say to be what V(spec) says; see L(publish)."""
    return replace(
        spec,
        visibility=spec.visibility or "shared",
        protected=bool(spec.protected),
        hidden=bool(spec.hidden),
        properties={**spec.properties, **dict.fromkeys(drop)},
    )


def is_draft(image: Image) -> bool:
    """Whether it is not published yet; it never will be where its run was killed."""
    return UPLOAD_OF in image or EXPORT_OF in image


def is_retired(image: Image) -> bool:
    """Whether L(retire) could only hide it, and nobody has brought it back since."""
    return RETIRED in image and bool(image["os_hidden"])


def show(cloud: Cloud, image_id: str) -> Image:
    """The image as it is now.

    :raises ImageNotFound: it is gone.
    """
    image: Image = cloud.get(f"/images/{image_id}").json()
    return image


def members(cloud: Cloud, image: Image) -> list[str]:
    """The ids of the projects that an image is shared with; only its owner may know."""
    if image["visibility"] != "shared":
        return []
    return [member["member_id"] for member in cloud.get(f"/images/{image['id']}/members").json()["members"]]


def apply(cloud: Cloud, image: Image, update: Update) -> Image:
    """Makes the image's record say what it is to say, and returns it.

    :raises FerryError: Glance refuses; what was changed until then stays so.
    """
    path = f"/images/{image['id']}"
    if update.patch:
        cloud.patch(path, update.patch)
    joining = set(update.joining)
    if joining and update.before["visibility"] != "shared":  # it may have been shared before, and still have members
        joining -= set(members(cloud, show(cloud, image["id"])))
    for member in sorted(joining):
        cloud.post(f"{path}/members", json={"member": member})
    for member in update.leaving:
        with contextlib.suppress(ImageNotFound):
            cloud.delete(f"{path}/members/{member}")
    if update.action:
        cloud.post(f"{path}/actions/{update.action}")
    return show(cloud, image["id"])


def check_removable(image: Image, unprotect: bool, remedy: str | None = None) -> None:
    """Does nothing for an image that L(delete) would remove.

    :param remedy: what to do about a protected one; by default to set C(unprotect).
    :raises ProtectedImage: it is protected.
    """
    if image["protected"] and not unprotect:
        raise ProtectedImage(f"The image '{image['name']}' ({image['id']}) is protected.", remedy)


def delete(cloud: Cloud, image: Image, unprotect: bool = False) -> bool:
    """Removes the image; false when it was gone already.

    :param unprotect: whether to remove one that is protected.
    :raises ProtectedImage: it is protected.
    :raises FerryError: Glance refuses, as it is in use; it is protected again then.
    """
    path = f"/images/{image['id']}"
    check_removable(image, unprotect)
    try:
        if image["protected"]:
            cloud.patch(path, _protection(False))
        cloud.delete(path)
    except ImageNotFound:
        return False
    except FerryError:
        if image["protected"]:
            with contextlib.suppress(FerryError):
                cloud.patch(path, _protection(True))
        raise
    return True


def retire(cloud: Cloud, image: Image, unprotect: bool = False) -> str:
    """Removes an image whose place is taken, or hides it where the storage still needs it; says what became of it.

    :raises FerryError: see L(delete).
    """
    try:
        delete(cloud, image, unprotect)
    except ImageConflict:  # as of a volume or a guest that is a clone of it
        hidden = ImageSpec(hidden=True, properties={RETIRED: "true"})
        apply(cloud, image, plan_update(image, hidden, members(cloud, image)))
        return "is still in use, and hidden"
    return "is removed"


def _protection(protected: bool) -> list[dict[str, t.Any]]:
    return [{"op": "replace", "path": "/protected", "value": protected}]


def discard(cloud: Cloud, image: Image) -> None:
    """Removes a draft after an error, which must not be hidden by one of this; tries again where Glance is busy."""
    for pause in _DISCARD_PAUSES:
        time.sleep(pause)
        with contextlib.suppress(FerryError):
            with contextlib.suppress(ImageNotFound):
                delete(cloud, show(cloud, image["id"]), unprotect=True)
            return


def no_known_hash() -> Unverifiable:
    """The error that Glance has nothing to hold what was sent against."""
    return Unverifiable("Glance computed no hash that is known here.", "See 'hashing_algorithm' of its settings.")


def hash_algorithm(cloud: Cloud) -> str | None:
    """What this Glance hashes images with (its C(os_hash_algo)), as some image tells; None where none does."""
    page = cloud.get("/images", params={"status": "active", "limit": 1, "sort": "created_at:desc"}).json()
    return next((image.get("os_hash_algo") for image in page["images"]), None)


def own_project(cloud: Cloud) -> str | None:
    """The id of the project that this session works in; None without authentication."""
    project_id: str | None = cloud.identity().get("project", {}).get("id")
    return project_id


def own_images(cloud: Cloud, query: t.Mapping[str, t.Any], hidden: t.Sequence[str] = ("false", "true")) -> list[Image]:
    """The images of this session's own project that match Glance's own C(query), hidden ones too."""
    owner = own_project(cloud)
    asked = {**query, "owner": owner} if owner else dict(query)
    found = [image for choice in hidden for image in list_images(cloud, {**asked, "os_hidden": choice})]
    return [image for image in found if owner in (None, image["owner"])]


def leftovers(cloud: Cloud, marker_property: str) -> list[Image]:
    """The drafts of this session's own project that have this property.

    One that is C(saving) may still be uploaded by somebody; Glance makes it C(queued) once that has failed. One that
    is C(active) has its bytes, but was never published.
    """
    found = own_images(cloud, {"status": "in:" + ",".join(_UNPUBLISHED)}, hidden=("true",))
    return [image for image in found if image["status"] in _UNPUBLISHED and marker_property in image]


def is_stuck(cloud: Cloud, draft: Image) -> bool:
    """Whether a draft is no further than it was."""
    try:
        now = show(cloud, draft["id"])
    except ImageNotFound:
        return False
    order = _UNPUBLISHED.index
    return is_draft(now) and now["status"] in _UNPUBLISHED and order(now["status"]) <= order(draft["status"])


def wait_until(
    cloud: Cloud,
    image_id: str,
    is_so: t.Callable[[Image], bool],
    timeout: float,
    on_progress: t.Callable[[Image], None] = lambda image: None,
) -> Image:
    """The image as soon as it is so.

    :param timeout: seconds.
    :param on_progress: called with the image each time that it was looked at; may raise an error of its own.
    :raises ImageNotReady: it took longer.
    :raises ImageConflict: somebody has removed it.
    """
    deadline = time.monotonic() + timeout
    wait = _FIRST_WAIT
    while True:
        try:
            image = show(cloud, image_id)
        except ImageNotFound as err:
            raise ImageConflict(f"The image {image_id} was removed while it was waited for.") from err
        if is_so(image):
            return image
        on_progress(image)
        if time.monotonic() + wait > deadline:
            raise ImageNotReady(
                f"The image '{image['name']}' ({image_id}) is {image['status']}, and was waited for {timeout:.0f} s.",
                "Raise 'timeout', or see Glance's log for what holds it up.",
            )
        time.sleep(wait)
        wait = min(wait * 1.5, _LONGEST_WAIT)
