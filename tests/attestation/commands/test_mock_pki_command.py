"""`attestation mock-pki`: the files, and the service."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from attestation.cli import main
from attestation.commands.collateral import collateral
from attestation.commands.group import ExplainedGroup
from attestation.providers.mock import MockTee
from attestation.providers.mock_server import MockPccs

AT = "2026-01-01T00:00:00Z"
ROOT = Path(__file__).parents[3]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_mock_pki(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "pki"
    result = run("mock-pki", str(folder), "--seed", "00ff")
    assert (result.exit_code, result.stderr) == (0, "")
    names = {path.name for path in folder.iterdir()}
    assert names == {"seed.hex", "root.der", "collateral.json", "quote.bin"}
    tee = MockTee(b"\x00\xff")
    assert (folder / "root.der").read_bytes() == tee.root_der
    assert (folder / "seed.hex").read_text() == "00ff\n"
    assert (folder / "seed.hex").stat().st_mode & 0o777 == 0o600
    checked = run(
        *("verify", str(folder / "quote.bin"), "--collateral", str(folder / "collateral.json")),
        *("--mock-root", str(folder / "root.der"), "--at", AT),
    )
    assert checked.exit_code == 0
    again = run("mock-pki", str(folder))
    assert again.exit_code == 3
    assert "rule: file.write" in again.stderr
    assert (folder / "seed.hex").read_text() == "00ff\n"
    assert run("mock-pki", str(tmp_path / "random")).exit_code == 0
    assert len((tmp_path / "random" / "seed.hex").read_text()) == 65


@pytest.mark.parametrize("seed", ["xy", ""])
def test_mock_pki_usage(tmp_path: Path, seed: str) -> None:
    result = run("mock-pki", str(tmp_path / "x"), "--seed", seed)
    assert result.exit_code == 1
    assert not (tmp_path / "x").exists()


@contextmanager
def serving(folder: Path, *more: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The command in a process of its own, and the URL that it prints."""
    command = [sys.executable, "-m", "attestation", "mock-pki", str(folder), "--serve", *more]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    with process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()


def test_serve_and_fetch(tmp_path: Path) -> None:
    commands = ExplainedGroup("attestation", commands=[collateral, *main.commands.values()])
    folder, bundle = tmp_path / "pki", tmp_path / "bundle"
    quote, root = str(folder / "quote.bin"), str(folder / "root.der")
    with serving(folder) as (url, process):
        fetched = CliRunner().invoke(
            commands,
            [
                *("collateral", "fetch", "--quote", quote, "--url", url, "--mock-root", root),
                *("--out", str(bundle), "--json"),
            ],
        )
        assert (fetched.exit_code, fetched.stderr) == (0, "")
        assert json.loads(fetched.stdout)["valid"]
        again = run("mock-pki", str(folder), "--serve", "--listen", url.removeprefix("http://"))
        assert again.exit_code == 3
        assert "rule: listen" in again.stderr
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    verified = run("verify", quote, "--collateral", str(bundle), "--mock-root", root)
    assert verified.stdout.splitlines()[0] == "mock quote; code NOT checked"
    # A folder that has a PKI is served as it is.
    before = (folder / "seed.hex").read_bytes()
    with serving(folder) as (url, process):
        assert url.startswith("http://127.0.0.1:")
    assert (folder / "seed.hex").read_bytes() == before


@pytest.mark.parametrize(
    "listen",
    ["", "127.0.0.1", ":1", "127.0.0.1:", "127.0.0.1:-1", "127.0.0.1:65536", "a:1b", "a:\u0661"],
)
def test_serve_usage(tmp_path: Path, listen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MockPccs, "serve", MockPccs.close)  # if it came to that
    result = run("mock-pki", str(tmp_path / "x"), "--serve", "--listen", listen)
    assert result.exit_code == 1
    assert not (tmp_path / "x").exists()


def test_a_seed_is_for_a_new_pki(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MockPccs, "serve", MockPccs.close)
    run("mock-pki", str(tmp_path), "--seed", "00")
    result = run("mock-pki", str(tmp_path), "--seed", "01", "--serve")
    assert result.exit_code == 1
    assert "holds a PKI already" in result.stderr
