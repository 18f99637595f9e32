"""Asking the committee: one server after another, until one answers."""

from __future__ import annotations

from collections.abc import Iterable

from zipnet.errors import EngineError, Protocol, Refused, Unavailable, ZipnetError
from zipnet.network.base import Channel
from zipnet.network.public import Answer, Ask, Request, server_topic


async def ask_any(
    channel: Channel, servers: Iterable[bytes], asker: bytes, ask: Ask, body: bytes
) -> bytes:
    """The first answer. `servers` and `asker` are ids.

    Raises Protocol for a refusal, Unavailable if no server answers.
    """
    request, everyone = Request(ask, body).encode(), list(servers)
    # Not always the same one first: each carries its share.
    start = int.from_bytes(asker[:2], "big") % len(everyone)
    last: ZipnetError | None = None
    for server in everyone[start:] + everyone[:start]:
        try:
            raw = await channel.ask(server_topic(server), request)
            return Answer.decode(raw).content_or_raise(f"server {server.hex()[:16]}")
        except EngineError as error:
            last = error
        except Refused as error:
            raise Protocol(error.message, rule=error.rule, hint=error.hint) from error
    raise Unavailable("no server answers", rule="ask", got=str(last)) from last
