# SPDX-License-Identifier: GPL-3.0-or-later
"""An upload ends with the whole image, verified, or with an error and no image that looks whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import subprocess
import sys
import threading
import time

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    AccessDenied,
    ChecksumMismatch,
    ConnectionRefused,
    ConnectionTimedOut,
    FerryError,
    FormatMismatch,
    ImageNotFound,
    InvalidOption,
    NoSpace,
    QuotaExceeded,
    RedirectRefused,
    SizeMismatch,
    TlsUntrusted,
    TokenExpired,
    TransferFailed,
    Unverifiable,
    UploadConflict,
)
from ansible_collections.imageferry.glance.plugins.module_utils._transfer import upload as upload_module
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.digest import Digest
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.exchange import HttpOptions
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.upload import check_stored, upload
from faulty_proxy import LocalServer

from .conftest import CONTENT, make_content
from .image_service import ImageService, PutFault
from .test_secrets import Tokens, _WebProxy, make_certificate

SIZE = len(CONTENT)
SHA512 = Digest("sha512", hashlib.sha512(CONTENT).hexdigest())
MD5 = Digest("md5", hashlib.md5(CONTENT).hexdigest())
BIG = make_content(12 * 1024**2 + 5)  # more than the sockets between hold
HTML = b"<html>\n <head><title>A title</title></head>\n <body>\n  <h1>A heading</h1>\n  %b<br /><br />\n</body></html>"


class Bytes:
    """A body of bytes, in one buffer that is used again for each piece.

    :param length: what it says that it has; all of it if None.
    :param error: raised after C(error_at) bytes.
    """

    def __init__(self, content=CONTENT, repeatable=True, length=None, error=None, error_at=0, step=100_000):
        self.length = len(content) if length is None else length
        self.repeatable = repeatable
        self.made = self.closed = 0
        self._content, self._error, self._error_at, self._step = content, error, error_at, step

    def pieces(self):
        self.made += 1
        buffer = bytearray(self._step)
        try:
            for start in range(0, len(self._content), self._step):
                piece = self._content[start : start + self._step]
                if self._error and start + len(piece) > self._error_at:
                    raise self._error
                buffer[:] = bytes(self._step)
                buffer[: len(piece)] = piece
                yield memoryview(buffer)[: len(piece)]
            if self._error:
                raise self._error
        finally:
            self.closed += 1


class Progress:
    def __init__(self):
        self.told = []

    def advance(self, position, size):
        self.told.append((position, size))


@pytest.fixture
def service():
    service = ImageService()
    yield service
    service.stop()


def send(service, body=None, progress=None, algorithms=("sha512", "md5"), **options):
    settings = HttpOptions(**{"timeout": 5, "token": "token0", **options})
    try:
        return upload(body or Bytes(), service.file_url, settings, progress or Progress(), algorithms)
    finally:
        assert "stage" not in [thread.name for thread in threading.enumerate()]


def fails(error, service, body=None, **options):
    body = body or Bytes()
    with pytest.raises(error) as caught:
        send(service, body, **options)
    assert body.made == body.closed
    assert "token0" not in str(caught.value) and "token1" not in str(caught.value)
    return str(caught.value)


def received(service):
    """The bytes of the first PUT, once the service has seen its end."""
    until = time.monotonic() + 5
    while not service.received and time.monotonic() < until:
        time.sleep(0.01)
    return service.received[0]


@pytest.fixture
def impatient(monkeypatch):
    """Does not wait as long as one has to wait for a real Glance."""
    monkeypatch.setattr(upload_module, "_INTERRUPTION_NOTICED", 1)
    monkeypatch.setattr(upload_module, "_ANSWER_TIMEOUT", 1)
    monkeypatch.setattr(upload_module, "_POLL", 0.05)


# --- what arrives ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1000, 2**20, 2**22])
def test_all_bytes_arrive_with_their_length_and_are_verified(service, step):
    body, progress = Bytes(step=step), Progress()
    sent = send(service, body, progress)
    assert service.data == CONTENT and len(service.puts) == 1
    headers = service.puts[0].headers
    assert headers["content-length"] == headers["x-openstack-image-size"] == str(SIZE)
    assert headers["content-type"] == "application/octet-stream" and headers["x-auth-token"] == "token0"
    assert "transfer-encoding" not in headers
    assert sent.digests == (SHA512, MD5) and sent.verified == SHA512 and sent.restarts == 0
    assert progress.told[-1] == (SIZE, SIZE) and progress.told == sorted(progress.told)
    assert (body.made, body.closed) == (1, 1)
    described = sent.to_dict()
    assert (described["bytes"], described["resumed_from"], described["restarts"]) == (SIZE, 0, 0)
    assert described["rate"] == pytest.approx(SIZE / sent.seconds, rel=0.01)


@pytest.mark.parametrize("size", [1, 2**20, 2**21])
def test_a_body_of_any_size_arrives(service, size):
    content = make_content(size)
    send(service, Bytes(content))
    assert service.data == content


def test_an_empty_body_is_sent_as_one_and_has_to_be_one(service):
    send(service, Bytes(b""))
    assert service.puts[0].headers["content-length"] == "0" and "transfer-encoding" not in service.puts[0].headers
    assert service.record["status"] == "active"
    service.record["status"] = "queued"
    fails(SizeMismatch, service, Bytes(length=0))
    assert len(service.puts) == 1


def test_other_hashes_can_be_made(service):
    sent = send(service, algorithms=("sha256",))
    assert sent.digests == (Digest("sha256", hashlib.sha256(CONTENT).hexdigest()),) and sent.verified is None
    service.record["status"] = "queued"
    fails(Unverifiable, service, algorithms=("sha3000",))
    assert len(service.puts) == 1


@pytest.mark.parametrize("length", [SIZE - 1, SIZE + 1, SIZE - 2**20, SIZE + 2**20, 1])
def test_a_body_of_another_length_than_it_said_is_never_whole(service, length):
    fails(SizeMismatch, service, Bytes(length=length))
    assert received(service) < length and service.record["status"] != "active" and len(service.puts) == 1


@pytest.mark.parametrize("error", [NoSpace("full"), BrokenPipeError("pipe"), ConnectionResetError("nbd"), ValueError()])
@pytest.mark.parametrize("error_at", [0, SIZE // 2, SIZE + 1])
def test_an_error_of_the_source_goes_through_unchanged_and_leaves_nothing_whole(service, error, error_at):
    error.__cause__ = cause = KeyError("cause")
    with pytest.raises(type(error)) as caught:
        send(service, Bytes(error=error, error_at=error_at))
    assert caught.value is error and error.__cause__ is cause and error.__context__ is None
    assert received(service) < SIZE and service.record["status"] != "active" and len(service.puts) == 1


# --- when the image may be sent -----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["active", "saving", "deactivated"])
def test_an_image_that_is_not_queued_gets_no_bytes(service, status):
    service.record["status"] = status
    assert status in fails(UploadConflict, service)
    assert service.puts == []


def test_an_image_that_is_not_there_gets_no_bytes(service):
    service.record["status"] = "deleted"
    fails(ImageNotFound, service)
    assert service.puts == []


def test_an_expired_token_is_renewed_before_a_byte_is_made(service):
    service.valid_tokens = {"token1"}
    tokens, body = Tokens(), Bytes(repeatable=False)
    send(service, body, tokens=tokens)
    assert [seen.headers["x-auth-token"] for seen in service.puts] == ["token1"] and tokens.count == body.made == 1


def test_a_token_that_expires_on_the_way_is_renewed_for_the_last_look(service):
    class Expiring(Bytes):
        def pieces(self):
            yield from super().pieces()
            service.valid_tokens = {"token1"}

    tokens = Tokens()
    send(service, Expiring(BIG), tokens=tokens)
    assert tokens.count == 1 and len(service.puts) == 1


def test_a_token_that_the_put_finds_expired_is_renewed_and_the_body_sent_again(service):
    class Expiring(Bytes):
        def pieces(self):
            yield from super().pieces()
            service.valid_tokens = {"token1"}

    service.programme(PutFault(status=401))
    tokens = Tokens()
    sent = send(service, Expiring(BIG), tokens=tokens)
    assert [seen.headers["x-auth-token"] for seen in service.puts] == ["token0", "token1"]
    assert (tokens.count, sent.restarts) == (1, 1)


def test_a_token_that_nobody_renews_ends_it(service):
    service.valid_tokens = set()
    fails(TokenExpired, service)
    fails(TokenExpired, service, tokens=Tokens())
    fails(AccessDenied, service, token=None)
    assert service.puts == []


def test_a_record_that_cannot_be_read_at_first_is_asked_for_again(service, pauses):
    service.get_answers = [(503, {"Retry-After": "0"}), (502, {}), (429, {})]
    send(service)
    assert len(service.puts) == 1 and pauses == [1, 2]
    service.record["status"], service.get_answers = "queued", [(503, {})] * 3
    fails(TransferFailed, service, retries=2)
    assert len(service.puts) == 1


def test_an_address_of_no_image_is_refused(service):
    for url in (service.url("/v2/images/1"), service.url("/v2/images/1/file?x"), "ftp://host/file"):
        with pytest.raises(InvalidOption):
            upload(Bytes(), url, HttpOptions(), Progress())
    service.get_answers = [(200, {})]
    fails(TransferFailed, service)


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [(403, AccessDenied), (404, ImageNotFound), (409, UploadConflict), (410, ImageNotFound), (413, QuotaExceeded),
     (415, FormatMismatch), (400, TransferFailed)],
)  # fmt: skip
@pytest.mark.parametrize(("read", "reset"), [(None, False), (100_000, False), (100_000, True)])
def test_a_refusal_is_final_and_told_in_the_services_words(service, status, error, read, reset):
    words = HTML % b"The quota of &quot;demo&quot;\n is &lt;used&gt; up."
    service.programme(PutFault(read, status, words, reset=reset))
    body = Bytes(BIG)
    message = fails(error, service, body)
    assert str(status) in message and 'The quota of "demo" is <used> up. ' in message and "A " not in message
    assert len(service.puts) == body.made == 1


@pytest.mark.parametrize("reset", [False, True])
def test_an_early_refusal_is_heard_through_tls(tmp_path, reset):
    both, cert = make_certificate(tmp_path, "IP:127.0.0.1")
    secure = ImageService(both)
    secure.programme(PutFault(100_000, 413, HTML % b"Too much.", reset=reset))
    try:
        assert "Too much" in fails(QuotaExceeded, secure, Bytes(BIG), verify=str(cert), retries=0)
    finally:
        secure.stop()


def test_words_are_cut_and_hold_no_token(service):
    service.programme(PutFault(None, 403, HTML % (b"X-Auth-Token: token0 " + b"long " * 1000)))
    message = fails(AccessDenied, service)
    assert "X-Auth-Token: ***" in message and len(message) < 600
    service.record["status"] = "queued"
    service.programme(PutFault(None, 403, b"\xff\xfe<p"))
    assert "403" in fails(AccessDenied, service)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_refused_and_gets_neither_body_nor_token(service, code):
    other = ImageService()
    try:
        for target in (other.file_url + "?secret=1", "/v2/images/2/file", "http://[::1/"):
            service.record["status"] = "queued"
            service.programme(PutFault(None, code, headers={"Location": target}))
            assert "secret=1" not in fails(RedirectRefused, service)
        assert other.seen == [] and len(service.puts) == 3
        assert all(seen.path == "/v2/images/1/file" for seen in service.puts)
    finally:
        other.stop()


@pytest.mark.parametrize(
    "claims", [{"os_hash_value": "0" * 128}, {"checksum": "0" * 32}, {"os_hash_algo": None, "checksum": "0" * 32}]
)
def test_an_image_that_is_stored_with_another_hash_is_found_out(service, claims):
    service.programme(PutFault(stores=True, claims=claims))
    assert "0" * 32 in fails(ChecksumMismatch, service)
    assert len(service.puts) == 1


def test_an_image_that_is_stored_with_another_size_is_found_out(service):
    service.programme(PutFault(stores=True, claims={"size": SIZE - 1}))
    assert str(SIZE - 1) in fails(SizeMismatch, service)


def test_what_is_stored_is_judged_by_the_best_hash_that_both_have():
    sent = (SHA512, MD5)
    full = {"size": 5, "os_hash_algo": "sha512", "os_hash_value": SHA512.value, "checksum": MD5.value}
    assert check_stored(full, 5, sent) == SHA512
    assert check_stored({**full, "os_hash_algo": "sha256", "os_hash_value": "1"}, 5, sent) == MD5
    assert check_stored({"size": 5, "checksum": MD5.value}, 5, sent) == MD5
    assert check_stored({"size": 5, "os_hash_algo": None, "os_hash_value": None, "checksum": None}, 5, sent) is None
    assert check_stored(full, 5, ()) is None
    for image in ({}, {"size": None}, {"size": 6}):
        with pytest.raises(SizeMismatch):
            check_stored(image, 5, sent)


def test_the_judgement_needs_no_requests():
    program = f"import sys; sys.modules['requests'] = None; import {upload_module.__name__}"
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "PYTHONPATH": ":".join(sys.path)})


# --- what breaks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("read", [0, 100_000, 9 * 1024**2, None])
def test_a_broken_connection_is_begun_anew_once_the_image_is_queued(service, pauses, read, reset):
    service.programme(PutFault(read, status=0, reset=reset), PutFault(read, status=0, reset=reset))
    sent = send(service, Bytes(BIG))
    assert service.data == BIG and len(service.puts) == 3 and sent.restarts == 2 and pauses == [0.5, 1]
    assert sent.to_dict()["restarts"] == 2


def test_an_attempt_that_the_service_is_still_at_is_waited_for(service):
    service.programme(PutFault(100_000, status=0), PutFault(100_000, 409), PutFault(status=409))
    assert send(service, Bytes(BIG)).restarts == 3 and service.data == BIG


def test_there_are_only_so_many_attempts(service):
    service.programme(*[PutFault(100_000, status=0)] * 9)
    assert "2 retries" in fails(TransferFailed, service, Bytes(BIG), retries=2)
    assert len(service.puts) == 3


def test_a_body_that_can_be_made_only_once_is_sent_only_once(service):
    service.programme(PutFault(100_000, status=0))
    assert "second time" in fails(TransferFailed, service, Bytes(BIG, repeatable=False))
    assert len(service.puts) == 1


@pytest.mark.parametrize("repeatable", [False, True])
def test_an_answer_that_is_lost_after_success_is_success(service, repeatable):
    service.programme(PutFault(status=0, stores=True))
    sent = send(service, Bytes(repeatable=repeatable))
    assert len(service.puts) == 1 and sent.restarts == 0 and sent.verified == SHA512


def test_a_gateway_that_gives_up_before_the_service_has_stored_it_is_no_failure(service):
    service.programme(PutFault(status=504, stores=True, saving=1.5))
    send(service, Bytes(repeatable=False))
    assert len(service.puts) == 1


def test_an_answer_that_is_lost_after_success_is_still_verified(service):
    service.programme(PutFault(status=0, stores=True, claims={"os_hash_value": "0" * 128}))
    fails(ChecksumMismatch, service)


def test_somebody_elses_image_is_not_taken_for_ours(service):
    service.programme(PutFault(100_000, status=0, becomes="active"))
    service.record.update(size=len(BIG), os_hash_algo="sha512", os_hash_value=hashlib.sha512(BIG).hexdigest())
    assert "somebody else" in fails(UploadConflict, service, Bytes(BIG))
    assert len(service.puts) == 1


def test_an_image_that_stays_saving_is_not_sent_again(service, impatient):
    service.programme(PutFault(100_000, status=0, becomes="saving"))
    assert "Delete the image" in fails(TransferFailed, service, Bytes(BIG))
    assert len(service.puts) == 1


def test_a_service_that_has_failed_is_not_waited_for_as_one_that_may_still_store_it(service, monkeypatch):
    monkeypatch.setattr(upload_module, "_INTERRUPTION_NOTICED", 1)
    service.programme(PutFault(None, 500, becomes="saving"))
    started = time.monotonic()
    assert "saving since" in fails(TransferFailed, service)
    assert time.monotonic() - started < 60 and len(service.puts) == 1


def test_an_image_that_is_deleted_meanwhile_ends_it(service):
    service.programme(PutFault(100_000, status=0, becomes="deleted"))
    fails(ImageNotFound, service, Bytes(BIG))
    assert len(service.puts) == 1


@pytest.mark.parametrize("status", [503, 429, 500, 502, 504])
def test_a_busy_service_is_left_alone_as_long_as_it_says(service, pauses, status):
    service.programme(PutFault(None, status, headers={"Retry-After": "1"}))
    started = time.monotonic()
    sent = send(service)
    assert time.monotonic() - started > 0.9 and pauses == [] and sent.restarts == 1
    service.record["status"] = "queued"
    service.programme(*[PutFault(None, status, HTML % b"Busy.")] * 2)
    assert "Busy" in fails(TransferFailed, service, retries=1)


def test_a_service_that_takes_nothing_is_given_up(service):
    service.programme(PutFault(0, status=0, stall=4))
    started = time.monotonic()
    assert "timed out" in fails(TransferFailed, service, Bytes(BIG), timeout=1, retries=0)
    assert time.monotonic() - started < 6


def test_a_service_that_takes_too_little_is_given_up(tmp_path, impatient):
    both, cert = make_certificate(tmp_path, "IP:127.0.0.1")
    secure = ImageService(both)  # with TLS, no step is ever late, as each of its records is timed by itself
    secure.programme(PutFault(rate=500_000))
    try:
        options = {"verify": str(cert), "timeout": 3, "retries": 0, "min_speed": 1024**2}
        assert "fewer than" in fails(TransferFailed, secure, Bytes(BIG), **options)
    finally:
        secure.stop()


def test_a_service_that_never_answers_is_given_up_and_not_as_soon(service, impatient, monkeypatch):
    monkeypatch.setattr(upload_module, "_ANSWER_TIMEOUT", 2)
    service.programme(PutFault(status=204, stall=5))
    started = time.monotonic()
    assert "no answer" in fails(ConnectionTimedOut, service, Bytes(CONTENT[:1000]), timeout=0.5, retries=0)
    assert 2 < time.monotonic() - started < 5


def test_a_service_that_takes_long_to_answer_is_waited_for(service):
    service.programme(PutFault(stall=2, stores=True))
    assert send(service, Bytes(CONTENT[:1000]), timeout=0.5).restarts == 0
    assert [seen.method for seen in service.seen] == ["GET", "PUT", "GET"]


def test_nobody_there_is_said_so():
    service = ImageService()
    service.stop()
    fails(ConnectionRefused, service, retries=1)


def test_a_rate_limit_is_kept_to(service):
    started = time.monotonic()
    send(service, rate_limit=2 * 1024**2)
    assert 1.4 < time.monotonic() - started < 4


# --- who is trusted -------------------------------------------------------------------------------------------------


def test_a_certificate_that_is_not_right_is_refused_before_a_byte_is_made(tmp_path):
    both, cert = make_certificate(tmp_path, "IP:127.0.0.1")
    secure, body = ImageService(both), Bytes()
    try:
        fails(TlsUntrusted, secure, body)
        assert body.made == 0 and secure.seen == []
        send(secure, body, verify=str(cert))
        assert secure.data == CONTENT
    finally:
        secure.stop()


def test_a_client_certificate_is_shown(tmp_path):
    both, cert = make_certificate(tmp_path, "IP:127.0.0.1")
    secure = ImageService(both, cert)
    try:
        send(secure, verify=str(cert), client_cert=str(both))
        assert secure.data == CONTENT
    finally:
        secure.stop()


def test_the_environments_proxy_is_used(tmp_path, monkeypatch):
    both, cert = make_certificate(tmp_path, "IP:127.0.0.1")
    secure, web_proxy = ImageService(both), LocalServer(_WebProxy)
    web_proxy.asked = []
    monkeypatch.setenv("https_proxy", web_proxy.url())
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    try:
        send(secure, verify=str(cert))
        assert secure.data == CONTENT and web_proxy.asked == [f"127.0.0.1:{secure.port}"] * 2
    finally:
        secure.stop()
        web_proxy.stop()


def test_memory_does_not_grow_with_the_body(service):
    class Long:
        repeatable = False
        length = 256 * 1024**2

        def pieces(self):
            piece = bytes(1024**2)
            yield from (memoryview(piece) for _number in range(256))

    service.keep_data = False
    send(service)
    service.record["status"] = "queued"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(FerryError):
        send(service, Long())
    assert service.record["size"] == Long.length
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 * 1024
