# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host needs to read an image, and nothing more."""

from __future__ import annotations

import typing as t

from ansible_collections.imageferry.glance.plugins.plugin_utils._cloud import Cloud
from ansible_collections.imageferry.glance.plugins.plugin_utils._token import issue_token


def hand_over(cloud: Cloud, image: dict[str, t.Any], interface: str | None) -> dict[str, t.Any]:
    """The image, its address, a token, and how the cloud is trusted.

    :param interface: whose endpoint the host uses, None for the controller's.
    """
    client_cert, client_key = cloud.client_certificate()
    return {
        "image": image,
        "url": cloud.image_url(f"/images/{image['id']}/file", interface),
        "token": issue_token(cloud),
        "verifies": cloud.verifies,
        "ca_data": cloud.ca_data(),
        "client_cert": client_cert,
        "client_key": client_key,
    }


def trust_arguments(found: dict[str, t.Any]) -> dict[str, t.Any]:
    """What L(hand_over) found, as the private options of a module."""
    return {
        "validate_certs": found["verifies"],
        "_ca_data": found["ca_data"],
        "_client_cert": found["client_cert"],
        "_client_key": found["client_key"],
    }
