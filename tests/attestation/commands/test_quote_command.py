"""`attestation quote`."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from attestation.cli import main
from attestation.commands import quote as command
from attestation.providers.tsm import RealFs, TsmProvider
from attestation.quote import Quote
from tests.attestation.providers.fake_tsm import FakeTsm, Host, provider, quote_of

DATA = bytes(range(64))
QUOTE = quote_of(DATA)


def run(*arguments: object, fake: FakeTsm | None = None) -> Result:
    words = ["quote", *map(str, arguments)]
    return CliRunner().invoke(main, words, obj=provider(fake or FakeTsm()))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for size in (0, 63, 64, 65, 5000):
        (tmp_path / str(size)).write_bytes(DATA.ljust(size)[:size])
    return tmp_path


def test_hex() -> None:
    result = run("--report-data", DATA.hex())
    assert (result.exit_code, result.stdout, result.stderr) == (0, QUOTE.hex() + "\n", "")


def test_report_data_from_a_file(files: Path) -> None:
    result = run("--report-data-file", files / "64")
    assert (result.exit_code, result.stdout) == (0, QUOTE.hex() + "\n")


def test_json() -> None:
    result = run("--report-data", DATA.hex().upper(), "--json")
    assert json.loads(result.stdout) == {"quote": QUOTE.hex(), "report_data": DATA.hex()}


def test_out(tmp_path: Path) -> None:
    out = tmp_path / "quote.dat"
    result = run("--report-data", DATA.hex(), "--out", out)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert out.read_bytes() == QUOTE
    result = run("--report-data", DATA.hex(), "--out", out, "--json")
    assert json.loads(result.stdout)["quote"] == out.read_bytes().hex()


def test_without_report_data_it_is_random() -> None:
    quotes = [json.loads(run("--json").stdout) for _ in range(2)]
    for quote in quotes:
        parsed = Quote.parse(bytes.fromhex(quote["quote"]))
        assert parsed.body.report_data.hex() == quote["report_data"]
    assert quotes[0]["report_data"] != quotes[1]["report_data"]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--report-data", "00" * 63], 1, "64 bytes, not 63"),
        (["--report-data", "00" * 65], 1, "64 bytes, not 65"),
        (["--report-data", ""], 1, "64 bytes, not 0"),
        (["--report-data", "0g" * 64], 1, "hex digits"),
        (["--report-data", "0" * 127], 1, "hex digits"),
        (["--report-data-file", "63"], 1, "64 bytes, not 63"),
        (["--report-data-file", "65"], 1, "64 bytes, not 65"),
        (["--report-data-file", "0"], 1, "64 bytes, not 0"),
        (["--report-data-file", "5000"], 2, "rule: file.size"),
        (["--report-data-file", "missing"], 3, "rule: file.read"),
        (["--report-data-file", "64", "--report-data", "00" * 64], 1, "exclude each other"),
        (["--out", "missing/quote"], 3, "rule: file.write"),
        (["--out", "."], 3, "next: check the path"),
        (["more"], 1, "unexpected extra argument"),
    ],
)
def test_failures(
    files: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, text: str
) -> None:
    monkeypatch.chdir(files)
    fake = FakeTsm()
    result = run(*arguments, fake=fake)
    assert (result.exit_code, result.stdout) == (code, "")
    assert text in result.stderr
    assert fake.reports == {}


def test_a_provider_that_fails() -> None:
    result = run(fake=FakeTsm(host=[Host.REFUSES_CALL]))
    assert (result.exit_code, result.stdout) == (3, "")
    assert "rule: tsm.hypercall" in result.stderr
    assert "next: on the host" in result.stderr


def test_without_tdx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default it asks the kernel; here that is a machine that has no configfs-tsm."""
    monkeypatch.setattr(command, "TsmProvider", lambda: TsmProvider(RealFs(tmp_path / "none")))
    out = tmp_path / "quote.dat"
    result = CliRunner().invoke(main, ["quote", "--out", str(out)])
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.startswith("error: this machine has no configfs-tsm")
    assert "rule: tsm.no-configfs" in result.stderr
    assert "next: run this in a TDX guest" in result.stderr
    assert not out.exists()
