"""`attestation record`: RTMR0 pinned, only where quote, log and list agree."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from attestation.commands import record as command
from attestation.commands.group import ExplainedGroup
from attestation.errors import FileUnreadable
from attestation.measure.eventlog import EventLog
from attestation.measure.record import Binding, Measurement, Measurements
from attestation.providers import QuoteProvider
from attestation.quote import Quote
from tests.attestation.commands.test_verify_command import ENTRY
from tests.attestation.measure.logs import log_of, record, u16, u32, u64, variable
from tests.attestation.mock_support import COLLATERAL, OTHER, REPORT_DATA, TEE
from tests.attestation.test_quote import REAL

real = pytest.mark.skipif(not REAL.is_dir(), reason="no real quotes beside the checkout")

FW_CFG = b"QEMU FW CFG\0" + b"bootorder".ljust(56, b"\0")
DISK = u32(1) + u16(4) + "disk\0".encode("utf-16-le")
LOG = log_of(
    record(1, 0x8000000B, b"\x09TdxTable\0" + u64(1) + bytes(24), b"memory map"),
    record(1, 0x8000000A, b"\2Fv" + u64(0xFFE00000) + u64(131072), b"store"),
    record(1, 0xA, FW_CFG, b"/pci@i0cf8"),
    record(1, 0x80000001, variable("SecureBoot", b"\1")),
    record(1, 4, bytes(4)),
    record(1, 0xA, b"ACPI DATA", b"loader"),
    record(1, 0x80000002, variable("BootOrder", u16(0)), u16(0)),
    record(1, 0x80000002, variable("Boot0000", DISK), DISK),
    record(2, 0x80000003, bytes(32), b"image"),
    record(3, 6, bytes(8) + b"Linux initrd\0", b"initrd"),
)
PLAIN = log_of(record(1, 4, bytes(4)), *(record(n, 4, bytes(4)) for n in (2, 3)))
ACCEPTED = replace(ENTRY, rtmr1=LOG.rtmr(1), rtmr2=LOG.rtmr(2))


def body(log: EventLog = LOG, **changes: bytes) -> dict[str, bytes | int]:
    registers = {f"rtmr{index}": log.rtmr(index) for index in range(3)}
    return {"mr_td": ENTRY.mr_td, **registers, **changes}


class Provider:
    """Makes mock quotes of what the log says."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def quote(self, report_data: bytes) -> bytes:
        self.asked.append(report_data)
        return TEE.quote(report_data, body=body())


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    contents = {
        "quote": TEE.quote(REPORT_DATA, body=body()),
        "debug": TEE.quote(REPORT_DATA, body=body(td_attributes=u64(0x10000001))),
        "elsewhere": TEE.quote(REPORT_DATA, body=body(rtmr0=b"\7" * 48)),
        "code": TEE.quote(REPORT_DATA, body=body(rtmr2=b"\7" * 48)),
        "plain": TEE.quote(REPORT_DATA, body=body(PLAIN)),
        "log": LOG.dumps().ljust(4096, b"\xff"),
        "forged": LOG.dumps().replace(b"S\0e\0c", b"s\0e\0c"),
        "plain-log": PLAIN.dumps(),
        "collateral": COLLATERAL.dumps(),
        "root": TEE.root_der,
        "other-root": OTHER.root_der,
        "junk": b"junk" * 200,
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    lists: dict[str, tuple[Measurement, ...]] = {
        "against": (replace(ENTRY, role="client"), ACCEPTED),
        "plain-list": (replace(ENTRY, rtmr1=PLAIN.rtmr(1), rtmr2=PLAIN.rtmr(2)),),
        "process": (replace(ACCEPTED, binding=Binding.PROCESS),),
    }
    for name, entries in lists.items():
        (tmp_path / name).write_bytes(Measurements(entries).dumps())
    return {name: str(tmp_path / name) for name in [*contents, *lists, "out", "missing"]}


def run(
    files: dict[str, str],
    *words: str,
    provider: QuoteProvider | None = None,
    against: str = "against",
) -> Result:
    group = ExplainedGroup("attestation", commands={"record": command.record})
    arguments = ["record", "--against", files[against], *(files.get(w, w) for w in words)]
    return CliRunner().invoke(group, arguments, obj=provider)


GIVEN = ("--quote", "quote", "--log", "log")


def test_the_whole_story(files: dict[str, str]) -> None:
    result = run(files, *GIVEN, "--out", "out")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == (
        "RTMR0 of measurements[1]: "
        "holds for this firmware, memory size, devices and QEMU version only"
    )
    short = [event.digest.hex()[:16] for event in LOG.events]
    assert lines[1:7] == [
        f"  rtmr0               {LOG.rtmr(0).hex()}",
        "  firmware volumes    Fv at 0xffe00000, 131072 bytes",
        f"  memory map, tables  TdxTable {short[0]}",
        f"  ACPI data           {short[5]}",
        "  fw_cfg              bootorder",
        "  boot options        BootOrder: 0000, Boot0000: disk",
    ]
    head = f"  event  type{' ' * 26}  digest{' ' * 10}  of       description"
    assert lines[7] == head
    assert len(lines) == 8 + 8
    columns = [head.index(name) for name in ("type", "digest", "of ", "description")]
    for event, line in zip(LOG.of_rtmr(0), lines[8:], strict=True):
        cells = [line[a:b].strip() for a, b in zip([0, *columns], [*columns, None], strict=True)]
        assert cells[:3] == [str(event.number), event.name, event.digest.hex()[:16]]
        assert cells[3] in {"data", "content"}
        assert cells[4] == event.description
    (entry,) = Measurements.loads(Path(files["out"]).read_bytes()).entries
    assert entry == replace(ACCEPTED, rtmr0=LOG.rtmr(0))


def test_it_says_that_the_quote_was_not_verified(files: dict[str, str]) -> None:
    result = run(files, *GIVEN, "--out", "out")
    assert result.stderr.startswith("warning: the quote is NOT verified")
    assert (
        f"next: attestation verify {files['quote']} --collateral FILE "
        f"--measurements {files['out']}" in result.stderr
    )
    result = run(files, "--log", "log", provider=Provider())
    assert "next: attestation quote --out QUOTE; attestation verify QUOTE" in result.stderr


def test_verified(files: dict[str, str]) -> None:
    mock = ("--collateral", "collateral", "--mock-root", "root")
    result = run(files, *GIVEN, *mock, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout)["verified"] == "mock"


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (("--collateral", "collateral"), "root"),  # Intel's root is not the mock's
        (("--collateral", "collateral", "--mock-root", "other-root"), "root"),
        (("--collateral", "junk"), "json"),
    ],
)
def test_a_quote_that_is_not_genuine(
    files: dict[str, str], words: tuple[str, ...], rule: str
) -> None:
    result = run(files, *GIVEN, "--out", "out", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"rule: {rule}" in result.stderr
    assert not Path(files["out"]).exists()


def test_json(files: dict[str, str]) -> None:
    result = json.loads(run(files, *GIVEN, "--json").stdout)
    assert result["verified"] is None
    assert result["against"] == 1
    assert result["scope"] == command.SCOPE
    assert result["host"]["fw_cfg"] == "bootorder"
    assert [event["digest_of"] for event in result["events"]] == [
        *("content", "content", "content", "data"),
        *("data", "content", "data", "data"),
    ]
    assert result["events"][3] == {
        "number": 3,
        "type": "EV_EFI_VARIABLE_DRIVER_CONFIG",
        "digest": LOG.events[3].digest.hex(),
        "digest_of": "data",
        "description": "SecureBoot, 1 bytes",
    }
    entry = Measurement.from_json(result["measurement"])
    assert entry == replace(ACCEPTED, rtmr0=LOG.rtmr(0))


def test_of_this_machine(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "CCEL", Path(files["log"]))
    provider = Provider()
    for _ in range(2):
        assert run(files, provider=provider).exit_code == 0
    assert [len(data) for data in provider.asked] == [64, 64]
    assert provider.asked[0] != provider.asked[1]


def test_a_machine_without_a_log(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "CCEL", Path(files["missing"]))
    result = run(files, provider=Provider())
    assert (result.exit_code, result.stdout) == (3, "")
    assert "rule: log.absent" in result.stderr
    assert "or give --log" in result.stderr


def test_a_machine_without_quotes(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent:
        def quote(self, report_data: bytes) -> bytes:
            assert len(report_data) == 64
            raise FileUnreadable("no quotes here", rule="absent")

    monkeypatch.setattr(command, "TsmProvider", Absent)
    result = run(files, "--log", "log")
    assert result.exit_code == 3
    assert "rule: absent" in result.stderr


def test_a_register_without_the_host(files: dict[str, str]) -> None:
    """Nothing of the host's is in it, so the note would be untrue."""
    result = run(files, "--quote", "plain", "--log", "plain-log", against="plain-list")
    assert result.stdout.splitlines()[0] == "RTMR0 of measurements[0]: holds for this firmware"
    assert "  fw_cfg              none" in result.stdout


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--quote", "debug", "--log", "log"), 2, "rule: debug-td"),
        (("--quote", "elsewhere", "--log", "log"), 2, "rule: eventlog.rtmr0"),
        (("--quote", "quote", "--log", "forged"), 2, "rule: eventlog.digest"),
        (("--quote", "quote", "--log", "junk"), 2, "rule: log.signature"),
        (("--quote", "junk", "--log", "log"), 2, "rule: version"),
        (("--quote", "missing", "--log", "log"), 3, "rule: file.read"),
        (("--quote", "quote", "--log", "missing"), 3, "rule: file.read"),
        ((*GIVEN, "--out", "/dev/null/x"), 3, "rule: file.write"),
        ((*GIVEN, "--mock-root", "root"), 1, "--mock-root needs --collateral"),
        ((*GIVEN, "--nope"), 1, "No such option"),
    ],
)
def test_failures(files: dict[str, str], words: tuple[str, ...], code: int, text: str) -> None:
    result = run(files, *words)
    assert (result.exit_code, result.stdout) == (code, "")
    assert text in result.stderr


def test_other_code(files: dict[str, str]) -> None:
    result = run(files, "--quote", "code", "--log", "log", "--out", "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "other rtmr2 than measurements[1]" in result.stderr
    assert "rule: measurement" in result.stderr
    assert "next: run attestation explain QUOTE --against FILE" in result.stderr
    assert not Path(files["out"]).exists()


def test_a_process_is_no_td(files: dict[str, str]) -> None:
    result = run(files, *GIVEN, against="process")
    assert result.exit_code == 2
    assert "other binding than measurements[0]" in result.stderr


@real
def test_a_real_td(files: dict[str, str], tmp_path: Path) -> None:
    """Its code is in no list of ours, so one is made up of its registers."""
    log = EventLog.parse((REAL / "gce-cos113.ccel").read_bytes())
    quote = REAL / "gce-cos113-v4.quote"
    own = Quote.parse(quote.read_bytes()).body
    entry = replace(ENTRY, mr_td=own.mr_td, rtmr1=own.rtmr1, rtmr2=own.rtmr2)
    (tmp_path / "list").write_bytes(Measurements((entry,)).dumps())
    files["list"] = str(tmp_path / "list")
    words = ("--quote", str(quote), "--log", str(REAL / "gce-cos113.ccel"))
    result = run(files, *words, "--out", "out", against="list")
    assert result.exit_code == 0
    assert "boot options        BootOrder: 0001 0000, Boot0001: UEFI nvme_card-pd" in result.stdout
    (pinned,) = Measurements.loads(Path(files["out"]).read_bytes()).entries
    assert pinned.rtmr0 == own.rtmr0 == log.rtmr(0)
