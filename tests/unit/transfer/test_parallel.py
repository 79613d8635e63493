# SPDX-License-Identifier: GPL-3.0-or-later
"""Several connections bring what one would, faster where that can be, and never something else."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
import time

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    AccessDenied,
    InvalidOption,
    TokenExpired,
    TransferFailed,
)
from ansible_collections.imageferry.glance.plugins.module_utils._transfer import parallel
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.digest import Digest
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.exchange import HttpOptions, Token
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.parallel import (
    ParallelSource,
    Tuner,
    parse_connections,
)
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.receive import Reception
from faulty_proxy import GOOD, Fault

from .conftest import Watcher
from .test_secrets import Tokens

MIB = 1024**2
LARGE = random.Random(1).randbytes(41 * MIB + 777)
SIZE = len(LARGE)


class Memory:
    """A sink that can be looked into."""

    zero_bytes = 0

    def __init__(self):
        self.restart()

    def restart(self):
        self.data = bytearray()

    def write(self, buffer, length, offset):
        assert offset == len(self.data)
        self.data += buffer[:length]

    def finish(self, size):
        assert size == len(self.data)


@pytest.fixture(scope="module", autouse=True)
def large(folder):
    (folder / "large").write_bytes(LARGE)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Many parts of an object that is not very large."""
    monkeypatch.setattr(parallel, "_SEGMENT", 4 * MIB)


@pytest.fixture
def carry(proxy):
    def run(size=SIZE, connections=4, **options):
        options = {"timeout": 5, **options, "connections": connections}
        source, sink = ParallelSource(proxy.url("/large"), size, HttpOptions(**options)), Memory()
        expected = Digest("sha512", hashlib.sha512(LARGE).hexdigest())
        with contextlib.closing(source):
            received = Reception(source, sink, expected, lambda head, size: None, Watcher()).run()
        assert sink.data == LARGE
        return received

    return run


def ranges(proxy):
    return [seen.headers["range"] for seen in proxy.gets if "range" in seen.headers]


@pytest.mark.parametrize("connections", [2, 3, 4, 16])
def test_parts_are_put_together_in_order(carry, proxy, connections):
    received = carry(connections=connections)
    assert 2 <= received.connections <= connections and (received.reconnects, received.restarts) == (0, 0)
    asked = [tuple(map(int, text[6:].split("-"))) for text in ranges(proxy)]
    assert len(asked) > 5 and max(end for _start, end in asked) == SIZE - 1
    assert all(end - start < 4 * MIB for start, end in asked)
    assert len(asked) == len(set(asked)), "nothing is fetched twice"


def test_several_are_faster_where_each_is_slow(carry, proxy):
    seconds = {}
    for connections in (1, 4):
        proxy.programme(then=itertools.repeat(Fault(rate=20 * MIB)))
        seconds[connections] = carry(connections=connections).seconds
    assert seconds[4] < 0.6 * seconds[1], seconds


@pytest.mark.parametrize("size", [SIZE, None])
def test_the_size_may_be_learned(carry, size):
    assert carry(size=size).connections == 4


@pytest.mark.parametrize("fault", [Fault(framing="chunked"), Fault(framing="close")])
def test_a_body_of_unknown_size_is_one_stream(carry, proxy, fault):
    proxy.programme(then=itertools.repeat(fault))
    assert carry(size=None).connections == 1 and len(proxy.gets) == 1


@pytest.mark.parametrize(
    "answer",
    [
        Fault(status=400),
        Fault(status=416),
        Fault(drop_range=True),
        Fault(status=403),
        Fault(status=206, body=b"x" * 10, headers={"Content-Range": f"bytes 1-10/{SIZE}"}),
        Fault(headers={"ETag": '"another"'}),
    ],
)
def test_a_server_without_parts_is_read_on_as_one_stream(carry, proxy, answer):
    proxy.programme(Fault(rate=100 * MIB), then=itertools.repeat(answer))
    received = carry()
    assert (received.reconnects, received.restarts) == (0, 0)
    assert sum("range" not in seen.headers for seen in proxy.gets) == 1


def test_an_object_replaced_between_parts_is_read_from_its_start(carry, proxy):
    changed = Fault(headers={"ETag": '"another"'})
    proxy.programme(*[GOOD] * 6, then=itertools.chain([changed] * 5, itertools.repeat(GOOD)))
    assert carry().restarts == 1


@pytest.mark.parametrize(
    "fault", [Fault(cut=MIB), Fault(cut=MIB + 1, reset=True), Fault(cut=0), Fault(cut=MIB, stall=3)]
)
def test_a_part_that_breaks_is_fetched_again(carry, proxy, fault):
    proxy.programme(*[GOOD] * 5, fault)
    received = carry(timeout=1)
    assert received.reconnects == 1 and received.restarts == 0


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_is_busy_gets_fewer_connections(carry, proxy, status):
    busy = Fault(status=status, headers={"Retry-After": "1"})
    proxy.programme(*[GOOD] * 5, busy)
    started = time.monotonic()
    received = carry()
    assert received.restarts == 0 and time.monotonic() - started > 0.9
    proxy.programme(GOOD, then=itertools.repeat(Fault(status=status)))
    assert carry().connections >= 2, "the stream that was there first has brought all of it"


def test_a_server_that_refuses_a_further_connection_is_read_over_one(carry, proxy):
    proxy.programme(*[GOOD] * 6, Fault(status=403))
    received = carry()
    assert received.connections == 4 and received.restarts == 0
    assert any(asked.endswith("-") for asked in ranges(proxy)), "the stream has read on to the end"


def test_a_server_that_fails_for_good_is_given_up(carry, proxy):
    proxy.programme(*[GOOD] * 6, then=itertools.repeat(Fault(cut=10)))
    with pytest.raises(TransferFailed, match="2 retries"):
        carry(retries=2)
    proxy.programme(*[GOOD] * 6, then=itertools.repeat(Fault(status=403)))
    with pytest.raises(AccessDenied):
        carry()


def test_a_token_is_renewed_once_for_all(carry, proxy):
    proxy.programme(*[GOOD] * 5, Fault(status=401))
    tokens = Tokens()
    carry(token="token0", tokens=tokens)
    sent = [seen.headers["x-auth-token"] for seen in proxy.gets]
    assert tokens.count == 1 and {"token0", "token1"} == set(sent)
    shared = Token(HttpOptions(token="old", tokens=tokens))
    shared.renew("old")
    shared.renew("old")
    assert tokens.count == 2, "who comes second with the old token gets the new one"
    proxy.programme(*[GOOD] * 6, then=itertools.repeat(Fault(status=401)))
    with pytest.raises(TokenExpired):
        carry(token="token0")


def test_a_token_that_is_refused_to_several_at_the_same_time_is_renewed_once(carry, proxy, monkeypatch):
    """A renewal takes a while, in which the other parts are refused as well."""
    renew = Tokens.renew
    monkeypatch.setattr(Tokens, "renew", lambda self: time.sleep(0.5) or renew(self))
    tokens = Tokens()
    proxy.expire("token0", 8 * MIB)
    received = carry(token="token0", tokens=tokens)
    assert len(proxy.refused) > 1 and tokens.count == 1
    assert (received.reconnects, received.restarts) == (0, 0)
    assert len(ranges(proxy)) == len(set(ranges(proxy))) + len(proxy.refused), (
        "only what was refused is asked for again"
    )


def test_a_rate_limit_is_for_all_of_them(carry):
    assert carry(rate_limit=40 * MIB).seconds >= 0.8 * SIZE / (40 * MIB)  # longer on a busy machine


def test_no_more_is_held_than_fits(proxy, monkeypatch):
    """A reader that pauses: what has come by then is bounded, however fast the network is."""
    made = []
    pieces = bytearray
    monkeypatch.setattr(parallel, "bytearray", lambda size: made.append(size) or pieces(size), raising=False)
    source = ParallelSource(proxy.url("/large"), SIZE, HttpOptions(connections=16))
    with contextlib.closing(source), memoryview(pieces(MIB)) as view:
        assert source.readinto(view) + source.readinto(view) == 2 * MIB
    assert 0 < sum(made) <= 16 * MIB


def measure(tuner, rates, waiting=1.0, size=10**12, steps=100, begin=1000.0):
    """Runs a tuner on a clock of its own against a network that brings rates[connections]; what it chose each time."""
    clock, position, waited, chosen = begin, 0, 0.1, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel.time, "monotonic", lambda: clock)
        for _step in range(steps):
            count = tuner.choose(position, size, waited)
            chosen.append(count)
            clock += 0.1
            position += int(rates[count] * 0.1)
            waited += 0.1 * waiting
    return chosen


def test_more_are_kept_only_if_they_are_faster():
    chosen = measure(Tuner(None), {1: 50e6, 4: 200e6})
    assert chosen[-1] == 4 and chosen.index(4) <= 10, "found out within a second"
    chosen = measure(Tuner(None), {1: 50e6, 4: 55e6})
    assert 4 in chosen and chosen[-1] == 1
    assert chosen.count(4) < 0.15 * len(chosen), "what does not pay is not tried for long"


def test_connections_that_get_fast_late_get_a_longer_trial():
    """Over a long way: the second trial, which lasts longer, sees what the first has not."""
    slow, tuner = {1: 50e6, 4: 50e6}, Tuner(None)
    assert measure(tuner, slow, steps=20)[-1] == 1
    chosen = measure(tuner, {1: 50e6, 4: 200e6}, steps=200, begin=1002.0)
    assert chosen[:100].count(4) == 0 and chosen[-1] == 4


def test_nothing_is_tried_where_it_cannot_pay():
    assert set(measure(Tuner(None), {1: 50e6}, waiting=0.5)) == {1}
    assert set(measure(Tuner(None), {1: 50e6}, size=int(120e6))) == {1}
    assert set(measure(Tuner(None), {1: 310e6})) == {1}


def test_a_refusal_while_it_tries_more_has_it_try_fewer(monkeypatch):
    tuner = Tuner(None)
    assert measure(tuner, {1: 50e6, 4: 200e6}, steps=8)[-1] == 4
    with monkeypatch.context() as patch:
        patch.setattr(parallel.time, "monotonic", lambda: 1001.0)
        tuner.use_fewer(0)
    chosen = measure(tuner, {1: 50e6, 2: 100e6}, begin=1001.0)
    assert chosen[0] == 1 and chosen[-1] == 2


@pytest.mark.parametrize("text", ["0", "17", "-1", "many", "", "1.5", "²"])
def test_what_is_no_number_of_connections_is_refused(text):
    with pytest.raises(InvalidOption):
        parse_connections(text)
    assert (parse_connections("auto"), parse_connections("16")) == (None, 16)
