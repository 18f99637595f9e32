"""`attestation explain`: what it prints, and its exit codes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation import allowlist
from attestation.allowlist import AllowList, Entry, TcbPolicy
from attestation.commands.explain import explain_command
from attestation.commands.group import ExplainedGroup
from attestation.measure.record import Binding, Measurements
from attestation.providers.mock import MockQuoteService
from tests.attestation.measure.explain_support import (
    ENTRIES,
    FD,
    OTHER_FD,
    OTHER_UKI,
    OTHERS,
    ROM,
    TEE,
    UKI,
)

PROGRAM = ExplainedGroup("attestation", commands=[explain_command])
AT = "2027-01-15T08:00:00Z"
NOW = 1_800_000_000


def run(*arguments: str) -> Result:
    return CliRunner().invoke(PROGRAM, ["explain", *arguments])


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    good = MockQuoteService(TEE, FD, UKI)
    rom = MockQuoteService(TEE, FD, UKI, option_roms=[ROM])
    other = MockQuoteService(TEE, OTHER_FD, OTHER_UKI)
    entries = tuple(Entry(entry, 0, NOW) for entry in (*ENTRIES, *OTHERS))
    payload = AllowList(1, bytes(32), 0, entries, TcbPolicy()).dumps()
    signed = allowlist.sign(payload, Ed25519PrivateKey.generate())
    contents = {
        "good": good.quote(bytes(64)) + bytes(100),  # as a quoting service pads it
        "rom": rom.quote(bytes(64)),
        "rom.log": rom.event_log(),
        "other": other.quote(bytes(64)),
        "server.json": Measurements(ENTRIES).dumps(),
        "client.json": Measurements(OTHERS).dumps(),
        "process.json": Measurements((replace(ENTRIES[0], binding=Binding.PROCESS),)).dumps(),
        "list.json": payload,
        "signed.json": allowlist.assemble(payload, [signed]),
        "uki": UKI,
        "fd": FD,
        "junk": b"junk",
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    return {name: str(tmp_path / name) for name in [*contents, "missing"]}


def test_match(files: dict[str, str]) -> None:
    result = run(files["good"], "--against", files["server.json"], "--at", AT)
    assert (result.exit_code, result.stderr) == (0, "")
    quote, entry = ENTRIES[0].mr_td.hex()[:16], ENTRIES[0].rtmr1.hex()[:16]
    lines = result.stdout.splitlines()
    assert lines[:5] == [
        "match",
        "neither the quote nor any list is verified here: see `attestation verify`",
        f"wanted: {files['server.json']}[0] (server, host upstream, boot kernel)",
        "",
        "register  quote             wanted            same",
    ]
    assert lines[5] == f"mr_td     {quote}  {quote}  yes"
    assert lines[6].endswith("  not pinned")
    assert lines[7] == f"rtmr1     {entry}  {entry}  yes"
    assert lines[9] == f"rtmr3     {'0' * 16}  {'0' * 16}  yes"
    assert lines[11].startswith("match: the quote measures as ")
    assert lines[12].startswith("  proof: MR_TD, RTMR1 and RTMR2 are equal")
    assert lines[13].startswith("  next: verify the quote itself")
    assert len(lines) == 14


def test_a_difference(files: dict[str, str]) -> None:
    arguments = (files["rom"], "--against", files["server.json"], "--log", files["rom.log"])
    result = run(*arguments, "--firmware", files["fd"], "--uki", files["uki"])
    assert (result.exit_code, result.stderr) == (2, "")
    assert result.stdout.startswith("would be refused: option-rom\n")
    assert "\nrtmr1 " in result.stdout
    assert "  NO\n" in result.stdout
    assert "\noption-rom: a driver of a device ran before the image: event 7 EV" in result.stdout
    shown = json.loads(run(*arguments, "--json", "--at", AT).stdout)
    assert (shown["verdict"], shown["at"]) == (
        "would be refused: option-rom",
        "2027-01-15T08:00:00+00:00",
    )
    (finding,) = shown["findings"]
    assert finding["entry"] == {"source": files["server.json"], "index": 0}
    assert (finding["cause"], finding["proved"], finding["register"]) == (
        "option-rom",
        True,
        "rtmr1",
    )
    assert shown["wanted"]["measurement"] == ENTRIES[0].to_json()
    assert shown["quote"]["mr_td"] == ENTRIES[0].mr_td.hex()


def test_what_is_not_proved_says_so(files: dict[str, str]) -> None:
    result = run(files["rom"], "--against", files["server.json"])
    assert result.exit_code == 2
    assert "\nunknown: RTMR1 is of no entry" in result.stdout
    assert "\n  proof: none, this is only possible\n" in result.stdout


def test_debug_has_no_entry(tmp_path: Path, files: dict[str, str]) -> None:
    path = tmp_path / "debug"
    path.write_bytes(TEE.quote(bytes(64), body={"td_attributes": 1}))
    result = run(str(path), "--against", files["server.json"], "--json")
    assert result.exit_code == 2
    (finding,) = json.loads(result.stdout)["findings"]
    assert (finding["cause"], finding["entry"]) == ("debug", None)


@pytest.mark.parametrize("name", ["list.json", "signed.json"])
def test_lists(files: dict[str, str], name: str) -> None:
    """The entries of a list have windows; nobody asks who signed it."""
    result = run(files["good"], "--against", files[name], "--at", AT)
    assert result.exit_code == 2
    assert result.stdout.startswith("would be refused: retired, match\n")
    result = run(files["good"], "--against", files[name], "--at", "2027-01-15T07:59:59Z")
    assert (result.exit_code, result.stdout[:6]) == (0, "match\n")


def test_several_files(files: dict[str, str]) -> None:
    """The first is what is wanted."""
    both = ("--against", files["server.json"], "--against", files["client.json"])
    result = run(files["other"], *both)
    assert (result.exit_code, result.stdout.splitlines()[0]) == (2, "would be refused: role")
    assert f"wanted: {files['server.json']}[0]" in result.stdout
    assert f"are those of {files['client.json']}[0] (client" in result.stdout
    assert run(files["good"], *both).exit_code == 0
    result = run(files["other"], "--against", files["list.json"], "--role", "server", "--at", AT)
    assert result.stdout.splitlines()[0] == "would be refused: role"
    assert f"wanted: {files['list.json']}[0] (server" in result.stdout
    # No entry of that role: the table shows what there is.
    result = run(files["other"], "--against", files["client.json"], "--role", "server")
    assert f"wanted: {files['client.json']}[0] (client" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["good"], 1, "--against"),
        (["missing", "--against", "server.json"], 3, "rule: file.read"),
        (["good", "--against", "missing"], 3, "rule: file.read"),
        (["junk", "--against", "server.json"], 2, "rule: size"),
        (["uki", "--against", "server.json"], 2, "rule: version"),
        (["good", "--against", "junk"], 2, "rule: record.json"),
        (["good", "--against", "process.json"], 2, "rule: explain.candidates"),
        (["good", "--against", "server.json", "--log", "junk"], 2, "rule: log.header-truncated"),
        (["good", "--against", "server.json", "--log", "rom.log"], 2, "rule: eventlog.rtmr1"),
        (["rom", "--against", "server.json", "--uki", "junk"], 2, "rule: pe.dos-header"),
        (["other", "--against", "server.json", "--firmware", "junk"], 2, "rule: tdvf.footer"),
        (["good", "--against", "server.json", "--at", "noon"], 1, "no ISO 8601"),
        (["good", "--against", "server.json", "--firmware", "missing"], 3, "rule: file.read"),
    ],
)
def test_failures(files: dict[str, str], arguments: list[str], code: int, text: str) -> None:
    result = run(*(files.get(argument, argument) for argument in arguments))
    assert (result.exit_code, result.stdout) == (code, "")
    assert text in result.stderr


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"[]", "record.fields"),
        (b'{"payloadType": 1}', "envelope.fields"),
        (b'{"entries": []}', "list.fields"),
        (b"\xff", "record.json"),
        (b"[" * 5000, "record.json"),
    ],
)
def test_files_that_are_no_list(
    files: dict[str, str], tmp_path: Path, content: bytes, rule: str
) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    result = run(files["good"], "--against", str(path))
    assert result.exit_code == 2
    assert f"rule: {rule}" in result.stderr
