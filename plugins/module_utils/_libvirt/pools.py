# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The storage pools of libvirt."""

from __future__ import annotations

import typing as t
from xml.etree import ElementTree

FILE_POOLS = {"dir", "fs", "netfs"}
"""The types of pools whose volumes are files."""


class PoolFolder(t.NamedTuple):
    """A folder, and the pool whose it is, if any."""

    path: str
    pool: str | None


def pool_folders(connection: t.Any) -> list[PoolFolder]:
    """The folders of all active pools of files.

    :param connection: to libvirt, None where there is none to ask.
    """
    if connection is None:
        return []
    import libvirt

    found = []
    try:
        for pool in connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
            described = ElementTree.fromstring(pool.XMLDesc())  # noqa: S314 (libvirt's own)
            if described.get("type") in FILE_POOLS:
                found.append(PoolFolder(described.findtext("target/path", ""), pool.name()))
    except libvirt.libvirtError:  # its storage part does not run, or a pool is gone meanwhile
        return found
    return found
