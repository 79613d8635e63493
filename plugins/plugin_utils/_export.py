# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A disk's image in Glance: which one holds the content already, what a new one is to say, and what goes for it."""

from __future__ import annotations

import typing as t
from dataclasses import replace

from ansible_collections.imageferry.glance.plugins.module_utils._errors import ImageConflict, ImageExists
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.digest import Digest
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.upload import check_stored
from ansible_collections.imageferry.glance.plugins.plugin_utils import _record
from ansible_collections.imageferry.glance.plugins.plugin_utils._cloud import Cloud
from ansible_collections.imageferry.glance.plugins.plugin_utils._glance_import import (
    copy_to_stores,
    missing_stores,
    stores_of,
)
from ansible_collections.imageferry.glance.plugins.plugin_utils._image_spec import (
    Image,
    ImageSpec,
    Update,
    describe,
    plan_update,
    predict,
)
from ansible_collections.imageferry.glance.plugins.plugin_utils._progress import ImageProgress, Silence

CONTENT = "owner_specified.imageferry.content"
"""The property that an image's content is told by, whatever its format."""

_PROTECTED = "Set 'on_existing: new' to leave it beside the new one, or take its protection off first."
_LONGEST_COPY = 7 * 24 * 3600.0  # seconds; Glance says when a copy has failed
_FLEETING = ("id", "os_hash_algo", "os_hash_value", "size", "status")


class Surveyed(t.NamedTuple):
    """A disk as its host has found it.

    :param disk: its name among several, or nothing.
    :param key: what tells it from all others, also at the next run.
    :param image_format: what its image will be.
    :param identity: of its content; None where it was not asked, or is only seen while it is exported.
    :param virtual_size: in bytes; None where it is not known yet.
    :param metadata: what Glance knew of the image that it came from.
    :param volume: what there is to say of it.
    """

    disk: str
    key: str
    image_format: str
    identity: str | None
    virtual_size: int | None
    metadata: dict[str, t.Any]
    volume: dict[str, t.Any]


class Renewal(t.NamedTuple):
    """What there is to do for an image that holds the content already.

    :param stores: ids of those that it is to be copied to.
    :param replaced: the images whose place it takes, which a run that was killed has left.
    """

    image: Image
    update: Update
    stores: list[str]
    replaced: list[Image]

    @property
    def is_needed(self) -> bool:
        """Whether there is anything."""
        return bool(self.update or self.stores or self.replaced)

    @property
    def before(self) -> dict[str, t.Any]:
        """What is there."""
        replaced = [image["id"] for image in self.replaced]
        return {**self.update.before, **self._beside(stores_of(self.image), replaced)}

    @property
    def after(self) -> dict[str, t.Any]:
        """What will be."""
        return {**self.update.after, **self._beside(sorted({*stores_of(self.image), *self.stores}), [])}

    def _beside(self, stores: list[str], replaced: list[str]) -> dict[str, t.Any]:
        """What of these changes."""
        changing = {"stores": stores} if self.stores else {}
        return {**changing, "replaced": replaced} if self.replaced else changing

    def summary(self) -> str:
        """What is done, in words."""
        parts = [f"{self.update.summary()} brought up to date"] if self.update else []
        parts += [f"copied to {', '.join(self.stores)}"] if self.stores else []
        parts += [f"the image that it replaces ({image['id']}) retired" for image in self.replaced]
        return ", ".join(parts)


class Leftovers:
    """The drafts of exports that were killed, or are going on: those that are there now.

    To be made before a host looks at the disks, for which it waits until no other export sends them. What has come
    further by the time of L(remove) is at work.
    """

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._seen = _record.leftovers(cloud, _record.EXPORT_OF)

    def remove(self, keys: t.Container[str]) -> None:
        """Removes those of the disks with these keys that nobody works at."""
        for image in self._seen:
            if image[_record.EXPORT_OF] in keys and _record.is_stuck(self._cloud, image):
                _record.discard(self._cloud, image)


class Export:
    """One disk's way to an image.

    :param cloud: where it goes.
    :param name: the image's.
    :param params: the options of the task.
    """

    done = ("Exported", "Would export")
    """What is said of it once it is done, and before."""

    def __init__(self, cloud: Cloud, name: str, params: t.Mapping[str, t.Any]) -> None:
        self.name = name
        self._cloud = cloud
        self._params = params
        self._draft: Image | None = None
        self._stored: Image | None = None
        self._present = [image for image in self._whole() if not _record.is_retired(image)]

    def _whole(self) -> list[Image]:
        return [image for image in self._find() if image["status"] == "active" and not _record.is_draft(image)]

    def _find(self) -> list[Image]:
        """The images that may hold the disk's content already, those first that matter most."""
        return _record.own_images(self._cloud, {"name": self.name, "status": "active", "sort": "created_at:desc"})

    @property
    def known(self) -> list[str]:
        """The contents that images of this name have."""
        return [image[CONTENT] for image in self._present if image.get(CONTENT)]

    def decide(self, surveyed: Surveyed) -> Renewal | None:
        """What the image takes that holds the content already; None when a new one is needed.

        :raises ImageExists, ProtectedImage: a new one is, and there is one that must not go for it.
        """
        if surveyed.identity in self.known:
            return self.renewal(surveyed)
        if self._present and self._params["on_existing"] == "fail":
            raise ImageExists(f"The image '{self.name}' ({self._present[0]['id']}) has another content.")
        for image in self._present if self._replaces else ():
            _record.check_removable(image, unprotect=False, remedy=_PROTECTED)
        return None

    def settle(self, renewal: Renewal) -> Image:
        """Brings the image that holds the content up to date, and ends what a killed run had begun."""
        image = self._copied(_record.apply(self._cloud, renewal.image, renewal.update), renewal.stores)
        for old in renewal.replaced:
            _record.retire(self._cloud, old)
        return image

    def renewal(self, surveyed: Surveyed) -> Renewal:
        """What the newest image that holds the content, which is L(known), takes."""
        image = next(image for image in self._present if image.get(CONTENT) == surveyed.identity)
        update = plan_update(image, self._spec(surveyed, image), _record.members(self._cloud, image))
        replaced = self._replaced_by(image, lambda: self._present)
        return Renewal(image, update, self._missing_stores(image), replaced)

    def _missing_stores(self, image: Image) -> list[str]:
        return missing_stores(image, self._params["stores"] or [])

    def _copied(self, image: Image, stores: t.Sequence[str]) -> Image:
        if not stores:
            return image
        progress = ImageProgress(self.name) if self._params["progress"] else Silence()
        return copy_to_stores(self._cloud, image, stores, _LONGEST_COPY, progress.importing)

    @property
    def _replaces(self) -> bool:
        return bool(self._params["on_existing"] == "replace")

    def _replaced_by(self, image: Image, there: t.Callable[[], list[Image]]) -> list[Image]:
        """Those whose place an image takes; one that is protected after all stays."""
        found = there() if self._replaces else []
        return [other for other in found if other["id"] != image["id"] and not other["protected"]]

    def draft(self, surveyed: Surveyed) -> Image:
        """A queued image for the disk, in the place of one that came to nothing."""
        self.discard()
        spec, mark = self._spec(surveyed), {_record.EXPORT_OF: surveyed.key}
        self._draft = _record.create(self._cloud, spec, self._free_id(), mark)
        return self._draft

    def _free_id(self) -> str | None:
        """The id that was asked for, unless an image takes another's place, or may turn out to be that very one."""
        wanted: str | None = self._params["id"]
        is_taken = any(self._replaces or image["id"] == wanted for image in self._present)
        return None if is_taken else wanted

    def verify(self, surveyed: Surveyed, size: int, digests: t.Sequence[Digest]) -> str | None:
        """Holds what Glance has of the draft against what was sent.

        :returns: the hash that Glance computes, if it is none of those; None where all is well.
        :raises FerryError: Glance has not got what was sent.
        """
        if self._draft is None:
            raise ImageConflict(f"No image was made for {surveyed.volume['label']}.")
        stored = _record.show(self._cloud, self._draft["id"])
        if stored["status"] != "active":
            raise ImageConflict(f"The image '{self.name}' ({stored['id']}) is {stored['status']}, not active.")
        if check_stored(stored, size, digests) is None:
            return stored.get("os_hash_algo") or ""
        self._stored = self._copied(stored, self._missing_stores(stored))
        return None

    def publish(self, surveyed: Surveyed) -> Image:
        """Shows the image that the draft has become, which L(verify) has found well, and removes what it replaces."""
        if self._stored is None:
            raise ImageConflict(f"The image of {surveyed.volume['label']} was not verified.")
        spec = self._spec(surveyed)
        spec = replace(spec, properties={**spec.properties, CONTENT: surveyed.identity})
        image = _record.publish(self._cloud, self._stored, spec, drop=(_record.EXPORT_OF,))
        self._draft = self._stored = None
        for old in self._replaced_by(image, self._whole):  # another run may have made one meanwhile
            _record.retire(self._cloud, old)
        return image

    def discard(self) -> None:
        """Leaves nothing behind of an image that was not published."""
        if self._draft is not None:
            _record.discard(self._cloud, self._draft)
            self._draft = self._stored = None

    def reason(self) -> str:
        """Why a new image is needed, in words."""
        return f"'{self.name}' has another content" if self._present else f"there is no image '{self.name}'"

    def predicted(self, surveyed: Surveyed) -> tuple[dict[str, t.Any], dict[str, t.Any]]:
        """What is said of the image that is there, and of the one that will be."""
        old = self._present[0] if self._present else None
        before = _lasting(describe(old, _record.members(self._cloud, old))) if old is not None else {}
        after = predict(self._spec(surveyed), None, "", None)
        after["properties"] = {**after["properties"], CONTENT: surveyed.identity or "as exported"}
        return before, _lasting(after)

    def _spec(self, surveyed: Surveyed, present: Image | None = None) -> ImageSpec:
        """What the image is to say.

        :param present: the image, when it is there and keeps its format.
        """
        params = self._params
        inherited = surveyed.metadata if params["keep_metadata"] else {}
        properties = {name: value for name, value in inherited.items() if _is_inherited(name, value)}
        return ImageSpec(
            name=self.name,
            disk_format=None if present else surveyed.image_format,
            container_format=None if present else params["container_format"],
            visibility=params["visibility"],
            protected=params["protected"],
            hidden=params["hidden"],
            tags=params["tags"] if params["tags"] is not None else inherited.get("tags"),
            properties={**properties, **(params["properties"] or {})},
            min_disk=params["min_disk"] if params["min_disk"] is not None else inherited.get("min_disk"),
            min_ram=params["min_ram"] if params["min_ram"] is not None else inherited.get("min_ram"),
            members=params["members"],
        )


def _is_inherited(name: str, value: t.Any) -> bool:
    return isinstance(value, str) and not name.startswith(("os_glance_", "owner_specified."))


def _lasting(described: dict[str, t.Any]) -> dict[str, t.Any]:
    return {name: value for name, value in described.items() if name not in _FLEETING}
