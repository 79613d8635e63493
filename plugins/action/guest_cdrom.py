# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control plane of guest_cdrom."""

from __future__ import annotations

import time
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._arguments import (
    DISC_PLACES,
    GUEST_CDROM_RULES,
    cloud_spec,
    guest_cdrom_spec,
)
from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    GuestNotFound,
    InvalidOption,
    UnsupportedFormat,
)
from ansible_collections.imageferry.glance.plugins.plugin_utils._action import FerryAction, cloud_options
from ansible_collections.imageferry.glance.plugins.plugin_utils._catalogue import find_image
from ansible_collections.imageferry.glance.plugins.plugin_utils._cloud import Cloud
from ansible_collections.imageferry.glance.plugins.plugin_utils._handover import hand_over, trust_arguments
from ansible_collections.imageferry.glance.plugins.plugin_utils._inspect import judge
from ansible_collections.imageferry.glance.plugins.plugin_utils._token import TokenChain
from ansible_collections.imageferry.glance.plugins.plugin_utils._watch import RECONNECT, run_patiently

_MODULE = "guest_cdrom"
_SPEC = guest_cdrom_spec()
_FOR_HOST = set(_SPEC) - set(cloud_spec()) - {"image", "latest", "host_interface", "renew_for"}
_LONGEST_LOOK = 15.0  # seconds that the host watches a drive before it is asked again


class ActionModule(FerryAction):
    """Finds and judges the image on the controller, and has the host serve it to the guest."""

    def work(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        params = self.options(_SPEC, **GUEST_CDROM_RULES)
        _check_named(params)
        # What a user writes into a private option has no effect: only this plugin sets them.
        arguments = {name: params[name] for name in _FOR_HOST if params[name] is not None and not name.startswith("_")}
        if not params["image"]:
            return self.run_module(_MODULE, arguments, task_vars)
        options = cloud_options(params)
        wanted = {name: params[name] for name in ("image", "latest", "host_interface")}
        found = self.ask_once({**options, **wanted}, lambda: _find(options, wanted))
        tokens = TokenChain(found["token"], options)
        image = {name: found["image"][name] for name in ("id", "name", "size")}
        arguments.update(trust_arguments(found), _image={**image, "url": found["url"]}, _token=tokens.current())
        result = self.run_module(_MODULE, arguments, task_vars)
        if params["renew_for"] > 0 and result.get("inserted") and not self.is_check:
            result.update(self._stay(arguments, task_vars, tokens, params["renew_for"]))
        return result

    def _stay(
        self, arguments: dict[str, t.Any], task_vars: dict[str, t.Any], tokens: TokenChain, seconds: float
    ) -> dict[str, t.Any]:
        """Renews the token before it expires, for so long or until the disc is ejected; whether it is still there.

        A host that fails to look, as its libvirt is restarted, is asked again for a while, and then its failure told.
        """
        until = time.monotonic() + seconds
        answered = time.monotonic()
        while (left := until - time.monotonic()) > 0:
            token, good_for = tokens.current(), tokens.good_for()
            look = min(left, _LONGEST_LOOK, _LONGEST_LOOK if good_for is None else max(good_for, 0.1))
            watched = run_patiently(self, _MODULE, {**arguments, "_token": token, "_wait": look}, task_vars)
            if watched.get("failed") and watched.get("error") != GuestNotFound.code:
                if time.monotonic() - answered > RECONNECT:
                    return watched
                time.sleep(1)
            elif watched.get("inserted"):
                answered = time.monotonic()
            else:
                return {"inserted": False}
        return {"inserted": True}


def _check_named(params: dict[str, t.Any]) -> None:
    """
    :raises InvalidOption: a disc is named where none is to be, or the other way round.
    """
    named = [place for place in DISC_PLACES if params[place]]
    if bool(named) == (params["state"] == "ejected"):
        raise InvalidOption(
            "A disc is to be named where it is inserted, and none where the drive is to be empty.",
            "Give one of path, device, vg, pool and image, or set 'state: ejected'.",
        )
    if params["state"] == "renewed" and not params["image"]:
        raise InvalidOption("Only an image that is read in Glance has a token to renew.", "Name it as 'image'.")


def _find(options: dict[str, t.Any], wanted: dict[str, t.Any]) -> dict[str, t.Any]:
    """All that a host needs to serve the image."""
    cloud = Cloud(options)
    image = find_image(cloud, wanted["image"], wanted["latest"])
    if (image["disk_format"], image["container_format"]) != ("iso", "bare"):
        raise UnsupportedFormat(
            f"The image '{wanted['image']}' is {image['disk_format']} in {image['container_format']}, not a bare iso.",
            "Insert an image with disk_format iso.",
        )
    judge(cloud, image, None)
    return hand_over(cloud, image, wanted["host_interface"])
