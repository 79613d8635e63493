# SPDX-License-Identifier: GPL-3.0-or-later
"""What the headers of overlays, made by qemu-img, say of the images below them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    DamagedImage,
    UnsafeImage,
    UnsupportedFormat,
)
from ansible_collections.imageferry.glance.plugins.module_utils._image.backing import (
    Backing,
    check_overlay,
    read_backing,
    read_chain,
    read_head,
)

MIB = 1 << 20


@pytest.fixture
def create(tmp_path):
    """Makes a qcow2 in the folder and returns its path."""

    def create(name, *options):
        path = tmp_path / name
        size = [option for option in options if option.endswith("M")]
        options = [option for option in options if option not in size]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, *size], check=True, cwd=tmp_path)
        return str(path)

    return create


def without_format(head):
    """The header with an unknown extension in place of that of the backing's format, which qemu-img always writes."""
    assert head.count(b"\xe2\x79\x2a\xca") == 1
    return head.replace(b"\xe2\x79\x2a\xca", b"\x12\x34\x56\x78")


def chain(path, follow=True):
    return read_chain(read_head(path), path, follow)


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_the_name_and_the_format_of_a_backing_are_read(create, tmp_path, compat):
    create("base", "8M")
    head = read_head(create("overlay", "-o", f"compat={compat}", "-b", "base", "-F", "qcow2"))
    assert read_backing(head, str(tmp_path)) == Backing(f"{tmp_path}/base", "qcow2", True)
    assert read_backing(head, "/elsewhere").path == "/elsewhere/base"
    assert read_backing(without_format(head), "/x") == Backing("/x/base", None, True)
    assert read_backing(read_head(create("alone", "-o", f"compat={compat}", "8M")), "/x") is None


@pytest.mark.parametrize(
    ("name", "path", "is_file"),
    [
        ("file:base", "/x/base", True),
        ("../base", "/base", True),
        ("a/b:c", "/x/a/b:c", True),
        ("nbd://host/disk", "nbd://host/disk", False),
        ('json:{"driver":"null-co"}', 'json:{"driver":"null-co"}', False),
    ],
)
def test_what_is_a_file_is_told_from_what_qemu_would_connect_to(create, name, path, is_file):
    head = read_head(create("overlay", "-u", "-F", "raw", "-b", name, "8M"))
    assert read_backing(head, "/x") == Backing(path, "raw", is_file)


@pytest.mark.parametrize(("offset", "length"), [(1 << 40, 4), (1 << 63, 4), (512, 0), (512, 1024)])
def test_a_name_that_is_not_there_is_damage(create, offset, length):
    head = bytearray(read_head(create("overlay", "8M")))
    head[8:20] = offset.to_bytes(8, "big") + length.to_bytes(4, "big")
    with pytest.raises(DamagedImage):
        read_backing(bytes(head), "/x")


def test_a_chain_is_followed_only_where_its_headers_are_trusted(create, tmp_path):
    (tmp_path / "raw").write_bytes(bytes(4 * MIB))
    create("middle", "-b", "raw", "-F", "raw", "6M")
    top = create("top", "-b", "middle", "-F", "qcow2", "8M")
    assert [(os.path.basename(link.path), link.virtual_size, link.exists) for link in chain(top)] == [
        ("middle", 6 * MIB, True), ("raw", 4 * MIB, True)
    ]  # fmt: skip
    assert [tuple(link) for link in chain(top, follow=False)] == [(f"{tmp_path}/middle", "qcow2", None, None)]


def test_what_a_raw_backing_looks_like_is_not_followed(create, tmp_path):
    """A guest has written a qcow2 header to its raw disk, and an overlay stands on that disk."""
    create("secret", "8M")
    create("raw", "-b", "secret", "-F", "qcow2")
    top = create("top", "-u", "-b", "raw", "-F", "raw", "8M")
    links = chain(top)
    assert [link.path for link in links] == [f"{tmp_path}/raw"]
    assert links[0].virtual_size == (tmp_path / "raw").stat().st_size


def test_a_chain_that_bites_its_tail_ends(create):
    one = create("one", "-u", "-b", "two", "-F", "qcow2", "8M")
    create("two", "-u", "-b", "one", "-F", "qcow2", "8M")
    assert len(chain(one)) <= 2
    with pytest.raises(UnsafeImage, match="does not end"):
        check_overlay(read_head(one), one, os.path.getsize(one))


@pytest.mark.parametrize(
    "options",
    [("-b", "gone", "-F", "raw"), ("-b", "nbd://host/x", "-F", "raw"), ("-b", "there", "-F", "vmdk")],
)
def test_an_overlay_is_refused_over_what_is_gone_or_foreign_or_no_file(create, tmp_path, options):
    (tmp_path / "there").write_bytes(bytes(MIB))
    overlay = create("overlay", "-u", *options, "8M")
    with pytest.raises(UnsafeImage, match="laid over"):
        check_overlay(read_head(overlay), overlay, os.path.getsize(overlay))


def test_an_overlay_is_refused_over_what_qemu_would_have_to_guess(create, tmp_path):
    (tmp_path / "there").write_bytes(bytes(MIB))
    overlay = create("overlay", "-b", "there", "-F", "raw", "8M")
    size = os.path.getsize(overlay)
    assert check_overlay(read_head(overlay), overlay, size)
    with pytest.raises(UnsafeImage, match="does not say"):
        check_overlay(without_format(read_head(overlay)), overlay, size)


def test_an_overlay_is_judged_like_any_other_qcow2(create, tmp_path):
    (tmp_path / "base").write_bytes(bytes(MIB))
    overlay = create("overlay", "-b", "base", "-F", "raw", "8M")
    header, links = check_overlay(read_head(overlay), overlay, os.path.getsize(overlay))
    assert header.virtual_size == 8 * MIB and [link.virtual_size for link in links] == [MIB]
    encrypted = bytearray(read_head(overlay))
    encrypted[35] = 1
    with pytest.raises(UnsupportedFormat):
        check_overlay(bytes(encrypted), overlay, os.path.getsize(overlay))


@pytest.mark.parametrize("kind", ["gone", "folder", "fifo", "device"])
def test_what_has_no_first_bytes_has_none_and_is_not_opened(tmp_path, kind):
    path, opened = tmp_path / kind, []
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    sys.addaudithook(lambda event, about: event == "open" and about[0] == str(path) and opened.append(event))
    assert read_head(str(path)) is None and not opened
    with contextlib.suppress(OSError):
        os.close(os.open(str(path), os.O_RDONLY | os.O_NONBLOCK))
    assert opened
