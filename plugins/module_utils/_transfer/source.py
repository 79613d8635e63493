# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading an image over HTTP, from its first byte to its last, over as many connections as it takes."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import re
import time
import typing as t
import urllib.parse
from dataclasses import dataclass, field

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    AccessDenied,
    ConnectionRefused,
    ConnectionTimedOut,
    FerryError,
    ImageChanged,
    ImageNotFound,
    ImageNotReady,
    InvalidOption,
    MissingDependency,
    RedirectRefused,
    SizeMismatch,
    TlsUntrusted,
    TokenExpired,
    TransferFailed,
)

try:
    import requests
    import urllib3
except ImportError:  # pragma: no cover - the hosts of the tests have it
    requests = None  # type: ignore[assignment]

_MAX_REDIRECTS = 5
_MAX_PAUSE = 60.0
_RETRIED = {408, 429, 500, 502, 503, 504}
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


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
    :param timeout: the seconds without a byte after which a connection is given up.
    :param retries: how often in a row to try again without getting any further.
    """

    headers: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    tokens: TokenSupply | None = None
    verify: bool | str = True
    timeout: float = 60
    retries: int = 5


class StartOver(Exception):
    """The server cannot continue where the last connection broke off: only a whole new body will do."""


class _Lost(Exception):
    """A connection or an attempt failed in a way that is worth another try."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class HttpSource:
    """An object on an HTTP server, read as one stream.

    :param url: where it is.
    :param size: its size in bytes, None while it is unknown; learned from the server then.
    :raises MissingDependency: this host has no python3-requests.
    """

    def __init__(self, url: str, size: int | None, options: HttpOptions) -> None:
        if requests is None:
            raise MissingDependency("Python's requests is not installed on this host.", "Install python3-requests.")
        if urllib.parse.urlsplit(url).scheme not in ("http", "https") or not urllib.parse.urlsplit(url).hostname:
            raise InvalidOption(f"'{public_url(url)}' is not an HTTP or HTTPS address.")
        self.url = url
        self.size = size
        self.position = 0
        self.ranges_work = True
        self.reconnects = 0
        self._options = options
        self._entity: tuple[str | None, str | None] | None = None
        self._response: requests.Response | None = None
        self._failures = 0
        self._session = requests.Session()
        self._session.auth = _no_auth if not urllib.parse.urlsplit(url).username else None

    def close(self) -> None:
        """Ends the connection."""
        self._hang_up()
        self._session.close()

    def restart(self) -> None:
        """Goes back to the first byte."""
        self._hang_up()
        self.position = 0
        self.ranges_work = False

    def learn_size(self) -> int | None:
        """Asks for the object's size without its bytes (HEAD); None where the server does not tell."""
        if self.size is None:
            with contextlib.suppress(FerryError, _Lost), self._request("HEAD", {}) as response:
                length = response.headers.get("Content-Length", "")
                if response.status_code == 200 and length.isdigit():
                    self.size = int(length)
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
        :raises FerryError: it failed for good, or C(retries) times in a row.
        """
        filled = 0
        while filled < len(view) and (self.size is None or self.position < self.size):
            try:
                count = self._read(view[filled:])
            except _Lost as lost:
                self._hang_up()
                self._pause(lost)
                continue
            if count == 0:
                break
            self._failures = 0
            filled += count
            self.position += count
        if filled < len(view):
            self._check_end()
        return filled

    def _read(self, view: memoryview) -> int:
        """The next bytes of the current connection, or of a new one; 0 at the end of an object of unknown size."""
        if self._response is None:
            self._connect()
        try:
            # The body of http.client, below urllib3: it fills the buffer itself, where urllib3 copies twice.
            count: int = self._response.raw._fp.readinto(view)  # type: ignore[union-attr]
        except (http.client.HTTPException, OSError) as err:
            raise _Lost(f"the connection broke ({_reason(err)})") from err
        if count == 0 and self.size is not None:
            raise _Lost(f"the connection ended after {self.position} of {self.size} bytes")
        return count

    def _check_end(self) -> None:
        """Sees that a body of unknown size has really ended, and one of known size has nothing more."""
        if self.size is None:
            self.size = self.position

    def _connect(self) -> None:
        headers = {"Range": f"bytes={self.position}-"} if self.position else {}
        response = self._request("GET", headers)
        try:
            self._check_answer(response)
        except BaseException:
            response.close()
            raise
        self._response = response

    def _request(self, method: str, headers: dict[str, str]) -> requests.Response:
        """One answer, redirects followed and the token renewed; never a redirect or a 401."""
        url, renewed = self.url, False
        for _hop in range(_MAX_REDIRECTS + 2):
            own = _origin(url) == _origin(self.url)
            response = self._send(method, url, {**headers, **(self._own_headers() if own else {})})
            if response.status_code == 401 and own and self._options.token and not renewed:
                response.close()
                renewed = True
                self._renew_token()
            elif response.is_redirect:
                response.close()
                url = self._follow(url, response.headers["Location"])
            else:
                return response
        raise RedirectRefused(f"{public_url(self.url)} redirects in circles.", "Use the final address.")

    def _own_headers(self) -> dict[str, str]:
        token = {"X-Auth-Token": self._options.token} if self._options.token else {}
        return {**self._options.headers, **token}

    def _renew_token(self) -> None:
        if self._options.tokens is None:
            raise TokenExpired("The token expired before the transfer ended.")
        self._options.token = self._options.tokens.renew()

    def _follow(self, url: str, location: str) -> str:
        target = urllib.parse.urljoin(url, location)
        here, there = urllib.parse.urlsplit(url), urllib.parse.urlsplit(target)
        if there.scheme not in ("http", "https") or (here.scheme == "https" and there.scheme == "http"):
            raise RedirectRefused(f"{public_url(url)} redirects to {public_url(target)}, which is not secure.")
        if self._options.token and _origin(target) != _origin(self.url):
            raise RedirectRefused(f"The image service redirects to another host, {public_url(target)}.")
        return target

    def _send(self, method: str, url: str, headers: dict[str, str]) -> requests.Response:
        try:
            return self._session.request(
                method,
                url,
                headers={"Accept-Encoding": "identity", **headers},
                stream=True,
                allow_redirects=False,
                verify=self._options.verify,
                timeout=(min(self._options.timeout, 30), self._options.timeout),
            )
        except requests.exceptions.SSLError as err:
            raise TlsUntrusted(f"The certificate of {_origin(url)} is not accepted: {_reason(err)}.") from err
        except requests.exceptions.InvalidURL as err:
            raise InvalidOption(f"'{public_url(url)}' is not a usable address.") from err
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as err:
            raise _Lost(f"{_origin(url)} cannot be reached ({_reason(err)})") from err

    def _check_answer(self, response: requests.Response) -> None:
        """Accepts an answer that continues at the current position; learns the size from it."""
        status = response.status_code
        if status == 206:
            self._check_range(response)
        elif status == 200:
            if self.position:
                raise StartOver
            self._check_length(response)
        elif self.position and status in (400, 416, 501):
            raise StartOver
        elif status in _RETRIED:
            raise _Lost(f"the server answered {status} {response.reason}", _retry_after(response))
        else:
            raise _refusal(status, response.reason, public_url(self.url))
        entity = (response.headers.get("ETag"), response.headers.get("Last-Modified"))
        if self.position and self._entity != entity:
            raise StartOver
        self._entity = entity

    def _check_range(self, response: requests.Response) -> None:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        length = response.headers.get("Content-Length")
        if match is None or int(match[1]) != self.position:
            raise StartOver
        if match[3] != "*" and self.size is not None and int(match[3]) != self.size:
            raise ImageChanged(f"The object was {self.size} bytes, and now is {match[3]}.")
        if length is not None and int(length) != int(match[2]) - int(match[1]) + 1:
            raise StartOver

    def _check_length(self, response: requests.Response) -> None:
        length = response.headers.get("Content-Length")
        if length is None or response.headers.get("Transfer-Encoding"):
            return
        if self.size is not None and int(length) != self.size:
            raise SizeMismatch(f"The server offers {length} bytes, but the image has {self.size}.")
        self.size = int(length)

    def _pause(self, lost: _Lost) -> None:
        """Waits before the next try, longer each time; gives up after too many without a byte."""
        self._failures += 1
        self.reconnects += 1
        if self._failures > self._options.retries:
            kind = TransferFailed
            if "cannot be reached" in str(lost):
                kind = ConnectionTimedOut if "timed out" in str(lost) else ConnectionRefused
            raise kind(
                f"{public_url(self.url)} failed after {self.position} bytes and {self._failures - 1} retries: {lost}."
            )
        time.sleep(min(lost.pause if lost.pause is not None else 0.5 * 2 ** (self._failures - 1), _MAX_PAUSE))
        if self.position and not (self.ranges_work and self.size is not None):
            raise StartOver

    def _hang_up(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None


def public_url(url: str) -> str:
    """C(url) without what may be secret in it: user information, query and fragment."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _origin(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{parts.hostname}:{port}"


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keeps requests from looking for a password in ~/.netrc."""
    return request


def _reason(err: BaseException) -> str:
    """The innermost cause of an error of requests, in a few words without addresses of objects."""
    while True:
        inner = getattr(err, "reason", None) or err.__cause__ or err.__context__
        if not isinstance(inner, BaseException):
            break
        err = inner
    return re.sub(r"<[^>]*>:? ?", "", getattr(err, "strerror", None) or str(err) or type(err).__name__)


def _retry_after(response: requests.Response) -> float | None:
    """The seconds that Retry-After asks for, as a number or a date (RFC 9110, 10.2.3)."""
    value = response.headers.get("Retry-After", "")
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
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
