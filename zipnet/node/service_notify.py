"""What a service manager is told of a node: sd_notify(3), one datagram a message."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from typing import Self

SOCKET = "NOTIFY_SOCKET"


class Readiness:
    """Says that a node is ready, what it does, and that it stops.

    `address` is a path, or an abstract name that begins with `@`; empty for no service manager.
    `shown` gets each new status, for people.
    """

    __slots__ = ("_address", "_last", "_shown")

    def __init__(self, address: str = "", shown: Callable[[str], None] | None = None) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._last = ""
        self._shown = shown

    @classmethod
    def of_environment(cls, shown: Callable[[str], None] | None = None) -> Self:
        """As NOTIFY_SOCKET names it."""
        return cls(os.environ.get(SOCKET, ""), shown)

    def ready(self, status: str) -> None:
        """The node takes part."""
        self._show(status)
        self._say("READY=1", _status(status))

    def status(self, status: str) -> None:
        """What the node does now, in a few words; told once until it changes."""
        if status != self._last:
            self._show(status)
            self._say(_status(status))

    def stopping(self) -> None:
        """The node is about to end."""
        self._show("stopping")
        self._say("STOPPING=1", _status("stopping"))

    def _show(self, status: str) -> None:
        if self._shown is not None and status != self._last:
            self._shown(status)
        self._last = status

    def _say(self, *lines: str) -> None:
        if not self._address:
            return
        # A service manager that does not listen is no reason to stop.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to,
        ):
            to.setblocking(False)
            to.sendto("\n".join(lines).encode(), self._address)


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())
