# SPDX-License-Identifier: GPL-3.0-or-later
"""Tokens and headers reach the server they are for, renewed when they have to be, and no other."""

from __future__ import annotations

import http.client
import http.server
import itertools
import select
import socket
import ssl
import subprocess
import time

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    AccessDenied,
    FerryError,
    RedirectRefused,
    TlsUntrusted,
    TokenExpired,
)
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.exchange import HttpOptions, public_url
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.source import HttpSource
from faulty_proxy import Fault, FaultyProxy, FileServer, LocalServer

from .conftest import CONTENT

SIZE = len(CONTENT)
DENIED = Fault(status=401)


class Tokens:
    """Brings a new token each time it is asked."""

    def __init__(self):
        self.count = 0

    def renew(self):
        self.count += 1
        return f"token{self.count}"


def sent_tokens(proxy):
    return [seen.headers.get("x-auth-token") for seen in proxy.gets]


def test_a_token_that_expires_in_the_middle_is_renewed_once(fetch, proxy):
    proxy.programme(Fault(cut=SIZE // 2), DENIED)
    tokens = Tokens()
    received = fetch(proxy.url("/image"), SIZE, token="token0", tokens=tokens)
    assert sent_tokens(proxy) == ["token0", "token0", "token1"]
    assert (tokens.count, received.restarts) == (1, 0)


def test_each_refused_token_is_renewed_once(fetch, proxy):
    proxy.programme(DENIED, Fault(cut=SIZE // 2), DENIED)
    tokens = Tokens()
    fetch(proxy.url("/image"), SIZE, token="token0", tokens=tokens)
    assert sent_tokens(proxy) == ["token0", "token1", "token1", "token2"]


def test_a_new_token_that_is_refused_as_well_ends_it(fetch, proxy):
    proxy.programme(then=itertools.repeat(DENIED))
    tokens = Tokens()
    assert "the one that replaced it" in fetch.fails(TokenExpired, proxy.url("/image"), token="token0", tokens=tokens)
    assert tokens.count == 1


def test_a_token_that_nobody_renews_ends_it(fetch, proxy):
    proxy.programme(DENIED)
    fetch.fails(TokenExpired, proxy.url("/image"), token="token0")
    proxy.programme(DENIED)
    fetch.fails(AccessDenied, proxy.url("/image"))


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_port_gets_no_secret(fetch, proxy, other_proxy, code):
    proxy.programme(Fault(status=code, headers={"Location": other_proxy.url("/image"), "Set-Cookie": "a=secret"}))
    url = proxy.url("/image").replace("//", "//user:secret@")
    fetch(url, headers={"X-Key": "secret", "Authorization": "secret", "Cookie": "secret"})
    assert len(other_proxy.seen) == 1 and "secret" not in repr(other_proxy.seen)
    assert not {"authorization", "cookie", "x-key"} & set(other_proxy.seen[0].headers)


def test_a_redirect_of_a_token_to_another_port_or_host_is_refused(fetch, proxy, other_proxy):
    for target in (other_proxy.url("/image"), proxy.url("/image", host="localhost")):
        proxy.programme(Fault(status=302, headers={"Location": target}))
        seen = len(proxy.seen)
        fetch.fails(RedirectRefused, proxy.url("/image"), token="token0")
        assert len(proxy.seen) == seen + 1 and other_proxy.seen == []


def test_a_redirect_on_the_same_server_keeps_what_the_server_has_to_get(fetch, proxy):
    proxy.programme(Fault(status=302, headers={"Location": "/image?signed"}))
    fetch(proxy.url("/other"), token="token0", headers={"X-Key": "key"})
    assert [seen.path for seen in proxy.seen] == ["/other", "/image?signed"]
    assert all(seen.headers["x-key"] == "key" for seen in proxy.seen) and sent_tokens(proxy) == ["token0"] * 2


def test_user_information_in_the_address_stays_on_its_server(fetch, proxy):
    proxy.programme(Fault(status=302, headers={"Location": "/image"}))
    fetch(proxy.url("/other").replace("//", "//me:pass%40word@"))
    assert {seen.headers["authorization"] for seen in proxy.seen} == {"Basic bWU6cGFzc0B3b3Jk"}


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/", "file:///etc/passwd", "http://[::1/", "http://a:99999/"])
def test_a_redirect_to_nowhere_is_refused(fetch, proxy, target):
    proxy.programme(Fault(status=302, headers={"Location": target}))
    fetch.fails(RedirectRefused, proxy.url("/image"))


def test_the_body_of_a_redirect_is_not_waited_for(fetch, proxy):
    proxy.programme(Fault(status=302, headers={"Location": "/image"}, body=b"wait", cut=2, stall=3))
    started = time.monotonic()
    fetch(proxy.url("/other"))
    assert time.monotonic() - started < 2


def test_a_circle_of_redirects_is_refused(fetch, proxy):
    proxy.programme(then=itertools.repeat(Fault(status=302, headers={"Location": "/image"})))
    assert "circles" in fetch.fails(RedirectRefused, proxy.url("/image"))
    assert len(proxy.seen) < 10


def test_a_header_of_the_user_does_not_disturb_the_transfer(fetch, proxy):
    proxy.programme(Fault(cut=SIZE // 2))
    fetch(proxy.url("/image"), SIZE, headers={"range": "bytes=0-", "accept-encoding": "gzip"})
    assert proxy.gets[1].headers["range"] == f"bytes={SIZE // 2}-"
    assert proxy.gets[0].headers["accept-encoding"] == "identity"


def test_netrc_is_not_read(fetch, proxy, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("default login me password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    fetch(proxy.url("/image"))
    assert "authorization" not in proxy.seen[0].headers


def test_a_public_url_shows_nothing_that_may_be_secret():
    assert public_url("https://me:secret@host:1/a/b?token=secret#secret") == "https://host:1/a/b"


# --- TLS ---------------------------------------------------------------------------------------------------------


def make_certificate(folder, name, days="2"):
    """A certificate for C(name) with its key in one file, signed by itself, or expired."""
    key, cert, request, both = (folder / file for file in ("key", "cert", "request", "both"))
    subject = ["-subj", f"/CN={name}", "-addext", f"subjectAltName={name}"]
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key]
    sign = ["openssl", "x509", "-req", "-in", request, "-key", key, "-days", days, "-copy_extensions", "copy"]
    for command in (["openssl", "req", *new_key, *subject, "-out", request], [*sign, "-out", cert]):
        subprocess.run(command, check=True, capture_output=True)
    both.write_text(key.read_text() + cert.read_text())
    return both, cert


@pytest.mark.parametrize(
    ("name", "days", "trusted"), [("IP:127.0.0.1", "2", False), ("DNS:other", "2", True), ("IP:127.0.0.1", "-1", True)]
)
def test_a_certificate_that_is_not_right_is_refused_at_once(fetch, folder, tmp_path, pauses, name, days, trusted):
    both, cert = make_certificate(tmp_path, name, days)
    server = FileServer(folder, both)
    try:
        fetch.fails(TlsUntrusted, server.url("/image"), verify=str(cert) if trusted else True)
    finally:
        server.stop()
    assert pauses == []


def test_a_right_certificate_is_accepted_and_never_left_for_plain_text(fetch, server, folder, tmp_path):
    both, cert = make_certificate(tmp_path, "IP:127.0.0.1")
    proxy = FaultyProxy(server.url(), both)
    try:
        fetch(proxy.url("/image"), verify=str(cert))
        fetch.path.unlink()
        proxy.programme(Fault(status=302, headers={"Location": server.url("/image")}))
        fetch.fails(RedirectRefused, proxy.url("/image"), verify=str(cert), headers={"X-Key": "secret"})
        proxy.programme(Fault(cut=SIZE // 2, reset=True))
        fetch(proxy.url("/image"), SIZE, verify=str(cert))
    finally:
        proxy.stop()


def test_plain_text_where_tls_is_expected_is_refused_at_once(fetch, proxy, pauses):
    fetch.fails(TlsUntrusted, proxy.url("/image").replace("http:", "https:"))
    assert pauses == []


def test_a_checksum_list_gets_no_secret_of_another_server(proxy, other_proxy):
    proxy.programme(Fault(status=302, headers={"Location": other_proxy.url("/image")}))
    other_proxy.programme(Fault(status=200, body=b"list"))
    source = HttpSource(proxy.url("/sums"), None, HttpOptions(headers={"X-Key": "secret"}))
    assert source.read_text() == "list"
    assert "secret" in repr(proxy.seen) and "secret" not in repr(other_proxy.seen)
    source.close()


@pytest.fixture
def strict(folder, tmp_path):
    """A server that talks to nobody without the certificate, and that file."""
    both, cert = make_certificate(tmp_path, "IP:127.0.0.1")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=cert)
    context.load_cert_chain(both)
    context.verify_mode = ssl.CERT_REQUIRED
    server = FileServer(folder)
    server._server.socket = context.wrap_socket(server._server.socket, server_side=True)
    server._scheme = "https"
    yield server, both, cert
    server.stop()


def test_a_client_certificate_opens_its_server_and_is_shown_to_no_other(fetch, proxy, strict):
    server, both, cert = strict
    fetch(server.url("/image"), verify=str(cert), client_cert=(str(both), str(both)))
    fetch.path.unlink()
    fetch(server.url("/image"), verify=str(cert), client_cert=str(both))
    fetch.path.unlink()
    fetch.fails(FerryError, server.url("/image"), verify=str(cert), retries=0)
    target = Fault(status=302, headers={"Location": server.url("/image")})
    proxy.programme(target)
    fetch.fails(FerryError, proxy.url("/image"), verify=str(cert), client_cert=str(both), retries=0)


class _WebProxy(http.server.BaseHTTPRequestHandler):
    """Forwards plain requests, and tunnels others with CONNECT (RFC 9110, 9.3.6)."""

    def do_GET(self):
        self.server.owner.asked.append(self.path)
        parts = self.path.split("/", 3)
        connection = http.client.HTTPConnection(parts[2])
        connection.request("GET", "/" + parts[3])
        answer = connection.getresponse()
        self.send_response(answer.status)
        self.send_header("Content-Length", answer.headers["Content-Length"])
        self.end_headers()
        self.wfile.write(answer.read())

    def do_CONNECT(self):
        self.server.owner.asked.append(self.path)
        host, port = self.path.split(":")
        with socket.create_connection((host, int(port))) as there:
            self.send_response(200)
            self.end_headers()
            ways = {self.connection: there, there: self.connection}
            while ready := select.select(list(ways), [], [], 10)[0]:
                for end in ready:
                    data = end.recv(65536)
                    if not data:
                        return
                    ways[end].sendall(data)

    def log_message(self, format, *args):
        pass


def test_the_environments_proxy_is_used(fetch, server, folder, tmp_path, monkeypatch):
    web_proxy = LocalServer(_WebProxy)
    web_proxy.asked = []
    both, cert = make_certificate(tmp_path, "IP:127.0.0.1")
    secure = FileServer(folder, both)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, web_proxy.url())
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    try:
        fetch(server.url("/image"), connections=1)
        fetch.path.unlink()
        fetch(secure.url("/image"), verify=str(cert), connections=1)
        fetch.path.unlink()
        assert web_proxy.asked == [server.url("/image"), f"127.0.0.1:{secure.port}"]
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        fetch(server.url("/image"), connections=1)
        assert len(web_proxy.asked) == 2
    finally:
        secure.stop()
        web_proxy.stop()
