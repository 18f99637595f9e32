"""Boots with a software TPM, whose event log shows what a TD's registers would be extended with.

The TDX firmware of the images has no TPM driver, so such a boot uses the same edk2 version's
OVMF_CODE_4M.secboot.fd (Debian ovmf-generic) with the same Secure Boot policy in its variable
store. With a TPM, events go to PCRs; a TD maps PCR 1 and 7 to RTMR0, 2 to 6 to RTMR1 and 8 to 15 to
RTMR2 (edk2 SecurityPkg TdxMeasurementMapPcrToMrIndex).
"""

from __future__ import annotations

import base64
import re
import time
from pathlib import Path

from attestation.measure import authenticode, firmware
from attestation.measure.eventlog import EventLog
from attestation.measure.eventlog_events import EV_NO_ACTION, EV_SEPARATOR
from release.build.emulator import Boot
from release.build.process import started
from tests.image.conftest import Image, Toolbox, transcript

SOCKET_SECONDS = 20


def boot_with_tpm(
    toolbox: Toolbox, image: Image, work: Path, *more: str | Path, memory_mib: int = 1024
) -> Boot:
    """Boot an image of the mock flavour, which prints its event log; `more` goes to QEMU.

    A socket path has room for 107 characters only, so `work` must be short.
    """
    code = toolbox.ovmf.file("usr/share/OVMF/OVMF_CODE_4M.secboot.fd")
    store = toolbox.ovmf.file("usr/share/OVMF/OVMF_VARS_4M.fd").read_bytes()
    digest = authenticode.digest(image.uki.read_bytes(), "sha256")
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
                *("-kernel", image.uki),
                *more,
            ],
            re.compile(r"^zipnet-event-log end"),
            machine="q35,smm=on",
            memory_mib=memory_mib,
            limit=180,
        )


def printed_log(boot: Boot) -> EventLog:
    """The event log that the guest printed."""
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
