"""The network port: an ordered log, a table, a channel and an archive. Only bytes cross it.

Encoding, signatures and ids live above. An engine is trusted for liveness only. Whatever is asked
of it, it answers with a result or raises `EngineError`; `LogBroken` where the log itself is wrong.

    name        1 to 64 of letters, digits, `_`, `-`
    log key     1 to 128 of letters, digits, `.`, `_`, `-`
    table key   1 to 256 of letters, digits, `/`, `_`, `=`, `.`, `-`; dots only between others
    topic       tokens of letters, digits, `_`, `-`, joined by dots, to 256 characters
    pattern     a topic in which `*` stands for one token, and `>`, at the end, for one or more

Times are in seconds. A caller that is cancelled, or whose deadline passes, learns nothing about
what it asked for: it may still happen. Sizes are in bytes.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from zipnet.errors import CallRejected, TooLarge

DIGEST_BYTES = 32
# At least this long after an append, its key is known, even if the entry was trimmed.
DEDUP_SECONDS = 120
LISTEN_BYTES = 256 << 20
MAX_TTL = 1 << 31

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LOG_KEY = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TABLE_KEY = re.compile(r"[A-Za-z0-9/_=-]+(\.[A-Za-z0-9/_=-]+)*")
_TABLE_PREFIX = re.compile(r"[A-Za-z0-9/_=.-]*")
_TOPIC = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_PATTERN = re.compile(r"(>|([A-Za-z0-9_-]+|\*)(\.([A-Za-z0-9_-]+|\*))*(\.>)?)")
_MAX_TEXT = 256

Reply = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Entry:
    """What a log holds at `seq`, which counts from 1."""

    seq: int
    key: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Item:
    """What a table holds under `key`; no `value` if that was deleted or has expired."""

    key: str
    value: bytes | None = field(repr=False)
    rev: int


@dataclass(frozen=True, slots=True)
class Message:
    """What was sent. `reply` answers who asked: the first answer counts; None if nobody waits.

    `reply` raises TooLarge or Unavailable; not if the asker has gone meanwhile.
    """

    topic: str
    data: bytes = field(repr=False)
    reply: Reply | None = field(default=None, repr=False)


class Log(Protocol):
    """Entries in one order for everybody, numbered from 1 without gaps."""

    async def append(
        self, data: bytes, *, key: str, expect: int | None = None, deadline: float = 10.0
    ) -> int:
        """Append, and return the number of the entry once no failure can lose it.

        A `key` that was used before (see DEDUP_SECONDS) gives the number of *its* entry, whatever
        `data` and `expect` are now: so a retry is safe, and the key must be the hash of the data.
        `expect` is what the last number must be, 0 for none so far.

        Raises Conflict if it is another, TooLarge, Denied, Unavailable (the entry may be there).
        """
        ...

    def read(self, after: int = 0) -> AsyncIterator[Entry]:
        """All entries from `after` + 1 on, each once and in order, then new ones; without end.

        Its `anext` raises Lagged if the next entry was trimmed (again at each call), LogBroken if
        the log has a gap, ends before `after`, or was deleted; Denied, Unavailable.
        """
        ...

    async def bounds(self) -> tuple[int, int]:
        """The first number that is still held, and the last; (last + 1, last) if none is.

        Raises Denied, Unavailable, LogBroken.
        """
        ...

    async def trim(self, upto: int) -> None:
        """Drop the entries up to and with `upto`; numbers go on.

        Does nothing unless `upto` is the number of an entry that is held. Raises Denied,
        Unavailable, LogBroken.
        """
        ...


class Table(Protocol):
    """The last value of each key. Revisions are above 0 and grow with each change of the table."""

    async def get(self, key: str) -> Item | None:
        """What is there now, after all that ever returned; None if deleted, expired, or never put.

        Raises Denied, Unavailable.
        """
        ...

    async def put(
        self,
        key: str,
        value: bytes,
        *,
        expect: int | None = None,
        ttl: int | None = None,
        deadline: float = 10.0,
    ) -> int:
        """Set the value, which no failure can lose then, and return its revision.

        `expect` is the revision that must be there, 0 for no value. After `ttl` seconds (at least
        1) without another put, the value is gone. A put is not known again by its caller: who
        repeats one that had worked may get Conflict, and should read.

        Raises Conflict, TooLarge, Denied, Unavailable (the value may be set).
        """
        ...

    async def delete(self, key: str, *, expect: int | None = None) -> None:
        """Remove the value, if there is one. `expect` as for `put`.

        Raises Conflict, Denied, Unavailable (the value may be gone).
        """
        ...

    def watch(self, prefix: str = "") -> AsyncIterator[Item]:
        """Current values of the keys that begin with `prefix`, then changes; without end.

        The first part has no deleted or expired keys; the second has them with None. Values that
        were replaced meanwhile may be skipped. Its `anext` raises Denied, Unavailable.
        """
        ...


class Channel(Protocol):
    """Messages to whoever listens now, each at most once."""

    async def send(self, topic: str, data: bytes) -> None:
        """Send, with no promise that anybody gets it. Raises TooLarge, Denied, Unavailable."""
        ...

    async def ask(self, topic: str, data: bytes, timeout: float = 5.0) -> bytes:
        """Send, and return the first answer.

        Raises TooLarge, Denied, Unavailable if nobody listens or answers (but may have acted).
        """
        ...

    def listen(
        self, pattern: str, *, max_bytes: int = LISTEN_BYTES
    ) -> AbstractAsyncContextManager[AsyncIterator[Message]]:
        """Messages whose topic matches, complete from when the context was entered.

        At most `max_bytes` wait to be taken. Its `anext` raises Lagged at the place where messages
        were lost, for want of room or of a connection, and then goes on. Entering raises Denied,
        Unavailable.
        """
        ...


class Blobs(Protocol):
    """An archive by content. A digest is BLAKE3, 32 bytes. `Network.max_message` is no limit."""

    async def put(self, data: bytes) -> bytes:
        """Store, and return the digest once no failure can lose the blob.

        Raises Denied, Unavailable.
        """
        ...

    async def get(self, digest: bytes) -> bytes:
        """The blob, checked. Raises BlobMissing, BlobAltered, Denied, Unavailable."""
        ...


class Network(Protocol):
    """A connection to an engine. A log, table or archive is made when it is first opened.

    `max_message` is the largest payload in bytes that a log, a table or a channel takes.
    """

    @property
    def max_message(self) -> int:
        """The same for all handles of an engine."""
        ...

    async def log(self, name: str) -> Log:
        """Raises Denied, Unavailable, EngineMisconfigured."""
        ...

    async def table(self, name: str) -> Table:
        """Raises Denied, Unavailable, EngineMisconfigured."""
        ...

    def channel(self, name: str) -> Channel:
        """The channel of this name."""
        ...

    async def blobs(self, name: str) -> Blobs:
        """Raises Denied, Unavailable, EngineMisconfigured."""
        ...

    async def present(self, bundle: bytes) -> None:
        """Show a ticket's bundle to whoever guards the network, for the right to submit.

        From then on channels use that right, until another bundle is shown. Does nothing where
        nobody guards. Raises Denied if the bundle is refused, TooLarge, Unavailable.
        """
        ...

    async def close(self) -> None:
        """End the connection; whoever still waits on it gets Unavailable. Twice is once."""
        ...


def check_name(name: str) -> str:
    """The name of a log, table, channel or archive. Raises CallRejected."""
    return _match(_NAME, name, "name", "1 to 64 of A-Z a-z 0-9 _ -")


def check_log_key(key: str) -> str:
    """A key of a log. Raises CallRejected."""
    return _match(_LOG_KEY, key, "log-key", "1 to 128 of A-Z a-z 0-9 . _ -")


def check_table_key(key: str) -> str:
    """A key of a table. Raises CallRejected."""
    return _match(
        _TABLE_KEY, key, "table-key", "1 to 256 of A-Z a-z 0-9 / _ = . -, dots only between others"
    )


def check_prefix(prefix: str) -> str:
    """A beginning of keys of a table. Raises CallRejected."""
    return _match(_TABLE_PREFIX, prefix, "table-prefix", "up to 256 of A-Z a-z 0-9 / _ = . -")


def check_topic(topic: str) -> str:
    """A topic to send to. Raises CallRejected."""
    return _match(_TOPIC, topic, "topic", "tokens of A-Z a-z 0-9 _ - joined by dots, to 256")


def check_pattern(pattern: str) -> str:
    """A pattern of topics. Raises CallRejected."""
    return _match(
        _PATTERN, pattern, "pattern", "a topic, in which a token may be *, and the last one >"
    )


def check_number(value: int, rule: str, least: int = 0) -> int:
    """A sequence number, revision or size. Raises CallRejected."""
    if value < least:
        raise CallRejected(
            "a number is out of range", expected=f"at least {least}", got=str(value), rule=rule
        )
    return value


def check_ttl(ttl: int | None) -> int | None:
    """A time to live in seconds. Raises CallRejected."""
    if ttl is not None and not 1 <= ttl <= MAX_TTL:
        raise CallRejected(
            "this is no time to live", expected=f"1 to {MAX_TTL} s", got=str(ttl), rule="ttl"
        )
    return ttl


def check_digest(digest: bytes) -> bytes:
    """A digest of a blob. Raises CallRejected."""
    if len(digest) != DIGEST_BYTES:
        raise CallRejected(
            "this is no digest",
            expected=f"{DIGEST_BYTES} bytes",
            got=str(len(digest)),
            rule="digest",
        )
    return digest


def check_size(data: bytes, max_message: int) -> bytes:
    """What a log, table or channel takes. Raises TooLarge."""
    if len(data) > max_message:
        raise TooLarge(
            "the message is too large",
            expected=f"at most {max_message} bytes",
            got=str(len(data)),
            rule="max-message",
            hint="store it as a blob, and send the digest",
        )
    return data


def matches(pattern: str, topic: str) -> bool:
    """Whether a valid topic is one of those that a valid pattern stands for."""
    wanted, tokens = pattern.split("."), topic.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(tokens) <= len(wanted):
            return False
        tokens = tokens[: len(wanted)]
    return len(wanted) == len(tokens) and all(
        want in ("*", token) for want, token in zip(wanted, tokens, strict=True)
    )


def _match(form: re.Pattern[str], text: str, rule: str, expected: str) -> str:
    if len(text) > _MAX_TEXT or not form.fullmatch(text):
        raise CallRejected(
            f"this is no {rule.replace('-', ' ')}",
            expected=expected,
            got=ascii(text[: _MAX_TEXT + 1]),
            rule=rule,
        )
    return text
