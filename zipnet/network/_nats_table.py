"""A table in a stream that keeps the last message of each subject."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

from zipnet.errors import Conflict, EngineError, LogBroken, Unavailable
from zipnet.network._nats_log import MESSAGE_ID
from zipnet.network._nats_source import ConsumerSource, PublicSource, Source
from zipnet.network._nats_stream import (
    AGAIN,
    CALL_SECONDS,
    WRONG_SEQUENCE,
    WRONG_SEQUENCE_RACE,
    Refusal,
    Stored,
    Stream,
)
from zipnet.network.base import (
    Item,
    check_number,
    check_prefix,
    check_size,
    check_table_key,
    check_ttl,
)

# How long it is remembered that a value was deleted or has expired, for those who watch.
MARKER_SECONDS = 3600
_DELETE = {"KV-Operation": "DEL", "Nats-TTL": f"{24 * 3600}s"}
_GONE = frozenset(("DEL", "PURGE"))
_EXPECT = "Nats-Expected-Last-Subject-Sequence"


class NatsTable:
    """A `Table`; the subject of a key is `prefix` and the key."""

    def __init__(
        self, stream: Stream, prefix: str, announced: str, guest: Callable[[], None]
    ) -> None:
        self._stream = stream
        self._prefix = prefix
        self._announced = announced
        self._check_member = guest

    async def get(self, key: str) -> Item | None:
        """As `Table.get`; what a guest gets may be from a little while ago."""
        check_table_key(key)
        last = await self._last(key)
        return None if last is None or gone(last) else Item(key, last.data, last.seq)

    async def put(
        self,
        key: str,
        value: bytes,
        *,
        expect: int | None = None,
        ttl: int | None = None,
        deadline: float = 10.0,
    ) -> int:
        """As `Table.put`."""
        check_table_key(key)
        check_size(value, self._stream.connection.max_message)
        check_ttl(ttl)
        headers = {} if ttl is None else {"Nats-TTL": f"{ttl}s"}
        return await self._write(key, bytes(value), headers, expect, deadline)

    async def delete(self, key: str, *, expect: int | None = None) -> None:
        """As `Table.delete`."""
        check_table_key(key)
        await self._write(key, None, _DELETE, expect, CALL_SECONDS)

    def watch(self, prefix: str = "") -> _Watch:
        """As `Table.watch`."""
        return _Watch(self._stream, self._prefix, check_prefix(prefix), self._announced)

    async def _last(self, key: str) -> Stored | None:
        try:
            return await self._stream.last(self._prefix + key)
        except LogBroken as error:
            raise missing(self._stream) from error

    async def _write(
        self,
        key: str,
        value: bytes | None,
        headers: dict[str, str],
        expect: int | None,
        deadline: float,
    ) -> int:
        """Store under the condition of `expect`, None to delete what is there."""
        if expect is not None:
            check_number(expect, "table.expect")
        self._check_member()
        own = secrets.token_hex(16)
        headers = {**headers, MESSAGE_ID: own}
        async with self._stream.connection.limit(deadline):
            while True:
                if expect is not None or value is None:
                    # An earlier try of this very call may have succeeded.
                    last = await self._last(key)
                    if last is not None and last.headers.get(MESSAGE_ID) == own:
                        return last.seq
                    rev = 0 if last is None or gone(last) else last.seq
                    if expect not in (None, rev):
                        raise _conflict(expect, rev)
                    if value is None and rev == 0:
                        return 0
                    headers[_EXPECT] = str(0 if last is None else last.seq)
                answer = await self._stream.publish(self._prefix + key, value or b"", headers)
                if isinstance(answer, int):
                    return answer
                if answer is not None:
                    await self._judge(answer)
                await asyncio.sleep(AGAIN)

    async def _judge(self, refusal: Refusal) -> None:
        """Return if the same should be tried again."""
        if refusal.number == 0 and self._stream.managed:
            try:
                await self._stream.state()
            except LogBroken as error:
                raise missing(self._stream) from error
        if not (refusal.transient or refusal.number in (WRONG_SEQUENCE, WRONG_SEQUENCE_RACE)):
            raise EngineError(
                "the engine does not take the value",
                got=ascii(f"{refusal.number}: {refusal.text[:200]}"),
                rule="table.refused",
                hint="see the log of the node",
            )


class _Watch:
    def __init__(self, stream: Stream, prefix: str, wanted: str, announced: str) -> None:
        self._stream = stream
        self._prefix = prefix
        self._wanted = prefix + wanted
        self._shown: set[str] = set()
        self._source: Source = (
            ConsumerSource(stream, 0, self._begin)
            if stream.managed
            else PublicSource(stream, announced, 0)
        )

    def __aiter__(self) -> _Watch:
        return self

    async def __anext__(self) -> Item:
        while True:
            found = await self._source.next()
            if not found.subject.startswith(self._wanted):
                continue
            key = found.subject.removeprefix(self._prefix)
            if not gone(found):
                self._shown.add(key)
                return Item(key, found.data, found.seq)
            if key in self._shown:
                self._shown.remove(key)
                return Item(key, None, found.seq)

    async def _begin(self, after: int) -> int:
        try:
            state = await self._stream.state()
        except LogBroken as error:
            raise missing(self._stream) from error
        # Made anew meanwhile: show what is there now.
        return 0 if after > state.last else after


def gone(found: Stored) -> bool:
    """Whether a message says that a value was deleted or has expired."""
    return found.headers.get("KV-Operation") in _GONE or "Nats-Marker-Reason" in found.headers


def missing(stream: Stream) -> Unavailable:
    """What is raised where a table is gone."""
    return Unavailable(
        f"the table {stream.name} is gone",
        rule="table.missing",
        hint="somebody with rights on the bus has deleted it; a restart makes it anew",
    )


def _conflict(expect: int | None, actual: int) -> Conflict:
    return Conflict(
        "the value has another revision",
        actual=actual,
        expected=str(expect),
        got=str(actual),
        rule="table.expect",
        hint="read the value, and decide again",
    )
