"""`attestation mock-td`: starts, quotes, and ends when it is told to."""

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
from attestation.providers.mock import MockTee, MockVerifier
from attestation.providers.mock_folder import MockFolder
from attestation.providers.mock_td import QUOTED
from tests.attestation.mock_support import NOW
from tests.attestation.providers.mock_td_support import files, options, qemu

ROOT = Path(__file__).parents[3]


@pytest.fixture
def tee(tmp_path: Path) -> Path:
    folder = tmp_path / "tee"
    assert run("mock-pki", str(folder)).exit_code == 0
    return folder


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@contextmanager
def serving(tee: Path, socket: Path) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "attestation", "mock-td"]
    process = subprocess.Popen(
        [*command, "--tee", str(tee), "--socket", str(socket)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"mock TDX at {socket}\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_guest_is_quoted(tee: Path, tmp_path: Path, number: signal.Signals) -> None:
    found = MockFolder.load(tee)
    socket = tmp_path / "socket"
    with serving(tee, socket) as process:
        words = options(*files(tmp_path / "out"), bytes(48))
        with qemu(tmp_path, socket, words) as guest:
            _, status, raw = guest.ask(bytes(16), bytes(64))
            assert status == QUOTED
            MockVerifier(found.root_der).verify(raw, found.collateral, NOW)
            assert process.stdout is not None
            assert process.stdout.readline().startswith(f"guest {guest.process.pid}: firmware ")
            # It ends with a guest connected.
            process.send_signal(number)
            assert process.wait(5) == 0
    assert not socket.exists()


@pytest.mark.parametrize("arguments", [[], ["--tee", "x"], ["--socket", "x"]])
def test_usage(arguments: list[str]) -> None:
    assert run("mock-td", *arguments).exit_code == 1


def test_no_tee(tmp_path: Path) -> None:
    result = run("mock-td", "--tee", str(tmp_path), "--socket", str(tmp_path / "socket"))
    assert result.exit_code == 3
    assert "rule: file.read" in result.stderr
    assert not (tmp_path / "socket").exists()


def test_where_it_can_not_listen(tee: Path) -> None:
    result = run("mock-td", "--tee", str(tee), "--socket", str(tee / "seed.hex"))
    assert result.exit_code == 3
    assert "rule: listen" in result.stderr


@pytest.mark.parametrize(
    ("name", "data", "rule"),
    [
        ("seed.hex", b"", "mock-tee.seed"),
        ("seed.hex", b"none", "mock-tee.seed"),
        ("seed.hex", b"\xff\n", "mock-tee.seed"),
        ("root.der", MockTee(b"another").root_der, "mock-tee.root"),
    ],
)
def test_a_folder_that_is_none(tee: Path, name: str, data: bytes, rule: str) -> None:
    (tee / name).write_bytes(data)
    result = run("mock-td", "--tee", str(tee), "--socket", str(tee / "socket"))
    assert result.exit_code == 2
    assert f"rule: {rule}" in result.stderr
