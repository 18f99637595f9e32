"""`release make`: what it writes, and every build and tree that it refuses."""

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from attestation.errors import MeasurementFormatError
from attestation.measure.record import BootProof
from release import verify_files
from release.build import wheels
from release.build.deb import Store
from release.build.packages import Packages
from release.build.settings import Flavor, Role
from release.build.wheels import Runtime, Wheel
from release.bundle import Bundle
from release.errors import NotReleasable, OutputRefused, ReleaseFormatError, ReleaseRejected
from release.keys import Key
from release.make import ordered
from release.manifest import NAME, SIGNATURE, SUMS, Manifest
from tests.release import small
from tests.release.build.support import deb
from tests.release.small import OTHER_KEY, SIGNER, VERSION, World, build, refused


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.create(tmp_path)


def test_a_release_is_whole(world: World) -> None:
    made = world.make()
    folder = world.to / VERSION
    assert made.folder == folder
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    wanted = {NAME, SIGNATURE, SUMS, "notes.md", "notes.html", "provenance.intoto.json"}
    for role in Role:
        names = ("measurements.json", "mrtd.hex", "packages.json", "sbom.cdx.json")
        wanted |= {f"{role}/{name}" for name in names}
    assert wanted <= found
    assert all(path in wanted or path.startswith("exports/") for path in found)
    assert not any(path.endswith((".efi", ".fd")) for path in found)
    manifest = made.manifest
    assert {file.path for file in manifest.files} == found - {NAME, SIGNATURE}
    assert manifest.commit == small.git(world.paths.root, "rev-parse", "HEAD")
    assert manifest.version == VERSION
    assert [entry.role for entry in manifest.roles] == ["aggregator", "client", "server"]
    assert dict(manifest.tools)["zstd"] == "1.5.7"
    assert manifest.compress_level == 19
    assert manifest.locks.images.file == "debian-trixie.lock"
    assert manifest.previous is None
    entry = manifest.role("client")
    assert entry.measurements == small.measurements(Role.CLIENT)
    assert len(entry.outputs) == 8
    assert made.signed.signers == (SIGNER,)
    for path in folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644)
    # Nothing half-done beside it.
    assert [path.name for path in world.to.iterdir()] == [VERSION]


def test_the_same_builds_make_the_same_release(world: World, tmp_path: Path) -> None:
    first = world.make()
    second = world.make(to=tmp_path / "again")
    for file in first.manifest.files:
        assert (first.folder / file.path).read_bytes() == (second.folder / file.path).read_bytes()
    assert first.signed.payload == second.signed.payload


def test_the_previous_release(world: World) -> None:
    before = world.make()
    world.set_version("1.3.0rc1")
    small.commit(world.paths.root)
    made = world.make(version="1.3.0rc1", previous=before.folder, retirement_days=7)
    assert made.manifest.previous is not None
    assert made.manifest.previous.version == VERSION
    assert made.manifest.retirement_days == 7


def test_the_previous_release_is_older_and_trusted(world: World) -> None:
    before = world.make()
    world.set_version("1.2.2")
    small.commit(world.paths.root)
    with refused(NotReleasable, "make.previous"):
        world.make(version="1.2.2", previous=before.folder)
    stranger = Key("stranger", OTHER_KEY.public_key().public_bytes_raw())
    with refused(ReleaseRejected, "signature.key"):
        world.make(version="1.2.2", previous=before.folder, key=OTHER_KEY, signer=stranger)
    assert [path.name for path in world.to.iterdir()] == [VERSION]


def test_versions_are_ordered() -> None:
    versions = ["0.9.0", "1.0.0rc1", "1.0.0rc2", "1.0.0rc10", "1.0.0", "1.0.10", "1.2.0"]
    keys = [ordered(version) for version in versions]
    assert keys == sorted(set(keys))


def _untracked(world: World) -> None:
    (world.paths.root / "more").write_text("")


def _newer(world: World) -> None:
    world.set_version("1.2.4")
    small.commit(world.paths.root)


def _present(world: World) -> None:
    (world.to / VERSION).mkdir(parents=True)


def _foreign(world: World) -> None:
    (world.out / "client/notes.txt").write_text("")


def _missing(world: World) -> None:
    (world.out / "client/run-qemu").unlink()


def _unsummed(world: World) -> None:
    (world.out / "client/run-qemu").write_text("#!/bin/bash\n")


def _other_registers(world: World) -> None:
    found = small.measurements(Role.SERVER).dumps().replace(b'"server"', b'"client"')
    (world.out / "client/measurements.json").write_bytes(found)
    small.resum(world.out / "client")


def _other_mrtd(world: World) -> None:
    (world.out / "client/mrtd.hex").write_bytes(b"0" * 96)
    small.resum(world.out / "client")


def _dev(world: World) -> None:
    build(world.out, Role.CLIENT, small.measurements(Role.CLIENT, is_dev=True))


def _unproved(world: World) -> None:
    skipped = small.measurements(Role.CLIENT, proof=BootProof.SKIPPED)
    build(world.out, Role.CLIENT, skipped)


def _built(**changes: object) -> Callable[[World], None]:
    def change(world: World) -> None:
        build(world.out, Role.CLIENT, **changes)

    return change


@pytest.mark.parametrize(
    ("spoil", "rule", "words"),
    [
        (_untracked, "make.clean", "?? more"),
        (_newer, "make.version", "1.2.4"),
        (_present, "make.exists", "raise the version"),
        (_foreign, "make.outputs", "notes.txt"),
        (_missing, "make.outputs", "client"),
        (_unsummed, "make.sums", "run-qemu"),
        (_other_registers, "make.measurements", "client"),
        (_other_mrtd, "make.mrtd", "client"),
        (_dev, "make.is-dev", "client"),
        (_unproved, "make.boot-proof", "client"),
        (_built(flavor=Flavor.MOCK), "make.flavor", "client"),
        (_built(compress_level=3), "make.compress-level", "client"),
        (_built(role=Role.SERVER), "make.role", "client"),
        (_built(source_date_epoch=1), "make.same", "source_date_epoch"),
        (_built(distribution="ubuntu"), "make.same", "distribution"),
        (_built(packages=(deb("base", "2"),)), "make.locks", "packages"),
        (
            _built(wheels=(Wheel("click", "8.3.0", "e" * 64, "click.whl"),)),
            "make.locks",
            "wheel click",
        ),
        (
            _built(builder=tuple((small.TOOLS | {"mkosi": (deb("mkosi", "9"),)}).items())),
            "make.locks",
            "builder's mkosi",
        ),
    ],
)
def test_refused(world: World, spoil: Callable[[World], None], rule: str, words: str) -> None:
    spoil(world)
    there = sorted(world.to.rglob("*")) if world.to.exists() else []
    with refused(NotReleasable, rule, words):
        world.make()
    assert (sorted(world.to.rglob("*")) if world.to.exists() else []) == there


def test_a_version_is_one(world: World) -> None:
    for version in ("1.2", "v1.2.3", "1.2.3-1", "../1.2.3", "01.2.3"):
        with refused(NotReleasable, "make.version"):
            world.make(version=version)


def test_an_odd_list_of_sums(world: World) -> None:
    path = world.out / "client" / SUMS
    path.write_bytes(path.read_bytes().replace(b"  ", b" *"))
    with refused(ReleaseFormatError, "sums.format"):
        world.make()


def test_a_build_of_one_role_is_no_release(world: World) -> None:
    for path in (world.out / "client").iterdir():
        path.unlink()
    (world.out / "client").rmdir()
    with refused(NotReleasable, "make.outputs", "nothing"):
        world.make()


def test_a_quick_level_is_for_tests_only(world: World) -> None:
    build(world.out, Role.CLIENT, compress_level=3)
    made = world.make(roles=(Role.CLIENT,), compress_level=3)
    assert made.manifest.compress_level == 3


def test_measurements_that_are_none(world: World) -> None:
    (world.out / "client/measurements.json").write_bytes(b"{}")
    small.resum(world.out / "client")
    with refused(MeasurementFormatError, "record.fields"):
        world.make()


def test_nothing_is_left_of_a_release_that_failed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ReleaseRejected("no", rule="test")

    monkeypatch.setattr(verify_files, "check_sums", broken)
    with refused(ReleaseRejected, "test"):
        world.make()
    assert list(world.to.iterdir()) == []


def test_a_bundle(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(world.paths.cache / "debs")
    for data in (*small.CONTENTS, *(role.encode() for role in Role)):
        path = store.path(deb(data=data))
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
    shelf = tmp_path / "wheels"
    shelf.mkdir()
    (shelf / small.WHEEL.file).write_bytes(b"wheel")
    runtime = Runtime(tmp_path / "site-packages", (small.WHEEL,))
    monkeypatch.setattr(wheels, "install", lambda *_: runtime)
    world.make(bundle=tmp_path / "bundle")
    kept = {item.name for item in Bundle.open(tmp_path / "bundle").items}
    assert {"base_1.0_amd64.deb", "mkosi_26-1_amd64.deb", small.WHEEL.file} <= kept


def test_no_release_without_the_bundle_that_was_asked_for(world: World, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/more").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wheels, "install", lambda *_: Runtime(tmp_path, ()))
        with pytest.raises(OutputRefused):
            world.make(bundle=tmp_path / "bundle")
    assert list(world.to.iterdir()) == []


def test_packages_travel_whole(world: World) -> None:
    made = world.make()
    raw = (made.folder / "server/packages.json").read_bytes()
    assert Packages.loads(raw).dumps() == small.packages(Role.SERVER).dumps()
    assert verify_files.load_packages(made.folder, made.manifest)["server"] == json.loads(raw)
    assert Manifest.loads(made.signed.payload) == made.manifest
