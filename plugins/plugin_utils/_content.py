# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bytes that the controller brings to Glance: those of a file of its own, or of any HTTP server."""

from __future__ import annotations

import contextlib
import functools
import os
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import InvalidOption, TransferFailed
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.digest import Digest
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.exchange import HttpOptions, public_url
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.source import HttpSource, StartOver

_PIECE = 1 << 20

Digests = dict[str, str]
"""Hashes by the names of their algorithms."""


class FileContent:
    """A file on the controller, as a body that L(upload) sends.

    :raises InvalidOption: it is not a file, or is empty.
    """

    repeatable = True
    is_near = True  # to read it once more costs nothing but time

    def __init__(self, path: str) -> None:
        self._path = path
        if not os.path.isfile(path) or not os.path.getsize(path):
            raise InvalidOption(f"'src: {path}' is {'empty' if os.path.isfile(path) else 'not a file'}.")

    @functools.cached_property
    def length(self) -> int:
        """Its bytes."""
        return os.path.getsize(self._path)

    def pieces(self) -> t.Iterator[memoryview]:
        """All of it.

        :raises InvalidOption: it cannot be read.
        """
        view = memoryview(bytearray(_PIECE))
        try:
            with open(self._path, "rb", buffering=0) as file:
                while count := file.readinto(view):
                    yield view[:count]
        except OSError as err:
            raise InvalidOption(f"'src: {self._path}' cannot be read: {err.strerror}.") from err


class UrlContent:
    """An object on an HTTP server, as a body that L(upload) sends; read on where a connection broke off.

    :raises InvalidOption: C(url) is not an address that can be used.
    """

    repeatable = True
    is_near = False

    def __init__(self, url: str, options: HttpOptions) -> None:
        self._url = url
        self._options = options
        self._source().close()

    @functools.cached_property
    def length(self) -> int:
        """Its bytes, as the server says before it sends them.

        :raises FerryError: it does not, or cannot be asked.
        """
        with contextlib.closing(self._source()) as source:
            if source.learn_size() is None:  # a server may know only GET
                source.readinto(memoryview(bytearray(1)))
            if source.size is None:
                raise TransferFailed(
                    f"{public_url(self._url)} does not say how many bytes it has.",
                    "Fetch it first and give 'src', or let Glance fetch it with 'import_method: web-download'.",
                )
            return source.size

    def pieces(self) -> t.Iterator[memoryview]:
        """All of it.

        :raises FerryError: it cannot be read.
        """
        view = memoryview(bytearray(_PIECE))
        with contextlib.closing(self._source()) as source:
            try:
                while count := source.readinto(view):
                    yield view[:count]
            except StartOver as err:
                raise TransferFailed(f"{public_url(self._url)} broke off at {source.position} bytes: {err}.") from err

    def _source(self) -> HttpSource:
        return HttpSource(self._url, None, self._options)


Content = FileContent | UrlContent


def open_content(src: str | None, url: str, options: HttpOptions) -> Content:
    """The content that a task's options name."""
    return FileContent(src) if src else UrlContent(url, options)


def hash_content(content: Content, algorithms: t.Iterable[str]) -> Digests:
    """The hashes of the content; reads all of it.

    :raises FerryError: it cannot be read.
    """
    hashers = {name: Digest(name, "").hasher() for name in algorithms}
    for piece in content.pieces():
        for hasher in hashers.values():
            hasher.update(piece)
    return {name: hasher.hexdigest() for name, hasher in hashers.items()}
