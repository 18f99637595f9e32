"""The certificates of a software TDX: keys, certificates and revocation lists as Intel shapes them.

Everything follows from a seed, byte for byte: a key is 1 + SHA-512("mock-tdx/" label "/" seed)
mod (n - 1) on P-256, and signatures are those of RFC 6979. Whoever knows the seed can sign
anything, so none of this is in a production image.

Profile: Intel, "SGX PCK Certificate and Certificate Revocation List Profile Specification" 1.5.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

EPOCH = datetime(2018, 5, 21, tzinfo=UTC)
END = datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)

# The order of P-256 (FIPS 186-5).
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_SGX = "1.2.840.113741.1.13.1"


@dataclass(frozen=True, slots=True)
class SgxExtension:
    """What a PCK certificate says of its platform: the content of the SGX extension."""

    ppid: bytes
    platform_instance_id: bytes
    fmspc: bytes = bytes.fromhex("50806f000000")
    pce_id: bytes = bytes(2)
    cpu_svn: bytes = bytes.fromhex("03030202040100050000000000000000")
    pce_svn: int = 11

    def encode(self) -> bytes:
        """The extension as DER."""
        components = [
            _entry(f"{_SGX}.2.{index}", _integer(svn))
            for index, svn in enumerate(self.cpu_svn, start=1)
        ]
        configuration = [_entry(f"{_SGX}.7.{index}", _der(0x01, b"\xff")) for index in (1, 2, 3)]
        return _sequence(
            _entry(f"{_SGX}.1", _der(0x04, self.ppid)),
            _entry(
                f"{_SGX}.2",
                _sequence(
                    *components,
                    _entry(f"{_SGX}.2.17", _integer(self.pce_svn)),
                    _entry(f"{_SGX}.2.18", _der(0x04, self.cpu_svn)),
                ),
            ),
            _entry(f"{_SGX}.3", _der(0x04, self.pce_id)),
            _entry(f"{_SGX}.4", _der(0x04, self.fmspc)),
            _entry(f"{_SGX}.5", _der(0x0A, b"\1")),
            _entry(f"{_SGX}.6", _der(0x04, self.platform_instance_id)),
            _entry(f"{_SGX}.7", _sequence(*configuration)),
        )


@dataclass(frozen=True, slots=True)
class Spec:
    """A certificate to be made; `issuer` names another one, `path_length` is None for leaves."""

    common_name: str
    issuer: str
    path_length: int | None = None
    not_before: datetime = EPOCH
    not_after: datetime = END
    extension: SgxExtension | None = None

    @property
    def is_ca(self) -> bool:
        """Whether it may issue certificates."""
        return self.path_length is not None


SPECS: Mapping[str, Spec] = MappingProxyType(
    {
        "root": Spec("Intel SGX Root CA", "root", path_length=1),
        "pck-ca": Spec("Intel SGX PCK Platform CA", "root", path_length=0),
        "tcb-signer": Spec("Intel SGX TCB Signing", "root"),
        "pck": Spec("Intel SGX PCK Certificate", "pck-ca"),
    }
)


@dataclass(frozen=True, slots=True)
class Pki:
    """Certificates and keys from a seed; `specs` may hold others besides those of Intel's scheme.

    `labels` gives a certificate the key of another label; by default its own name is the label.
    """

    seed: bytes
    specs: Mapping[str, Spec]
    labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, seed: bytes, platform: int, changes: Mapping[str, Spec]) -> "Pki":
        """The PKI with the PCK certificate of one platform; `changes` replace or add certificates.

        What replaces `pck` has the extension that it brings, or none.
        """
        pck = replace(SPECS["pck"], extension=sgx_extension(seed, platform))
        return cls(seed, {**SPECS, "pck": pck, **changes}, {"pck": f"pck-{platform}"})

    def key(self, label: str) -> ec.EllipticCurvePrivateKey:
        """The private key with this label."""
        text = b"mock-tdx/" + self.labels.get(label, label).encode() + b"/" + self.seed
        number = 1 + int.from_bytes(hashlib.sha512(text).digest(), "big") % (_ORDER - 1)
        return ec.derive_private_key(number, ec.SECP256R1())

    def sign(self, label: str, data: bytes) -> bytes:
        """ECDSA with SHA-256: r and s, 32 bytes each."""
        der = self.key(label).sign(data, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
        r, s = decode_dss_signature(der)
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def point(self, label: str) -> bytes:
        """The public key: x and y, 32 bytes each."""
        numbers = self.key(label).public_key().public_numbers()
        return numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")

    def serial(self, name: str) -> int:
        """The serial number of a certificate."""
        label = self.labels.get(name, name).encode()
        digest = hashlib.sha256(b"mock-tdx/serial/" + label + b"/" + self.seed).digest()
        return int.from_bytes(digest[:16], "big") >> 1 | 1

    def certificate(self, name: str) -> bytes:
        """A certificate as DER."""
        spec = self.specs[name]
        key, issuer_key = self.key(name), self.key(spec.issuer)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(spec.common_name))
            .issuer_name(_name(self.specs[spec.issuer].common_name))
            .public_key(key.public_key())
            .serial_number(self.serial(name))
            .not_valid_before(spec.not_before)
            .not_valid_after(spec.not_after)
            .add_extension(_key_identifier(issuer_key), critical=False)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(_key_usage(spec.is_ca), critical=True)
            .add_extension(x509.BasicConstraints(spec.is_ca, spec.path_length), critical=True)
        )
        if spec.extension is not None:
            content = spec.extension.encode()
            builder = builder.add_extension(
                x509.UnrecognizedExtension(x509.ObjectIdentifier(_SGX), content), critical=False
            )
        signed = builder.sign(issuer_key, hashes.SHA256(), ecdsa_deterministic=True)
        return signed.public_bytes(Encoding.DER)

    def chain(self, names: Collection[str]) -> str:
        """These certificates as PEM, in this order."""
        return "".join(
            x509.load_der_x509_certificate(self.certificate(name))
            .public_bytes(Encoding.PEM)
            .decode()
            for name in names
        )

    def crl(
        self, issuer: str, issued: datetime, expires: datetime, revoked: Collection[str] = ()
    ) -> bytes:
        """A revocation list as DER, with the certificates of these names on it."""
        key = self.key(issuer)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(_name(self.specs[issuer].common_name))
            .last_update(issued)
            .next_update(expires)
            .add_extension(_key_identifier(key), critical=False)
            .add_extension(x509.CRLNumber(1), critical=False)
        )
        for name in revoked:
            entry = x509.RevokedCertificateBuilder(self.serial(name), issued)
            builder = builder.add_revoked_certificate(entry.build())
        signed = builder.sign(key, hashes.SHA256(), ecdsa_deterministic=True)
        return signed.public_bytes(Encoding.DER)


def sgx_extension(seed: bytes, platform: int) -> SgxExtension:
    """The extension of a platform: each number has its own PPID and instance."""
    digest = hashlib.sha256(b"mock-tdx/platform/%d/" % platform + seed).digest()
    return SgxExtension(ppid=digest[:16], platform_instance_id=digest[16:])


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Mock TDX, not Intel"),
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
        ]
    )


def _key_identifier(key: ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def _key_usage(is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=not is_ca,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )


def _der(tag: int, content: bytes) -> bytes:
    """ITU-T X.690: tag, length, content; contents here are below 64 KiB."""
    size = len(content)
    length = bytes([size]) if size < 128 else b"\x82" + size.to_bytes(2, "big")
    return bytes([tag]) + length + content


def _sequence(*parts: bytes) -> bytes:
    return _der(0x30, b"".join(parts))


def _integer(value: int) -> bytes:
    return _der(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _entry(oid: str, value: bytes) -> bytes:
    first, second, *rest = map(int, oid.split("."))
    coded = bytes([40 * first + second])
    for number in rest:
        groups = [number & 0x7F]
        while number := number >> 7:
            groups.insert(0, number & 0x7F | 0x80)
        coded += bytes(groups)
    return _sequence(_der(0x06, coded), value)
