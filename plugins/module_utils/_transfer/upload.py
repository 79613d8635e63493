# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Uploading an image to Glance: all of it, verified, or none; never sent again before Glance says that it may be."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    AccessDenied,
    ChecksumMismatch,
    ConnectionTimedOut,
    FerryError,
    FormatMismatch,
    ImageNotFound,
    InvalidOption,
    QuotaExceeded,
    SizeMismatch,
    TokenExpired,
    TransferFailed,
    UploadConflict,
    describe_cause,
)
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.digest import Digest
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.exchange import (
    RETRIED,
    Exchange,
    HttpOptions,
    Lost,
    public_url,
    refusal,
    retry_after,
)
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.outgoing import (
    Outgoing,
    Progress,
    SourceFailed,
)
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.pacing import pause_before_retry
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.pipeline import describe_transfer

if t.TYPE_CHECKING:
    import requests
    from ansible_collections.imageferry.glance.plugins.module_utils._image.body import Body

ALGORITHMS = ("sha512", "md5")
"""What Glance computes unless it is configured otherwise."""

_ANSWER_TIMEOUT = 600.0
_SLOWEST_STORE = 20 * 1024**2  # bytes a second at which a store may move what it has got before Glance answers
_INTERRUPTION_NOTICED = 30.0
_POLL = 0.5
_AGAIN = "Check the server and the network, or raise 'retries', and run again; nothing of the image was kept."
_DELETE = "Delete the image, and run again."

_DELETED = "The image was deleted before its upload had ended, maybe by another upload of the same: run again."

_REFUSALS: dict[int, tuple[type[FerryError], str | None]] = {
    401: (AccessDenied, "Check the credentials."),
    403: (AccessDenied, None),
    404: (ImageNotFound, _DELETED),
    409: (UploadConflict, None),
    410: (ImageNotFound, _DELETED),
    413: (QuotaExceeded, None),
    415: (FormatMismatch, "Choose the format that the disk has, or one that this image service takes."),
}


@dataclasses.dataclass
class Sent:
    """What an upload did.

    :param size: the bytes of the image.
    :param digests: its hashes, of what was sent.
    :param verified: the one that Glance computed as well; None where Glance told none that was made here.
    :param restarts: how often it was begun anew.
    """

    size: int
    seconds: float
    digests: tuple[Digest, ...]
    verified: Digest | None
    restarts: int

    def to_dict(self, zero_bytes: int = 0, staged: int = 0) -> dict[str, t.Any]:
        """The C(transfer) of a task's result.

        :param zero_bytes: of what was sent, how many are known to be zeros.
        :param staged: bytes that were kept aside before they were sent.
        """
        return describe_transfer(
            self.size,
            self.seconds,
            zero_bytes=zero_bytes,
            staged=staged,
            reconnects=self.restarts,
            restarts=self.restarts,
        )


def upload(
    body: Body, url: str, options: HttpOptions, progress: Progress, algorithms: t.Sequence[str] = ALGORITHMS
) -> Sent:
    """Gives a queued image its bytes, and sees that Glance has them.

    :param url: C(…/v2/images/ID/file) of the image.
    :param algorithms: the hashes to make of what is sent.
    :raises UploadConflict: the image takes no bytes, as it has some, or somebody else is sending them.
    :raises ImageNotFound: it is not there, or was deleted meanwhile.
    :raises QuotaExceeded, FormatMismatch, AccessDenied: Glance refuses it.
    :raises ChecksumMismatch: Glance has stored other bytes than were sent.
    :raises SizeMismatch: so it has, or the body is of another length than it said.
    :raises FerryError, OSError: the connection failed for good, or the body failed; the image is queued then.
    """
    with contextlib.closing(_Upload(body, url, options, progress, algorithms)) as running:
        return running.run()


def check_stored(image: t.Mapping[str, t.Any], size: int, digests: t.Iterable[Digest]) -> Digest | None:
    """Compares what Glance says that it has with what was sent.

    :param image: the image as Glance describes it: C(size), C(os_hash_algo), C(os_hash_value), C(checksum).
    :returns: the hash that both computed; None where there is none.
    :raises SizeMismatch, ChecksumMismatch: it has something else.
    """
    if image.get("size") != size:
        raise SizeMismatch(f"The image service has {image.get('size')} bytes of the {size} that were sent.", _DELETE)
    sent = {digest.algorithm: digest for digest in digests}
    verified = None
    stored = ((image.get("os_hash_algo"), image.get("os_hash_value")), ("md5", image.get("checksum")))
    for algorithm, value in stored:
        digest = sent.get(algorithm or "")
        if not value or digest is None:
            continue
        if value != digest.value:
            raise ChecksumMismatch(
                f"The {algorithm} of the {size} bytes sent is {digest.value}, but the image service computed {value}.",
                _DELETE,
            )
        verified = verified or digest
    return verified


class _Upload:
    """The requests for one image: its record, and its bytes."""

    def __init__(
        self, body: Body, url: str, options: HttpOptions, progress: Progress, algorithms: t.Sequence[str]
    ) -> None:
        self._record_url, separator, rest = url.rpartition("/file")
        if not separator or rest:
            raise InvalidOption(f"'{public_url(url)}' is not the address of an image's file.")
        self._body = body
        self._options = options
        self._progress = progress
        self._algorithms = algorithms
        self._where = public_url(url)
        self._record = Exchange(self._record_url, options)
        self._file = Exchange(url, options)
        self._file.token = self._record.token
        self._failures = 0
        self._answer_timeout = _ANSWER_TIMEOUT + body.length / _SLOWEST_STORE

    def close(self) -> None:
        """Ends all connections."""
        self._record.close()
        self._file.close()

    def run(self) -> Sent:
        """Sends until Glance has it."""
        started = time.monotonic()
        # A PUT cannot be taken back: an expired token and an image that takes no bytes have to be known before.
        status = self._image()["status"]
        if status != "queued":
            raise UploadConflict(f"The image at {public_url(self._record_url)} is {status}, not queued.")
        while True:
            with contextlib.closing(self._outgoing()) as outgoing:
                lost = self._attempt(outgoing)
                image = self._settled(outgoing, lost)
                if image["status"] == "active" and outgoing.complete:
                    return self._sent(image, outgoing, time.monotonic() - started)
            self._failures += 1
            self._check_repeatable(lost, outgoing, image["status"])
            pause_before_retry(self._failures, lost.pause)

    def _outgoing(self) -> Outgoing:
        return Outgoing(self._body, self._options, self._progress, self._algorithms)

    def _attempt(self, outgoing: Outgoing) -> Lost:
        """Sends the body; why it may have failed, which Glance's record of the image has to tell.

        :raises FerryError: Glance refuses it.
        """
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(self._body.length),
            "X-OpenStack-Image-Size": str(self._body.length),
        }
        try:
            # requests would send a body without bytes chunked.
            body = outgoing if self._body.length else b"".join(outgoing)
            with self._file.put(body, headers, self._answer_timeout) as response:
                outcome: Lost | Exception = self._judge(response, outgoing)
        except Lost as lost:
            outcome = self._explain(lost, outgoing)
        except SourceFailed as err:
            outcome = err.error
        if isinstance(outcome, Lost):
            return outcome
        raise outcome  # here, so that it has no other context than its own

    def _judge(self, response: requests.Response, outgoing: Outgoing) -> Lost:
        """What an answer says, unless it is final.

        :raises FerryError: Glance refuses the upload.
        """
        status = response.status_code
        answer = f"the image service answered {self._file.quote(response)}"
        if 200 <= status < 300:
            return Lost(f"{answer} after {outgoing.position} of {self._body.length} bytes")
        if status == 401 and self._file.token.value:
            return Lost(answer, TokenExpired, pause=0)  # to ask for the image renews it
        # Glance may take up a broken attempt only after it was asked, and still be at it when the next one comes.
        if status in RETRIED or (status == 409 and self._failures):
            # What else is retried may come from a gateway, which does not know what Glance does behind it.
            return Lost(answer, pause=retry_after(response), final=status == 500)
        kind, remedy = _REFUSALS.get(status, (TransferFailed, "See the image service's log."))
        raise kind(f"Of the upload to {self._where}, {answer}.", remedy)

    def _explain(self, lost: Lost, outgoing: Outgoing) -> Lost:
        """What C(lost) means for a body; L(Exchange) knows of requests that have none."""
        if not outgoing.begun:
            return lost
        failure = ConnectionTimedOut if lost.failure is ConnectionTimedOut else TransferFailed
        what = "no answer came" if outgoing.complete else "the connection broke"
        return Lost(f"{what} after {outgoing.position} of {self._body.length} bytes ({describe_cause(lost)})", failure)

    def _settled(self, outgoing: Outgoing, lost: Lost) -> dict[str, t.Any]:
        """The image once Glance has made up its mind about what it got."""
        is_at_work = outgoing.complete and not lost.final
        patience = self._answer_timeout if is_at_work else _INTERRUPTION_NOTICED
        deadline = time.monotonic() + patience
        while (image := self._image())["status"] == "saving" and time.monotonic() < deadline:
            time.sleep(_POLL)
        return image

    def _image(self) -> dict[str, t.Any]:
        """The image as Glance describes it, asked for until there is an answer.

        :raises FerryError: there is none, or the image is gone.
        """
        failures = 0
        while True:
            try:
                with self._record.request("GET", {}) as response:
                    return self._read_image(response)
            except Lost as lost:
                failures += 1
                if failures > self._options.retries:
                    raise lost.failure(
                        f"{public_url(self._record_url)} failed after {failures - 1} retries: {lost}.", _AGAIN
                    ) from lost
                pause_before_retry(failures, lost.pause)

    def _read_image(self, response: requests.Response) -> dict[str, t.Any]:
        where, status = public_url(self._record_url), response.status_code
        if status in RETRIED:
            raise Lost(f"the server answered {status} {response.reason}", pause=retry_after(response))
        if status in (404, 410):
            raise ImageNotFound(f"{where} answered {status} {response.reason}.", _DELETED)
        if status != 200:
            raise refusal(status, response.reason, where)
        try:
            image: dict[str, t.Any] = json.loads(response.content)
            return {**image, "status": str(image["status"])}
        except (ValueError, KeyError, TypeError):
            raise TransferFailed(f"{where} does not describe an image.", "Check the address.") from None
        except OSError as err:  # requests' errors are among them
            raise Lost(f"the connection broke ({describe_cause(err)})") from err

    def _check_repeatable(self, lost: Lost, outgoing: Outgoing, status: str) -> None:
        """
        :raises FerryError: C(lost) is the end of it.
        """
        failed = f"The upload to {self._where} failed: {lost}"
        if status == "active":
            raise UploadConflict(f"{failed}; meanwhile somebody else gave the image its bytes.")
        if status != "queued":
            raise lost.failure(f"{failed}; the image is {status} since.", _DELETE)
        if outgoing.begun and not self._body.repeatable:
            raise lost.failure(f"{failed}; what was sent cannot be made a second time.", "Run again.")
        if self._failures > self._options.retries:
            raise lost.failure(f"{failed}, after {self._failures - 1} retries.", _AGAIN)

    def _sent(self, image: dict[str, t.Any], outgoing: Outgoing, seconds: float) -> Sent:
        digests = outgoing.digests()
        verified = check_stored(image, self._body.length, digests)
        return Sent(self._body.length, seconds, digests, verified, self._failures)
