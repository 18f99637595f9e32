"""The boot proof: what is spoiled, what is started, and what counts as shown."""

import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from attestation.measure.pe import Pe
from release.build import cpio, proof
from release.build.emulator import NOTHING_TO_BOOT, Boot, Emulator
from release.build.proof import Case, announced, changed_in_one_byte, judge, prove
from release.build.settings import Role
from release.build.tools import Tree
from release.errors import HostError, ProofFailed
from tests.attestation.measure import synthetic
from tests.release.build.support import program, refused, vectors

UKI = synthetic.uki({".cmdline": b"console=ttyS0 quiet panic=-1"})
CASES: list[dict[str, Any]] = vectors("consoles.json")["cases"]
STARTS = Case("starts its own UKI", (), must_boot=True)
REFUSES = Case("refuses it with one byte changed", (), must_boot=False)


def test_one_byte_of_the_command_line() -> None:
    changed = changed_in_one_byte(UKI)
    places = [at for at, (a, b) in enumerate(zip(UKI, changed, strict=True)) if a != b]
    assert len(places) == 1
    before, after = Pe.parse(UKI), Pe.parse(changed)
    cmdline = after.section(".cmdline")
    assert cmdline is not None
    # The word that keeps the kernel silent is gone: if it ran, it would be heard.
    assert bytes(cmdline).rstrip(b"\0") == b"console=ttyS0 Quiet panic=-1"
    for section in before.sections:
        if section.name != ".cmdline":
            assert before.section(section.name) == after.section(section.name)


@pytest.mark.parametrize(
    "uki",
    [
        synthetic.uki({".cmdline": b"console=ttyS0"}),
        synthetic.uki({".cmdline": None}),
        synthetic.uki({".cmdline": b"console=ttyS0", ".osrel": b"quiet"}),
    ],
    ids=["not quiet", "no command line", "quiet elsewhere"],
)
def test_what_can_not_be_spoiled(uki: bytes) -> None:
    with refused(ProofFailed, "the boot proof can't spoil this image") as caught:
        changed_in_one_byte(uki)
    assert caught[0].exit_code == 2


def test_foreign_initrd() -> None:
    (entry,) = cpio.read(proof.foreign_initrd())
    assert (entry.name, entry.mode) == ("init", 0o100755)


@pytest.mark.parametrize("role", list(Role))
def test_announced(role: Role) -> None:
    until = announced(role)
    assert until.search(f"zipnet {role} 0.1.0: preflight")
    assert until.search(f"zipnet {role} 10.20.30")
    for line in (f"zipnet {role}: x", f" zipnet {role} 0.1.0", f"zipnet {role} v0.1.0", "zipnet"):
        assert not until.search(line)
    others = [other for other in Role if other is not role]
    assert not any(until.search(f"zipnet {other} 0.1.0: preflight") for other in others)


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["what"])[:50])
def test_judgement(case: dict[str, Any], log: Path) -> None:
    lines = tuple(case["lines"])
    matched = next((line for line in lines if announced(Role.SERVER).search(line)), None)
    judged = [
        (STARTS, Boot(lines, matched, 1.0), case["announced"]),
        (REFUSES, Boot(lines, None, 1.0), case["refused"]),
    ]
    for expected, boot, good in judged:
        if good:
            judge(expected, boot, log)
            continue
        with refused(ProofFailed, f"the firmware {expected.name}: not shown") as caught:
            judge(expected, boot, log)
        assert str(log) in caught[0].hint
        assert caught[0].got == "\n  | ".join(("", *boot.tail()))
        assert caught[0].exit_code == 2


def test_a_match_of_the_last_word_alone_is_no_refusal(log: Path) -> None:
    last = "BdsDxe: No bootable option or device was found."
    with refused(ProofFailed, "the firmware's refusal, then nothing to boot, and no line of a"):
        judge(REFUSES, Boot((last,), last, 2.0), log)


def test_silence_says_how_long(log: Path) -> None:
    with refused(
        ProofFailed, "not shown after 180 s, expected the line in which the role announces"
    ):
        judge(STARTS, Boot((), None, 180.2), log)


# QEMU played by a script: what it says depends on the file that it is to start.
PLAYED = """
kernel= bios= initrd=
while [ $# -gt 0 ]; do
    case $1 in
        -kernel) kernel=$2; shift ;;
        -initrd) initrd=$2; shift ;;
        -bios) bios=$2; shift ;;
    esac
    shift
done
refuse() {
    echo "OVMF: Secure boot image verification failed.  Consider using the '-shim'"
    echo "BdsDxe: No bootable option or device was found."
}
boot() { printf '\\033[2J'; echo "zipnet server 0.1.0: preflight"; }
[ -f "$bios" ] || exit 1
"""
CORRECT = """
if grep -q quiet "$kernel" && [ -z "$initrd" ]; then boot; else refuse; fi
exec sleep 1000
"""
OPEN = """
if [ -n "$initrd" ]; then echo '[    0.000000] Linux version 6.12'; else boot; fi
"""


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    found = {name: tmp_path / name for name in ("x.fd", "x.efi", "x.vmlinuz")}
    for path in found.values():
        path.write_bytes(UKI)
    return found


def emulated(tmp_path: Path, script: str) -> Emulator:
    tree = tmp_path / "emulator"
    program(tree / "usr/lib64", "ld-linux-x86-64.so.2", 'shift 2; exec "$@"')
    program(tree / "usr/bin", "qemu-system-x86_64", PLAYED + script)
    return Emulator(Tree(tree))


def run(emulator: Emulator, files: dict[str, Path], tmp_path: Path, log: Path) -> list[str]:
    said: list[str] = []
    work = tmp_path / "work"
    work.mkdir()
    uki, kernel = files["x.efi"], files["x.vmlinuz"]
    prove(emulator, files["x.fd"], Role.SERVER, uki, kernel, work, log, said.append)
    return said


def test_prove(tmp_path: Path, files: dict[str, Path], log: Path) -> None:
    said = run(emulated(tmp_path, CORRECT), files, tmp_path, log)
    assert [line.partition(":")[0] for line in said] == [
        "starts its own UKI",
        "refuses it with one byte changed",
        "refuses its kernel with a foreign initrd",
    ]
    text = log.read_text()
    assert "== starts its own UKI: " in text
    assert "zipnet server 0.1.0: preflight" in text
    assert text.count("Secure boot image verification failed") == 2


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (OPEN, "the firmware refuses it with one byte changed: not shown"),
        ("refuse", "the firmware starts its own UKI: not shown"),
        ("exit 0", "the firmware starts its own UKI: not shown"),
        (
            'if [ -n "$initrd" ]; then exit; fi;' + CORRECT,
            "refuses its kernel with a foreign initrd",
        ),
    ],
    ids=["a policy that fails open", "nothing boots", "QEMU ends", "silence for one"],
)
def test_failed_proof(
    tmp_path: Path, files: dict[str, Path], log: Path, script: str, words: str
) -> None:
    with refused(ProofFailed, words, "the bound firmware starts exactly its own image"):
        run(emulated(tmp_path, script), files, tmp_path, log)
    # The consoles of all three boots are there to be read.
    assert log.read_text().count("== ") == 3


def test_timeout(
    tmp_path: Path, files: dict[str, Path], log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "LIMIT", 0.2)
    with refused(ProofFailed, "not shown after 0 s"):
        run(emulated(tmp_path, "exec sleep 1000"), files, tmp_path, log)


def test_interrupted(
    tmp_path: Path, files: dict[str, Path], log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("release.build.emulator.POLL", 0.01)

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    begin = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted(tmp_path, files, log)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    # Nobody waits for boots whose outcome does not matter any more.
    assert time.monotonic() - begin < proof.LIMIT / 4


def interrupted(tmp_path: Path, files: dict[str, Path], log: Path) -> None:
    emulator = emulated(tmp_path, "exec sleep 1000")
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    run(emulator, files, tmp_path, log)


def test_what_is_waited_for(tmp_path: Path, files: dict[str, Path], log: Path) -> None:
    waited: list[tuple[str, str]] = []

    class Recording(Emulator):
        __slots__ = ()

        def boot(self, arguments: Sequence[str | Path], until: Any, **_: Any) -> Boot:
            waited.append((str(arguments[3]), until.pattern))
            lines = tuple(CASES[0 if until is not NOTHING_TO_BOOT else 1]["lines"])
            return Boot(lines, lines[-1], 1.0)

    run(Recording(Tree(tmp_path)), files, tmp_path, log)
    assert {Path(path).name: until for path, until in waited} == {
        "x.efi": announced(Role.SERVER).pattern,
        "changed.efi": NOTHING_TO_BOOT.pattern,
        "x.vmlinuz": NOTHING_TO_BOOT.pattern,
    }


def test_no_qemu(tmp_path: Path, files: dict[str, Path], log: Path) -> None:
    with refused(HostError, "has no usr/lib64/ld-linux-x86-64.so.2"):
        run(Emulator(Tree(tmp_path / "nothing")), files, tmp_path, log)
