"""Metrics over HTTP: `GET /metrics`, one request a connection; in a guest its evidence beside them.

`GET /evidence/<64 hex digits>` answers the challenge with a bundle (`attestation.evidence`): one
quote at a time and one a second, whoever asks more is told so by status 503.

No library: what is scraped is one text, and a parser of HTTP would be more code to trust in a guest
than what is needed to answer one request line.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator, Callable

from attestation import evidence as proof
from attestation.errors import Explained
from zipnet.errors import NoNetwork

PATH = "/metrics"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# All of a request: its line and its headers.
MAX_REQUEST = 8192
MAX_CONNECTIONS = 16
# A node that is told to end waits for an open connection no longer, but for a quote.
SECONDS = 2.0
# From the end of one quote to the beginning of the next.
PAUSE_S = 1.0
CHALLENGE = re.compile(rb"[0-9a-f]{%d}" % (2 * proof.CHALLENGE_SIZE))

log = logging.getLogger("zipnet.service")

# The encoded bundle that answers a challenge of 32 bytes. It blocks; raises Explained.
Bundles = Callable[[bytes], bytes]


@contextlib.asynccontextmanager
async def serve(
    host: str, port: int, text: Callable[[], str], evidence: Bundles | None = None
) -> AsyncIterator[int]:
    """Answer scrapes until the context is left; gives the port, which is chosen if it was 0.

    Who connects while MAX_CONNECTIONS are open, says nothing for SECONDS, or says more than
    MAX_REQUEST bytes, is cut off. Raises NoNetwork if the address can't be had.
    """
    open_now = 0
    quotes = None if evidence is None else _Quotes(evidence)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now
        open_now += 1
        try:
            if open_now <= MAX_CONNECTIONS:
                async with asyncio.timeout(SECONDS):
                    line = await _request(reader)
                # A quote has its provider's own deadline, and a thread that nobody can stop.
                writer.write(await _response(line, text, quotes))
                async with asyncio.timeout(SECONDS):
                    await writer.drain()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            pass  # the other side's trouble
        finally:
            open_now -= 1
            writer.close()

    try:
        server = await asyncio.start_server(answer, host or None, port, limit=MAX_REQUEST)
    except OSError as error:
        raise NoNetwork(
            f"metrics can't be served on {host}:{port}",
            got=error.strerror or str(error),
            rule="metrics.listen",
            hint="choose another address by --metrics or ZIPNET_METRICS",
        ) from error
    async with server:
        yield server.sockets[0].getsockname()[1]


async def _request(reader: asyncio.StreamReader) -> bytes:
    """The request line, once all headers have come."""
    head = await reader.readuntil(b"\r\n\r\n")
    return head.partition(b"\r\n")[0]


class _Quotes:
    """Makes evidence, no faster than it may be asked for."""

    def __init__(self, bundle: Bundles) -> None:
        self._bundle = bundle
        self._busy = False
        self._next = 0.0

    async def answer(self, challenge: bytes) -> bytes:
        """The response to a challenge."""
        if self._busy or time.monotonic() < self._next:
            return _unavailable(f"one quote in {PAUSE_S:g} s: ask again")
        self._busy = True
        try:
            body = await asyncio.to_thread(self._bundle, challenge)
        except Explained as error:
            log.warning("no evidence: %s", error)
            return _unavailable(f"no quote can be had, by rule {error.rule}")
        finally:
            self._busy = False
            self._next = time.monotonic() + PAUSE_S
        return _message("200 OK", body, kind=proof.CONTENT_TYPE)


async def _response(line: bytes, text: Callable[[], str], quotes: _Quotes | None) -> bytes:
    method, _, rest = line.partition(b" ")
    target, _, version = rest.partition(b" ")
    if version not in (b"HTTP/1.0", b"HTTP/1.1"):
        return _message("400 Bad Request", b"this is no HTTP/1.1 request\n")
    path = target.partition(b"?")[0]
    asked = quotes is not None and path.startswith(proof.PATH.encode())
    if path != PATH.encode() and not asked:
        return _message("404 Not Found", f"there is {PATH} only\n".encode())
    if method != b"GET":
        return _message("405 Method Not Allowed", b"GET only\n", "Allow: GET\r\n")
    if quotes is None or not asked:
        return _message("200 OK", text().encode(), kind=CONTENT_TYPE)
    challenge = path.removeprefix(proof.PATH.encode())
    if not CHALLENGE.fullmatch(challenge):
        return _message("400 Bad Request", b"a challenge has 64 lower-case hex digits\n")
    return await quotes.answer(bytes.fromhex(challenge.decode()))


def _unavailable(why: str) -> bytes:
    return _message("503 Service Unavailable", f"{why}\n".encode(), "Retry-After: 1\r\n")


def _message(
    status: str, raw: bytes, more: str = "", kind: str = "text/plain; charset=utf-8"
) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(raw)}\r\n"
        f"{more}Connection: close\r\n\r\n"
    )
    return head.encode("ascii") + raw
