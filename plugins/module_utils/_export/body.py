# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The form in which a disk goes to Glance."""

from __future__ import annotations

import contextlib
import os
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import InvalidOption
from ansible_collections.imageferry.glance.plugins.module_utils._image.blocks import DataMap
from ansible_collections.imageferry.glance.plugins.module_utils._image.body import Body, RawBody
from ansible_collections.imageferry.glance.plugins.module_utils._image.content import ContentHasher
from ansible_collections.imageferry.glance.plugins.module_utils._image.qcow2 import check_kind
from ansible_collections.imageferry.glance.plugins.module_utils._image.qcow2_compressed import CompressedQcow2Body
from ansible_collections.imageferry.glance.plugins.module_utils._image.qcow2_writer import Qcow2Body
from ansible_collections.imageferry.glance.plugins.module_utils._nbd.interface import FlatDisk

_SPOOL_DIR = "/var/tmp"  # noqa: S108 (the spool has no name)


class ImageForm(t.NamedTuple):
    """How an image is written.

    :param format: V(raw), V(qcow2) or V(iso).
    :param compat: of a qcow2, V(0.10) or V(1.1).
    :param cluster_size: of a qcow2, in bytes.
    :param compress: V(zlib) or V(zstd) for a qcow2 whose clusters are compressed.
    :param spool_dir: where compressed bytes are kept until their number is known, if they fit.
    """

    format: str
    compat: str
    cluster_size: int
    compress: str | None
    spool_dir: str | None

    def check(self) -> None:
        """
        :raises InvalidOption: there is no such form.
        """
        if self.compress and self.format != "qcow2":
            raise InvalidOption(
                f"'compress' is for a qcow2, and the image will be {self.format}.", "Set 'format: qcow2'."
            )
        if self.format == "qcow2":
            check_kind(self.cluster_size, self.compat, self.compress)
        if self.spool_dir is not None and not os.path.isdir(self.spool_dir):
            raise InvalidOption(f"'spool_dir: {self.spool_dir}' is no folder on this host.")


@contextlib.contextmanager
def make_body(
    disk: FlatDisk,
    data: DataMap,
    form: ImageForm,
    hasher: ContentHasher,
    on_progress: t.Callable[[int], None],
) -> t.Iterator[tuple[Body, int]]:
    """The bytes that are to be sent, whose number is known, and how many are kept aside meanwhile.

    :param data: where the disk may hold data; the rest is not read.
    :param hasher: has seen the whole disk once the body was sent.
    :param on_progress: is told the offset in the disk that is reached, where there is work to do before the first byte.
    :raises StorageError: the disk cannot be read.
    """
    if form.format != "qcow2":
        yield RawBody(disk, data, hasher), 0
    elif form.compress is None:
        yield Qcow2Body(disk, data, form.cluster_size, form.compat, hasher), 0
    else:
        body = CompressedQcow2Body(
            disk,
            data,
            form.compress,
            cluster_size=form.cluster_size,
            compat=form.compat,
            spool_dir=form.spool_dir or _SPOOL_DIR,
            hasher=hasher,
        )
        with contextlib.closing(body):
            body.prepare(on_progress)
            yield body, body.spooled_bytes
