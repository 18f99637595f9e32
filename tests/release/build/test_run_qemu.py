"""The rendered run-qemu script: its syntax, its command lines, and every way it says no."""

import base64
import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from release.build import outputs
from release.build.settings import Role
from tests.release.build.run_qemu_support import SHELLS, interpreter, output, printed, run, value
from tests.release.build.support import program, vectors


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> list[str]:
    return interpreter(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return output(tmp_path)


@pytest.mark.parametrize("role", list(Role))
def test_syntax(role: Role, shell: list[str], tmp_path: Path) -> None:
    path = tmp_path / "run-qemu"
    path.write_bytes(outputs.run_qemu(role))
    done = subprocess.run([*shell, "-n", path], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    text = path.read_text()
    assert text.startswith("#!/bin/sh\n")
    assert f"zipnet-{role}.efi" in text
    assert "{{" not in text
    assert "{%" not in text
    assert text.endswith('exec "$qemu" "$@"\n')
    assert max(map(len, text.splitlines())) < 200


def test_shellcheck(folder: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("this host has no shellcheck")
    done = subprocess.run(
        ["shellcheck", "-S", "warning", folder / "run-qemu"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout.decode()


def test_emulate(folder: Path, shell: list[str]) -> None:
    words = printed(folder, "--emulate", shell=shell)
    assert words[0] == "qemu-system-x86_64"
    assert value(words, "-machine") == "q35"
    assert (value(words, "-accel"), value(words, "-cpu")) == ("tcg", "max")
    assert (value(words, "-m"), value(words, "-smp")) == (outputs.MEMORY, str(outputs.CPUS))
    assert value(words, "-bios") == str(folder / "zipnet-server.fd")
    assert value(words, "-kernel") == str(folder / "zipnet-server.efi")
    assert value(words, "-netdev") == "user,id=net0"
    assert value(words, "-device") == "virtio-net-pci,netdev=net0,romfile="
    assert value(words, "-serial") == "mon:stdio"
    assert {"-nodefaults", "-no-reboot"} <= set(words)
    assert "-object" not in words


def test_tdx(folder: Path, shell: list[str]) -> None:
    words = printed(folder, "--tdx", shell=shell)
    assert (value(words, "-accel"), value(words, "-cpu")) == ("kvm", "host")
    assert value(words, "-machine") == "q35,kernel-irqchip=split,confidential-guest-support=tdx0"
    assert json.loads(value(words, "-object")) == {
        "qom-type": "tdx-guest",
        "id": "tdx0",
        "sept-ve-disable": True,
        "quote-generation-socket": {"type": "vsock", "cid": "2", "port": "4050"},
    }
    assert value(words, "-bios") == str(folder / "zipnet-server.fd")
    assert value(words, "-kernel") == str(folder / "zipnet-server.efi")


@pytest.mark.parametrize("mode", ["--emulate", "--tdx"])
def test_options(folder: Path, mode: str) -> None:
    arguments = ["--memory", "512M", "--cpus", "4", "--forward", "8080:80", "--forward", "1:65535"]
    words = printed(folder, *arguments[:2], mode, *arguments[2:])
    assert (value(words, "-m"), value(words, "-smp")) == ("512M", "4")
    assert value(words, "-netdev") == (
        "user,id=net0,hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=tcp:127.0.0.1:1-:65535"
    )


def test_the_last_of_an_option_wins(folder: Path) -> None:
    words = printed(folder, "--emulate", "--memory", "1G", "--memory", "4096")
    assert value(words, "-m") == "4096"


# Every byte value, and those that shells and printf have opinions about.
REGISTERS = [
    bytes(range(48)),
    bytes(range(48, 96)),
    bytes(range(96, 144)),
    bytes(range(144, 192)),
    bytes(range(192, 240)),
    bytes(range(208, 256)),
    bytes(48),
    b"\xff" * 48,
    b"%d%s%n\\n\\0$(x)`y`'\"\n\n\t !*?" + b"\0" * 22 + b"\n",
    b"\n" * 48,
]


@pytest.mark.parametrize("register", REGISTERS, ids=lambda r: r.hex()[:8])
def test_mrconfigid(folder: Path, shell: list[str], register: bytes) -> None:
    register = register[:48].ljust(48, b"\n")
    words = printed(folder, "--tdx", "--mrconfigid", register.hex(), shell=shell)
    found = json.loads(value(words, "-object"))
    assert found["mrconfigid"] == base64.b64encode(register).decode()
    upper = printed(folder, "--tdx", "--mrconfigid", register.hex().upper(), shell=shell)
    assert upper == words


@pytest.mark.parametrize(
    "case", vectors("run_qemu.json")["usage"], ids=lambda c: " ".join(c["arguments"])[:50]
)
def test_usage_errors(folder: Path, case: dict[str, Any]) -> None:
    done = run(folder, *case["arguments"], qemu="/nowhere/qemu")
    assert (done.returncode, done.stdout) == (1, "")
    assert case["words"] in done.stderr
    assert "\n  next: run-qemu --help\n" in done.stderr or "usage: run-qemu" in done.stderr


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help(folder: Path, option: str) -> None:
    done = run(folder, option)
    assert (done.returncode, done.stderr) == (0, "")
    script = (folder / "run-qemu").read_text()
    for name in (
        "--emulate",
        "--tdx",
        "--memory",
        "--cpus",
        "--forward",
        "--mrconfigid",
        "--state",
        "--mock-td",
        "--qmp",
        "--print",
    ):
        assert name in done.stdout
        assert script.count(name) > 1
    assert f"default {outputs.MEMORY}" in done.stdout


@pytest.mark.parametrize("mode", ["--emulate", "--tdx"])
@pytest.mark.parametrize("qemu", ["/nowhere/qemu", "no-such-qemu"])
def test_no_qemu(folder: Path, mode: str, qemu: str) -> None:
    done = run(folder, mode, qemu=qemu)
    assert (done.returncode, done.stdout) == (3, "")
    assert f"run-qemu: there is no {qemu} on this host" in done.stderr
    assert "next: install QEMU" in done.stderr


@pytest.mark.parametrize("end", ["fd", "efi"])
def test_alone(folder: Path, tmp_path: Path, end: str) -> None:
    (folder / f"zipnet-server.{end}").unlink()
    done = run(folder, "--emulate", qemu=program(tmp_path / "bin", "qemu", "exit 99"))
    assert done.returncode == 3
    assert "can't be read" in done.stderr
    assert "next: keep run-qemu in the folder that the build wrote" in done.stderr


def version(tmp_path: Path, text: str) -> Path:
    return program(
        tmp_path / "bin", "qemu", f'[ "$1" = --version ] && {{ echo "{text}"; exit; }}; exit 99'
    )


@pytest.mark.parametrize(
    "text",
    [
        "QEMU emulator version 9.2.0",
        "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)",
        "QEMU emulator version 2.12.1",
        "something else",
        "",
    ],
)
def test_old_qemu(folder: Path, tmp_path: Path, text: str) -> None:
    done = run(folder, "--tdx", qemu=version(tmp_path, text))
    assert (done.returncode, done.stdout) == (3, "")
    assert "run-qemu: QEMU is older than 10.1: it can't start a TD" in done.stderr
    assert "next: install QEMU 10.1 or newer, or set QEMU to its path" in done.stderr


@pytest.mark.parametrize(
    "text", ["QEMU emulator version 10.1.0", "QEMU emulator version 11.0.50 (v11.0-dirty)"]
)
def test_new_qemu_without_tdx_in_kvm(folder: Path, tmp_path: Path, text: str) -> None:
    parameter = Path("/sys/module/kvm_intel/parameters/tdx")
    if parameter.exists() and parameter.read_text().strip() == "Y":
        pytest.skip("this host is a TDX host")
    done = run(folder, "--tdx", qemu=version(tmp_path, text))
    assert done.returncode == 3
    assert "older than 10.1" not in done.stderr
    assert "/dev/kvm is missing" in done.stderr or "does not offer TDX" in done.stderr
    assert "next: " in done.stderr


def test_emulation_starts_qemu(folder: Path, tmp_path: Path, shell: list[str]) -> None:
    # An old version will do, and what is printed is what is started.
    qemu = program(tmp_path / "b i'n", "qemu", 'for word; do printf "%s\\n" "$word"; done; exit 7')
    arguments = ("--emulate", "--memory", "1G", "--cpus", "1", "--forward", "1:2")
    done = run(folder, *arguments, qemu=qemu, shell=shell)
    assert done.returncode == 7
    assert done.stderr == (
        "run-qemu: zipnet-server, emulated without TDX; Ctrl-A x ends it\n"
        f"  firmware    {folder}/zipnet-server.fd\n"
        f"  image       {folder}/zipnet-server.efi\n"
        "  memory      1G\n"
        "  CPUs        1\n"
        "  disk        none\n"
        "  forwards    127.0.0.1:1 to 2\n"
        "  TEE         none\n"
    )
    shown = run(folder, *arguments, "--print", qemu=qemu, shell=shell)
    assert shlex.split(shown.stdout) == [str(qemu), *done.stdout.splitlines()]


def test_from_another_folder(folder: Path) -> None:
    done = subprocess.run(
        ["sh", "run-qemu", "--emulate", "--print"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "CDPATH": "/tmp"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert value(shlex.split(done.stdout), "-bios") == str(folder / "zipnet-server.fd")
