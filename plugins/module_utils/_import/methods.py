# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ways in which an image's bytes become a volume's: as they are, decoded as they pass, or converted from a copy."""

from __future__ import annotations

import abc
import dataclasses
import os
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._disk.qcow2 import (
    check_can_grow,
    complete_qcow2,
    size_on_block,
)
from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    DamagedImage,
    InvalidOption,
    Unverifiable,
)
from ansible_collections.imageferry.glance.plugins.module_utils._image import qemu_img
from ansible_collections.imageferry.glance.plugins.module_utils._image.decode import (
    NotStreamable,
    Qcow2Decoder,
    check_streamable,
)
from ansible_collections.imageferry.glance.plugins.module_utils._image.decompress import Decompressor
from ansible_collections.imageferry.glance.plugins.module_utils._image.formats import (
    HEAD_SIZE,
    ImageFacts,
    check_file,
    check_head,
    check_limit,
)
from ansible_collections.imageferry.glance.plugins.module_utils._image.qcow2 import Qcow2Header
from ansible_collections.imageferry.glance.plugins.module_utils._import.request import ImportRequest
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.receive import (
    ReadBack,
    Received,
    Reception,
    Source,
    Watcher,
)
from ansible_collections.imageferry.glance.plugins.module_utils._volume.file import FileVolume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.interface import Sink, Staged, Volume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.staging import copy_path, staging_folder
from ansible_collections.imageferry.glance.plugins.module_utils._volume.storage import storage_errors

_QCOW2_OVERHEAD = 2
"""How many times larger than its disk a qcow2 may be; its own structure takes a thousandth, snapshots the rest."""


def check_can_fetch(request: ImportRequest) -> None:
    """
    :raises Unverifiable: the image would not be verified, and that was not allowed.
    :raises MissingDependency: this host has no qemu-img, which it takes.
    :raises InvalidOption: what has to be put aside cannot be put where it is to.
    """
    if request.digest is not None:
        request.digest.hasher()
    if not request.is_verifiable and not request.allow_unverified:
        if request.digest is None:
            raise Unverifiable("There is no hash to verify the image with.")
        raise Unverifiable(
            "Glance has only an md5 to verify the image with, and others can be made to have the same.",
            "Upload the image again, or set 'allow_unverified: true' to carry it, verified by its md5.",
        )
    if "qcow2" in (request.wanted.format, request.source_format) or request.method == "convert":
        qemu_img.require_qemu_img()
    folder = request.staging_dir
    if request.method != "verbatim" and folder and not (os.path.isdir(folder) and os.access(folder, os.W_OK)):
        raise InvalidOption(
            f"'staging_dir: {folder}' is no folder on this host that can be written to.",
            "Make it first, or leave it out.",
        )


def fetch(request: ImportRequest, volume: Volume, source: Source, staged: Staged, watcher: Watcher) -> Received:
    """Brings the image into C(staged), whole, verified and as large as asked for.

    :raises FerryError: it could not; nothing that was there before is touched unless the volume is a block device.
    """
    source.learn_size()
    methods: dict[str, t.Callable[..., _Method]] = {"verbatim": _Verbatim, "decode": _Decode, "convert": _Convert}
    with storage_errors(f"write {volume.label}"):
        return methods[request.method](request, volume, source, staged, watcher).run()


class _Method(abc.ABC):
    """What all ways have in common: the image is received, judged by its first bytes, and hashed as it comes."""

    def __init__(
        self, request: ImportRequest, volume: Volume, source: Source, staged: Staged, watcher: Watcher
    ) -> None:
        self.request = request
        self.volume = volume
        self.source = source
        self.staged = staged
        self.watcher = watcher
        self.facts = ImageFacts(request.source_format, None)
        self.size = 0  # of the image, decompressed

    @abc.abstractmethod
    def run(self) -> Received:
        """Brings the image."""

    def check_first(self, head: bytes, size: int | None) -> None:
        """Judges the image by its first bytes, and sees to it that it fits."""
        self.facts = self.judge(head, size)

    def judge(self, head: bytes, size: int | None) -> ImageFacts:
        """The image's own word on itself."""
        return check_head(head, self.request.source_format, size, self.request.max_virtual_size)

    def receive(self, sink: Sink, held: int = 0, read_back: ReadBack | None = None) -> Received:
        """Carries all bytes to C(sink), decompressed if they are to be; see L(Reception.run) for the rest."""
        request = self.request
        limit = request.max_virtual_size * (_QCOW2_OVERHEAD if request.source_format == "qcow2" else 1)
        if request.decompress == "none":
            reception = Reception(self.source, sink, request.digest, self.check_first, self.watcher, limit)
            received = reception.run(held, read_back)
            self.size = received.size
        else:
            content = Decompressor(sink, request.decompress, limit, lambda head: self.check_first(head, None))
            received = Reception(self.source, content, request.digest, _unknown_yet, self.watcher, limit).run()
            self.size = content.size
        if not self.size:
            raise DamagedImage("The image is empty.")
        return received

    def target_size(self, size: int | None) -> int | None:
        """The size of a raw volume for a disk of C(size) bytes."""
        if size is None:
            return self.request.min_size or None
        return max(size, self.request.min_size)


class _LateSink:
    """The sink of a staged volume, which may have to be created first, when the image has told its size."""

    def __init__(self, staged: Staged) -> None:
        self._staged = staged
        self._is_used = False

    @property
    def zero_bytes(self) -> int:
        """Bytes that are zeros."""
        return self._staged.sink.zero_bytes if self._is_used else 0

    def restart(self) -> None:
        """Forgets all that was written."""
        if self._is_used:
            self._staged.sink.restart()

    def write(self, buffer: bytearray, length: int, offset: int) -> None:
        """Writes the first C(length) bytes of C(buffer) at C(offset)."""
        self._is_used = True
        self._staged.sink.write(buffer, length, offset)

    def read_back(self, end: int) -> t.Iterator[memoryview]:
        """The first C(end) bytes, as an earlier run has written them, piece by piece."""
        self._is_used = True
        return self._staged.sink.read_back(end)

    def finish(self, size: int) -> None:
        """Completes the C(size) bytes, durably."""
        self._is_used = True
        self._staged.sink.finish(size)


def _unknown_yet(_head: bytes, _size: int | None) -> None:
    """What compressed bytes hold is seen when they are decompressed."""


class _Verbatim(_Method):
    """The volume's bytes are the image's."""

    def run(self) -> Received:
        sink = _LateSink(self.staged)
        received = self.receive(sink, self.staged.held, sink.read_back)
        self.facts = self.judge(os.pread(self.staged.fd, HEAD_SIZE, 0), self.size)
        if self.facts.format == "qcow2":
            qemu_img.check(self.staged.fd, "qcow2")
            _grow_qcow2(self.staged.fd, self.facts.virtual_size or 0, self.request.min_size)
        elif self.request.wanted.format == "raw" and not self.volume.is_block and self.size < self.request.min_size:
            self.staged.sink.finish(self.request.min_size)  # a block device is zeroed to its end already
        return received

    def check_first(self, head: bytes, size: int | None) -> None:
        super().check_first(head, size)
        if self.facts.format == "qcow2" and (self.facts.virtual_size or 0) < self.request.min_size:
            check_can_grow(Qcow2Header.parse(head), "The image")
        if self.request.wanted.format == "raw":
            self.staged.reserve(self.target_size(size))  # it may be mostly holes
        elif self.facts.format == "qcow2" and self.volume.is_block:
            self.staged.reserve(self._size_of_qcow2(head, size))
        else:
            self.staged.reserve(size, size or 0)

    def _size_of_qcow2(self, head: bytes, size: int | None) -> int:
        header = Qcow2Header.parse(head)
        virtual_size = max(header.virtual_size, self.request.min_size)
        options = qemu_img.Qcow2Options(cluster_size=1 << header.cluster_bits)
        most = qemu_img.measure_blank(virtual_size, "qcow2", options).fully_allocated
        return size_on_block(self.request.headroom, most if size is None else size, most, virtual_size)


class _Decode(_Method):
    """A qcow2 becomes a raw disk while it arrives."""

    def run(self) -> Received:
        folder = staging_folder(self.volume, self.request.staging_dir)
        decoder = Qcow2Decoder(_LateSink(self.staged), folder, self.request.min_size)
        try:
            received = self.receive(decoder)
        except NotStreamable:
            self.source.close()
            self.source.begin_at(0)
            return _Convert(self.request, self.volume, self.source, self.staged, self.watcher).run()
        return dataclasses.replace(received, zero_bytes=decoder.zero_bytes, staged=decoder.spooled_bytes)

    def check_first(self, head: bytes, size: int | None) -> None:
        super().check_first(head, size)
        check_streamable(head)
        self.staged.reserve(self.target_size(self.facts.virtual_size))


class _Convert(_Method):
    """The image is received into a copy of its own, which qemu-img converts."""

    def run(self) -> Received:
        request = self.request
        path = copy_path(self.volume, staging_folder(self.volume, request.staging_dir))
        wanted = dataclasses.replace(request.wanted, format=request.source_format)
        resumable = request.digest is not None and request.decompress == "none"
        with FileVolume(path) as copy, copy.staged(request.lock_timeout, wanted, resumable) as source:
            self._copy = source
            received = self.receive(source.sink, source.held, source.sink.read_back)
            self.facts = check_file(source.fd, request.source_format, request.max_virtual_size)
            if request.source_format == "qcow2":
                qemu_img.check(source.fd, "qcow2")
            self._convert(source.fd)
            return dataclasses.replace(received, staged=os.fstat(source.fd).st_size)

    def check_first(self, head: bytes, size: int | None) -> None:
        super().check_first(head, size)
        self._copy.reserve(size, 0 if self.request.source_format == "raw" else size or 0)

    def _convert(self, source: int) -> None:
        """Has qemu-img write the volume; a block device is zeroed behind what it wrote."""
        request, staged = self.request, self.staged
        target_format = request.wanted.format
        options = dataclasses.replace(request.qcow2 or qemu_img.Qcow2Options(), preallocation=request.preallocation)
        end = qemu_img.virtual_size(source, request.source_format)
        check_limit(end, request.max_virtual_size)
        size = max(end, self.facts.virtual_size or 0, request.min_size)
        self._reserve(source, size, options)
        qemu_img.convert(source, request.source_format, staged.fd, target_format, size, options, self._tell)
        if target_format == "qcow2":
            complete_qcow2(self.volume, staged)
        else:
            staged.sink.wrote(end)
            staged.sink.finish(size)

    def _tell(self, part: float) -> None:
        self.watcher.convert(100 * part)

    def _reserve(self, source: int, size: int, options: qemu_img.Qcow2Options) -> None:
        request = self.request
        if request.wanted.format == "raw":
            self.staged.reserve(size)
            return
        required = qemu_img.measure(source, request.source_format, "qcow2", options).required
        if self.volume.is_block:
            most = qemu_img.measure_blank(size, "qcow2", options).fully_allocated
            required = size_on_block(request.headroom, required, most, size)
        self.staged.reserve(required, required)


def _grow_qcow2(fd: int, virtual_size: int, least: int) -> None:
    if virtual_size < least:
        qemu_img.resize(fd, "qcow2", least)
