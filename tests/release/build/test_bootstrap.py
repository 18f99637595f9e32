"""The private environment: made once, complete or absent, and failures that say what to do."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from release.build import bootstrap, pythonlock
from tests.release.build.support import tree

TEXT = "".join(
    f"# group: {group}\n{group}-package==1.0 --hash=sha256:{'0' * 64}\n"
    for group in pythonlock.GROUPS
)


class Runs:
    """Stands for subprocess.run: records what is started, and fails where it is told to."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.requirements: list[str] = []
        self.environments: list[dict[str, str]] = []
        self.fail = ""
        self.interrupt = ""

    def __call__(self, command: list[str], **options: object) -> SimpleNamespace:
        self.commands.append(command)
        environment = options["env"]
        assert isinstance(environment, dict)
        self.environments.append(environment)
        if self.interrupt in command:
            raise KeyboardInterrupt
        if "venv" in command:
            Path(command[-1]).mkdir()
            (Path(command[-1]) / "pyvenv.cfg").touch()
        else:
            self.requirements.append(Path(command[command.index("-r") + 1]).read_text())
        failed = self.fail in command
        return SimpleNamespace(returncode=int(failed), stdout=b"line one\nline two \xff\n")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    runs = Runs()
    monkeypatch.setattr("release.build.bootstrap.subprocess.run", runs)
    return runs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "requirements.lock").write_text(TEXT)
    return tmp_path / "root"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def folders(cache: Path) -> list[str]:
    return [p.name for p in cache.iterdir() if p.is_dir()]


def test_made_once(runs: Runs, root: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs.fail = runs.interrupt = "never"
    made = bootstrap.ensure(root, cache, "build")
    assert folders(cache) == [made.name]
    assert made.name.startswith("python-build-")
    assert runs.requirements == [pythonlock.upto(root / "requirements.lock", "build")]
    assert "Setting up: 2 locked Python packages" in capsys.readouterr().err
    pip = runs.commands[1]
    assert {"--require-hashes", "--no-deps"} <= set(pip)
    assert pip[0] == str(made / "bin" / "python")
    assert bootstrap.ensure(root, cache, "build") == made
    assert len(runs.commands) == 2
    other = bootstrap.ensure(root, cache, "dev")
    assert other != made
    assert runs.requirements[-1] == pythonlock.upto(root / "requirements.lock", "dev")


def test_another_lock_is_another_environment(runs: Runs, root: Path, cache: Path) -> None:
    runs.fail = runs.interrupt = "never"
    first = bootstrap.ensure(root, cache, "build")
    (root / "requirements.lock").write_text(TEXT.replace("build-package==1.0", "build-package==2"))
    assert bootstrap.ensure(root, cache, "build") != first


def test_no_python_variables(
    runs: Runs, root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.fail = runs.interrupt = "never"
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.example/simple")
    bootstrap.ensure(root, cache, "build")
    for environment in runs.environments:
        assert not any(name.startswith("PYTHON") for name in environment)
        # The user's pip settings are how his index is reached.
        assert environment["PIP_INDEX_URL"] == "https://index.example/simple"


@pytest.mark.parametrize(
    ("program", "hint"),
    [("venv", "install python3-venv"), ("pip", "check the network and the package index")],
)
def test_failures(
    runs: Runs,
    root: Path,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    program: str,
    hint: str,
) -> None:
    runs.fail, runs.interrupt = program, "never"
    with pytest.raises(SystemExit) as caught:
        bootstrap.ensure(root, cache, "build")
    assert caught.value.code == 3
    error = capsys.readouterr().err
    assert f"Error: -m {program}" in error
    assert "  | line two" in error
    assert hint in error
    assert folders(cache) == []


def test_interrupted(runs: Runs, root: Path, cache: Path) -> None:
    runs.fail, runs.interrupt = "never", "pip"
    with pytest.raises(KeyboardInterrupt):
        bootstrap.ensure(root, cache, "build")
    assert folders(cache) == []


def test_half_made_by_a_killed_process(runs: Runs, root: Path, cache: Path) -> None:
    runs.fail = runs.interrupt = "never"
    made = bootstrap.ensure(root, cache, "build")
    (made / bootstrap.READY).unlink()
    (made / "left.over").touch()
    bootstrap.ensure(root, cache, "build")
    assert sorted(tree(made)) == ["pyvenv.cfg", bootstrap.READY]


@pytest.mark.parametrize(
    "text",
    [None, "", "# group: runtime\n", TEXT.replace("==1.0", ""), TEXT.replace("sha256", "md5")],
    ids=["missing", "empty", "no groups", "no pins", "no hashes"],
)
def test_bad_lock(
    runs: Runs, root: Path, cache: Path, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    path = root / "requirements.lock"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(SystemExit) as caught:
        bootstrap.ensure(root, cache, "build")
    assert caught.value.code == 3
    error = capsys.readouterr().err
    assert "the lock of the Python dependencies can't be used" in error
    assert "restore it from git" in error
    assert runs.commands == []
    assert not cache.exists()


class Replaced(Exception):
    """os.execv was called."""


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    found: list[list[str]] = []

    def execv(_program: Path, arguments: list[str]) -> NoReturn:
        found.append(arguments)
        raise Replaced

    monkeypatch.setattr(os, "execv", execv)
    return found


@pytest.mark.parametrize(
    ("arguments", "group"),
    [
        ([], "build"),
        (["--role", "server"], "build"),
        (["doctor"], "build"),
        (["lock", "--python"], "dev"),
        (["test", "-e", "unit"], "dev"),
    ],
)
def test_enter(
    root: Path,
    cache: Path,
    executed: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    group: str,
) -> None:
    made = cache / "made"
    monkeypatch.setattr(bootstrap, "ensure", lambda *a: made if a == (root, cache, group) else None)
    monkeypatch.setattr(sys, "argv", ["build.py", *arguments])
    with pytest.raises(Replaced):
        bootstrap.enter(root / "build.py", cache)
    python = str(made / "bin" / "python")
    assert executed == [[python, "-P", str(root / "build.py"), *arguments]]


def test_enter_where_it_is_already(
    root: Path, cache: Path, executed: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "ensure", lambda *_: Path(sys.prefix))
    bootstrap.enter(root / "build.py", cache)
    assert executed == []
