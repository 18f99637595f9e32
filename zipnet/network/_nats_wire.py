"""One connection to one NATS server, until it ends: nats-py, and what it has no setting for.

All that depends on the inside of nats-py is in here. The server is not trusted: it chooses the
nonce that the peer key signs, and passes on whatever bytes another client made.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import re
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

import nats.errors
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nats.aio.client import Client
from nats.aio.msg import Msg

from zipnet.errors import Denied, EngineError, EngineMisconfigured, Unavailable
from zipnet.network.nkeys import NONCE, Kind, public_text

T = TypeVar("T")

# Headers count for the server, which ends the connection if both are over its limit.
HEADER_ROOM = 4096
LEAST_PAYLOAD = 1 << 20
OLDEST = (2, 11)
PENDING_BYTES = 64 << 20
CLOSE_SECONDS = 2.0

_VERSION = re.compile(r"(\d{1,6})\.(\d{1,6})\.")
_REFUSED = re.compile(
    r'permissions violation for (publish|subscription|publish with reply)(?: to| of) "([^"]*)"'
)
_UNADMITTED = re.compile(r"authorization|authentication|revoked|credentials")

log = logging.getLogger("zipnet.nats")


@dataclass(frozen=True, slots=True)
class Raw:
    """A message as it came. `headers` may hold anything; `reply` is empty if nobody waits."""

    subject: str
    reply: str
    headers: dict[str, str] = field(repr=False)
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who connects: a peer key, whose holder the server may know, and a ticket, if it does not."""

    key: Ed25519PrivateKey | None = field(default=None, repr=False)
    token: str = field(default="", repr=False)

    def nkey(self) -> str:
        """The public key in the server's form; empty for a guest."""
        if self.key is None:
            return ""
        return public_text(Kind.USER, self.key.public_key().public_bytes_raw())

    def sign(self, nonce: str) -> bytes:
        """The signature of a nonce, base64. Raises Denied for what might be anything else."""
        if not NONCE.fullmatch(nonce):
            raise Denied(
                "the server wants a signature of what is no nonce",
                expected="8 to 64 of A-Z a-z 0-9 _ -",
                got=ascii(nonce[:80]),
                rule="nonce",
                hint="this is no honest NATS server: tell its operator",
            )
        assert self.key is not None
        return base64.b64encode(self.key.sign(nonce.encode()))


class _Client(Client):
    """nats-py with credentials from a key, and hardened against bytes that others chose."""

    def __init__(self, credentials: Credentials, *, encrypted: bool) -> None:
        super().__init__()
        self._encrypted = encrypted
        if credentials.key is not None:
            self._auth_configured = True
            self._public_nkey = credentials.nkey()

    def _connect_command(self) -> bytes:
        # nats-py goes on in plain text if the server does not ask for TLS.
        if self._encrypted and not self._server_info.get("tls_required"):
            raise EngineMisconfigured(
                "the server does not encrypt",
                expected="TLS, as the URL or the settings say",
                got="plain text",
                rule="nats.tls",
                hint="give the node's configuration its `tls` block; or somebody is in between",
            )
        return super()._connect_command()

    async def _process_headers(self, headers: Any) -> dict[str, str] | None:
        # What is raised in here would end the connection.
        try:
            return await super()._process_headers(headers)
        except Exception:
            return None

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        return Msg(
            subject=subject.decode("utf-8", "replace"),
            reply=reply.decode("utf-8", "replace"),
            data=data,
            headers=headers,
            _client=self,
            _sid=sid,
        )

    @property
    def reader(self) -> asyncio.Task[None]:
        """Ends with the connection, whatever ends it."""
        assert self._reading_task is not None
        return self._reading_task

    async def confirm(self) -> None:
        """Until the server has taken all that was published before.

        The `flush` of nats-py asks before it sends what waits, and if its caller is cancelled the
        answer ends the connection.
        """
        await self._flush_pending(force_flush=True)
        pong = asyncio.get_running_loop().create_future()
        await self._send_ping(pong)
        await asyncio.wait({pong, self.reader}, return_when="FIRST_COMPLETED")
        if not pong.done():
            raise nats.errors.ConnectionClosedError

    def tasks(self) -> list[asyncio.Task[Any]]:
        """All that run for it."""
        found = [self._reading_task, self._ping_interval_task, self._flusher_task]
        found += [subscription._wait_for_msgs_task for subscription in self._subs.values()]
        return [task for task in found if task is not None]

    def abort(self) -> None:
        """Drop what waits, and the connection: closing in order may hang at a frozen server."""
        self._pending.clear()
        self._pending_data_size = 0
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()


class Wire:
    """An established connection. It never comes back: `ended` returns once it is lost."""

    def __init__(self, client: _Client, on_refusal: Callable[[str, str], None]) -> None:
        self._client = client
        self._on_refusal = on_refusal
        # What was published without a complaint; a later complaint takes it out.
        self.allowed: set[str] = set()

    @classmethod
    async def open(
        cls,
        url: str,
        credentials: Credentials,
        tls: ssl.SSLContext | None,
        timeout: float,
        on_refusal: Callable[[str, str], None],
    ) -> Wire:
        """Connect to one server, and be admitted there.

        `on_refusal` hears of each permission that was missing: "publish" or "subscription", and
        the subject in lower case. Raises Denied, EngineMisconfigured, Unavailable.
        """
        client = _Client(credentials, encrypted=tls is not None or urlsplit(url).scheme == "tls")
        wire = cls(client, on_refusal)
        said: list[Exception] = []

        async def error(what: Exception) -> None:
            said.append(what)
            del said[:-4]
            wire._complaint(str(what))

        try:
            async with asyncio.timeout(timeout):
                await client.connect(
                    servers=[url],
                    error_cb=error,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=max(1, int(timeout)),
                    # `Connection` looks after it, as nats-py may hang when it does.
                    ping_interval=1 << 30,
                    pending_size=PENDING_BYTES,
                    tls=tls,
                    signature_cb=None if credentials.key is None else credentials.sign,
                    token=credentials.token or None,
                )
                await wire.flush()
                wire._check_server()
        except BaseException as failure:
            await wire.drop()
            if isinstance(failure, EngineError) or not isinstance(failure, Exception):
                raise
            raise _explain(url, [*said, failure]) from failure
        return wire

    @property
    def max_message(self) -> int:
        """The largest payload beside headers, in bytes."""
        return self._client.max_payload - HEADER_ROOM

    @property
    def server(self) -> str:
        """The name of the server."""
        return str(self._client._server_info.get("server_name", ""))

    @property
    def server_key(self) -> str:
        """The key of the server, which names it, and by which it signs; new at each start."""
        return str(self._client._server_info.get("server_id", ""))

    async def publish(
        self, subject: str, data: bytes, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Hand to the server. Raises Unavailable."""
        with _mapped():
            await _whole(self._client.publish(subject, data, reply=reply, headers=headers))

    async def flush(self) -> None:
        """Until the server has taken all that was published, and has complained. Raises the same.

        It has no limit of time.
        """
        with _mapped():
            if not self._client.is_connected:
                raise nats.errors.ConnectionClosedError
            await _whole(self._client.confirm())

    async def subscribe(
        self, subject: str, take: Callable[[Raw], None]
    ) -> Callable[[], Awaitable[None]]:
        """Hear messages; what is returned ends it. `take` must be quick, and must not raise."""

        async def heard(message: Msg) -> None:
            take(Raw(message.subject, message.reply, message.headers or {}, message.data))

        with _mapped():
            # Without limits, as nats-py drops beyond them in silence.
            subscription = await _whole(
                self._client.subscribe(
                    subject, cb=heard, pending_msgs_limit=0, pending_bytes_limit=0
                )
            )

        async def leave() -> None:
            with contextlib.suppress(nats.errors.Error, OSError):
                await subscription.unsubscribe()

        return leave

    async def ended(self, interval: float, patience: int) -> None:
        """Return when the connection is lost: it ended, or nothing came for some intervals."""
        reader = self._client.reader
        while not reader.done():
            ping = asyncio.ensure_future(self.flush())
            for _ in range(patience):
                # Two clocks, so that a loop that was busy meanwhile is no reason.
                await asyncio.wait({ping, reader}, timeout=interval, return_when="FIRST_COMPLETED")
                if ping.done() or reader.done():
                    break
            alive = ping.done() and not reader.done() and ping.exception() is None
            ping.cancel()
            await asyncio.gather(ping, return_exceptions=True)
            if not alive:
                return
            await asyncio.wait({reader}, timeout=interval)

    def why(self) -> EngineError:
        """Why it was lost, as far as the server said."""
        return _explain("", [self._client.last_error] if self._client.last_error else [])

    async def close(self) -> None:
        """Send what waits, and end it."""
        with contextlib.suppress(EngineError, TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.flush()
        await self.drop()

    async def drop(self) -> None:
        """End it at once."""
        tasks = self._client.tasks()
        self._client.abort()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._client.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _complaint(self, text: str) -> None:
        match = _REFUSED.search(text)
        if match is None:
            return
        kind, subject = match[1], match[2]
        self.allowed = {one for one in self.allowed if one.lower() != subject}
        self._on_refusal("subscription" if kind == "subscription" else "publish", subject)

    def _check_server(self) -> None:
        info = self._client._server_info
        version = str(info.get("version", ""))
        match = _VERSION.match(version)
        if match is None or (int(match[1]), int(match[2])) < OLDEST:
            raise EngineMisconfigured(
                "the server is too old",
                expected=f"nats-server {OLDEST[0]}.{OLDEST[1]} or newer",
                got=ascii(version[:40]),
                rule="nats.version",
                hint="older ones lose logs, and can't expire single keys: upgrade the node",
            )
        if type(self._client.max_payload) is not int or self._client.max_payload < LEAST_PAYLOAD:
            raise EngineMisconfigured(
                "the server takes only small messages",
                expected=f"max_payload of {LEAST_PAYLOAD} bytes or more",
                got=ascii(self._client.max_payload),
                rule="nats.max-payload",
                hint="set `max_payload: 8MB` on all nodes",
            )


async def _whole(awaitable: Awaitable[T]) -> T:
    """The same, but cancellation comes out: nats-py swallows it in some places."""
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    result = await awaitable
    if task.cancelling() > before:
        raise asyncio.CancelledError
    return result


@contextlib.contextmanager
def _mapped() -> Any:
    try:
        yield
    except (nats.errors.Error, OSError, asyncio.InvalidStateError) as error:
        raise unavailable(str(error) or type(error).__name__) from error


def unavailable(why: str) -> Unavailable:
    """What is raised while there is no connection."""
    return Unavailable(
        "there is no connection to the engine",
        got=ascii(why[:200]),
        rule="disconnected",
        hint="it may have happened: try again with the same key and bytes",
    )


def unadmitted(why: str) -> Denied:
    """What is raised when a server does not let this node in."""
    return Denied(
        "the server does not admit this node",
        expected="a key that the server's configuration names, or a ticket that is valid now",
        got=ascii(why[:200]),
        rule="admission",
        hint="ask the operator whether this node's key is in the configuration",
    )


def _explain(url: str, errors: list[Exception]) -> EngineError:
    texts = [str(error) or type(error).__name__ for error in errors]
    for text in texts:
        if _UNADMITTED.search(text.lower()):
            return unadmitted(text)
    told = "; ".join(dict.fromkeys(texts)) or "the connection ended"
    return unavailable(f"{url}: {told}" if url else told)
