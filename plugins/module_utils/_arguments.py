# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The argument specs that modules share, each beside the doc fragment of the same name."""

from __future__ import annotations

import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._image.formats import FORMATS, SOURCE_FORMATS

Spec = dict[str, dict[str, t.Any]]


def cloud_spec() -> Spec:
    """openstack.cloud's options for reaching a cloud."""
    return {
        "cloud": {"type": "raw"},
        "auth": {"type": "dict", "no_log": True},
        "auth_type": {"type": "str"},
        "region_name": {"type": "str"},
        "interface": {"type": "str", "choices": ["admin", "internal", "public"], "default": "public",
                      "aliases": ["endpoint_type"]},
        "validate_certs": {"type": "bool", "aliases": ["verify"]},
        "ca_cert": {"type": "str", "aliases": ["cacert"]},
        "client_cert": {"type": "str", "aliases": ["cert"]},
        "client_key": {"type": "str", "no_log": True, "aliases": ["key"]},
        "api_timeout": {"type": "int"},
    }  # fmt: skip


def discovery_spec() -> Spec:
    """Which images to find."""
    strings = {"type": "list", "elements": "str"}
    return {
        **cloud_spec(),
        "image": {"type": "str"},
        "name": {"type": "str"},
        "status": {**strings, "default": ["active"]},
        "disk_format": {**strings, "default": list(SOURCE_FORMATS)},
        "tags": {**strings, "default": []},
        "visibility": {"type": "str", "choices": ["all", "public", "private", "shared", "community"]},
        "owner": {"type": "str"},
        "properties": {"type": "dict", "default": {}},
        "size_min": {"type": "str"},
        "size_max": {"type": "str"},
        "created_after": {"type": "str"},
        "created_before": {"type": "str"},
        "updated_after": {"type": "str"},
        "updated_before": {"type": "str"},
        "sort": {**strings, "default": ["name:asc", "created_at:desc"]},
        "latest": {"type": "bool", "default": False},
        "inspect": {"type": "str", "choices": ["never", "needed", "always"], "default": "needed"},
        "max_virtual_size": {"type": "str", "default": "8TiB"},
    }


def image_filter_spec() -> Spec:
    """Which images to remove: the options of discovery that say what an image is."""
    others = {*cloud_spec(), "image", "sort", "latest", "inspect", "max_virtual_size"}
    return {name: option for name, option in discovery_spec().items() if name not in others}


def image_module_spec() -> Spec:
    """The options of glance_image."""
    strings = {"type": "list", "elements": "str"}
    purge = {"type": "bool", "default": False}
    return {
        **cloud_spec(),
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "name": {"type": "str"},
        "id": {"type": "str"},
        "filter": {"type": "dict", "options": image_filter_spec()},
        "unprotect": {"type": "bool", "default": False},
        "src": {"type": "path"},
        "url": {"type": "str"},
        "headers": {"type": "dict", "no_log": True},
        "checksum": {"type": "str"},
        "on_existing": {"type": "str", "choices": ["fail", "replace", "new"], "default": "fail"},
        "import_method": {"type": "str", "choices": ["web-download", "copy-image"]},
        "stores": strings,
        "timeout": {"type": "int", "default": 3600},
        "progress": {"type": "bool", "default": True},
        "disk_format": {"type": "str"},
        "container_format": {"type": "str"},
        "visibility": {"type": "str", "choices": ["public", "private", "shared", "community"]},
        "protected": {"type": "bool"},
        "hidden": {"type": "bool"},
        "active": {"type": "bool"},
        "min_disk": {"type": "int"},
        "min_ram": {"type": "int"},
        "tags": strings,
        "properties": {"type": "dict", "default": {}},
        "members": strings,
        "purge_tags": purge,
        "purge_properties": purge,
        "purge_members": purge,
    }


IMAGE_MODULE_RULES: dict[str, t.Any] = {
    "mutually_exclusive": [("src", "url"), ("src", "import_method"), ("filter", "name"), ("filter", "id")],
    "required_one_of": [("name", "id", "filter")],
    "required_if": [("import_method", "web-download", ["url"]), ("import_method", "copy-image", ["stores"])],
    "required_by": {"headers": "url"},
}


def transfer_spec() -> Spec:
    """How bytes are moved to a host."""
    return {
        "timeout": {"type": "int", "default": 60},
        "retries": {"type": "int", "default": 5},
        "rate_limit": {"type": "str"},
        "progress": {"type": "bool", "default": True},
    }


def volume_spec() -> Spec:
    """Where a disk lives on a host."""
    return {
        "path": {"type": "path"},
        "device": {"type": "path"},
        "vg": {"type": "str"},
        "lv": {"type": "str"},
        "thin_pool": {"type": "str"},
        "pool": {"type": "str"},
        "volume": {"type": "str"},
    }


VOLUME_RULES: dict[str, t.Any] = {
    "mutually_exclusive": [("path", "device", "vg", "pool"), ("path", "thin_pool"), ("device", "thin_pool")],
    "required_together": [("vg", "lv"), ("pool", "volume")],
    "required_one_of": [("path", "device", "vg", "pool")],
}


def import_spec() -> Spec:
    """The options of glance_image_import, apart from those that every file module has."""
    return {
        **cloud_spec(),
        "image": {"type": "str"},
        "latest": {"type": "bool", "default": False},
        "host_interface": {"type": "str", "choices": ["admin", "internal", "public"]},
        "url": {"type": "str"},
        "headers": {"type": "dict", "no_log": True},
        "checksum": {"type": "str"},
        "source_format": {"type": "str", "choices": list(SOURCE_FORMATS)},
        "decompress": {"type": "str", "choices": ["none", "auto", "gzip", "xz", "zstd"], "default": "none"},
        **volume_spec(),
        "format": {"type": "str", "choices": ["keep", *FORMATS], "default": "keep"},
        "size": {"type": "str"},
        "headroom": {"type": "str", "default": "full"},
        "preallocation": {"type": "str", "choices": ["off", "falloc", "full"], "default": "off"},
        "compat": {"type": "str", "choices": ["0.10", "1.1"]},
        "cluster_size": {"type": "str"},
        "compress": {"type": "str", "choices": ["zlib", "zstd"]},
        "staging_dir": {"type": "path"},
        "overwrite": {"type": "str", "choices": ["never", "imported", "different", "always"], "default": "never"},
        "allow_unverified": {"type": "bool", "default": False},
        "max_virtual_size": {"type": "str", "default": "8TiB"},
        "lock_timeout": {"type": "int", "default": 60},
        **transfer_spec(),
        "connections": {"type": "str", "default": "auto"},
        "_image": {"type": "dict"},  # what Glance says of it; set by the action plugin
        **_private_spec(),
    }


def _private_spec() -> Spec:
    """What the controller knows and the host has to, set by the action plugin."""
    return {
        "_token": {"type": "str", "no_log": True},
        "_ca_data": {"type": "str"},
        "_client_cert": {"type": "str", "no_log": True},
        "_client_key": {"type": "str", "no_log": True},
        "_transfer": {"type": "path"},
    }


IMPORT_RULES: dict[str, t.Any] = {
    # What concerns a cloud may stand beside an address all the same: it comes from defaults that many tasks share.
    "mutually_exclusive": [("image", "url"), ("headers", "image"), ("checksum", "image"), ("source_format", "image"),
                           *VOLUME_RULES["mutually_exclusive"]],
    "required_together": VOLUME_RULES["required_together"],
    "required_one_of": [("image", "url"), *VOLUME_RULES["required_one_of"]],
}  # fmt: skip

EXISTING_VOLUME_RULES: dict[str, t.Any] = {**VOLUME_RULES, "mutually_exclusive": [("path", "device", "vg", "pool")]}


def _reading_spec() -> Spec:
    """How a disk is read, and brought to an image."""
    return {
        "host_interface": {"type": "str", "choices": ["admin", "internal", "public"]},
        **_existing_volume_spec(),
        "domain": {"type": "str"},
        "source_format": {"type": "str", "choices": list(FORMATS)},
        "live": {"type": "bool", "default": True},
        "quiesce": {"type": "str", "choices": ["auto", "always", "never"], "default": "auto"},
        "scratch_dir": {"type": "path"},
        "compat": {"type": "str", "choices": ["0.10", "1.1"], "default": "1.1"},
        "cluster_size": {"type": "str", "default": "64KiB"},
        "compress": {"type": "str", "choices": ["zlib", "zstd"]},
        "spool_dir": {"type": "path"},
        "stores": {"type": "list", "elements": "str"},
        "reread": {"type": "bool", "default": False},
        "lock_timeout": {"type": "int", "default": 60},
        **transfer_spec(),
    }


def export_spec() -> Spec:
    """The options of glance_image_export."""
    strings = {"type": "list", "elements": "str"}
    disk = {"disk": {"type": "str", "required": True}, "name": {"type": "str", "required": True}}
    return {
        **cloud_spec(),
        **_reading_spec(),
        "disk": {"type": "str"},
        "disks": {"type": "list", "elements": "dict", "options": disk},
        "snapshot": {"type": "str"},
        "flatten": {"type": "bool", "default": True},
        "base": {"type": "path"},
        "name": {"type": "str"},
        "id": {"type": "str"},
        "format": {"type": "str", "choices": ["keep", *FORMATS], "default": "keep"},
        "container_format": {"type": "str", "default": "bare"},
        "visibility": {"type": "str", "choices": ["private", "shared", "community", "public"]},
        "protected": {"type": "bool"},
        "hidden": {"type": "bool"},
        "tags": strings,
        "properties": {"type": "dict"},
        "min_disk": {"type": "int"},
        "min_ram": {"type": "int"},
        "members": strings,
        "keep_metadata": {"type": "bool", "default": True},
        "on_existing": {"type": "str", "choices": ["replace", "new", "fail"], "default": "replace"},
        "_known": {"type": "dict"},  # the contents that are in Glance already, by the name of the disk
        "_images": {"type": "dict"},  # where the disks go; without it, nothing is moved
        **_private_spec(),
    }


_DISK_PLACES = ("path", "device", "vg", "pool", "domain")

EXPORT_RULES: dict[str, t.Any] = {
    "mutually_exclusive": [_DISK_PLACES, ("disk", "disks"), ("name", "disks"), ("id", "disks"),
                           ("base", "disks"), ("domain", "source_format")],
    "required_together": VOLUME_RULES["required_together"],
    "required_one_of": [_DISK_PLACES, ("name", "disks")],
    "required_by": {"disk": "domain", "disks": "domain"},
}  # fmt: skip


def backup_spec() -> Spec:
    """The options of volume_backup."""
    return {
        **cloud_spec(),
        **_reading_spec(),
        "set": {"type": "str", "required": True},
        "host": {"type": "str"},
        "label": {"type": "str"},
        "time": {"type": "str"},
        "disks": {"type": "list", "elements": "str"},
        "format": {"type": "str", "choices": ["keep", "raw", "qcow2"], "default": "qcow2"},
        "visibility": {"type": "str", "choices": ["private", "shared", "community", "public"], "default": "private"},
        "protected": {"type": "bool"},
        "tags": {"type": "list", "elements": "str"},
        "properties": {"type": "dict"},
    }


BACKUP_RULES: dict[str, t.Any] = {
    "mutually_exclusive": [_DISK_PLACES, ("domain", "source_format"), ("domain", "label")],
    "required_together": VOLUME_RULES["required_together"],
    "required_one_of": [_DISK_PLACES],
    "required_by": {"disks": "domain"},
}


def backup_info_spec() -> Spec:
    """The options of backup_info."""
    strings = ("set", "host", "disk", "guest", "at")
    return {
        **cloud_spec(),
        **{name: {"type": "str"} for name in strings},
        "newest": {"type": "bool", "default": False},
    }


def backup_prune_spec() -> Spec:
    """The options of backup_prune."""
    counts = ("keep_last", "keep_daily", "keep_weekly", "keep_monthly")
    return {
        **cloud_spec(),
        "set": {"type": "str", "required": True},
        "host": {"type": "str"},
        "disks": {"type": "list", "elements": "str"},
        **{name: {"type": "int", "default": 0} for name in counts},
        "min_age": {"type": "str", "default": "0d"},
        "unprotect": {"type": "bool", "default": False},
    }


def volume_info_spec() -> Spec:
    """The options of volume_info."""
    return {
        **_existing_volume_spec(),
        "format": {"type": "str", "choices": list(FORMATS)},
        "check": {"type": "bool", "default": False},
        "content": {"type": "bool", "default": False},
        "content_size": {"type": "str"},
    }


def host_volumes_spec() -> Spec:
    """The options of host_volumes_info."""
    return {
        "folders": {"type": "list", "elements": "path", "default": ["/var/lib/libvirt/images"]},
        "vgs": {"type": "list", "elements": "str"},
        "exclude": {"type": "list", "elements": "path", "default": []},
    }


def volume_extend_spec() -> Spec:
    """The options of volume_extend."""
    return {
        **_existing_volume_spec(),
        "size": {"type": "str", "required": True},
        "format": {"type": "str", "choices": ["raw", "qcow2"]},
        "only": {"type": "str", "choices": ["volume", "image"]},
    }


def volume_module_spec() -> Spec:
    """The options of volume, apart from those that every file module has."""
    base = {**_existing_volume_spec(), "format": {"type": "str", "choices": ["raw", "qcow2"]}}
    return {
        **volume_spec(),
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "size": {"type": "str"},
        "format": {"type": "str", "choices": ["raw", "qcow2"]},
        "cluster_size": {"type": "str"},
        "preallocation": {"type": "str", "choices": ["off", "metadata", "falloc", "full"], "default": "off"},
        "clone_of": {"type": "dict", "options": base, **EXISTING_VOLUME_RULES},
        "wipe": {"type": "bool", "default": False},
    }


def guest_disk_info_spec() -> Spec:
    """The options of guest_disk_info."""
    return {"guest": {"type": "str", "required": True}}


def guest_disk_spec() -> Spec:
    """The options of guest_disk."""
    return {
        **_existing_volume_spec(),
        "guest": {"type": "str", "required": True},
        "state": {"type": "str", "choices": ["attached", "detached"], "default": "attached"},
        "target": {"type": "str"},
        "bus": {"type": "str", "choices": ["virtio", "scsi", "sata", "ide", "usb"]},
        "format": {"type": "str", "choices": ["raw", "qcow2"]},
        "read_only": {"type": "bool", "default": False},
        "timeout": {"type": "int", "default": 60},
    }


GUEST_DISK_RULES: dict[str, t.Any] = {
    "mutually_exclusive": EXISTING_VOLUME_RULES["mutually_exclusive"],
    "required_together": VOLUME_RULES["required_together"],
    "required_if": [
        ("state", "attached", ("path", "device", "vg", "pool"), True),
        ("state", "detached", ("path", "device", "vg", "pool", "target"), True),
    ],
}


def guest_cdrom_spec() -> Spec:
    """The options of guest_cdrom."""
    return {
        **cloud_spec(),
        "guest": {"type": "str", "required": True},
        "state": {"type": "str", "choices": ["inserted", "renewed", "ejected"], "default": "inserted"},
        "target": {"type": "str"},
        "image": {"type": "str"},
        "latest": {"type": "bool", "default": False},
        "host_interface": {"type": "str", "choices": ["admin", "internal", "public"]},
        **_existing_volume_spec(),
        "force": {"type": "bool", "default": False},
        "renew_for": {"type": "int", "default": 0},
        "_image": {"type": "dict"},  # what is served; set by the action plugin
        "_wait": {"type": "float", "default": 0},
        **{name: option for name, option in _private_spec().items() if name != "_transfer"},
    }


DISC_PLACES = ("path", "device", "vg", "pool", "image")

GUEST_CDROM_RULES: dict[str, t.Any] = {
    "mutually_exclusive": [DISC_PLACES],
    "required_together": VOLUME_RULES["required_together"],
    "required_by": {"host_interface": "image"},
}


def _existing_volume_spec() -> Spec:
    """Where a disk lies that is there: nothing about how to make one."""
    return {name: option for name, option in volume_spec().items() if name != "thin_pool"}


WATCH_SPEC: Spec = {
    "folder": {"type": "path", "required": True},
    "results_file": {"type": "path", "required": True},
    "wait": {"type": "float", "default": 0},
    "token": {"type": "str", "no_log": True},
}
