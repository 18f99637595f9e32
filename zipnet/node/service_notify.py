"""What a service manager is told of a node: sd_notify(3), one datagram a message."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Self

SOCKET = "NOTIFY_SOCKET"


class Readiness:
    """Says that a node is ready, what it does, and that it stops. Says nothing without a socket.

    `address` is a path, or an abstract name that begins with `@`.
    """

    __slots__ = ("_address", "_last")

    def __init__(self, address: str = "") -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._last = ""

    @classmethod
    def of_environment(cls) -> Self:
        """As NOTIFY_SOCKET names it."""
        return cls(os.environ.get(SOCKET, ""))

    def ready(self, status: str) -> None:
        """The node takes part."""
        self._say("READY=1", _status(status))

    def status(self, status: str) -> None:
        """What the node does now, in a few words; told once until it changes."""
        if status != self._last:
            self._last = status
            self._say(_status(status))

    def stopping(self) -> None:
        """The node is about to end."""
        self._say("STOPPING=1", _status("stopping"))

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
