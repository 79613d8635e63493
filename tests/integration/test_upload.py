# SPDX-License-Identifier: GPL-3.0-or-later
"""An upload to a real Glance: what it makes of a body that is whole, interrupted, too long, refused or in vain."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import socket
import socketserver
import struct
import threading
import urllib.parse

import pytest
import requests
from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    AccessDenied,
    FormatMismatch,
    ImageNotFound,
    QuotaExceeded,
    SizeMismatch,
    TransferFailed,
    UploadConflict,
)
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.control import SilentControl
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.digest import Digest
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.exchange import HttpOptions
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.upload import upload
from embedded_cloud import read_access_log

from .conftest import MIB, connect, running_cloud, wait_for

QUOTA = 64 * MIB
CONTENT = secrets.token_bytes(9 * MIB + 77)
SHA512 = Digest("sha512", hashlib.sha512(CONTENT).hexdigest())


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    with running_cloud(tmp_path_factory.mktemp("cloud"), size_quota=QUOTA) as running:
        yield running


class Body:
    """Bytes, and what happens half way and at their end."""

    def __init__(self, content=CONTENT, length=None, half_way=None, at_end=None, repeatable=True):
        self.length = len(content) if length is None else length
        self.repeatable = repeatable
        self._content, self._half_way, self._at_end = content, half_way or (lambda: None), at_end or (lambda: None)

    def pieces(self):
        half = len(self._content) // 2
        yield self._content[:half]
        self._half_way()
        yield self._content[half:]
        self._at_end()


class Image:
    """A new image in the cloud, without bytes yet."""

    def __init__(self, cloud, disk_format="raw", user="demo"):
        self.cloud, self.session = cloud, connect(cloud, user).image
        asked = {"name": secrets.token_hex(4), "disk_format": disk_format, "container_format": "bare"}
        self.id = self.session.post("/images", json=asked).json()["id"]

    def send(self, body, base_url=None, user="demo", **options):
        options = {"token": connect(self.cloud, user).auth_token, "timeout": 20, **options}
        url = f"{base_url or self.cloud.image_url}/v2/images/{self.id}/file"
        return upload(body, url, HttpOptions(**options), SilentControl())

    def fails(self, error, *args, **options):
        with pytest.raises(error) as caught:
            self.send(*args, **options)
        assert "gAAAA" not in str(caught.value)  # as all tokens of Keystone begin
        return str(caught.value)

    @property
    def record(self):
        return self.session.get(f"/images/{self.id}").json()

    def settle(self):
        """The status once Glance has noticed that the upload has ended."""
        path = f"/v2/images/{self.id}/file"
        log = self.cloud.glance_access_log
        wait_for(lambda: any((each.method, each.path) == ("PUT", path) for each in read_access_log(log)))
        return self.record["status"]

    def delete(self):
        self.session.delete(f"/images/{self.id}")

    @property
    def content(self):
        return self.session.get(f"/images/{self.id}/file").content


@pytest.fixture
def image(cloud):
    image = Image(cloud)
    yield image
    image.delete()


def test_an_image_is_uploaded_whole_and_verified(image):
    sent = image.send(Body())
    record = image.record
    assert (record["status"], record["size"]) == ("active", len(CONTENT)) and image.content == CONTENT
    assert sent.verified == SHA512 == sent.digests[0]
    assert sent.digests[1] == Digest("md5", record["checksum"]) and sent.to_dict()["bytes"] == len(CONTENT)


def raises(error):
    def happen():
        raise error

    return happen


@pytest.mark.parametrize("when", ["half_way", "at_end"])
def test_an_error_of_the_source_never_makes_an_active_image_and_the_image_can_be_used_again(image, when):
    error = OSError(5, "the disk is broken")
    with pytest.raises(OSError, match="broken") as caught:
        image.send(Body(**{when: raises(error)}))
    assert caught.value is error
    assert image.settle() == "queued" and image.record["size"] is None
    image.send(Body())
    assert image.content == CONTENT


@pytest.mark.parametrize("length", [len(CONTENT) - 1, len(CONTENT) + 1, 100])
def test_a_body_of_another_length_than_it_said_never_makes_an_active_image(image, length):
    image.fails(SizeMismatch, Body(length=length))
    assert image.settle() == "queued"
    image.send(Body())
    assert image.record["status"] == "active"


def test_an_image_that_has_bytes_gets_no_others(image):
    image.send(Body())
    assert "active" in image.fails(UploadConflict, Body(b"other"))
    assert image.content == CONTENT


def test_a_second_upload_to_one_image_disturbs_the_first_as_little(image):
    refused = []

    def interfere():
        wait_for(lambda: image.record["status"] == "saving")
        refused.append(image.fails(UploadConflict, Body(b"other")))

    image.send(Body(half_way=interfere))
    assert "saving" in refused[0] and image.content == CONTENT


def test_an_image_over_the_quota_is_refused(cloud, image):
    # Glance judges by what is there before an upload: a project may go beyond its quota once.
    with contextlib.ExitStack() as stack:
        full = Image(cloud)
        stack.callback(full.delete)
        full.send(Body(bytes(QUOTA)))
        message = image.fails(QuotaExceeded, Body())
        assert "413" in message and "image_size_total" in message and "<" not in message
        assert image.settle() == "queued"
    image.send(Body())
    assert image.record["status"] == "active"


def test_bytes_of_another_format_than_the_images_are_refused(cloud):
    image = Image(cloud, "qcow2")
    message = image.fails(FormatMismatch, Body())
    assert "415" in message and "qcow2" in message and "<" not in message
    assert image.settle() == "queued"
    image.delete()


def test_an_image_that_is_deleted_meanwhile_is_said_so(image):
    image.fails(ImageNotFound, Body(half_way=image.delete))


def test_a_user_who_may_not_is_refused(cloud):
    image = Image(cloud)
    image.fails(AccessDenied, Body(), user="reader")
    assert image.settle() == "queued"
    image.delete()


class Tokens:
    """Brings new tokens.

    :param used: those that it brought.
    """

    def __init__(self, cloud):
        self._cloud = cloud
        self.used = []

    def renew(self):
        self.used.append(connect(self._cloud).auth_token)
        return self.used[-1]


def test_a_token_that_is_no_good_any_more_is_renewed(cloud, image):
    token = connect(cloud).auth_token
    headers = {"X-Auth-Token": token, "X-Subject-Token": token}
    requests.delete(f"{cloud.auth_url}/auth/tokens", headers=headers, timeout=20).raise_for_status()
    tokens = Tokens(cloud)
    image.send(Body(repeatable=False), token=token, tokens=tokens)
    assert image.content == CONTENT and len(tokens.used) == 1


# --- between here and Glance ----------------------------------------------------------------------------------------


class Relay(socketserver.ThreadingTCPServer):
    """Hands connections on to Glance, and fails those that bring a PUT.

    :param cut: the bytes after which the first such connection is reset; None to let all bytes and no answer pass.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, target, cut):
        self.target, self.cut, self.puts = urllib.parse.urlsplit(target), cut, 0
        super().__init__(("127.0.0.1", 0), _RelayHandler)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class _RelayHandler(socketserver.BaseRequestHandler):
    def handle(self):
        with socket.create_connection((self.server.target.hostname, self.server.target.port)) as there:
            first = self.request.recv(65536)
            is_put = first.startswith(b"PUT")
            self.server.puts += is_put
            fails = is_put and (self.server.cut is None or self.server.puts == 1)
            answers = threading.Thread(target=self.bring_back, args=(there, not fails), daemon=True)
            answers.start()
            passed, data = 0, first
            while data:
                with contextlib.suppress(OSError):
                    there.sendall(data)
                passed += len(data)
                if fails and self.server.cut is not None and passed > self.server.cut:
                    there.shutdown(socket.SHUT_RDWR)
                    self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    os.close(self.request.detach())
                    return
                data = self.request.recv(65536)

    def bring_back(self, there, whole):
        with contextlib.suppress(OSError):
            while data := there.recv(65536):
                if not whole:
                    self.request.shutdown(socket.SHUT_RDWR)
                    return
                self.request.sendall(data)


@pytest.fixture
def relay(cloud):
    relays = []

    def start(cut):
        relays.append(Relay(cloud.image_url, cut))
        return relays[-1]

    yield start
    for each in relays:
        each.shutdown()
        each.server_close()


def test_an_upload_that_is_cut_off_is_begun_anew_once_glance_has_noticed(image, relay):
    between = relay(3 * MIB)
    sent = image.send(Body(), between.url)
    assert between.puts == sent.restarts + 1 > 1 and sent.verified == SHA512 and image.content == CONTENT


def test_an_upload_that_is_cut_off_and_cannot_be_repeated_leaves_the_image_queued(image, relay):
    between = relay(3 * MIB)
    image.fails(TransferFailed, Body(repeatable=False), between.url)
    assert between.puts == 1 and image.record["status"] == "queued"


def test_an_upload_whose_answer_is_lost_is_done(image, relay):
    between = relay(None)
    sent = image.send(Body(repeatable=False), between.url)
    assert (between.puts, sent.restarts) == (1, 0) and sent.verified == SHA512 and image.content == CONTENT
