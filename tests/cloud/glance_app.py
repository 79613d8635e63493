# Copyright (c) imageferry.glance contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Glance's own WSGI application, behind a choice of how image downloads answer a Range header.

Only Glance's filesystem and cinder stores can serve a part of an image. The embedded cloud has the
filesystem store alone, so what a client meets elsewhere is imitated here, in front of the real Glance.
IMAGEFERRY_RANGES in the environment says what to do:

- serve: nothing, Glance answers 206
- refuse: answer 400, as Glance does on an rbd, s3 or swift store
- ignore: drop the header, so that the whole image comes with 200, as some stores' front ends do
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterable
from typing import Any

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]

DOWNLOAD = re.compile(r"/v2/images/[^/]+/file")


def wants_range(environ: Environ) -> bool:
    """Whether a request asks for a part of an image's data."""
    return (
        environ["REQUEST_METHOD"] == "GET"
        and "HTTP_RANGE" in environ
        and DOWNLOAD.fullmatch(environ["PATH_INFO"]) is not None
    )


def ignore_ranges(application: Application) -> Application:
    """Never let the application see which part of an image is wanted."""

    def wrapped(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if wants_range(environ):
            del environ["HTTP_RANGE"]
        return application(environ, start_response)

    return wrapped


def refuse_ranges(application: Application) -> Application:
    """Answer in the application's place where a part of an image is wanted."""

    def wrapped(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if not wants_range(environ):
            return application(environ, start_response)
        body = b"<html><body><h1>400 Bad Request</h1>The store cannot serve a part of an image.</body></html>"
        start_response("400 Bad Request", [("Content-Type", "text/html"), ("Content-Length", str(len(body)))])
        return [body]

    return wrapped


WRAPPERS: dict[str, Callable[[Application], Application]] = {
    "serve": lambda application: application,
    "refuse": refuse_ranges,
    "ignore": ignore_ranges,
}

application: Application = WRAPPERS[os.environ["IMAGEFERRY_RANGES"]](
    importlib.import_module("glance.wsgi.api").application
)
