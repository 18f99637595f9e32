"""Metrics over HTTP: `GET /metrics`, one request a connection, and nothing else.

No library: what is scraped is one text, and a parser of HTTP would be more code to trust in a guest
than what is needed to answer one request line.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from zipnet.errors import NoNetwork

PATH = "/metrics"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# All of a request: its line and its headers.
MAX_REQUEST = 8192
MAX_CONNECTIONS = 16
# A node that is told to end waits for an open connection no longer.
SECONDS = 2.0


@contextlib.asynccontextmanager
async def serve(host: str, port: int, text: Callable[[], str]) -> AsyncIterator[int]:
    """Answer scrapes until the context is left; gives the port, which is chosen if it was 0.

    Who connects while MAX_CONNECTIONS are open, says nothing for SECONDS, or says more than
    MAX_REQUEST bytes, is cut off. Raises NoNetwork if the address can't be had.
    """
    open_now = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now
        open_now += 1
        try:
            if open_now <= MAX_CONNECTIONS:
                async with asyncio.timeout(SECONDS):
                    writer.write(_response(await _request(reader), text))
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


def _response(line: bytes, text: Callable[[], str]) -> bytes:
    method, _, rest = line.partition(b" ")
    target, _, version = rest.partition(b" ")
    if version not in (b"HTTP/1.0", b"HTTP/1.1"):
        return _message("400 Bad Request", "this is no HTTP/1.1 request\n")
    if target.partition(b"?")[0] != PATH.encode():
        return _message("404 Not Found", f"there is {PATH} only\n")
    if method != b"GET":
        return _message("405 Method Not Allowed", "GET only\n", "Allow: GET\r\n")
    return _message("200 OK", text(), kind=CONTENT_TYPE)


def _message(
    status: str, body: str, more: str = "", kind: str = "text/plain; charset=utf-8"
) -> bytes:
    raw = body.encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(raw)}\r\n"
        f"{more}Connection: close\r\n\r\n"
    )
    return head.encode("ascii") + raw
