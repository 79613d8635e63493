# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What glance_image_info and glance_image_facts share."""

from __future__ import annotations

import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._arguments import cloud_spec, discovery_spec
from ansible_collections.imageferry.glance.plugins.plugin_utils._action import FerryAction, cloud_options
from ansible_collections.imageferry.glance.plugins.plugin_utils._catalogue import discover
from ansible_collections.imageferry.glance.plugins.plugin_utils._cloud import Cloud
from ansible_collections.imageferry.glance.plugins.plugin_utils._once import once


class DiscoveryAction(FerryAction):
    """Finds images, once for all hosts of a play."""

    def work(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        _checked, params = self.validate_argument_spec(discovery_spec())
        wanted = {name: params[name] for name in discovery_spec() if name not in cloud_spec()}

        def ask() -> dict[str, t.Any]:
            return {"images": discover(Cloud(cloud_options(params)), wanted)}

        # A task with 'until' asks again because the answer may change.
        asked_again = bool(self._task.until)
        images = (ask() if asked_again else once(self.question(params), ask))["images"]
        return {"changed": False, **self.present(images)}

    def present(self, images: list[dict[str, t.Any]]) -> dict[str, t.Any]:
        """The form in which the module returns what was found."""
        raise NotImplementedError
