"""A node as a process: signals, errors, logs, and what a service manager hears."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from attestation.errors import FileUnreadable
from zipnet.errors import LogBroken, Refused, Shutdown, Unavailable
from zipnet.node import service
from zipnet.node.service import OneLine, cause, run
from zipnet.node.service_notify import Readiness

PATIENCE = 30.0


def group(*errors: Exception) -> ExceptionGroup[Exception]:
    return ExceptionGroup("several", list(errors))


def test_a_node_that_ends() -> None:
    async def node(_readiness: Readiness) -> None:
        await asyncio.sleep(0)

    assert run(node, Readiness()) == 0


def test_the_error_that_the_others_follow_from() -> None:
    first = Refused("not let in", rule="register.list")
    halted = LogBroken("this node has halted", rule="halted")
    ended = Shutdown("the client has ended", rule="ended")
    assert cause(group(halted, group(ended, first))) is first
    assert cause(group(halted, ended)) is halted
    assert cause(first) is first
    # A bug is never hidden behind what it broke.
    bug = KeyError("bug")
    assert cause(group(first, bug)) is bug


def test_a_group_is_raised_as_its_cause() -> None:
    async def node(_readiness: Readiness) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(refused())
            await asyncio.sleep(PATIENCE)

    async def refused() -> None:
        raise Refused("not let in", rule="register.list")

    with pytest.raises(Refused) as caught:
        run(node, Readiness())
    assert caught.value.rule == "register.list"


def test_an_error_of_the_system() -> None:
    async def node(_readiness: Readiness) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(FileUnreadable) as caught:
        run(node, Readiness())
    assert (caught.value.rule, caught.value.exit_code) == ("system", 3)
    assert "No space left" in caught.value.message


def test_a_line_is_a_line() -> None:
    record = logging.LogRecord("zipnet.x", logging.WARNING, "", 0, "a\nb%s", ("\r\nc",), None)
    record.created = 0.0
    assert OneLine().format(record) == "1970-01-01T00:00:00.000Z WARNING zipnet.x: a\\nb\\nc"


def test_logging_is_put_back() -> None:
    root = logging.getLogger()
    before = list(root.handlers), root.level
    with service.logged():
        assert len(root.handlers) == len(before[0]) + 1
    assert (list(root.handlers), root.level) == before


def test_what_the_service_manager_hears(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(PATIENCE)
        said = Readiness(str(path))
        said.ready("joined\nthe committee")
        assert manager.recv(1024) == b"READY=1\nSTATUS=joined the committee"
        said.status("round 1")
        said.status("round 1")
        said.stopping()
        assert manager.recv(1024) == b"STATUS=round 1"
        assert manager.recv(1024) == b"STOPPING=1\nSTATUS=stopping"


def test_an_abstract_socket() -> None:
    name = f"zipnet-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.settimeout(PATIENCE)
        Readiness(f"@{name}").ready("here")
        assert manager.recv(1024).startswith(b"READY=1\n")


def test_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Readiness(str(tmp_path / "gone")).ready("here")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    Readiness.of_environment().stopping()
    monkeypatch.delenv("NOTIFY_SOCKET")
    Readiness.of_environment().ready("here")


def test_metrics() -> None:
    async def scraped() -> bytes:
        async with service.measured(("127.0.0.1", 0), lambda: "zipnet_x 1\n") as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
            raw = await reader.read()
            writer.close()
            return raw

    assert asyncio.run(scraped()).endswith(b"\r\n\r\nzipnet_x 1\n")

    async def none() -> None:
        async with service.measured(None, str) as port:
            assert port is None

    asyncio.run(none())


# What a child does, once it has printed "up", and how it ends.
CHILD = """
import asyncio, sys
from zipnet.errors import Unavailable
from zipnet.node import service
service.GRACE_S = 1.0

async def node(readiness):
    print("up", flush=True)
    try:
        await asyncio.sleep(600)
    finally:
        {finally_}

sys.exit(service.run(node))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("finally_", "said"),
    [
        ("print('closed')", "closed"),
        ("raise Unavailable('gone', rule='closed')", "on the way out: gone"),
        ("await asyncio.sleep(600)", "still not done"),
        ("await asyncio.to_thread(__import__('time').sleep, 600)", "still not done"),
    ],
)
def test_signals(number: signal.Signals, finally_: str, said: str) -> None:
    code = textwrap.dedent(CHILD).format(finally_=finally_)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "up\n"
            begin = time.monotonic()
            child.send_signal(number)
            output = child.stdout.read()
            assert child.wait(PATIENCE) == 0
        finally:
            child.kill()
    assert time.monotonic() - begin < PATIENCE
    assert f"{number.name}: stopping" in output
    assert said in output


def test_a_cancelled_node_is_not_told_to_end() -> None:
    async def node(_readiness: Readiness) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        run(node, Readiness())


def test_unavailable_keeps_its_exit_code() -> None:
    async def node(_readiness: Readiness) -> None:
        raise Unavailable("no answer", rule="x")

    with pytest.raises(Unavailable) as caught:
        run(node, Readiness())
    assert caught.value.exit_code == 3
