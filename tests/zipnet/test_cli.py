"""The command line of the guest: what it prints on the console, and how it ends."""

import base64
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.zipnet.test_preflight import put
from zipnet import __version__, preflight
from zipnet.cli import main
from zipnet.commands import roles
from zipnet.commands.roles import start
from zipnet.preflight import Role

ATTESTED = [role for role in Role if role.attested]


def tdx(root: Path) -> Path:
    put(root, {preflight.TDX_DEVICE: b"", f"{preflight.RTMR_FOLDER}/rtmr0": b"\1" * 48})
    (root / preflight.TSM_REPORT).mkdir(parents=True)
    return root


def console(role: Role, root: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    code = start(role, root)
    captured = capsys.readouterr()
    # Everything is for the console, in order.
    assert captured.err == ""
    return code, captured.out.splitlines()


@pytest.mark.parametrize("role", ATTESTED)
def test_without_tdx(role: Role, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = console(role, tmp_path, capsys)
    assert code == 3
    assert lines[0] == f"zipnet {role} {__version__}: preflight"
    # One plain line, the last one.
    wanted = f"zipnet {role}: no TDX on this machine: a {role} must be attested, so it stops here"
    assert [line for line in lines if not line.startswith(" ")][1:] == [wanted]
    assert lines[-1] == wanted


def test_aggregator_without_tdx(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = console(Role.AGGREGATOR, tmp_path, capsys)
    assert code == 0
    assert lines[-2:] == [
        "zipnet aggregator: no TDX on this machine: the aggregator needs none and goes on",
        f"zipnet aggregator: preflight passed; version {__version__} has no aggregator service yet",
    ]


@pytest.mark.parametrize("role", list(Role))
def test_with_tdx(role: Role, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = console(role, tdx(tmp_path), capsys)
    assert code == 0
    assert not any("no TDX" in line for line in lines)
    assert f"  rtmr0          {'01' * 48}" in lines
    assert lines[-1].startswith(f"zipnet {role}: preflight passed")


def test_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(
        tmp_path,
        {
            preflight.FLAVOR: b"production\n",
            preflight.SECURE_BOOT: b"\6\0\0\0\1",
            preflight.LOCKDOWN: b"none integrity [confidentiality]",
            "proc/uptime": b"4.57 1",
            "proc/meminfo": b"MemTotal: 2097152 kB\nMemAvailable: 1048576 kB\n",
            "proc/net/udp": b"header\n 0: 00000000:0044 00000000:0000 07 0 0\n",
        },
    )
    _, lines = console(Role.SERVER, tmp_path, capsys)
    assert lines[1:-1] == [
        "  flavor         production",
        "  tdx guest      no",
        "  configfs-tsm   absent",
        "  secure boot    on",
        "  lockdown       confidentiality",
        "  listening      udp/68",
        "  memory         1024 of 2048 MiB used",
        "  time           4.6 s since the kernel started",
        "  registers      none visible",
    ]


def test_unknown_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, lines = console(Role.SERVER, tmp_path, capsys)
    assert "  secure boot    unknown" in lines
    assert "  lockdown       unknown" in lines
    assert "  listening      nothing" in lines
    assert not any("memory" in line or "  time" in line for line in lines)


def test_mock_prints_its_event_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = bytes(range(256)) * 3
    put(tmp_path, {preflight.FLAVOR: b"mock\n", preflight.EVENT_LOG: log})
    _, lines = console(Role.SERVER, tmp_path, capsys)
    printed = [line.removeprefix("zipnet-event-log ") for line in lines if "event-log" in line]
    assert printed[-1] == f"end of {preflight.EVENT_LOG}"
    assert base64.b64decode("".join(printed[:-1])) == log
    assert max(map(len, printed)) <= roles.LINE


@pytest.mark.parametrize("flavor", [b"production\n", b"", b"mocking\n"])
def test_other_flavors_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flavor: bytes
) -> None:
    put(tmp_path, {preflight.FLAVOR: flavor, preflight.EVENT_LOG: b"log"})
    _, lines = console(Role.SERVER, tmp_path, capsys)
    assert not any("event-log" in line for line in lines)


@pytest.mark.parametrize("role", list(Role))
def test_commands(role: Role, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Role, Path]] = []

    def begin(role: Role, root: Path, values: dict[str, object]) -> int:
        seen.append((role, root))
        return 3

    monkeypatch.setattr(roles, "start", begin)
    assert CliRunner().invoke(main, [str(role)]).exit_code == 3
    assert seen == [(role, Path("/"))]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gateway"], "No such command 'gateway'"),
        (["--nope"], "No such option"),
        (["server", "--nope"], "No such option"),
        (["server", "more"], "No such command 'more'"),
        (["client", "more"], "unexpected extra argument"),
    ],
)
def test_usage_errors(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert words in result.stderr


def test_module() -> None:
    command = [sys.executable, "-m", "zipnet"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (
        0,
        f"zipnet, version {__version__}, wire 2, machine 1\n",
    )
    done = subprocess.run([*command, "gateway"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
