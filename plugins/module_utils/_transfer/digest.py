# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hashes in the forms that people and Glance write them."""

from __future__ import annotations

import hashlib
import re
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import InvalidOption, Unverifiable


class Digest(t.NamedTuple):
    """A hash to hold bytes against: C(os_hash_algo) and C(os_hash_value)."""

    algorithm: str
    value: str

    def hasher(self) -> hashlib._Hash:
        """A fresh hash object.

        :raises Unverifiable: this Python has no such algorithm.
        """
        found = _hasher(self.algorithm)
        if found is None:
            raise Unverifiable(f"The hash algorithm {self.algorithm} is unknown on this host.")
        return found

    @property
    def is_known(self) -> bool:
        """Whether this Python has the algorithm."""
        return _hasher(self.algorithm) is not None

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Reads get_url's form: V(sha512:0123…).

        :raises InvalidOption: it is of another form, or has too few or too many digits.
        """
        algorithm, separator, value = text.partition(":")
        if not separator or not re.fullmatch(r"[0-9a-fA-F]{8,}", value):
            raise InvalidOption(f"'checksum: {text}' is not a checksum.", "Write it as sha512:<hexadecimal digits>.")
        # hashlib's names: sha512 for SHA-512, sha3_512 for SHA3-512
        name = re.sub(r"^sha-(?=\d)", "sha", algorithm.lower()).replace("-", "_")
        known = _hasher(name)
        if known is not None and len(value) != known.digest_size * 2:
            raise InvalidOption(
                f"'checksum: {text}' has {len(value)} digits, but a {name} has {known.digest_size * 2}.",
                "Copy the whole checksum.",
            )
        return cls(name, value.lower())


def _hasher(algorithm: str) -> hashlib._Hash | None:
    try:
        # Nobody's safety rests on md5 here: it is the last resort for old images, on FIPS hosts as well.
        found = hashlib.new(algorithm, usedforsecurity=False)
    except ValueError:
        return None
    return found if found.digest_size else None  # shake_128 and its like have no length of their own


def find_in_list(text: str, algorithm: str, name: str) -> Digest | None:
    """The hash of the file C(name) in a list such as sha512sum(1) writes, GNU or BSD style; None if it is not there.

    A list may hold hashes of several algorithms: GNU's style does not name them, so the number of digits has to do.

    :raises InvalidOption: what the list holds is no hash of this C(algorithm).
    """
    candidates = []
    for line in text.splitlines():
        gnu = re.fullmatch(r"([0-9a-fA-F]{8,}) [ *]?(.+)", line.strip())
        bsd = re.fullmatch(r"(\S+) \((.+)\) ?= ?([0-9a-fA-F]{8,})", line.strip())
        path, value = (gnu[2], gnu[1]) if gnu else (bsd[2], bsd[3]) if bsd else ("", "")
        if path.rsplit("/", 1)[-1] == name:
            candidates.append(value)
    words = text.split()
    if not candidates and len(words) == 1:
        candidates = words
    known = _hasher(algorithm)
    fitting = [value for value in candidates if known is None or len(value) == known.digest_size * 2]
    for value in fitting or candidates:
        return Digest.parse(f"{algorithm}:{value}")
    return None
