"""The output folder: all or nothing, never over foreign files, and what is written into it."""

import hashlib
import re
import signal
import stat
from pathlib import Path
from typing import NoReturn

import pytest

from attestation.measure import firmware, record
from attestation.measure.record import BootProof, Measurements
from release.build import cli, outputs
from release.build.settings import Role
from release.errors import OutputRefused
from tests.attestation.measure import synthetic
from tests.release.build.support import refused, tree

SERVER = Role.SERVER


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def fill(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in outputs.names(SERVER):
        (folder / name).write_text(f"{text} {name}")


def build(out: Path, text: str = "new") -> None:
    with outputs.replacing(out, SERVER) as folder:
        fill(folder, text)


def content(text: str) -> dict[str, bytes | None]:
    return {name: f"{text} {name}".encode() for name in sorted(outputs.names(SERVER))}


def test_new_folder(out: Path) -> None:
    build(out)
    assert tree(out / "server") == content("new")
    assert [p.name for p in out.iterdir()] == ["server"]
    assert stat.S_IMODE((out / "server").stat().st_mode) == 0o755


def test_old_output_is_replaced_and_nothing_else(out: Path) -> None:
    fill(out / "server", "old")
    fill(out / "client", "other")
    (out / "notes.txt").write_text("mine")
    (out / "server" / "run-qemu").unlink()
    build(out)
    assert tree(out / "server") == content("new")
    assert {p.name for p in out.iterdir()} == {"server", "client", "notes.txt"}
    assert (out / "client" / "mrtd.hex").read_text() == "other mrtd.hex"


def test_an_incomplete_output_stays_out_of_the_new_one(out: Path) -> None:
    fill(out / "server", "old")
    with outputs.replacing(out, SERVER) as folder:
        (folder / "mrtd.hex").write_text("only this")
    assert tree(out / "server") == {"mrtd.hex": b"only this"}


def interrupted(out: Path, error: BaseException) -> None:
    with outputs.replacing(out, SERVER) as folder:
        (folder / "mrtd.hex").write_text("half")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "full"), SystemExit(1)])
def test_interrupted(out: Path, error: BaseException) -> None:
    fill(out / "server", "old")
    before = tree(out)
    with pytest.raises(type(error)):
        interrupted(out, error)
    assert tree(out) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "full")])
def test_interrupted_first_build_leaves_no_folder(out: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        interrupted(out, error)
    assert not out.exists()
    with pytest.raises(type(error)):
        interrupted(out / "deeper" / "still", error)
    assert not out.exists()
    out.mkdir()
    with pytest.raises(type(error)):
        interrupted(out, error)
    assert list(out.iterdir()) == []


def killed(out: Path) -> None:
    with outputs.replacing(out, SERVER) as folder:
        (folder / "mrtd.hex").write_text("half")
        signal.raise_signal(signal.SIGTERM)


def test_sigterm(out: Path) -> None:
    fill(out / "server", "old")
    before = tree(out)
    previous = signal.signal(signal.SIGTERM, cli._terminated)
    try:
        with pytest.raises(KeyboardInterrupt):
            killed(out)
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert tree(out) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("moment", [1, 2])
def test_interrupted_while_the_folders_are_swapped(
    out: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], moment: int
) -> None:
    fill(out / "server", "old")
    before = tree(out)
    calls = 0
    real = Path.rename

    def rename(path: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == moment:
            raise error
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(error):
        build(out)
    assert tree(out) == before


def test_a_foreign_file_that_appears_during_the_build(out: Path) -> None:
    fill(out / "server", "old")
    with refused(OutputRefused, "thesis.txt"):
        with outputs.replacing(out, SERVER):
            (out / "server" / "thesis.txt").write_text("mine")
    assert (out / "server" / "thesis.txt").read_text() == "mine"
    assert (out / "server" / "mrtd.hex").read_text() == "old mrtd.hex"
    assert [p.name for p in out.iterdir()] == ["server"]


def plant(out: Path, what: str) -> None:
    elsewhere = out.parent / "elsewhere"
    elsewhere.mkdir()
    match what:
        case "file":
            out.write_text("mine")
        case "dangling link":
            out.symlink_to("nowhere")
        case "below a file":
            out.parent.joinpath("file").write_text("mine")
        case "role is a file":
            out.mkdir()
            (out / "server").write_text("mine")
        case "role is a link":
            out.mkdir()
            (out / "server").symlink_to(elsewhere)
        case "role is a dangling link":
            out.mkdir()
            (out / "server").symlink_to("nowhere")
        case "foreign file":
            fill(out / "server", "old")
            (out / "server" / "thesis.txt").write_text("mine")
        case "foreign folder of a known name":
            fill(out / "server", "old")
            (out / "server" / "run-qemu").unlink()
            (out / "server" / "run-qemu").mkdir()
            (out / "server" / "run-qemu" / "thesis.txt").write_text("mine")
        case "link of a known name":
            fill(out / "server", "old")
            (out / "server" / "mrtd.hex").unlink()
            (out / "server" / "mrtd.hex").symlink_to(elsewhere)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("file", "out is not a folder"),
        ("dangling link", "out is not a folder"),
        ("below a file", "file is not a folder"),
        ("role is a file", "out/server is not a folder"),
        ("role is a link", "out/server is not a folder"),
        ("role is a dangling link", "out/server is not a folder"),
        ("foreign file", "holds files that no build wrote, got thesis.txt"),
        ("foreign folder of a known name", "holds files that no build wrote, got run-qemu"),
        ("link of a known name", "holds files that no build wrote, got mrtd.hex"),
    ],
)
def test_what_is_not_ours(out: Path, what: str, words: str) -> None:
    plant(out, what)
    before = tree(out.parent)
    target = out.parent / "file" / "out" if what == "below a file" else out
    rule = "a build replaces only what a build wrote"
    with refused(OutputRefused, words, rule) as caught:
        outputs.check(target, [SERVER])
    assert "--out" in caught[0].hint
    assert caught[0].exit_code == 2
    with refused(OutputRefused, words):
        build(target)
    assert tree(out.parent) == before


def test_a_link_to_a_folder_may_be_out(out: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    out.symlink_to("elsewhere")
    build(out)
    assert tree(tmp_path / "elsewhere" / "server") == content("new")


def test_another_roles_files_are_foreign(out: Path) -> None:
    fill(out / "client", "server's")
    with refused(OutputRefused, "zipnet-server.efi"):
        outputs.check(out, [SERVER, Role.CLIENT])
    outputs.check(out, [SERVER])


def test_many_foreign_files_are_not_all_named(out: Path) -> None:
    (out / "server").mkdir(parents=True)
    for number in range(9):
        (out / "server" / f"file-{number}").touch()
    with refused(OutputRefused, "file-4") as caught:
        outputs.check(out, [SERVER])
    assert "file-5" not in str(caught[0])


def test_names() -> None:
    assert outputs.names(Role.CLIENT) == {
        "zipnet-client.efi",
        "zipnet-client.fd",
        "mrtd.hex",
        "measurements.json",
        "packages.json",
        "sbom.cdx.json",
        "run-qemu",
        "sha256sums.txt",
    }


@pytest.fixture(scope="module")
def measured() -> tuple[bytes, bytes, Measurements]:
    uki = synthetic.uki()
    bound = firmware.bind(synthetic.Firmware().build(), uki)
    found = record.measure_image("server", bound, uki, is_dev=False, boot_proof=BootProof.PASSED)
    return uki, bound, found


def test_write(tmp_path: Path, measured: tuple[bytes, bytes, Measurements]) -> None:
    uki, bound, found = measured
    (tmp_path / "zipnet-server.efi").write_bytes(uki)
    (tmp_path / "zipnet-server.fd").write_bytes(bound)
    (tmp_path / "zipnet-server.fd").chmod(0o600)
    mr_td = found.entries[0].mr_td.hex()
    files = {"packages.json": b"{}", "sbom.cdx.json": b"{}", "run-qemu": b"#!/bin/sh\n"}
    outputs.write(tmp_path, files, found, mr_td)
    assert {p.name for p in tmp_path.iterdir()} == outputs.names(SERVER)
    assert re.fullmatch(rb"[0-9a-f]{96}", (tmp_path / "mrtd.hex").read_bytes())
    assert Measurements.load(tmp_path / "measurements.json") == found
    for path in tmp_path.iterdir():
        expected = 0o755 if path.name == "run-qemu" else 0o644
        assert stat.S_IMODE(path.stat().st_mode) == expected
    lines = (tmp_path / "sha256sums.txt").read_text().splitlines()
    sums = {line[66:]: line[:64] for line in lines}
    assert {line[64:66] for line in lines} == {"  "}
    assert list(sums) == sorted(outputs.names(SERVER) - {"sha256sums.txt"})
    for name, value in sums.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == value


def test_old_output_that_can_not_be_moved(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(out / "server", "old")

    def busy(_path: Path, _target: Path) -> NoReturn:
        raise OSError(16, "Device or resource busy")

    before = tree(out)
    monkeypatch.setattr(Path, "rename", busy)
    with pytest.raises(OSError, match="busy"):
        build(out)
    assert tree(out) == before
