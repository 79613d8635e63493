# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading an image over HTTP, from its first byte to its last, over as many connections as it takes."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import re
import ssl
import threading
import time
import typing as t
import urllib.parse
from dataclasses import dataclass, field

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    AccessDenied,
    ConnectionRefused,
    ConnectionTimedOut,
    FerryError,
    ImageNotFound,
    ImageNotReady,
    InvalidOption,
    MissingDependency,
    RedirectRefused,
    SizeMismatch,
    TlsUntrusted,
    TokenExpired,
    TransferFailed,
    describe_cause,
    innermost_cause,
)

if t.TYPE_CHECKING:
    import requests
    import urllib3

_SLICE = 4096
_MAX_REDIRECTS = 5
_MAX_PAUSE = 60.0
_CONNECT_TIMEOUT = 10.0
_RETRIED = {408, 429, 500, 502, 503, 504}
_NUMBER = re.compile(r"[0-9]{1,19}")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")


def _import_requests() -> None:
    """Imports what takes so long to import that a run with nothing to read goes without it.

    :raises MissingDependency: it is not installed.
    """
    global requests, urllib3  # noqa: PLW0603
    try:
        import requests
        import urllib3
    except ImportError as err:  # pragma: no cover - the hosts of the tests have it
        raise MissingDependency(
            "Python's requests is not installed on this host.", "Install python3-requests."
        ) from err


class TokenSupply(t.Protocol):
    """Whoever can replace an expired token."""

    def renew(self) -> str:
        """A token other than the one that was refused.

        :raises TokenExpired: there will be none.
        """


@dataclass
class HttpOptions:
    """How to talk to a server.

    :param headers: sent with each request, never to another host; a token is not among them.
    :param token: sent as X-Auth-Token, never to another host.
    :param tokens: replaces the token once the server refuses it.
    :param verify: whether to check the server's certificate, or the path of the CA certificates to check it by.
    :param timeout: the seconds after which a connection is given up that brought no byte, or fewer than C(min_speed).
    :param retries: how often in a row to try again without getting any further, and how often to start over.
    :param min_speed: the bytes a second that a connection has to bring.
    :param rate_limit: the bytes a second that are asked of it at most; None for all that it brings.
    :param client_cert: the paths of a client certificate and its key, or of one file with both; never shown to another
        host.
    :param connections: how many to use at once, where there are several; None for as many as pay.
    """

    headers: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    tokens: TokenSupply | None = None
    verify: bool | str = True
    timeout: float = 60
    retries: int = 5
    min_speed: int = 10 * 1024
    rate_limit: int | None = None
    client_cert: str | tuple[str, str] | None = None
    connections: int | None = None


class StartOver(Exception):
    """The server cannot continue where the last connection broke off: only a whole new body will do."""


class Lost(Exception):
    """A connection or an attempt failed in a way that is worth another try.

    :param failure: the error that it is once there were enough of them.
    :param pause: the seconds that the server wants to be left alone.
    :param answered: whether the server had begun to send what was asked for.
    """

    def __init__(
        self,
        reason: str,
        failure: type[FerryError] = TransferFailed,
        pause: float | None = None,
        *,
        answered: bool = True,
    ) -> None:
        super().__init__(reason)
        self.failure = failure
        self.pause = pause
        self.answered = answered


class _Pace:
    """Sees whether a connection brings at least so many bytes a second, over windows of some seconds each.

    Only the time spent waiting for the network counts: a slow disk is not the server's fault.
    """

    def __init__(self, min_speed: float, window: float) -> None:
        self.enough = min_speed * window
        self._window = window
        self._count = 0
        self._seconds = 0.0

    def is_too_slow(self, count: int, seconds: float) -> bool:
        """Notes C(count) bytes that took C(seconds) to come; whether a window has ended with too few."""
        self._count += count
        self._seconds += seconds
        if self._seconds < self._window:
            return False
        too_slow = self._count < self.enough
        self._count, self._seconds = 0, 0.0
        return too_slow


class _Brake:
    """Keeps a transfer to so many bytes a second, by not reading what would come sooner; TCP does the rest."""

    def __init__(self, rate: int | None) -> None:
        self._rate = rate
        self._free_at = 0.0  # the time until which the bytes read so far are to take

    def next_read(self, view: memoryview) -> memoryview:
        """As much of C(view) as may be filled at once, so that a slow transfer is an even one."""
        return view[: max(_SLICE, self._rate // 4)] if self._rate else view

    def hold(self, count: int) -> None:
        """Waits as long as C(count) bytes are to take."""
        if self._rate:
            self._free_at = max(self._free_at, time.monotonic()) + count / self._rate
            time.sleep(max(0.0, self._free_at - time.monotonic()))


class _Token:
    """The token of all connections to one object, replaced once for all of them when the server refuses it."""

    def __init__(self, options: HttpOptions) -> None:
        self.value = options.token
        self._tokens = options.tokens
        self._lock = threading.Lock()

    def renew(self, refused: str) -> None:
        """Has another value than C(refused).

        :raises TokenExpired: there is none.
        """
        with self._lock:
            if self.value != refused:
                return
            if self._tokens is None:
                raise TokenExpired("The token expired before the transfer ended.")
            self.value = self._tokens.renew()


class HttpSource:
    """An object on an HTTP server, read as one stream.

    :param url: where it is.
    :param size: its size in bytes as promised by others, None if nobody did; learned from the server then.
    :raises MissingDependency: this host has no python3-requests.
    :raises InvalidOption: C(url) is not an address that can be used.
    """

    def __init__(self, url: str, size: int | None, options: HttpOptions) -> None:
        _import_requests()
        try:
            parts = urllib.parse.urlsplit(url)
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise InvalidOption(f"'{public_url(url)}' is not an HTTP or HTTPS address.")
        self.url = url
        self.size = size
        self.position = 0
        self.reconnects = 0
        self.restarts = 0
        self.connections = 1
        self.waited = 0.0  # seconds spent waiting for the network
        self._promised = size
        self._options = options
        self._token = _Token(options)
        self._auth = _basic_auth(parts.username, parts.password) if parts.username else _no_auth
        self._entity: tuple[str | None, str | None] | None = None
        self._response: requests.Response | None = None
        self._left: int | None = None  # bytes of this body still to come, None where only its end will tell
        self._pace = _Pace(options.min_speed, options.timeout)
        self._brake = _Brake(options.rate_limit)
        self._failures = 0
        self._failed_at = 0
        self._ranges_work = True
        self._session = requests.Session()
        # requests would read the body of a redirect to its end, in memory, though it is told not to follow.
        self._session.resolve_redirects = lambda *_args, **_kwargs: iter(())  # type: ignore[method-assign]

    def close(self) -> None:
        """Ends the connection."""
        self.hang_up()
        self._session.close()

    def begin_at(self, position: int) -> None:
        """Has the first request ask for what comes from C(position) on, as the bytes before are there already."""
        self.position = position

    def restart(self, why: StartOver | FerryError) -> None:
        """Goes back to the first byte, and asks for no ranges any more; waits before, longer each time.

        :raises FerryError: C(why), as it was started over C(retries) times already.
        """
        self.hang_up()
        if self.restarts >= self._options.retries:
            if isinstance(why, FerryError):
                raise why
            raise TransferFailed(
                f"{public_url(self.url)} failed after {self.position} bytes and {self.restarts} fresh starts: {why}."
            )
        self.restarts += 1
        time.sleep(_backoff(self.restarts))
        self.position = self._failures = self._failed_at = 0
        self.size = self._promised
        self._ranges_work = False

    def learn_size(self) -> int | None:
        """Asks for the object's size without its bytes (HEAD); None where the server does not tell."""
        if self.size is None:
            with contextlib.suppress(FerryError, Lost), self._request("HEAD", {}) as response:
                if response.status_code == 200:
                    # Servers that make the body as they send it say 0 here.
                    self.size = _number(response.headers.get("Content-Length")) or None
        return self.size

    def read_text(self, limit: int = 1 << 20) -> str:
        """The whole object, a small text.

        :raises SizeMismatch: it has more than C(limit) bytes.
        """
        buffer = bytearray(limit + 1)
        with memoryview(buffer) as view:
            length = self.readinto(view)
        if length > limit:
            raise SizeMismatch(f"{public_url(self.url)} is larger than {limit} bytes.", "Check the address.")
        return buffer[:length].decode(errors="replace")

    def readinto(self, view: memoryview) -> int:
        """Fills C(view) with the next bytes; returns fewer than it holds only at the object's end.

        :raises StartOver: the connection broke, and the server cannot continue in the middle.
        :raises SizeMismatch: there are more bytes than there should be.
        :raises FerryError: it failed for good, or C(retries) times in a row.
        """
        filled = 0
        while filled < len(view) and (self.size is None or self.position < self.size):
            try:
                count = self._read(self.next_read(view[filled:]))
            except Lost as lost:
                self.lose(lost)
                continue
            if count == 0:
                self.size = self.position
                return filled
            filled += count
            self.advance(count)
        if filled < len(view):
            self._check_end()
        return filled

    def next_read(self, view: memoryview) -> memoryview:
        """As much of C(view) as the rate limit lets one fill at once."""
        return self._brake.next_read(view)

    def advance(self, count: int) -> None:
        """Notes C(count) bytes that have come, and takes the time for them that the rate limit says."""
        self.position += count
        self._brake.hold(count)
        if self.position - self._failed_at >= self._pace.enough:
            self._failures = 0

    def _read(self, view: memoryview) -> int:
        """The next bytes of the current connection, or of a new one; 0 at the end of an object of unknown size."""
        if self._response is None:
            self._connect()
        started = time.monotonic()
        count = self._read_body(view)
        seconds = time.monotonic() - started
        self.waited += seconds
        if count == 0 and self.size is not None:
            raise Lost(f"the connection ended after {self.position} of {self.size} bytes")
        if self._pace.is_too_slow(count, seconds):
            raise Lost(f"fewer than {self._options.min_speed} bytes a second arrived")
        return count

    def _read_body(self, view: memoryview) -> int:
        """What has arrived of the body, at least a byte; 0 at its end."""
        body: t.Any = self._response.raw._fp  # type: ignore[union-attr]
        try:
            if body.chunked:
                data = body.read1(len(view))
                view[: len(data)] = data
                return len(data)
            # The file below http.client fills the buffer itself, where urllib3 copies twice, and returns as soon as
            # there is something, where http.client waits until the buffer is full.
            wanted = len(view) if self._left is None else min(len(view), self._left)
            count: int = body.fp.readinto1(view[:wanted]) if wanted else 0
        except (http.client.HTTPException, OSError, ValueError) as err:  # ValueError: a chunk of a negative size
            raise Lost(f"the connection broke ({describe_cause(err)})") from err
        if self._left is not None:
            self._left -= count
        return count

    def _check_end(self) -> None:
        """Sees that a body of known size has nothing more."""
        if self._response is not None and self._left is None:
            with contextlib.suppress(Lost):  # every byte is here; how the connection ends is all the same
                if self._read_body(memoryview(bytearray(1))):
                    raise SizeMismatch(f"The server sends more than the {self.size} bytes that the image has.")

    def _connect(self) -> None:
        headers = {"Range": self._range()} if self.position else {}
        response = self._request("GET", headers)
        try:
            self._check_answer(response)
        except BaseException:
            response.close()
            raise
        self._response = response
        body: t.Any = response.raw._fp
        self._left = None if body.chunked else _number(response.headers.get("Content-Length"))
        self._pace = _Pace(self._options.min_speed, self._options.timeout)

    def _range(self) -> str:
        return f"bytes={self.position}-"

    def _request(self, method: str, headers: dict[str, str]) -> requests.Response:
        """One answer, redirects followed and the token renewed; never a redirect."""
        url, renewed = self.url, False
        for _hop in range(_MAX_REDIRECTS + 2):
            own = _origin(url) == _origin(self.url)
            token = self._token.value if own else None
            response = self._send(method, url, headers, own, token)
            if response.status_code == 401 and token:
                response.close()
                if renewed:
                    raise TokenExpired(f"{public_url(url)} refuses the token, and the one that replaced it.")
                renewed = True
                self._token.renew(token)
            elif response.is_redirect:
                response.close()
                url = self._follow(url, response.headers["Location"])
            else:
                return response
        raise RedirectRefused(f"{public_url(self.url)} redirects in circles.", "Use the final address.")

    def _follow(self, url: str, location: str) -> str:
        try:
            target = urllib.parse.urljoin(url, location)
            here, there = urllib.parse.urlsplit(url), urllib.parse.urlsplit(target)
            elsewhere = _origin(target) != _origin(self.url)
        except ValueError:
            raise RedirectRefused(f"{public_url(url)} redirects to an address that cannot be used.") from None
        if there.scheme not in ("http", "https") or (here.scheme == "https" and there.scheme == "http"):
            raise RedirectRefused(f"{public_url(url)} redirects to {public_url(target)}, which is not secure.")
        if self._token.value and elsewhere:
            raise RedirectRefused(f"The image service redirects to another host, {public_url(target)}.")
        return target

    def _send(self, method: str, url: str, headers: dict[str, str], own: bool, token: str | None) -> requests.Response:
        """One answer; what is secret goes along only to the server that it is for (C(own))."""
        secret = dict(self._options.headers) if own else {}
        if token:
            secret["X-Auth-Token"] = token
        try:
            return self._session.request(
                method,
                url,
                headers={**secret, "Accept-Encoding": "identity", **headers},
                auth=self._auth if own else _no_auth,
                stream=True,
                allow_redirects=False,
                verify=self._options.verify,
                cert=self._options.client_cert if own else None,
                timeout=(min(self._options.timeout, _CONNECT_TIMEOUT), self._options.timeout),
            )
        except requests.exceptions.SSLError as err:
            if isinstance(innermost_cause(err), (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError)):
                raise Lost(f"the connection broke ({describe_cause(err)})", ConnectionRefused, answered=False) from err
            raise TlsUntrusted(f"{_origin(url)} is not trusted: {describe_cause(err)}.") from err
        except requests.exceptions.InvalidURL as err:
            raise InvalidOption(f"'{public_url(url)}' is not a usable address.") from err
        except (requests.exceptions.InvalidHeader, UnicodeError):  # their messages show the header, which is secret
            raise InvalidOption("'headers' holds a header that HTTP does not allow.") from None
        except requests.exceptions.Timeout as err:
            raise Lost(
                f"{_origin(url)} does not answer ({describe_cause(err)})", ConnectionTimedOut, answered=False
            ) from err
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as err:
            raise Lost(
                f"{_origin(url)} cannot be reached ({describe_cause(err)})", ConnectionRefused, answered=False
            ) from err

    def _check_answer(self, response: requests.Response) -> None:
        """Accepts an answer that continues at the current position; learns the size from it."""
        status = response.status_code
        if status == 206:
            self._check_range(response)
        elif status == 200:
            if self.position:
                raise StartOver("the server does not continue in the middle")
            self._check_length(response)
        elif self.position and status in (400, 416, 501):
            raise StartOver(f"the server answered {status} to a Range")
        elif status in _RETRIED:
            raise Lost(f"the server answered {status} {response.reason}", pause=_retry_after(response), answered=False)
        else:
            raise _refusal(status, response.reason, public_url(self.url))
        entity = (response.headers.get("ETag"), response.headers.get("Last-Modified"))
        if self.position and self._entity not in (None, entity):
            raise StartOver("the object was replaced by another meanwhile")
        self._entity = entity

    def _check_range(self, response: requests.Response) -> None:
        """Refuses a part that is not the one asked for, or whose length is not the one that it claims."""
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != self.position:
            raise StartOver("the server sent another part than was asked for")
        if match[3] != "*" and self.size is not None and int(match[3]) != self.size:
            raise StartOver(f"the object was {self.size} bytes, and now is {match[3]}")
        length = _number(response.headers.get("Content-Length"))
        claimed = int(match[2]) - int(match[1]) + 1
        if claimed < 1 or length not in (None, claimed) or (self.size or claimed) < self.position + claimed:
            raise StartOver("the server sent a part that is not the size it says")
        if self.size is None and match[3] != "*":
            self.size = int(match[3])

    def _check_length(self, response: requests.Response) -> None:
        length = _number(response.headers.get("Content-Length"))
        if length is None or response.headers.get("Transfer-Encoding"):
            return
        if self._promised is not None and length != self._promised:
            raise SizeMismatch(f"The server offers {length} bytes, but the image has {self._promised}.")
        self.size = length

    def lose(self, lost: Lost) -> None:
        """Ends the connection and waits before the next try, longer each time.

        :raises FerryError: there were too many that brought nothing worth the name.
        :raises StartOver: the server is known not to continue in the middle.
        """
        self.hang_up()
        self._failures += 1
        self._failed_at = self.position
        self.reconnects += 1
        if self._failures > self._options.retries:
            raise lost.failure(
                f"{public_url(self.url)} failed after {self.position} bytes and {self._failures - 1} retries: {lost}."
            )
        if self.position and not (self._ranges_work and self.size is not None):
            raise StartOver(str(lost))
        time.sleep(min(lost.pause, _MAX_PAUSE) if lost.pause is not None else _backoff(self._failures))

    @property
    def is_connected(self) -> bool:
        """Whether a body is being read."""
        return self._response is not None

    def share(self, other: HttpSource) -> None:
        """Uses the token of C(other), and expects the same object."""
        self._token, self._entity = other._token, other._entity

    def hand_back(self) -> None:
        """Ends an answer, and keeps the connection for the next one where the answer was read to its end."""
        if self._response is not None and self._left == 0:
            body: t.Any = self._response.raw._fp
            body.length = 0  # http.client did not see what was read from the file below it
            body.read()
            self._response.raw.release_conn()
            self._response = None
        self.hang_up()

    def hang_up(self) -> None:
        """Ends the connection."""
        if self._response is not None:
            self._response.close()
            self._response = None


def public_url(url: str) -> str:
    """C(url) without what may be secret in it: user information, query and fragment."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return "(not an address)"
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _origin(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{parts.hostname}:{port}"


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keeps requests from looking for a password in ~/.netrc."""
    return request


def _basic_auth(username: str, password: str | None) -> tuple[str, str]:
    return urllib.parse.unquote(username), urllib.parse.unquote(password or "")


def _backoff(failures: int) -> float:
    return min(0.5 * 2.0 ** (failures - 1), _MAX_PAUSE)


def _number(text: str | None) -> int | None:
    return int(text) if text and _NUMBER.fullmatch(text) else None


def _retry_after(response: requests.Response) -> float | None:
    """The seconds that Retry-After asks for, as a number or a date (RFC 9110, 10.2.3)."""
    value = response.headers.get("Retry-After", "")
    seconds = _number(value)
    if seconds is not None:
        return float(seconds)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def _refusal(status: int, reason: str, url: str) -> FerryError:
    answered = f"{url} answered {status} {reason}."
    if status == 401:
        return AccessDenied(answered, "Check the credentials in 'headers' or the URL.")
    if status == 403:
        return AccessDenied(answered)
    if status in (404, 410):
        return ImageNotFound(answered, "Check that the image is still there.")
    if status == 204:
        return ImageNotReady(f"{url} has no bytes yet.")
    return TransferFailed(answered, "Check the address and the server.")
