"""Whole builds in small, and every way in which they fail: nothing half-written is left."""

import errno
import hashlib
import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from attestation.measure import firmware as firmware_module
from attestation.measure import tdvf
from attestation.measure.firmware import Model
from attestation.measure.record import BootProof, Measurements
from release.build import emulator, outputs, pipeline
from release.build.lock import Lock
from release.build.mkosi import Mkosi
from release.build.pipeline import as_json, explain_os_error
from release.build.settings import Flavor, Role
from release.errors import (
    BuildRefused,
    HostError,
    LockError,
    MirrorError,
    OutputRefused,
    ProofFailed,
    ToolFailed,
)
from tests.release.build.support import refused, tree
from tests.release.build.world import World, said, uki

Usage = namedtuple("Usage", "total used free")  # noqa: PYI024 - what shutil returns


def test_build(small: World) -> None:
    builder = small.builder()
    (built,) = builder.build(small.request()).built
    folder = small.out / "server"
    assert built.folder == folder
    assert {p.name for p in folder.iterdir()} == outputs.names(Role.SERVER)
    image, bound = (folder / "zipnet-server.efi").read_bytes(), folder / "zipnet-server.fd"
    assert image == uki(Role.SERVER)
    assert firmware_module.check_bound(bound.read_bytes(), image)
    # What is printed, written and measured are one and the same.
    order = tdvf.HostProfile.UPSTREAM.page_order
    mr_td = tdvf.mr_td(bound.read_bytes(), order)
    assert (folder / "mrtd.hex").read_text() == mr_td.hex()
    assert built.upstream()[0] == mr_td
    assert Measurements.load(folder / "measurements.json") == built.measurements
    assert {e.boot_proof for e in built.measurements.entries} == {BootProof.PASSED}
    assert not any(e.is_dev for e in built.measurements.entries)
    assert mr_td.hex() in said(builder)
    packages = json.loads((folder / "packages.json").read_text())
    assert [p["name"] for p in packages["packages"]] == ["base-files", "libsystemd", "systemd"]
    assert set(packages["builder"]) == {"mkosi", "tools", "firmware", "emulator"}
    sbom = (folder / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(sbom) is None
    for line in (folder / "sha256sums.txt").read_text().splitlines():
        value, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == value
    assert small.left() == []
    assert "a line of mkosi" in next(small.paths.cache.glob("logs/*/*image.log")).read_text()


def test_steps(small: World) -> None:
    builder = small.builder()
    builder.build(small.request())
    text = said(builder)
    titles = [title for title, _ in builder.steps.timings]
    assert titles == [
        "tools: package indices",
        "tools: fetch and unpack",
        "runtime: locked wheels",
        "packages of debian-trixie",
        "server: image",
        "server: bind and measure",
        "server: boot proof",
        "server: outputs",
    ]
    assert "fetching 5 packages, " in text
    assert "nothing is installed on this host" in text
    assert "firmware: ovmf-inteltdx 2026.08-1" in text
    # It is said before it is done.
    assert text.index("fetching 5") < text.index("[ 2] tools: fetch and unpack  ")
    assert "there is no lock tools.lock: nothing to compare with" in text
    assert "refuses it with one byte changed: " in text
    # Its firmware is one that this version has no golden values of.
    assert "model: unconfirmed" in text
    again = small.builder()
    again.build(small.request())
    assert "fetching" not in said(again)


def test_the_same_bytes_again(small: World, tmp_path: Path) -> None:
    small.builder().build(small.request())
    elsewhere = replace(small.request(), out=tmp_path / "elsewhere" / "deep")
    small.builder().build(elsewhere)
    first, second = tree(small.out), tree(tmp_path / "elsewhere" / "deep")
    assert first == second
    # ... over what is there, too.
    small.builder().build(small.request())
    assert tree(small.out) == first


def test_all_roles(ready: World) -> None:
    result = ready.builder(locked=True).build(ready.request(*Role))
    assert [built.role for built in result.built] == list(Role)
    assert len({built.upstream()[0] for built in result.built}) == 3
    assert {p.name for p in ready.out.iterdir()} == set(Role)


def test_mock(ready: World) -> None:
    request = replace(ready.request(), flavor=Flavor.MOCK)
    (built,) = ready.builder(locked=True).build(request).built
    assert all(entry.is_dev for entry in built.measurements.entries)


def test_skipped_boot_proof(ready: World) -> None:
    builder = ready.builder(locked=True)
    (built,) = builder.build(replace(ready.request(), skip_boot_proof=True)).built
    assert "server: boot proof SKIPPED" in said(builder)
    assert "WARNING: nothing shows that this firmware enforces its policy" in said(builder)
    found = json.loads((ready.out / "server" / "measurements.json").read_text())
    assert {m["boot_proof"] for m in found["measurements"]} == {"skipped"}
    assert built.boot_proof is BootProof.SKIPPED


def test_vary_has_no_proof_and_no_cache_of_its_own(
    ready: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    real = Mkosi.build

    def build(self: Mkosi, *arguments: Any, **options: Any) -> Any:
        seen.append(dict(options))
        return real(self, *arguments, **options | {"vary": False})

    monkeypatch.setattr(Mkosi, "build", build)
    builder = ready.builder(locked=True)
    builder.build(replace(ready.request(), vary=True))
    assert (seen[0]["vary"], seen[0]["cache"]) == (True, None)
    assert "boot proof" not in said(builder)
    # What is compared with a proved build says the same.
    found = Measurements.load(ready.out / "server" / "measurements.json")
    assert found.entries[0].boot_proof is BootProof.PASSED


def test_json(ready: World) -> None:
    builder = ready.builder(locked=True)
    result = builder.build(ready.request())
    found = json.loads(as_json(result.built, builder.steps.timings))
    assert found["schema"] == "zipnet.build/1"
    (image,) = found["images"]
    folder = ready.out / "server"
    assert image["mr_td"] == (folder / "mrtd.hex").read_text()
    assert (image["role"], image["model"], image["boot_proof"]) == (
        "server",
        Model.UNCONFIRMED,
        "passed",
    )
    for name, facts in image["files"].items():
        data = (folder / name).read_bytes()
        assert facts == {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    assert [step["step"] for step in found["steps"]] == [t for t, _ in builder.steps.timings]


def test_print_config(ready: World) -> None:
    text = ready.builder(locked=True).print_config(ready.request(Role.SERVER, Role.CLIENT))
    assert text == "a line of mkosi\nsummary of server\na line of mkosi\nsummary of client\n"
    assert not ready.out.exists()
    assert ready.left() == []


# Locks.


def test_lock_then_locked(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    written = small.builder().lock(small.request(*Role))
    assert [p.name for p in written] == ["tools.lock", "debian-trixie.lock"]
    assert sorted(p.name for p in small.paths.locks.iterdir()) == sorted(p.name for p in written)
    assert {name for name, _ in Lock.load(written[1]).sets} == set(Role)
    assert not small.out.exists()
    small.builder().build(small.request())
    first = tree(small.out)
    # Everything is in the store: no mirror is needed any more.
    locked = small.builder(locked=True)
    gone = replace(small.repository.mirrors, bases=())
    locked = replace(locked, supply=replace(locked.supply, mirrors=gone))
    locked.build(small.request())
    assert tree(small.out) == first
    assert "tools: lock" in said(locked)
    assert "differs" not in said(locked)


def test_locked_without_a_lock(small: World) -> None:
    with refused(LockError, "there is no lock tools.lock"):
        small.builder(locked=True).build(small.request())
    assert not small.out.exists()
    assert small.left() == []


def test_differences_from_the_lock_are_shown(small: World) -> None:
    written = small.builder().lock(small.request(*Role))
    for path in written:
        lock = Lock.load(path)
        older = tuple((n, tuple(replace(d, version="0.1") for d in debs)) for n, debs in lock.sets)
        path.write_bytes(replace(lock, sets=older).dumps())
    builder = small.builder()
    builder.build(small.request())
    assert "differs from the lock: ~ mkosi 0.1 -> 27.1-1" in said(builder)
    assert "differs from the lock: ~ systemd 0.1 -> 257.8-1" in said(builder)


def test_many_differences_are_counted(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "SHOWN", 1)
    written = small.builder().lock(small.request(*Role))
    lock = Lock.load(written[0])
    older = tuple((n, tuple(replace(d, version="0.1") for d in debs)) for n, debs in lock.sets)
    written[0].write_bytes(replace(lock, sets=older).dumps())
    builder = small.builder()
    builder.build(small.request())
    assert said(builder).count("differs from the lock") == 1
    assert "… and 4 more (build.py lock would take them over)" in said(builder)


def test_lock_on_a_full_disk(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (small.paths.locks / "tools.lock").write_bytes(b"old")
    real = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.parent == small.paths.locks:
            real(path, data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, data)

    monkeypatch.setattr(small.builder().supply.__class__, "compared", lambda *_: [])
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        small.builder().lock(small.request(*Role))
    assert tree(small.paths.locks) == {"tools.lock": b"old"}


# Failures.


def old_output(small: World) -> dict[str, bytes | None]:
    folder = small.out / "server"
    folder.mkdir(parents=True)
    (folder / "mrtd.hex").write_text("old")
    return tree(small.out)


def test_foreign_files_are_found_before_anything_is_done(ready: World) -> None:
    old_output(ready)
    (ready.out / "server" / "thesis.txt").touch()
    builder = ready.builder(locked=True)
    with refused(OutputRefused, "thesis.txt"):
        builder.build(ready.request())
    assert builder.steps.timings == []
    assert {p.name for p in ready.paths.cache.iterdir()} == {"debs", "trees"}


def test_full_disk_before_anything_is_done(ready: World, monkeypatch: pytest.MonkeyPatch) -> None:
    free = pipeline.WORK_SPACE - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, 0, free))
    builder = ready.builder(locked=True)
    with refused(HostError, "the disk is too full for a build") as caught:
        builder.build(ready.request())
    assert caught[0].got == f"{free >> 20} MiB"
    assert "ZIPNET_CACHE" in caught[0].hint
    assert caught[0].exit_code == 3
    assert builder.steps.timings == []
    assert not ready.out.exists()
    assert ready.left() == []


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("place", ["outputs.write", "proof.prove", "stage", "measure_image"])
def test_failures_in_the_middle(
    ready: World, monkeypatch: pytest.MonkeyPatch, before: bool, error: BaseException, place: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(f"release.build.pipeline.{place}", fail)
    content = old_output(ready) if before else {}
    builder = ready.builder(locked=True)
    with pytest.raises(type(error)) as caught:
        builder.build(ready.request())
    assert caught.value is error
    if before:
        assert tree(ready.out) == content
    else:
        assert not ready.out.exists()
    assert ready.left() == []
    assert " failed " in said(builder)


@pytest.mark.parametrize(
    ("words", "kind", "text"),
    [
        ("E: something is wrong", ToolFailed, "  | E: something is wrong"),
        ("write error: No space left on device", HostError, "the disk is full"),
    ],
)
def test_mkosi_fails(ready: World, words: str, kind: type[HostError], text: str) -> None:
    content = old_output(ready)
    (ready.paths.root / "images" / "fail").write_text(words)
    with refused(kind, text):
        ready.builder(locked=True).build(ready.request())
    assert tree(ready.out) == content
    assert ready.left() == []


def test_an_image_asks_for_a_package_that_is_not_there(small: World) -> None:
    (small.paths.root / "images" / "packages").write_text("systemd no-such-package")
    with refused(MirrorError, "Unable to locate package no-such-package"):
        small.builder().build(small.request())
    assert not small.out.exists()


def test_a_failed_proof_leaves_nothing(ready: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulator, "KERNEL", emulator.NOTHING_TO_BOOT)
    with refused(ProofFailed, "the firmware refuses it with one byte changed: not shown"):
        ready.builder(locked=True).build(ready.request())
    assert not ready.out.exists()
    assert ready.left() == []


def test_an_image_that_can_not_be_bound(ready: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: object) -> bytes:
        raise BuildRefused("no")

    monkeypatch.setattr(firmware_module, "bind", no)
    with refused(BuildRefused, "no"):
        ready.builder(locked=True).build(ready.request())
    assert not ready.out.exists()


def test_folders_of_killed_builds_are_swept(small: World) -> None:
    work = small.paths.cache / "work"
    # No process has a number above the kernel's limit.
    for name in (f"{(1 << 22) + 1}-dead", "1-alive", "notes"):
        (work / name / "deep").mkdir(parents=True)
    with small.builder().workspace() as folder:
        assert {p.name for p in work.iterdir()} == {"1-alive", "notes", folder.name}
    assert sorted(small.left()) == ["1-alive", "notes"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "the operating system refused"),
    ],
)
def test_errors_of_the_operating_system(error: OSError, words: str) -> None:
    made = explain_os_error(error)
    assert words in str(made)
    assert "/x" in made.got
    assert made.exit_code == 3
    assert made.hint
