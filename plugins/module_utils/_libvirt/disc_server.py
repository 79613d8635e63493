# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A program of its own that lets a guest's QEMU read an image where Glance holds it.

It speaks NBD to QEMU, over a Unix socket, and asks Glance for parts of the image. It outlives the task that starts it,
and so imports nothing but Python's own library. It ends, and removes its folder, once nobody has been connected to it
for a while. See https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md.

    python3 -I server.py FOLDER

C(settings.json) in FOLDER holds L(Settings), C(token) the token, which may be replaced at any time. What goes wrong is
written to standard error.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import http.client
import json
import os
import shutil
import socketserver
import ssl
import struct
import sys
import threading
import time
import typing as t
import urllib.parse

SETTINGS, TOKEN, LOCK, PID, CA, CERT, KEY = "settings.json", "token", "lock", "pid", "ca.pem", "cert.pem", "key.pem"

BLOCK = 512 * 1024
_KEPT_BLOCKS = 32
_IDLE_SECONDS = 60.0
_TIMEOUT = 30.0
_TRIES = 3
_POLL = 0.1
_SELINUX = "system_u:object_r:svirt_socket_t:s0"  # what a confined QEMU may connect to; see nbdkit(1), --selinux-label

_MAGIC, _OPTION_MAGIC, _REPLY_MAGIC = b"NBDMAGIC", b"IHAVEOPT", 0x3E889045565A9
_REQUEST, _RESPONSE = struct.Struct(">IHHQQI"), struct.Struct(">IIQ")
_REQUEST_MAGIC, _RESPONSE_MAGIC = 0x25609513, 0x67446698
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_HAS_FLAGS_AND_READ_ONLY = 1 | 2
_OPT_EXPORT_NAME, _OPT_ABORT, _OPT_INFO, _OPT_GO = 1, 2, 6, 7
_REP_ACK, _REP_INFO, _REP_UNSUPPORTED = 1, 3, (1 << 31) + 1
_READ, _WRITE, _DISCONNECT, _FLUSH = 0, 1, 2, 3
_EPERM, _EIO, _EINVAL = 1, 5, 22
_LONGEST = 32 * 1024**2


class Settings(t.TypedDict):
    """What is served.

    :param url: the image's address.
    :param size: its bytes.
    :param verify: whether to check the server's certificate.
    :param socket: the path of the Unix socket.
    :param patience: seconds for which a read waits for another token when Glance refuses the one that there is.
    """

    url: str
    size: int
    verify: bool
    socket: str
    patience: float


class ReadFailed(Exception):
    """Glance did not give the bytes."""


class Image:
    """The bytes of the image, block by block; those that were read last are kept.

    :param folder: with the token, and with the certificates that there are.
    """

    def __init__(self, settings: Settings, folder: str) -> None:
        self.size = settings["size"]
        self._url, self._verify, self._folder = urllib.parse.urlsplit(settings["url"]), settings["verify"], folder
        self._patience = settings["patience"]
        self._blocks: collections.OrderedDict[int, bytes] = collections.OrderedDict()
        self._lock = threading.Lock()
        self._connection: http.client.HTTPConnection | None = None

    def read(self, offset: int, length: int) -> bytes:
        """
        :raises ReadFailed: Glance cannot be reached, or refuses.
        """
        first, last = offset // BLOCK, (offset + length - 1) // BLOCK
        found = b"".join(self._block(number) for number in range(first, last + 1))
        return found[offset - first * BLOCK :][:length]

    def _block(self, number: int) -> bytes:
        with self._lock:
            if number not in self._blocks:
                self._blocks[number] = self._fetch(number * BLOCK, min(BLOCK, self.size - number * BLOCK))
            self._blocks.move_to_end(number)
            if len(self._blocks) > _KEPT_BLOCKS:
                self._blocks.popitem(last=False)
            return self._blocks[number]

    def _fetch(self, offset: int, length: int) -> bytes:
        """Asks Glance; once more where the connection has broken, or there is another token than the one refused."""
        token, broken, deadline = self._token(), 0, time.monotonic() + self._patience
        while True:
            try:
                status, content = self._request(token, offset, length)
            except (OSError, http.client.HTTPException) as err:
                self._close()
                broken += 1
                if broken == _TRIES:
                    raise ReadFailed(f"Glance cannot be reached: {err}") from err
                continue
            if status == 401:
                token = self._await_other(token, deadline)
            elif status != 206 or len(content) != length:  # a redirect among them: the token is for this server alone
                raise ReadFailed(f"Glance answered {status} with {len(content)} bytes to the request for {length}")
            else:
                return content

    def _await_other(self, refused: str, deadline: float) -> str:
        """The token that comes in the place of the one that Glance refuses."""
        while (token := self._token()) == refused:
            if time.monotonic() > deadline:
                raise ReadFailed("Glance refuses the token, which has expired")
            time.sleep(_POLL)
        return token

    def _token(self) -> str:
        with open(os.path.join(self._folder, TOKEN), encoding="ascii") as file:
            return file.read()

    def _request(self, token: str, offset: int, length: int) -> tuple[int, bytes]:
        if self._connection is None:
            self._connection = self._connect()
        headers = {"Range": f"bytes={offset}-{offset + length - 1}", "Accept-Encoding": "identity"}
        if token:
            headers["X-Auth-Token"] = token
        self._connection.request("GET", self._url.path, headers=headers)
        response = self._connection.getresponse()
        content = response.read(length + 1)
        if response.status == 206 and len(content) < length:
            raise http.client.IncompleteRead(content, length - len(content))
        if not response.isclosed():  # more than was asked for
            self._close()
        return response.status, content

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        if self._url.scheme != "https":
            return http.client.HTTPConnection(host, port, timeout=_TIMEOUT)
        return http.client.HTTPSConnection(host, port, timeout=_TIMEOUT, context=self._tls())

    def _tls(self) -> ssl.SSLContext:
        ca, cert, key = (os.path.join(self._folder, name) for name in (CA, CERT, KEY))
        context = ssl.create_default_context(cafile=ca if os.path.exists(ca) else None)
        if not self._verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if os.path.exists(cert):
            context.load_cert_chain(cert, key if os.path.exists(key) else None)
        return context

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _Client(socketserver.StreamRequestHandler):
    """One connection of QEMU's."""

    server: DiscServer

    def handle(self) -> None:
        """Serves it until it ends."""
        with self.server.counted(), contextlib.suppress(EOFError, ConnectionError):
            self.wfile.write(_MAGIC + _OPTION_MAGIC + struct.pack(">H", _FIXED_NEWSTYLE | _NO_ZEROES))
            (client_flags,) = struct.unpack(">I", self._receive(4))
            if self._negotiate(bool(client_flags & _NO_ZEROES)):
                while self._answer():
                    pass

    def _receive(self, length: int) -> bytes:
        received: bytes = self.rfile.read(length)
        if len(received) < length:
            raise EOFError
        return received

    def _negotiate(self, no_zeroes: bool) -> bool:
        """Whether the client goes on to read."""
        export = struct.pack(">QH", self.server.image.size, _HAS_FLAGS_AND_READ_ONLY)
        while True:
            magic, option, length = struct.unpack(">8sII", self._receive(16))
            if magic != _OPTION_MAGIC or length > _LONGEST:
                return False
            self._receive(length)
            if option == _OPT_EXPORT_NAME:
                self.wfile.write(export + (b"" if no_zeroes else bytes(124)))
                return True
            if option in (_OPT_INFO, _OPT_GO):
                self._reply(option, _REP_INFO, struct.pack(">H", 0) + export)
                self._reply(option, _REP_ACK)
                if option == _OPT_GO:
                    return True
            elif option == _OPT_ABORT:
                self._reply(option, _REP_ACK)
                return False
            else:
                self._reply(option, _REP_UNSUPPORTED)

    def _reply(self, option: int, kind: int, data: bytes = b"") -> None:
        self.wfile.write(struct.pack(">QIII", _REPLY_MAGIC, option, kind, len(data)) + data)

    def _answer(self) -> bool:
        """Answers one request; whether another may come."""
        magic, _flags, kind, handle, offset, length = _REQUEST.unpack(self._receive(_REQUEST.size))
        if magic != _REQUEST_MAGIC or kind == _DISCONNECT or length > _LONGEST:
            return False
        error, content = 0, b""
        if kind == _READ and length and offset + length <= self.server.image.size:
            try:
                content = self.server.image.read(offset, length)
            except (ReadFailed, OSError) as err:
                self.server.tell(str(err))
                error = _EIO
        elif kind == _WRITE:
            self._receive(length)
            error = _EPERM
        elif kind != _FLUSH:
            error = _EINVAL
        self.wfile.write(_RESPONSE.pack(_RESPONSE_MAGIC, error, handle) + content)
        return True


class DiscServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Serves an image at a Unix socket, to whoever may connect to it."""

    daemon_threads = True

    def __init__(self, path: str, image: Image) -> None:
        self.image = image
        self._clients, self._idle_since = 0, time.monotonic()
        self._lock = threading.Lock()
        self._told = ""
        super().__init__(path, _Client)

    @contextlib.contextmanager
    def counted(self) -> t.Iterator[None]:
        """Notes that somebody is connected."""
        with self._lock:
            self._clients += 1
        try:
            yield
        finally:
            with self._lock:
                self._clients -= 1
                self._idle_since = time.monotonic()

    def tell(self, message: str) -> None:
        """Notes what went wrong, once in a row."""
        if message != self._told:
            self._told = message
            sys.stderr.write(f"{message}\n")
            sys.stderr.flush()

    def service_actions(self) -> None:
        """Ends it once nobody needs it any more; called twice a second."""
        with self._lock:
            idle = not self._clients and time.monotonic() - self._idle_since > _IDLE_SECONDS
        if idle:
            threading.Thread(target=self.shutdown).start()


def main(folder: str) -> int:
    """Serves what is set in C(folder) until nobody needs it."""
    os.umask(0o177)
    with open(os.path.join(folder, SETTINGS), encoding="utf-8") as file:
        settings: Settings = json.load(file)
    with open(os.path.join(folder, LOCK), "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        image = Image(settings, folder)
        try:
            image.read(0, 1)
        except (ReadFailed, OSError) as err:
            sys.stderr.write(f"{err}\n")
            return 1
        with open(os.path.join(folder, PID), "w", encoding="ascii") as file:
            file.write(str(os.getpid()))
        _label_sockets()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(settings["socket"])
        with DiscServer(settings["socket"], image) as server:
            server.serve_forever()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(settings["socket"])
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _label_sockets() -> None:
    """Has new sockets be such that a QEMU may connect to them which SELinux confines."""
    if os.path.exists("/sys/fs/selinux/enforce"):
        with contextlib.suppress(OSError), open("/proc/thread-self/attr/sockcreate", "w", encoding="ascii") as file:
            file.write(_SELINUX)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
