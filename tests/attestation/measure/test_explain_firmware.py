"""Which firmware, and which host, makes another MR_TD."""

import hashlib
from dataclasses import replace
from uuid import UUID

import pytest

from attestation.errors import FirmwareFormatError, FirmwareRejected
from attestation.measure import authenticode, firmware, varstore
from attestation.measure.explain import Cause
from attestation.measure.firmware import bind, bind_digests
from attestation.measure.tdvf import HostProfile
from tests.attestation.measure import synthetic
from tests.attestation.measure.explain_support import (
    BASE,
    ENTRIES,
    FD,
    OTHER_FD,
    OTHER_UKI,
    UKI,
    booted,
    causes,
    event,
    started,
    unmeasured,
    wanted,
    why,
)
from tests.attestation.measure.support import refused

UPSTREAM = wanted(*ENTRIES[:2])
CANONICAL = HostProfile.CANONICAL_24_04
NEWER = synthetic.Firmware(spare=()).build()  # other code


def sha(fd: bytes) -> str:
    return hashlib.sha256(fd).hexdigest()[:16]


def test_nothing_is_guessed_without_the_firmware() -> None:
    report, log = started(host_profile=CANONICAL)
    for options in ({}, {"log": log}, {"uki": UKI}):
        (finding,) = why(report, UPSTREAM, **options)
        assert (finding.cause, finding.register, finding.proved) == (Cause.FIRMWARE, "mr_td", False)
        assert "--firmware" in finding.next


@pytest.mark.parametrize(("fd", "uki"), [(FD, None), (BASE, UKI)])
def test_page_order(fd: bytes, uki: bytes | None) -> None:
    """Also of a firmware that has still to be bound to the given image."""
    report, _ = started(host_profile=CANONICAL)
    (finding,) = why(report, UPSTREAM, firmware=fd, uki=uki)
    assert (finding.cause, finding.proved) == (Cause.PAGE_ORDER, True)
    assert "in two-pass order" in finding.proof
    assert "; in interleaved order it is that of wanted.json[0]" in finding.proof


def test_a_store_that_is_not_measured() -> None:
    for fd in (BASE, unmeasured(FD)):
        report, _ = started(fd)
        for given, what in ((FD, "without MR_EXTEND on its variable store"), (fd, "(sha256")):
            (finding,) = why(report, UPSTREAM, firmware=given)
            assert (finding.cause, finding.proved) == (Cause.FIRMWARE_UNBOUND, True)
            assert what in finding.proof
            assert sha(given) in finding.proof
    report, _ = started(BASE, host_profile=CANONICAL)
    findings = why(report, UPSTREAM, firmware=FD)
    assert causes(findings) == [("firmware-unbound", True), ("page-order", True)]


@pytest.mark.parametrize("uki", [None, UKI])
def test_another_firmware_that_is_at_hand(uki: bytes | None) -> None:
    other = bind(NEWER, UKI)
    report, _ = started(other)
    (finding,) = why(report, UPSTREAM, firmware=other, uki=uki)
    assert (finding.cause, finding.proved) == (Cause.FIRMWARE, True)
    named = authenticode.digest(UKI).hex() if uki is None else "the given image"
    assert finding.message.endswith(f"it admits {named}")
    findings = why(started(other, host_profile=CANONICAL)[0], UPSTREAM, firmware=other, uki=uki)
    assert causes(findings) == [("firmware", True), ("page-order", True)]


def test_the_firmware_of_another_image() -> None:
    report, log = started(OTHER_FD)
    name = authenticode.digest(OTHER_UKI).hex()
    (finding,) = why(report, UPSTREAM, firmware=OTHER_FD, uki=UKI)
    assert (finding.cause, finding.proved) == (Cause.FIRMWARE, True)
    assert finding.message.endswith(f"it admits {name}, not the given image")
    # From the log's db it can be made again.
    for given in (FD, BASE):
        (finding,) = why(report, UPSTREAM, firmware=given, log=log)
        assert (finding.cause, finding.register, finding.proved) == (Cause.UKI, "mr_td", True)
        assert name in finding.message
        assert f"bound to the image {name} of the log's db" in finding.proof
    (finding,) = why(report, UPSTREAM, firmware=BASE, uki=OTHER_UKI)
    assert (finding.cause, finding.register) == (Cause.UKI, "mr_td")
    assert "bound to the given image" in finding.proof


def test_another_store_in_the_log() -> None:
    """Of a firmware that nobody has: other code, and other content of the store."""
    other = bind(NEWER, OTHER_UKI)
    report, log = started(other, UKI)
    (finding,) = why(report, UPSTREAM, firmware=FD, log=log)
    assert (finding.cause, finding.proved) == (Cause.FIRMWARE, True)
    assert "its variable store has another content" in finding.message
    # The same store around other code proves nothing, and neither does a log without it.
    same, log = started(bind(NEWER, UKI))
    (finding,) = why(same, UPSTREAM, firmware=FD, log=log)
    assert (finding.cause, finding.proved) == (Cause.FIRMWARE, False)
    assert "a host that measures in a third way" in finding.message
    bare, short = booted(report, [one for one in log.events if one.kind != 0x8000000A])
    (finding,) = why(bare, UPSTREAM, firmware=FD, log=short)
    assert not finding.proved


def test_a_firmware_that_explains_nothing() -> None:
    report, log = started(bind(NEWER, UKI))
    (finding,) = why(report, UPSTREAM, firmware=OTHER_FD)
    assert (finding.cause, finding.proved) == (Cause.FIRMWARE, False)
    assert finding.message == (
        f"the given firmware (sha256 {sha(OTHER_FD)}) has neither the quote's MR_TD nor the entry's"
    )
    (finding,) = why(report, UPSTREAM, firmware=BASE, uki=UKI, log=log)
    assert "the entry's MR_TD is that of the given firmware, bound to the given" in finding.message
    assert not finding.proved


def test_a_firmware_that_cannot_be_bound() -> None:
    plain = synthetic.Firmware(loadable=(), store=synthetic.store()).build()
    (finding,) = why(started(bind(NEWER, UKI))[0], UPSTREAM, firmware=plain, uki=UKI)
    assert (finding.cause, finding.proved) == (Cause.FIRMWARE, False)


def test_known_code_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = firmware.code_digest(FD)
    monkeypatch.setattr(firmware, "KNOWN_MODELS", {digest: "the firmware of this test"})
    (finding,) = why(started(BASE)[0], UPSTREAM, firmware=FD)
    assert f"(sha256 {sha(FD)}, the firmware of this test)" in finding.proof


def test_a_db_of_several_images_or_none() -> None:
    """Only one of ours is bound again: it admits one image."""
    two = bind_digests(BASE, [b"\1" * 32, b"\2" * 32])
    report, log = started(two)
    (finding,) = why(report, UPSTREAM, firmware=FD, log=log)
    assert finding.cause is Cause.FIRMWARE
    db = next(one for one in log.events if "db," in one.description)
    vendor, value = db.data[:16], varstore.signature_list(UUID(int=1), UUID(int=2), [b"x"])[:-1]
    data = vendor + (2).to_bytes(8, "little") + len(value).to_bytes(8, "little")
    data += "db".encode("utf-16-le") + value
    events = [event(0, db.kind, data) if one is db else one for one in log.events]
    found, log = booted(report, events)
    (finding,) = why(found, UPSTREAM, firmware=FD, log=log)
    assert finding.cause is Cause.FIRMWARE


def test_files_that_are_no_firmware() -> None:
    report, _ = started(BASE)
    with refused(FirmwareFormatError, "tdvf.footer"):
        why(report, UPSTREAM, firmware=b"junk")
    hob = synthetic.Firmware()
    sections = [(*s[:5], 1) if s[4] == 2 else s for s in hob.default_sections()]
    with refused(FirmwareRejected, "measured-hob"):
        why(report, UPSTREAM, firmware=synthetic.Firmware(sections=sections).build())


def test_the_firmware_is_not_read_where_mr_td_is_right() -> None:
    report, _ = started()
    assert causes(why(report, UPSTREAM, firmware=b"junk")) == [("match", True)]
    assert causes(why(replace(report, rtmr1=bytes(48)), UPSTREAM)) == [("unknown", False)]
