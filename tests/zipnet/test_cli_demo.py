"""`zipnet demo`: what it shows, that it counts right, and how it ends when it can't go on."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
import venv
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from zipnet import config_file
from zipnet.cli import main
from zipnet.commands import demo
from zipnet.commands.demo import Round, Summary, Tally
from zipnet.roles.aggregator import AggregatorRole

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["--clients", "3", "--round-period", "100ms"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["demo", *arguments])


def test_table_and_summary() -> None:
    result = run("--rounds", "3", *QUICK)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert "3 operators with a server each, an aggregator, 3 clients" in lines[0]
    header = lines.index(next(line for line in lines if line.lstrip().startswith("round ")))
    rounds = lines[header + 1 : lines.index("", header)]
    assert len(rounds) >= 3
    assert [int(line.split()[0]) for line in rounds] == list(range(1, len(rounds) + 1))
    assert {len(line) for line in rounds} == {len(lines[header])}
    assert any("3 of 3" in line for line in rounds)
    summary = dict(line.split(maxsplit=1) for line in lines[lines.index("", header) + 1 :])
    assert summary["messages"] == "3 of 3 delivered, each exactly once"
    assert len(bytes.fromhex(summary["fingerprint"])) == 32
    assert summary["round"].startswith("p50 ")
    assert logging.getLogger("zipnet").handlers == []


def test_json_alone() -> None:
    result = run("--rounds", "2", "--messages", "5", "--json", *QUICK)
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert (document["messages"], document["delivered"], document["clients"]) == (5, 5, 3)
    assert document["rounds"] == len(document["table"]) >= 2
    assert sum(one["messages"] for one in document["table"]) == 5
    assert document["doubled_or_foreign"] == 0


def test_nothing_to_say(tmp_path: Path) -> None:
    result = run("--rounds", "1", "--messages", "0", "--local", str(tmp_path / "net"), *QUICK)
    assert result.exit_code == 0
    assert "0 of 0 delivered" in result.stdout
    config = config_file.load(tmp_path / "net" / demo.CONFIG_FILE)
    assert config.anchor.kind == "mock"
    # Each demo is another deployment: what is there stays.
    again = run("--rounds", "1", "--local", str(tmp_path / "net"), *QUICK)
    assert (again.exit_code, again.stdout) == (3, "")
    assert "rule: file.write" in again.stderr


def test_verbose() -> None:
    result = run("--rounds", "1", "--messages", "1", "--verbose", *QUICK)
    assert result.exit_code == 0
    assert "zipnet.server: opening round 1" in result.stderr
    assert "opening round" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rounds", "0"], "--rounds"),
        (["--clients", "1"], "--clients"),
        (["--clients", "2", "--messages", "65"], "at most 64"),
        (["--round-period", "1"], "500ms, 2s, 1m"),
        (["--round-period", "soon"], "500ms, 2s, 1m"),
        (["more"], "unexpected extra argument"),
    ],
)
def test_usage(arguments: list[str], words: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert words in result.stderr


def test_a_period_that_no_configuration_has() -> None:
    result = run("--round-period", "1ms")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "rule: window.round_period_ms" in result.stderr


def test_absent_in_production(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zipnet.demo", None)
    result = run("--rounds", "1")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "rule: demo.absent" in result.stderr
    assert "no mock code" in result.stderr


def test_stalled(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nobody who folds, no round ends: the demo says so instead of waiting."""

    async def idle(self: AggregatorRole) -> None:
        pass

    monkeypatch.setattr(AggregatorRole, "run", idle)
    monkeypatch.setattr(demo, "STALLED_S", 1.0)
    result = run("--rounds", "1", *QUICK)
    assert result.exit_code == 3
    assert "rule: demo.stalled" in result.stderr


def test_not_everything_delivered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that comes out twice, and one that doesn't, are both failures."""
    summary = Summary("d", "00", 2, 2, 2, 1, 1, {}, {}, {}, 1.0)
    tally = Tally(sent=["a", "b"], read=Counter({"a": 2}))

    async def ended(*_: object) -> tuple[Tally, Summary]:
        return tally, summary

    monkeypatch.setattr(demo, "run", ended)
    result = run("--rounds", "2")
    assert result.exit_code == 2
    assert "1 of 2 delivered" in result.stdout
    assert result.stderr.splitlines() == [
        "error: not exactly once: b",
        "error: not exactly once: a",
    ]
    assert run("--rounds", "2", "--json").exit_code == 2


def test_counting() -> None:
    tally = Tally(sent=["a", "b", "c"], read=Counter({"a": 1, "b": 2, "x": 1}))
    assert (tally.missing, tally.strange) == (["c"], ["b", "x"])
    unseen = Round(1, 1, 2, 3, 4, 32, 4, -1)
    assert unseen.line().split()[-1] == "-"


def test_interrupted() -> None:
    command = [sys.executable, "-m", "zipnet", "demo", "--rounds", "500"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if line.split()[:1] == ["1"]:
                break
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors.strip()) == (1, "aborted")
    assert time.monotonic() - begin < 5


def test_installed_wheel(tmp_path: Path) -> None:
    """From the wheel alone, with none of the sources in reach."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    folder = tmp_path / "env"
    venv.create(folder, with_pip=False)
    python = str(folder / "bin/python")
    site = next(folder.glob("lib/python*/site-packages"))
    # The dependencies of this environment stand in for those that pip would install.
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "dependencies.pth").write_text(packages + "\n")
    unpack = [sys.executable, "-m", "zipfile", "-e", str(wheel), str(site)]
    subprocess.run(unpack, check=True)
    command = [python, "-I", "-m", "zipnet", "demo", "--rounds", "3", *QUICK, "--json"]
    done = subprocess.run(
        command, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["delivered"] == document["messages"] == 3
    origin = [python, "-I", "-c", "import zipnet; print(zipnet.__file__)"]
    found = subprocess.run(origin, check=True, capture_output=True, text=True).stdout
    assert Path(found.strip()).is_relative_to(site)
