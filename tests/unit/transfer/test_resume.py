# SPDX-License-Identifier: GPL-3.0-or-later
"""A transfer goes on where an earlier one ended."""

from __future__ import annotations

import contextlib
import itertools
import os

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    ChecksumMismatch,
    FormatMismatch,
    TokenExpired,
    TransferFailed,
)
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.exchange import HttpOptions
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.receive import Reception
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.source import HttpSource
from ansible_collections.imageferry.glance.plugins.module_utils._volume.file import FileVolume
from ansible_collections.imageferry.glance.plugins.module_utils._volume.provenance import XATTR, Provenance
from ansible_collections.imageferry.glance.plugins.module_utils._volume.sparse import BLOCK
from faulty_proxy import Fault

from .conftest import CONTENT, DIGEST, Watcher, check_raw

SIZE = len(CONTENT)
HALF = 1536 * 1024 + 321
WANTED = Provenance("an id", "a name", DIGEST.algorithm, DIGEST.value, SIZE, "raw")


@pytest.fixture
def carry(tmp_path, proxy):
    """Runs one import, as the module does, and returns what was received."""

    def run(wanted=WANTED, check=check_raw, retries=0, token=None):
        source = HttpSource(proxy.url("/image"), SIZE, HttpOptions(timeout=5, retries=retries, token=token))
        volume = FileVolume(str(tmp_path / "disk"))
        with contextlib.closing(source), volume, volume.staged(1, wanted or WANTED, wanted is not None) as staged:
            received = Reception(source, staged.sink, DIGEST, check, Watcher()).run(staged.held, staged.sink.read_back)
            staged.publish(WANTED, False)
        assert (tmp_path / "disk").read_bytes() == CONTENT and os.listdir(tmp_path) == ["disk"]
        return received

    return run


@pytest.fixture
def partial(carry, proxy, tmp_path):
    """What a broken transfer has left."""
    proxy.programme(Fault(cut=HALF))
    with pytest.raises(TransferFailed):
        carry()
    (path,) = tmp_path.iterdir()
    assert path.name == ".disk.imageferry-partial"
    assert 0 < path.stat().st_size <= HALF and path.stat().st_mode & 0o777 == 0o600
    proxy.seen.clear()
    return path


def asked(proxy):
    return [seen.headers.get("range") for seen in proxy.gets]


def test_what_is_there_is_not_fetched_again(carry, proxy, partial):
    held = partial.stat().st_size // BLOCK * BLOCK
    received = carry()
    assert asked(proxy) == [f"bytes={held}-"] and (received.resumed_from, received.restarts) == (held, 0)
    assert received.to_dict()["bytes"] == SIZE - held and received.digest == DIGEST


def test_holes_count_as_what_is_there(carry, proxy, tmp_path):
    """The middle third of the content is zeros: a transfer that breaks there has a hole at its end."""
    proxy.programme(Fault(cut=SIZE // 2))
    with pytest.raises(TransferFailed):
        carry()
    assert carry().resumed_from > 0


def test_half_a_block_at_the_end_is_cut_off(carry, partial):
    """The block is all zeros in the image: nothing would be written over what is there."""
    whole = 24 * BLOCK
    assert not any(CONTENT[whole : whole + BLOCK])
    partial.write_bytes(CONTENT[:whole] + b"junk")
    assert carry().resumed_from == whole


def test_a_server_that_cannot_continue_makes_it_start_over_and_say_so(carry, proxy, partial):
    proxy.programme(then=itertools.repeat(Fault(drop_range=True)))
    received = carry(retries=1)
    assert (received.resumed_from, received.restarts) == (0, 1)
    assert received.restarted == "the server does not continue in the middle"


@pytest.mark.parametrize("position", [0, BLOCK, 5 * BLOCK])
def test_a_bit_that_flipped_in_what_is_there_makes_it_start_over(carry, proxy, partial, position):
    with partial.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)
        file.seek(position)
        file.write(bytes([byte[0] ^ 1]))
    received = carry(retries=1)
    assert received.resumed_from == 0 and asked(proxy)[-1] is None


@pytest.mark.parametrize(
    "changes",
    [
        {"source": "another id"},
        {"hash_value": "0" * 128},
        {"hash_algo": "sha256"},
        {"size": SIZE + 1},
        {"format": "iso"},
    ],
)
def test_what_is_left_of_another_image_is_thrown_away(carry, proxy, partial, changes):
    left = Provenance(**{**WANTED.to_dict(), **changes})
    os.setxattr(partial, XATTR, repr(left.to_dict()).replace("'", '"').replace("None", "null").encode())
    assert carry().resumed_from == 0 and asked(proxy) == [None]


def test_the_name_of_an_image_may_change_meanwhile(carry, partial):
    assert carry(Provenance(**{**WANTED.to_dict(), "name": "another name"})).resumed_from > 0


@pytest.mark.parametrize("mark", [b"", b"{", b"[]", b'{"source": 1}'])
def test_what_is_left_without_a_mark_is_thrown_away(carry, proxy, partial, mark):
    os.setxattr(partial, XATTR, mark)
    assert carry().resumed_from == 0 and asked(proxy) == [None]


def test_what_is_left_is_judged_again(carry, proxy, partial):
    def refuse(head, size):
        assert head == CONTENT[: len(head)] and len(head) == BLOCK
        raise FormatMismatch("It is something else.")

    with pytest.raises(FormatMismatch):
        carry(check=refuse)
    assert proxy.gets == [] and not partial.exists()


def test_wrong_bytes_are_not_kept(carry, proxy, tmp_path):
    proxy.programme(then=itertools.repeat(Fault(flip=5)))
    with pytest.raises(ChecksumMismatch):
        carry(retries=1)
    assert os.listdir(tmp_path) == []


def test_without_a_hash_nothing_is_gone_on_with(carry, proxy, tmp_path):
    proxy.programme(Fault(cut=HALF))
    with pytest.raises(TransferFailed):
        carry(wanted=None)
    assert os.listdir(tmp_path) == []


def test_a_partial_file_that_is_almost_whole_needs_its_last_bytes(carry, proxy, partial):
    partial.write_bytes(CONTENT)
    assert carry().to_dict()["bytes"] == SIZE % BLOCK and asked(proxy) == [f"bytes={SIZE // BLOCK * BLOCK}-"]


def test_a_partial_file_that_somebody_renamed_is_not_an_image(partial, tmp_path):
    partial.rename(tmp_path / "disk")
    with FileVolume(str(tmp_path / "disk")) as volume:
        assert volume.provenance() is None


def test_an_expired_token_leaves_what_is_there(carry, proxy, tmp_path):
    proxy.programme(Fault(cut=HALF), Fault(status=401))
    with pytest.raises(TokenExpired):
        carry(retries=1, token="expires")
    proxy.programme()
    assert carry().resumed_from > 0
