"""run-qemu's disk, virtual TDX and control socket: what QEMU is told, and what is refused."""

import os
import shlex
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from attestation.providers.mock_td import PORT_NAME
from attestation.providers.mock_td_launch import Launch
from tests.release.build.run_qemu_support import SHELLS, interpreter, output, printed, run, value
from tests.release.build.support import program

CONFIG = "0123456789abcdef" * 6
MIB = 1 << 20


def devices(words: list[str]) -> list[str]:
    return [words[index + 1] for index, word in enumerate(words) if word == "-device"]


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> list[str]:
    return interpreter(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return output(tmp_path)


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """A disk, a listening service and a control socket to be, their names no easy ones."""
    made = tmp_path / "a, b,,c 'd"
    made.mkdir()
    with (made / "disk").open("wb") as disk:
        disk.truncate(MIB)
    with socket.socket(socket.AF_UNIX) as service:
        service.bind(os.path.relpath(made / "td"))
    return {name: made / name for name in ("disk", "td", "qmp")}


def escaped(path: Path) -> str:
    return str(path).replace(",", ",,")


@pytest.mark.parametrize("mode", ["--emulate", "--tdx"])
def test_state(folder: Path, mode: str, places: dict[str, Path], shell: list[str]) -> None:
    disk = places["disk"]
    words = printed(folder, mode, "--state", str(disk), shell=shell)
    assert value(words, "-drive") == (
        f"if=none,id=state,format=raw,file.locking=on,file={escaped(disk)}"
    )
    assert devices(words)[-1] == "virtio-blk-pci,drive=state,serial=zipnet-state"
    assert len(devices(words)) == 2


@pytest.mark.parametrize("mode", ["--emulate", "--tdx"])
def test_qmp(folder: Path, mode: str, places: dict[str, Path]) -> None:
    words = printed(folder, mode, "--qmp", str(places["qmp"]))
    assert value(words, "-qmp") == f"unix:{escaped(places['qmp'])},server=on,wait=off"


@pytest.mark.parametrize(
    ("more", "config"),
    [
        ((), "0" * 96),
        (("--mrconfigid", CONFIG), CONFIG),
        (("--mrconfigid", CONFIG.upper()), CONFIG),
    ],
)
def test_mock_td(
    folder: Path, places: dict[str, Path], more: tuple[str, ...], config: str, shell: list[str]
) -> None:
    arguments = ("--mock-td", str(places["td"]), "--state", str(places["disk"]), *more)
    words = printed(folder, "--emulate", *arguments, shell=shell)
    name = f"mock-td-{config}"
    assert value(words, "-chardev") == f"socket,id={name},path={escaped(places['td'])}"
    assert devices(words)[2:] == [
        "virtio-serial-pci",
        f"virtserialport,chardev={name},name={PORT_NAME}",
    ]
    # What the service makes of it.
    launch = Launch.parse(words, Path("/"))
    assert launch.firmware == folder / "zipnet-server.fd"
    assert launch.uki == folder / "zipnet-server.efi"
    assert launch.mr_config_id.hex() == config


def test_relative_paths(folder: Path) -> None:
    done = subprocess.run(
        ["sh", "run-qemu", "--emulate", "--print", "--state", "a:b", "--mock-td", "td"],
        cwd=folder,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    words = shlex.split(done.stdout)
    assert value(words, "-drive").endswith(f",file={escaped(folder / 'a:b')}")
    assert value(words, "-chardev").endswith(f",path={escaped(folder / 'td')}")


def test_what_it_says(folder: Path, tmp_path: Path, places: dict[str, Path]) -> None:
    qemu = program(tmp_path / "bin", "qemu", "umask; exit 7")
    (folder / "mrtd.hex").write_text("5a" * 48)
    done = run(
        folder,
        "--emulate",
        *("--state", str(places["disk"]), "--mock-td", str(places["td"])),
        *("--qmp", str(places["qmp"]), "--mrconfigid", CONFIG),
        *("--forward", "1:7744", "--forward", "2:9464"),
        qemu=qemu,
    )
    assert done.returncode == 7
    assert int(done.stdout, 8) == stat.S_IRWXG | stat.S_IRWXO
    assert done.stderr == (
        "run-qemu: zipnet-server, emulated without TDX; Ctrl-A x ends it\n"
        f"  firmware    {folder}/zipnet-server.fd\n"
        f"  image       {folder}/zipnet-server.efi\n"
        f"  mr_td       {'5a' * 48}\n"
        "  memory      2G\n"
        "  CPUs        2\n"
        f"  disk        {places['disk']}\n"
        "  forwards    127.0.0.1:1 to 7744, 127.0.0.1:2 to 9464\n"
        f"  TEE         mock TDX at {places['td']}\n"
        f"  mrconfigid  {CONFIG}\n"
        f"  control     {places['qmp']}\n"
    )


def refused(folder: Path, tmp_path: Path, *arguments: str) -> str:
    done = run(folder, "--emulate", *arguments, qemu=program(tmp_path / "bin", "qemu", "exit 99"))
    assert (done.returncode, done.stdout) == (3, "")
    return done.stderr


@pytest.mark.parametrize("size", [0, 1, MIB - 1])
def test_a_small_disk(folder: Path, tmp_path: Path, size: int, places: dict[str, Path]) -> None:
    os.truncate(places["disk"], size)
    said = refused(folder, tmp_path, "--state", str(places["disk"]))
    assert "is smaller than 1 MiB" in said
    hint = said.partition("next: make one with: ")[2]
    assert shlex.split(hint) == ["truncate", "-s", "1M", str(places["disk"])]


def test_no_disk(folder: Path, tmp_path: Path) -> None:
    disk = str(tmp_path / "absent")
    said = refused(folder, tmp_path, "--state", disk)
    assert said == f"run-qemu: there is no {disk}\n  next: make one with: truncate -s 1M {disk}\n"


def test_a_disk_that_is_none(folder: Path, tmp_path: Path) -> None:
    said = refused(folder, tmp_path, "--state", str(tmp_path))
    assert f"{tmp_path} is no file and no block device" in said
    assert "is no file and no block device" in refused(folder, tmp_path, "--state", "/dev/null")


def test_the_hint_makes_a_disk(folder: Path, tmp_path: Path) -> None:
    disk = tmp_path / "it's new"
    hint = refused(folder, tmp_path, "--state", str(disk)).partition("make one with: ")[2]
    subprocess.run(["sh", "-c", hint], check=True)
    qemu = program(tmp_path / "bin", "qemu", "exit 7")
    assert run(folder, "--emulate", "--state", str(disk), qemu=qemu).returncode == 7


def test_no_service(folder: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        said = refused(folder, tmp_path, "--mock-td", str(path))
        assert f"run-qemu: there is no socket {path}\n" in said
        assert f"next: start: attestation mock-td --tee DIR --socket {path}\n" in said


def test_a_file_is_no_control_socket(folder: Path, tmp_path: Path, places: dict[str, Path]) -> None:
    said = refused(folder, tmp_path, "--qmp", str(places["disk"]))
    assert "is something else than a control socket" in said
    # One that a guest before left behind is.
    qemu = program(tmp_path / "bin", "qemu", "exit 7")
    assert run(folder, "--emulate", "--qmp", str(places["td"]), qemu=qemu).returncode == 7
