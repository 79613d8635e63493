# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asking an HTTP server for an object, or giving it one: who is told secrets, where redirects lead, how it refuses."""

from __future__ import annotations

import email.utils
import errno
import functools
import html
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
    TlsUntrusted,
    TokenExpired,
    TransferFailed,
    describe_cause,
    innermost_cause,
)

if t.TYPE_CHECKING:
    import requests

RETRIED = {408, 429, 500, 502, 503, 504}
"""The answers that another try may better."""

_MAX_REDIRECTS = 5
_CONNECT_TIMEOUT = 10.0
_NUMBER = re.compile(r"[0-9]{1,19}")
_MAX_WORDS = 300
_MARKUP = re.compile(r"(?is)<(head|h1|script|style)\b.*?</\1\s*>|<[^>]*>")


def _new_session() -> requests.Session:
    """A session that follows no redirect by itself.

    Here, and not at the head of this file: a run that has nothing to read goes without what takes so long to import.

    :raises MissingDependency: this host has no python3-requests.
    """
    try:
        import requests
    except ImportError as err:  # pragma: no cover - the hosts of the tests have it
        raise MissingDependency(
            "Python's requests is not installed on this host.", "Install python3-requests."
        ) from err
    session = requests.Session()
    # requests would read the body of a redirect to its end, in memory, though it is told not to follow.
    session.resolve_redirects = lambda *_args, **_kwargs: iter(())  # type: ignore[method-assign]
    return session


class _EarlyAnswer:
    """Mixed into a connection: has the answer read of a server that refuses a body before its end, and hangs up.

    urllib3 reads on after EPIPE, but not after ECONNRESET (until 2.0) or what becomes of either under TLS. What the
    server said before it hung up can be read all the same.
    """

    sock: t.Any

    def send(self, data: t.Any) -> None:
        """As http.client does it."""
        connected = self.sock is not None
        try:
            super().send(data)  # type: ignore[misc]
        except (ConnectionResetError, ssl.SSLEOFError) as err:
            if not connected:
                raise
            raise BrokenPipeError(errno.EPIPE, str(err)) from err


def _hear_early_answers(session: requests.Session) -> None:
    """Has all connections of C(session) be such that they read an early answer, through a proxy as well."""
    import urllib3

    pools: dict[str, t.Any] = {}
    for pool in (urllib3.HTTPConnectionPool, urllib3.HTTPSConnectionPool):
        connection = type("Connection", (_EarlyAnswer, pool.ConnectionCls), {})
        pools[str(pool.scheme)] = type("Pool", (pool,), {"ConnectionCls": connection})

    def through(proxy_manager: t.Callable[..., t.Any], proxy: str, **options: t.Any) -> t.Any:
        manager = proxy_manager(proxy, **options)
        manager.pool_classes_by_scheme = pools
        return manager

    adapters: t.Iterable[t.Any] = session.adapters.values()
    for adapter in adapters:
        adapter.poolmanager.pool_classes_by_scheme = pools
        adapter.proxy_manager_for = functools.partial(through, adapter.proxy_manager_for)


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


class Lost(Exception):
    """A connection or an attempt failed in a way that is worth another try.

    :param failure: the error that it is once there were enough of them.
    :param pause: the seconds that the server wants to be left alone.
    :param answered: whether the server had begun to send what was asked for.
    :param final: whether the server itself has said that it is done with what it was sent.
    """

    def __init__(
        self,
        reason: str,
        failure: type[FerryError] = TransferFailed,
        pause: float | None = None,
        *,
        answered: bool = True,
        final: bool = False,
    ) -> None:
        super().__init__(reason)
        self.failure = failure
        self.pause = pause
        self.answered = answered
        self.final = final


class Token:
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


class Exchange:
    """Requests for one object, and their answers.

    :param url: where it is.
    :raises MissingDependency: this host has no python3-requests.
    :raises InvalidOption: C(url) is not an address that can be used.
    """

    def __init__(self, url: str, options: HttpOptions) -> None:
        self._session = _new_session()
        try:
            parts = urllib.parse.urlsplit(url)
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise InvalidOption(f"'{public_url(url)}' is not an HTTP or HTTPS address.")
        self.url = url
        self.token = Token(options)
        self._options = options
        self._auth = _basic_auth(parts.username, parts.password) if parts.username else _no_auth

    def close(self) -> None:
        """Ends all connections."""
        self._session.close()

    def request(self, method: str, headers: dict[str, str]) -> requests.Response:
        """One answer, redirects followed and the token renewed; never a redirect."""
        url, renewed = self.url, False
        for _hop in range(_MAX_REDIRECTS + 2):
            own = _origin(url) == _origin(self.url)
            token = self.token.value if own else None
            response = self._send(method, url, headers, own, token)
            if response.status_code == 401 and token:
                response.close()
                if renewed:
                    raise TokenExpired(f"{public_url(url)} refuses the token, and the one that replaced it.")
                renewed = True
                self.token.renew(token)
            elif response.is_redirect:
                response.close()
                url = self._follow(url, response.headers["Location"])
            else:
                return response
        raise RedirectRefused(f"{public_url(self.url)} redirects in circles.", "Use the final address.")

    def put(self, body: t.Any, headers: dict[str, str], answer_timeout: float) -> requests.Response:
        """The answer to a body, which goes to this one address, once; also one that came before all was sent.

        :param body: the bytes, or an iterable of them with their number as its length.
        :param answer_timeout: the seconds until the answer must have begun, once all is sent.
        """
        self._session.close()  # a connection that was kept may be one that the server is about to end
        self._session = _new_session()
        _hear_early_answers(self._session)
        # urllib3 sends under the time-out for connecting.
        timeouts = (self._options.timeout, answer_timeout)
        response = self._send("PUT", self.url, headers, True, self.token.value, body, timeouts)
        if response.is_redirect:
            response.close()
            target = _join(self.url, response.headers["Location"])
            raise RedirectRefused(f"{public_url(self.url)} redirects the upload to {public_url(target)}.")
        return response

    def quote(self, response: requests.Response) -> str:
        """An answer in the server's own words: status, reason, and the text of its body without HTML."""
        try:
            body = response.raw.read(1 << 16).decode(errors="replace")
        except Exception:  # of urllib3, http.client or the socket: the status has to do
            body = ""
        words = " ".join(html.unescape(_MARKUP.sub(" ", body)).split())
        answer = f"{response.status_code} {response.reason}" + (f": {words}" if words else "")
        if self.token.value:
            answer = answer.replace(self.token.value, "***")
        return answer.rstrip(".") if len(answer) <= _MAX_WORDS else answer[: _MAX_WORDS - 1] + "…"

    def _follow(self, url: str, location: str) -> str:
        try:
            target = urllib.parse.urljoin(url, location)
            here, there = urllib.parse.urlsplit(url), urllib.parse.urlsplit(target)
            elsewhere = _origin(target) != _origin(self.url)
        except ValueError:
            raise RedirectRefused(f"{public_url(url)} redirects to an address that cannot be used.") from None
        if there.scheme not in ("http", "https") or (here.scheme == "https" and there.scheme == "http"):
            raise RedirectRefused(f"{public_url(url)} redirects to {public_url(target)}, which is not secure.")
        if self.token.value and elsewhere:
            raise RedirectRefused(f"The image service redirects to another host, {public_url(target)}.")
        return target

    def _send(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        own: bool,
        token: str | None,
        body: t.Any = None,
        timeouts: tuple[float, float] | None = None,
    ) -> requests.Response:
        """One answer; what is secret goes along only to the server that it is for (C(own)).

        :param timeouts: the seconds to connect and to send, and to wait for what comes.
        """
        import requests
        import urllib3

        secret = dict(self._options.headers) if own else {}
        if token:
            secret["X-Auth-Token"] = token
        try:
            return self._session.request(
                method,
                url,
                data=body,
                headers={**secret, "Accept-Encoding": "identity", **headers},
                auth=self._auth if own else _no_auth,
                stream=True,
                allow_redirects=False,
                verify=self._options.verify,
                cert=self._options.client_cert if own else None,
                timeout=timeouts or (min(self._options.timeout, _CONNECT_TIMEOUT), self._options.timeout),
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


def public_url(url: str) -> str:
    """C(url) without what may be secret in it: user information, query and fragment."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return "(not an address)"
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _join(url: str, location: str) -> str:
    try:
        return urllib.parse.urljoin(url, location)
    except ValueError:
        return location


def _origin(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{parts.hostname}:{port}"


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keeps requests from looking for a password in ~/.netrc."""
    return request


def _basic_auth(username: str, password: str | None) -> tuple[str, str]:
    return urllib.parse.unquote(username), urllib.parse.unquote(password or "")


def read_number(text: str | None) -> int | None:
    """What a header says that is to be a number of bytes or seconds; None when it is none."""
    return int(text) if text and _NUMBER.fullmatch(text) else None


def retry_after(response: requests.Response) -> float | None:
    """The seconds that Retry-After asks for, as a number or a date (RFC 9110, 10.2.3)."""
    value = response.headers.get("Retry-After", "")
    seconds = read_number(value)
    if seconds is not None:
        return float(seconds)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def refusal(status: int, reason: str, url: str) -> FerryError:
    """The error that an answer with this status is."""
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
