"""What the tests of sealing run on: unpacked once, built once, and nothing of it on the host."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from release.build import tss
from release.build.mirror import Mirrors
from release.build.settings import DISTRIBUTIONS, Paths
from release.build.tss import LIBRARIES, MODULES, Host
from release.errors import HostError, MirrorError, ToolFailed
from tests.release.build.support import Repository, needs, program, refused, tree

OWN = (*MODULES, "tcti-device", "tcti-mssim", "tcti-swtpm")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    """The packages of a host's release, in small."""
    needs("apt-get", "dpkg-deb", "gpg", "gpgconf")
    folder = tmp_path_factory.mktemp("host")
    made = Repository(folder, folder / "gpg", folder / "keyring.gpg")
    try:
        made.make_key()
        described = {f"{LIBRARIES}/pkgconfig/tss2-{m}.pc": b"" for m in (*MODULES, "fapi")}
        others = ["libtss2-fapi1", "libtss2-tcti-pcap0", "libcurl4", "libc6"]
        libraries = [f"libtss2-{name}0" for name in OWN]
        depends = ", ".join((*libraries, *others))
        made.add("bookworm", "libtss2-dev", files=described, Depends=depends)
        for name in (*libraries, *others):
            made.add("bookworm", name, files={f"{LIBRARIES}/{name}.so": b""})
        swtpm = {"usr/bin/swtpm": b"#!/bin/sh\necho $LD_LIBRARY_PATH $1\n"}
        made.add("bookworm", "swtpm", files=swtpm, Depends="libtpms0, libc6", executable=True)
        made.add("bookworm", "libtpms0", files={f"{LIBRARIES}/libtpms.so": b""})
        made.publish()
        yield made
    finally:
        made.close()


class Pip:
    """Stands for `run` with pip, which makes a wheel."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.environments: list[dict[str, str]] = []
        self.fails = False

    def __call__(self, command: list[str | Path], **options: Any) -> list[str]:
        arguments = [str(part) for part in command]
        self.commands.append(arguments)
        self.environments.append(options.get("env") or {})
        if self.fails:
            raise ToolFailed("python ended with status 1", tail=("no compiler",))
        if "wheel" in arguments:
            folder = Path(arguments[arguments.index("--wheel-dir") + 1])
            folder.mkdir()
            (folder / "tpm2_pytss.whl").touch()
        return []


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Pip:
    pip = Pip()
    monkeypatch.setattr(tss, "run", pip)
    monkeypatch.setattr(tss, "check_tools", lambda: None)
    return pip


@pytest.fixture
def bare(packages: Repository, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host that has nothing."""
    mirrors: Mirrors = packages.mirrors
    monkeypatch.setattr("release.build.mirror.choose", lambda *_: mirrors)
    debian = replace(DISTRIBUTIONS["debian"], keyring=str(packages.keyring))
    return Host(debian, "bookworm", None, None)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/requirements-tpm.lock").write_text("tpm2-pytss==3.0.0\n")
    return Paths(tmp_path / "root", tmp_path / "cache")


def made(paths: Paths) -> list[str]:
    return [p.name for p in paths.cache.glob("*tpm-*")]


def test_made_once(pip: Pip, bare: Host, paths: Paths, log: Path) -> None:
    folder = tss.ensure(paths, bare, log)
    assert sorted(p.name for p in folder.iterdir()) == ["pkgconfig", "swtpm", "tss", "wheel"]
    # No library that the host has itself, and nothing that needs more of them.
    libraries = {p.name for p in (folder / "tss" / LIBRARIES).glob("*.so")}
    assert libraries == {f"libtss2-{name}0.so" for name in OWN}
    assert {p.name for p in (folder / "swtpm" / LIBRARIES).iterdir()} == {"libtpms.so"}
    described = {p.name for p in (folder / "pkgconfig").iterdir()}
    assert described == {f"tss2-{name}.pc" for name in MODULES}
    (command,), (environment,) = pip.commands, pip.environments
    assert {"--require-hashes", "--no-build-isolation", "--no-deps"} <= set(command)
    assert command[-1] == str(paths.tpm_lock)
    # Where the libraries will be, not where they were while it was built.
    assert f"-rpath,{folder / 'tss' / LIBRARIES}," in environment["LDFLAGS"]
    assert tss.ensure(paths, bare, log) == folder
    assert len(pip.commands) == 1
    assert made(paths) == [folder.name]


def test_another_lock_is_another_folder(pip: Pip, bare: Host, paths: Paths, log: Path) -> None:
    first = tss.ensure(paths, bare, log)
    paths.tpm_lock.write_text("tpm2-pytss==3.0.1\n")
    assert tss.ensure(paths, bare, log) != first


def test_a_host_that_has_both_needs_no_packages(
    pip: Pip, bare: Host, paths: Paths, log: Path
) -> None:
    own = replace(bare, tss="4.1.3", swtpm="/usr/bin/swtpm", codename="none such")
    folder = tss.ensure(paths, own, log)
    assert [p.name for p in folder.iterdir()] == ["wheel"]
    assert not {"LDFLAGS", "PKG_CONFIG_LIBDIR"} & pip.environments[0].keys()


def test_a_failed_build_leaves_nothing(pip: Pip, bare: Host, paths: Paths, log: Path) -> None:
    pip.fails = True
    with refused(ToolFailed, "no compiler"):
        tss.ensure(paths, bare, log)
    assert made(paths) == []


def test_no_packages(pip: Pip, bare: Host, paths: Paths, log: Path) -> None:
    with refused(MirrorError, "the package indices can't be had"):
        tss.ensure(paths, replace(bare, codename="none-such"), log)
    assert made(paths) == []


def test_all_that_is_missing_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("shutil.which", lambda *_: None)
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    monkeypatch.setenv("CC", "tcc")
    with refused(HostError, "this machine can't build tpm2-pytss") as caught:
        tss.check_tools()
    for name in ("tcc", "pkg-config", "apt-get", "dpkg-deb", "Python.h", "riscv64"):
        assert name in caught[0].got
    assert "python3-dev" in caught[0].hint


def test_look(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os_release = tmp_path / "os-release"
    os_release.write_text('ID=debian\nVERSION_CODENAME="bookworm"\n')
    ours, theirs = tmp_path / "environment", tmp_path / "host"
    monkeypatch.setattr(sys, "prefix", str(ours))
    monkeypatch.setenv("PATH", f"{ours / 'bin'}:{theirs}")
    program(programs, "pkg-config", "exit 1")
    program(ours / "bin", "swtpm", "exit 0")
    debian = DISTRIBUTIONS["debian"]
    # A launcher of an earlier run is not the host's.
    assert Host.look(os_release) == Host(debian, "bookworm", None, None)
    program(programs, "pkg-config", "echo 4.1.3")
    own = program(theirs, "swtpm", "exit 0")
    assert Host.look(os_release) == Host(debian, "bookworm", "4.1.3", str(own))


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "environment"
    (folder / "bin").mkdir(parents=True)
    monkeypatch.setattr(sys, "prefix", str(folder))
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    return folder


def test_install(pip: Pip, bare: Host, paths: Paths, environment: Path, log: Path) -> None:
    folder = tss.ensure(paths, bare, log)
    tss.install(folder, bare, log)
    assert pip.commands[-1][-1] == str(folder / "wheel/tpm2_pytss.whl")
    assert {"--no-index", "--no-deps"} <= set(pip.commands[-1])
    launcher = environment / "bin/swtpm"
    from release.build.process import run  # noqa: PLC0415 - the fixture replaced that of `tss`

    (line,) = run([launcher, "argument"])
    search, argument = line.split()
    assert argument == "argument"
    assert str(folder / "swtpm" / LIBRARIES / "swtpm") in search.split(":")
    # The host has got one of its own.
    tss.install(folder, replace(bare, swtpm="/usr/bin/swtpm"), log)
    assert list(tree(environment)) == ["bin"]


def test_nothing_is_installed_on_the_host(
    pip: Pip, bare: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Path
) -> None:
    monkeypatch.setattr(sys, "base_prefix", sys.prefix)
    with refused(HostError, "this is no virtual environment"):
        tss.install(tmp_path, bare, log)
    assert pip.commands == []


def test_main(
    pip: Pip,
    bare: Host,
    paths: Paths,
    environment: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ZIPNET_CACHE", str(paths.cache))
    monkeypatch.setattr(Host, "look", lambda: bare)
    assert tss.main(paths.root) == 0
    assert (environment / "bin/swtpm").exists()
    pip.fails = True
    assert tss.main(paths.root) == 3
    assert "no compiler" in capsys.readouterr().err
