"""The verification that production and mock share; the root is an argument, so this is private.

Order: what needs the quote alone, the form and dates of everything that came with it, dcap-qvl,
then what dcap-qvl leaves open. So a quote that can't be accepted under any collateral is refused
for that, whatever collateral is at hand.
"""

from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal, NoReturn

from attestation import _dcap
from attestation._genuine import PCK_ISSUERS, TCB_SIGNER, may_sign
from attestation.collateral_format import Certificate, Collateral, Parsed, parse_chain
from attestation.errors import CollateralFormatError, PolicyError, QuoteRejected
from attestation.quote import Quote, TdReport

# Intel TDX Module ABI specification, ATTRIBUTES of a TD: bits 0-7 make the TD debuggable, bit 28
# keeps the host from hiding page conversions. The other bits (29 MIGRATABLE, 30 PKS, 63 PERFMON,
# ...) give a host or a guest more than our images ask for.
_DEBUG = 0x01
_SEPT_VE_DISABLE = 1 << 28
_TD_ATTRIBUTES = _SEPT_VE_DISABLE
# XFAM: x87 and SSE always; at most what TDX modules allow to be on.
_XFAM_NEEDED = 0x3
_XFAM_ALLOWED = 0x6DBE7

_PCK = "Intel SGX PCK Certificate"


class TcbStatus(StrEnum):
    """Intel's verdict on the state of a platform, as spelled in TCB info. REVOKED never passes."""

    UP_TO_DATE = "UpToDate"
    SW_HARDENING_NEEDED = "SWHardeningNeeded"
    CONFIGURATION_NEEDED = "ConfigurationNeeded"
    CONFIGURATION_AND_SW_HARDENING_NEEDED = "ConfigurationAndSWHardeningNeeded"
    OUT_OF_DATE = "OutOfDate"
    OUT_OF_DATE_CONFIGURATION_NEEDED = "OutOfDateConfigurationNeeded"
    REVOKED = "Revoked"


@dataclass(frozen=True, slots=True)
class Claims:
    """What is known of the TD, its platform and how current that is. Dates are aware, in UTC.

    `tcb_status` merges platform, TDX module and QE; `platform_status` and `qe_status` are those
    two alone. `tcb_evaluation_number` is the lower of TCB info and QE identity; `tcb_date` dates
    the platform's TCB level. `fmspc` is 6 bytes, `pce_id` 2, `ppid` and `platform_instance_id` 16.
    All that was used is valid in `valid_from <= now < valid_until`. `root_key_id` is SHA-384 of
    the root key. `acpi` is `verified` only where RTMR0 is pinned, which is for the caller to do.
    """

    quote: Quote
    tcb_status: TcbStatus
    platform_status: TcbStatus
    qe_status: TcbStatus
    advisory_ids: tuple[str, ...]
    tcb_evaluation_number: int
    tcb_date: datetime
    fmspc: bytes
    pce_id: bytes
    ppid: bytes
    platform_instance_id: bytes | None
    valid_from: datetime
    valid_until: datetime
    root_key_id: bytes
    acpi: Literal["verified", "unverified"] = "unverified"

    def to_json(self) -> dict[str, Any]:
        """A JSON object: bytes as lower-case hex, dates as in RFC 3339; of the quote its report."""
        result = {
            f.name: _jsonable(getattr(self, f.name)) for f in fields(self) if f.name != "quote"
        }
        result["quote"] = {
            "version": self.quote.header.version,
            "digest": self.quote.digest.hex(),
            **{f.name: _jsonable(getattr(self.quote.body, f.name)) for f in fields(TdReport)},
        }
        return result


def verify_with_root(raw: bytes, collateral: Collateral, now: datetime, root_der: bytes) -> Claims:
    """Check a quote completely, except for what code it may run and what it may be bound to.

    Raises QuoteFormatError, QuoteRejected, and PolicyError for a `now` without time zone.
    """
    if now.utcoffset() is None:
        raise PolicyError(
            "time has no time zone",
            expected="an aware datetime",
            got=now.isoformat(),
            rule="naive-time",
            hint="use datetime.now(UTC)",
        )
    quote = Quote.parse(raw)
    _check_body(quote.body)
    parsed = collateral.parsed
    pck_chain = _pck_chain(quote, parsed.pck_crl_issuer)
    _check_roots(pck_chain, parsed, root_der)
    _check_roles(pck_chain, parsed)
    valid_from, valid_until = _check_period(pck_chain, parsed, now)
    claims = _dcap.verify(quote.canonical, pck_chain, collateral, int(now.timestamp()), root_der)
    _check_signers(parsed)
    return _claims(quote, parsed, claims, valid_from, valid_until)


def _check_body(body: TdReport) -> None:
    attributes = int.from_bytes(body.td_attributes, "little")
    if attributes & _DEBUG:
        _refuse(
            "debug-td",
            "quote is of a debug TD: its host reads and writes its memory",
            "td_attributes without bit 0",
            f"{attributes:#x}",
            "start the TD without debug=on, and ask for a new quote",
        )
    if attributes & ~_TD_ATTRIBUTES:
        bits = [str(bit) for bit in range(64) if attributes & ~_TD_ATTRIBUTES & 1 << bit]
        _refuse(
            "td-attributes",
            "TD has attributes that weaken it or that are not known to be harmless",
            f"no bits outside {_TD_ATTRIBUTES:#x}",
            f"bits {', '.join(bits)}",
            "start the TD without migration, PKS, key locker and performance monitoring",
        )
    if not attributes & _SEPT_VE_DISABLE:
        _refuse(
            "sept-ve-disable",
            "host can take pages from the TD unseen",
            "td_attributes with bit 28 (SEPT_VE_DISABLE)",
            f"{attributes:#x}",
            "start the TD with sept-ve-disable=on; TDs below a paravisor can't be peers",
        )
    xfam = int.from_bytes(body.xfam, "little")
    if xfam & _XFAM_NEEDED != _XFAM_NEEDED or xfam & ~_XFAM_ALLOWED:
        _refuse(
            "xfam",
            "TD has an impossible set of processor features",
            f"bits {_XFAM_NEEDED:#x}, and none outside {_XFAM_ALLOWED:#x}",
            f"{xfam:#x}",
            "start the TD with the processor model of the documentation",
        )
    first, current = body.tee_tcb_svn, body.tee_tcb_svn_2
    if current is not None and (current[1], current[0]) < (first[1], first[0]):
        # dcap-qvl then reports the newer one; no update of a running module goes down.
        _refuse(
            "tcb-rollback",
            "TDX module is older than when the TD started",
            f"tee_tcb_svn_2 of at least {first.hex()}",
            current.hex(),
            "update the TDX module of the host, then start the TD anew",
        )
    if body.mr_service_td is not None and any(body.mr_service_td):
        _refuse(
            "service-td",
            "TD has a service TD bound to it, which may move or replace it",
            "an mr_service_td of zeros",
            body.mr_service_td.hex(),
            "start the TD without service TDs",
        )


def _pck_chain(quote: Quote, known: tuple[Certificate, ...]) -> tuple[Certificate, ...]:
    try:
        # The quoting library ends the text with a NUL.
        text = quote.pck_certificate_chain.removesuffix(b"\0").decode("ascii")
        chain = parse_chain(text, known)
    except UnicodeDecodeError:
        _refuse("pck-pem", "PCK certificate chain is no PEM", "ASCII", "other bytes", _AGAIN)
    except CollateralFormatError as error:
        _refuse(f"pck-{error.rule}", f"PCK {error.message}", error.expected, error.got, _AGAIN)
    if len(chain) != 3:
        _refuse("pck-chain-length", "PCK chain has another length", "3", str(len(chain)), _AGAIN)
    return chain


def _check_roots(pck: tuple[Certificate, ...], parsed: Parsed, root_der: bytes) -> None:
    for name, chain in {"the quote": pck, **parsed.issuers}.items():
        if chain[-1].der != root_der:
            _refuse(
                "root-mismatch",
                f"certificate chain of {name} ends at another root",
                "the root of this verifier",
                _shown(chain[-1].common_name) or "a root without a name",
                "a mock quote verifies with its own root only; a production verifier takes Intel's",
            )


def _check_roles(pck: tuple[Certificate, ...], parsed: Parsed) -> None:
    if pck[0].common_name != _PCK or not pck[0].has_sgx_extension:
        _refuse(
            "pck-role",
            "the key below the quote is not that of a PCK certificate",
            f"{_PCK!r} with the SGX extension",
            _shown(pck[0].common_name),
            _FORGED,
        )
    if pck[1].common_name not in PCK_ISSUERS.values():
        _refuse(
            "pck-role",
            "the PCK certificate is not issued by a PCK authority",
            " or ".join(map(repr, PCK_ISSUERS.values())),
            _shown(pck[1].common_name),
            _FORGED,
        )
    issuers = parsed.pck_crl_issuer
    if not issuers[0].subject == parsed.pck_crl.issuer == pck[1].subject:
        _refuse(
            "pck-crl-issuer",
            "revocation list is not that of the authority that issued the PCK certificate",
            "one issuer in the quote, the list and pck_crl_issuer_chain",
            "several",
            "fetch the list for the authority of this quote: ca=platform or ca=processor",
        )
    if parsed.root_crl.issuer != issuers[-1].subject:
        _refuse(
            "root-crl-issuer",
            "revocation list of the root is not issued by the root",
            "the root as issuer",
            "another",
            _FETCH,
        )


def _check_period(
    pck: tuple[Certificate, ...], parsed: Parsed, now: datetime
) -> tuple[datetime, datetime]:
    """The period in which all of it is valid."""
    periods = [("pck", c.not_before, c.not_after) for c in pck]
    collateral = list(parsed.periods())
    for name, start, end in [*periods, *collateral]:
        if not start <= now < end:
            _refuse_moment(name, start, end, now)
    periods += collateral
    return max(start for _, start, _ in periods), min(end for _, _, end in periods)


def _refuse_moment(name: str, start: datetime, end: datetime, now: datetime) -> NoReturn:
    kind = "pck" if name == "pck" else "collateral"
    expected = f"{name} from {start.isoformat()} to {end.isoformat()}"
    if now < start:
        _refuse(
            f"{kind}-not-yet-valid",
            "quote can't be verified with what is not valid yet",
            expected,
            now.isoformat(),
            "check the clock of this machine",
        )
    _refuse(
        f"{kind}-expired",
        "quote can't be verified with what is no longer valid",
        expected,
        now.isoformat(),
        _FETCH if kind == "collateral" else "register the platform again with Intel",
    )


def _check_signers(parsed: Parsed) -> None:
    """Any key that Intel certified can sign; only one kind may sign TCB info and QE identity.

    dcap-qvl takes the leaf of any chain, so the key of one opened platform would do.
    """
    for name, chain in list(parsed.issuers.items())[:2]:
        if not may_sign(chain):
            _refuse(
                "collateral-signer",
                f"{name} belongs to a key that may not sign collateral",
                f"{TCB_SIGNER!r}, issued by the root",
                _shown(chain[0].common_name),
                "do not trust where this collateral comes from; fetch it from Intel",
            )


def _claims(
    quote: Quote,
    parsed: Parsed,
    content: dict[str, Any],
    valid_from: datetime,
    valid_until: datetime,
) -> Claims:
    """The result. Raises QuoteRejected where dcap-qvl and this package read a quote differently."""
    pck, platform, qe = content["platform"]["pck"], content["platform"], content["qe"]
    (report,) = content["report"].values()
    report = {**report.pop("base", {}), **report}
    for ours, theirs in _REPORT_NAMES.items():
        value = getattr(quote.body, ours)
        if value is not None and report.get(theirs) != value.hex():
            _disagree(ours)
    if bytes(pck["fmspc"]) != parsed.fmspc:
        _disagree("fmspc")
    if bytes(pck["pce_id"]) != parsed.pce_id:
        _refuse(
            "pce-id",
            "collateral is for another provisioning enclave",
            parsed.pce_id.hex(),
            bytes(pck["pce_id"]).hex(),
            _FETCH,
        )
    statuses = [
        _status(content["tcb"]["status"]),
        _status(platform["tcb_level"]["tcbStatus"]),
        _status(qe["tcb_level"]["tcbStatus"]),
    ]
    instance = pck["platform_instance_id"]
    return Claims(
        quote=quote,
        tcb_status=statuses[0],
        platform_status=statuses[1],
        qe_status=statuses[2],
        advisory_ids=tuple(content["tcb"]["advisory_ids"]),
        tcb_evaluation_number=min(
            parsed.tcb_info.evaluation_number, parsed.qe_identity.evaluation_number
        ),
        tcb_date=datetime.fromtimestamp(platform["tcb_date_tag"], UTC),
        fmspc=parsed.fmspc,
        pce_id=parsed.pce_id,
        ppid=bytes(pck["ppid"]),
        platform_instance_id=None if instance is None else bytes(instance),
        valid_from=valid_from,
        valid_until=valid_until,
        root_key_id=bytes(platform["root_key_id"]),
    )


_REPORT_NAMES = {
    **{f.name: f.name for f in fields(TdReport)},
    **{f"rtmr{index}": f"rt_mr{index}" for index in range(4)},
    "tee_tcb_svn_2": "tee_tcb_svn2",
}


def _status(name: str) -> TcbStatus:
    if name.startswith("TDRelaunchAdvised"):
        _refuse(
            "td-relaunch",
            "TD was started by an older TDX module than the host has now",
            "a TD started by the current module",
            _shown(name),
            "start the TD anew",
        )
    if name not in set(TcbStatus) or name == TcbStatus.REVOKED:
        _refuse(
            "tcb-revoked" if name == TcbStatus.REVOKED else "tcb-status",
            "platform has a TCB status that can't be accepted",
            " or ".join(s for s in TcbStatus if s is not TcbStatus.REVOKED),
            _shown(name),
            "retire this platform",
        )
    return TcbStatus(name)


def _shown(name: str) -> str:
    """A name from outside, fit for a message."""
    return name[:64].encode("ascii", "backslashreplace").decode()


def _disagree(field: str) -> NoReturn:
    _refuse(
        "parser-mismatch",
        f"two parsers read {field} differently",
        "one meaning of these bytes",
        "two",
        "report this as a bug, with the quote",
    )


def _jsonable(value: object) -> Any:
    match value:
        case bytes():
            return value.hex()
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case tuple():
            return list(value)
        case _:
            return value


_AGAIN = "ask the machine for a new quote, and its quoting service for a whole certificate chain"
_FETCH = "fetch the collateral for this platform again"
_FORGED = "do not trust where this quote comes from: no platform makes such quotes"


def _refuse(rule: str, message: str, expected: str, got: str, hint: str) -> NoReturn:
    raise QuoteRejected(message, expected=expected, got=got, rule=rule, hint=hint)
