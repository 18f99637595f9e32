"""A TDX platform in software, for tests and emulation: quotes, collateral, and what breaks them.

`MockTee(seed)` is one platform with its whole PKI; `MockVerifier(tee.root_der)` judges its quotes
by the same code as the production verifier, which refuses them. Every knob makes one thing wrong
and leaves all signatures over it right, so that the rule for that thing has to fire.

A mock quote proves nothing to anyone who doesn't trust the holder of the seed.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from struct import Struct
from types import MappingProxyType
from typing import Any

from attestation import _genuine
from attestation._engine import Claims, TcbStatus, verify_with_root
from attestation.collateral_format import Certificate, Collateral
from attestation.errors import PolicyError, ProviderFailed
from attestation.measure import tdvf
from attestation.measure.pe import Pe
from attestation.measure.rtmr import BootPath
from attestation.measure.tdvf import HostProfile
from attestation.providers import mock_log
from attestation.providers.mock_log import SeparatorModel
from attestation.providers.mock_pki import Pki, SgxExtension, Spec
from attestation.quote import Quote
from attestation.verify import INTEL_ROOT

ISSUED = datetime(2025, 1, 1, tzinfo=UTC)
EXPIRES = datetime(2049, 12, 31, tzinfo=UTC)

# The layouts of `attestation.quote`, again: a copy that is wrong in both places would not be seen
# if the parser's were used.
_HEADER = {
    "version": 2,
    "attestation_key_type": 2,
    "tee_type": 4,
    "qe_svn": 2,
    "pce_svn": 2,
    "qe_vendor_id": 16,
    "user_data": 20,
}
_TD10 = {
    "tee_tcb_svn": 16,
    "mr_seam": 48,
    "mr_signer_seam": 48,
    "seam_attributes": 8,
    "td_attributes": 8,
    "xfam": 8,
    "mr_td": 48,
    "mr_config_id": 48,
    "mr_owner": 48,
    "mr_owner_config": 48,
    "rtmr0": 48,
    "rtmr1": 48,
    "rtmr2": 48,
    "rtmr3": 48,
    "report_data": 64,
}
_TD15 = {**_TD10, "tee_tcb_svn_2": 16, "mr_service_td": 48}
_ENCLAVE = {
    "cpu_svn": 16,
    "misc_select": 4,
    "reserved_1": 28,
    "attributes": 16,
    "mr_enclave": 32,
    "reserved_2": 32,
    "mr_signer": 32,
    "reserved_3": 96,
    "isv_prod_id": 2,
    "isv_svn": 2,
    "reserved_4": 60,
    "report_data": 64,
}

_TEE_TCB_SVN = bytes.fromhex("06010300000000000000000000000000")
_QE_SIGNER = hashlib.sha256(b"mock-tdx quoting enclave signer").digest()
_DATE = "%Y-%m-%dT%H:%M:%SZ"

Fields = Mapping[str, bytes | int]
_NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class MockEvidence:
    """A quote of a software TDX. Another type than `Evidence`: no policy can confuse them."""

    claims: Claims


@dataclass(frozen=True, slots=True)
class MockVerifier:
    """The production verification, ending at the root of a `MockTee`.

    Raises CollateralFormatError if the root is no certificate, PolicyError if it is Intel's.
    """

    root_der: bytes

    def __post_init__(self) -> None:
        Certificate.parse(self.root_der)
        if self.root_der == INTEL_ROOT:
            raise PolicyError(
                "mock verifier was given Intel's root",
                expected="the root of a MockTee",
                got="Intel SGX Root CA",
                rule="mock-root",
                hint="use attestation.verify.Verifier, whose evidence is worth something",
            )

    def verify(self, raw: bytes, collateral: Collateral, now: datetime) -> MockEvidence:
        """As `Verifier.verify`."""
        return MockEvidence(verify_with_root(raw, collateral, now, self.root_der))

    def check_collateral(self, collateral: Collateral, now: datetime) -> None:
        """As `Verifier.check_collateral`."""
        _genuine.check(collateral, now, self.root_der)


@dataclass(frozen=True, slots=True)
class MockTee:
    """One platform: its certificates, a quoting enclave and the collateral that Intel would serve.

    Platforms of one seed share root and authorities; each has its own PPID and PCK certificate.
    `certificates` replaces certificates of the PKI (root, pck-ca, tcb-signer, pck) or adds some.
    """

    seed: bytes = field(repr=False)
    platform: int = 0
    certificates: Mapping[str, Spec] = field(default_factory=dict)

    @property
    def pki(self) -> Pki:
        """Keys and certificates."""
        return Pki.of(self.seed, self.platform, self.certificates)

    @property
    def root_der(self) -> bytes:
        """The root certificate, for `MockVerifier`."""
        return self.pki.certificate("root")

    def quote(
        self,
        report_data: bytes,
        *,
        version: int = 4,
        td15: bool = False,
        header: Fields = _NONE,
        body: Fields = _NONE,
        qe_report: Fields = _NONE,
        qe_authentication: bytes = bytes(range(32)),
        key: str = "attestation",
        signed_by: str | None = None,
        certified: str | None = None,
        qe_signed_by: str = "pck",
        signature: bytes | None = None,
        qe_signature: bytes | None = None,
        chain: Collection[str] = ("pck", "pck-ca", "root"),
        pem: bytes | None = None,
        body_type: int | None = None,
        body_size: int | None = None,
        outer_type: int = 6,
        inner_type: int = 5,
        padding: int = 0,
    ) -> bytes:
        """A quote of version 4, or 5 with a TD 1.0 or (`td15`) TD 1.5 report.

        Knobs: `header`, `body` and `qe_report` replace fields by the names in `attestation.quote`;
        `key` labels the attestation key in the quote, `signed_by` the one that signs, `certified`
        the one that the QE vouches for, `qe_signed_by` the certificate whose key signs the QE
        report; `chain` names certificates; `padding` adds zeros. The others replace bytes.
        Raises ProviderFailed for report data of another size than 64 bytes.
        """
        if len(report_data) != 64:
            raise ProviderFailed(
                "report data has another size",
                expected="64 bytes",
                got=f"{len(report_data)} bytes",
                rule="mock.report-data-size",
                hint="hash what you want to bind with SHA-512",
            )
        pki = self.pki
        fields = {**_body(pki.seed, td15=td15), "report_data": report_data, **body}
        report = _pack(_TD15 if td15 else _TD10, fields)
        signed = _pack(_HEADER, {**_header(version), **header})
        if version == 5:
            kind = (3 if td15 else 2) if body_type is None else body_type
            size = len(report) if body_size is None else body_size
            signed += Struct("<HI").pack(kind, size)
        signed += report
        bound = hashlib.sha256(pki.point(certified or key) + qe_authentication).digest()
        enclave = _pack(_ENCLAVE, {**_qe(), "report_data": bound + bytes(32), **qe_report})
        if pem is None:
            pem = pki.chain(chain).encode() + b"\0"
        inner = (
            enclave
            + (pki.sign(qe_signed_by, enclave) if qe_signature is None else qe_signature)
            + Struct("<H").pack(len(qe_authentication))
            + qe_authentication
            + Struct("<HI").pack(inner_type, len(pem))
            + pem
        )
        data = (
            (pki.sign(signed_by or key, signed) if signature is None else signature)
            + pki.point(key)
            + Struct("<HI").pack(outer_type, len(inner))
            + inner
        )
        return signed + Struct("<I").pack(len(data)) + data + bytes(padding)

    def collateral(
        self,
        *,
        issued: datetime = ISSUED,
        expires: datetime = EXPIRES,
        dates: Mapping[str, tuple[datetime, datetime]] = _NONE,
        platform_status: TcbStatus | str = TcbStatus.UP_TO_DATE,
        module_status: TcbStatus | str = TcbStatus.UP_TO_DATE,
        qe_status: TcbStatus | str = TcbStatus.UP_TO_DATE,
        advisories: Collection[str] = (),
        evaluation_number: int = 17,
        tcb_date: datetime = ISSUED,
        tcb_info: Mapping[str, Any] = _NONE,
        qe_identity: Mapping[str, Any] = _NONE,
        revoked: Collection[str] = (),
        tcb_info_signer: Collection[str] = ("tcb-signer", "root"),
        qe_identity_signer: Collection[str] = ("tcb-signer", "root"),
        **members: str | bytes,
    ) -> Collateral:
        """What Intel's service would serve for this platform.

        Knobs: the period of all, and in `dates` of tcb_info, qe_identity, root_ca_crl and pck_crl;
        states and `advisories` of the platform's level; `tcb_info` and `qe_identity` replace
        members of the signed documents (None removes one); `revoked` names certificates; the
        signers are chains of names, whose first signs; `members` replace what comes out.
        Raises CollateralFormatError where the result is none.
        """
        pki = self.pki

        def period(name: str) -> tuple[datetime, datetime]:
            return dates.get(name, (issued, expires))

        extension = pki.specs["pck"].extension or SgxExtension(bytes(16), bytes(16))
        info = _document(
            _tcb_info(extension, platform_status, module_status, advisories, tcb_date),
            period("tcb_info"),
            evaluation_number,
            tcb_info,
        )
        identity = _document(
            _qe_identity(qe_status, tcb_date), period("qe_identity"), evaluation_number, qe_identity
        )
        of_root = [name for name in revoked if pki.specs[name].issuer == "root"]
        of_ca = [name for name in revoked if name not in of_root]
        made: dict[str, Any] = {
            "pck_crl_issuer_chain": pki.chain(("pck-ca", "root")),
            "root_ca_crl": pki.crl("root", *period("root_ca_crl"), of_root),
            "pck_crl": pki.crl("pck-ca", *period("pck_crl"), of_ca),
            "tcb_info_issuer_chain": pki.chain(tcb_info_signer),
            "tcb_info": info,
            "tcb_info_signature": pki.sign(next(iter(tcb_info_signer)), info.encode()),
            "qe_identity_issuer_chain": pki.chain(qe_identity_signer),
            "qe_identity": identity,
            "qe_identity_signature": pki.sign(next(iter(qe_identity_signer)), identity.encode()),
        }
        return Collateral(**{**made, **members})


class MockQuoteService:
    """The quoting service of an emulated host.

    It measures the firmware, the image and the devices' option ROMs (PE images) that the emulator
    was started with, as a TDX module would, and never takes a guest's word for them. RTMR0 is a
    model (`mock_log`). `attributes` are the TD's, those of `MockTee.quote` if None. Raises as
    `tdvf.mr_td`, `rtmr.rtmr1` and `rtmr.rtmr2` do.
    """

    def __init__(
        self,
        tee: MockTee,
        firmware: bytes,
        uki: bytes,
        *,
        mr_config_id: bytes = bytes(48),
        host_profile: HostProfile = HostProfile.UPSTREAM,
        boot_path: BootPath = BootPath.KERNEL,
        option_roms: Sequence[bytes] = (),
        separators: SeparatorModel = SeparatorModel.STABLE202411,
        attributes: int | None = None,
    ) -> None:
        self._tee = tee
        self._log = mock_log.boot(firmware, Pe.parse(uki), boot_path, option_roms, separators)
        self._body: dict[str, bytes | int] = {
            "mr_td": tdvf.mr_td(firmware, host_profile.page_order),
            **{f"rtmr{index}": self._log.rtmr(index) for index in range(3)},
            "mr_config_id": mr_config_id,
            **({} if attributes is None else {"td_attributes": attributes}),
        }

    def quote(self, report_data: bytes) -> bytes:
        """A quote of the guest that was started. Raises ProviderFailed unless given 64 bytes."""
        return self._tee.quote(report_data, body=self._body)

    def event_log(self) -> bytes:
        """The guest's table CCEL; the RTMRs of its quotes are the replay."""
        return self._log.dumps()


def forged(quote: bytes, seed: bytes, body: Fields) -> bytes:
    """A real quote of version 4 with other `body` fields, signed with an attestation key of ours.

    All else is kept, also the QE report that vouches for the real key: what a validator accepts
    that checks no more than the signature.
    """
    pki = Pki.of(seed, 0, {})
    report = Quote.parse(quote).body
    fields = {name: getattr(report, name) for name in _TD10}
    signed = quote[:48] + _pack(_TD10, {**fields, **body})
    start = len(signed) + 4
    return (
        signed
        + quote[len(signed) : start]
        + pki.sign("attestation", signed)
        + pki.point("attestation")
        + quote[start + 128 :]
    )


def _pack(layout: Mapping[str, int], fields: Fields) -> bytes:
    if unknown := fields.keys() - layout.keys():
        raise KeyError(f"no such fields: {', '.join(sorted(unknown))}")
    result = b""
    for name, size in layout.items():
        value = fields.get(name, 0)
        coded = value.to_bytes(size, "little") if isinstance(value, int) else value
        if len(coded) != size:
            raise ValueError(f"{name} takes {size} bytes, not {len(coded)}")
        result += coded
    return result


def _header(version: int) -> Fields:
    return {
        "version": version,
        "attestation_key_type": 2,
        "tee_type": 0x81,
        "qe_vendor_id": bytes.fromhex("939a7233f79c4ca9940a0db3957f0607"),
    }


def _body(seed: bytes, *, td15: bool) -> dict[str, bytes | int]:
    def register(name: str) -> bytes:
        return hashlib.sha384(b"mock-tdx/" + name.encode() + b"/" + seed).digest()

    return {
        "tee_tcb_svn": _TEE_TCB_SVN,
        **({"tee_tcb_svn_2": _TEE_TCB_SVN} if td15 else {}),
        "mr_seam": hashlib.sha384(b"mock-tdx module").digest(),
        "td_attributes": 1 << 28,
        "xfam": 0x602E7,
        **{name: register(name) for name in ("mr_td", "rtmr0", "rtmr1", "rtmr2")},
    }


def _qe() -> dict[str, bytes | int]:
    return {
        "cpu_svn": bytes.fromhex("0303191b04ff00060000000000000000"),
        "attributes": bytes.fromhex("1500000000000000e700000000000000"),
        "mr_enclave": hashlib.sha256(b"mock-tdx quoting enclave").digest(),
        "mr_signer": _QE_SIGNER,
        "isv_prod_id": 2,
        "isv_svn": 6,
    }


def _tcb_info(
    extension: SgxExtension,
    platform_status: str,
    module_status: str,
    advisories: Collection[str],
    tcb_date: datetime,
) -> dict[str, Any]:
    date = tcb_date.strftime(_DATE)
    module = {"mrsigner": bytes(48).hex(), "attributes": "0" * 16, "attributesMask": "F" * 16}

    def level(svns: bytes, status: str) -> dict[str, Any]:
        tdx = bytes([5, 0, 2, *bytes(13)])
        return {
            "tcb": {
                "sgxtcbcomponents": [{"svn": svn} for svn in svns],
                "pcesvn": 11,
                "tdxtcbcomponents": [{"svn": svn} for svn in tdx],
            },
            "tcbDate": date,
            "tcbStatus": str(status),
            "advisoryIDs": sorted(advisories),
        }

    return {
        "id": "TDX",
        "version": 3,
        "fmspc": extension.fmspc.hex().upper(),
        "pceId": extension.pce_id.hex().upper(),
        "tcbType": 0,
        "tdxModule": module,
        "tdxModuleIdentities": [
            {
                "id": "TDX_01",
                **module,
                "tcbLevels": [
                    {"tcb": {"isvsvn": 4}, "tcbDate": date, "tcbStatus": str(module_status)}
                ],
            }
        ],
        "tcbLevels": [level(bytes.fromhex("02020202030100050000000000000000"), platform_status)],
    }


def _qe_identity(status: str, tcb_date: datetime) -> dict[str, Any]:
    return {
        "id": "TD_QE",
        "version": 2,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000",
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": _QE_SIGNER.hex().upper(),
        "isvprodid": 2,
        "tcbLevels": [
            {
                "tcb": {"isvsvn": 4},
                "tcbDate": tcb_date.strftime(_DATE),
                "tcbStatus": str(status),
            }
        ],
    }


def _document(
    content: Mapping[str, Any],
    period: tuple[datetime, datetime],
    evaluation_number: int,
    changes: Mapping[str, Any],
) -> str:
    """The exact text to be signed and served."""
    start, end = (moment.strftime(_DATE) for moment in period)
    whole = {
        "id": content["id"],
        "version": content["version"],
        "issueDate": start,
        "nextUpdate": end,
        "tcbEvaluationDataNumber": evaluation_number,
        **content,
        **changes,
    }
    kept = {name: value for name, value in whole.items() if value is not None}
    return json.dumps(kept, separators=(",", ":"))
