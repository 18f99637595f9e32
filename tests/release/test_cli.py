"""`python -m release`: what its commands print, and their exit codes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from release import cli as cli_module
from release import keys
from release.build.settings import Role
from release.manifest import SUMS
from release.verify_files import Opened
from tests.release.small import KEY, SIGNER, VERSION, World, build

ROOT = Path(__file__).parents[2]


def run(*arguments: str | Path, **more: Any) -> Result:
    return CliRunner().invoke(cli_module.cli, [str(each) for each in arguments], **more)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """The commands work on this checkout."""
    made = World.create(tmp_path)
    monkeypatch.setattr(cli_module, "ROOT", made.paths.root)
    monkeypatch.setenv("ZIPNET_CACHE", str(made.paths.cache))
    monkeypatch.setattr(keys, "pinned", lambda *_: (keys.Key("show", SIGNER.public, demo=True),))
    return made


def make(world: World, *more: str | Path) -> Result:
    environment = {keys.VARIABLE: KEY.private_bytes_raw().hex()}
    places = ("--out", world.out, "--to", world.to)
    return run("make", VERSION, *places, *more, env=environment)


def test_keygen(tmp_path: Path) -> None:
    path = tmp_path / "release.key"
    result = run("keygen", path)
    assert result.exit_code == 0
    public = keys.private(path).public_key().public_bytes_raw().hex()
    assert result.stdout == f"{public}\n"
    again = run("keygen", path)
    assert again.exit_code == 3
    assert "file.write" in again.stderr


def test_make_then_verify(world: World) -> None:
    made = make(world)
    assert made.exit_code == 0, made.output
    rows = dict(line.split(maxsplit=1) for line in made.stdout.splitlines())
    assert rows["key"] == f"{SIGNER.hex} (demo)"
    assert rows["release"] == str(world.to / VERSION)
    assert "zipnet-server.efi" in rows["images"]
    result = run("verify", world.to / VERSION, "--key", "pinned", "--artifacts", world.out)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    steps = ["signature", "schema", "files", "sums", "measurements", "rebuild", "quote"]
    assert [line.split()[0] for line in lines] == steps
    assert all(line[14:18] == "good" for line in lines[:5])
    assert all(line[14:23] == "not asked" for line in lines[5:])
    assert lines[0].endswith("demo key: trust nothing signed by it")


def test_make_prints_json(world: World) -> None:
    result = make(world, "--json")
    document = json.loads(result.stdout)
    assert document["schema"] == "zipnet.release-make/1"
    assert document["key"] == SIGNER.hex
    assert document["folder"] == str(world.to / VERSION)


def test_make_with_a_key_file(world: World, tmp_path: Path) -> None:
    path = tmp_path / "release.key"
    keys.generate(path)
    result = make(world, "--key-file", path)
    assert result.exit_code == 0
    public = keys.private(path).public_key().public_bytes_raw().hex()
    assert run("verify", world.to / VERSION, "--key", public).exit_code == 0
    assert run("verify", world.to / VERSION, "--key", "pinned").exit_code == 2


def test_make_refuses(world: World) -> None:
    build(world.out, Role.CLIENT, compress_level=3)
    result = make(world)
    assert result.exit_code == 2
    assert "make.compress-level" in result.stderr
    assert not (world.to / VERSION).exists()
    assert KEY.private_bytes_raw().hex() not in result.output
    assert run("make", VERSION, "--out", world.out).exit_code == 2
    assert run("make").exit_code == 1


def test_make_where_nothing_can_be_written(world: World) -> None:
    world.to.write_text("in the way")
    result = make(world)
    assert result.exit_code == 3
    assert "operating system" in result.stderr


@pytest.fixture
def copy(released: Opened, tmp_path: Path) -> Path:
    return shutil.copytree(released.folder, tmp_path / "copy")


def test_a_refusal(copy: Path) -> None:
    (copy / "notes.md").write_text("other")
    result = run("verify", copy, "--key", SIGNER.hex)
    assert result.exit_code == 2
    lines = result.stdout.splitlines()
    assert lines[2].startswith("files         REFUSED    notes.md was changed")
    assert lines[3].split() == ["rule:", "release.file"]
    assert lines[4].split()[0] == "next:"
    assert len(lines) == 5


def test_json(copy: Path, tmp_path: Path) -> None:
    result = run("verify", copy, "--key", SIGNER.hex, "--artifacts", tmp_path, "--json")
    assert result.exit_code == 3
    document = json.loads(result.stdout)
    assert document["schema"] == "zipnet.release-verify/1"
    assert not document["good"]
    states = {step["step"]: step["state"] for step in document["steps"]}
    assert states["measurements"] == "absent"
    assert states["sums"] == "good"
    (copy / SUMS).write_text("other")
    document = json.loads(run("verify", copy, "--key", SIGNER.hex, "--json").stdout)
    assert document["steps"][-1]["rule"] == "release.file"
    assert document["steps"][-1]["state"] == "REFUSED"


def test_usage(copy: Path) -> None:
    for arguments in (
        [],
        ["verify", copy],
        ["verify", copy, "--key", SIGNER.hex, "--bundle", copy],
        ["verify", copy, "--key", SIGNER.hex, "--quote", copy, "--node", "http://h"],
        ["verify", copy, "--key", SIGNER.hex, "--role", "king"],
        ["make", VERSION, "--retirement-days", "-1"],
        ["unknown"],
    ):
        assert run(*arguments).exit_code == 1


def test_a_key_is_asked_for_and_never_taken_from_the_release(copy: Path) -> None:
    result = run("verify", copy, "--key", copy / "key")
    assert result.exit_code == 2
    assert "never from the release" in result.stdout


def test_the_module_runs() -> None:
    command = [sys.executable, "-m", "release", "--help"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    for name in ("allow-list", "keygen", "make", "verify"):
        assert name in done.stdout
