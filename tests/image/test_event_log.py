"""The predicted RTMR1 and RTMR2 against the event log of a real boot with a software TPM.

The TDX firmware of the images has no TPM driver, so this boot uses the same edk2 version's
OVMF_CODE_4M.secboot.fd (Debian ovmf-generic) with the same Secure Boot policy in its variable
store. With a TPM, events go to PCRs; a TD maps PCR 1 and 7 to RTMR0, 2 to 6 to RTMR1 and 8 to 15 to
RTMR2 (edk2 SecurityPkg TdxMeasurementMapPcrToMrIndex).
"""

from __future__ import annotations

import base64
import re
import time
from pathlib import Path

import pytest

from attestation.measure import authenticode, firmware, rtmr
from attestation.measure.eventlog import Backing, EventLog, backing, check_digests
from attestation.measure.eventlog_events import EV_NO_ACTION, EV_SEPARATOR
from attestation.measure.rtmr import BootPath
from release.build.emulator import Boot
from release.build.process import started
from tests.image.conftest import Image, Toolbox, transcript

SOCKET_SECONDS = 20


@pytest.fixture(scope="module")
def boot(mock_server: Image, toolbox: Toolbox, tmp_path_factory: pytest.TempPathFactory) -> Boot:
    """The mock flavour prints its event log; the production flavour is built from the same tree."""
    # A socket path has room for 107 characters only.
    work = Path(tmp_path_factory.mktemp("tpm"))
    code = toolbox.ovmf.file("usr/share/OVMF/OVMF_CODE_4M.secboot.fd")
    store = toolbox.ovmf.file("usr/share/OVMF/OVMF_VARS_4M.fd").read_bytes()
    digest = authenticode.digest(mock_server.uki.read_bytes(), "sha256")
    variables = work / "vars.fd"
    variables.write_bytes(firmware.write_policy(store, [digest]))
    state = work / "tpm"
    state.mkdir()
    tpm = toolbox.emulator.tree.command("usr/bin/swtpm")
    socket = state / "sock"
    tpm += ["socket", "--tpm2", "--tpmstate", f"dir={state}", "--flags", "startup-clear"]
    tpm += ["--ctrl", f"type=unixio,path={socket}", "--terminate"]
    with started(tpm):
        until = time.monotonic() + SOCKET_SECONDS
        while not socket.exists():
            assert time.monotonic() < until, "swtpm did not open its socket"
            time.sleep(0.05)
        return toolbox.emulator.boot(
            [
                *("-global", "driver=cfi.pflash01,property=secure,value=on"),
                *("-chardev", f"socket,id=c0,path={socket}"),
                *("-tpmdev", "emulator,id=t0,chardev=c0", "-device", "tpm-crb,tpmdev=t0"),
                *("-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={code}"),
                *("-drive", f"if=pflash,format=raw,unit=1,file={variables}"),
                *("-kernel", mock_server.uki),
            ],
            re.compile(r"^zipnet-event-log end"),
            machine="q35,smm=on",
            limit=180,
        )


@pytest.fixture(scope="module")
def log(boot: Boot) -> EventLog:
    assert boot.matched, transcript(boot)
    lines = [line.split()[1] for line in boot.lines if line.startswith("zipnet-event-log ")]
    return EventLog.parse(base64.b64decode("".join(lines[:-1])))


def mapped(log: EventLog, first: int, last: int) -> list[bytes]:
    """The digests of a TD's register: each PCR of a TPM gets a separator, a TD has one for all."""
    found: list[bytes] = []
    separated = False
    for event in log.events:
        if event.kind == EV_NO_ACTION or not first <= event.register <= last:
            continue
        if event.kind == EV_SEPARATOR:
            if separated:
                continue
            separated = True
        found.append(event.digest)
    return found


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
