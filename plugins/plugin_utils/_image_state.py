# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The work of glance_image: what is there, what is to be there, and what it takes."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, replace

from ansible_collections.imageferry.glance.plugins.module_utils._arguments import discovery_spec
from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    AmbiguousImage,
    ImageExists,
    ImageNotFound,
    InvalidOption,
)
from ansible_collections.imageferry.glance.plugins.module_utils._sizes import format_size
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.upload import ALGORITHMS
from ansible_collections.imageferry.glance.plugins.plugin_utils._catalogue import assess, discover
from ansible_collections.imageferry.glance.plugins.plugin_utils._cloud import Cloud
from ansible_collections.imageferry.glance.plugins.plugin_utils._content import Digests, hash_content
from ansible_collections.imageferry.glance.plugins.plugin_utils._glance_import import (
    copy_to_stores,
    missing_stores,
    stores_of,
)
from ansible_collections.imageferry.glance.plugins.plugin_utils._image_spec import (
    Image,
    ImageSpec,
    describe,
    inherit,
    plan_update,
    predict,
)
from ansible_collections.imageferry.glance.plugins.plugin_utils._record import (
    UPLOAD_OF,
    apply,
    check_removable,
    delete,
    is_draft,
    is_retired,
    members,
    own_images,
    own_project,
    published,
    retire,
    show,
)
from ansible_collections.imageferry.glance.plugins.plugin_utils._upload import (
    Order,
    hashes_of,
    make_image,
    verify_promise,
)

Result = dict[str, t.Any]

_WITH_BYTES = ("active", "deactivated")


@dataclass
class Wish:
    """What a task asks for.

    :param params: the options of L(image_module_spec), as validated.
    :param spec: what of them is about the record.
    :param order: the image to make if there is none with this content; None where no content is given.
    :param check_mode: whether nothing may be changed.
    :param on_import: called with the image while Glance copies it.
    """

    params: t.Mapping[str, t.Any]
    spec: ImageSpec
    order: Order | None
    check_mode: bool
    on_import: t.Callable[[Image], None]


def find(cloud: Cloud, params: t.Mapping[str, t.Any]) -> list[Image]:
    """The images that the options C(id) or C(name) mean, the newest first; by name only those of the own project that
    are neither drafts nor retired."""
    if params["id"]:
        try:
            return [show(cloud, params["id"])]
        except ImageNotFound:
            return []
    found = own_images(cloud, {"name": params["name"], "sort": "created_at:desc"})
    return [image for image in found if not is_draft(image) and not is_retired(image)]


def the_one(images: list[Image], params: t.Mapping[str, t.Any]) -> Image:
    """The only one of these.

    :raises ImageNotFound, AmbiguousImage: there is none, or more than one.
    """
    label = params["id"] or params["name"]
    if not images:
        raise ImageNotFound(f"No image of this project is '{label}'.", "Give 'src' or 'url' to make one.")
    if len(images) > 1:
        listed = "; ".join(f"{image['id']} of {image['created_at']}" for image in images)
        kept = ("id", "name", "created_at", "size", "status")
        raise AmbiguousImage(
            f"{len(images)} images of this project are called '{label}': {listed}.",
            "Name the image by its id.",
            candidates=[{key: image[key] for key in kept} for image in images],
        )
    return images[0]


def keep(cloud: Cloud, wish: Wish) -> Result:
    """Sees that an image is there, as is asked.

    :raises FerryError: it cannot be.
    """
    there = [image for image in find(cloud, wish.params) if image["status"] in _WITH_BYTES]
    if wish.order is None:
        return _update(cloud, wish, the_one(there, wish.params))
    size, digests = _know_content(wish.order, there, wish.check_mode)
    same = [image for image in there if _holds(image, size, digests)]
    if same:
        return _update(cloud, _publishing(wish) if is_draft(same[0]) else wish, same[0])
    if not there or wish.params["on_existing"] == "new":
        return _make(cloud, wish, wish.order, None, (size, digests))
    old = the_one(there, wish.params)
    if wish.params["on_existing"] == "fail":
        raise ImageExists(f"The image '{old['name']}' ({old['id']}) is there, with other content.", image=old)
    check_removable(old, wish.params["unprotect"])
    return _make(cloud, wish, wish.order, old, (size, digests))


def _publishing(wish: Wish) -> Wish:
    """The same, of a draft that is named by its id: Glance would not give that to another image."""
    return replace(wish, spec=published(wish.spec, [UPLOAD_OF]))


def _know_content(order: Order, there: list[Image], check_mode: bool) -> tuple[int | None, Digests]:
    """The size and hashes of the content, as far as they are needed to tell whether an image that is there holds it."""
    promised = {order.checksum.algorithm: order.checksum.value} if order.checksum else {}
    content = order.content
    if content is None:
        return None, promised
    alike = [image for image in there if _holds(image, content.length, promised)]
    unsure = [image for image in alike if not promised.keys() & hashes_of(image).keys()]
    is_to_be_told = check_mode and not alike and content.is_near  # what an upload would tell
    if not unsure and not is_to_be_told:
        return content.length, promised
    digests = hash_content(content, {*ALGORITHMS, *promised, *(name for image in unsure for name in hashes_of(image))})
    if order.checksum:
        verify_promise(digests, order.checksum)
    return content.length, digests


def _holds(image: Image, size: int | None, digests: Digests) -> bool:
    """Whether an image has this content; where nothing is known of it, its name has to do."""
    if size is not None and size != image["size"]:
        return False
    held = hashes_of(image)
    return all(held[name] == digests[name] for name in held.keys() & digests.keys())


def _update(cloud: Cloud, wish: Wish, image: Image) -> Result:
    """Makes the record of an image that is there what is asked, and copies it to more stores."""
    update = plan_update(image, wish.spec, members(cloud, image))
    copying = wish.params["import_method"] == "copy-image" and missing_stores(image, wish.params["stores"])
    before, after = dict(update.before), dict(update.after)
    if copying:
        before["stores"] = stores_of(image)
        after["stores"] = sorted({*before["stores"], *copying})
    if update and not wish.check_mode:
        image = apply(cloud, image, update)
    if copying and not wish.check_mode:
        image = copy_to_stores(cloud, image, copying, wish.params["timeout"], wish.on_import)
    names = [name for name in after if after[name] != before.get(name)]
    label = f"the image '{image['name']}' ({image['id']})"
    done = f"{'Would change' if wish.check_mode else 'Changed'} {', '.join(names)} of {label}."
    return {
        "changed": bool(names),
        "msg": done if names else f"Nothing to do: {label} is as it is to be.",
        "image": _present(cloud, image),
        "diff": {"before": before, "after": after},
    }


def _make(cloud: Cloud, wish: Wish, order: Order, old: Image | None, content: tuple[int | None, Digests]) -> Result:
    """Makes an image, in the place of an old one if there is one, which goes once the new one is there."""
    known = members(cloud, old) if old else []
    spec = inherit(old, wish.spec, known) if old else wish.spec
    spec = replace(spec, name=spec.name or wish.params["id"], container_format=spec.container_format or "bare")
    if spec.disk_format is None:
        raise InvalidOption("'disk_format' is needed to make an image.", "Say what format the bytes are in.")
    size, digests = content
    predicted = predict(spec, size, ALGORITHMS[0], digests.get(ALGORITHMS[0]))
    if wish.check_mode:
        image, after, fate = None, predicted, "would be removed"
    else:
        image = make_image(cloud, replace(order, spec=spec, image_id=None if old else wish.params["id"]))
        after = describe(image, members(cloud, image))
        fate = retire(cloud, old, wish.params["unprotect"]) if old else ""
    done = "Would make" if wish.check_mode else "Made"
    label = f"the image '{spec.name}'" + (f" ({format_size(after['size'])})" if after["size"] else "")
    return {
        "changed": True,
        "msg": f"{done} {label}" + (f"; the old one, {old['id']}, {fate}." if old else "."),
        "image": _present(cloud, image) if image else None,
        "diff": {"before": describe(old, known) if old else {}, "after": after},
    }


def remove(cloud: Cloud, wish: Wish) -> Result:
    """Sees that no such image is there.

    :raises ProtectedImage: one is protected; none is removed then.
    """
    images = _doomed(cloud, wish.params)
    for image in images:
        check_removable(image, wish.params["unprotect"])
    gone = [image for image in images if wish.check_mode or delete(cloud, image, wish.params["unprotect"])]
    done = "Would remove" if wish.check_mode else "Removed"
    listed = ", ".join(f"'{image['name']}' ({image['id']})" for image in gone)
    return {
        "changed": bool(gone),
        "msg": f"{done} {listed}." if gone else "Nothing to do: there is no such image.",
        "images": [_present(cloud, image) for image in gone],
        "diff": {"before": {"images": [describe(image) for image in gone]}, "after": {"images": []}},
    }


def _doomed(cloud: Cloud, params: t.Mapping[str, t.Any]) -> list[Image]:
    if params["filter"] is None:
        found = find(cloud, params)
        return [the_one(found, params)] if found else []
    defaults = {name: option.get("default") for name, option in discovery_spec().items()}
    asked = {name: value for name, value in params["filter"].items() if value is not None}
    if not any(asked.get(name) for name in asked if asked[name] != defaults.get(name)):
        raise InvalidOption(
            "'filter' would remove all images of the project.", "Say which, such as by 'name' or 'tags'."
        )
    return discover(cloud, {**defaults, "owner": own_project(cloud), **asked, "inspect": "never"})


def _present(cloud: Cloud, image: Image) -> Image:
    """The image in the form of glance_image_info."""
    return image if "safety" in image else assess(cloud, image, "never", 0)
