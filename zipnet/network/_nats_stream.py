"""A stream of NATS JetStream: what logs, tables and blobs are kept in, and what is asked of it.

Whoever may use the administration of streams opens them, or makes them as they must be; a stream
that is there with other settings is refused, never changed. Others read by direct requests, which
any replica answers, perhaps from a little while ago.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from zipnet.errors import Denied, EngineMisconfigured, LogBroken, Unavailable
from zipnet.network._nats_connection import Connection, late
from zipnet.network._nats_wire import Raw
from zipnet.network.base import DEDUP_SECONDS

API = "$JS.API"
# For calls of the port that have no deadline of their own.
CALL_SECONDS = 10.0
# One try of a request; a try that was lost with its server is not waited for longer.
TRY_SECONDS = 2.0
AGAIN = 0.05
# A leader that was just elected may not have applied all that was committed.
SETTLE = (0.1, 0.3, 0.6, 1.0)
NANOSECONDS = 10**9

BATCH = 256
BATCH_BYTES = 16 << 20

NO_RESPONDERS, END_OF_BATCH, NOT_FOUND = "503", "204", "404"
NO_MESSAGE, NO_STREAM, WRONG_SEQUENCE, WRONG_SEQUENCE_RACE = 10037, 10059, 10071, 10164
_OTHER_SETTINGS, _FULL = 10058, 10077
_NO_JETSTREAM = frozenset((10039, 10076))
_NO_PEERS, _NO_CLUSTER = 10005, 10074
_BUSY = frozenset((10158, 10167, _NO_PEERS))
_LASTING = frozenset((_FULL, _NO_CLUSTER, *_NO_JETSTREAM))


@dataclass(frozen=True, slots=True)
class Stored:
    """A message in a stream."""

    seq: int
    subject: str
    headers: Mapping[str, str] = field(repr=False)
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error of the server: an HTTP-like `code`, a `number` (0 for none) and a text."""

    code: int
    number: int
    text: str

    @property
    def transient(self) -> bool:
        """Whether the same may succeed in a moment."""
        if self.number in _LASTING:
            return False
        return self.number in _BUSY or self.code in (408, 429, 500, 503)


@dataclass(frozen=True, slots=True)
class State:
    """A stream's first and last number, as `Log.bounds`, and when it was made."""

    first: int
    last: int
    created: str


class Stream:
    """A stream by name. `managed` is whether this node may use its administration."""

    def __init__(self, connection: Connection, name: str, *, managed: bool) -> None:
        self.connection = connection
        self.name = name
        self.managed = managed

    async def open(self, settings: dict[str, Any], replicas: int) -> None:
        """Make the stream unless it is there. Raises EngineMisconfigured, Denied, Unavailable."""
        wanted = _settings(self.name, settings, replicas)
        try:
            found = await self.call("STREAM.INFO", {})
        except Denied:
            # A node that others opened it for, such as an aggregator.
            self.managed = False
            return
        if isinstance(found, Refusal) and found.number == NO_STREAM:
            found = await self.call("STREAM.CREATE", wanted)
        if isinstance(found, Refusal):
            self.refuse(found)
        there = _mapping(found.get("config"))
        other = {key: there.get(key) for key in wanted if not _same(wanted[key], there.get(key))}
        if other:
            raise EngineMisconfigured(
                f"the stream {self.name} has other settings than this deployment needs",
                expected=json.dumps({key: wanted[key] for key in other}),
                got=json.dumps(other)[:400],
                rule="nats.stream",
                hint="was it made by hand, or with another number of replicas? It is not changed",
            )

    async def call(
        self, verb: str, body: dict[str, Any], seconds: float = CALL_SECONDS
    ) -> dict[str, Any] | Refusal:
        """Ask the administration about this stream, until it answers; what may pass is retried.

        Raises EngineMisconfigured, Denied, Unavailable.
        """
        return await administrate(self.connection, f"{verb}.{self.name}", body, seconds)

    async def state(self) -> State:
        """Raises LogBroken if the stream is gone; Denied, Unavailable, EngineMisconfigured."""
        for pause in (*SETTLE[:2], 0.0):
            found = await self.call("STREAM.INFO", {})
            if not isinstance(found, Refusal):
                state = _mapping(found.get("state"))
                last = _number(state.get("last_seq"))
                first = _number(state.get("first_seq")) or 1
                return State(first, last, str(found.get("created", "")))
            if found.number != NO_STREAM:
                self.refuse(found)
            await asyncio.sleep(pause)
        raise self.missing()

    async def get(self, query: dict[str, Any], seconds: float = CALL_SECONDS) -> Stored | None:
        """The message that the stream's leader has by `seq` or `last_by_subj`.

        Raises LogBroken, Denied, Unavailable, EngineMisconfigured.
        """
        found = await self.call("STREAM.MSG.GET", query, seconds)
        if isinstance(found, Refusal):
            if found.number == NO_MESSAGE:
                return None
            if found.number == NO_STREAM:
                await self.state()
                raise late(seconds)
            self.refuse(found)
        message = _mapping(found.get("message"))
        try:
            data = base64.b64decode(message.get("data") or "", validate=True)
            headers = base64.b64decode(message.get("hdrs") or "", validate=True)
        except (TypeError, ValueError, binascii.Error) as error:
            raise garbage("a message that is no base64") from error
        seq, subject = _number(message.get("seq")), str(message.get("subject", ""))
        return Stored(seq, subject, _headers(headers), data)

    async def last(self, subject: str, seconds: float = CALL_SECONDS) -> Stored | None:
        """The last message of a subject: the leader's, or any replica's for who may not ask it."""
        if self.managed:
            return await self.get({"last_by_subj": subject}, seconds)
        return await self.direct(subject, seconds)

    async def direct(self, subject: str, seconds: float = CALL_SECONDS) -> Stored | None:
        """The last message of a subject that any replica has. Raises Denied, Unavailable."""
        async with self.connection.limit(seconds):
            while True:
                try:
                    raw = await self.connection.request(
                        f"{API}.DIRECT.GET.{self.name}.{subject}", b"", TRY_SECONDS
                    )
                except Unavailable as error:
                    await again(error)
                    continue
                found = stored(raw)
                if found is not None or status(raw) == NOT_FOUND:
                    return found
                await asyncio.sleep(AGAIN)

    async def page(self, after: int, seconds: float = CALL_SECONDS) -> list[Stored]:
        """The next messages after a number that any replica has. Raises Denied, Unavailable."""
        query = {"seq": after + 1, "batch": BATCH, "max_bytes": BATCH_BYTES}
        found: list[Stored] = []
        async with self.connection.limit(seconds):
            while True:
                try:
                    async with self.connection.limit(TRY_SECONDS):
                        inquiry = await self.connection.inquire(
                            f"{API}.DIRECT.GET.{self.name}", encode(query)
                        )
                        while (one := stored(raw := await inquiry.next())) is not None:
                            found.append(one)
                except Unavailable as error:
                    if found:
                        return found
                    await again(error)
                    continue
                if found or status(raw) in (END_OF_BATCH, NOT_FOUND):
                    return found
                await asyncio.sleep(AGAIN)

    async def publish(
        self, subject: str, data: bytes, headers: dict[str, str]
    ) -> int | Refusal | None:
        """One try to store: the number that it has, or why not; None if that is not known.

        Raises Denied, and Unavailable once the connection was closed.
        """
        headers = {**headers, "Nats-Expected-Stream": self.name}
        try:
            raw = await self.connection.request(subject, data, TRY_SECONDS, headers)
        except Unavailable as error:
            if error.rule == "closed":
                raise
            return None
        if status(raw) == NO_RESPONDERS:
            return Refusal(503, 0, "no responders")
        answer = decode(raw.data)
        if answer is None:
            return None
        refusal = _refusal(answer)
        return refusal or _number(answer.get("seq")) or None

    def missing(self) -> LogBroken:
        """What is raised where a stream that was there is gone."""
        return LogBroken(
            f"the stream {self.name} is gone",
            expected="the log that this node has opened",
            rule="log.missing",
            hint="stop this node; somebody with rights on the bus has deleted it",
        )

    def refuse(self, refusal: Refusal) -> NoReturn:
        """Raise what the server's error means."""
        refuse(refusal, self.name)


async def administrate(
    connection: Connection, verb: str, body: dict[str, Any], seconds: float
) -> dict[str, Any] | Refusal:
    """Ask the administration of streams, as `Stream.call`."""
    refusal: Refusal | None = None
    try:
        async with connection.limit(seconds):
            while True:
                try:
                    raw = await connection.request(f"{API}.{verb}", encode(body), TRY_SECONDS)
                except Unavailable as error:
                    await again(error)
                    continue
                answer = decode(raw.data)
                if status(raw) != NO_RESPONDERS and answer is not None:
                    refusal = _refusal(answer)
                    if refusal is None or not refusal.transient:
                        return refusal or answer
                await asyncio.sleep(AGAIN)
    except Unavailable:
        # While nodes start it passes; if it does not, there are too few.
        if refusal is not None and refusal.number == _NO_PEERS:
            return refusal
        raise


async def check_jetstream(connection: Connection, seconds: float) -> None:
    """Raises EngineMisconfigured if the servers keep no streams; Unavailable."""
    async with connection.limit(seconds):
        while True:
            try:
                raw = await connection.request(f"{API}.INFO", b"", TRY_SECONDS)
            except Denied:
                return
            except Unavailable as error:
                await again(error)
                continue
            answer = decode(raw.data) or {}
            refusal = _refusal(answer)
            if status(raw) == NO_RESPONDERS or (refusal and refusal.number in _NO_JETSTREAM):
                raise EngineMisconfigured(
                    "the server has no JetStream for this node",
                    expected="JetStream, which keeps logs, tables and blobs",
                    rule="nats.jetstream",
                    hint="give the node's configuration its `jetstream` block, and the account too",
                )
            if answer and refusal is None:
                return
            await asyncio.sleep(AGAIN)


def refuse(refusal: Refusal, what: str) -> NoReturn:
    """Raise what a server's error means, which no patience would change."""
    if refusal.number == _OTHER_SETTINGS:
        raise EngineMisconfigured(
            f"{what} is there with other settings",
            got=ascii(refusal.text[:200]),
            rule="nats.stream",
            hint="was it made by hand, or with another number of replicas? It is not changed",
        )
    if refusal.number in (_NO_PEERS, _NO_CLUSTER):
        raise EngineMisconfigured(
            f"{what} can't have so many replicas",
            expected="as many nodes as replicas, all of them up when it is made",
            got=ascii(refusal.text[:200]),
            rule="nats.replicas",
            hint="start all nodes of the cluster, or ask for fewer replicas",
        )
    raise EngineMisconfigured(
        f"the server refuses what is asked of {what}",
        got=ascii(f"{refusal.number}: {refusal.text[:200]}"),
        rule="nats.refused",
        hint="see the log of the node",
    )


async def again(error: Unavailable) -> None:
    """Wait before another try, unless the connection was closed."""
    if error.rule == "closed":
        raise error
    await asyncio.sleep(AGAIN)


def status(raw: Raw) -> str:
    """The status of an answer that is no message; empty for a message."""
    return raw.headers.get("Status", "") if "Nats-Sequence" not in raw.headers else ""


def stored(raw: Raw) -> Stored | None:
    """The message in an answer to a direct request, if it is one."""
    # A stored message may have a status line of its author's; the server's own header is last.
    seq = raw.headers.get("Nats-Sequence", "")
    if not _is_number(seq):
        return None
    return Stored(int(seq), raw.headers.get("Nats-Subject", ""), raw.headers, raw.data)


def delivered(raw: Raw) -> Stored | None:
    """The message that a consumer delivered, if it is one; its number is in the reply subject."""
    tokens = raw.reply.split(".")
    if tokens[:2] != ["$JS", "ACK"] or len(tokens) < 9:
        return None
    seq = tokens[5 if len(tokens) == 9 else 7] if len(tokens) != 10 else ""
    return Stored(int(seq), raw.subject, raw.headers, raw.data) if _is_number(seq) else None


def encode(body: dict[str, Any]) -> bytes:
    """A request of the administration."""
    return json.dumps(body).encode() if body else b""


def decode(data: bytes) -> dict[str, Any] | None:
    """An answer of the administration, if it is one."""
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def garbage(what: str) -> Unavailable:
    """What is raised for an answer that no server gives."""
    return Unavailable("the server's answer is none", got=what, rule="garbage")


def _settings(name: str, settings: dict[str, Any], replicas: int) -> dict[str, Any]:
    return {
        "name": name,
        "retention": "limits",
        "storage": "file",
        "num_replicas": replicas,
        "deny_delete": True,
        "allow_direct": True,
        "duplicate_window": DEDUP_SECONDS * NANOSECONDS,
        "discard": "old",
        "max_consumers": -1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "max_msgs_per_subject": -1,
        "max_msg_size": -1,
        "no_ack": False,
        "sealed": False,
        "deny_purge": False,
        "allow_rollup_hdrs": False,
        "allow_msg_ttl": False,
        "mirror": None,
        "sources": None,
        "subject_transform": None,
        "republish": None,
        **settings,
    }


def _same(wanted: Any, there: Any) -> bool:
    # A server leaves out what is zero or false.
    return bool(wanted == there or (not wanted and not there))


def _refusal(answer: dict[str, Any]) -> Refusal | None:
    if "error" not in answer:
        return None
    error = _mapping(answer["error"])
    code, number = _number(error.get("code")), _number(error.get("err_code"))
    return Refusal(code, number, str(error.get("description", "")))


def _headers(block: bytes) -> dict[str, str]:
    found = {}
    for line in block.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            found[name.decode("ascii", "replace").strip()] = value.decode(
                "utf-8", "replace"
            ).strip()
    return found


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 1 << 64 else 0


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 20
