# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A volume that is a logical volume of LVM, thick or in a thin pool.

What it holds is kept in its tags, so that it is known wherever the volume group is; the tag
C(imageferry.unfinished) marks one that is being written.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import time
import typing as t
import zlib

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    MissingDependency,
    NoSpace,
    StorageError,
    UnsupportedFormat,
    VolumeExists,
    VolumeInvalid,
)
from ansible_collections.imageferry.glance.plugins.module_utils._sizes import round_up
from ansible_collections.imageferry.glance.plugins.module_utils._volume.block import BlockVolume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.block_writer import Thin
from ansible_collections.imageferry.glance.plugins.module_utils._volume.clones import check_no_clones
from ansible_collections.imageferry.glance.plugins.module_utils._volume.interface import VolumeSize
from ansible_collections.imageferry.glance.plugins.module_utils._volume.ledger import Ledger
from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import Provenance
from ansible_collections.imageferry.glance.plugins.module_utils._volume.storage import storage_errors

TAG = "imageferry"
UNFINISHED = f"{TAG}.unfinished"

_GAINED = f"{TAG}.gained."
"""What logical volumes are called that exist only while what others are to gain is zeroed; the other's UUID follows."""
_NODES = "/dev"
_PROGRAMS = "/usr/sbin:/sbin:/usr/bin:/bin"
_NODE_SECONDS = 10.0
_TAG_LENGTH = 1024  # lvm(8)
_RECORD_TAGS = 16
_RECORD_SIZE = 1 << 20
_NAME = re.compile(r"[a-zA-Z0-9+_.][a-zA-Z0-9+_.-]*")
_NAME_LENGTH = 127
# As lvm(8) lists them under VALID NAMES.
_RESERVED = {".", "..", "snapshot", "pvmove"}
_RESERVED_PARTS = re.compile(
    "_cdata|_cmeta|_corig|_iorig|_mimage|_mlog|_pmspare|_rimage|_rmeta|_tdata|_tmeta|_vdata|_vorigin|_wcorig"
)
_FIELDS = (
    "lv_name,lv_uuid,lv_size,lv_tags,lv_layout,lv_role,lv_active,lv_permissions,lv_health_status,pool_lv,origin,"
    "data_percent,vg_extent_size,vg_free"
)


class LogicalVolume(t.NamedTuple):
    """A logical volume, as lvs(8) reports it; sizes in bytes."""

    uuid: str
    size: int
    tags: list[str]
    layout: str
    pool: str
    origin: str
    is_active: bool
    permissions: str
    data_percent: float | None
    extent: int
    free: int
    obstacle: str | None  # to writing to it


class LvmVolume(BlockVolume):
    """The logical volume C(lv) in the volume group C(vg), there or not yet.

    :param thin_pool: the thin pool of the same volume group in which a new one is made; thick without.
    :raises VolumeInvalid: a name is none that LVM takes.
    :raises MissingDependency: LVM is not installed.
    """

    def __init__(self, vg: str, lv: str, thin_pool: str | None = None, ledger: Ledger | None = None) -> None:
        super().__init__(f"{vg}/{lv}", f"{_NODES}/{vg}/{lv}", ledger or Ledger())
        for option, name in (("vg", vg), ("lv", lv), ("thin_pool", thin_pool)):
            if name is not None:
                check_name(option, name)
        self.vg, self.lv, self.thin_pool = vg, lv, thin_pool
        _program("lvs")
        self._seen: LogicalVolume | None = None  # None also when it has to be looked at again

    def look(self) -> LogicalVolume | None:
        """What LVM knows of it; None when it is not there.

        :raises VolumeInvalid: there is no such volume group, or it is no whole volume.
        """
        if self._seen is None:
            select = f'lv_name="{self.lv}" || lv_name=~"^{_GAINED}"'
            rows = _report("lvs", "lv", "--all", "--options", _FIELDS, "--select", select, self.vg)
            named = {row["lv_name"].strip("[]"): row for row in rows}
            if self.lv in named:
                found = _parse_lv(named[self.lv], self.label)
                gained = named.get(f"{_GAINED}{found.uuid}")  # of a run that was killed; the next one removes it
                self._seen = found._replace(free=found.free + int(gained["lv_size"])) if gained else found
        return self._seen

    def look_again(self) -> None:
        """Has the next L(look) ask LVM."""
        self._seen = None

    def key(self) -> str | None:
        """Its UUID."""
        found = self.look()
        return f"lv {found.uuid}" if found else None

    def stat(self) -> VolumeSize | None:
        """Its size, and what a thin one takes of its pool; see L(Volume.stat)."""
        found = self.look()
        return _size(found) if found else None

    def check_writable(self) -> None:
        """
        :raises VolumeInvalid: it is read-only, or has or is a thick snapshot.
        """
        found = self.look()
        if found is not None and found.obstacle:
            raise _unfit(self.label, found.obstacle)

    def provenance(self) -> Provenance | None:
        """The image that its tags name."""
        found = self.look()
        return None if found is None or UNFINISHED in found.tags else parse_tags(found.tags)

    def is_unfinished(self) -> bool:
        """Whether its tags say that an import to it was not completed."""
        found = self.look()
        return found is not None and UNFINISHED in found.tags

    def node(self) -> str:
        """Its node; it is activated where it is not."""
        found = self.look()
        if found is not None and not found.is_active:
            self._change("lvchange", "--activate", "y", "--ignoreactivationskip", self.label)
        deadline = time.monotonic() + _NODE_SECONDS
        while not os.path.exists(self.path) and time.monotonic() < deadline:
            time.sleep(0.1)  # udev makes it
        return self.path

    @contextlib.contextmanager
    def open(self) -> t.Iterator[int]:
        """What is there, open for reading; one that is not active is so meanwhile only."""
        found = self.look()
        was_active = found is None or found.is_active
        try:
            with super().open() as fd:
                yield fd
        finally:
            if not was_active and not self._is_taken:
                self._change("lvchange", "--activate", "n", self.label)

    def make_room(self, size: int) -> bool:
        """Makes it, or extends it, to C(size) bytes rounded up to whole extents.

        :raises NoSpace: the volume group has not so many free.
        :raises VolumeExists: it came into being meanwhile.
        """
        found = self.look()
        if found is None:
            self._create(size)
            return True
        if found.size < size:
            self._extend(found, size, zeroed=False)  # all of it will be written
        return False

    def mark(self) -> None:
        """Sets the tag of an unfinished one, in place of what other tags of ours say."""
        found = self._there()
        stale = [tag for tag in found.tags if _is_ours(tag) and tag != UNFINISHED]
        new = [] if UNFINISHED in found.tags else [UNFINISHED]
        self._retag(stale, new)

    def record(self, provenance: Provenance) -> None:
        """Sets the tags that say what it holds, all at once."""
        found = self._there()
        tags = make_tags(provenance)
        self._retag([tag for tag in found.tags if _is_ours(tag) and tag not in tags], tags)
        self.ledger.forget(f"lv {found.uuid}")

    def discard_new(self) -> None:
        """Removes it."""
        key = self.key()
        if key is not None:
            self._change("lvremove", "--yes", self.label)
            self.ledger.forget(key)

    def thin(self) -> Thin | None:
        """How its thin pool maps it, if it is in one, and what is not mapped reads as zeros."""
        found = self._there()
        if not found.pool:
            return None
        if found.origin:
            rows = _report("lvs", "lv", "--all", "--options", "lv_name,pool_lv,origin", self.vg)
            if stands_outside_its_pool(self.lv, rows):
                return None
        row = _report("lvs", "lv", "--options", "chunk_size,zero", f"{self.vg}/{found.pool}")[0]
        return Thin(int(row["chunk_size"]), row["zero"] in ("zero", "1"))

    def grow(self, size: int, zeroed: bool = True) -> VolumeSize:
        """Extends it to at least C(size) bytes; it may be in use. See L(Volume.grow).

        :raises NoSpace: the volume group has not so much free.
        :raises VolumeInvalid: it is not there.
        """
        found = self._there()
        self.check_writable()
        if found.size < size:
            self._extend(found, size, zeroed)
        return _size(self._there())

    def remove(self, wipe: bool) -> None:
        """Removes it, if it is there.

        :param wipe: whether it is made to read as zeros before.
        :raises VolumeInUse: somebody has it in use.
        """
        with self.locked(0), storage_errors(f"remove {self.label}"):
            if self.look() is None:
                return
            self.check_writable()
            self.check_not_in_use()
            check_no_clones(self.label, self.clones())
            if wipe:
                self.wipe()
            self.discard_new()

    def clones(self) -> list[str]:
        """The thin snapshots whose origin it is."""
        select = f'origin="{self.lv}"'
        rows = _report("lvs", "lv", "--options", "lv_name,lv_layout", "--select", select, self.vg)
        return sorted(f"{self.vg}/{row['lv_name']}" for row in rows if "thin" in row["lv_layout"].split(","))

    def check_can_clone(self, origin: LvmVolume) -> None:
        """
        :raises UnsupportedFormat: C(origin) is in no thin pool of this volume group: only a copy could be made.
        """
        if origin.vg != self.vg or not origin._there().pool:
            raise UnsupportedFormat(
                f"{origin.label} is in no thin pool of the volume group {self.vg}, and cannot be cloned there.",
                "Import it with 'thin_pool', or import the image to the other volume as well.",
            )

    def clone(self, origin: LvmVolume, provenance: Provenance, wait: float) -> None:
        """Comes into being as a thin snapshot of C(origin); what is written to one of them does not show in the other.

        :param wait: the seconds to wait for an import to it.
        :raises UnsupportedFormat: see L(check_can_clone).
        :raises VolumeExists: it came into being meanwhile.
        """
        self.check_can_clone(origin)
        tags = [option for tag in make_tags(provenance.completed()) for option in ("--addtag", tag)]
        with self.locked(wait):
            # It is activated at once, and at every start: LVM skips a thin snapshot otherwise.
            self._change("lvcreate", "--yes", "--snapshot", "--setactivationskip", "n", "--activate", "y",
                         *tags, "--name", self.lv, origin.label)  # fmt: skip

    def describe(self) -> dict[str, t.Any]:
        """Its address in the words of the options, and what LVM says of it."""
        facts: dict[str, t.Any] = {"type": "lv", "path": self.path, "vg": self.vg, "lv": self.lv}
        found = self.look()
        if found is not None:
            facts.update(uuid=found.uuid, layout=found.layout, thin_pool=found.pool or None, active=found.is_active)
            facts.update(tags=[tag for tag in found.tags if not _is_ours(tag)], permissions=found.permissions)
            facts.update(data_percent=found.data_percent if found.pool else None)
        extent, free = (found.extent, found.free) if found else self._group()
        return {**facts, "extent_size": extent, "group_free": free}

    def _group(self) -> tuple[int, int]:
        """The bytes of the volume group's extents, and those that are free in it."""
        row = _report("vgs", "vg", "--options", "vg_extent_size,vg_free", self.vg)[0]
        return int(row["vg_extent_size"]), int(row["vg_free"])

    def _there(self) -> LogicalVolume:
        found = self.look()
        if found is None:
            raise VolumeInvalid(f"There is no logical volume {self.label}.", "Create it, or import an image to it.")
        return found

    def _create(self, size: int) -> None:
        extent, free = self._group()
        whole = round_up(max(size, 1), extent)
        command = ["lvcreate", "--yes", "--name", self.lv, "--addtag", UNFINISHED]
        if self.thin_pool:
            command += ["--virtualsize", f"{whole}b", "--thinpool", self.thin_pool]
        else:
            self._check_free(whole, free)
            # No program may take what an earlier volume has left for a file system while this one is written.
            command += ["--size", f"{whole}b", "--wipesignatures", "y", "--zero", "y"]
        self._change(*command, self.vg)

    def _extend(self, found: LogicalVolume, size: int, zeroed: bool) -> None:
        """Extends it, by what was zeroed before: nobody could tell later what a guest has written there meanwhile.

        Where the extents cannot be chosen, they are zeroed afterwards, and not at all if this process is killed.
        """
        whole = round_up(size, found.extent)
        if found.pool:
            self._lvextend(whole)
            return
        self._check_free(whole - found.size, found.free)
        gained = LvmVolume(self.vg, f"{_GAINED}{found.uuid}", ledger=self.ledger)
        gained._let_go()  # of what a run that was killed has left
        if zeroed and found.layout == "linear":
            extents = gained._zero_free(whole - found.size)
            with contextlib.suppress(NoSpace, StorageError):  # its allocation policy, or somebody who took them
                self._lvextend(whole, extents)
                return
        self._lvextend(whole)
        if zeroed:
            self.zero_from(found.size)

    def _lvextend(self, whole: int, extents: t.Sequence[str] = ()) -> None:
        self._change("lvextend", "--yes", "--size", f"{whole}b", self.label, *extents)

    def _zero_free(self, size: int) -> list[str]:
        """Is there while free extents of C(size) bytes are zeroed, and returns them in the words of lvextend(8)."""
        try:
            self._create(size)
            self.zero_from(0)
            rows = _report("lvs", "lv", "--options", "seg_pe_ranges", self.label)
            return [extents for row in rows for extents in row["seg_pe_ranges"].split()]
        finally:
            self._let_go()

    def _let_go(self) -> None:
        """Removes it, if it is there, without a discard, after which nobody knows what its extents read as."""
        if self.is_unfinished():
            self._change("lvremove", "--yes", "--config", "devices/issue_discards=0", self.label)

    def _check_free(self, needed: int, free: int) -> None:
        if needed > free:
            raise NoSpace(f"{self.label} needs {needed} bytes more, and the volume group has {free} free.")

    def _retag(self, stale: list[str], new: list[str]) -> None:
        if not stale and not new:
            return
        options = [option for tag in stale for option in ("--deltag", tag)]
        options += [option for tag in new for option in ("--addtag", tag)]
        self._change("lvchange", *options, self.label)

    def _change(self, *command: str) -> None:
        self.look_again()
        _run(*command)


def tagged_volumes() -> list[tuple[str, str]]:
    """The volume groups and names of all logical volumes that hold what this collection knows of.

    :raises MissingDependency: LVM is not installed.
    """
    select = f"lv_tags={{{TAG}}} || lv_tags={{{UNFINISHED}}}"
    return [(row["vg_name"], row["lv_name"]) for row in _report("lvs", "lv", "--options", "vg_name,lv_name",
                                                                "--select", select)]  # fmt: skip


def check_name(option: str, name: str) -> None:
    """
    :raises VolumeInvalid: LVM takes no such name; see lvm(8).
    """
    if not _NAME.fullmatch(name) or len(name) > _NAME_LENGTH:
        raise VolumeInvalid(
            f"'{option}: {name}' is no name that LVM takes.", "Use letters, digits and + _ . - only, no - in front."
        )
    if name in _RESERVED or _RESERVED_PARTS.search(name):
        raise VolumeInvalid(f"'{option}: {name}' is a name that LVM keeps for itself.", "Choose another name.")


def stands_outside_its_pool(lv: str, rows: t.Iterable[dict[str, str]]) -> bool:
    """Whether a thin volume reads, where it is not mapped, as an origin that is in no thin pool, or in another one.

    :param rows: the names, pools and origins of all volumes of its group.
    """
    named = {row["lv_name"].strip("[]"): row for row in rows}
    while lv in named:
        origin = named[lv]["origin"].strip("[]")
        if origin and (origin not in named or named[origin]["pool_lv"] != named[lv]["pool_lv"]):
            return True
        lv = origin
    return False


def split_mapped_name(name: str) -> tuple[str, str]:
    """The volume group and the logical volume of a device mapper's name: C(vg-lv), with every other hyphen doubled."""
    parts = name.replace("--", "\0").split("-", 1)
    vg, lv = parts if len(parts) == 2 else (parts[0], "")
    return vg.replace("\0", "-"), lv.replace("\0", "-")


def make_tags(provenance: Provenance) -> list[str]:
    """The tags that say what a volume holds: for people which image, for this collection all of it."""
    image = re.sub(r"[^A-Za-z0-9_+.\-/=!:&#]", "_", provenance.source)
    record = _pack(provenance)
    if len(record) > _RECORD_TAGS:
        record = _pack(dataclasses.replace(provenance, metadata=None))
    return [TAG, f"{TAG}.image={image}"[:_TAG_LENGTH], *record]


def _pack(provenance: Provenance) -> list[str]:
    text = base64.urlsafe_b64encode(zlib.compress(json.dumps(provenance.to_dict()).encode(), 9)).decode()
    room = _TAG_LENGTH - len(f"{TAG}.record.999=")
    return [f"{TAG}.record.{number}={text[at : at + room]}" for number, at in enumerate(range(0, len(text), room))]


def parse_tags(tags: t.Iterable[str]) -> Provenance | None:
    """What L(make_tags) wrote; None when it is not all there, or makes no sense."""
    parts = {}
    for tag in tags:
        match = re.fullmatch(rf"{TAG}\.record\.(\d{{1,3}})=(.*)", tag)
        if match:
            parts[int(match[1])] = match[2]
    if sorted(parts) != list(range(len(parts))):
        return None
    try:
        packed = base64.urlsafe_b64decode("".join(parts[number] for number in range(len(parts))))
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(packed, _RECORD_SIZE)
        return Provenance.from_dict(json.loads(text)) if unpacker.eof else None
    except (ValueError, zlib.error, RecursionError):
        return None


def _size(found: LogicalVolume) -> VolumeSize:
    if found.data_percent is None or not found.pool:
        return VolumeSize(found.size, found.size)
    return VolumeSize(found.size, int(found.size * found.data_percent / 100))


def _is_ours(tag: str) -> bool:
    return tag == TAG or tag.startswith(f"{TAG}.")


def _parse_lv(row: dict[str, str], label: str) -> LogicalVolume:
    """
    :raises VolumeInvalid: it is no whole volume.
    """
    fault = _fault(row)
    if fault:
        raise _unfit(label, fault)
    percent = row["data_percent"]
    return LogicalVolume(
        uuid=row["lv_uuid"],
        size=int(row["lv_size"]),
        tags=row["lv_tags"].split(",") if row["lv_tags"] else [],
        layout=row["lv_layout"],
        pool=row["pool_lv"] if "thin" in row["lv_layout"].split(",") else "",
        origin=row["origin"],
        is_active=row["lv_active"] not in ("", "unknown"),
        permissions=row["lv_permissions"],
        data_percent=float(percent) if percent else None,
        extent=int(row["vg_extent_size"]),
        free=int(row["vg_free"]),
        obstacle=_obstacle(row),
    )


def _unfit(label: str, why: str) -> VolumeInvalid:
    return VolumeInvalid(f"The logical volume {label} {why}.", "Choose another one.")


def _fault(row: dict[str, str]) -> str | None:
    layout, role = row["lv_layout"].split(","), row["lv_role"].split(",")
    if "private" in role or row["lv_name"].startswith("["):
        return "is an inner part of another one"
    if "pool" in layout:
        return f"is a pool ({row['lv_layout']}), not a volume"
    if row["lv_health_status"] == "partial":
        return "lacks a part of its physical volumes"
    return None


def _obstacle(row: dict[str, str]) -> str | None:
    """Why it must not be written to, though it may be looked at."""
    role = row["lv_role"].split(",")
    if "thickorigin" in role:
        return "is the origin of a snapshot, to which everything that is overwritten would be copied"
    if "thicksnapshot" in role:
        return f"is a snapshot of {row['origin']}, which breaks when it is full"
    if "read-only" in row["lv_permissions"]:
        return "is read-only"
    return None


def _report(program: str, kind: str, *arguments: str) -> list[dict[str, str]]:
    """What lvs(8) or vgs(8) reports: a row for each C(kind)."""
    output = _run(program, "--reportformat", "json", "--units", "b", "--nosuffix", *arguments)
    try:
        rows: list[dict[str, str]] = json.loads(output)["report"][0][kind]
    except (ValueError, LookupError, TypeError) as err:
        raise StorageError(f"{program} answered with something that is not its report.") from err
    return rows


def _run(program: str, *arguments: str) -> str:
    """Runs a program of LVM's and returns what it says.

    :raises VolumeInvalid: there is no such volume group or volume.
    :raises NoSpace: too few extents are free.
    :raises StorageError: it failed otherwise.
    """
    environment = {"PATH": _PROGRAMS, "LC_ALL": "C", "LVM_SUPPRESS_FD_WARNINGS": "1"}
    run = subprocess.run(  # pylint: disable=ansible-bad-function
        [_program(program), *arguments],
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    if run.returncode == 0:
        return run.stdout
    said = [line.strip() for line in run.stderr.splitlines() if line.strip() and "WARNING" not in line]
    text = f"{program} failed: {' '.join(said) or f'exit status {run.returncode}'}"
    text = text.rstrip(".") + "."
    if re.search(r"not found|Failed to find|Invalid path", text):
        raise VolumeInvalid(text, "Create it, or correct the name.")
    if re.search(r"[Ii]nsufficient|not enough free", text):
        raise NoSpace(text)
    if "already exists" in text:
        raise VolumeExists(text)
    raise StorageError(text)


def _program(name: str) -> str:
    """
    :raises MissingDependency: it is not installed.
    """
    found = shutil.which(name, path=_PROGRAMS)
    if found is None:
        raise MissingDependency(f"{name} of LVM is not installed on this host.", "Install lvm2.")
    return found
