# SPDX-License-Identifier: GPL-3.0-or-later
"""An image service with one image, that fails on purpose where the real Glance cannot be made to."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import json
import os
import socket
import struct
import time
import typing as t

from faulty_proxy import LocalServer, Seen

_PIECE = 64 * 1024


@dataclasses.dataclass(frozen=True)
class PutFault:
    """What goes wrong with one PUT; with nothing set, nothing does.

    :param read: the bytes that are read before it happens; None for all.
    :param status: answered, with C(body) and C(headers); 0 answers nothing.
    :param stores: whether the image becomes active all the same.
    :param claims: what the image's record says of it then.
    :param becomes: the status that the image is left in otherwise.
    :param reset: the connection ends with RST, not FIN, as it does where a server closes it with bytes unread.
    :param stall: seconds of silence, in which nothing is read, before the answer.
    :param rate: bytes a second that are read.
    :param saving: seconds that the image takes to be active.
    """

    read: int | None = None
    status: int = 204
    body: bytes = b""
    headers: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    stores: bool = False
    claims: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    becomes: str = "queued"
    reset: bool = False
    stall: float = 0
    rate: int | None = None
    saving: float = 0


GOOD = PutFault(stores=True)


class ImageService(LocalServer):
    """Holds what was put there, as C(data), and the image's record.

    :param certificate: see L(LocalServer).
    """

    def __init__(self, certificate: t.Any = None, client_ca: t.Any = None) -> None:
        self.record: dict[str, t.Any] = {"status": "queued", "size": None}
        self.data = b""
        self.puts: list[Seen] = []
        self.seen: list[Seen] = []
        self.received: list[int] = []
        self.valid_tokens: set[str] | None = None
        self.get_answers: list[tuple[int, dict[str, str]]] = []
        self.keep_data = True
        self.active_at = 0.0
        self._faults: list[PutFault] = []
        super().__init__(_Handler, certificate, client_ca)

    def programme(self, *faults: PutFault) -> None:
        """Sets what happens to each PUT from now on."""
        self._faults = list(faults)

    def next_fault(self) -> PutFault:
        """What happens to this PUT."""
        return self._faults.pop(0) if self._faults else GOOD

    @property
    def file_url(self) -> str:
        """Where the image is put."""
        return self.url("/v2/images/1/file")


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        service = self._note()
        if self._refuses_token():
            return
        if service.get_answers:
            self._answer(*service.get_answers.pop(0))
            return
        record = service.record
        if record["status"] == "active" and time.monotonic() < service.active_at:
            record = {**record, "status": "saving"}
        if record["status"] == "deleted":
            self._answer(404)
        else:
            self._answer(200, body=json.dumps(record).encode())

    def do_PUT(self) -> None:
        service = self._note()
        service.puts.append(service.seen[-1])
        self.close_connection = True
        if self._refuses_token():
            return
        fault = service.next_fault()
        length = int(self.headers["Content-Length"])
        service.record["status"] = "saving"
        whole = self._read(length if fault.read is None else fault.read, fault.rate) == length
        time.sleep(fault.stall)
        service.record["status"] = fault.becomes
        if whole and fault.stores:
            service.active_at = time.monotonic() + fault.saving
            service.record.update(self._stored, **fault.claims)
        if fault.status and (whole or fault.status >= 300):
            self._answer(fault.status, fault.headers, fault.body)
        if fault.reset:
            time.sleep(0.1)  # so that the answer is there before the RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())

    def _note(self) -> ImageService:
        service: ImageService = self.server.owner  # type: ignore[attr-defined]
        headers = {name.lower(): value for name, value in self.headers.items()}
        service.seen.append(Seen(self.command, self.path, headers))
        return service

    def _refuses_token(self) -> bool:
        service: ImageService = self.server.owner  # type: ignore[attr-defined]
        refused = service.valid_tokens is not None and self.headers.get("X-Auth-Token") not in service.valid_tokens
        if refused:
            self._answer(401)
        return refused

    def _read(self, wanted: int, rate: int | None) -> int:
        service: ImageService = self.server.owner  # type: ignore[attr-defined]
        hashes, data, count = (hashlib.sha512(), hashlib.md5()), [], 0
        started = time.monotonic()
        while count < wanted and (piece := self.rfile.read1(min(wanted - count, _PIECE))):
            count += len(piece)
            for hasher in hashes:
                hasher.update(piece)
            if service.keep_data:
                data.append(piece)
            if rate:
                time.sleep(max(0.0, started + count / rate - time.monotonic()))
        service.data = b"".join(data)
        service.received.append(count)
        self._stored = {
            "status": "active", "size": count, "os_hash_algo": "sha512", "os_hash_value": hashes[0].hexdigest(),
            "checksum": hashes[1].hexdigest(),
        }  # fmt: skip
        return count

    def _answer(self, status: int, headers: t.Mapping[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: t.Any) -> None:
        """Says nothing."""
