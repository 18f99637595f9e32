"""A log in a stream."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from zipnet.errors import Conflict, EngineError, Lagged, LogBroken
from zipnet.network._nats_source import ConsumerSource, PublicSource, Source
from zipnet.network._nats_stream import (
    AGAIN,
    SETTLE,
    WRONG_SEQUENCE,
    WRONG_SEQUENCE_RACE,
    Refusal,
    State,
    Stored,
    Stream,
)
from zipnet.network.base import Entry, check_log_key, check_number, check_size

MESSAGE_ID = "Nats-Msg-Id"
_LAST = re.compile(r"wrong last sequence: (\d{1,20})")


class NatsLog:
    """A `Log`. `announced` is where others than members hear of new entries."""

    def __init__(
        self, stream: Stream, subject: str, announced: str, guest: Callable[[], None]
    ) -> None:
        self._stream = stream
        self._subject = subject
        self._announced = announced
        self._check_member = guest

    async def append(
        self, data: bytes, *, key: str, expect: int | None = None, deadline: float = 10.0
    ) -> int:
        """As `Log.append`."""
        check_log_key(key)
        check_size(data, self._stream.connection.max_message)
        headers = {MESSAGE_ID: key}
        if expect is not None:
            headers["Nats-Expected-Last-Sequence"] = str(check_number(expect, "append.expect"))
        self._check_member()
        data = bytes(data)
        async with self._stream.connection.limit(deadline):
            while True:
                answer = await self._stream.publish(self._subject, data, headers)
                if isinstance(answer, int):
                    return answer
                if answer is not None:
                    seq = await self._judge(answer, key, expect)
                    if seq is not None:
                        return seq
                await asyncio.sleep(AGAIN)

    def read(self, after: int = 0) -> _Reader:
        """As `Log.read`."""
        return _Reader(self._stream, self._announced, check_number(after, "log.after"))

    async def bounds(self) -> tuple[int, int]:
        """As `Log.bounds`."""
        if self._stream.managed:
            state = await self._stream.state()
            return state.first, state.last
        page = await self._stream.page(0)
        last = await self._stream.direct(self._subject)
        first = page[0].seq if page else 1
        return first, max(first - 1, last.seq if last else 0)

    async def trim(self, upto: int) -> None:
        """As `Log.trim`."""
        self._check_member()
        first, last = await self.bounds()
        # Beyond, the engine would jump ahead; below, old versions drop all.
        if first <= upto <= last:
            answer = await self._stream.call("STREAM.PURGE", {"seq": upto + 1})
            if isinstance(answer, Refusal):
                await self._stream.state()
                self._stream.refuse(answer)

    async def _judge(self, refusal: Refusal, key: str, expect: int | None) -> int | None:
        """The number of our own entry, or None if the same should be tried again."""
        if refusal.number in (WRONG_SEQUENCE, WRONG_SEQUENCE_RACE) and expect is not None:
            return await self._own(refusal, key, expect)
        if refusal.number == 0:
            # Nobody takes it: there is no leader now, or no such stream.
            await self._stream.state()
        if refusal.transient:
            return None
        raise EngineError(
            "the engine does not take the entry",
            got=ascii(f"{refusal.number}: {refusal.text[:200]}"),
            rule="append.refused",
            hint="see the log of the node",
        )

    async def _own(self, refusal: Refusal, key: str, expect: int) -> int | None:
        # An earlier try of this very call may have succeeded: then our entry is the next one.
        there = await self._stream.get({"seq": expect + 1})
        if there is not None and there.headers.get(MESSAGE_ID) == key:
            return there.seq
        match = _LAST.search(refusal.text)
        actual = int(match[1]) if match else None
        if there is None:
            state = await self._stream.state()
            if state.last <= expect and (actual is None or actual > expect):
                return None  # another entry is on its way to this place, or ours is
            actual = state.last
        raise Conflict(
            "the log has another end",
            actual=actual,
            expected=str(expect),
            got=str(actual),
            rule="append.expect",
            hint="read the log up to its end, and decide again",
        )


class _Reader:
    def __init__(self, stream: Stream, announced: str, after: int) -> None:
        self._stream = stream
        self._seen = after
        self._created = ""
        self._ahead: Stored | None = None
        self._source: Source = (
            ConsumerSource(stream, after, self._begin)
            if stream.managed
            else PublicSource(stream, announced, after)
        )

    def __aiter__(self) -> _Reader:
        return self

    async def __anext__(self) -> Entry:
        if self._ahead is None:
            self._ahead = await self._source.next()
        found = self._ahead
        if found.seq != self._seen + 1:
            found = await self._missed(found)
        else:
            self._ahead = None
        self._seen = found.seq
        return Entry(found.seq, found.headers.get(MESSAGE_ID, ""), found.data)

    async def _begin(self, after: int) -> int:
        """Raise what is wrong with the log, if a consumer from here on would not say."""
        for pause in (*SETTLE, 0.0):
            state = await self._stream.state()
            if self._created not in ("", state.created):
                raise LogBroken(
                    f"the log {self._stream.name} was made anew",
                    expected=f"the one of {self._created}",
                    got=f"one of {state.created}",
                    rule="log.replaced",
                    hint="stop this node; somebody with rights on the bus has replaced the log",
                )
            self._created = state.created
            if after <= state.last:
                if after + 1 < state.first:
                    raise self._lagged(state.first)
                return after
            await asyncio.sleep(pause)
        raise LogBroken(
            f"the log {self._stream.name} is shorter than it was",
            expected=f"entry {after}",
            got=f"an end at {state.last}",
            rule="log.short",
            hint="stop this node; the log was replaced or rolled back",
        )

    async def _missed(self, ahead: Stored) -> Stored:
        """The next entry, which did not come; `ahead` did."""
        if not self._stream.managed:
            raise self._lagged(ahead.seq)
        found = await self._stream.get({"seq": self._seen + 1})
        if found is not None and found.seq == self._seen + 1:
            return found
        state: State = await self._stream.state()
        if state.first > self._seen + 1:
            raise self._lagged(state.first)
        raise LogBroken(
            f"the log {self._stream.name} has a gap",
            expected=f"entry {self._seen + 1} of {state.last}",
            rule="log.gap",
            hint="stop this node; entries were removed",
        )

    def _lagged(self, first: int) -> Lagged:
        return Lagged(
            f"the log {self._stream.name} was trimmed beyond this reader",
            missed=first - 1 - self._seen,
            expected=f"entry {self._seen + 1}",
            got=f"{first} as the first one",
            rule="log.trimmed",
            hint="start from a newer snapshot",
        )
