# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever the network and the server do, the file is whole and right, or absent."""

from __future__ import annotations

import email.utils
import itertools
import socket
import time
from types import SimpleNamespace

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    AccessDenied,
    ChecksumMismatch,
    ConnectionRefused,
    ConnectionTimedOut,
    ImageNotFound,
    ImageNotReady,
    ImageTooLarge,
    InvalidOption,
    SizeMismatch,
    TransferFailed,
)
from ansible_collections.imageferry.glance.plugins.module_utils._transfer import pacing
from ansible_collections.imageferry.glance.plugins.module_utils._transfer import pacing as pacing_module
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.checksum import read_checksum
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.exchange import HttpOptions
from faulty_proxy import Fault

from .conftest import CONTENT, DIGEST

SIZE = len(CONTENT)
MIB = 1024**2
CUT = Fault(cut=MIB + 5)


def test_a_good_server_needs_one_request(fetch, proxy):
    received = fetch(proxy.url("/image"))
    assert (received.size, received.reconnects, received.restarts) == (SIZE, 0, 0)
    assert len(proxy.gets) == 1


@pytest.mark.parametrize("fault", [CUT, Fault(cut=MIB, reset=True), Fault(cut=0), Fault(cut=MIB, framing="chunked")])
def test_a_broken_connection_is_continued(fetch, proxy, fault):
    proxy.programme(fault)
    received = fetch(proxy.url("/image"), SIZE)
    assert (received.reconnects, received.restarts) == (1, 0)
    assert len(proxy.gets) == 2


def test_what_has_arrived_is_not_asked_for_again(fetch, proxy):
    proxy.programme(CUT, Fault(cut=MIB))
    fetch(proxy.url("/image"), SIZE)
    assert [seen.headers.get("range") for seen in proxy.gets] == [None, f"bytes={MIB + 5}-", f"bytes={2 * MIB + 5}-"]


def test_a_body_that_only_the_connection_ends_is_held_against_the_hash(fetch, proxy):
    proxy.programme(Fault(cut=MIB, framing="close"))
    assert fetch(proxy.url("/image")).restarts == 1
    fetch.path.unlink()
    proxy.programme(then=itertools.repeat(Fault(cut=MIB, framing="close")))
    fetch.fails(ChecksumMismatch, proxy.url("/image"))


def test_a_truncated_chunked_body_of_unknown_size_is_no_end(fetch, proxy):
    proxy.programme(then=itertools.repeat(Fault(cut=MIB, framing="chunked")))
    assert f"after {MIB} bytes" in fetch.fails(TransferFailed, proxy.url("/image"), expected=None, retries=2)


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_no_size_and_no_hash_still_carry_a_good_body(fetch, proxy, framing):
    proxy.programme(then=itertools.repeat(Fault(framing=framing)))
    fetch(proxy.url("/image"), expected=None)


def test_a_server_that_cuts_every_body_and_serves_no_ranges_is_given_up(fetch, proxy, pauses):
    proxy.programme(then=itertools.repeat(Fault(cut=2 * MIB, drop_range=True)))
    message = fetch.fails(TransferFailed, proxy.url("/image"), SIZE, retries=3)
    assert "3 fresh starts" in message and "retries" in message
    assert len(proxy.gets) <= 5 and pauses[-3:] == [0.5, 1, 2]


def test_a_server_that_brings_hardly_anything_each_time_is_given_up(fetch, proxy):
    proxy.programme(then=itertools.repeat(Fault(cut=100)))
    assert "after 400 bytes and 3 retries" in fetch.fails(TransferFailed, proxy.url("/image"), SIZE, retries=3)


def test_progress_earns_new_retries(fetch, proxy):
    proxy.programme(*[Fault(cut=SIZE // 7)] * 6)
    assert fetch(proxy.url("/image"), SIZE, retries=1).reconnects == 6


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_stall_is_a_lost_connection(fetch, proxy, framing):
    proxy.programme(Fault(cut=MIB, stall=3, framing=framing))
    started = time.monotonic()
    assert fetch(proxy.url("/image"), SIZE, timeout=0.5).reconnects == 1
    assert time.monotonic() - started < 2


def test_a_server_that_does_not_answer_is_named(fetch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert f":{port}" in fetch.fails(ConnectionTimedOut, f"http://127.0.0.1:{port}/image", timeout=0.2, retries=1)


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_trickle_is_a_lost_connection(fetch, proxy, framing):
    proxy.programme(Fault(trickle=1000, framing=framing))
    started = time.monotonic()
    assert fetch(proxy.url("/image"), SIZE, timeout=0.5).reconnects == 1
    assert time.monotonic() - started < 2


def test_an_endless_trickle_is_given_up(fetch, proxy):
    proxy.programme(then=itertools.repeat(Fault(trickle=1000)))
    assert "bytes a second" in fetch.fails(TransferFailed, proxy.url("/image"), SIZE, timeout=0.3, retries=2)


@pytest.mark.parametrize(
    "answer",
    [
        Fault(status=400),
        Fault(status=416),
        Fault(drop_range=True),
        Fault(status=206, body=CONTENT, headers={"Content-Range": f"bytes 0-{SIZE - 1}/{SIZE}"}),
        Fault(status=206, body=CONTENT, headers={"Content-Range": f"bytes {MIB}-{SIZE - 1}/{SIZE}"}),
        Fault(status=206, body=CONTENT, headers={"Content-Range": f"bytes {MIB}-{MIB + SIZE - 1}/{SIZE}"}),
        Fault(status=206, body=CONTENT),
        Fault(status=206, body=b"x", headers={"Content-Range": f"bytes {MIB}-{MIB - 1}/{SIZE}"}),
        Fault(status=206, body=b"x" * 10, headers={"Content-Range": f"bytes {MIB + 1}-{MIB + 10}/{SIZE}"}),
        Fault(status=206, body=b"--x\r\n", headers={"Content-Type": "multipart/byteranges; boundary=x"}),
        Fault(status=206, body=b"x", headers={"Content-Range": f"bytes {'9' * 5000}-1/1"}),
    ],
)
def test_what_is_no_answer_to_a_range_makes_one_stream_from_zero(fetch, proxy, answer):
    proxy.programme(Fault(cut=MIB, headers={"ETag": None}), answer)  # so that only the range can tell
    received = fetch(proxy.url("/image"), SIZE, expected=None)
    assert received.restarts == 1
    assert [seen.headers.get("range") for seen in proxy.gets] == [None, f"bytes={MIB}-", None]


def test_a_whole_image_in_a_206_without_a_length_is_seen(fetch, proxy):
    part = {"Content-Range": f"bytes {MIB}-{SIZE - 1}/{SIZE}"}
    proxy.programme(Fault(cut=MIB), Fault(status=206, body=CONTENT, headers=part, framing="chunked"))
    assert fetch(proxy.url("/image"), SIZE, expected=None).restarts == 1


def test_a_shorter_part_than_asked_for_is_continued(fetch, proxy):
    same = {"ETag": '"same"'}
    part = {"Content-Range": f"bytes {MIB}-{2 * MIB - 1}/{SIZE}", **same}
    body = CONTENT[MIB : 2 * MIB]
    proxy.programme(Fault(cut=MIB, headers=same), Fault(status=206, body=body, headers=part), Fault(headers=same))
    received = fetch(proxy.url("/image"), SIZE)
    assert (received.reconnects, received.restarts) == (2, 0)


@pytest.mark.parametrize("framing", ["chunked", "close"])
def test_more_bytes_than_promised_are_an_error(fetch, proxy, framing):
    proxy.programme(Fault(extra=b"more", framing=framing))
    assert fetch(proxy.url("/image"), SIZE).restarts == 1
    proxy.programme(then=itertools.repeat(Fault(extra=b"more", framing=framing)))
    fetch.path.unlink()
    assert str(SIZE) in fetch.fails(SizeMismatch, proxy.url("/image"), SIZE)


def test_another_length_than_promised_is_an_error(fetch, proxy):
    message = fetch.fails(SizeMismatch, proxy.url("/image"), SIZE + 1)
    assert f"{SIZE}" in message and f"{SIZE + 1}" in message


def test_a_length_that_is_no_number_is_none(fetch, proxy):
    proxy.programme(then=itertools.repeat(Fault(headers={"Content-Length": "²"})))
    fetch(proxy.url("/image"), SIZE)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_errors_of_the_moment_are_outlasted(fetch, proxy, pauses, status):
    proxy.programme(*[Fault(status=status)] * 3)
    fetch(proxy.url("/image"), retries=3)
    assert pauses == [0.5, 1, 2]
    fetch.path.unlink()
    proxy.programme(*[Fault(status=status)] * 4)
    assert f"answered {status}" in fetch.fails(TransferFailed, proxy.url("/image"), retries=3)


@pytest.mark.parametrize("written", ["1", "date"])
def test_retry_after_is_honoured(fetch, proxy, pauses, written):
    value = written if written != "date" else email.utils.formatdate(time.time() + 2, usegmt=True)
    proxy.programme(Fault(status=503, headers={"Retry-After": value}))
    started = time.monotonic()
    fetch(proxy.url("/image"))
    assert 0.9 < time.monotonic() - started < 4 and pauses == []


@pytest.mark.parametrize("value", ["9" * 18, "Fri, 31 Dec 2999 23:59:59 GMT"])
def test_retry_after_is_capped(fetch, proxy, monkeypatch, value):
    monkeypatch.setattr(pacing_module, "_MAX_PAUSE", 0.1)
    proxy.programme(Fault(status=429, headers={"Retry-After": value}))
    fetch(proxy.url("/image"))


@pytest.mark.parametrize("value", ["soon", "-1", "9" * 5000, "²", "Fri, 99 Foo 99999 99:99:99 GMT"])
def test_a_retry_after_that_makes_no_sense_is_not_heard(fetch, proxy, pauses, value):
    proxy.programme(Fault(status=503, headers={"Retry-After": value}))
    fetch(proxy.url("/image"))
    assert pauses == [0.5]


@pytest.mark.parametrize(
    ("status", "error"), [(403, AccessDenied), (404, ImageNotFound), (410, ImageNotFound), (204, ImageNotReady)]
)
def test_a_clear_no_is_final(fetch, proxy, status, error):
    proxy.programme(Fault(status=status))
    fetch.fails(error, proxy.url("/image"), SIZE)
    proxy.programme(CUT, Fault(status=status))
    fetch.fails(error, proxy.url("/image"), SIZE)
    assert len(proxy.gets) == 3


def test_one_flipped_bit_is_found_and_the_next_body_is_good(fetch, proxy):
    proxy.programme(Fault(flip=2 * MIB))
    received = fetch(proxy.url("/image"))
    assert received.restarts == 1 and received.zero_bytes < SIZE


def test_nothing_of_a_wrong_body_is_left(fetch, proxy):
    proxy.programme(Fault(body=b"\xff" * (SIZE + MIB)))
    assert fetch(proxy.url("/image")).zero_bytes == zero_bytes_of_content()


def zero_bytes_of_content():
    blocks = [CONTENT[start : start + 65536] for start in range(0, SIZE, 65536)]
    return sum(len(block) for block in blocks if not any(block))


def test_a_bit_that_flips_every_time_fails_after_the_second_body(fetch, proxy):
    proxy.programme(then=itertools.repeat(Fault(flip=2 * MIB)))
    fetch.fails(ChecksumMismatch, proxy.url("/image"))
    assert len(proxy.gets) == 2


def test_an_image_replaced_between_attempts_is_read_from_its_start(fetch, proxy):
    proxy.programme(Fault(cut=MIB, headers={"ETag": '"before"'}, flip=7))
    assert fetch(proxy.url("/image"), expected=None).restarts == 1


def test_an_image_of_another_size_between_attempts_is_read_from_its_start(fetch, proxy):
    proxy.programme(Fault(cut=MIB, body=CONTENT[: SIZE - 9]), Fault(), Fault(framing="chunked"))
    assert fetch(proxy.url("/image")).restarts == 1


def test_an_image_that_is_replaced_all_the_time_is_given_up(fetch, proxy):
    proxy.programme(then=(Fault(cut=MIB, body=CONTENT[: SIZE - number]) for number in itertools.count()))
    fetch.fails(TransferFailed, proxy.url("/image"), retries=2)


@pytest.mark.parametrize("host", ["127.0.0.1", "nowhere.invalid"])
def test_a_server_that_is_not_there_is_named_in_bounded_time(fetch, pauses, host):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    assert f"{host}:{port}" in fetch.fails(ConnectionRefused, f"http://{host}:{port}/image")
    assert len(pauses) == 5 and sum(pauses) < 25


@pytest.mark.parametrize(
    "url", ["ftp://host/", "/image", "http://", "http://host:99999/", "http://[::1/", "http://a:0/"]
)
def test_what_is_no_address_is_refused(fetch, url):
    fetch.fails(InvalidOption, url)


def test_a_header_that_http_does_not_allow_is_refused_and_not_shown(fetch, proxy):
    for value in ("secret\nX-Other: 1", "secret€"):
        assert "secret" not in fetch.fails(InvalidOption, proxy.url("/image"), headers={"X-Key": value})


def test_a_body_of_unknown_size_has_a_limit(fetch, proxy):
    proxy.programme(then=itertools.repeat(Fault(framing="close")))
    fetch.fails(ImageTooLarge, proxy.url("/image"), limit=len(CONTENT) - 1)
    fetch(proxy.url("/image"), limit=len(CONTENT))


@pytest.mark.parametrize("fault", [Fault(cut=20, framing="chunked"), Fault(cut=20, drop_range=True)])
def test_a_list_of_checksums_is_read_from_its_start_where_the_connection_broke(proxy, folder, fault):
    (folder / "SUMS").write_text(f"{DIGEST.value}  image\n")
    asked = (f"sha512:{proxy.url('/SUMS')}", proxy.url("/image"), HttpOptions(retries=2))
    proxy.programme(fault, Fault(drop_range=True))
    assert read_checksum(*asked) == DIGEST
    proxy.programme(then=itertools.repeat(Fault(cut=20, drop_range=True)))
    with pytest.raises(TransferFailed, match="2 fresh starts"):
        read_checksum(*asked)


def test_a_rate_limit_is_held_evenly(fetch, proxy, monkeypatch):
    """By a clock that runs only while the transfer sleeps, so that nothing depends on this machine's speed."""
    clock = [1000.0]
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(pacing, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    fetch(proxy.url("/image"), len(CONTENT), rate_limit=1024**2)
    assert sum(slept) == pytest.approx(len(CONTENT) / 1024**2, rel=0.01)
    assert max(slept) <= 0.26
