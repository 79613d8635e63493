# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading an image over HTTP, from its first byte to its last, over as many connections as it takes."""

from __future__ import annotations

import contextlib
import http.client
import re
import time
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    FerryError,
    SizeMismatch,
    TransferFailed,
    describe_cause,
)
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.exchange import (
    RETRIED,
    Exchange,
    HttpOptions,
    Lost,
    public_url,
    read_number,
    refusal,
    retry_after,
)
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.pacing import (
    Brake,
    Pace,
    pause_before_retry,
)

if t.TYPE_CHECKING:
    import requests

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")


class StartOver(Exception):
    """The server cannot continue where the last connection broke off: only a whole new body will do."""


class HttpSource:
    """An object on an HTTP server, read as one stream.

    :param url: where it is.
    :param size: its size in bytes as promised by others, None if nobody did; learned from the server then.
    :raises MissingDependency: this host has no python3-requests.
    :raises InvalidOption: C(url) is not an address that can be used.
    """

    def __init__(self, url: str, size: int | None, options: HttpOptions) -> None:
        self._exchange = Exchange(url, options)
        self.size = size
        self.position = 0
        self.reconnects = 0
        self.restarts = 0
        self.connections = 1
        self.waited = 0.0  # seconds spent waiting for the network
        self._promised = size
        self._options = options
        self._entity: tuple[str | None, str | None] | None = None
        self._response: requests.Response | None = None
        self._left: int | None = None  # bytes of this body still to come, None where only its end will tell
        self._pace = Pace(options.min_speed, options.timeout)
        self._brake = Brake(options.rate_limit)
        self._failures = 0
        self._failed_at = 0
        self._ranges_work = True

    @property
    def url(self) -> str:
        """Where the object is."""
        return self._exchange.url

    def close(self) -> None:
        """Ends the connection."""
        self.hang_up()
        self._exchange.close()

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
        pause_before_retry(self.restarts)
        self.position = self._failures = self._failed_at = 0
        self.size = self._promised
        self._ranges_work = False

    def learn_size(self) -> int | None:
        """Asks for the object's size without its bytes (HEAD); None where the server does not tell."""
        if self.size is None:
            with contextlib.suppress(FerryError, Lost), self._exchange.request("HEAD", {}) as response:
                if response.status_code == 200:
                    # Servers that make the body as they send it say 0 here.
                    self.size = read_number(response.headers.get("Content-Length")) or None
        return self.size

    def read_text(self, limit: int = 1 << 20) -> str:
        """The whole object, a small text, begun again where it has to be.

        :raises SizeMismatch: it has more than C(limit) bytes.
        :raises FerryError: it failed for good, or too often.
        """
        buffer, length = bytearray(limit + 1), None
        with memoryview(buffer) as view:
            while length is None:
                try:
                    length = self.readinto(view)
                except StartOver as err:
                    self.restart(err)
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
        response = self._exchange.request("GET", headers)
        try:
            self._check_answer(response)
        except BaseException:
            response.close()
            raise
        self._response = response
        body: t.Any = response.raw._fp
        self._left = None if body.chunked else read_number(response.headers.get("Content-Length"))
        self._pace = Pace(self._options.min_speed, self._options.timeout)

    def _range(self) -> str:
        return f"bytes={self.position}-"

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
        elif status in RETRIED:
            raise Lost(f"the server answered {status} {response.reason}", pause=retry_after(response), answered=False)
        else:
            raise refusal(status, response.reason, public_url(self.url))
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
        length = read_number(response.headers.get("Content-Length"))
        claimed = int(match[2]) - int(match[1]) + 1
        if claimed < 1 or length not in (None, claimed) or (self.size or claimed) < self.position + claimed:
            raise StartOver("the server sent a part that is not the size it says")
        if self.size is None and match[3] != "*":
            self.size = int(match[3])

    def _check_length(self, response: requests.Response) -> None:
        length = read_number(response.headers.get("Content-Length"))
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
        pause_before_retry(self._failures, lost.pause)

    @property
    def is_connected(self) -> bool:
        """Whether a body is being read."""
        return self._response is not None

    def share(self, other: HttpSource) -> None:
        """Uses the token of C(other), and expects the same object."""
        self._exchange.token, self._entity = other._exchange.token, other._entity

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
