"""Clock, collateral and platform: whose fault it is that a good quote is not accepted."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation import _dcap, doctor_trust
from attestation.doctor import Area, Diagnosis
from attestation.doctor_trust import Trust, examine, host_of
from attestation.errors import (
    AttestationError,
    CollateralRejected,
    CollateralUnavailable,
    QuoteFormatError,
    QuoteRejected,
)
from attestation.providers.mock import MockTee
from attestation.verify import Collateral
from tests.attestation.doctor_support import (
    DAY,
    GOOD,
    NOW,
    FakeSystem,
    found,
    guest,
    states,
    trust,
)
from tests.attestation.mock_support import OTHER, REPORT_DATA, TEE

QUOTE = TEE.quote(REPORT_DATA)
SERVICE = "https://pccs.example:8081"
YEAR = 365 * DAY


def diagnose(system: FakeSystem, judge: Trust, quote: bytes | None = QUOTE) -> Diagnosis:
    return Diagnosis(tuple(examine(system, judge, quote)))


def online(collateral: Collateral = GOOD) -> Trust:
    return trust(collateral, service=SERVICE)


def file(collateral: Collateral = GOOD) -> Trust:
    return trust(collateral, bundle=True)


def test_good() -> None:
    diagnosis = diagnose(guest(), online())
    assert states(diagnosis) == {"clock": "ok", "collateral": "ok", "TCB": "ok"}
    text = found(diagnosis, "collateral").found
    assert "FMSPC" in text
    assert "evaluation number 17, valid for 25 days (until 2026-01-26 00:00Z)" in text
    assert "UpToDate" in found(diagnosis, "TCB").found


def test_a_bundle_asks_nobody() -> None:
    system = guest(date=OSError("not asked"))
    diagnosis = diagnose(system, replace(file(), service=SERVICE))
    assert diagnosis.verdict is None
    assert system.asked == []


@pytest.mark.parametrize(
    ("off", "side"), [(-YEAR, "365 days behind"), (YEAR, "365 days ahead of"), (2 * DAY, "2 days")]
)
def test_a_wrong_clock_by_the_date_of_the_service(off: timedelta, side: str) -> None:
    """Either way it is the clock, and no word of collateral."""
    diagnosis = diagnose(guest(time=NOW + off, date=NOW, written=NOW - 2 * YEAR), online())
    assert diagnosis.verdict is Area.CLOCK
    assert side in found(diagnosis, "clock").found
    assert "timedatectl" in found(diagnosis, "clock").next
    assert states(diagnosis) == {"clock": "fail", "collateral": "skipped", "TCB": "skipped"}


@pytest.mark.parametrize(
    ("seconds", "status"), [(60, "ok"), (61, "fail"), (-60, "ok"), (-61, "fail")]
)
def test_as_far_off_as_tickets_may_be(seconds: int, status: str) -> None:
    system = guest(date=NOW + timedelta(seconds=seconds))
    assert states(diagnose(system, online()))["clock"] == status


def test_a_wrong_clock_and_a_service_that_fails_for_it() -> None:
    """What TLS makes of a wrong clock must not look like a fault of the service."""
    error = CollateralUnavailable("certificate expired", rule="source.unreachable", hint="look")
    judge = replace(online(), fetch=failing(error))
    assert diagnose(guest(time=NOW + YEAR, date=NOW), judge).verdict is Area.CLOCK


def test_a_clock_before_the_signed_dates() -> None:
    diagnosis = diagnose(guest(time=NOW - YEAR, written=NOW - 2 * YEAR), file())
    assert diagnosis.verdict is Area.CLOCK
    assert "was issued and signed (2025-12-27 00:00Z)" in found(diagnosis, "clock").found
    assert states(diagnosis)["collateral"] == "skipped"


def test_dates_of_a_forgery_say_nothing_of_the_clock() -> None:
    forged = OTHER.collateral(issued=NOW + YEAR, expires=NOW + 2 * YEAR)
    diagnosis = diagnose(guest(), file(forged))
    assert diagnosis.verdict is Area.COLLATERAL
    assert "rule root-mismatch" in found(diagnosis, "collateral").found
    assert states(diagnosis) == {"clock": "ok", "collateral": "fail", "TCB": "skipped"}


def test_a_clock_before_this_package() -> None:
    nobody = Trust(trust().check, trust().verify)
    diagnosis = diagnose(guest(time=datetime(1970, 1, 1, tzinfo=UTC)), nobody)
    assert diagnosis.verdict is Area.CLOCK
    assert "before this package was installed" in found(diagnosis, "clock").found


@pytest.mark.parametrize("ahead", [timedelta(), DAY, YEAR])
def test_expired(ahead: timedelta) -> None:
    """Where nothing contradicts the clock it is the collateral, with the clock as a hint."""
    late = GOOD.parsed.tcb_info.expires + ahead
    for system, judge in (
        (guest(time=late), file()),
        (guest(time=late, date=late), online()),
    ):
        diagnosis = diagnose(system, judge)
        assert diagnosis.verdict is Area.COLLATERAL
        assert "expired" in found(diagnosis, "collateral").found
        assert "if the clock is ahead" in found(diagnosis, "collateral").next
        assert states(diagnosis) == {"clock": "ok", "collateral": "fail", "TCB": "skipped"}


@pytest.mark.parametrize(
    ("left", "status"), [(3 * DAY, "ok"), (3 * DAY - timedelta(seconds=1), "warn")]
)
def test_expires_soon(left: timedelta, status: str) -> None:
    diagnosis = diagnose(guest(time=NOW + 25 * DAY - left), file())
    assert states(diagnosis) == {"clock": "ok", "collateral": status, "TCB": "ok"}
    assert diagnosis.verdict is None


def test_which_part_expired() -> None:
    dates = {"pck_crl": (NOW - 9 * DAY, NOW - 2 * DAY)}
    diagnosis = diagnose(guest(), file(TEE.collateral(dates=dates)))
    assert "pck_crl expired 2 days ago" in found(diagnosis, "collateral").found


def test_unreachable() -> None:
    judge = trust(service="https://user:secret@pccs.example:8081/path?q=secret")
    diagnosis = diagnose(guest(date=ConnectionRefusedError(111, "Connection refused")), judge)
    assert diagnosis.verdict is Area.COLLATERAL
    check = found(diagnosis, "collateral")
    assert check.found == "pccs.example:8081 does not answer: Connection refused"
    assert "systemctl status pccs" in check.next
    assert states(diagnosis) == {"clock": "ok", "collateral": "fail", "TCB": "skipped"}


def failing(error: AttestationError) -> Any:
    def fail(*_: object) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "area"),
    [
        (CollateralUnavailable("busy", rule="source.busy", hint="later"), Area.COLLATERAL),
        (CollateralRejected("no such", rule="source.unknown-fmspc", hint="ask"), Area.COLLATERAL),
        (QuoteFormatError("odd", rule="truncated", hint="again"), Area.QGS),
        (QuoteRejected("odd", rule="pck-pem", hint="again"), Area.QGS),
    ],
)
def test_nothing_fetched(error: AttestationError, area: Area) -> None:
    diagnosis = diagnose(guest(), replace(online(), fetch=failing(error)))
    assert diagnosis.verdict is area
    assert f"rule {error.rule}" in found(diagnosis, "collateral").found
    assert found(diagnosis, "collateral").next == error.hint


def test_offline() -> None:
    nobody = Trust(trust().check, trust().verify)
    diagnosis = diagnose(guest(), nobody)
    assert states(diagnosis) == {"clock": "ok", "collateral": "skipped", "TCB": "skipped"}


def test_without_a_quote() -> None:
    diagnosis = diagnose(guest(), online(), None)
    assert states(diagnosis) == {"clock": "ok", "collateral": "ok"}
    assert found(diagnosis, "collateral").found.startswith("pccs.example:8081 answers")
    assert states(diagnose(guest(), file(), None)) == {"clock": "ok", "collateral": "ok"}


@pytest.mark.parametrize(
    ("knobs", "status", "hints"),
    [
        ({"platform_status": "OutOfDate"}, "fail", ["BIOS", "TDX module"]),
        ({"platform_status": "OutOfDateConfigurationNeeded"}, "fail", ["BIOS"]),
        ({"platform_status": "SWHardeningNeeded"}, "warn", ["advisories"]),
        ({"platform_status": "ConfigurationNeeded"}, "warn", ["advisories"]),
        ({"qe_status": "OutOfDate"}, "fail", ["BIOS", "quoting enclave"]),
        ({"platform_status": "Revoked"}, "fail", ["retire"]),
    ],
)
def test_a_platform_that_is_not_current(
    knobs: dict[str, Any], status: str, hints: list[str]
) -> None:
    advisories = () if "Revoked" in knobs.values() else ("INTEL-SA-00001", "INTEL-SA-00002")
    diagnosis = diagnose(guest(), file(TEE.collateral(advisories=advisories, **knobs)))
    check = found(diagnosis, "TCB")
    assert (check.area, check.status) == (Area.PLATFORM, status)
    assert states(diagnosis)["collateral"] == "ok"
    assert all(name in check.found for name in advisories)
    assert all(hint in check.next for hint in hints)
    assert diagnosis.verdict is (Area.PLATFORM if status == "fail" else None)


@pytest.mark.parametrize(
    ("quote", "collateral", "area", "rule"),
    [
        (QUOTE, TEE.collateral(revoked=["pck"]), Area.PLATFORM, "pck-revoked"),
        (QUOTE, TEE.collateral(tcb_info={"fmspc": "0" * 12}), Area.COLLATERAL, "fmspc-mismatch"),
        (MockTee(b"foreign").quote(REPORT_DATA), GOOD, Area.QGS, "root-mismatch"),
        (TEE.quote(REPORT_DATA, signature=bytes(64)), GOOD, Area.QGS, "quote-signature"),
        (TEE.quote(REPORT_DATA, body={"td_attributes": 0}), GOOD, Area.HYPERVISOR, "sept-ve-"),
    ],
)
def test_a_quote_that_is_refused(
    quote: bytes, collateral: Collateral, area: Area, rule: str
) -> None:
    diagnosis = diagnose(guest(), file(collateral), quote)
    check = found(diagnosis, "TCB")
    assert f"rule {rule}" in check.found
    assert check.next
    assert diagnosis.verdict is area


def test_rules_of_the_verification_keep_their_names() -> None:
    """Each rule with an area exists; those of dcap-qvl that have none are about the quote."""
    # What is raised elsewhere than in the table of `_dcap`.
    engine = {
        *("collateral-expired", "collateral-not-yet-valid", "collateral-signer", "debug-td"),
        *("pce-id", "pck-crl-issuer", "pck-expired", "pck-not-yet-valid", "root-crl-issuer"),
        *("sept-ve-disable", "service-td", "tcb-rollback", "tcb-status", "td-attributes"),
        *("td-relaunch", "xfam"),
    }
    assert doctor_trust._AREAS.keys() - engine <= _dcap._RULES.keys()
    assert _dcap._RULES.keys() - doctor_trust._AREAS.keys() == {
        *("certificate-chain", "dcap", "pck-certificate", "pck-chain", "qe-authentication"),
        *("qe-report-hash", "qe-report-signature", "quote-signature"),
    }


@given(st.text())
def test_a_host_is_all_that_is_shown_of_a_url(text: str) -> None:
    assert isinstance(host_of(text), str)
    assert "@" not in host_of(f"https://u:p@{text}") or "@" in text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:secret@host/secret?secret#secret", "host"),
        ("https://host:8081/x", "host:8081"),
        ("https://[::1]:8081/x", "::1:8081"),
        ("https://host:secret", "a malformed URL"),
        ("https://[secret", "a malformed URL"),
        ("localhost", "no host"),
    ],
)
def test_host_of(url: str, shown: str) -> None:
    assert host_of(url) == shown
