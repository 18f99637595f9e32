"""The power button: which devices are ones, and which of their events end a guest."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.zipnet.test_preflight import put
from zipnet.node import appliance
from zipnet.node.power import buttons, watching
from zipnet.node.service import run
from zipnet.node.service_notify import Readiness

PRESS = struct.pack("llHHi", 1, 2, 1, 116, 1)
RELEASE = struct.pack("llHHi", 1, 2, 1, 116, 0)
OTHER_KEY = struct.pack("llHHi", 1, 2, 1, 28, 1)
SYNC = struct.pack("llHHi", 1, 2, 0, 0, 0)


def named(root: Path, event: str, name: bytes) -> None:
    put(root, {f"sys/class/input/{event}/device/name": name})


@pytest.fixture
def button(tmp_path: Path) -> Iterator[int]:
    """The writing end of a pipe in the place of a device."""
    named(tmp_path, "event0", b"AT Translated Set 2 keyboard\n")
    named(tmp_path, "event1", b"Power Button\n")
    (tmp_path / "dev/input").mkdir(parents=True)
    os.mkfifo(tmp_path / "dev/input/event1")
    # Opened for both, so that it neither waits for a reader nor ends without one.
    descriptor = os.open(tmp_path / "dev/input/event1", os.O_RDWR | os.O_NONBLOCK)
    yield descriptor
    os.close(descriptor)


def test_which_devices(tmp_path: Path) -> None:
    assert buttons(tmp_path) == ()
    named(tmp_path, "event3", b"Power Button\n")
    named(tmp_path, "event0", b"Power Button")
    named(tmp_path, "event1", b"Power Button 2\n")
    named(tmp_path, "event2", b"")
    named(tmp_path, "input7", b"Power Button\n")
    (tmp_path / "sys/class/input/event4/device/name").mkdir(parents=True)
    assert buttons(tmp_path) == (tmp_path / "dev/input/event0", tmp_path / "dev/input/event3")


async def presses(root: Path, descriptor: int, *chunks: bytes) -> int:
    """How often the button was pressed, once the last press of `chunks` has been seen."""
    seen, done = 0, asyncio.Event()

    def pressed() -> None:
        nonlocal seen
        seen += 1
        done.set()

    with watching(root, pressed):
        for chunk in chunks:
            os.write(descriptor, chunk)
        async with asyncio.timeout(10):
            await done.wait()
    return seen


def test_presses(tmp_path: Path, button: int) -> None:
    others = (SYNC, RELEASE, OTHER_KEY)
    assert asyncio.run(presses(tmp_path, button, *others, PRESS + SYNC)) == 1
    assert asyncio.run(presses(tmp_path, button, PRESS + SYNC + RELEASE + PRESS)) == 2
    # After the watch nobody reads.
    os.write(button, PRESS)


def test_a_button_that_is_gone(
    tmp_path: Path, button: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        with watching(tmp_path, lambda: None):
            os.write(button, PRESS[:7])
            async with asyncio.timeout(10):
                while "is gone" not in caplog.text:
                    await asyncio.sleep(0)

    asyncio.run(body())


def test_a_button_that_can_not_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    named(tmp_path, "event1", b"Power Button\n")

    async def body() -> None:
        with watching(tmp_path, lambda: None):
            assert "can't be read" in caplog.text

    asyncio.run(body())


def test_it_ends_as_sigterm_does(
    tmp_path: Path, button: int, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[str] = []

    async def node(_readiness: Readiness) -> None:
        with watching(tmp_path, appliance._end):
            os.write(button, PRESS)
            await asyncio.Event().wait()

    assert run(node, Readiness(shown=shown.append)) == 0
    assert shown == ["stopping"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert "the power button was pressed" in capsys.readouterr().err
