# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A checksum as users give it: themselves, or as the address of a list of them."""

from __future__ import annotations

import dataclasses
import urllib.parse

from ansible_collections.imageferry.glance.plugins.module_utils._errors import Unverifiable
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.digest import Digest, find_in_list
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.exchange import HttpOptions, public_url
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.source import HttpSource


def read_checksum(text: str, location: str, options: HttpOptions) -> Digest:
    """The checksum V(text), V(sha512:0123…), or that of C(location) in the list at V(sha512:https://…).

    :param location: the address or path of the file; a list is asked for its last part.
    :param options: for C(location)'s server; another one that has the list gets no headers.
    :raises InvalidOption: it is no checksum.
    :raises Unverifiable: the list does not name the file.
    :raises FerryError: the list cannot be read.
    """
    algorithm, _separator, rest = text.partition(":")
    if not rest.startswith(("http://", "https://")):
        return Digest.parse(text)
    here, there = urllib.parse.urlsplit(location), urllib.parse.urlsplit(rest)
    own = options if here[:2] == there[:2] else dataclasses.replace(options, headers={})
    source = HttpSource(rest, None, own)
    try:
        listed = find_in_list(source.read_text(), algorithm, here.path.split("/")[-1])
    finally:
        source.close()
    if listed is None:
        raise Unverifiable(f"{public_url(rest)} has no line for this file.", "Check the address of the list.")
    return listed
