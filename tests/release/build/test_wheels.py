"""The guest's wheels: exactly those of the lock, for the distribution's Python."""

import hashlib
import sys
from pathlib import Path

import pytest

from release.build import pythonlock, wheels
from release.build.settings import DISTRIBUTIONS
from release.build.wheels import Wheel, install
from release.errors import HostError, LockError, ToolFailed
from tests.release.build.support import refused

DEBIAN = DISTRIBUTIONS["debian"]
ONE, TWO = b"wheel one", b"wheel two"
NAMES = {"click-8.1.8-py3-none-any.whl": ONE, "Some_thing.else-2.0-cp313-cp313-any.whl": TWO}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Pip:
    """Stands for `run`: downloads two wheels and installs them."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.environments: list[object] = []
        self.fail: BaseException | None = None
        self.files = dict(NAMES)
        self.record = b""

    def __call__(self, command: list[object], **options: object) -> list[str]:
        words = [str(word) for word in command]
        self.commands.append(words)
        self.environments.append(options.get("env"))
        if "download" in words:
            folder = Path(words[words.index("--dest") + 1])
            for name, data in self.files.items():
                (folder / name).write_bytes(data)
        else:
            if self.fail:
                raise self.fail
            site = Path(words[words.index("--target") + 1])
            for name in self.files:
                (site / name.partition("-")[0]).mkdir(parents=True)
            (site / "bin").mkdir(parents=True, exist_ok=True)
            (site / "bin" / "tool").touch()
            if self.record:
                (site / "click-8.1.8.dist-info").mkdir()
                (site / "click-8.1.8.dist-info" / "RECORD").write_bytes(self.record)
        return []


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Pip:
    pip = Pip()
    monkeypatch.setattr(wheels, "run", pip)
    return pip


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "requirements.lock"
    path.write_text(
        f"# group: runtime\nclick==8.1.8 --hash=sha256:{sha256(ONE)}\n"
        f"some-thing-else==2.0 --hash=sha256:{sha256(TWO)} --hash=sha256:{'0' * 64}\n"
        f"# group: build\nrich==14.0 --hash=sha256:{'0' * 64}\n# group: dev\n"
    )
    return path


def test_install(pip: Pip, lock: Path, tmp_path: Path, log: Path) -> None:
    runtime = install(lock, DEBIAN, tmp_path / "cache", log)
    assert runtime.wheels == (
        Wheel("some-thing-else", "2.0", sha256(TWO), "Some_thing.else-2.0-cp313-cp313-any.whl"),
        Wheel("click", "8.1.8", sha256(ONE), "click-8.1.8-py3-none-any.whl"),
    )
    # Console scripts carry this host's interpreter.
    assert sorted(p.name for p in runtime.site_packages.iterdir()) == ["Some_thing.else", "click"]
    assert len(list((tmp_path / "cache").iterdir())) == 1
    download, offline = pip.commands
    for command in (download, offline):
        assert command[:3] == [sys.executable, "-m", "pip"]
        assert {"--require-hashes", "--no-deps", "--only-binary=:all:"} <= set(command)
        assert "--python-version=3.13" in command
        assert "--platform=manylinux_2_41_x86_64" in command
        assert "--platform=manylinux_2_42_x86_64" not in command
    assert {"--no-index", "--no-compile", "--isolated"} <= set(offline)
    # A second build installs nothing.
    assert install(lock, DEBIAN, tmp_path / "cache", log) == runtime
    assert len(pip.commands) == 2


def test_scripts_leave_no_trace(pip: Pip, lock: Path, tmp_path: Path, log: Path) -> None:
    """Their hashes tell the path of the interpreter that ran pip, and images would differ by it."""
    rest = b"click/__init__.py,sha256=x,9\nclick/bin/a.py,,\n"
    pip.record = b"../../bin/tool,sha256=ofaninterpreter,259\n" + rest
    runtime = install(lock, DEBIAN, tmp_path / "cache", log)
    record = runtime.site_packages / "click-8.1.8.dist-info" / "RECORD"
    assert record.read_bytes() == rest


def test_other_distribution(pip: Pip, lock: Path, tmp_path: Path, log: Path) -> None:
    first = install(lock, DEBIAN, tmp_path / "cache", log)
    second = install(lock, DISTRIBUTIONS["ubuntu"], tmp_path / "cache", log)
    assert first.site_packages != second.site_packages
    assert "--python-version=3.12" in pip.commands[2]


def test_only_the_runtime_group(pip: Pip, lock: Path, tmp_path: Path, log: Path) -> None:
    runtime = install(lock, DEBIAN, tmp_path / "cache", log)
    listed = (runtime.site_packages.parent / "requirements.txt").read_text()
    assert set(pythonlock.pins(listed)) == {"click", "some-thing-else"}


def test_pip_gets_its_network_settings_only(
    pip: Pip, lock: Path, tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.example/simple")
    monkeypatch.setenv("PIP_TARGET", "/elsewhere")
    install(lock, DEBIAN, tmp_path / "cache", log)
    environment = pip.environments[0]
    assert isinstance(environment, dict)
    assert environment["PIP_INDEX_URL"] == "https://index.example/simple"
    assert "PIP_TARGET" not in environment
    assert pip.environments[1] is None


@pytest.mark.parametrize(
    "error", [ToolFailed("pip ended with status 1", tail=()), KeyboardInterrupt()]
)
def test_failures_leave_nothing(
    pip: Pip, lock: Path, tmp_path: Path, log: Path, error: BaseException
) -> None:
    pip.fail = error
    with pytest.raises(type(error)):
        install(lock, DEBIAN, tmp_path / "cache", log)
    assert list((tmp_path / "cache").iterdir()) == []
    pip.fail = None
    assert len(install(lock, DEBIAN, tmp_path / "cache", log).wheels) == 2


def test_nothing_installed(pip: Pip, lock: Path, tmp_path: Path, log: Path) -> None:
    pip.files = {}
    with refused(HostError, "pip installed nothing"):
        install(lock, DEBIAN, tmp_path / "cache", log)
    assert list((tmp_path / "cache").iterdir()) == []


def test_changed_wheel(pip: Pip, lock: Path, tmp_path: Path, log: Path) -> None:
    runtime = install(lock, DEBIAN, tmp_path / "cache", log)
    wheel = runtime.site_packages.parent / "wheels" / "click-8.1.8-py3-none-any.whl"
    wheel.write_bytes(b"other")
    with refused(LockError, "the wheel click-8.1.8-py3-none-any.whl is not one of the lock") as c:
        install(lock, DEBIAN, tmp_path / "cache", log)
    assert c[0].got == sha256(b"other")
    assert str(runtime.site_packages.parent) in c[0].hint


def test_a_wheel_that_nobody_asked_for(pip: Pip, lock: Path, tmp_path: Path, log: Path) -> None:
    pip.files["evil-1.0-py3-none-any.whl"] = ONE
    with refused(LockError, "evil-1.0-py3-none-any.whl is not one of the lock"):
        install(lock, DEBIAN, tmp_path / "cache", log)


def test_another_build_was_faster(
    pip: Pip, lock: Path, tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = install(lock, DEBIAN, tmp_path / "cache", log)
    folder = first.site_packages.parent
    folder.rename(tmp_path / "aside")
    real = wheels._build

    def slow(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        (tmp_path / "aside").rename(folder)

    monkeypatch.setattr(wheels, "_build", slow)
    assert install(lock, DEBIAN, tmp_path / "cache", log) == first
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [folder.name]
