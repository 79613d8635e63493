# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A volume in a storage pool of libvirt: the file, logical volume or device that it is, made known to libvirt."""

from __future__ import annotations

import contextlib
import os
import time
import typing as t
from xml.etree import ElementTree

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    FerryError,
    InvalidOption,
    StorageError,
    VolumeInvalid,
)
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.connection import URI, load_libvirt
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.pools import FILE_POOLS
from ansible_collections.imageferry.glance.plugins.module_utils._volume.device import DeviceVolume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.file import FileVolume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.interface import Staged, Volume, VolumeSize
from ansible_collections.imageferry.glance.plugins.module_utils._volume.lvm import LvmVolume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import Provenance

_BLOCK_VOLUME = 1  # VIR_STORAGE_VOL_BLOCK
_REFRESH_SECONDS = 10.0


class PoolVolume:
    """The volume C(volume) of libvirt's storage pool C(pool), there or not yet.

    :param thin_pool: the thin pool in which a new logical volume is made.
    :param mode: the permission bits of a new file.
    :param preallocation: the storage of a new file; see L(FileVolume).
    :raises VolumeInvalid: there is no such pool, or it is not active, or it cannot have such a volume.
    :raises InvalidOption: C(thin_pool) is named, and the pool has no logical volumes.
    :raises MissingDependency: libvirt's Python library is not installed.
    """

    def __init__(
        self, pool: str, volume: str, thin_pool: str | None = None, mode: int = 0o600, preallocation: str = "off"
    ) -> None:
        if not volume or "/" in volume or "\0" in volume or volume in (".", ".."):
            raise VolumeInvalid(f"'volume: {volume}' is no name of a volume.", "Give its name in the pool, not a path.")
        self.label = f"{pool}/{volume}"
        self._names = {"pool": pool, "volume": volume}
        self._libvirt = load_libvirt()
        with contextlib.ExitStack() as stack:
            with self._errors():
                self._connection = self._libvirt.open(URI)
                stack.callback(self._connection.close)
                self._pool = self._find_pool(pool)
            self._inner: Volume = stack.enter_context(self._find_volume(volume, thin_pool, mode, preallocation))
            self._held = stack.pop_all()
        self.path = self._inner.path
        self.is_block = self._inner.is_block

    def __enter__(self) -> PoolVolume:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._held.close()

    def stat(self) -> VolumeSize | None:
        """See L(Volume.stat)."""
        return self._inner.stat()

    def provenance(self) -> Provenance | None:
        """See L(Volume.provenance)."""
        return self._inner.provenance()

    def is_unfinished(self) -> bool:
        """See L(Volume.is_unfinished)."""
        return self._inner.is_unfinished()

    def begun(self) -> Provenance | None:
        """See L(Volume.begun)."""
        return self._inner.begun()

    def is_blank(self) -> bool:
        """See L(Volume.is_blank)."""
        return self._inner.is_blank()

    def open(self) -> contextlib.AbstractContextManager[int]:
        """See L(Volume.open)."""
        return self._inner.open()

    def activate(self) -> None:
        """See L(Volume.activate)."""
        self._inner.activate()

    def adopt(self, provenance: Provenance) -> None:
        """See L(Volume.adopt)."""
        self._inner.adopt(provenance)

    def check_writable(self) -> None:
        """See L(Volume.check_writable)."""
        self._inner.check_writable()

    def check_not_in_use(self) -> None:
        """See L(Volume.check_not_in_use)."""
        self._inner.check_not_in_use()

    def clones(self) -> list[str]:
        """See L(Volume.clones)."""
        return self._inner.clones()

    def locked(self, wait: float) -> contextlib.AbstractContextManager[None]:
        """See L(Volume.locked)."""
        return self._inner.locked(wait)

    @contextlib.contextmanager
    def staged(self, wait: float, wanted: Provenance, resumable: bool) -> t.Iterator[Staged]:
        """See L(Volume.staged); libvirt sees afterwards what has become of it."""
        try:
            with self._inner.staged(wait, wanted, resumable) as staged:
                yield staged
        except BaseException:
            with contextlib.suppress(FerryError):
                self._refresh()
            raise
        self._refresh()

    def grow(self, size: int, zeroed: bool = True) -> VolumeSize:
        """See L(Volume.grow)."""
        grown = self._inner.grow(size, zeroed)
        self._refresh()
        return grown

    def remove(self, wipe: bool) -> None:
        """See L(Volume.remove)."""
        self._inner.remove(wipe)
        self._refresh()

    def describe(self) -> dict[str, t.Any]:
        """What it is, and its address in the pool."""
        return {**self._inner.describe(), **self._names}

    def _find_pool(self, name: str) -> t.Any:
        pools = {pool.name(): pool for pool in self._connection.listAllStoragePools()}
        if name not in pools:
            raise VolumeInvalid(f"libvirt has no storage pool {name}.", f"It has {', '.join(sorted(pools)) or 'none'}.")
        if not pools[name].isActive():
            raise VolumeInvalid(f"The storage pool {name} is not active.", f"Start it: virsh pool-start {name}.")
        return pools[name]

    def _find_volume(
        self, name: str, thin_pool: str | None, mode: int, preallocation: str
    ) -> contextlib.AbstractContextManager[Volume]:
        with self._errors():
            description = ElementTree.fromstring(self._pool.XMLDesc())  # noqa: S314 (libvirt's own)
        kind = description.get("type", "")
        if thin_pool and kind != "logical":
            raise InvalidOption(f"The storage pool {self._names['pool']}, of type {kind}, has no thin pool.")
        if kind in FILE_POOLS:
            return FileVolume(os.path.join(description.findtext("target/path", ""), name), mode, preallocation)
        if kind == "logical":
            return LvmVolume(description.findtext("source/name", ""), name, thin_pool)
        with self._errors():
            volumes = {volume.name(): volume for volume in self._pool.listAllVolumes()}
            if name not in volumes or volumes[name].info()[0] != _BLOCK_VOLUME:
                raise VolumeInvalid(
                    f"The storage pool {self._names['pool']}, of type {kind}, has no block device {name}.",
                    "Create it first, or use a pool of type dir, fs, netfs or logical.",
                )
            return DeviceVolume(volumes[name].path())

    def _refresh(self) -> None:
        """Has libvirt look at the pool again; it refuses while it is busy with it."""
        deadline = time.monotonic() + _REFRESH_SECONDS
        while True:
            try:
                with self._errors():
                    self._pool.refresh(0)
                return
            except StorageError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    @contextlib.contextmanager
    def _errors(self) -> t.Iterator[None]:
        try:
            yield
        except self._libvirt.libvirtError as err:
            raise StorageError(f"libvirt reports: {str(err).rstrip('.')}.", "Check libvirt on this host.") from err
