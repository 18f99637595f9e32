"""The predicted RTMR1 and RTMR2 against the event log of a real boot with a software TPM."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from attestation.measure import rtmr
from attestation.measure.eventlog import Backing, EventLog, backing, check_digests
from attestation.measure.eventlog_events import EV_NO_ACTION, EV_SEPARATOR
from attestation.measure.rtmr import BootPath
from release.build.emulator import Boot
from tests.image.conftest import Image, Toolbox, transcript
from tests.image.tpm import boot_with_tpm, mapped, printed_log


@pytest.fixture(scope="module")
def boot(mock_server: Image, toolbox: Toolbox, tmp_path_factory: pytest.TempPathFactory) -> Boot:
    """The mock flavour prints its event log; the production flavour is built from the same tree."""
    return boot_with_tpm(toolbox, mock_server, Path(tmp_path_factory.mktemp("tpm")))


@pytest.fixture(scope="module")
def log(boot: Boot) -> EventLog:
    return printed_log(boot)


def test_separators_stand_together(log: EventLog) -> None:
    """Only so one of them can stand for all."""
    kept = [e for e in log.events if e.kind != EV_NO_ACTION and 1 < e.register < 7]
    places = [n for n, e in enumerate(kept) if e.kind == EV_SEPARATOR]
    assert len(places) == 5
    assert places == list(range(places[0], places[0] + 5))


@pytest.mark.parametrize(("register", "first", "last"), [(1, 2, 6), (2, 8, 15)])
def test_prediction_equals_log_event_by_event(
    log: EventLog, mock_server: Image, register: int, first: int, last: int
) -> None:
    uki = mock_server.uki.read_bytes()
    events = rtmr.rtmr1_events(uki, BootPath.KERNEL) if register == 1 else rtmr.rtmr2_events(uki)
    logged = mapped(log, first, last)
    for number, (event, digest) in enumerate(zip(events, logged, strict=False)):
        assert event.digest == digest, f"event {number}: {event.description}"
    assert len(events) == len(logged)
    predicted = rtmr.rtmr1(uki, BootPath.KERNEL) if register == 1 else rtmr.rtmr2(uki)
    assert rtmr.replay(events) == predicted


def test_digests_are_of_what_the_log_says(log: EventLog) -> None:
    """So do firmware, stub and kernel of the images: which events, and of which class."""
    check_digests(log)
    assert EventLog.parse(log.dumps()) == log

    def of(pcr: int) -> list[tuple[str, Backing]]:
        kept = [e for e in log.events if e.register == pcr and e.kind != EV_NO_ACTION]
        return [(e.description, backing(e)) for e in kept]

    sections = [name for name, _ in of(11)]
    assert sections[::2] == sections[1::2]
    assert {".linux", ".cmdline", ".initrd"} <= set(sections)
    assert [kind for _, kind in of(11)[:2]] == [Backing.DATA, Backing.CONTENT]
    assert of(9) == [
        ("LOADED_IMAGE::LoadOptions", Backing.CONTENT),
        ("Linux initrd", Backing.CONTENT),
    ]
    assert [name.partition(",")[0] for name, _ in of(7)][:4] == ["SecureBoot", "PK", "KEK", "db"]


def test_log_replays_to_the_registers_that_the_guest_read(boot: Boot, log: EventLog) -> None:
    """So the log is the one of this boot, whole and in order."""
    registers = {
        match[1]: match[2]
        for line in boot.lines
        if (match := re.match(r" +pcr(\d+):sha384 +([0-9a-f]{96})", line))
    }
    for pcr in (2, 4, 5, 7, 9, 11):
        events = [
            rtmr.Event(pcr, "logged", e.digest)
            for e in log.events
            if e.register == pcr and e.kind != EV_NO_ACTION
        ]
        assert rtmr.replay(events).hex() == registers[str(pcr)], f"PCR {pcr}"
    for silent in ("8", "12", "13", "14", "15"):
        assert silent not in registers


def test_the_policy_was_in_force(boot: Boot) -> None:
    assert re.search(r"secure boot +on", transcript(boot))
