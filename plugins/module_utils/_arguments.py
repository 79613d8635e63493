# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The argument specs that modules share, each beside the doc fragment of the same name."""

from __future__ import annotations

import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._image.formats import FORMATS

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
        "disk_format": {**strings, "default": list(FORMATS)},
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


def transfer_spec() -> Spec:
    """How bytes are moved to a host."""
    return {
        "timeout": {"type": "int", "default": 60},
        "retries": {"type": "int", "default": 5},
        "rate_limit": {"type": "str"},
        "progress": {"type": "bool", "default": True},
    }


def import_spec() -> Spec:
    """The options of glance_image_import, apart from those that every file module has."""
    return {
        **cloud_spec(),
        "image": {"type": "str"},
        "latest": {"type": "bool", "default": False},
        "url": {"type": "str"},
        "headers": {"type": "dict", "no_log": True},
        "checksum": {"type": "str"},
        "source_format": {"type": "str", "choices": ["raw", "qcow2", "iso"]},
        "path": {"type": "path", "required": True},
        "format": {"type": "str", "choices": ["keep", "raw", "qcow2", "iso"], "default": "keep"},
        "overwrite": {"type": "str", "choices": ["never", "different", "always"], "default": "never"},
        "allow_unverified": {"type": "bool", "default": False},
        "max_virtual_size": {"type": "str", "default": "8TiB"},
        "lock_timeout": {"type": "int", "default": 60},
        **transfer_spec(),
        # Set by the action plugin: what the controller knows and the host has to.
        "_image": {"type": "dict"},
        "_token": {"type": "str", "no_log": True},
        "_ca_data": {"type": "str"},
        "_transfer": {"type": "path"},
    }


IMPORT_RULES: dict[str, t.Any] = {
    "mutually_exclusive": [("image", "url"), ("cloud", "url"), ("auth", "url"), ("latest", "url"),
                           ("headers", "image"), ("checksum", "image"), ("source_format", "image")],
    "required_one_of": [("image", "url")],
}  # fmt: skip

WATCH_SPEC: Spec = {
    "folder": {"type": "path", "required": True},
    "results_file": {"type": "path", "required": True},
    "wait": {"type": "float", "default": 0},
    "token": {"type": "str", "no_log": True},
}
