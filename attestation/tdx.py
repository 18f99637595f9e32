"""`Tdx`: the validator that operators configure.

    Tdx().require_mrtd(Measurements.load(path)).tcb("UpToDate", "SWHardeningNeeded")
    AllOf(BundleValidator(), Tdx().require_mrtd(allow_list))

Each method returns a new `Tdx`. As it comes, beside genuine and current evidence (`Verifier`), it
wants: measurements of a production image with its boot proof (profile `upstream`, path `kernel`),
RTMR3 of zeros, report_data of the ticket, MRCONFIGID of the ticket's config_digest, no owner,
TCB `UpToDate`. Advisories are in the result and don't count unless a method says so.

Stack it with `BundleValidator`, which proves who shows the ticket; `Tdx` looks at the code.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, Self, TypeVar

from attestation import acceptance
from attestation.acceptance import UnsafeFirmwareOnly, register
from attestation.allowlist import AllowList, tcb_status
from attestation.appraisal import Settings, appraise, check_settings
from attestation.bundle import Bundle, Ticket
from attestation.errors import (
    CollateralFormatError,
    PolicyError,
    QuoteFormatError,
    QuoteRejected,
    TicketRejected,
)
from attestation.measure.record import Measurement, Measurements
from attestation.measure.rtmr import BootPath
from attestation.measure.tdvf import HostProfile
from attestation.moments import unix, utc
from attestation.quote import Quote
from attestation.ticket import Expiry, Peer, Verified
from attestation.verify import Claims, Collateral, Evidence, Verifier

__all__ = ["Settings", "Tdx", "TdxPolicy", "UnsafeFirmwareOnly"]

_Name = TypeVar("_Name", bound=StrEnum)
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class TdxPolicy(ABC):
    """The policy of `Tdx` over evidence of some anchor; methods raise PolicyError for nonsense."""

    settings: Settings = field(default_factory=Settings)

    _mock: ClassVar[bool] = False

    def require_mrtd(
        self, source: Measurements | Measurement | AllowList | UnsafeFirmwareOnly
    ) -> Self:
        """Also accept what `source` lists; a list brings its windows and TCB policy with it."""
        deployments = {source.deployment_id} if isinstance(source, AllowList) else set()
        return self._with(
            accepted=self.settings.accepted + acceptance.alternatives(source),
            deployments=self.settings.deployments | deployments,
        )

    def require_own(self, own: Measurement | Quote) -> Self:
        """Also accept peers that measure as this TD, by its own quote, or as this process."""
        return self._with(accepted=(*self.settings.accepted, acceptance.own(own)))

    def require_rtmr(self, index: int, *values: bytes) -> Self:
        """Demand, whatever entry matches, one of these values (48 bytes) of RTMR `index`, 0 to 3.

        A second call adds values. For RTMR3 they take the place of zeros.
        """
        if index not in range(4):
            raise PolicyError(
                "there is no such register", expected="0 to 3", got=str(index), rule="rtmr-index"
            )
        name = f"RTMR{index}"
        new = _some(name, *(register(value, name) for value in values))
        rtmrs = list(self.settings.rtmrs)
        rtmrs[index] = (rtmrs[index] or frozenset()) | new
        return self._with(rtmrs=tuple(rtmrs))

    def profiles(self, *profiles: str) -> Self:
        """Also take measurements of these host profiles."""
        new = _some("profiles", *(_known(HostProfile, name) for name in profiles))
        return self._with(profiles=self.settings.profiles | new)

    def boot_paths(self, *paths: str) -> Self:
        """Also take measurements of these boot paths."""
        new = _some("boot_paths", *(_known(BootPath, name) for name in paths))
        return self._with(boot_paths=self.settings.boot_paths | new)

    def tcb(self, *states: str, grace_until: datetime | None = None) -> Self:
        """Accept exactly these TCB states; more calls add.

        With `grace_until`, accept them besides the others until then. An entry of an allow-list
        must pass this and the policy of its list. `Revoked` is no state to accept.
        """
        new = _some("tcb", *(tcb_status(name) for name in states))
        if grace_until is None:
            result = self._with(statuses=(self.settings.statuses or frozenset()) | new)
        else:
            until = unix(utc(grace_until))
            added = tuple((status, until) for status in sorted(new))
            result = self._with(grace=self.settings.grace + added)
        _ = result.settings.tcb  # raises for Revoked, and for a state with and without a date
        return result

    def min_tcb_evaluation(self, number: int) -> Self:
        """Demand TCB data of at least this evaluation number."""
        if number < 1:
            raise _nonsense("min_tcb_evaluation", "1 or more", str(number))
        return self._with(min_evaluation_number=number)

    def allow_advisory(self, *ids: str) -> Self:
        """Refuse TCB levels with any advisory that is not among these; more calls add."""
        known = self.settings.allowed_advisories or frozenset()
        return self._with(allowed_advisories=known | _some("allow_advisory", *ids))

    def reject_advisory(self, *ids: str) -> Self:
        """Refuse TCB levels with one of these advisories; more calls add."""
        new = _some("reject_advisory", *ids)
        return self._with(rejected_advisories=self.settings.rejected_advisories | new)

    def not_before(self, when: datetime) -> Self:
        """Refuse tickets that were issued before."""
        return self._with(not_before=unix(utc(when)))

    def max_age(self, *, days: int = 0, hours: int = 0, minutes: int = 0, seconds: int = 0) -> Self:
        """Refuse tickets that were issued longer ago."""
        return self._with(max_age=_duration("max_age", days, hours, minutes, seconds))

    def max_lifetime(
        self, *, days: int = 0, hours: int = 0, minutes: int = 0, seconds: int = 0
    ) -> Self:
        """Refuse tickets whose not_after is longer after issued_at."""
        return self._with(max_lifetime=_duration("max_lifetime", days, hours, minutes, seconds))

    def require_mrconfigid(self, *values: bytes) -> Self:
        """Demand one of these MRCONFIGIDs: 48 bytes, or a config_digest of 32; more calls add.

        MRCONFIGID must be the ticket's padded config_digest in any case.
        """
        padded = (value + bytes(16) if len(value) == 32 else value for value in values)
        new = _some("MRCONFIGID", *(register(value, "MRCONFIGID") for value in padded))
        return self._with(mr_config_ids=(self.settings.mr_config_ids or frozenset()) | new)

    def require_mrseam(self, *values: bytes) -> Self:
        """Demand one of these TDX modules (MRSEAM, 48 bytes); more calls add."""
        new = _some("MRSEAM", *(register(value, "MRSEAM") for value in values))
        return self._with(mr_seams=(self.settings.mr_seams or frozenset()) | new)

    def require_platform(self, *ids: bytes) -> Self:
        """Demand one of these platforms, by PPID or platform instance id (16 bytes each)."""
        if any(len(value) != 16 for value in ids):
            raise _nonsense("require_platform", "16 bytes each", "other lengths")
        new = _some("require_platform", *ids)
        return self._with(platforms=(self.settings.platforms or frozenset()) | new)

    def validate(self, bundle: Bundle, peer: Peer) -> Expiry:
        """As `TicketValidator.validate`: verify the quote, then `check`."""
        scope = self.settings.scope(mock=self._mock)
        check_settings(self.settings, scope, peer)
        if peer.collateral is None:
            raise TicketRejected(
                "there is no collateral to verify the quote with",
                expected="collateral for the peer's platform",
                got="none",
                rule="collateral",
                hint="fetch it from Intel or a caching service, or load an offline bundle",
            )
        try:
            evidence = self._verify(bundle.quote, peer.collateral, peer.now)
        except (QuoteFormatError, CollateralFormatError, QuoteRejected) as error:
            raise TicketRejected(
                error.message,
                expected=error.expected,
                got=error.got,
                rule=error.rule,
                hint=error.hint,
            ) from error
        return self.check(bundle.ticket, evidence, peer)

    def check(self, ticket: Ticket, evidence: Verified, peer: Peer) -> Expiry:
        """The verdict over evidence that was verified before, for example under an older list.

        Raises as `TicketValidator.validate` does.
        """
        scope = self.settings.scope(mock=self._mock)
        check_settings(self.settings, scope, peer)
        verdict = appraise(self.settings, scope, ticket, self._claims(evidence), peer)
        return replace(verdict, evidence=evidence)

    def _with(self, **changes: Any) -> Self:
        return replace(self, settings=replace(self.settings, **changes))

    # What the anchor decides.

    @abstractmethod
    def _verify(self, raw: bytes, collateral: Collateral, now: datetime) -> Verified:
        """The evidence in a quote. Raises as `Verifier.verify` does."""

    @abstractmethod
    def _claims(self, evidence: Verified) -> Claims:
        """The claims in evidence of this anchor. Raises TicketRejected for any other."""


@dataclass(frozen=True, slots=True)
class Tdx(TdxPolicy):
    """The policy over quotes under Intel's root. It takes no other evidence, and no other root."""

    def _verify(self, raw: bytes, collateral: Collateral, now: datetime) -> Evidence:
        return Verifier().verify(raw, collateral, now)

    def _claims(self, evidence: Verified) -> Claims:
        # Not isinstance: a subclass could be anything.
        if type(evidence) is not Evidence:
            raise TicketRejected(
                "the evidence is not from Intel's root",
                expected=Evidence.__name__,
                got=type(evidence).__name__,
                rule="mock",
                hint="a mock TEE is for mock deployments; quote in a TD",
            )
        return evidence.claims


def _some(name: str, *values: _Value) -> frozenset[_Value]:
    if not values:
        raise _nonsense(name, "one value or more", "none")
    return frozenset(values)


def _known(kind: type[_Name], name: str) -> _Name:
    try:
        return kind(name)
    except ValueError:
        raise _nonsense(kind.__name__, " or ".join(kind), ascii(name)) from None


def _duration(name: str, days: int, hours: int, minutes: int, seconds: int) -> int:
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if total <= 0:
        raise _nonsense(name, "more than no time", f"{total} s")
    return total


def _nonsense(name: str, expected: str, got: str) -> PolicyError:
    return PolicyError(
        f"{name} would accept nothing or everything",
        expected=expected,
        got=got,
        rule=f"policy.{name.lower().replace('_', '-')}",
    )
