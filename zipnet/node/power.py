"""The power button of a guest: its host asks it to end, as with SIGTERM.

An ACPI button is an input device of the kernel. Its events are `struct input_event` of
linux/input.h: struct timeval, u16 type, u16 code, s32 value; reads give whole ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

CLASS = "sys/class/input"
DEVICES = "dev/input"
NAME = "Power Button"
# linux/input-event-codes.h
EV_KEY, KEY_POWER, PRESSED = 1, 116, 1

_EVENT = struct.Struct("llHHi")
_MAX_NAME = 256

log = logging.getLogger("zipnet.service")


def buttons(root: Path = Path("/")) -> tuple[Path, ...]:
    """The devices of power buttons: a machine may have two, or none."""
    found = []
    for path in sorted((root / CLASS).glob("event*/device/name")):
        with contextlib.suppress(OSError), path.open("rb") as file:
            if file.read(_MAX_NAME).strip() == NAME.encode():
                found.append(root / DEVICES / path.parent.parent.name)
    return tuple(found)


@contextlib.contextmanager
def watching(root: Path, pressed: Callable[[], None]) -> Iterator[None]:
    """Call `pressed` for each press, until the context is left. A button that fails is logged."""
    with contextlib.ExitStack() as stack:
        for path in buttons(root):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:
                log.warning("the power button can't be read: %s", error)
                continue
            stack.callback(os.close, descriptor)
            stack.enter_context(_reading(descriptor, pressed))
        yield


@contextlib.contextmanager
def _reading(descriptor: int, pressed: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()

    def read() -> None:
        try:
            raw = os.read(descriptor, 64 * _EVENT.size)
        except BlockingIOError:
            return
        except OSError:
            raw = b""
        if len(raw) % _EVENT.size or not raw:
            log.warning("the power button is gone")
            loop.remove_reader(descriptor)
            return
        for *_, kind, code, value in _EVENT.iter_unpack(raw):
            if (kind, code, value) == (EV_KEY, KEY_POWER, PRESSED):
                pressed()

    loop.add_reader(descriptor, read)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
