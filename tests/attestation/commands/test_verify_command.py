"""`attestation verify`: what it says, and its exit codes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from attestation.cli import main
from attestation.collateral_cache import Bundle
from attestation.measure.firmware import Model
from attestation.measure.record import Binding, BootProof, Measurement, Measurements
from attestation.measure.rtmr import BootPath
from attestation.measure.tdvf import HostProfile
from tests.attestation.mock_support import COLLATERAL, REPORT_DATA, TEE

QUOTES = Path(__file__).parents[3].parent / "shared" / "quotes"
REAL = str(QUOTES / "dcap-qvl-v4.quote")
REAL_COLLATERAL = str(QUOTES / "dcap-qvl-v4.collateral.json")
JULY = "2025-07-01T00:00:00Z"
AT = "2026-01-01T00:00:00Z"
ENTRY = Measurement(
    role="server",
    binding=Binding.MRTD_CFV,
    host_profile=HostProfile.UPSTREAM,
    boot_path=BootPath.KERNEL,
    mr_td=b"\1" * 48,
    rtmr1=b"\2" * 48,
    rtmr2=b"\3" * 48,
    is_dev=False,
    boot_proof=BootProof.PASSED,
    model=next(iter(Model)),
    firmware_sha256=bytes(32),
    uki_sha256=bytes(32),
)
BODY = {"mr_td": ENTRY.mr_td, "rtmr1": ENTRY.rtmr1, "rtmr2": ENTRY.rtmr2}

real = pytest.mark.skipif(not QUOTES.is_dir(), reason="no real quotes next to the checkout")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    contents = {
        "quote": TEE.quote(REPORT_DATA, body=BODY),
        "extended": TEE.quote(REPORT_DATA, body={**BODY, "rtmr3": b"\4" * 48}),
        "other": TEE.quote(REPORT_DATA),
        "near": TEE.quote(REPORT_DATA, body={**BODY, "rtmr1": b"\5" * 48}),
        "collateral": COLLATERAL.dumps(),
        "outdated": TEE.collateral(platform_status="OutOfDate").dumps(),
        "root": TEE.root_der,
        "junk": b"junk",
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    return {name: str(tmp_path / name) for name in [*contents, "missing"]}


def verify(files: dict[str, str], quote: str = "quote", *more: str) -> Result:
    return run(
        "verify",
        files[quote],
        "--collateral",
        files["collateral"],
        "--at",
        AT,
        "--mock-root",
        files["root"],
        *(files.get(option, option) for option in more),
    )


def accept(folder: Path, *entries: Measurement) -> str:
    path = folder / "measurements.json"
    path.write_bytes(Measurements(entries).dumps())
    return str(path)


@real
def test_a_real_quote() -> None:
    result = run("verify", REAL, "--collateral", REAL_COLLATERAL, "--at", JULY)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[0] == "genuine quote; code NOT checked"
    rows = dict(line.strip().split("  ", 1) for line in result.stdout.splitlines()[1:])
    assert rows["tcb status"].strip() == "UpToDate"
    assert rows["mr_td"].strip().startswith("91eb2b44d141")
    assert "mr_service_td" not in rows


@real
def test_a_real_quote_with_stale_collateral() -> None:
    at = "2025-08-01T00:00:00+00:00"
    result = run("verify", REAL, "--collateral", REAL_COLLATERAL, "--at", at)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "rule: collateral-expired" in result.stderr
    assert "next: fetch the collateral" in result.stderr
    assert run("verify", REAL, "--collateral", REAL_COLLATERAL).exit_code == 2  # now


@real
def test_a_real_quote_and_the_code_in_it(tmp_path: Path) -> None:
    shown = run("verify", REAL, "--collateral", REAL_COLLATERAL, "--at", JULY, "--json")
    claims = json.loads(shown.stdout)["claims"]["quote"]
    registers: dict[str, Any] = {n: bytes.fromhex(claims[n]) for n in (*BODY, "rtmr0")}
    good = replace(ENTRY, **registers)
    for entry, code, text in (
        (good, 0, "genuine quote of accepted code"),
        (replace(good, is_dev=True), 2, "rule: dev-image"),
        (replace(good, boot_proof=BootProof.SKIPPED), 2, "rule: boot-proof"),
        (ENTRY, 2, "rule: measurement"),
    ):
        result = run(
            *("verify", REAL, "--collateral", REAL_COLLATERAL, "--at", JULY),
            *("--measurements", accept(tmp_path, entry)),
        )
        assert result.exit_code == code
        assert text in result.output


@real
@pytest.mark.parametrize(
    ("name", "rule"), [("trustee-debug-v4", "debug-td"), ("go-tdx-guest-trailing-v4", "trailing")]
)
def test_quotes_that_no_collateral_makes_good(files: dict[str, str], name: str, rule: str) -> None:
    for documents in REAL_COLLATERAL, files["collateral"]:
        result = run("verify", str(QUOTES / f"{name}.quote"), "--collateral", documents)
        assert result.exit_code == 2
        assert f"rule: {rule}" in result.stderr


def test_a_mock_quote_is_called_one(files: dict[str, str]) -> None:
    result = verify(files)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[0] == "mock quote; code NOT checked"
    assert "genuine" not in result.stdout
    without = run("verify", files["quote"], "--collateral", files["collateral"], "--at", AT)
    assert without.exit_code == 2
    assert "rule: root-mismatch" in without.stderr


def test_a_bundle_is_collateral(files: dict[str, str], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.write_bytes(Bundle.of(COLLATERAL).dumps())
    assert verify(files | {"collateral": str(bundle)}).exit_code == 0
    bundle.write_bytes(Bundle.of(COLLATERAL).dumps().replace(b"-collateral/1", b"-collateral/2"))
    result = verify(files | {"collateral": str(bundle)})
    assert result.exit_code == 2
    assert "rule: bundle.format" in result.stderr


def test_the_entry_is_named(files: dict[str, str], tmp_path: Path) -> None:
    pinned = replace(ENTRY, rtmr0=b"\6" * 48)
    process = replace(ENTRY, binding=Binding.PROCESS, role="client")
    path = accept(tmp_path, process, pinned, replace(ENTRY, rtmr2=bytes(48)), ENTRY)
    result = verify(files, "quote", "--measurements", path)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "mock quote of accepted code"
    assert lines[1].endswith("measurements[3]: server, mrtd-cfv, host upstream, boot kernel")
    shown = json.loads(verify(files, "quote", "--measurements", path, "--json").stdout)
    assert shown["verdict"] == "mock quote of accepted code"
    assert (shown["anchor"], shown["at"]) == ("mock", "2026-01-01T00:00:00+00:00")
    assert shown["measurement"] == {"index": 3, **ENTRY.to_json()}
    assert shown["claims"]["acpi"] == "unverified"


def test_a_pinned_rtmr0_verifies_acpi(files: dict[str, str], tmp_path: Path) -> None:
    rtmr0 = json.loads(verify(files, "quote", "--json").stdout)["claims"]["quote"]["rtmr0"]
    path = accept(tmp_path, replace(ENTRY, rtmr0=bytes.fromhex(rtmr0), is_dev=True))
    result = verify(files, "quote", "--measurements", path, "--json")
    assert json.loads(result.stdout)["claims"]["acpi"] == "verified"
    assert ", dev" in verify(files, "quote", "--measurements", path).stdout


@pytest.mark.parametrize(
    ("quote", "rule", "got"),
    [
        ("other", "measurement", "got mr_td "),
        ("near", "measurement", "other rtmr1 than the nearest, measurements[0]: server"),
        ("extended", "rtmr3", "got 040404"),
    ],
)
def test_other_code(files: dict[str, str], tmp_path: Path, quote: str, rule: str, got: str) -> None:
    path = accept(tmp_path, replace(ENTRY, rtmr0=b"\6" * 48) if quote == "other" else ENTRY)
    result = verify(files, quote, "--measurements", path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"rule: {rule}" in result.stderr
    assert got in result.stderr


def test_a_status_to_look_at(files: dict[str, str]) -> None:
    files["collateral"] = files["outdated"]
    result = verify(files)
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: TCB status is OutOfDate")


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["quote"], 1, "--collateral"),
        (["quote", "--collateral", "missing"], 3, "rule: file.read"),
        (["missing", "--collateral", "collateral"], 3, "rule: file.read"),
        (["quote", "--collateral", "junk"], 2, "rule: json"),
        (["junk", "--collateral", "collateral"], 2, "rule: size"),
        (["collateral", "--collateral", "collateral"], 2, "rule: version"),
        (["quote", "--collateral", "collateral", "--at", "noon"], 1, "no ISO 8601"),
        (["quote", "--collateral", "collateral", "--at", "2026-01-01"], 1, "no time zone"),
        (["quote", "--collateral", "collateral", "--measurements", "junk"], 2, "record.json"),
        (["quote", "--collateral", "collateral", "--mock-root", "junk"], 2, "rule: certificate"),
        (["quote", "--collateral", "collateral", "--nope"], 1, "No such option"),
    ],
)
def test_failures(files: dict[str, str], arguments: list[str], code: int, text: str) -> None:
    result = run("verify", *(files.get(argument, argument) for argument in arguments))
    assert (result.exit_code, result.stdout) == (code, "")
    assert text in result.stderr


def test_without_the_mock(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attestation.commands.verify.MOCK", "attestation.providers.absent")
    result = verify(files)
    assert result.exit_code == 1
    assert "no mock verifier" in result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["mock-pki", "x"]])
def test_a_production_image_has_no_mock_command(arguments: list[str], tmp_path: Path) -> None:
    """The package as `release.build.stage` copies it for production."""
    from release.build.stage import MOCK_ONLY  # noqa: PLC0415

    root = Path(__file__).parents[3]
    for source in sorted((root / "attestation").rglob("*.py")):
        path = source.relative_to(root)
        if path.as_posix() not in MOCK_ONLY:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(source.read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "attestation", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert "Write a mock PKI" not in done.stdout
    assert done.returncode == (0 if arguments == ["--help"] else 1)
    assert "verify" in done.stdout or "No such command" in done.stderr
