# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole of glance_image_info: it runs on the controller."""

from __future__ import annotations

import typing as t

from ansible_collections.imageferry.glance.plugins.plugin_utils._discovery import DiscoveryAction


class ActionModule(DiscoveryAction):
    """Returns the images as data."""

    def present(self, images: list[dict[str, t.Any]]) -> dict[str, t.Any]:
        return {"glance_images": images}
