"""The command line as such: which commands there are, and how they end."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from zipnet import __version__
from zipnet.cli import main
from zipnet.commands import roles
from zipnet.commands.roles import start
from zipnet.errors import ConfigRejected
from zipnet.preflight import Role


@pytest.mark.parametrize("role", list(Role))
def test_no_deployment(role: Role, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A node on a host looks at its machine, and then wants to know what it is part of."""
    if role.attested:
        assert start(role, tmp_path) == 3
    else:
        with pytest.raises(ConfigRejected) as caught:
            start(role, tmp_path)
        assert caught.value.rule == "config.missing"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"zipnet {role} {__version__}: preflight"
    assert role.attested == ("no TDX on this machine" in lines[-1])


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
