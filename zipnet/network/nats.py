"""The network on NATS JetStream: many machines, of operators that do not trust each other.

    log        stream <token>_L_<name>      subject <token>.log.<name>
    table      stream KV_<token>_T_<name>   subjects $KV.<token>_T_<name>.<key>
    blobs      stream <token>_B_<name>      subjects <token>.blob.<name>.<digest, hex>.<chunk>
    channel                                 subjects <token>.ch.<name>.<topic>

What is public is announced on <token>.pub.log.<name> and <token>.pub.table.<name>.<key> too. The
servers are trusted for liveness only.
"""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
import ssl
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from zipnet.errors import CallRejected, Denied, TooLarge
from zipnet.network._nats_blobs import NatsBlobs
from zipnet.network._nats_channel import NatsChannel
from zipnet.network._nats_connection import Connection
from zipnet.network._nats_log import NatsLog
from zipnet.network._nats_stream import CALL_SECONDS, NANOSECONDS, Stream, check_jetstream
from zipnet.network._nats_table import MARKER_SECONDS, NatsTable
from zipnet.network._nats_wire import Credentials
from zipnet.network.base import check_name

REPLICAS = 3
# A bundle travels in one line of at most 64 KiB, as base64 and with other things.
MAX_BUNDLE = 40 << 10

_TOKEN = re.compile(r"[0-9a-f]{16}")
_URL = re.compile(r"(nats|tls)://[^\s/?#@]+")


class NatsNetwork:
    """A `Network`: one node's connection to a cluster. Made by `connect`."""

    def __init__(
        self,
        guest: Connection,
        *,
        token: str,
        public: frozenset[str],
        replicas: int,
        member: bool,
        open_presented: Callable[[bytes], Any] | None,
    ) -> None:
        self._connection = guest
        self._token = token
        self._public = public
        self._replicas = replicas
        self._member = member
        self._open_presented = open_presented
        self._presented: Connection | None = None
        self._presenting = asyncio.Lock()
        self._closed = False

    @classmethod
    async def connect(
        cls,
        urls: Sequence[str],
        *,
        token: str,
        public: frozenset[str],
        replicas: int = REPLICAS,
        key: Ed25519PrivateKey | None = None,
        identity: Ed25519PrivateKey | None = None,
        tls: ssl.SSLContext | None = None,
        timeout: float = 10.0,
    ) -> NatsNetwork:
        """Connect to one of the servers, `nats://HOST:PORT` or `tls://HOST:PORT`.

        `token` is the instance's, 16 hex digits; `public` are the names of logs, tables and blob
        stores that everybody may read. With its peer `key` a member connects, whom the servers'
        configuration names; without, a guest, who reads what is public, and asks. `identity` is
        the peer key of a guest, under which `present` shows its ticket.

        Raises Denied, EngineMisconfigured, Unavailable, CallRejected.
        """
        if not _TOKEN.fullmatch(token):
            _refuse("connect.token", "16 hex digits", token)
        if not urls:
            _refuse("connect.urls", "at least one URL", "none")
        for url in urls:
            if not _URL.fullmatch(url):
                _refuse("connect.url", "nats://HOST:PORT or tls://HOST:PORT", url)
        guest = f"guest.{secrets.token_hex(8)}"
        inbox = f"_INBOX.{guest if key is None else _client(key)}"
        connection = await Connection.open(
            urls, Credentials(key), tls=tls, inbox=inbox, timeout=timeout
        )

        async def presented(bundle: bytes) -> Connection:
            assert identity is not None
            credentials = Credentials(identity, base64.b64encode(bundle).decode())
            mine = f"_INBOX.{_client(identity)}"
            return await Connection.open(
                urls, credentials, tls=tls, inbox=mine, timeout=CALL_SECONDS
            )

        network = cls(
            connection,
            token=token,
            public=public,
            replicas=replicas,
            member=key is not None,
            open_presented=presented if key is None and identity is not None else None,
        )
        try:
            if key is not None:
                await check_jetstream(connection, timeout)
        except BaseException:
            await network.close()
            raise
        return network

    @property
    def max_message(self) -> int:
        """The largest payload in bytes that a log, a table or a channel takes."""
        return self._connection.max_message

    async def log(self, name: str) -> NatsLog:
        """As `Network.log`."""
        subject, announced = f"{self._token}.log.{name}", f"{self._token}.pub.log.{name}"
        stream = await self._stream(
            "log", name, f"{self._token}_L_{name}", {"subjects": [subject]}, (subject, announced)
        )
        return NatsLog(stream, subject, announced, self._check_member("log", name))

    async def table(self, name: str) -> NatsTable:
        """As `Network.table`."""
        bucket = f"{self._token}_T_{name}"
        prefix, announced = f"$KV.{bucket}.", f"{self._token}.pub.table.{name}.>"
        settings = {
            "subjects": [f"{prefix}>"],
            "max_msgs_per_subject": 1,
            "allow_rollup_hdrs": True,
            "allow_msg_ttl": True,
            "subject_delete_marker_ttl": MARKER_SECONDS * NANOSECONDS,
        }
        stream = await self._stream(
            "table", name, f"KV_{bucket}", settings, (f"{prefix}>", announced)
        )
        return NatsTable(stream, prefix, announced, self._check_member("table", name))

    def channel(self, name: str) -> NatsChannel:
        """As `Network.channel`."""
        prefix = f"{self._token}.ch.{check_name(name)}."
        return NatsChannel(prefix, self._speaking, self._connection)

    async def blobs(self, name: str) -> NatsBlobs:
        """As `Network.blobs`."""
        prefix = f"{self._token}.blob.{name}."
        settings = {"subjects": [f"{prefix}*.*"], "max_msgs_per_subject": 1, "deny_purge": True}
        stream = await self._stream("blobs", name, f"{self._token}_B_{name}", settings, None)
        return NatsBlobs(stream, prefix, self._check_member("blobs", name))

    async def present(self, bundle: bytes) -> None:
        """As `Network.present`; for a member nothing. The ticket is shown at each reconnection."""
        if self._member:
            self._connection.check()
            return
        if self._open_presented is None:
            raise CallRejected(
                "a ticket needs the key that it is for",
                expected="an identity, given to `connect`",
                rule="present.identity",
            )
        if len(bundle) > MAX_BUNDLE:
            raise TooLarge(
                "the bundle is too large to be shown",
                expected=f"at most {MAX_BUNDLE} bytes",
                got=str(len(bundle)),
                rule="present.size",
            )
        async with self._presenting:
            self._connection.check()
            fresh = await self._open_presented(bytes(bundle))
            before, self._presented = self._presented, fresh
            if before is not None:
                await before.close()
            if self._closed:
                await fresh.close()

    async def close(self) -> None:
        """As `Network.close`."""
        self._closed = True
        if self._presented is not None:
            await self._presented.close()
        await self._connection.close()

    def _speaking(self) -> Connection:
        """The connection that showed a ticket, unless it is no longer let in: a guest may ask."""
        shown = self._presented
        return self._connection if shown is None or shown.refused else shown

    async def _stream(
        self,
        kind: str,
        name: str,
        stream_name: str,
        settings: dict[str, Any],
        republish: tuple[str, str] | None,
    ) -> Stream:
        check_name(name)
        self._connection.check()
        stream = Stream(self._connection, stream_name, managed=self._member)
        if not self._member and name not in self._public:
            raise self._denied("read", kind, name)
        if self._member:
            if republish is not None and name in self._public:
                source, destination = republish
                settings["republish"] = {"src": source, "dest": destination}
            await stream.open(settings, self._replicas)
        return stream

    def _check_member(self, kind: str, name: str) -> Callable[[], None]:
        def check() -> None:
            self._connection.check()
            if not self._member:
                raise self._denied("write", kind, name)

        return check

    def _denied(self, action: str, kind: str, name: str) -> Denied:
        return Denied(
            "a guest may only read what is public",
            got=f"{action} {kind}/{name}",
            rule=f"guest.{action}",
            hint="connect with the peer key of a member",
        )


def _client(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()[:16]


def _refuse(rule: str, expected: str, got: str) -> NoReturn:
    raise CallRejected(
        "this is no way to connect", expected=expected, got=ascii(got[:80]), rule=rule
    )
