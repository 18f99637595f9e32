"""An image as its operator meets it: run-qemu, the console, and the command line of the builder."""

from __future__ import annotations

import os
import queue
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attestation.providers.mock import MockTee
from attestation.providers.mock_td_host import MockTdHost
from release.build.emulator import watch
from release.build.process import started
from release.build.settings import Paths, Role
from tests.image.conftest import QUICK, ROOT, Image, Toolbox, build, said, transcript

QUIET_SECONDS = 4
LIMIT = 180


@pytest.fixture(scope="module")
def qemu(toolbox: Toolbox, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The emulator tree's QEMU as one program, as a host would have it."""
    path = tmp_path_factory.mktemp("bin") / "qemu-system-x86_64"
    tree = toolbox.emulator.tree
    data = [f"-L {tree.folder}/{p}" for p in ("usr/share/qemu", "usr/share/seabios")]
    command = " ".join(map(str, (*tree.command("usr/bin/qemu-system-x86_64"), *data)))
    path.write_text(f'#!/bin/sh\nexec {command} "$@"\n', "utf-8")
    path.chmod(0o755)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("role", [Role.SERVER, Role.AGGREGATOR])
def test_console_of_a_production_image(images: dict[Role, Image], role: Role, qemu: Path) -> None:
    """The no-TDX line and facts; nothing to log in to, nothing that answers."""
    port = free_port()
    script = images[role].folder / "run-qemu"
    command: list[str | Path] = [
        script,
        "--emulate",
        "--memory",
        "1G",
        "--cpus",
        "1",
        "--forward",
        f"{port}:22",
    ]
    last = "so it stops here"
    begin = time.monotonic()
    with started(command, env={"QEMU": str(qemu)}) as process:
        assert process.stdout is not None
        descriptor = process.stdout.fileno()
        boot = watch(descriptor, re.compile(last), begin, LIMIT)
        assert boot.matched, transcript(boot)
        prompt = re.compile(r"(?i)login|password|[#$] $")
        quiet = watch(descriptor, prompt, time.monotonic(), QUIET_SECONDS)
        assert quiet.matched is None, transcript(quiet)
        assert process.poll() is None
        refuses(port)
    gets_none = "that can't prove itself gets no configuration"
    why = gets_none if role is Role.AGGREGATOR else "must be attested"
    assert said(boot, rf"^zipnet {role}: no TDX on this machine: an? {role} {why}, so it stops")
    assert said(boot, r"flavor +production")
    assert said(boot, r"listening +(nothing|udp/68)$"), transcript(boot)
    assert said(boot, r"time +\d+\.\d s")
    assert said(boot, r"memory +\d+ of \d+ MiB used")


def refuses(port: int) -> None:
    """QEMU accepts for the guest, whose firewall drops what comes: no byte and no end."""
    with socket.create_connection(("127.0.0.1", port), timeout=QUIET_SECONDS) as connection:
        with pytest.raises(TimeoutError):
            connection.recv(1)


def test_tdx_command_line_is_parsed_by_qemu(server: Image, qemu: Path) -> None:
    """A QEMU that knows TDX takes every option and stops at KVM, which has no TDX here."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("there is no /dev/kvm on this host")
    script = server.folder / "run-qemu"
    printed = subprocess.run(
        [script, "--tdx", "--print", "--mrconfigid", "5a" * 48],
        env=os.environ | {"QEMU": str(qemu)},
        check=True,
        capture_output=True,
        text=True,
    )
    done = subprocess.run(
        ["sh", "-c", printed.stdout], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "vm-type TDX not supported by KVM" in done.stderr
    wrong = printed.stdout.replace('"port":"4050"', '"port":"4050","color":"red"')
    done = subprocess.run(["sh", "-c", wrong], check=False, capture_output=True, text=True)
    assert "color" in done.stderr


def test_virtual_tdx_disk_and_control_socket(server: Image, qemu: Path, tmp_path: Path) -> None:
    """QEMU takes what run-qemu says of them; the service measures what the builder measured."""
    disk, service, control = (tmp_path / name for name in ("a, disk", "a, service", "a, control"))
    with disk.open("wb") as file:
        file.truncate(1 << 20)
    said: queue.Queue[str] = queue.Queue()
    command: list[str | Path] = [server.folder / "run-qemu", "--emulate", "--memory", "512M"]
    command += ["--state", disk, "--mock-td", service, "--mrconfigid", "5A" * 48]
    env = {"QEMU": str(qemu)}
    with (
        MockTdHost(MockTee(b"image"), service, said.put),
        started([*command, "--qmp", control], env=env) as process,
    ):
        line = said.get(timeout=60)
        assert line.startswith(
            f"guest {process.pid}: firmware {server.firmware}, image {server.uki}"
        )
        assert line.endswith(f", mr_td {server.mr_td}, mrconfigid {'5a' * 48}")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            # QEMU listens there when it has opened the disk.
            until_connected(connection, control)
            other = subprocess.run(
                command, env=os.environ | env, check=False, capture_output=True, text=True
            )
            assert other.returncode == 1
            assert 'Failed to get "write" lock' in other.stderr
            connection.sendall(b'{"execute":"qmp_capabilities"}{"execute":"quit"}')
            assert process.wait(60) == 0


def until_connected(connection: socket.socket, path: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            return connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_ubuntu_configuration_resolves() -> None:
    call = build("--role", "server", "--distribution", "ubuntu", "--print-config")
    assert call.status == 0
    for pattern in (
        r"Distribution: ubuntu",
        r"Release: noble",
        r"linux-image-virtual-hwe-24\.04",
        r"Image ID: zipnet-server",
    ):
        assert re.search(pattern, call.out), pattern
    assert "linux-image-cloud-amd64" not in call.out


def test_unreachable_mirror(tmp_path: Path) -> None:
    out = tmp_path / "out"
    mirror = f"http://127.0.0.1:{free_port()}/debian"
    call = build("--role", "server", "--mirror", mirror, "--out", out)
    assert call.status == 3
    assert "the package indices can't be had" in call.err
    assert "next:" in call.err
    assert not out.exists()


def test_full_disk(tmp_path: Path) -> None:
    """On a file system that fills up in the middle of mkosi's work."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    out = tmp_path / "out"
    # The disk fills up when mkosi starts; before that a build would refuse to begin.
    script = """
        mount -t tmpfs -o size=1700m none "$1" || exit 99
        filler=$1/filler; shift; set -o pipefail
        "$@" 2>&1 | while read -r line; do
            echo "$line"
            case $line in *"server: image "*…)
                dd if=/dev/zero of="$filler" bs=1M status=none ;;
            esac
        done
    """
    work = Paths.of(ROOT).cache / "work"
    command = ["unshare", "--mount", "bash", "-c", script, "bash", str(work)]
    command += [sys.executable, "build.py", "--role", "server", *QUICK, "--skip-boot-proof"]
    command += ["--vary", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 3, done.stdout
    assert "error: the disk is full" in done.stdout
    assert "next: free some space" in done.stdout
    assert not out.exists()


def test_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "build.py", "--role", "server", *QUICK, "--out", str(out)]
    with subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "server: boot proof …" in line:
                process.send_signal(signal.SIGTERM)
                break
        process.stderr.read()
        assert process.wait(60) == 1
    assert not out.exists()
    running = subprocess.run(["pgrep", "-f", str(out)], check=False, capture_output=True)
    assert running.stdout == b""
