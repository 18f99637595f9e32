"""A connection to whichever of the servers can be reached, and requests over it.

When a server is lost another one is taken, and all subscriptions are made again there. Whatever
came meanwhile is lost, and each subscription is told so. Nothing is kept to be sent later: a call
waits for a connection, to its own deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import ssl
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from zipnet.errors import Denied, EngineError, EngineMisconfigured, Unavailable
from zipnet.network._hub import closed
from zipnet.network._nats_wire import HEADER_ROOM, Credentials, Raw, Wire, unavailable

PING_SECONDS = 3.0
PINGS = 3
ATTEMPT_SECONDS = 5.0
LEAST_PAUSE, MOST_PAUSE = 0.05, 1.0
# Subjects of which is remembered that they were allowed.
MAX_ALLOWED = 4096

log = logging.getLogger("zipnet.nats")


class Feed(Protocol):
    """Who hears the messages of a subscription. Its methods must be quick, and must not raise."""

    def take(self, message: Raw) -> None:
        """A message."""
        ...

    def lost(self) -> None:
        """What comes from now on is lost."""
        ...

    def restored(self) -> None:
        """What comes from now on is heard again."""
        ...

    def failed(self, error: EngineError) -> None:
        """Nothing will ever come: closed, or no longer allowed."""
        ...


@dataclass(eq=False, slots=True)
class _Subscription:
    subject: str
    # So that a reader that was abandoned goes away.
    feed: weakref.ref[Feed]
    leave: Callable[[], Awaitable[None]] | None = None


class Inquiry:
    """A question, of which one or more answers are awaited."""

    __slots__ = ("__weakref__", "_answers", "_error", "_wake", "subject")

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self._answers: deque[Raw] = deque()
        self._error: EngineError | None = None
        self._wake = asyncio.Event()

    async def next(self) -> Raw:
        """The next answer. Raises Denied, Unavailable; waits without end."""
        while not self._answers:
            if self._error is not None:
                raise self._error
            self._wake.clear()
            await self._wake.wait()
        return self._answers.popleft()

    def take(self, message: Raw) -> None:
        """An answer."""
        self._answers.append(message)
        self._wake.set()

    def fail(self, error: EngineError) -> None:
        """No more answers."""
        self._error = self._error or error
        self._wake.set()


class _Answers:
    """The feed of all answers: each question has an inbox of its own under one subject."""

    def __init__(self, prefix: str) -> None:
        self.prefix = f"{prefix}.{secrets.token_hex(8)}"
        self.inquiries: weakref.WeakValueDictionary[str, Inquiry] = weakref.WeakValueDictionary()

    def open(self, subject: str) -> tuple[str, Inquiry]:
        """An inbox, and where its answers come out."""
        token, inquiry = secrets.token_hex(8), Inquiry(subject)
        self.inquiries[token] = inquiry
        return f"{self.prefix}.{token}", inquiry

    def take(self, message: Raw) -> None:
        inquiry = self.inquiries.get(message.subject.rpartition(".")[2])
        if inquiry is not None:
            inquiry.take(message)

    def lost(self) -> None:
        self.failed(unavailable("the connection was lost before the answer"))

    def restored(self) -> None:
        """Questions are asked again by whoever asked."""

    def failed(self, error: EngineError) -> None:
        for inquiry in list(self.inquiries.values()):
            inquiry.fail(error)

    def refused(self, subject: str) -> None:
        """A question to this subject (in lower case) is not allowed."""
        for inquiry in list(self.inquiries.values()):
            if inquiry.subject.lower() == subject:
                inquiry.fail(denied("publish", inquiry.subject))


@dataclass(eq=False, slots=True)
class _Doubt:
    """Whether the server has complained about a subject while somebody looked."""

    kind: str
    subject: str
    denied: bool = field(default=False)


class Connection:
    """Made by `open`. `max_message` is the first server's; no other may have less."""

    def __init__(
        self,
        urls: Sequence[str],
        credentials: Credentials,
        tls: ssl.SSLContext | None,
        inbox: str,
    ) -> None:
        self._urls = tuple(urls)
        self._credentials = credentials
        self._tls = tls
        self._answers = _Answers(inbox)
        self._subscriptions: list[_Subscription] = []
        self._doubts: set[_Doubt] = set()
        self._leaving: set[asyncio.Future[None]] = set()
        self._wire: Wire | None = None
        self._why: EngineError = unavailable("not yet")
        self._change = asyncio.Event()
        self._closed = False
        self._keeper: asyncio.Task[None] | None = None
        self.max_message = 0

    @classmethod
    async def open(
        cls,
        urls: Sequence[str],
        credentials: Credentials,
        *,
        tls: ssl.SSLContext | None,
        inbox: str,
        timeout: float,
    ) -> Connection:
        """Connect to one of the servers; inboxes begin with `inbox`.

        Raises Denied if one of them refuses this node and no other takes it, EngineMisconfigured,
        Unavailable.
        """
        connection = cls(urls, credentials, tls, inbox)
        answers = connection._answers
        connection._subscriptions.append(_Subscription(f"{answers.prefix}.*", weakref.ref(answers)))
        try:
            async with asyncio.timeout(timeout):
                await connection._connect(patient=False)
        except TimeoutError:
            raise connection._why from None
        finally:
            if connection._wire is None:
                await connection.close()
        connection._keeper = asyncio.create_task(connection._keep())
        return connection

    @property
    def refused(self) -> bool:
        """Whether this node was in, and the servers don't let it in again."""
        return self._wire is None and isinstance(self._why, Denied)

    def check(self) -> None:
        """Raises Unavailable once it was closed."""
        if self._closed:
            raise closed()

    async def wire(self) -> Wire:
        """The connection to a server, as soon as there is one. Raises Unavailable if closed."""
        while True:
            self.check()
            if self._wire is not None:
                return self._wire
            self._change.clear()
            await self._change.wait()

    async def publish(
        self, subject: str, data: bytes, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Publish, whether or not it is allowed. Raises Unavailable."""
        await (await self.wire()).publish(subject, data, reply, headers)

    async def send(self, subject: str, data: bytes, seconds: float) -> None:
        """Publish, and know that it is allowed. Raises Denied, Unavailable."""
        async with self.limit(seconds):
            wire = await self.wire()
            if subject in wire.allowed:
                await wire.publish(subject, data)
                return
            with self._doubt("publish", subject) as doubt:
                await wire.publish(subject, data)
                await wire.flush()
            if doubt.denied:
                raise denied("publish", subject)
            if len(wire.allowed) < MAX_ALLOWED:
                wire.allowed.add(subject)

    async def inquire(
        self, subject: str, data: bytes, headers: dict[str, str] | None = None
    ) -> Inquiry:
        """Ask, and return where the answers come out. Raises Unavailable."""
        inbox, inquiry = self._answers.open(subject)
        await self.publish(subject, data, inbox, headers)
        return inquiry

    async def request(
        self, subject: str, data: bytes, seconds: float, headers: dict[str, str] | None = None
    ) -> Raw:
        """Ask, and return the first answer. Raises Denied, Unavailable."""
        async with self.limit(seconds):
            return await (await self.inquire(subject, data, headers)).next()

    def inbox(self) -> str:
        """A subject for answers, of which nobody else knows."""
        return f"{self._answers.prefix}.{secrets.token_hex(8)}.pull"

    async def subscribe(self, subject: str, feed: Feed, seconds: float) -> Callable[[], None]:
        """Let `feed` hear messages from now on, until what is returned is called.

        The connection does not keep `feed` alive. Raises Denied, Unavailable.
        """
        subscription = _Subscription(subject, weakref.ref(feed))
        try:
            async with self.limit(seconds):
                wire = await self.wire()
                # Not before: all that are there are made again with a new connection.
                self._subscriptions.append(subscription)
                with self._doubt("subscription", subject) as doubt:
                    await self._subscribe(wire, subscription)
                    await wire.flush()
        except BaseException:
            self._remove(subscription)
            raise
        if doubt.denied:
            self._remove(subscription)
            raise denied("subscription", subject)
        return lambda: self._remove(subscription)

    @contextlib.asynccontextmanager
    async def limit(self, seconds: float) -> AsyncIterator[None]:
        """Turn the end of patience into what is known of the connection."""
        self.check()
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            self.check()
            if self.refused:
                raise self._why from None
            raise late(seconds) from None

    async def close(self) -> None:
        """End it; whoever waits gets Unavailable. Twice is once."""
        if self._closed:
            return
        self._closed = True
        self._change.set()
        for subscription in self._subscriptions:
            feed = subscription.feed()
            if feed is not None:
                feed.failed(closed())
        self._subscriptions.clear()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._wire is not None:
            wire, self._wire = self._wire, None
            await wire.close()
        await asyncio.gather(*self._leaving, return_exceptions=True)

    async def _connect(self, *, patient: bool) -> None:
        """Connect to any server, with all subscriptions; if `patient`, whatever servers say."""
        pause = LEAST_PAUSE
        while self._wire is None:
            try:
                self._wire = await self._attempt()
            except EngineError as error:
                self._why = error
                if not patient and not isinstance(error, Unavailable):
                    raise
                await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311
                pause = min(2 * pause, MOST_PAUSE)
        for subscription in self._subscriptions:
            feed = subscription.feed()
            if feed is not None:
                feed.restored()
        self._change.set()

    async def _attempt(self) -> Wire:
        """Try each server once. Raises what tells most."""
        errors: list[EngineError] = []
        for url in random.sample(self._urls, len(self._urls)):
            try:
                wire = await Wire.open(
                    url, self._credentials, self._tls, ATTEMPT_SECONDS, self._refused
                )
            except EngineError as error:
                errors.append(error)
                self._why = error
                continue
            try:
                await self._take_over(wire)
            except BaseException:
                await wire.drop()
                raise
            return wire
        raise min(errors, key=_order)

    async def _take_over(self, wire: Wire) -> None:
        if wire.max_message < self.max_message:
            raise EngineMisconfigured(
                "the servers have different limits",
                expected=f"max_payload of {self.max_message + HEADER_ROOM} bytes, as another has",
                got=f"{wire.max_message + HEADER_ROOM} at {wire.server}",
                rule="nats.max-payload",
                hint="give all nodes the same `max_payload`",
            )
        self.max_message = self.max_message or wire.max_message
        self._subscriptions = [one for one in self._subscriptions if one.feed() is not None]
        async with self.limit(ATTEMPT_SECONDS):
            for subscription in self._subscriptions:
                await self._subscribe(wire, subscription)
            await wire.flush()

    async def _keep(self) -> None:
        while True:
            try:
                if self._wire is not None:
                    wire = self._wire
                    await wire.ended(PING_SECONDS, PINGS)
                    self._lose(wire)
                    await wire.drop()
                await self._connect(patient=True)
            except Exception:
                log.exception("the connection could not be made again, trying on")
                await asyncio.sleep(MOST_PAUSE)

    def _lose(self, wire: Wire) -> None:
        self._wire, self._why = None, wire.why()
        log.warning("lost the connection to %s: %s", wire.server, self._why)
        for subscription in self._subscriptions:
            feed = subscription.feed()
            if feed is not None:
                feed.lost()

    async def _subscribe(self, wire: Wire, subscription: _Subscription) -> None:
        def take(message: Raw) -> None:
            feed = subscription.feed()
            if feed is None:
                self._remove(subscription)
            else:
                feed.take(message)

        subscription.leave = await wire.subscribe(subscription.subject, take)

    def _remove(self, subscription: _Subscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
        if subscription.leave is not None:
            task = asyncio.ensure_future(subscription.leave())
            subscription.leave = None
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    def _refused(self, kind: str, subject: str) -> None:
        """The server's complaint; it gives the subject in lower case."""
        for doubt in self._doubts:
            doubt.denied |= (doubt.kind, doubt.subject.lower()) == (kind, subject)
        if kind == "publish":
            self._answers.refused(subject)
            return
        for subscription in self._subscriptions:
            feed = subscription.feed()
            if feed is not None and subscription.subject.lower() == subject:
                feed.failed(denied(kind, subscription.subject))

    @contextlib.contextmanager
    def _doubt(self, kind: str, subject: str) -> Iterator[_Doubt]:
        doubt = _Doubt(kind, subject)
        self._doubts.add(doubt)
        try:
            yield doubt
        finally:
            self._doubts.discard(doubt)


def late(seconds: float) -> Unavailable:
    """What is raised at the end of patience."""
    return Unavailable(
        "no answer in time",
        expected=f"one within {seconds:g} s",
        rule="deadline",
        hint="it may have happened: try again with the same key and bytes",
    )


def denied(kind: str, subject: str) -> Denied:
    """What is raised where the server lacks a permission for this node."""
    return Denied(
        "this node may not do that",
        got=f"{kind} {subject}",
        rule=f"permits.{kind}",
        hint="tell the operator which node this is, and what it needs",
    )


def _order(error: EngineError) -> int:
    return 0 if isinstance(error, Denied) else 1 if isinstance(error, EngineMisconfigured) else 2
