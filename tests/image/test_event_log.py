"""The predicted RTMR1 and RTMR2 against the event log of a real boot with a software TPM.

The TDX firmware of the images has no TPM driver, so this boot uses the same edk2 version's
OVMF_CODE_4M.secboot.fd (Debian ovmf-generic) with the same Secure Boot policy in its variable
store. With a TPM, events go to PCRs; a TD maps PCR 1 and 7 to RTMR0, 2 to 6 to RTMR1 and 8 to 15 to
RTMR2 (edk2 SecurityPkg TdxMeasurementMapPcrToMrIndex).
"""

from __future__ import annotations

import base64
import re
import struct
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from attestation.measure import authenticode, firmware, rtmr
from attestation.measure.rtmr import BootPath
from release.build.emulator import Boot
from release.build.process import started
from tests.image.conftest import Image, Toolbox, transcript

SHA384 = 0x000C
EV_NO_ACTION = 3
EV_SEPARATOR = 4
SIZES = {0x0004: 20, 0x000B: 32, SHA384: 48, 0x000D: 64}
SOCKET_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Logged:
    """One event of the log: which register it was extended into, and with which digest."""

    pcr: int
    kind: int
    digest: bytes
    data: bytes


def parse(raw: bytes) -> list[Logged]:
    """TCG PC Client Platform Firmware Profile 1.06, section 10: a header, then TCG_PCR_EVENT2s."""
    _, kind, _, size = struct.unpack_from("<II20sI", raw)
    assert kind == EV_NO_ACTION
    assert raw[32:47] == b"Spec ID Event03"
    at = 32 + size
    events = []
    while at < len(raw):
        pcr, kind, count = struct.unpack_from("<III", raw, at)
        at += 12
        digests = {}
        for _ in range(count):
            (algorithm,) = struct.unpack_from("<H", raw, at)
            digests[algorithm] = raw[at + 2 : at + 2 + SIZES[algorithm]]
            at += 2 + SIZES[algorithm]
        (size,) = struct.unpack_from("<I", raw, at)
        events.append(Logged(pcr, kind, digests[SHA384], raw[at + 4 : at + 4 + size]))
        at += 4 + size
    return events


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
def log(boot: Boot) -> list[Logged]:
    assert boot.matched, transcript(boot)
    lines = [line.split()[1] for line in boot.lines if line.startswith("zipnet-event-log ")]
    return parse(base64.b64decode("".join(lines[:-1])))


def mapped(log: list[Logged], first: int, last: int) -> list[bytes]:
    """The digests of a TD's register: each PCR of a TPM gets a separator, a TD has one for all."""
    found: list[bytes] = []
    separated = False
    for event in log:
        if event.kind == EV_NO_ACTION or not first <= event.pcr <= last:
            continue
        if event.kind == EV_SEPARATOR:
            if separated:
                continue
            separated = True
        found.append(event.digest)
    return found


def test_separators_stand_together(log: list[Logged]) -> None:
    """Only so one of them can stand for all."""
    kept = [e for e in log if e.kind != EV_NO_ACTION and 1 < e.pcr < 7]
    places = [n for n, e in enumerate(kept) if e.kind == EV_SEPARATOR]
    assert len(places) == 5
    assert places == list(range(places[0], places[0] + 5))


@pytest.mark.parametrize(("register", "first", "last"), [(1, 2, 6), (2, 8, 15)])
def test_prediction_equals_log_event_by_event(
    log: list[Logged], mock_server: Image, register: int, first: int, last: int
) -> None:
    uki = mock_server.uki.read_bytes()
    events = rtmr.rtmr1_events(uki, BootPath.KERNEL) if register == 1 else rtmr.rtmr2_events(uki)
    logged = mapped(log, first, last)
    for number, (event, digest) in enumerate(zip(events, logged, strict=False)):
        assert event.digest == digest, f"event {number}: {event.description}"
    assert len(events) == len(logged)
    predicted = rtmr.rtmr1(uki, BootPath.KERNEL) if register == 1 else rtmr.rtmr2(uki)
    assert rtmr.replay(events) == predicted


def test_log_replays_to_the_registers_that_the_guest_read(boot: Boot, log: list[Logged]) -> None:
    """So the log is the one of this boot, whole and in order."""
    registers = {
        match[1]: match[2]
        for line in boot.lines
        if (match := re.match(r" +pcr(\d+):sha384 +([0-9a-f]{96})", line))
    }
    for pcr in (2, 4, 5, 7, 9, 11):
        events = [
            rtmr.Event(pcr, "logged", e.digest)
            for e in log
            if e.pcr == pcr and e.kind != EV_NO_ACTION
        ]
        assert rtmr.replay(events).hex() == registers[str(pcr)], f"PCR {pcr}"
    for silent in ("8", "12", "13", "14", "15"):
        assert silent not in registers


def test_the_policy_was_in_force(boot: Boot) -> None:
    assert re.search(r"secure boot +on", transcript(boot))
