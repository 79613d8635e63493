# Copyright (c) imageferry.glance contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a certificate authority and a server certificate for loopback.

    certificates.py FOLDER [HOST...]

writes ca.crt, server.crt and server.key, for loopback and the other names or addresses, unless they are there already,
and client.crt and client.key of a client. The authority's own key is forgotten at once: nobody can ever sign another
certificate with it. Run by the interpreter that has the `cryptography` package.
"""

from __future__ import annotations

import datetime
import ipaddress
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

VALID = datetime.timedelta(days=3650)


def name(common_name: str) -> x509.Name:
    """A distinguished name."""
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])


def certificate(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    extensions: list[x509.ExtensionType],
) -> x509.Certificate:
    """A signed certificate."""
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + VALID)
    )
    always: list[x509.ExtensionType] = [
        x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
        x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
    ]
    for extension in [*extensions, *always]:
        critical = isinstance(extension, (x509.BasicConstraints, x509.KeyUsage))
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(issuer_key, hashes.SHA256())


def authority_extensions() -> list[x509.ExtensionType]:
    """What makes a certificate one of an authority."""
    usage = x509.KeyUsage(
        key_cert_sign=True,
        crl_sign=True,
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    return [x509.BasicConstraints(ca=True, path_length=0), usage]


def general_name(host: str) -> x509.GeneralName:
    """A host's name or address, as a certificate has it."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def client_extensions() -> list[x509.ExtensionType]:
    """What makes a certificate one of a client."""
    return [
        x509.BasicConstraints(ca=False, path_length=None),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),
    ]


def server_extensions(others: list[str]) -> list[x509.ExtensionType]:
    """What makes a certificate one of a server on loopback, and of other names or addresses."""
    hosts = [general_name(host) for host in ("127.0.0.1", "localhost", *others)]
    return [
        x509.BasicConstraints(ca=False, path_length=None),
        x509.SubjectAlternativeName(hosts),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
    ]


def private_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A key as text."""
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption())


def main(folder: Path, others: list[str]) -> None:
    """Write the files, unless they are there for these very hosts."""
    hosts = folder / "hosts"
    if hosts.exists() and hosts.read_text(encoding="utf-8").split() == others:
        return
    authority = "imageferry embedded cloud CA"
    ca_key = ec.generate_private_key(ec.SECP256R1())
    folder.mkdir(mode=0o700, exist_ok=True)
    ca = certificate(authority, ca_key, authority, ca_key, authority_extensions())
    (folder / "ca.crt").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    subjects = {"server": ("127.0.0.1", server_extensions(others)), "client": ("a client", client_extensions())}
    for file, (subject, extensions) in subjects.items():
        key = ec.generate_private_key(ec.SECP256R1())
        signed = certificate(subject, key, authority, ca_key, extensions)
        (folder / f"{file}.crt").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        (folder / f"{file}.key").write_bytes(private_bytes(key))
        (folder / f"{file}.key").chmod(0o600)
    hosts.write_text("\n".join(others), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
