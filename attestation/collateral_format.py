"""Collateral: what Intel publishes about a platform, without which no quote can be judged.

One JSON object with the nine members of the DCAP library's `sgx_ql_qve_collateral_t` (Intel, "SGX
DCAP Quoting Library API", section 3.6), as dcap-qvl names them: chains and signed documents as
text, CRLs (DER) and signatures (r and s) as hex. The documents inside are Intel's TCB info version
3 and QE identity version 2 (Intel PCS API version 4).

Nothing here is trusted yet: this is the form only, read once for any number of quotes.
"""

import base64
import binascii
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from datetime import datetime
from functools import partial
from typing import Any, NoReturn

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from attestation.errors import CollateralFormatError

MAX_BYTES = 2 << 20
SIGNATURE_BYTES = 64

_MAX_CERTIFICATE = 4096
_MAX_CRL = 512 << 10
_MAX_CHAIN = 3
_MAX_CHAIN_TEXT = 32 << 10
_MAX_DOCUMENT = 256 << 10

_SGX_EXTENSION = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
# Text in Intel's form only, so that no two texts of one chain differ in more than line ends.
_PEM = re.compile(
    "-----BEGIN CERTIFICATE-----\r?\n((?:[A-Za-z0-9+/=]{1,76}\r?\n)+)-----END CERTIFICATE-----"
    "(?:\r?\n)*"
)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
# What `cryptography` raises for hostile certificates; warnings are here for those who make errors
# of them.
_X509_ERRORS = (
    ValueError,
    TypeError,
    OverflowError,
    UnsupportedAlgorithm,
    Warning,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate as far as our checks read it; `x509` is the parsed whole.

    `subject` is the DER of the name, `common_name` empty unless there is exactly one.
    """

    der: bytes
    x509: x509.Certificate
    subject: bytes
    common_name: str
    serial: int
    not_before: datetime
    not_after: datetime
    has_sgx_extension: bool

    @classmethod
    def parse(cls, der: bytes) -> "Certificate":
        """Raises CollateralFormatError (rule `certificate`)."""
        try:
            parsed = x509.load_der_x509_certificate(der)
            names = parsed.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
            return cls(
                der,
                parsed,
                parsed.subject.public_bytes(),
                str(names[0].value) if len(names) == 1 else "",
                parsed.serial_number,
                parsed.not_valid_before_utc,
                parsed.not_valid_after_utc,
                any(extension.oid == _SGX_EXTENSION for extension in parsed.extensions),
            )
        except _X509_ERRORS as error:
            _refuse("certificate", "certificate is malformed", "X.509 version 3, DER", error)


def parse_chain(text: str, known: Iterable[Certificate] = ()) -> tuple[Certificate, ...]:
    """The certificates of a PEM chain, leaf first: two or three, and nothing else in the text.

    Those in `known` are not parsed again. Raises CollateralFormatError: rule pem, chain-length,
    certificate-size, certificate.
    """
    ders = list(_pem(text))
    if not 2 <= len(ders) <= _MAX_CHAIN:
        _refuse(
            "chain-length",
            "certificate chain has another length",
            f"2 to {_MAX_CHAIN} certificates, leaf first, root last",
            f"{len(ders)}",
        )
    parsed = {certificate.der: certificate for certificate in known}
    return tuple(parsed.get(der) or Certificate.parse(der) for der in ders)


@dataclass(frozen=True, slots=True)
class Crl:
    """A certificate revocation list; `issuer` is the DER of the issuer's name."""

    x509: x509.CertificateRevocationList
    issuer: bytes
    issued: datetime
    expires: datetime

    @classmethod
    def parse(cls, der: bytes) -> "Crl":
        """Raises CollateralFormatError (rule `crl`)."""
        try:
            parsed = x509.load_der_x509_crl(der)
            expires = parsed.next_update_utc
            issued = parsed.last_update_utc
            issuer = parsed.issuer.public_bytes()
        except _X509_ERRORS as error:
            _refuse("crl", "revocation list is malformed", "an X.509 CRL, DER", error)
        if expires is None:
            _refuse("crl", "revocation list never expires", "nextUpdate", "none")
        return cls(parsed, issuer, issued, expires)

    def revokes(self, certificate: Certificate) -> bool:
        """Whether the serial number is on the list; both must be of one issuer."""
        return self.x509.get_revoked_certificate_by_serial_number(certificate.serial) is not None


@dataclass(frozen=True, slots=True)
class Document:
    """What TCB info and QE identity have in common; `content` is the decoded JSON object."""

    content: dict[str, Any]
    issued: datetime
    expires: datetime
    evaluation_number: int

    @classmethod
    def parse(cls, text: str, name: str, *, kind: str, version: int) -> "Document":
        """Raises CollateralFormatError: rule json, duplicate-key, {name}-id, {name}-version, ..."""
        content = _json(text, name)
        for member, wanted in (("id", kind), ("version", version)):
            value = content.get(member)
            if type(value) is not type(wanted) or value != wanted:
                _refuse(
                    f"{name}-{member}",
                    f"{name} is of another {member}",
                    wanted,
                    value,
                    "fetch the TDX documents of API version 4, not those for SGX",
                )
        number = content.get("tcbEvaluationDataNumber")
        if type(number) is not int or not 0 <= number < 1 << 32:
            _refuse(f"{name}-number", "no evaluation data number", "a 32-bit integer", number)
        return cls(content, _date(content, "issueDate"), _date(content, "nextUpdate"), number)


@dataclass(frozen=True, slots=True)
class Parsed:
    """The nine members, read."""

    pck_crl_issuer: tuple[Certificate, ...]
    root_crl: Crl
    pck_crl: Crl
    tcb_info_issuer: tuple[Certificate, ...]
    tcb_info: Document
    fmspc: bytes
    pce_id: bytes
    qe_identity_issuer: tuple[Certificate, ...]
    qe_identity: Document

    @property
    def issuers(self) -> dict[str, tuple[Certificate, ...]]:
        """The chain of each issuer, under the name of its member."""
        return {
            "tcb_info_issuer_chain": self.tcb_info_issuer,
            "qe_identity_issuer_chain": self.qe_identity_issuer,
            "pck_crl_issuer_chain": self.pck_crl_issuer,
        }

    def periods(self) -> Iterator[tuple[str, datetime, datetime]]:
        """Of each part its name, the first moment it is valid, and the first it no longer is."""
        yield "tcb_info", self.tcb_info.issued, self.tcb_info.expires
        yield "qe_identity", self.qe_identity.issued, self.qe_identity.expires
        yield "root_ca_crl", self.root_crl.issued, self.root_crl.expires
        yield "pck_crl", self.pck_crl.issued, self.pck_crl.expires
        for name, chain in self.issuers.items():
            for certificate in chain:
                yield name, certificate.not_before, certificate.not_after


@dataclass(frozen=True, slots=True)
class Collateral:
    """The nine members as they came; text is ASCII, signatures are 64 bytes, CRLs DER.

    Raises CollateralFormatError when made of anything malformed; see `rule`.
    """

    pck_crl_issuer_chain: str
    root_ca_crl: bytes
    pck_crl: bytes
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: bytes
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: bytes
    parsed: Parsed = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, size in _SIZES.items():
            value = getattr(self, name)
            if len(value) > size or (name in _SIGNATURES and len(value) != size):
                bound = "" if name in _SIGNATURES else "at most "
                _refuse("size", f"{name} has another size", f"{bound}{size}", str(len(value)))
            if isinstance(value, str) and not value.isascii():
                _refuse("text", f"{name} is not ASCII", "ASCII", "other characters")
        tcb_info = Document.parse(self.tcb_info, "tcb-info", kind="TDX", version=3)
        parsed = Parsed(
            pck_crl_issuer=parse_chain(self.pck_crl_issuer_chain),
            root_crl=Crl.parse(self.root_ca_crl),
            pck_crl=Crl.parse(self.pck_crl),
            tcb_info_issuer=parse_chain(self.tcb_info_issuer_chain),
            tcb_info=tcb_info,
            fmspc=_hex(tcb_info.content, "fmspc", 6),
            pce_id=_hex(tcb_info.content, "pceId", 2),
            qe_identity_issuer=parse_chain(self.qe_identity_issuer_chain),
            qe_identity=Document.parse(self.qe_identity, "qe-identity", kind="TD_QE", version=2),
        )
        object.__setattr__(self, "parsed", parsed)

    @classmethod
    def loads(cls, raw: bytes) -> "Collateral":
        """The collateral in a file. Raises CollateralFormatError."""
        return cls.of_json(read_object(raw, "collateral"))

    @classmethod
    def of_json(cls, content: dict[str, Any]) -> "Collateral":
        """From the members as a JSON object holds them. Raises CollateralFormatError."""
        if content.keys() != _SIZES.keys():
            missing = ", ".join(sorted(_SIZES.keys() - content.keys())) or "nothing"
            _refuse(
                "fields",
                "collateral has other members",
                ", ".join(_SIZES),
                f"missing {missing}, {len(content.keys() - _SIZES.keys())} unknown",
                "drop what is unknown, also `pck_certificate_chain`: the chain in the quote counts",
            )
        values: dict[str, Any] = {}
        for name, value in content.items():
            if not isinstance(value, str):
                _refuse("type", f"{name} is no text", "a string", type(value).__name__)
            values[name] = value
            if name in _BINARY:
                if not re.fullmatch("(?:[0-9a-fA-F]{2})*", value):
                    _refuse("hex", f"{name} is not hex", "pairs of hex digits", "something else")
                values[name] = bytes.fromhex(value)
        return cls(**values)

    def to_json(self) -> dict[str, str]:
        """The members as `of_json` takes them."""
        values = {name: getattr(self, name) for name in _SIZES}
        return {k: v.hex() if isinstance(v, bytes) else v for k, v in values.items()}

    def dumps(self) -> bytes:
        """A file of it, as `loads` takes it."""
        return json.dumps(self.to_json(), indent=2).encode() + b"\n"


def read_object(raw: bytes, name: str) -> dict[str, Any]:
    """The JSON object in a file; no object in it may repeat a key.

    Raises CollateralFormatError: rule size, text, json, duplicate-key.
    """
    if len(raw) > MAX_BYTES:
        _refuse("size", f"{name} is too large", f"at most {MAX_BYTES} bytes", f"{len(raw)}")
    try:
        text = raw.decode("ascii")
    except UnicodeDecodeError as error:
        _refuse("text", f"{name} is not ASCII", "ASCII", error.reason)
    return _json(text, name)


_SIZES = {
    "pck_crl_issuer_chain": _MAX_CHAIN_TEXT,
    "root_ca_crl": _MAX_CRL,
    "pck_crl": _MAX_CRL,
    "tcb_info_issuer_chain": _MAX_CHAIN_TEXT,
    "tcb_info": _MAX_DOCUMENT,
    "tcb_info_signature": SIGNATURE_BYTES,
    "qe_identity_issuer_chain": _MAX_CHAIN_TEXT,
    "qe_identity": _MAX_DOCUMENT,
    "qe_identity_signature": SIGNATURE_BYTES,
}
_SIGNATURES = {"tcb_info_signature", "qe_identity_signature"}
_BINARY = {f.name for f in fields(Collateral) if f.type is bytes}


def _pem(text: str) -> Iterator[bytes]:
    at = 0
    while at < len(text):
        match = _PEM.match(text, at)
        if match is None:
            _refuse("pem", "certificate chain is no PEM", "certificates only", f"else at {at}")
        coded = re.sub("[\r\n]", "", match[1])
        try:
            der = base64.b64decode(coded, validate=True)
        except binascii.Error as error:
            _refuse("pem", "certificate is no base64", "base64", error)
        if base64.b64encode(der).decode() != coded:
            _refuse("pem", "base64 is not canonical", "zero bits at its end", "others")
        if len(der) > _MAX_CERTIFICATE:
            _refuse(
                "certificate-size",
                "certificate is too large",
                f"at most {_MAX_CERTIFICATE} bytes",
                str(len(der)),
            )
        yield der
        at = match.end()


def _json(text: str, name: str) -> dict[str, Any]:
    try:
        content = json.loads(
            text,
            object_pairs_hook=partial(_object, name),
            parse_constant=partial(_constant, name),
        )
    except (ValueError, RecursionError) as error:
        _refuse("json", f"{name} is not JSON", "JSON", error)
    if not isinstance(content, dict):
        _refuse("json", f"{name} is no JSON object", "an object", type(content).__name__)
    return content


def _object(name: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        key, count = Counter(key for key, _ in pairs).most_common(1)[0]
        _refuse("duplicate-key", f"{name} repeats a key", "each once", f"{key[:40]!a} {count}x")
    return result


def _constant(name: str, constant: str) -> NoReturn:
    _refuse("json", f"{name} is not JSON", "finite numbers", constant)


def _date(content: dict[str, Any], member: str) -> datetime:
    value = content.get(member)
    if not isinstance(value, str) or not _DATE.fullmatch(value):
        _refuse("date", f"{member} is no date", "YYYY-MM-DDThh:mm:ssZ", value)
    try:
        return datetime.fromisoformat(value)
    except ValueError as error:
        _refuse("date", f"{member} is no date", "YYYY-MM-DDThh:mm:ssZ", error)


def _hex(content: dict[str, Any], member: str, size: int) -> bytes:
    value = content.get(member)
    if not isinstance(value, str) or not re.fullmatch(f"[0-9a-fA-F]{{{2 * size}}}", value):
        _refuse("tcb-info-fields", f"{member} is malformed", f"{2 * size} hex digits", value)
    return bytes.fromhex(value)


def _refuse(
    rule: str,
    message: str,
    expected: object,
    got: object,
    hint: str = "fetch the collateral again; do not edit it",
) -> NoReturn:
    cause = got if isinstance(got, Exception) else None
    if isinstance(got, str | int | float | None | Exception):
        shown = str(got).encode("ascii", "backslashreplace").decode()
        shown = shown if len(shown) <= 120 else f"{shown[:120]}..."
    else:
        shown = type(got).__name__
    raise CollateralFormatError(
        message, expected=str(expected), got=shown, rule=rule, hint=hint
    ) from cause
