# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading the first bytes of an image in Glance, to judge it before a byte of it lands anywhere."""

from __future__ import annotations

import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    CloudError,
    MissingDependency,
    UnsafeImage,
    describe_cause,
)
from ansible_collections.imageferry.glance.plugins.module_utils._image.formats import HEAD_SIZE, ImageFacts, check_head
from ansible_collections.imageferry.glance.plugins.plugin_utils._cloud import Cloud


def judge(cloud: Cloud, image: t.Mapping[str, t.Any], max_virtual_size: int | None) -> ImageFacts:
    """Judges an image by its header: with this collection's own reader, and with the one that Glance and Nova use.

    :raises FerryError: see L(check_head).
    """
    head = read_head(cloud, image["id"])
    facts = check_head(head, image["disk_format"], image["size"], max_virtual_size)
    if image["disk_format"] == "qcow2":
        _check_with_oslo(head)
    return facts


def read_head(cloud: Cloud, image_id: str) -> bytes:
    """The first bytes of an image; fewer than L(HEAD_SIZE) when it is smaller."""
    path = f"/images/{image_id}/file"
    try:
        response = cloud.get(path, headers={"Range": f"bytes=0-{HEAD_SIZE - 1}"}, stream=True)
    except CloudError:  # not every store can serve a part
        response = cloud.get(path, stream=True)
    head = b""
    with response:
        try:
            for part in response.iter_content(HEAD_SIZE):
                head += part
                if len(head) >= HEAD_SIZE:
                    break
        except OSError as err:  # requests' errors are of this kind
            raise CloudError(f"Glance broke off as it sent the image {image_id}: {describe_cause(err)}.") from err
    return head[:HEAD_SIZE]


def _check_with_oslo(head: bytes) -> None:
    try:
        from oslo_utils.imageutils import format_inspector
    except ImportError as err:
        raise MissingDependency(
            "oslo.utils is not installed on the controller.", "Install it beside ansible-core: pip install oslo.utils."
        ) from err
    inspector = format_inspector.QcowInspector()
    inspector.eat_chunk(head)
    try:
        inspector.safety_check()
    except (format_inspector.SafetyCheckFailed, format_inspector.ImageFormatError) as err:
        raise UnsafeImage(f"The image fails OpenStack's own safety check: {err}.") from err
