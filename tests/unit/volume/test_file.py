# SPDX-License-Identifier: GPL-3.0-or-later
"""A volume that is a file appears whole or not at all, and nothing else is touched on the way."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import resource
import stat
import subprocess
import threading

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    FerryError,
    NoSpace,
    StorageError,
    VolumeExists,
    VolumeInUse,
    VolumeInvalid,
)
from ansible_collections.imageferry.glance.plugins.module_utils._volume.file import FileVolume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import Provenance
from ansible_collections.imageferry.glance.plugins.module_utils._volume.storage import storage_errors

PROVENANCE = Provenance("an id", "a name", "sha512", "00ff", 7, "raw")
OTHER = Provenance("other", None, "sha512", "11ff", 7, "raw")
PARTIAL = ".disk.imageferry-partial"
CONTENT = b"content" * 100000


def put(folder, content=CONTENT, over=False, meanwhile=lambda: None, of=PROVENANCE):
    """Stages and publishes C(content) as C(disk) in the folder."""
    with FileVolume(str(folder / "disk"), 0o640) as volume, volume.staged(0, of, False) as staged:
        with storage_errors("write"):
            staged.sink.write(bytearray(content), len(content), 0)
            staged.sink.finish(len(content))
        meanwhile()
        staged.publish(of, over)


def make_thing(kind, path, victim):
    if kind == "symlink":
        path.symlink_to(victim)
    elif kind == "dangling":
        path.symlink_to(victim.with_name("nowhere"))
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        if os.geteuid() != 0:
            pytest.skip("making a device needs root")
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))


THINGS = ["symlink", "dangling", "fifo", "folder", "device"]


@pytest.mark.parametrize("over", [False, True])
def test_a_file_is_published_with_its_provenance_and_mode(tmp_path, over):
    if over:
        (tmp_path / "disk").write_text("old")
        (tmp_path / "disk").chmod(0o640)
    put(tmp_path, over=over)
    assert (tmp_path / "disk").read_bytes() == CONTENT
    assert stat.S_IMODE((tmp_path / "disk").stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["disk"]
    with FileVolume(str(tmp_path / "disk")) as volume:
        assert volume.provenance().source == "an id" and volume.provenance().imported_at


@pytest.mark.parametrize("over", [False, True])
def test_file_name_and_folder_are_brought_to_the_storage_in_this_order(tmp_path, monkeypatch, over):
    calls = []

    def record(name, describe):
        real = getattr(os, name)

        def recorded(*args, **kwargs):
            calls.append((name, describe(*args)))
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, recorded)

    record("fsync", lambda fd: "folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
    for name in ("rename", "link"):
        record(name, lambda old, new: (old, new))
    record("unlink", lambda path: path)
    record("setxattr", lambda *_args: "provenance")
    put(tmp_path, over=over)
    named = [("rename", (PARTIAL, "disk"))] if over else [("link", (PARTIAL, "disk")), ("unlink", PARTIAL)]
    synced = [("setxattr", "provenance"), ("fsync", "file")]
    assert calls == [("fsync", "file"), *synced, *named, ("fsync", "folder")]


@pytest.mark.parametrize("kind", THINGS)
def test_what_is_no_file_is_not_taken_for_the_volume(tmp_path, kind):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    make_thing(kind, tmp_path / "disk", victim)
    with FileVolume(str(tmp_path / "disk")) as volume, pytest.raises(VolumeInvalid):
        volume.stat()
    with pytest.raises(FerryError):
        put(tmp_path)
    assert victim.read_text() == "precious" and not (tmp_path / PARTIAL).exists()


@pytest.mark.parametrize("kind", THINGS)
def test_what_is_no_file_is_not_taken_for_the_partial(tmp_path, kind):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    make_thing(kind, tmp_path / PARTIAL, victim)
    with pytest.raises(VolumeInvalid, match="beside"):
        put(tmp_path)
    assert victim.read_text() == "precious" and sorted(os.listdir(tmp_path)) == [PARTIAL, "victim"]


def test_a_partial_that_is_a_link_to_another_file_is_let_go(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    os.link(victim, tmp_path / PARTIAL)
    put(tmp_path)
    assert victim.read_text() == "precious" and (tmp_path / "disk").read_bytes() == CONTENT


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs root")
def test_a_partial_of_somebody_else_is_not_written_to(tmp_path):
    (tmp_path / PARTIAL).write_text("")
    os.chown(tmp_path / PARTIAL, 12345, 12345)
    with open(tmp_path / PARTIAL) as theirs:
        put(tmp_path)
        assert theirs.read() == ""
    assert (tmp_path / "disk").stat().st_uid == 0


def test_where_the_server_gives_all_files_to_one_user_they_are_ones_own(tmp_path, monkeypatch):
    """As NFS does with all_squash; here it is the process that is somebody else."""
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with FileVolume(str(tmp_path / "disk")) as volume:
        with contextlib.suppress(KeyboardInterrupt), volume.staged(0, PROVENANCE, True) as staged:
            staged.sink.write(bytearray(CONTENT), len(CONTENT), 0)
            raise KeyboardInterrupt
        assert volume.holds_given_up()
        with volume.staged(0, PROVENANCE, True) as staged:
            assert staged.held > 0
    assert os.listdir(tmp_path) == []
    put(tmp_path)
    assert os.listdir(tmp_path) == ["disk"]


def test_a_leftover_of_a_killed_run_is_used_up(tmp_path):
    (tmp_path / PARTIAL).write_bytes(b"leftover" * 1000000)
    put(tmp_path)
    assert (tmp_path / "disk").read_bytes() == CONTENT and os.listdir(tmp_path) == ["disk"]


@pytest.mark.parametrize("new", ["nothing", "another file"])
def test_a_partial_that_is_swapped_is_not_published(tmp_path, new):
    def swap():
        (tmp_path / PARTIAL).unlink()
        if new != "nothing":
            (tmp_path / PARTIAL).write_text(new)

    with pytest.raises(VolumeInvalid, match="removed or replaced"):
        put(tmp_path, meanwhile=swap)
    assert os.listdir(tmp_path) == ([] if new == "nothing" else [PARTIAL])


def test_a_folder_that_is_swapped_gets_nothing(tmp_path):
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()

    def swap():
        folder.rename(tmp_path / "moved")
        folder.symlink_to(elsewhere)

    put(folder, meanwhile=swap)
    assert os.listdir(elsewhere) == [] and os.listdir(tmp_path / "moved") == ["disk"]


def test_what_came_into_being_meanwhile_stays(tmp_path):
    with pytest.raises(VolumeExists):
        put(tmp_path, meanwhile=lambda: (tmp_path / "disk").write_text("precious"))
    assert (tmp_path / "disk").read_text() == "precious" and os.listdir(tmp_path) == ["disk"]


def test_without_hard_links_what_came_into_being_meanwhile_stays(tmp_path, monkeypatch):
    def link(*_args, **_kwargs):
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(VolumeExists):
        put(tmp_path, meanwhile=lambda: (tmp_path / "disk").write_text("precious"))
    assert (tmp_path / "disk").read_text() == "precious"
    (tmp_path / "disk").unlink()
    put(tmp_path)
    assert os.listdir(tmp_path) == ["disk"]


def test_a_partial_is_private_whatever_the_umask(tmp_path):
    seen = []
    old = os.umask(0)
    try:
        put(tmp_path, meanwhile=lambda: seen.append(stat.S_IMODE((tmp_path / PARTIAL).stat().st_mode)))
        (tmp_path / "disk").unlink()
        (tmp_path / PARTIAL).touch(0o666)
        put(tmp_path, meanwhile=lambda: seen.append(stat.S_IMODE((tmp_path / PARTIAL).stat().st_mode)))
    finally:
        os.umask(old)
    assert seen == [0o600, 0o600]


def test_a_second_import_waits_for_the_first_or_gives_up(tmp_path):
    def second():
        with pytest.raises(VolumeInUse, match="Another task imports"):
            put(tmp_path, b"second")

    put(tmp_path, meanwhile=second)
    assert (tmp_path / "disk").read_bytes() == CONTENT
    (tmp_path / "disk").unlink()
    with FileVolume(str(tmp_path / "disk")) as volume, volume.staged(0, PROVENANCE, False) as first:
        threading.Timer(0.3, first.publish, (PROVENANCE, False)).start()
        with FileVolume(str(tmp_path / "disk")) as other, other.staged(5, PROVENANCE, False):
            assert first.published


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def flock(*_arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))  # as NFS does without a lock manager

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StorageError, match="No locks available"):
        put(tmp_path)


def test_a_full_file_system_leaves_nothing_behind(mount):
    folder = mount("tmpfs", "-o", "size=512k")
    (folder / "other").write_text("precious")
    with pytest.raises(NoSpace, match="No space"):
        put(folder)
    assert os.listdir(folder) == ["other"]
    with FileVolume(str(folder / "disk")) as volume:
        volume.check_space(100000)
        with pytest.raises(NoSpace, match="free"):
            volume.check_space(1 << 20)


def test_a_limit_of_the_file_size_leaves_nothing_behind(tmp_path):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100000, old[1]))
    try:
        with pytest.raises(NoSpace):
            put(tmp_path)
        with pytest.raises(NoSpace):  # also when all that is beyond is a hole
            put(tmp_path, bytes(200000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_failing_sync_is_an_error(tmp_path, monkeypatch, failing):
    """Without a device mapper no real disk fails on command here."""
    (tmp_path / "disk").write_text("old")
    real, left = os.fsync, [failing]

    def fsync(fd):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StorageError, match="Input/output"):
        put(tmp_path, over=True)
    assert os.listdir(tmp_path) == ["disk"]
    if failing < 3:  # the last one is the folder's, after the name
        assert (tmp_path / "disk").read_text() == "old"


@pytest.mark.parametrize("failing", ["rename", "fsync"])
def test_what_could_not_be_replaced_is_still_known(mount, monkeypatch, failing):
    folder = mount("ramfs")  # without extended attributes
    put(folder)
    real, known, sidecar = getattr(os, failing), [], folder / ".disk.imageferry.json"

    def fail(thing, *names, **folders):
        path = thing if failing == "rename" else os.readlink(f"/proc/self/fd/{thing}")
        if path.endswith(PARTIAL) and "other" in sidecar.read_text():
            with FileVolume(str(folder / "disk")) as volume:
                known.append(volume.provenance().source)  # as after a power cut
            raise OSError(errno.EIO, "Input/output error")
        return real(thing, *names, **folders)

    with monkeypatch.context() as broken:
        broken.setattr(os, failing, fail)
        with pytest.raises(StorageError):
            put(folder, b"new", over=True, of=OTHER)
    with FileVolume(str(folder / "disk")) as volume:
        assert [*known, volume.provenance().source] == ["an id", "an id"]
        put(folder, b"new", over=True, of=OTHER)
        assert volume.provenance().source == "other"
    assert len(json.loads(sidecar.read_text())) == 1


@pytest.mark.parametrize("path", ["disk", "", "/nowhere/at/all/disk", "/tmp/", "/etc/passwd/disk"])
def test_a_place_that_cannot_be_is_refused(path):
    with pytest.raises(VolumeInvalid):
        FileVolume(path)


def test_a_name_that_is_too_long_is_refused(tmp_path):
    with (
        FileVolume(str(tmp_path / ("x" * 255))) as volume,
        pytest.raises(VolumeInvalid),
        volume.staged(0, PROVENANCE, False),
    ):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a file system of its own")
def test_a_read_only_file_system_is_named(mount):
    folder = mount("tmpfs", "-o", "ro")
    with pytest.raises(VolumeInvalid, match="Read-only"):
        put(folder)


def test_a_file_grows_and_never_shrinks(tmp_path):
    put(tmp_path)
    with FileVolume(str(tmp_path / "disk")) as volume:
        assert volume.grow(1).size == len(CONTENT)
        assert volume.grow(len(CONTENT) + (1 << 30)).size == len(CONTENT) + (1 << 30)
        assert volume.stat().allocated < 2 * len(CONTENT) and volume.provenance().source == "an id"
    with FileVolume(str(tmp_path / "other")) as volume, pytest.raises(VolumeInvalid, match="no file"):
        volume.grow(1)


@pytest.mark.parametrize("wipe", [False, True])
@pytest.mark.parametrize("kind", ["tmpfs", "ramfs"])
def test_a_file_that_is_removed_leaves_nothing(mount, kind, wipe):
    folder = mount(kind)
    put(folder)
    os.link(folder / "disk", folder / "link")
    with FileVolume(str(folder / "disk")) as volume:
        with open(folder / "disk", "rb"):
            volume.remove(wipe)  # one's own
        volume.remove(wipe)
        assert volume.stat() is None
    assert os.listdir(folder) == ["link"]
    assert (folder / "link").read_bytes() == (bytes(len(CONTENT)) if wipe else CONTENT)


def test_the_holes_of_a_file_that_is_wiped_take_up_nothing(mount):
    folder = mount("tmpfs", "-o", "size=4m")
    put(folder)
    with FileVolume(str(folder / "disk")) as volume:
        volume.grow(1 << 30)
        os.link(folder / "disk", folder / "link")
        allocated = volume.stat().allocated
        volume.remove(wipe=True)
    left = (folder / "link").stat()
    assert (left.st_size, left.st_blocks * 512) == (1 << 30, allocated)
    with open(folder / "link", "rb") as file:
        assert not any(file.read(2 * len(CONTENT)))


@pytest.mark.parametrize("kind", ["tmpfs", "ramfs"])
def test_a_file_that_is_not_wiped_to_its_end_is_not_taken_for_whole(mount, kind):
    folder = mount(kind)
    put(folder)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    with FileVolume(str(folder / "disk")) as volume:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100000, old[1]))
        try:
            with pytest.raises(NoSpace):
                volume.remove(wipe=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert (folder / "disk").read_bytes() == bytes(100000) + CONTENT[100000:]
        assert volume.provenance() is None
        volume.remove(wipe=True)
    assert os.listdir(folder) == []


def test_where_nobody_can_import_nobody_is_kept_away(mount):
    folder = mount("tmpfs")
    (folder / "disk").write_bytes(CONTENT)
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    with FileVolume(str(folder / "disk")) as volume, volume.locked(0):
        assert os.listdir(folder) == ["disk"]
