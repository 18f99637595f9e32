"""An appliance in a virtual machine, as its operator has it: run-qemu, a console, a few ports.

QEMU emulates; what takes the place of TDX is `attestation mock-td`, which measures the very files
that QEMU was started with.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from attestation.bundle import Bundle
from attestation.errors import EvidenceUnavailable
from attestation.evidence import fetch
from tests.e2e.process import ROOT, until
from tests.zipnet.network.nats_cluster import free_ports

# A boot takes 30 s, and three side by side on two cores a few times that.
BOOT_S = 300.0
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


@dataclass(frozen=True, slots=True)
class Image:
    """A built role: the builder's output folder."""

    role: str
    folder: Path

    @property
    def measurements(self) -> Path:
        return self.folder / "measurements.json"


def started(
    command: Sequence[str | Path], log: Path, env: dict[str, str]
) -> subprocess.Popen[bytes]:
    """A program that ends with this process, however that ends."""
    with log.open("ab") as out:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *map(str, command)],
            cwd=ROOT,
            env={**os.environ, **env},
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


def ended(child: subprocess.Popen[bytes]) -> None:
    """kill -9, of whatever it has started too."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait(60)
    assert child.stdin is not None
    child.stdin.close()


class VirtualTdx:
    """The host's service that quotes for guests, over a software TEE's folder."""

    def __init__(self, tee: Path, folder: Path) -> None:
        self._tee = tee
        self.socket = folder / "tdx.socket"
        self.log = folder / "mock-td.log"
        self.log.touch()
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "attestation", "mock-td"]
        command += ["--tee", str(self._tee), "--socket", str(self.socket)]
        self._child = started(command, self.log, {})
        until(self.socket.exists, self.log.read_text)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._child is not None:
            ended(self._child)


class Machine:
    """A virtual machine of an image, over all its boots. `disk` is where its sealed state lies."""

    def __init__(
        self,
        name: str,
        image: Image,
        folder: Path,
        *,
        qemu: Path,
        tdx: VirtualTdx,
        mr_config_id: str,
        disk: Path | None = None,
    ) -> None:
        self.name, self.image, self.disk = name, image, disk
        self.log = folder / f"{name}.console"
        self.log.touch()
        self._qemu, self._tdx, self._config = qemu, tdx, mr_config_id
        self._qmp = folder / f"{secrets.token_hex(4)}.qmp"
        self.port, self.metrics = free_ports(2)
        self._child: subprocess.Popen[bytes] | None = None
        self._boot = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Power on."""
        assert self._child is None
        self._boot = len(self.text())
        command: list[str | Path] = [self.image.folder / "run-qemu", "--emulate"]
        command += ["--memory", "768M", "--cpus", "1", "--qmp", self._qmp]
        command += ["--mock-td", self._tdx.socket, "--mrconfigid", self._config]
        command += ["--forward", f"{self.port}:7744", "--forward", f"{self.metrics}:9464"]
        command += ["--state", self.disk] if self.disk else []
        self._child = started(command, self.log, {"QEMU": str(self._qemu)})

    def waits(self) -> None:
        """Until it waits for provisioning."""
        self.await_line(r"waits for its operator")

    def boot(self) -> Self:
        """Power on, and wait until it waits for provisioning."""
        self.start()
        self.waits()
        return self

    def kill(self) -> None:
        """Pull the plug."""
        if self._child is not None:
            ended(self._child)
            self._child = None

    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def power_button(self) -> float:
        """Press it, and wait for the machine to go off; the seconds that this took."""
        assert self._child is not None
        begin = time.monotonic()
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(30)
            control.connect(str(self._qmp))
            lines = control.makefile("rwb")
            lines.readline()
            for verb in ("qmp_capabilities", "system_powerdown"):
                lines.write(json.dumps({"execute": verb}).encode() + b"\n")
                lines.flush()
                while b'"return"' not in lines.readline():
                    pass
        until(lambda: not self.running(), self.tail)
        seconds = time.monotonic() - begin
        self.kill()
        return seconds

    def provision(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The operator's tool, against this machine."""
        command = [sys.executable, "-m", "zipnet", "provision", f"127.0.0.1:{self.port}"]
        command += [self.image.role, *words]
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=BOOT_S
        )

    def provisioned(self, *words: str) -> str:
        """As `provision`, which must succeed; until the node takes part."""
        done = self.provision(*words)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{self.tail()}"
        return done.stdout

    def evidence(self) -> Bundle:
        """What it shows of itself while it runs; it makes one quote a second at most."""
        challenge, found = secrets.token_bytes(32), list[Bundle]()
        url = f"http://127.0.0.1:{self.metrics}"

        def shown() -> bool:
            with contextlib.suppress(EvidenceUnavailable):
                found.append(Bundle.decode(asyncio.run(fetch(url, challenge, 60.0))))
            return bool(found)

        until(shown, self.tail)
        return found[0]

    def text(self) -> str:
        """All that its console has said, in all its boots."""
        return CONTROL.sub("", self.log.read_text(errors="replace"))

    def said(self) -> str:
        """What it has said in this boot."""
        return self.text()[self._boot :]

    def tail(self) -> str:
        return f"--- {self.name}\n{self.said()[-4000:]}"

    def await_line(self, pattern: str, seconds: float = BOOT_S) -> re.Match[str]:
        """The first match in this boot."""
        found: list[re.Match[str]] = []

        def there() -> bool:
            match = re.search(pattern, self.said(), re.MULTILINE)
            found.extend([match] if match else [])
            assert match or self.running(), f"it went off\n{self.tail()}"
            return match is not None

        until(there, lambda: f"no line {pattern} at {datetime.now(UTC)}\n{self.tail()}", seconds)
        return found[0]
