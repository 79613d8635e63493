# SPDX-License-Identifier: GPL-3.0-or-later
"""What Glance's answers are taken for where a real Glance of the tests, on SQLite, does not answer so."""

from __future__ import annotations

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import ImageNotFound
from ansible_collections.imageferry.glance.plugins.plugin_utils._catalogue import find_image, list_images


class OnMySql:
    """A cloud whose database compares names without regard to case, and to blanks behind them."""

    def __init__(self, *names):
        self.images = [{"id": name, "name": name, "status": "active"} for name in names]
        self.page = {"images": self.images}

    def get(self, path, params):
        asked = params["name"].removeprefix("eq:").lower()
        self.page["images"] = [image for image in self.images if image["name"].lower().rstrip() == asked]
        return self

    def json(self):
        return self.page


def test_only_an_image_of_that_very_name_is_meant():
    cloud = OnMySql("Debian", "debian ", "debian")
    assert [image["id"] for image in list_images(cloud, {"name": "debian"})] == ["debian"]
    with pytest.raises(ImageNotFound):
        find_image(OnMySql("Debian"), "debian", latest=True)
