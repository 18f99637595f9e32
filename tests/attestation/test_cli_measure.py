"""`attestation measure`, and the exit codes of every command group built on ExplainedGroup."""

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from attestation.cli import main
from attestation.commands.group import ExplainedGroup
from attestation.errors import Explained, FirmwareRejected
from attestation.measure import authenticode, firmware, rtmr, tdvf
from tests.attestation.measure import synthetic

UKI = synthetic.uki()
BASE = synthetic.Firmware().build()
BOUND = firmware.bind(BASE, UKI)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    contents = {
        "base": BASE,
        "bound": BOUND,
        "uki": UKI,
        "weak": synthetic.Firmware(loadable=()).build(),
        "junk": b"junk",
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    return {name: str(tmp_path / name) for name in [*contents, "missing"]}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["measure", *arguments])


def table(result: Result) -> dict[str, str]:
    lines = [line for line in result.stdout.splitlines() if line[0] != " "]
    return {name: value for name, _, value in (line.partition("  ") for line in lines)}


def test_firmware_alone(files: dict[str, str]) -> None:
    result = run(files["base"])
    assert (result.exit_code, result.stderr) == (0, "")
    rows = {name: value.strip() for name, value in table(result).items()}
    for profile in tdvf.HostProfile:
        assert rows[f"mr_td {profile}"] == tdvf.mr_td(BASE, profile.page_order).hex()
    assert rows["audit"] == "passed"
    assert rows["store measured"] == "no"
    assert not any(name.startswith("rtmr") for name in rows)
    lines = zip(result.stdout.splitlines(), rows.values(), strict=True)
    assert len({line.index(value) for line, value in lines}) == 1


def test_with_the_image_that_it_is_bound_to(files: dict[str, str]) -> None:
    result = run(files["bound"], files["uki"], "-v")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = {name: value.strip() for name, value in table(result).items()}
    digest = authenticode.digest(UKI).hex()
    assert rows["bound"] == "yes"
    assert rows["policy admits"] == rows["uki authenticode"] == digest
    for path in rtmr.BootPath:
        assert rows[f"rtmr1 {path}"] == rtmr.rtmr1(UKI, path).hex()
    assert rows["rtmr2"] == rtmr.rtmr2(UKI).hex()
    assert rows["module UiApp"] == "NCCFV, not in a TD"
    assert rows["section BFV"].endswith("3 pages, measured")
    assert "Exit Boot Services Invocation" in result.stdout


def test_with_an_image_that_it_is_not_bound_to(files: dict[str, str]) -> None:
    result = run(files["base"], files["uki"])
    assert result.exit_code == 0
    assert "names the firmware only" in result.stderr
    assert table(result)["bound"].strip() == "no"


def test_json(files: dict[str, str]) -> None:
    report = json.loads(run(files["bound"], files["uki"], "--json").stdout)
    assert report["bound"] is True
    assert report["refused"] is None
    assert report["audit"]["policy"] == [report["uki"]["authenticode_sha256"]]
    assert report["rtmr2"] == rtmr.rtmr2(UKI).hex()
    assert set(report["rtmr1"]) == {"kernel", "esp"}
    alone = json.loads(run(files["weak"], "--json").stdout)
    assert alone["audit"] is None
    assert alone["refused"]["rule"] == "no-secure-boot"
    assert "uki" not in alone


def test_refused_firmware_is_measured_alone_only(files: dict[str, str]) -> None:
    alone = run(files["weak"])
    assert alone.exit_code == 0
    assert "audit" in alone.stdout
    assert "refused: firmware is built without Secure Boot" in alone.stdout
    both = run(files["weak"], files["uki"])
    assert (both.exit_code, both.stdout) == (2, "")
    assert "rule: no-secure-boot" in both.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["junk"], 2, "rule: tdvf.footer"),
        (["base", "junk"], 2, "rule: pe.dos-header"),
        (["missing"], 3, "rule: file.read"),
        (["base", "missing"], 3, "next: check the path"),
        ([], 1, "Missing argument"),
        (["base", "uki", "more"], 1, "unexpected extra argument"),
        (["base", "--nope"], 1, "No such option"),
    ],
)
def test_failures(files: dict[str, str], arguments: list[str], code: int, text: str) -> None:
    result = run(*(files.get(argument, argument) for argument in arguments))
    assert (result.exit_code, result.stdout) == (code, "")
    assert text in result.stderr


def test_too_large(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attestation.commands.measure.MAX_FIRMWARE", 100)
    result = run(files["base"])
    assert result.exit_code == 2
    assert "rule: file.size" in result.stderr


def test_help_and_module(files: dict[str, str]) -> None:
    assert run("--help").exit_code == 0
    done = subprocess.run(
        [sys.executable, "-m", "attestation", "measure", files["missing"]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert done.stderr.startswith("error: can't read")


@click.group(cls=ExplainedGroup)
def other() -> None:
    """Another program of ours."""


@other.command()
@click.argument("what")
def fail(what: str) -> None:
    """Fail in some way."""
    if what == "refused":
        raise FirmwareRejected("no", expected="yes", got="maybe", rule="a-rule", hint="try again")
    if what == "abort":
        raise click.Abort
    if what == "exit":
        click.get_current_context().exit(7)


@pytest.mark.parametrize(
    ("what", "code", "text"),
    [
        ("refused", 2, "error: no, expected yes, got maybe\n  rule: a-rule\n  next: try again\n"),
        ("abort", 1, "aborted\n"),
        ("exit", 7, ""),
        ("good", 0, ""),
    ],
)
def test_group_for_other_commands(what: str, code: int, text: str) -> None:
    result = CliRunner().invoke(other, ["fail", what])
    assert (result.exit_code, result.stderr) == (code, text)


def test_group_inside_a_program() -> None:
    with pytest.raises(Explained, match="no"):
        other.main(["fail", "refused"], standalone_mode=False)


def test_an_error_with_nothing_but_a_message() -> None:
    assert Explained("plain").diagnostics() == "plain"
