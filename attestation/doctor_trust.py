"""Clock, collateral and platform: what stands between a good quote and its acceptance.

A clock can't be told wrong from inside. It is contradicted by the Date of the collateral service,
by signed documents that it takes to be from the future, and by the age of this package. Only then
is it the clock's fault that collateral is not valid; else it is the collateral's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from attestation.doctor import Area, Check, Status, System, exempt, reason
from attestation.errors import AttestationError, QuoteFormatError, QuoteRejected
from attestation.ticket import SKEW
from attestation.verify import Claims, Collateral, TcbStatus

WARN_DAYS = 3

_SET_CLOCK = (
    "set the clock and keep it set: `timedatectl set-ntp true`, or `chronyc makestep`; a TD has "
    "the clock of its host, so look there too"
)
_FETCH = "fetch it again: `attestation collateral fetch`, or have the PCCS refresh its cache"
_UPDATE = "update BIOS, microcode and TDX module of the host, start the TD anew"
_DATES = {"collateral-expired", "collateral-not-yet-valid"}
# Of each rule of a verification where to look; what is not here is about the quote itself.
_AREAS = {
    **dict.fromkeys(
        (
            "collateral-content",
            "collateral-expired",
            "collateral-not-yet-valid",
            "collateral-signer",
            "fmspc-mismatch",
            "pce-id",
            "pck-crl",
            "pck-crl-issuer",
            "qe-identity-chain",
            "qe-identity-signature",
            "root-crl",
            "root-crl-issuer",
            "root-revoked",
            "tcb-info-chain",
            "tcb-info-signature",
            "tcb-signer-revoked",
        ),
        Area.COLLATERAL,
    ),
    **dict.fromkeys(
        (
            "pck-ca-revoked",
            "pck-expired",
            "pck-revoked",
            "qe-identity",
            "tcb-level",
            "tcb-revoked",
            "tcb-rollback",
            "tcb-status",
            "td-relaunch",
            "tdx-module",
        ),
        Area.PLATFORM,
    ),
    **dict.fromkeys(
        ("debug-td", "sept-ve-disable", "service-td", "td-attributes", "xfam"), Area.HYPERVISOR
    ),
    "pck-not-yet-valid": Area.CLOCK,
}


@dataclass(frozen=True, slots=True)
class Trust:
    """Where collateral comes from, and who judges it.

    `bundle` is collateral that is at hand; else `fetch` gets that of a quote's platform from
    `service`, a URL. All three may be missing. `check` judges collateral at a moment, `verify` a
    quote with it. All raise AttestationError.
    """

    check: Callable[[Collateral, datetime], None]
    verify: Callable[[bytes, Collateral, datetime], Claims]
    bundle: Collateral | None = None
    fetch: Callable[[bytes], Collateral] | None = None
    service: str | None = None


@dataclass(frozen=True, slots=True)
class _Period:
    """When all parts of some collateral are valid, and which part begins last and ends first."""

    start: datetime
    end: datetime
    last: str
    first: str

    @classmethod
    def of(cls, collateral: Collateral) -> "_Period":
        parts = list(collateral.parsed.periods())
        last = max(parts, key=lambda part: part[1])
        first = min(parts, key=lambda part: part[2])
        return cls(last[1], first[2], last[0], first[0])


def examine(system: System, trust: Trust, quote: bytes | None) -> Iterator[Check]:
    """Check clock, collateral and, with a quote, what both say of its platform."""
    date, unreachable = _date(system, trust)
    collateral, failure = trust.bundle, None
    if collateral is None and quote is not None and trust.fetch is not None and not unreachable:
        try:
            collateral = trust.fetch(quote)
        except AttestationError as error:
            failure = error
    now = system.now()
    failure = failure or _forgery(trust, collateral, now)
    genuine = collateral if failure is None else None
    clock = _clock(now, system.built(), date, genuine)
    yield clock
    if clock.status is Status.FAIL:
        yield exempt(Area.COLLATERAL, "collateral", "its dates need a right clock")
        genuine = None
    elif failure is not None:
        of_quote = isinstance(failure, QuoteFormatError | QuoteRejected)
        yield _failed(Area.QGS if of_quote else Area.COLLATERAL, "collateral", failure)
    elif unreachable is not None:
        yield _unreachable(trust, unreachable)
    elif genuine is not None:
        valid = _validity(genuine, now)
        yield valid
        genuine = None if valid.status is Status.FAIL else genuine
    else:
        yield _unknown(trust, date)
    if quote is not None and genuine is not None:
        yield _platform(trust, quote, genuine, now)
    elif quote is not None:
        yield exempt(Area.PLATFORM, "TCB", "needs valid collateral")


def host_of(url: str) -> str:
    """Host and port of a URL, and nothing else: the rest may hold a password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "a malformed URL"
    host = parts.hostname or "no host"
    return host if port is None else f"{host}:{port}"


def _date(system: System, trust: Trust) -> tuple[datetime | None, OSError | None]:
    if trust.service is None or trust.bundle is not None:
        return None, None
    try:
        return system.http_date(trust.service), None
    except OSError as error:
        return None, error


def _forgery(trust: Trust, collateral: Collateral | None, now: datetime) -> AttestationError | None:
    """Why collateral is not genuine, whatever its dates: those are judged last."""
    if collateral is None:
        return None
    try:
        trust.check(collateral, now)
    except AttestationError as error:
        return None if error.rule in _DATES else error
    return None


def _clock(
    now: datetime, built: datetime, date: datetime | None, genuine: Collateral | None
) -> Check:
    shown = _moment(now)
    skew = timedelta(seconds=SKEW)
    contradiction = ""
    if date is not None and abs(now - date) > skew:
        side = "behind" if now < date else "ahead of"
        contradiction = f"{_span(abs(now - date))} {side} the collateral service ({_moment(date)})"
    elif genuine is not None and now < (period := _Period.of(genuine)).start:
        contradiction = f"before {period.last} was issued and signed ({_moment(period.start)})"
    elif now < built - skew:
        contradiction = f"before this package was installed ({_moment(built)})"
    if contradiction:
        return Check(Area.CLOCK, "clock", Status.FAIL, f"{shown}, {contradiction}", _SET_CLOCK)
    witness = "nothing contradicts it" if date is None else "as the collateral service says"
    return Check(Area.CLOCK, "clock", Status.OK, f"{shown}, {witness}")


def _validity(collateral: Collateral, now: datetime) -> Check:
    period = _Period.of(collateral)
    parsed = collateral.parsed
    number = min(parsed.tcb_info.evaluation_number, parsed.qe_identity.evaluation_number)
    what = f"FMSPC {parsed.fmspc.hex().upper()}, evaluation number {number}"
    left = period.end - now
    status, hint = Status.OK, ""
    found = f"genuine, {what}, valid for {_span(left)} (until {_moment(period.end)})"
    if left <= timedelta():
        found = f"{period.first} expired {_span(-left)} ago ({_moment(period.end)}), {what}"
        status, hint = Status.FAIL, f"{_FETCH}; if the clock is ahead, set it"
    elif left < timedelta(days=WARN_DAYS):
        status, hint = Status.WARN, _FETCH
    return Check(Area.COLLATERAL, "collateral", status, found, hint)


def _unreachable(trust: Trust, error: OSError) -> Check:
    return Check(
        Area.COLLATERAL,
        "collateral",
        Status.FAIL,
        f"{host_of(trust.service or '')} does not answer: {reason(error)}",
        "check the network and the name; on a PCCS: `systemctl status pccs`; give another with "
        "--url, or a file with --collateral",
    )


def _unknown(trust: Trust, date: datetime | None) -> Check:
    if date is not None:
        found = f"{host_of(trust.service or '')} answers; which collateral to ask needs a quote"
        return Check(Area.COLLATERAL, "collateral", Status.OK, found)
    return exempt(Area.COLLATERAL, "collateral", "none at hand, and no service named")


def _platform(trust: Trust, quote: bytes, collateral: Collateral, now: datetime) -> Check:
    try:
        claims = trust.verify(quote, collateral, now)
    except AttestationError as error:
        return _failed(_AREAS.get(error.rule, Area.QGS), "TCB", error)
    found = f"{claims.tcb_status} (platform {claims.platform_status}, QE {claims.qe_status})"
    found += f", TCB of {claims.tcb_date.date()}"
    if claims.advisory_ids:
        found += f", {' '.join(claims.advisory_ids)}"
    status, hint = Status.OK, ""
    if claims.tcb_status is not TcbStatus.UP_TO_DATE:
        old = claims.tcb_status.startswith("OutOfDate")
        status = Status.FAIL if old else Status.WARN
        hint = _UPDATE if old else "do what the advisories ask for, or have the policy accept it"
        if claims.qe_status is not TcbStatus.UP_TO_DATE:
            hint += "; update DCAP's quoting enclave on the host"
    return Check(Area.PLATFORM, "TCB", status, found, hint)


def _failed(area: Area, name: str, error: AttestationError) -> Check:
    return Check(area, name, Status.FAIL, f"{error} (rule {error.rule})", error.hint)


def _moment(when: datetime) -> str:
    return when.strftime("%Y-%m-%d %H:%MZ")


def _span(span: timedelta) -> str:
    """About how long, in the largest unit of which there are two."""
    seconds = int(span.total_seconds())
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} seconds"
