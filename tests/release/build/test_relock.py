"""How requirements.lock is written: three nested groups, each package once."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from release.build import pythonlock
from release.build import relock as relock_module
from release.build.relock import TPM_HEADER, relock
from release.errors import ToolFailed
from tests.release.build.support import refused

HASH = "--hash=sha256:" + "0" * 64
RUNTIME = f"click==8.1.8 \\\n    {HASH}\n"
BUILD = f"{RUNTIME}jinja2==3.1.6 \\\n    {HASH}\n"
DEV = f"{BUILD}tox==4.30.0 {HASH}\n"
PINNED = {
    (): RUNTIME,
    ("build",): BUILD,
    ("dev",): DEV,
    ("dev", "tpm"): f"{DEV}tpm2-pytss==3.0.0 \\\n    {HASH}\n",
}


class Uv:
    """Stands for `run` with uv."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.constraints: list[str] = []

    def __call__(self, command: list[str], **_: Any) -> list[str]:
        self.commands.append(command)
        extras = tuple(b for a, b in pairwise(command) if a == "--extra")
        if "--constraint" in command:
            self.constraints.append(Path(command[command.index("--constraint") + 1]).read_text())
        Path(command[command.index("--output-file") + 1]).write_text(PINNED[extras])
        return []


@pytest.fixture
def uv(monkeypatch: pytest.MonkeyPatch) -> Uv:
    uv = Uv()
    monkeypatch.setattr(relock_module, "run", uv)
    return uv


def test_groups(uv: Uv, tmp_path: Path, log: Path) -> None:
    assert relock(tmp_path, log) == 4
    groups = pythonlock.read(tmp_path / "requirements.lock")
    assert {name: list(pythonlock.pins(text)) for name, text in groups.items()} == {
        "runtime": ["click"],
        "build": ["jinja2"],
        "dev": ["tox"],
    }
    # The smaller groups get the versions that the whole was solved with.
    assert uv.constraints == [DEV] * 3
    for command in uv.commands:
        assert {"--universal", "--generate-hashes", "--no-emit-index-url"} <= set(command)
        assert command[-1] == str(tmp_path / "pyproject.toml")


def test_what_is_built_from_source_is_in_a_file_of_its_own(
    uv: Uv, tmp_path: Path, log: Path
) -> None:
    relock(tmp_path, log)
    assert "tpm2" not in (tmp_path / "requirements.lock").read_text()
    text = (tmp_path / "requirements-tpm.lock").read_text()
    assert text == f"{TPM_HEADER}tpm2-pytss==3.0.0 \\\n    {HASH}\n"


def test_failure_keeps_the_old_lock(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ToolFailed("python ended with status 1", tail=("no solution",), hint="try")

    (tmp_path / "requirements.lock").write_text("old")
    monkeypatch.setattr(relock_module, "run", fail)
    with refused(ToolFailed, "no solution"):
        relock(tmp_path, log)
    assert (tmp_path / "requirements.lock").read_text() == "old"
