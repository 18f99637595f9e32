"""The doctor's hands: what it does to a real machine is bounded, and leaves nothing behind."""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from attestation import doctor_system
from attestation.doctor import System
from attestation.doctor_system import RealSystem
from attestation.errors import ProviderAbsent
from attestation.providers.tsm import RealFs, TsmProvider

SYSTEM = RealSystem()


def test_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"0123456789")
    assert SYSTEM.read(str(file), 4) == b"0123"
    assert SYSTEM.read(str(file), 11) == b"0123456789"
    assert SYSTEM.exists(str(file))
    assert not SYSTEM.exists(str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError):
        SYSTEM.read(str(tmp_path / "none"), 4)
    with pytest.raises(IsADirectoryError):
        SYSTEM.read(str(tmp_path), 4)


def test_a_pipe_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert SYSTEM.read(str(tmp_path / "pipe"), 4) == b""


def test_devices(tmp_path: Path) -> None:
    SYSTEM.open_device("/dev/null")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="no character device"):
        SYSTEM.open_device(str(tmp_path / "file"))
    with pytest.raises(FileNotFoundError):
        SYSTEM.open_device(str(tmp_path / "none"))


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    system: System = SYSTEM
    assert system.release() == os.uname().release
    assert b"processor" in system.read("/proc/cpuinfo", 100)
    assert system.built() < system.now()
    assert abs(system.now() - datetime.now(UTC)).total_seconds() < 5
    monkeypatch.setenv("QEMU", sys.executable)
    assert system.qemu() == sys.executable
    monkeypatch.setenv("QEMU", "/none")
    assert system.qemu() is None


def test_quote_and_registers_of_no_td(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = RealSystem(TsmProvider(RealFs(tmp_path / "none")))
    with pytest.raises(ProviderAbsent):
        absent.quote(bytes(64))
    assert isinstance(SYSTEM.provider, TsmProvider)
    assert SYSTEM.provider.patience == doctor_system.PATIENCE_SECONDS

    def shown() -> None:
        raise ProviderAbsent("none")

    monkeypatch.setattr(doctor_system, "read_registers", shown)
    with pytest.raises(ProviderAbsent):
        SYSTEM.registers()


def test_sockets(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        with pytest.raises(ConnectionRefusedError):
            SYSTEM.connect_unix(path)
        listener.listen()
        SYSTEM.connect_unix(path)
        with listener.accept()[0] as connection:
            assert connection.recv(1) == b""


def test_vsock_is_the_machines_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(RealSystem, "_connect", lambda _, *found: seen.append(found))
    SYSTEM.connect_vsock(4050)
    assert seen == [(socket.AF_VSOCK, (1, 4050))]


def test_run() -> None:
    program = "import sys; print('out'); print('err', file=sys.stderr)"
    assert sorted(SYSTEM.run([sys.executable, "-c", program]).split()) == ["err", "out"]
    with pytest.raises(FileNotFoundError):
        SYSTEM.run(["/none"])


def test_run_inherits_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "secret")
    assert "secret" not in SYSTEM.run(["/usr/bin/env"])


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii").split()[2] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_run_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In time, with what it started; and in size."""
    monkeypatch.setattr(doctor_system, "RUN_SECONDS", 0.5)
    program = (
        "import os, subprocess, sys; "
        "child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True); child.wait()"
    )
    started = time.monotonic()
    child = int(SYSTEM.run([sys.executable, "-c", program]))
    assert time.monotonic() - started < 10
    # Killed, which may take a moment, and perhaps not yet collected by whoever inherited it.
    while is_running(child):
        assert time.monotonic() - started < 10
        time.sleep(0.01)
    endless = "import sys\nwhile True: sys.stdout.write('y' * 4096)"
    assert len(SYSTEM.run([sys.executable, "-c", endless])) == doctor_system._MAX_OUTPUT


class Answers(BaseHTTPRequestHandler):
    """By the port's attribute `date`: its text, none, or no answer at all."""

    def do_HEAD(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        server.seen.append((self.path, self.headers.get("Authorization")))
        if server.date is None:
            server.done.wait(20)
            return
        self.send_response_only(404)
        if server.date:
            self.send_header("Date", server.date)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    date: str | None = "Thu, 01 Jan 2026 00:00:00 GMT"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.seen: list[tuple[str, str | None]] = []
        self.done = threading.Event()

    @property
    def url(self) -> str:
        return f"http://user:secret@127.0.0.1:{self.server_port}/secret?secret#secret"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.05,))
        thread.start()
        yield made
        made.done.set()
        made.shutdown()
        thread.join()


def test_http_date(server: Server) -> None:
    """Whatever the status; and neither path nor password go to who has not proved his name."""
    assert SYSTEM.http_date(server.url) == datetime(2026, 1, 1, tzinfo=UTC)
    assert server.seen == [("/", None)]
    server.date = "Thu, 01 Jan 2026 00:00:00 -0000"
    assert SYSTEM.http_date(server.url) == datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "date", ["", "noon", "Fri, 31 Dec 9999 23:00:00 -2300", "Thu, 01 Jan 99999999999 00:00:00 GMT"]
)
def test_no_date(server: Server, date: str) -> None:
    server.date = date
    with pytest.raises(OSError):  # noqa: PT011  # any text will do
        SYSTEM.http_date(server.url)


def test_no_answer(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_system, "HTTP_SECONDS", 0.3)
    server.date = None
    with pytest.raises(TimeoutError, match="no answer"):
        SYSTEM.http_date(server.url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "ftp://host/", "http://[", "", "x"])
def test_no_service(url: str) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011  # any text will do
        SYSTEM.http_date(url)
    assert str(caught.value)
