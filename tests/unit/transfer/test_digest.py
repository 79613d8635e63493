# SPDX-License-Identifier: GPL-3.0-or-later
"""Checksums as people write them."""

from __future__ import annotations

import hashlib

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import InvalidOption, Unverifiable
from ansible_collections.imageferry.glance.plugins.module_utils._transfer.digest import Digest, find_in_list

SHA256 = hashlib.sha256(b"x").hexdigest()


@pytest.mark.parametrize("name", ["sha512", "SHA512", "SHA-512", "sha3_512", "SHA3-512", "md5", "blake2b"])
def test_a_checksum_is_read_and_its_hash_can_be_made(name):
    plain = {"sha-512": "sha512", "sha3-512": "sha3_512"}.get(name.lower(), name.lower())
    value = hashlib.new(plain, b"x").hexdigest()
    digest = Digest.parse(f"{name}:{value.upper()}")
    hasher = digest.hasher()
    hasher.update(b"x")
    assert digest == Digest(plain, hasher.hexdigest())


@pytest.mark.parametrize("text", ["", SHA256, "sha256:", "sha256:xyz", f"sha256:{SHA256[:-1]}", f"md5:{SHA256}"])
def test_what_is_no_checksum_is_refused_before_anything_is_fetched(text):
    with pytest.raises(InvalidOption):
        Digest.parse(text)


@pytest.mark.parametrize("name", ["sha1024", "shake_128", "", "none"])
def test_an_unknown_algorithm_is_refused(name):
    with pytest.raises(Unverifiable):
        Digest(name, SHA256).hasher()


@pytest.mark.parametrize(
    "text",
    [
        f"{SHA256}  image\n",
        f"{SHA256} *./images/image\r\n",
        f"SHA256 (image) = {SHA256}\n",
        f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{'0' * 64}  image.sig\n{SHA256}  image\n",
        f"{SHA256.upper()}\n",
        f"{'0' * 32}  image\n{SHA256}  image\n{'0' * 128}  image\n",
    ],
)
def test_a_hash_is_found_in_a_list(text):
    assert find_in_list(text, "sha256", "image") == Digest("sha256", SHA256)


@pytest.mark.parametrize("text", ["", f"{SHA256}  other\n", "<html>not found</html>", f"{SHA256}  image-2"])
def test_a_list_without_the_file_has_no_hash(text):
    assert find_in_list(text, "sha256", "image") is None


def test_a_list_of_another_algorithm_is_said():
    with pytest.raises(InvalidOption, match="64 digits"):
        find_in_list(f"{SHA256}  image", "sha512", "image")
