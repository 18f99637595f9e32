"""The boot proof: the bound firmware starts its UKI, and refuses what differs from it.

A variable store that the firmware finds malformed is dropped, and it boots anything: the policy
fails open. So no build is trusted to have bound its image; it is shown, in emulation, each time.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from attestation.measure.pe import Pe
from release.build import cpio
from release.build.emulator import NOTHING_TO_BOOT, Boot, Emulator
from release.build.settings import Role
from release.errors import ProofFailed

# Generous: the slowest of these takes 25 s on two slow cores.
LIMIT = 180
# The word that keeps the kernel silent. Spoiling it makes an image that would talk, if it ran.
QUIET = b"quiet"


@dataclass(frozen=True, slots=True)
class Case:
    """One boot of the proof and what must come of it."""

    name: str
    arguments: tuple[str | Path, ...]
    must_boot: bool


def announced(role: Role) -> re.Pattern[str]:
    """The first line that the role's own program prints."""
    return re.compile(rf"^zipnet {role} \d+\.\d+\.\d+")


def changed_in_one_byte(uki: bytes) -> bytes:
    """The UKI with one byte of its command line changed, so that its kernel would not be quiet."""
    sections = [s for s in Pe.parse(uki).sections if s.name == ".cmdline"]
    places = [uki.find(QUIET, s.raw_offset, s.raw_offset + s.raw_size) for s in sections]
    found = places[0] if len(places) == 1 else -1
    if found < 0:
        raise ProofFailed(
            "the boot proof can't spoil this image",
            expected=f"a .cmdline section with the word {QUIET.decode()}",
            rule="what must be refused would be heard if it were not",
        )
    spoiled = bytearray(uki)
    spoiled[found] ^= 0x20
    return bytes(spoiled)


def foreign_initrd() -> bytes:
    """An initrd that is not the image's: were it started, the kernel would at least panic aloud."""
    return cpio.write({"init": (0o100755, b"#!/nothing\n")})


def cases(uki: Path, kernel: Path, work: Path) -> tuple[Case, ...]:
    """The three boots, with the files that they need written below `work`."""
    changed, initrd = work / "changed.efi", work / "foreign.cpio"
    changed.write_bytes(changed_in_one_byte(uki.read_bytes()))
    initrd.write_bytes(foreign_initrd())
    aloud = ("-append", "console=ttyS0")
    return (
        Case("starts its own UKI", ("-kernel", uki), must_boot=True),
        Case("refuses it with one byte changed", ("-kernel", changed), must_boot=False),
        Case(
            "refuses its kernel with a foreign initrd",
            ("-kernel", kernel, "-initrd", initrd, *aloud),
            must_boot=False,
        ),
    )


def prove(
    emulator: Emulator,
    firmware: Path,
    role: Role,
    uki: Path,
    kernel: Path,
    work: Path,
    log: Path,
    said: Callable[[str], None],
) -> None:
    """Run all cases, two side by side. Raises ProofFailed with the end of the console."""

    def boot(case: Case) -> Boot:
        until = announced(role) if case.must_boot else NOTHING_TO_BOOT
        arguments = ["-bios", firmware, *case.arguments]
        return emulator.boot(arguments, until, limit=LIMIT, stop=stop)

    todo = cases(uki, kernel, work)
    stop = threading.Event()
    with ThreadPoolExecutor(max_workers=2) as pool:
        try:
            boots = list(pool.map(boot, todo))
        finally:
            # The pool waits for its threads: an interrupted build must not wait for the boots.
            stop.set()
    with log.open("a", encoding="utf-8") as file:
        for case, result in zip(todo, boots, strict=True):
            file.write(f"== {case.name}: {result.seconds:.1f} s\n" + "\n".join(result.lines) + "\n")
    for case, result in zip(todo, boots, strict=True):
        judge(case, result, log)
        said(f"{case.name}: {result.seconds:.1f} s")


def judge(case: Case, result: Boot, log: Path) -> None:
    """Raise ProofFailed unless the boot did what its case demands; silence is never a refusal."""
    good = result.matched is not None if case.must_boot else result.refused
    if good:
        return
    expected = (
        "the line in which the role announces itself"
        if case.must_boot
        else "the firmware's refusal, then nothing to boot, and no line of a kernel"
    )
    raise ProofFailed(
        f"boot proof failed: the firmware {case.name}: not shown after {result.seconds:.0f} s",
        expected=expected,
        got="\n  | ".join(("", *result.tail())),
        rule="the bound firmware starts exactly its own image",
        hint=f"the whole console is in {log}; if the host was overloaded, build again",
    )
