"""--check-reproducible: how the second build is made different, and what a difference says."""

import shutil
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from release.build import again, cpio
from release.build.lock import Lock
from release.build.pipeline import Builder, Result
from release.build.settings import Role
from release.errors import HostError, NotReproducible, ToolFailed
from tests.attestation.measure import synthetic
from tests.release.build.support import refused
from tests.release.build.world import World, said


class Second:
    """Stands for the second build: copies the first one's output, changed by `change`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.change: dict[str, bytes] = {}
        self.command: list[str] = []
        self.options: dict[str, Any] = {}
        self.locks: dict[str, Lock] = {}
        self.checkout: dict[str, int] = {}
        self.error: BaseException | None = None

    def __call__(self, command: list[str], **options: Any) -> list[str]:
        self.command, self.options = command, options
        if self.error is not None:
            raise self.error
        values = dict(word.removeprefix("--").split("=", 1) for word in command if "=" in word)
        self.locks = {p.name: Lock.load(p) for p in Path(values["locks"]).iterdir()}
        copy = Path(command[2]).parent
        self.checkout = {
            str(p.relative_to(copy)): stat.S_IMODE(p.stat().st_mode) for p in copy.rglob("*")
        }
        out = Path(values["out"])
        shutil.copytree(self.world.out, out)
        for name, data in self.change.items():
            (out / name).write_bytes(data)
        return []


@pytest.fixture
def second(ready: World, monkeypatch: pytest.MonkeyPatch) -> Second:
    second = Second(ready)
    monkeypatch.setattr(again, "run", second)
    return second


def build(ready: World, *roles: Role) -> tuple[Builder, Result]:
    builder = ready.builder(locked=True)
    return builder, builder.build(ready.request(*roles))


def test_identical(ready: World, second: Second) -> None:
    (ready.paths.root / "docs").mkdir()
    (ready.paths.root / "release" / "__pycache__").mkdir()
    (ready.paths.root / "release" / "module.py").touch(0o600)
    builder, result = build(ready, Role.SERVER, Role.CLIENT)
    again.check(builder, ready.request(Role.SERVER, Role.CLIENT), result)
    assert "server: identical" in said(builder)
    assert "client: identical" in said(builder)
    assert ready.left() == []
    # Exactly the packages of the first build, whatever a mirror has by now.
    assert second.locks == {f"{name}.lock": found for name, found in result.locks()}
    command = second.command
    assert command[:2] == [sys.executable, "-P"]
    assert {"--vary", "--locked", "--role=server", "--role=client"} <= set(command)
    assert "--distribution=debian" in command
    assert "--flavor=production" in command
    assert "--compress-level=19" in command
    # No apt settings of this host are needed: the mirrors are those of the first build.
    assert set(ready.apt) <= set(command)
    checkout = Path(command[2]).parent
    assert " " in str(checkout)
    assert not checkout.is_relative_to(ready.paths.root)
    assert second.options["umask"] == again.UMASK
    environment = second.options["env"]
    assert environment["ZIPNET_CACHE"] == str(ready.paths.cache)
    assert {"TZ", "LC_ALL"} <= set(environment)
    assert "docs" not in second.checkout
    assert "release/__pycache__" not in second.checkout
    assert second.checkout["release/module.py"] == 0o620
    assert set(again.COPIED) <= set(second.checkout)


def test_options_are_handed_on(ready: World, second: Second) -> None:
    builder, result = build(ready)
    request = ready.request()
    changed = type(request)(
        request.roles,
        request.distribution,
        request.flavor,
        request.out,
        compress_level=3,
        skip_boot_proof=True,
    )
    again.check(builder, changed, result)
    command = second.command
    assert "--compress-level=3" in command
    assert "--skip-boot-proof" in command


def test_a_difference(ready: World, second: Second) -> None:
    builder, result = build(ready)
    second.change = {"server/packages.json": b"{}"}
    with refused(NotReproducible, "got packages.json: first at offset 1") as caught:
        again.check(builder, ready.request(), result)
    assert caught[0].exit_code == 2
    assert ready.left() == []


def test_a_difference_in_the_image(
    ready: World, second: Second, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder, result = build(ready)
    changed = synthetic.uki({".cmdline": b"console=ttyS0 quiet role=server", ".initrd": b"other"})
    second.change = {"server/zipnet-server.efi": changed}
    monkeypatch.setattr(
        "release.build.compare.Comparison._decompressed",
        lambda _, data: cpio.write({"usr/lib/s": (0o100644, bytes(data[:6]))}),
    )
    words = "zipnet-server.efi: usr/lib/s: content, first at offset 0 (from the package systemd"
    with refused(NotReproducible, words):
        again.check(builder, ready.request(), result)


def test_the_second_build_fails(ready: World, second: Second) -> None:
    builder, result = build(ready)
    second.error = ToolFailed("python ended with status 3", tail=("Error: no",))
    with refused(ToolFailed, "  | Error: no"):
        again.check(builder, ready.request(), result)
    assert ready.left() == []


def test_interrupted(ready: World, second: Second) -> None:
    builder, result = build(ready)
    second.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        again.check(builder, ready.request(), result)
    assert ready.left() == []


def test_full_disk(ready: World, second: Second, monkeypatch: pytest.MonkeyPatch) -> None:
    builder, result = build(ready)
    monkeypatch.setattr("release.build.pipeline.WORK_SPACE", 1 << 62)
    with refused(HostError, "the disk is too full for a build"):
        again.check(builder, ready.request(), result)
