"""Certificates of the bus: each node's own, signed by itself, known by its public key.

There is no authority that a node or client has to trust: routes pin the other nodes' keys, and
clients trust exactly the certificates that the operators publish.
"""

from __future__ import annotations

import hashlib
import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from zipnet.errors import ConfigRejected

MAX_PEM = 1 << 18
MAX_HOSTS = 16
_EARLY = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A new certificate and its key, both PEM, and its pin."""

    pem: bytes
    key: bytes = field(repr=False)
    pin: str


def self_signed(name: str, hosts: Sequence[str], now: datetime, days: int) -> Certificate:
    """A certificate for a node, good for these host names and addresses. Raises ConfigRejected.

    P-256, for server and client (a route is both), and no authority for others.
    """
    if not 1 <= len(hosts) <= MAX_HOSTS:
        raise ConfigRejected(
            "a certificate needs the hosts that it is for",
            expected=f"1 to {MAX_HOSTS}",
            got=str(len(hosts)),
            rule="certificate.hosts",
        )
    key = ec.generate_private_key(ec.SECP256R1())
    # Of two trusted certificates with one name OpenSSL tries the first only: old and new differ.
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, name[:64]),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, _pin(key.public_key())[:16]),
        ]
    )
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLY)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(list(map(_host, hosts))), critical=False)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA256())
    )
    pem = made.public_bytes(Encoding.PEM)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Certificate(pem, secret, pin(pem))


def pin(pem: bytes) -> str:
    """SHA-256 of the public key (SubjectPublicKeyInfo, DER) of the only certificate, as hex.

    Raises ConfigRejected.
    """
    found = _certificates(pem)
    if len(found) != 1:
        raise ConfigRejected(
            "a pin is of one certificate",
            expected="1 in the file",
            got=str(len(found)),
            rule="certificate.one",
        )
    return _pin(found[0].public_key())


def client_context(pem: bytes) -> ssl.SSLContext:
    """For connecting to nodes that show one of these certificates (PEM), and to no others.

    The host must be one that the certificate names. Raises ConfigRejected.
    """
    found = _certificates(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    text = b"".join(one.public_bytes(Encoding.PEM) for one in found)
    context.load_verify_locations(cadata=text.decode())
    return context


def _pin(key: CertificatePublicKeyTypes) -> str:
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def _certificates(pem: bytes) -> list[x509.Certificate]:
    if len(pem) > MAX_PEM:
        raise ConfigRejected(
            "the file is too large for certificates",
            expected=f"at most {MAX_PEM} bytes",
            got=str(len(pem)),
            rule="certificate.size",
        )
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ConfigRejected(
            "these are no certificates",
            expected="PEM, as `zipnet nats-config cert` writes it",
            got=ascii(str(error))[:80],
            rule="certificate.pem",
        ) from error


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        return x509.DNSName(text)
    except ValueError as error:
        raise ConfigRejected(
            "this is no host for a certificate",
            expected="a name in ASCII, or an address",
            got=ascii(text)[:80],
            rule="certificate.host",
        ) from error
