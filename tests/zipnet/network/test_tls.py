"""Certificates of nodes: what is in them, who takes them, and what a pin is."""

from __future__ import annotations

import hashlib
import ipaddress
import socket
import ssl
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from zipnet.errors import ConfigRejected
from zipnet.network.tls import MAX_HOSTS, MAX_PEM, Certificate, client_context, pin, self_signed

NOW = datetime.now(UTC)


def made(*hosts: str) -> Certificate:
    return self_signed("alpha", hosts or ("127.0.0.1", "alpha.test"), NOW, 30)


def rule(call: object, *arguments: object) -> str:
    with pytest.raises(ConfigRejected) as caught:
        call(*arguments)  # type: ignore[operator]
    return caught.value.rule


def test_what_is_in_a_certificate() -> None:
    (found,) = x509.load_pem_x509_certificates(made().pem)
    assert found.issuer == found.subject
    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    hosts = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert hosts.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("127.0.0.1")]
    assert hosts.get_values_for_type(x509.DNSName) == ["alpha.test"]
    usage = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert found.not_valid_after_utc - NOW <= timedelta(days=30)
    assert found.not_valid_before_utc <= NOW


def test_a_pin_is_the_digest_of_the_public_key(tmp_path: Path) -> None:
    certificate = made()
    path = tmp_path / "a.crt"
    path.write_bytes(certificate.pem)
    command = ["openssl", "x509", "-in", str(path), "-noout", "-pubkey"]
    pem = subprocess.run(command, check=True, capture_output=True).stdout
    command = ["openssl", "pkey", "-pubin", "-outform", "DER"]
    der = subprocess.run(command, check=True, capture_output=True, input=pem).stdout
    assert certificate.pin == pin(certificate.pem) == hashlib.sha256(der).hexdigest()
    assert made().pin != certificate.pin
    assert certificate.key not in repr(certificate).encode()


def test_refusals() -> None:
    one = made().pem
    assert rule(pin, one + made().pem) == "certificate.one"
    assert rule(pin, b"") == "certificate.pem"
    assert rule(pin, one.replace(b"MII", b"AII", 1)) == "certificate.pem"
    assert rule(client_context, b" " * (MAX_PEM + 1)) == "certificate.size"
    assert rule(self_signed, "a", [], NOW, 1) == "certificate.hosts"
    assert rule(self_signed, "a", ["a"] * (MAX_HOSTS + 1), NOW, 1) == "certificate.hosts"
    assert rule(self_signed, "a", ["ö.test"], NOW, 1) == "certificate.host"


def shake(certificate: Certificate, trusted: bytes, host: str, folder: Path) -> str:
    """What comes of a connection to a node with this certificate; empty if it is good."""
    cert, key = folder / "node.crt", folder / "node.key"
    cert.write_bytes(certificate.pem)
    key.write_bytes(certificate.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            with context.wrap_socket(theirs, server_side=True) as wrapped:
                wrapped.sendall(b"x")
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client_context(trusted).wrap_socket(ours, server_hostname=host) as wrapped:
            wrapped.recv(1)
            assert wrapped.version() == "TLSv1.3"
    except ssl.SSLError as error:
        return str(error)
    finally:
        ours.close()
        thread.join(10)
    return ""


def test_only_the_certificates_that_are_named_are_taken(tmp_path: Path) -> None:
    one, other = made(), made()
    assert shake(one, other.pem + one.pem, "127.0.0.1", tmp_path) == ""
    assert shake(one, one.pem, "alpha.test", tmp_path) == ""
    assert "self-signed" in shake(one, other.pem, "127.0.0.1", tmp_path)
    assert "match" in shake(one, one.pem, "bravo.test", tmp_path)
    old = self_signed("alpha", ["127.0.0.1"], NOW - timedelta(days=3), 1)
    assert "expired" in shake(old, old.pem, "127.0.0.1", tmp_path)
