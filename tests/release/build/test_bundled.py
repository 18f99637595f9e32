"""Builds from a bundle alone: no mirror, no index, and nothing that an earlier build left."""

import hashlib
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from release import bundle
from release.build import wheels
from release.build.cli import cli
from release.build.lock import Lock
from release.bundle import INDEX, Bundle, Kind
from tests.release.build.support import tree
from tests.release.build.world import World

# Before any fixture replaces it.
BUILD = wheels._build
WHEEL = "click-8.1.8-py3-none-any.whl"


class Pip:
    """Stands for `run` of the wheels: pip that takes what it finds in the folder it is given."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []

    def __call__(self, command: list[object], **_options: object) -> list[str]:
        words = [str(word) for word in command]
        self.commands.append(words)
        if "download" in words:
            shelf = Path(words[words.index("--find-links") + 1])
            shutil.copy(shelf / WHEEL, words[words.index("--dest") + 1])
        else:
            (Path(words[words.index("--target") + 1]) / "click").mkdir(parents=True)
        return []


@pytest.fixture
def pip() -> Pip:
    return Pip()


@pytest.fixture
def kept(ready: World, tmp_path: Path, pip: Pip, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle of what `ready` builds; afterwards there is no cache, and pip is the one above."""
    (tmp_path / WHEEL).write_bytes(b"wheel")
    sha256 = hashlib.sha256(b"wheel").hexdigest()
    text = ready.paths.python_lock.read_text().replace("d0" * 32, sha256)
    ready.paths.python_lock.write_text(text)
    supply = ready.supply(locked=True)
    log = tmp_path / "log"
    locks = [Lock.load(path) for path in sorted(ready.paths.locks.glob("*.lock"))]
    for each in locks:
        for _, debs in each.sets:
            supply.store.fetch(debs, supply.mirrors, each.timestamp, log)
    folder = tmp_path / "bundle"
    bundle.write(folder, locks, supply.store, [tmp_path / WHEEL])
    shutil.rmtree(ready.paths.cache)
    ready.paths.cache.mkdir()
    monkeypatch.setattr(wheels, "_build", BUILD)
    monkeypatch.setattr(wheels, "run", pip)
    return folder


def run(world: World, *arguments: str) -> Result:
    known = ["--role", "server", "--distribution", "debian", "--out", str(world.out)]
    return CliRunner().invoke(cli, [*known, *arguments], obj=world.paths)


def test_build(ready: World, kept: Path, pip: Pip, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object) -> None:
        raise AssertionError("the host's apt was asked for a mirror")

    monkeypatch.setattr("release.build.mirror.of_host", asked)
    result = run(ready, "--locked", "--bundle", str(kept))
    assert result.exit_code == 0, result.stderr
    assert "--no-index" in pip.commands[0]
    assert (ready.out / "server" / "zipnet-server.efi").is_file()
    # Again, with a warm cache: the same, and what the bundle lacks by now is still missed.
    first = tree(ready.out)
    assert run(ready, "--locked", "--bundle", str(kept)).exit_code == 0
    assert tree(ready.out) == first
    items = Bundle.open(kept).items
    for kind, words in ((Kind.WHEEL, WHEEL), (Kind.DEB, "mkosi_27.1-1_amd64.deb")):
        less = [item for item in items if item.kind is not kind or item.name != words]
        assert len(less) == len(items) - 1
        (kept / INDEX).write_bytes(bundle.dumps(less))
        result = run(ready, "--locked", "--bundle", str(kept))
        assert result.exit_code == 3
        assert f"lacks {words}" in result.stderr


def test_changed_bytes(ready: World, kept: Path) -> None:
    item = next(i for i in Bundle.open(kept).items if i.name.startswith("mkosi"))
    path = kept / "sha256" / item.sha256[:2] / item.sha256
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    result = run(ready, "--locked", "--bundle", str(kept))
    assert result.exit_code == 2
    assert f"{item.name} has other bytes than the locked ones" in result.stderr
    assert not ready.out.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--locked", "--mirror", "https://mirror.example/debian"),
        ("--locked", "--snapshot", "x"),
    ],
)
def test_usage(ready: World, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = run(ready, "--bundle", str(tmp_path), *arguments)
    assert result.exit_code == 1
    assert "--bundle goes with --locked, and with no mirror" in result.stderr


def test_no_bundle(ready: World, tmp_path: Path) -> None:
    result = run(ready, "--bundle", str(tmp_path), "--locked")
    assert result.exit_code == 3
    assert "is no bundle" in result.stderr
