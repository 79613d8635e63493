# SPDX-License-Identifier: GPL-3.0-or-later
"""A network that fails on purpose: a proxy before a real server, and a plain server of files with ranges.

Each GET that the proxy gets takes the next fault of its programme; when there is none left, it is passed on whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import http.server
import os
import re
import shutil
import socket
import ssl
import struct
import threading
import time
import typing as t
import urllib.parse
from pathlib import Path

_PIECE = 64 * 1024


@dataclasses.dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer; with nothing set, nothing does.

    :param status: answered in place of the server's answer, with C(body).
    :param headers: added to the answer's headers or put in their place; None takes one away.
    :param body: sent in place of the server's body.
    :param extra: sent after the body.
    :param cut: the bytes of the body after which the connection ends.
    :param reset: it ends with RST, not FIN.
    :param stall: seconds of silence before the end.
    :param trickle: bytes a second.
    :param rate: bytes a second, evenly.
    :param flip: the offset of the byte in the answer's body of which a bit is turned.
    :param framing: V(length), V(chunked), or V(close) for a body that only the connection's end ends.
    :param drop_range: the server gets no Range header.
    """

    status: int | None = None
    headers: t.Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    body: bytes | None = None
    extra: bytes = b""
    cut: int | None = None
    reset: bool = False
    stall: float = 0
    trickle: int | None = None
    rate: int | None = None
    flip: int | None = None
    framing: str = "length"
    drop_range: bool = False


GOOD = Fault()


class Seen(t.NamedTuple):
    """A request as the proxy got it; the names of its headers in lower case."""

    method: str
    path: str
    headers: dict[str, str]


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: t.Any, client_address: t.Any) -> None:
        """A client that goes away is part of the plan."""


class LocalServer:
    """A server on loopback, from its making to C(stop).

    :param certificate: of the server, and its key; there is TLS if it is given.
    :param client_ca: who signed the certificates of clients, which have to have one if it is given.
    """

    def __init__(
        self,
        handler: type[http.server.BaseHTTPRequestHandler],
        certificate: Path | None = None,
        client_ca: Path | None = None,
    ) -> None:
        self._server = _Server(("127.0.0.1", 0), handler)
        self._server.owner = self  # type: ignore[attr-defined]
        self._scheme = "http"
        if certificate is not None:
            self._scheme = "https"
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            if client_ca is not None:
                context.load_verify_locations(client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"{self._scheme}://{host}:{self.port}{path}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class FileServer(LocalServer):
    """Serves the files of a folder, whole or one range of them, as servers of mirrors do."""

    def __init__(self, folder: Path, certificate: Path | None = None) -> None:
        self.folder = folder
        super().__init__(_FileHandler, certificate)


class _FileHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.server.owner.folder / os.path.basename(urllib.parse.urlsplit(self.path).path)  # type: ignore
        if not path.is_file():
            self.send_error(404)
            return
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start, end = 0, size
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if asked:
                start, end = int(asked[1]), min(int(asked[2] or size) + 1, size)
                if start >= size:
                    self.send_error(416)
                    return
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(end - start))
            self.send_header("ETag", f'"{os.fstat(file.fileno()).st_mtime_ns}"')
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
            self.end_headers()
            file.seek(start)
            if self.command == "GET" and start == 0:
                shutil.copyfileobj(file, self.wfile)
            elif self.command == "GET":
                self.wfile.write(file.read(end - start))

    def log_message(self, format: str, *args: t.Any) -> None:
        """Says nothing."""


class FaultyProxy(LocalServer):
    """Passes requests on to C(upstream), and answers back with the faults of its programme."""

    def __init__(self, upstream: str, certificate: Path | None = None, client_ca: Path | None = None) -> None:
        parts = urllib.parse.urlsplit(upstream)
        self.upstream = (parts.hostname or "", parts.port or 80)
        self.seen: list[Seen] = []
        self.refused: list[Seen] = []
        self._faults: t.Iterator[Fault] = iter(())
        self._expired: tuple[str, int] | None = None
        self._sending, self.most_at_once, self._lock = 0, 0, threading.Lock()
        super().__init__(_ProxyHandler, certificate, client_ca)

    def programme(self, *faults: Fault, then: t.Iterable[Fault] = ()) -> None:
        """Sets what happens to each GET from now on: C(faults), then C(then), which may be endless."""
        self._faults = (fault for part in (faults, then) for fault in part)

    def expire(self, token: str, position: int) -> None:
        """Refuses C(token) to who asks for bytes from C(position) on."""
        self._expired = (token, position)

    def next_fault(self, seen: Seen) -> Fault:
        """What goes wrong with the answer to C(seen)."""
        if self._expired is not None and seen.headers.get("x-auth-token") == self._expired[0]:
            begin = re.match(r"bytes=(\d+)", seen.headers.get("range", "bytes=0"))
            if begin is not None and int(begin[1]) >= self._expired[1]:
                self.refused.append(seen)
                return Fault(status=401)
        return next(self._faults, GOOD)

    @contextlib.contextmanager
    def sending(self, path: str) -> t.Iterator[None]:
        """Counts a file that is sent meanwhile; C(most_at_once) is how many there were at the same time."""
        count = path.endswith("/file")
        with self._lock:
            self._sending += count
            self.most_at_once = max(self.most_at_once, self._sending)
        try:
            yield
        finally:
            with self._lock:
                self._sending -= count

    @property
    def gets(self) -> list[Seen]:
        return [seen for seen in self.seen if seen.method == "GET"]


class _ProxyHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._pass_on()

    def do_GET(self) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        proxy: FaultyProxy = self.server.owner  # type: ignore[attr-defined]
        headers = {name.lower(): value for name, value in self.headers.items()}
        seen = Seen(self.command, self.path, dict(headers))
        proxy.seen.append(seen)
        fault = proxy.next_fault(seen) if self.command == "GET" else GOOD
        self.close_connection = True
        if fault.status is not None:
            self._send_head(fault.status, {"Content-Length": str(len(fault.body or b""))}, fault)
            self._send_body(iter([fault.body or b""]), fault)
            return
        if fault.drop_range:
            headers.pop("range", None)
        connection = http.client.HTTPConnection(*proxy.upstream, timeout=30)
        with contextlib.closing(connection), proxy.sending(self.path):
            connection.request(self.command, self.path, headers={**headers, "connection": "close"})
            answer = connection.getresponse()
            self._send_head(answer.status, dict(answer.getheaders()), fault)
            pieces = iter(lambda: answer.read(_PIECE), b"") if fault.body is None else iter([fault.body])
            self._send_body(pieces, fault)

    def _send_head(self, status: int, headers: dict[str, str], fault: Fault) -> None:
        headers = {name.title(): value for name, value in headers.items()}
        headers.pop("Transfer-Encoding", None)
        headers["Connection"] = "close"
        if fault.body is not None:
            headers["Content-Length"] = str(len(fault.body))
        if fault.framing != "length":
            headers.pop("Content-Length", None)
        if fault.framing == "chunked":
            headers["Transfer-Encoding"] = "chunked"
        self.send_response_only(status)
        headers.update({name.title(): value for name, value in fault.headers.items()})  # type: ignore[misc]
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()

    def _send_body(self, pieces: t.Iterator[bytes], fault: Fault) -> None:
        offset, started = 0, time.monotonic()
        for whole in (*pieces, fault.extra) if fault.extra else pieces:
            piece = bytearray(whole)
            if fault.flip is not None and offset <= fault.flip < offset + len(piece):
                piece[fault.flip - offset] ^= 1
            if fault.cut is not None and offset + len(piece) >= fault.cut:
                self._send_piece(piece[: fault.cut - offset], fault)
                self._end_early(fault)
                return
            self._send_piece(piece, fault)
            offset += len(piece)
            if fault.rate:
                time.sleep(max(0.0, started + offset / fault.rate - time.monotonic()))
        time.sleep(fault.stall)
        if fault.framing == "chunked":
            self.wfile.write(b"0\r\n\r\n")

    def _send_piece(self, piece: bytearray, fault: Fault) -> None:
        step = max(1, fault.trickle // 10) if fault.trickle else len(piece) or 1
        for start in range(0, len(piece), step):
            part = piece[start : start + step]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part) if fault.framing == "chunked" else part)
            if fault.trickle:
                time.sleep(0.1)

    def _end_early(self, fault: Fault) -> None:
        self.wfile.flush()
        time.sleep(fault.stall)
        if fault.reset:
            time.sleep(0.1)  # so that what was sent is read before the RST throws it away
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # shutdown() would send a FIN first; detach() keeps http.server from it
            os.close(self.connection.detach())

    def log_message(self, format: str, *args: t.Any) -> None:
        """Says nothing."""
