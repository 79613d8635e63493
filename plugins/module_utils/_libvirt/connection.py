# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reaching libvirt on this host, where it is installed and runs."""

from __future__ import annotations

import contextlib
import importlib
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import MissingDependency

URI = "qemu:///system"


@contextlib.contextmanager
def connected(uri: str = URI) -> t.Iterator[t.Any]:
    """A connection (C(libvirt.virConnect)) to the guests of this host; None where there is no libvirt to ask."""
    connection = _open(uri)
    try:
        yield connection
    finally:
        if connection is not None:
            connection.close()


def _open(uri: str) -> t.Any:
    try:
        libvirt = load_libvirt()
    except MissingDependency:
        return None
    try:
        return libvirt.open(uri)
    except libvirt.libvirtError:
        return None


@contextlib.contextmanager
def required_connection(uri: str = URI) -> t.Iterator[t.Any]:
    """As L(connected), where nothing can be done without libvirt.

    :raises MissingDependency: there is no libvirt to ask.
    """
    libvirt = load_libvirt()
    try:
        connection = libvirt.open(uri)
    except libvirt.libvirtError as err:
        raise MissingDependency(
            f"libvirt does not answer on this host: {str(err).rstrip('.')}.",
            "Start libvirt, or install it with the role imageferry.glance.host_prepare.",
        ) from err
    with contextlib.closing(connection):
        yield connection


def load_libvirt() -> t.Any:
    """libvirt's Python library, made to raise what it would also print.

    :raises MissingDependency: it is not installed.
    """
    try:
        libvirt: t.Any = importlib.import_module("libvirt")
    except ImportError as err:
        raise MissingDependency(
            "libvirt's Python library is not installed on this host, for the Python that Ansible uses there.",
            "Install python3-libvirt.",
        ) from err
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    return libvirt
