"""TDX quotes: bytes to fields, and nothing about trust.

Format: Intel, "Intel TDX DCAP Quoting Library API", appendix A.3 (quote version 4) and A.4
(version 5). Integers are little-endian. A quote is

    header 48 | version 5 only: body type u16, body size u32 | TD report 584 or 648
    | signature data length u32 | signature data | zeros, up to 16,384 bytes in all

    signature data:           signature 64 | attestation key 64 | certification data of type 6
    certification data:       type u16 | length u32 | content
    content of type 6:        QE report 384 | its signature 64 | length u16 | QE authentication data
                              | certification data of type 5
    content of type 5:        PCK certificate chain as PEM, leaf first, often with a final NUL

Everything must fit exactly: what a length leaves over could be changed by anyone who passes the
quote on, and would make two texts of one quote.
"""

import hashlib
from dataclasses import dataclass
from struct import Struct
from typing import NoReturn

from attestation.errors import QuoteFormatError

# The smallest file is a version 4 header and report with something after; the largest leaves room
# for a padded buffer of the quoting service (8,000 bytes are common).
MIN_BYTES = 633
MAX_BYTES = 16_384

_TDX = 0x81
_ECDSA_P256 = 2
_INTEL_QE = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_PCK_CHAIN = 5
_QE_REPORT = 6
_CERTIFICATIONS = {
    _QE_REPORT: ("certification", "QE report"),
    _PCK_CHAIN: ("pck-certification", "PCK certificate chain"),
}

_HEADER = Struct("<HHIHH16s20s")
_DESCRIPTOR = Struct("<HI")
_TD10 = Struct("<16s48s48s8s8s8s48s48s48s48s48s48s48s48s64s")
_TD15 = Struct(_TD10.format + "16s48s")
_LENGTH = Struct("<I")
_SIGNATURE = Struct("<64s64s")
_ENCLAVE = Struct("<16s4s28s16s32s32s32s96sHH60s64s")
_AUTHENTICATION = Struct("<64sH")
_CERTIFICATION = Struct("<HI")
_QE_MIN = _ENCLAVE.size + _AUTHENTICATION.size + _CERTIFICATION.size

_BODIES = {2: _TD10, 3: _TD15}


@dataclass(frozen=True, slots=True)
class Header:
    """The quote header (TD Quote Header).

    `qe_svn` and `pce_svn` are what SGX quotes hold there; in TD quotes both are reserved and 0.
    The first 16 bytes of `user_data` (20) link the platform to its PCK certificate.
    """

    version: int
    attestation_key_type: int
    tee_type: int
    qe_svn: int
    pce_svn: int
    qe_vendor_id: bytes
    user_data: bytes


@dataclass(frozen=True, slots=True)
class TdReport:
    """The report of the TD (TD Quote Body), as the TDX module wrote it.

    SVN arrays are 16 bytes, attribute fields 8 (little-endian bit masks), `report_data` 64, all
    others SHA-384 values or 48 free bytes. The last two are of TDX 1.5 in version 5 quotes.
    """

    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    td_attributes: bytes
    xfam: bytes
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmr0: bytes
    rtmr1: bytes
    rtmr2: bytes
    rtmr3: bytes
    report_data: bytes
    tee_tcb_svn_2: bytes | None = None
    mr_service_td: bytes | None = None

    @property
    def rtmrs(self) -> tuple[bytes, bytes, bytes, bytes]:
        """RTMR0 to RTMR3."""
        return self.rtmr0, self.rtmr1, self.rtmr2, self.rtmr3


@dataclass(frozen=True, slots=True)
class EnclaveReport:
    """The report of the quoting enclave (Enclave Report Body), without its reserved fields.

    Sizes in bytes: `cpu_svn` 16, `misc_select` 4 and `attributes` 16 (little-endian bit masks),
    `mr_enclave` and `mr_signer` 32, `report_data` 64.
    """

    cpu_svn: bytes
    misc_select: bytes
    attributes: bytes
    mr_enclave: bytes
    mr_signer: bytes
    isv_prod_id: int
    isv_svn: int
    report_data: bytes


@dataclass(frozen=True, slots=True)
class Quote:
    """A well-formed quote; whether it is genuine is for `attestation.verify`.

    `signature` (over `signed_region`) and `qe_report_signature` are r and s, 32 bytes each,
    big-endian; `attestation_key` is x and y of a P-256 point, 64 bytes. `certification_data_type`
    is that of `pck_certificate_chain`. `canonical` is the quote without padding.
    """

    header: Header
    body: TdReport
    signature: bytes
    attestation_key: bytes
    qe_report: EnclaveReport
    qe_report_signature: bytes
    qe_authentication_data: bytes
    certification_data_type: int
    pck_certificate_chain: bytes
    canonical: bytes
    signed_region: bytes

    @property
    def digest(self) -> bytes:
        """SHA-256 of the signed region: the replay key.

        Never take a hash of the whole quote for that: its signatures and certificates have other
        encodings that are just as good.
        """
        return hashlib.sha256(self.signed_region).digest()

    @classmethod
    def parse(cls, raw: bytes) -> "Quote":
        """The quote in `raw`, which may be padded with zeros up to MAX_BYTES in all.

        Raises QuoteFormatError with one of the rules size, version, tee-type, key-type, qe-vendor,
        header-reserved, body-type, body-type-sgx, body-type-td15-ex, body-size, truncated,
        trailing-bytes, signature-length, certification-type, certification-length,
        qe-report-reserved, qe-authentication-length, pck-certification-type,
        pck-certification-length.
        """
        if not MIN_BYTES <= len(raw) <= MAX_BYTES:
            _refuse(
                "size",
                "quote has an impossible size",
                f"{MIN_BYTES} to {MAX_BYTES} bytes",
                f"{len(raw)} bytes",
                "pass one raw quote: the bytes of outblob, not their hex or base64 form",
            )
        header = _header(raw)
        body, signed = _body(raw, header.version)
        end = _end(raw, signed)
        at = signed + _LENGTH.size
        if end - at < _SIGNATURE.size + _CERTIFICATION.size:
            _refuse(
                "signature-length",
                "signature data is too short for its fixed fields",
                f"at least {_SIGNATURE.size + _CERTIFICATION.size} bytes",
                f"{end - at} bytes",
            )
        signature, key = _SIGNATURE.unpack_from(raw, at)
        at = _certification(raw, at + _SIGNATURE.size, end, _QE_REPORT)
        if end - at < _QE_MIN:
            _refuse(
                "certification-length",
                "certification data is too short for a QE report",
                f"at least {_QE_MIN} bytes",
                f"{end - at} bytes",
            )
        report = _enclave_report(raw, at)
        at += _ENCLAVE.size
        report_signature, size = _AUTHENTICATION.unpack_from(raw, at)
        at += _AUTHENTICATION.size
        if size > end - at - _CERTIFICATION.size:
            _refuse(
                "qe-authentication-length",
                "QE authentication data leaves no room for the PCK certificates",
                f"at most {end - at - _CERTIFICATION.size} bytes",
                f"{size} bytes",
            )
        chain = _certification(raw, at + size, end, _PCK_CHAIN)
        return cls(
            header=header,
            body=body,
            signature=signature,
            attestation_key=key,
            qe_report=report,
            qe_report_signature=report_signature,
            qe_authentication_data=raw[at : at + size],
            certification_data_type=_PCK_CHAIN,
            pck_certificate_chain=raw[chain:end],
            canonical=raw[:end],
            signed_region=raw[:signed],
        )


def _header(raw: bytes) -> Header:
    header = Header(*_HEADER.unpack_from(raw))
    if header.version not in {4, 5}:
        _refuse(
            "version",
            "quote is of another version",
            "4 or 5",
            str(header.version),
            "version 3 is SGX only; anything else is no quote, or one in hex or base64",
        )
    if header.tee_type != _TDX:
        _refuse(
            "tee-type",
            "quote is not of a TD",
            f"TEE type {_TDX:#x} (TDX)",
            f"{header.tee_type:#x}",
            "quote from inside a TD: an SGX enclave (type 0) can't be a peer",
        )
    if header.attestation_key_type != _ECDSA_P256:
        _refuse(
            "key-type",
            "attestation key is of another type",
            f"type {_ECDSA_P256} (ECDSA with P-256)",
            f"type {header.attestation_key_type}",
        )
    if header.qe_vendor_id != _INTEL_QE:
        _refuse(
            "qe-vendor",
            "quoting enclave is of another vendor",
            f"{_INTEL_QE.hex()} (Intel)",
            header.qe_vendor_id.hex(),
            "use the quoting enclave of Intel's DCAP: no other has collateral",
        )
    if header.qe_svn or header.pce_svn:
        _refuse(
            "header-reserved",
            "reserved header fields are not zero",
            "0 and 0",
            f"{header.qe_svn} and {header.pce_svn}",
        )
    return header


def _body(raw: bytes, version: int) -> tuple[TdReport, int]:
    """The report and the offset of its end, which is that of the signed region."""
    if version == 4:
        layout, start = _TD10, _HEADER.size
    else:
        kind, size = _DESCRIPTOR.unpack_from(raw, _HEADER.size)
        start = _HEADER.size + _DESCRIPTOR.size
        if kind not in _BODIES:
            _refuse_body(kind)
        layout = _BODIES[kind]
        if size != layout.size:
            _refuse(
                "body-size",
                f"body of type {kind} has another size",
                f"{layout.size} bytes",
                f"{size} bytes",
            )
    end = start + layout.size
    _require(raw, end + _LENGTH.size)
    return TdReport(*layout.unpack_from(raw, start)), end


def _refuse_body(kind: int) -> NoReturn:
    expected = "type 2 (TDX 1.0) or 3 (TDX 1.5)"
    if kind == 1:
        _refuse(
            "body-type-sgx",
            "quote is about an SGX enclave",
            expected,
            "type 1 (SGX)",
            "quote from inside a TD: an SGX enclave can't be a peer",
        )
    if kind == 4:
        _refuse(
            "body-type-td15-ex",
            "the extended TDX 1.5 report is not supported",
            expected,
            "type 4 (TDX 1.5 extended)",
            "set the quoting service to quotes of version 4, or of version 5 with body type 2 or 3",
        )
    _refuse("body-type", "quote body is of an unknown type", expected, f"type {kind}")


def _end(raw: bytes, signed: int) -> int:
    """The offset of the end of the quote: after it, zeros only."""
    (length,) = _LENGTH.unpack_from(raw, signed)
    end: int = signed + _LENGTH.size + length
    _require(raw, end)
    padding = raw[end:]
    rest = padding.lstrip(b"\0")
    if rest:
        _refuse(
            "trailing-bytes",
            f"something follows the quote, which ends at byte {end}",
            "the end, or zero bytes",
            f"{len(padding)} bytes, the first that is not zero at {len(raw) - len(rest)}",
            f"cut it at {end} bytes if you trust where it comes from: "
            "a quoting service pads with zeros only",
        )
    return end


def _certification(raw: bytes, at: int, end: int, wanted: int) -> int:
    """The offset of the content of the certification data at `at`, which must reach to `end`."""
    kind, length = _CERTIFICATION.unpack_from(raw, at)
    at += _CERTIFICATION.size
    rule, what = _CERTIFICATIONS[wanted]
    if kind != wanted:
        _refuse(
            f"{rule}-type",
            f"certification data is no {what}",
            f"type {wanted}",
            f"type {kind}",
            "use Intel's DCAP quoting service with a PCCS and a registered platform: "
            "without them quotes come without the PCK certificate chain",
        )
    if length != end - at:
        _refuse(
            f"{rule}-length",
            f"{what} does not reach to the end of the signature data",
            f"{end - at} bytes",
            f"{length} bytes",
        )
    return at


def _require(raw: bytes, size: int) -> None:
    if len(raw) < size:
        _refuse(
            "truncated",
            "quote ends too early for what its lengths announce",
            f"at least {size} bytes",
            f"{len(raw)} bytes",
            "read outblob to its end, and ask for a new quote if it stays short",
        )


def _enclave_report(raw: bytes, at: int) -> EnclaveReport:
    (
        cpu_svn,
        misc_select,
        reserved_1,
        attributes,
        mr_enclave,
        reserved_2,
        mr_signer,
        reserved_3,
        isv_prod_id,
        isv_svn,
        reserved_4,
        report_data,
    ) = _ENCLAVE.unpack_from(raw, at)
    reserved = reserved_1 + reserved_2 + reserved_3 + reserved_4
    if reserved.count(0) != len(reserved):
        _refuse(
            "qe-report-reserved",
            "reserved fields of the QE report are not zero",
            "zeros",
            f"{len(reserved) - reserved.count(0)} other bytes",
        )
    return EnclaveReport(
        cpu_svn,
        misc_select,
        attributes,
        mr_enclave,
        mr_signer,
        isv_prod_id,
        isv_svn,
        report_data,
    )


def _refuse(
    rule: str,
    message: str,
    expected: str,
    got: str,
    hint: str = "ask the machine for a new quote: this one was damaged or made up",
) -> NoReturn:
    raise QuoteFormatError(message, expected=expected, got=got, rule=rule, hint=hint)
