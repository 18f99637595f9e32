"""A node as a child process: what it logs, what it tells its service manager, how it is ended."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.zipnet.network.nats_cluster import free_ports

ROOT = Path(__file__).resolve().parents[2]
# How long anything may take on a busy machine, in seconds.
PATIENCE = 90.0


def until(done: Callable[[], bool], what: Callable[[], str], seconds: float = PATIENCE) -> float:
    """Wait for what must come; how many seconds that took."""
    begin = time.monotonic()
    while not done():
        assert time.monotonic() - begin < seconds, what()
        time.sleep(0.05)
    return time.monotonic() - begin


class Node:
    """One node of a deployment, over all its boots. `words` are what follows `zipnet`.

    `ends` counts how often it has ended, in whatever way. `entry` is the module that is started,
    and `env` what its environment has beside this process's own.
    """

    def __init__(self, name: str, folder: Path, words: list[str], env: dict[str, str]) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.book = folder / f"{name}.book"
        self.metrics = free_ports(1)[0]
        self._words = [*words, "--metrics", f"127.0.0.1:{self.metrics}"]
        self.entry = "tests.e2e.child"
        self.env = env
        self.ends = 0
        self._manager: socket.socket | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self.log.touch()

    def start(self) -> None:
        """Start it, over whatever it has kept."""
        assert self._child is None
        name = f"zipnet-e2e-{secrets.token_hex(8)}"
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.bind(f"\0{name}")
        self._manager.setblocking(False)
        command = [sys.executable, "-m", self.entry, str(self.book), *self._words]
        with self.log.open("ab") as out:
            self._child = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **self.env, "NOTIFY_SOCKET": f"@{name}"},
                # It ends with what holds the other end, however that ends.
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def await_ready(self) -> None:
        """Until it has told its service manager so."""

        def ready() -> bool:
            self.check()
            return self.heard_ready()

        until(ready, lambda: f"{self.name} is not ready\n{self.tail()}")

    def heard_ready(self) -> bool:
        """Whether it has told its service manager so since this was last asked."""
        assert self._manager is not None
        with contextlib.suppress(BlockingIOError):
            while message := self._manager.recv(4096):
                if message.startswith(b"READY=1"):
                    return True
        return False

    def exit_code(self) -> int | None:
        """None while it is running."""
        assert self._child is not None, f"{self.name} was never started"
        return self._child.poll()

    def check(self) -> None:
        """It must be running."""
        code = self.exit_code()
        assert code is None, f"{self.name} has ended with {code}\n{self.tail()}"

    def kill(self) -> None:
        """kill -9, of whatever it has started too."""
        if self._child is not None:
            # Its group, which is not this one: it began a session of its own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait(PATIENCE)
        self._forget()

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, such as SIGSTOP and SIGCONT."""
        assert self._child is not None
        self._child.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, float]:
        """Tell it to end; its exit code, and the seconds that it took."""
        assert self._child is not None
        begin = time.monotonic()
        self._child.send_signal(number)
        code = self._child.wait(PATIENCE)
        self._forget()
        return code, time.monotonic() - begin

    def wait(self) -> int:
        """The exit code of a node that ends by itself."""
        assert self._child is not None
        code = self._child.wait(PATIENCE)
        self._forget()
        return code

    def _forget(self) -> None:
        if self._child is not None:
            assert self._child.stdin is not None
            self._child.stdin.close()
            self.ends += 1
        self._child = None
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def text(self) -> str:
        """All that it has said, in all its boots."""
        return self.log.read_text(errors="replace")

    def tail(self) -> str:
        """The last of it."""
        return self.text()[-4000:]

    def await_line(self, pattern: str, after: int = 0) -> re.Match[str]:
        """The first match beyond `after` characters of its log."""
        found: list[re.Match[str]] = []

        def there() -> bool:
            self.check()
            match = re.search(pattern, self.text()[after:])
            found.extend([match] if match else [])
            return match is not None

        until(there, lambda: f"{self.name} does not say {pattern}\n{self.tail()}")
        return found[0]

    def scrape(self) -> dict[str, int]:
        """Its metrics without their labels; none if it does not answer."""
        url = f"http://127.0.0.1:{self.metrics}/metrics"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
            lines = answer.read().decode().splitlines()
            rows = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
            return {name.partition("{")[0]: int(value) for name, value in rows}
        return {}
