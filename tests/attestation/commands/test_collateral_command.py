"""`attestation collateral`: what it says, what it writes, and its exit codes."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from attestation.collateral_cache import Bundle
from attestation.commands.collateral import collateral
from attestation.commands.group import ExplainedGroup
from attestation.providers.mock import EXPIRES
from attestation.providers.mock_server import Fault, Item, MockPccs
from tests.attestation.collateral.support import DAY, MONTH, OTHER, QUOTE, START, TEE, issued

QUOTES = Path(__file__).parents[3].parent / "shared" / "quotes"
REAL = str(QUOTES / "dcap-qvl-v4.collateral.json")
COMMANDS = ExplainedGroup("attestation", commands=[collateral])
BUNDLE = Bundle.of(issued())
AT = "2026-01-02T00:00:00Z"

real = pytest.mark.skipif(not QUOTES.is_dir(), reason="no real quotes next to the checkout")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(COMMANDS, ["collateral", *arguments])


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    contents = {
        "quote": QUOTE,
        "root": TEE.root_der,
        "bundle": BUNDLE.dumps(),
        "bare": issued().dumps(),
        "forged": Bundle.of(replace(issued(), tcb_info_signature=bytes(64))).dumps(),
        "junk": b"junk",
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    return {name: str(tmp_path / name) for name in [*contents, "missing", "out"]}


@pytest.fixture
def pccs() -> Iterator[MockPccs]:
    with MockPccs(TEE.collateral()) as server:
        yield server


def show(files: dict[str, str], name: str, *more: str) -> Result:
    return run("show", files[name], "--mock-root", files["root"], *more)


def fetch(files: dict[str, str], pccs: MockPccs, *more: str) -> Result:
    arguments = ["--url", pccs.url, "--mock-root", files["root"], "--out", files["out"], *more]
    return run("fetch", *(files.get(argument, argument) for argument in arguments))


# --- show --------------------------------------------------------------------------------------


def test_the_table(files: dict[str, str]) -> None:
    result = show(files, "bundle", "--at", AT)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "genuine            yes, under the mock root",
        "valid now          yes",
        "platform           fmspc 50806f000000, ca platform",
        "valid from         2026-01-01T00:00:00Z",
        "valid until        2026-01-31T00:00:00Z",
        "evaluation number  tcb_info 17, qe_identity 17",
        "tcb date           2025-01-01T00:00:00Z",
        "",
        "part                      issued                expires               days left",
        "tcb_info                  2026-01-01T00:00:00Z  2026-01-31T00:00:00Z       29.0",
        "qe_identity               2026-01-01T00:00:00Z  2026-01-31T00:00:00Z       29.0",
        "root_ca_crl               2026-01-01T00:00:00Z  2026-01-31T00:00:00Z       29.0",
        "pck_crl                   2026-01-01T00:00:00Z  2026-01-31T00:00:00Z       29.0",
        "tcb_info_issuer_chain     2018-05-21T00:00:00Z  2049-12-31T23:59:59Z     8764.9",
        "qe_identity_issuer_chain  2018-05-21T00:00:00Z  2049-12-31T23:59:59Z     8764.9",
        "pck_crl_issuer_chain      2018-05-21T00:00:00Z  2049-12-31T23:59:59Z     8764.9",
    ]


def test_either_form(files: dict[str, str]) -> None:
    assert show(files, "bare", "--at", AT).stdout == show(files, "bundle", "--at", AT).stdout


@pytest.mark.parametrize(
    ("at", "left"), [("2026-01-28T00:00:00Z", ""), ("2026-01-28T00:00:01Z", "2.9 days")]
)
def test_a_warning_before_it_expires(files: dict[str, str], at: str, left: str) -> None:
    result = show(files, "bundle", "--at", at)
    assert result.exit_code == 0
    assert result.stderr == (f"warning: expires in {left}: fetch it again\n" if left else "")


@pytest.mark.parametrize(
    ("name", "at", "rule", "genuine"),
    [
        ("bundle", "2026-01-31T00:00:00Z", "collateral-expired", True),
        ("bundle", "2025-12-31T23:59:59Z", "collateral-not-yet-valid", True),
        ("forged", AT, "tcb-info-signature", False),
        ("forged", "2030-01-01T00:00:00Z", "tcb-info-signature", False),
    ],
)
def test_what_is_not_good(
    files: dict[str, str], name: str, at: str, rule: str, genuine: bool
) -> None:
    result = show(files, name, "--at", at)
    assert result.exit_code == 2
    assert f"rule: {rule}" in result.stderr
    first, second, *_ = result.stdout.splitlines()
    assert first.startswith("genuine            yes" if genuine else "genuine            NO")
    assert second == f"valid now          NO: {rule}"
    content = json.loads(show(files, name, "--at", at, "--json").stdout)
    assert (content["genuine"], content["valid"], content["refused"]) == (genuine, False, rule)


def test_mock_collateral_without_the_mock_root(files: dict[str, str]) -> None:
    result = run("show", files["bundle"], "--at", AT)
    assert result.exit_code == 2
    assert "genuine            NO, not under Intel's root" in result.stdout
    assert "rule: root-mismatch" in result.stderr


def test_json(files: dict[str, str]) -> None:
    content = json.loads(show(files, "bundle", "--at", AT, "--json").stdout)
    assert (content["fmspc"], content["ca"]) == ("50806f000000", "platform")
    assert (content["anchor"], content["at"]) == ("mock", "2026-01-02T00:00:00+00:00")
    assert (content["genuine"], content["valid"], content["refused"]) == (True, True, None)
    assert (content["valid_until"], content["days_left"]) == ("2026-01-31T00:00:00Z", 29.0)
    assert content["evaluation_numbers"] == {"tcb_info": 17, "qe_identity": 17}
    assert content["parts"][0] == {
        "name": "tcb_info",
        "issued": "2026-01-01T00:00:00Z",
        "expires": "2026-01-31T00:00:00Z",
        "days_left": 29.0,
    }


@pytest.mark.parametrize(
    "levels", [None, 1, [], [1], [{}], [{"tcbDate": 1}], [{"tcbDate": "\\u001b[31m0000000000"}]]
)
def test_levels_without_dates(files: dict[str, str], levels: Any) -> None:
    Path(files["out"]).write_bytes(issued(tcb_info={"tcbLevels": levels}).dumps())
    result = show(files, "out", "--at", AT)
    assert "tcb date           unknown" in result.stdout


@real
def test_real_collateral() -> None:
    result = run("show", REAL, "--at", "2025-07-01T00:00:00Z")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("genuine            yes, under Intel's root\n")
    assert "platform           fmspc b0c06f000000, ca platform" in result.stdout
    assert run("show", REAL, "--at", "2025-07-18T00:00:00Z").stderr.startswith("warning: expires")
    late = run("show", REAL)
    assert late.exit_code == 2
    assert "rule: collateral-expired" in late.stderr
    assert "genuine            yes" in late.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["missing"], 3, "rule: file.read"),
        (["junk"], 2, "rule: json"),
        (["bundle", "--at", "noon"], 1, "no ISO 8601"),
        (["bundle", "--mock-root", "junk"], 2, "rule: certificate"),
        ([], 1, "Missing argument"),
    ],
)
def test_failures_of_show(
    files: dict[str, str], arguments: list[str], code: int, text: str
) -> None:
    result = run("show", *(files.get(argument, argument) for argument in arguments))
    assert (result.exit_code, result.stdout) == (code, "")
    assert text in result.stderr


# --- fetch -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "platform", [["--quote", "quote"], ["--fmspc", "50806F000000", "--ca", "platform"]]
)
def test_fetch(files: dict[str, str], pccs: MockPccs, platform: list[str]) -> None:
    result = fetch(files, pccs, *platform)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[0] == "genuine            yes, under the mock root"
    assert Bundle.loads(Path(files["out"]).read_bytes()).collateral == TEE.collateral()
    assert len(pccs.requests) == 4
    assert any("update=standard" in target for target in pccs.requests)


def test_early(files: dict[str, str], pccs: MockPccs) -> None:
    assert fetch(files, pccs, "--quote", "quote", "--early", "--json").exit_code == 0
    assert sum("update=early" in target for target in pccs.requests) == 2


def test_a_warning_after_fetching(files: dict[str, str], pccs: MockPccs) -> None:
    now = EXPIRES - DAY - timedelta(seconds=1)
    assert now > START + MONTH  # only here, so that the test is not about this year
    Path(files["out"]).write_bytes(Bundle.of(TEE.collateral()).dumps())
    result = show(files, "out", "--at", now.isoformat())
    assert "warning: expires in 1.0 days" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ([], 1, "name the platform"),
        (["--fmspc", "50806F000000"], 1, "name the platform"),
        (["--ca", "platform"], 1, "name the platform"),
        (["--quote", "quote", "--ca", "platform"], 1, "leave out"),
        (["--quote", "quote", "--fmspc", "50806F000000"], 1, "leave out"),
        (["--fmspc", "50806F", "--ca", "platform"], 1, "12 hex digits"),
        (["--fmspc", "50806F000000", "--ca", "root"], 1, "--ca"),
        (["--quote", "junk"], 2, "rule: size"),
        (["--quote", "missing"], 3, "rule: file.read"),
        (["--fmspc", "00806F050000", "--ca", "platform"], 2, "rule: source.unknown-fmspc"),
        (["--quote", "quote", "--url", "http://pccs.example"], 2, "rule: source.plain-http"),
        (["--quote", "quote", "--url", "http://127.0.0.1:0"], 3, "rule: source.unreachable"),
        (["--quote", "quote", "--mock-root", "junk"], 2, "rule: certificate"),
    ],
)
def test_failures_of_fetch(
    files: dict[str, str], pccs: MockPccs, arguments: list[str], code: int, text: str
) -> None:
    result = fetch(files, pccs, *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert text in result.stderr
    assert not Path(files["out"]).exists()


def test_what_is_not_genuine_is_not_written(files: dict[str, str], pccs: MockPccs) -> None:
    pccs.collateral = OTHER.collateral()
    result = fetch(files, pccs, "--quote", "quote")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "rule: root-mismatch" in result.stderr
    pccs.collateral = issued(START - 400 * DAY)
    assert "rule: collateral-expired" in fetch(files, pccs, "--quote", "quote").stderr
    pccs.faults = {Item.TCB_INFO: Fault(status=503)}
    assert fetch(files, pccs, "--quote", "quote").exit_code == 3
    assert not Path(files["out"]).exists()


def test_a_folder_that_is_not_there(files: dict[str, str], pccs: MockPccs) -> None:
    result = fetch(files, pccs, "--quote", "quote", "--out", f"{files['missing']}/bundle")
    assert result.exit_code == 3
    assert "rule: file.write" in result.stderr
