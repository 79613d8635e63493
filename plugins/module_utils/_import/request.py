# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an import is asked to do, and under which rules."""

from __future__ import annotations

import dataclasses

from ansible_collections.imageferry.glance.plugins.module_utils._image.qemu_img import Qcow2Options
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.digest import Digest
from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import Provenance


@dataclasses.dataclass(frozen=True)
class ImportRequest:
    """What is to be imported, and under which rules.

    :param wanted: the provenance that the volume will have; its format is the volume's.
    :param source_format: the format of the image's bytes, decompressed.
    :param decompress: how the bytes are compressed, V(none) or a name that L(Decompressor) takes.
    :param qcow2: how a qcow2 is to be written; None for as it comes.
    :param preallocation: the storage of a qcow2 that a conversion makes, in qemu's words.
    :param min_size: the least virtual size of the volume, in bytes; 0 for the image's own.
    :param headroom: what a qcow2 on a block device can grow by: bytes, a share of its virtual size, or V(full).
    :param overwrite: V(never), V(imported), V(different) or V(always).
    :param takes_md5: whether an md5 is enough to verify the image with, as the user has chosen it.
    :param allow_unverified: whether an image without a hash that is enough may be carried.
    :param max_virtual_size: the largest disk, in bytes.
    :param lock_timeout: seconds to wait for another import to the same volume.
    :param staging_dir: where to put what cannot be written to the volume at once; None for beside it.
    """

    wanted: Provenance
    source_format: str
    decompress: str
    qcow2: Qcow2Options | None
    preallocation: str
    min_size: int
    headroom: str
    overwrite: str
    takes_md5: bool
    allow_unverified: bool
    max_virtual_size: int
    lock_timeout: float
    staging_dir: str | None

    @property
    def digest(self) -> Digest | None:
        """The hash that the bytes must have."""
        if self.wanted.hash_algo and self.wanted.hash_value:
            return Digest(self.wanted.hash_algo, self.wanted.hash_value)
        return None

    @property
    def is_verifiable(self) -> bool:
        """Whether the hash tells the image from all others, also from those made to be taken for it."""
        return self.digest is not None and (self.takes_md5 or self.digest.algorithm != "md5")

    @property
    def method(self) -> str:
        """How the image's bytes become the volume's: V(verbatim), V(decode) on the way, or V(convert) afterwards."""
        same = self.source_format == self.wanted.format or (self.source_format, self.wanted.format) == ("iso", "raw")
        if same and self.qcow2 is None:
            return "verbatim"
        return "decode" if (self.source_format, self.wanted.format) == ("qcow2", "raw") else "convert"

    @property
    def is_copy(self) -> bool:
        """Whether the volume's bytes will be those that the hash is of, so that they can be told by it."""
        return self.method == "verbatim" and self.decompress == "none"
