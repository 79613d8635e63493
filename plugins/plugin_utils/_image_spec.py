# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a record of an image in Glance is to say, and what has to be done for it; nothing here asks a cloud."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from ansible_collections.imageferry.glance.plugins.module_utils._errors import InvalidOption

Image = dict[str, t.Any]
"""An image as Glance describes it (Image API v2, "Show image")."""

Described = dict[str, t.Any]
"""What of an image this collection changes or shows in a diff, see L(describe)."""

_TEXTS = ("name", "disk_format", "container_format", "visibility")
_FIELDS = (*_TEXTS, "min_disk", "min_ram", "os_hidden", "protected")
_FIXED = ("disk_format", "container_format")  # once an image has bytes
_GLANCES_OWN = (
    "checksum", "created_at", "deleted", "deleted_at", "direct_url", "file", "id", "location", "locations",
    "os_hash_algo", "os_hash_value", "owner", "schema", "self", "size", "status", "stores", "updated_at",
    "virtual_size",
)  # fmt: skip
_RESERVED = "os_glance_"
_KEPT = "owner_specified."  # what tools note for themselves, as hashes

_ACTIONS = {("active", "deactivated"): "deactivate", ("deactivated", "active"): "reactivate"}


@dataclass
class ImageSpec:
    """What an image's record is to say; None, or nothing, leaves it as it is.

    :param hidden: whether it is left out of lists (Glance's C(os_hidden)).
    :param tags: those that it has at least; with C(purge_tags) no others.
    :param properties: those that it has at least; with C(purge_properties) no others but Glance's own (C(os_glance_…))
        and what tools note for themselves (C(owner_specified.…)). None removes one. Truth values and numbers become
        what Python writes for them (V(True), V(4)), as openstack.cloud does.
    :param min_disk: GiB.
    :param min_ram: MiB.
    :param members: ids of the projects that it is shared with at least; with C(purge_members) with no others.
    :param active: whether its bytes may be downloaded.
    :raises InvalidOption: a property is not one that can be set.
    """

    name: str | None = None
    disk_format: str | None = None
    container_format: str | None = None
    visibility: str | None = None
    protected: bool | None = None
    hidden: bool | None = None
    tags: t.Sequence[str] | None = None
    properties: t.Mapping[str, t.Any] = field(default_factory=dict)
    min_disk: int | None = None
    min_ram: int | None = None
    members: t.Sequence[str] | None = None
    active: bool | None = None
    purge_tags: bool = False
    purge_properties: bool = False
    purge_members: bool = False

    def __post_init__(self) -> None:
        for name in self.properties:
            _check_property_name(name)
        self.properties = {name: _property_text(name, value) for name, value in self.properties.items()}

    def fields(self) -> Described:
        """Glance's fields that are asked for, apart from properties, tags and members."""
        asked = {name: getattr(self, name) for name in (*_TEXTS, "min_disk", "min_ram", "protected")}
        return {name: value for name, value in {**asked, "os_hidden": self.hidden}.items() if value is not None}

    def apply_to(self, before: Described) -> Described:
        """What C(before) is to become.

        :raises InvalidOption: members are asked for, but it will not be shared.
        """
        after = {**before, **self.fields()}
        if self.members and after["visibility"] != "shared":
            raise InvalidOption(
                f"'members' is given, but the image '{after['name']}' is {after['visibility']}.",
                "Only images of the visibility 'shared' have members: set 'visibility: shared', or leave them out.",
            )
        after["tags"] = _merged(before["tags"], self.tags, self.purge_tags)
        after["members"] = _merged(before["members"], self.members, self.purge_members)
        if after["visibility"] != "shared":
            after["members"] = []
        kept = {} if self.purge_properties else before["properties"]
        kept = {**kept, **{name: text for name, text in before["properties"].items() if name.startswith(_KEPT)}}
        wanted = {**kept, **self.properties}
        after["properties"] = {name: wanted[name] for name in sorted(wanted) if wanted[name] is not None}
        if self.active is not None and before["status"] in ("active", "deactivated"):
            after["status"] = "active" if self.active else "deactivated"
        return after


@dataclass
class Update:
    """What differs between what an image's record says and what it is to say; false where nothing does.

    :param before: what it says, see L(describe).
    :param after: what it is to say.
    """

    before: Described
    after: Described

    def __bool__(self) -> bool:
        return self.before != self.after

    @property
    def patch(self) -> list[dict[str, t.Any]]:
        """The JSON patch (Image API v2, "Update image") for all but members and status."""
        changes = [
            {"op": "replace", "path": f"/{name}", "value": self.after[name]}
            for name in (*_FIELDS, "tags")
            if self.after[name] != self.before[name]
        ]
        old, new = self.before["properties"], self.after["properties"]
        for name in sorted(old | new):
            if name not in new:
                changes.append({"op": "remove", "path": f"/{_escape(name)}"})
            elif name not in old or old[name] != new[name]:
                operation = "replace" if name in old else "add"
                changes.append({"op": operation, "path": f"/{_escape(name)}", "value": new[name]})
        return changes

    @property
    def joining(self) -> list[str]:
        """The projects to share the image with."""
        return [member for member in self.after["members"] if member not in self.before["members"]]

    @property
    def leaving(self) -> list[str]:
        """The projects to share the image with no longer."""
        if self.after["visibility"] != "shared":
            return []
        return [member for member in self.before["members"] if member not in self.after["members"]]

    @property
    def action(self) -> str | None:
        """C(deactivate) or C(reactivate) (Image API v2, "Image actions")."""
        return _ACTIONS.get((self.before["status"], self.after["status"]))

    def summary(self) -> str:
        """The names of what differs, in words."""
        return ", ".join(name for name in sorted(self.after) if self.after[name] != self.before[name])


def describe(image: Image, members: t.Sequence[str] = ()) -> Described:
    """What of an image this collection changes, or shows in a diff: its record, size and hash, never data.

    :param members: the ids of the projects that it is shared with.
    """
    shown = ("id", *_FIELDS, "os_hash_algo", "os_hash_value", "size", "status")
    known = {name: image.get(name) for name in shown}
    properties = {name: image[name] for name in sorted(image) if _is_property(name) and image[name] is not None}
    return dict(
        sorted({**known, "tags": sorted(image["tags"]), "members": sorted(members), "properties": properties}.items())
    )


def plan_update(image: Image, spec: ImageSpec, members_now: t.Sequence[str] = ()) -> Update:
    """What has to be changed for an image's record to say what is asked.

    :param members_now: the ids of the projects that it is shared with.
    :raises InvalidOption: it cannot say that.
    """
    before = describe(image, members_now)
    after = spec.apply_to(before)
    for name in _FIXED:
        if after[name] != before[name] and before["status"] != "queued":
            raise InvalidOption(
                f"'{name}: {after[name]}' is given, but the image '{before['name']}' is {before[name]}.",
                "Glance never changes the format of an image that has bytes: upload another image.",
            )
    return Update(before, after)


def inherit(image: Image, spec: ImageSpec, members_now: t.Sequence[str]) -> ImageSpec:
    """What the record of an image with other bytes is to say that takes this one's place."""
    after = spec.apply_to(describe(image, members_now))
    properties = {name: text for name, text in after["properties"].items() if not name.startswith(_KEPT)}
    fields = {name: after[name] for name in (*_TEXTS, "min_disk", "min_ram", "protected", "tags", "members")}
    properties |= {name: text for name, text in spec.properties.items() if text is not None}
    return ImageSpec(**fields, properties=properties, hidden=after["os_hidden"], active=spec.active)


def predict(spec: ImageSpec, size: int | None, algorithm: str, value: str | None) -> Described:
    """What will be said of a new image of so many bytes with this hash, see L(describe); without its id.

    :raises InvalidOption: see L(ImageSpec.apply_to).
    """
    blank: Image = {
        "name": spec.name,
        "visibility": "shared",
        "protected": False,
        "os_hidden": False,
        "min_disk": 0,
        "min_ram": 0,
        "tags": [],
        "status": "active",
        "size": size,
        "os_hash_algo": algorithm if value else None,
        "os_hash_value": value,
    }
    return spec.apply_to(describe(blank))


def _check_property_name(name: str) -> None:
    if name in _GLANCES_OWN or name.startswith(_RESERVED):
        raise InvalidOption(f"'properties: {name}' is set by Glance itself.", "Leave it out.")
    if name in (*_FIELDS, "tags", "members", "hidden"):
        raise InvalidOption(f"'properties: {name}' is no property.", "It is an option of its own.")


def _is_property(name: str) -> bool:
    return name not in (*_GLANCES_OWN, *_FIELDS, "tags") and not name.startswith(_RESERVED)


def _property_text(name: str, value: t.Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (bool, int, float)):
        return str(value)
    raise InvalidOption(
        f"'properties: {name}' is a {type(value).__name__}.", "A property is a text: write it as one, such as JSON."
    )


def _merged(present: list[str], wanted: t.Sequence[str] | None, purge: bool) -> list[str]:
    if wanted is None:
        return present
    return sorted(set(wanted) if purge else {*present, *wanted})


def _escape(name: str) -> str:
    """A name as a part of a JSON pointer (RFC 6901, 3)."""
    return name.replace("~", "~0").replace("/", "~1")
