"""A connection to a server that is hostile, old or not set up; hostile bytes through a good one."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.zipnet.network.conformance import PATIENCE, soon
from tests.zipnet.network.nats_cluster import Cluster
from tests.zipnet.network.nats_harness import member_key
from zipnet.errors import (
    CallRejected,
    Denied,
    EngineError,
    EngineMisconfigured,
    TooLarge,
    Unavailable,
)
from zipnet.network import _nats_wire
from zipnet.network._nats_wire import Credentials
from zipnet.network.base import Message, Network
from zipnet.network.nats import MAX_BUNDLE, NatsNetwork
from zipnet.network.nkeys import Kind, public_text

TOKEN = "0123456789abcdef"  # noqa: S105
INFO = {
    "server_id": "N",
    "server_name": "hostile",
    "version": "2.15.1",
    "headers": True,
    "max_payload": 8 << 20,
    "jetstream": True,
}


class Hostile:
    """Sends an INFO of the test's making, answers pings, and keeps what it was sent."""

    def __init__(self, info: bytes, answer: bytes = b"PONG\r\n") -> None:
        self._info = info
        self._answer = answer
        self._writers: list[asyncio.StreamWriter] = []
        self.heard = b""
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Hostile"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            self.url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield self
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        writer.write(self._info)
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                self.heard += line
                if line == b"PING\r\n":
                    writer.write(self._answer)


def info(**other: Any) -> bytes:
    return b"INFO " + json.dumps({**INFO, **other}).encode() + b"\r\n"


def refused(
    server: Hostile, *, scheme: str = "nats", key: Ed25519PrivateKey | None = None
) -> EngineError:
    async def body() -> EngineError:
        async with server.running():
            with pytest.raises(EngineError) as caught:
                await connect([server.url.replace("nats", scheme)], key=key, timeout=0.5)
            return caught.value

    return asyncio.run(body())


async def connect(urls: list[str], timeout: float = 20.0, **other: Any) -> NatsNetwork:
    return await NatsNetwork.connect(
        urls, token=TOKEN, public=frozenset(), replicas=1, timeout=timeout, **other
    )


@pytest.mark.parametrize(
    "nonce",
    [
        "zipnet/statement/v1",
        "",
        "a" * 7,
        "a" * 65,
        "abcdefgh\n",
        "abcdefgh ",
        "ünicode-nonce",
        "abcd.efgh",
    ],
)
def test_only_a_nonce_is_signed(nonce: str) -> None:
    server = Hostile(info(nonce=nonce, auth_required=True))
    error = refused(server, key=member_key())
    assert (type(error), error.rule) == (Denied, "nonce")
    assert server.heard == b""


def test_a_nonce_is_signed_with_the_peer_key() -> None:
    key, nonce = member_key(), "abcdefgh_-012345"
    server = Hostile(info(nonce=nonce, auth_required=True))

    async def body() -> None:
        async with server.running():
            with pytest.raises(Unavailable):  # it has no streams
                await connect([server.url], key=key, timeout=0.5)

    asyncio.run(body())
    sent = json.loads(server.heard.splitlines()[0].removeprefix(b"CONNECT "))
    key.public_key().verify(base64.b64decode(sent["sig"]), nonce.encode())
    assert sent["nkey"] == public_text(Kind.USER, key.public_key().public_bytes_raw())
    assert "auth_token" not in sent


def test_secrets_are_not_shown() -> None:
    text = repr(Credentials(member_key(), "the ticket"))
    assert "ticket" not in text
    assert "Ed25519" not in text


@pytest.mark.parametrize("version", ["2.10.27", "2.9.10", "1.99.0", "", "newest"])
def test_old_servers_are_refused(version: str) -> None:
    error = refused(Hostile(info(version=version)))
    assert (type(error), error.rule) == (EngineMisconfigured, "nats.version")
    assert error.hint


@pytest.mark.parametrize("limit", [0, 1 << 10, -1, "8MB", None, True])
def test_servers_that_take_only_small_messages(limit: object) -> None:
    error = refused(Hostile(info(max_payload=limit)))
    assert (type(error), error.rule) == (EngineMisconfigured, "nats.max-payload")


def test_no_plain_text_where_tls_is_wanted() -> None:
    server = Hostile(info(nonce="abcdefgh_-012345", auth_required=True))
    error = refused(server, scheme="tls", key=member_key())
    assert (type(error), error.rule) == (EngineMisconfigured, "nats.tls")
    assert server.heard == b""


@pytest.mark.parametrize(
    "line",
    [
        b"INFO {\r\n",
        b"INFO []\r\n",
        b"INFO 1\r\n",
        b"HTTP/1.1 200\r\n",
        b"\r\n",
        b"INFO " + b"[" * 20_000 + b"\r\n",
        b"x" * 200_000,
        b"INFO \xff\r\n",
    ],
)
def test_what_is_no_server(line: bytes) -> None:
    error = refused(Hostile(line))
    assert (type(error), error.rule) == (Unavailable, "disconnected")


@pytest.mark.parametrize(
    "answer",
    [b"-ERR 'Authorization Violation'\r\n", b"-ERR 'User Authentication Expired'\r\n"],
)
def test_not_admitted(answer: bytes) -> None:
    error = refused(Hostile(info(), answer))
    assert (type(error), error.rule) == (Denied, "admission")


def test_half_open_is_no_connection() -> None:
    error = refused(Hostile(info(), b"PING\r\n"))
    assert (type(error), error.rule) == (Unavailable, "disconnected")


def test_nobody_is_there() -> None:
    async def body() -> None:
        with pytest.raises(Unavailable) as caught:
            await connect(["nats://127.0.0.1:1"], timeout=0.5)
        assert caught.value.rule == "disconnected"
        assert "127.0.0.1:1" in caught.value.got

    asyncio.run(body())


@pytest.mark.parametrize(
    ("urls", "token", "rule"),
    [
        ([], TOKEN, "connect.urls"),
        (["http://host:1"], TOKEN, "connect.url"),
        (["nats://user:pass@host:1"], TOKEN, "connect.url"),
        (["nats://host:1/path"], TOKEN, "connect.url"),
        (["nats://ho st"], TOKEN, "connect.url"),
        (["nats://host:1"], "ABCDEF0123456789", "connect.token"),
        (["nats://host:1"], "abc", "connect.token"),
    ],
)
def test_no_way_to_connect(urls: list[str], token: str, rule: str) -> None:
    async def body() -> None:
        with pytest.raises(CallRejected) as caught:
            await NatsNetwork.connect(urls, token=token, public=frozenset())
        assert caught.value.rule == rule

    asyncio.run(body())


def on_a_server(folder: Path, body: Callable[[Cluster, Network], Awaitable[None]]) -> None:
    async def main(cluster: Cluster) -> None:
        network = await connect(cluster.urls, key=member_key())
        try:
            await body(cluster, network)
        finally:
            await network.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with Cluster(folder) as cluster:
        asyncio.run(main(cluster))


def test_hostile_bytes_do_not_end_a_connection(tmp_path: Path) -> None:
    subject = f"{TOKEN}.ch.c.t".encode()

    def message(headers: bytes, data: bytes) -> bytes:
        size = len(headers)
        return b"HPUB %b %d %d\r\n%b%b\r\n" % (subject, size, size + len(data), headers, data)

    poison = [
        b"PUB " + subject + b" \xff\xfe 1\r\na\r\n",
        message(b"NATS/1.0 \xff\xfe\xfd \xff\xff\r\n\r\n", b"b"),
        message(b"NATS/1.0\r\n\xff\xfe: a\r\n\r\n", b"c"),
        message(b"NATS/1.0 503 Nobody\r\n\r\n", b""),
        message(b"NATS/1.0 100 Idle\r\n\r\n", b""),
        message(b"NATS/1.0\r\n\r\n", b"d"),
    ]

    async def body(cluster: Cluster, network: Network) -> None:
        async with network.channel("c").listen("t") as listener:
            reader, writer = await asyncio.open_connection("127.0.0.1", cluster.nodes[0].port)
            writer.write(b'CONNECT {"headers": true, "verbose": false}\r\n')
            writer.write(b"".join(poison) + b"PUB " + subject + b" 3\r\nend\r\nPING\r\n")
            said = b""
            async with asyncio.timeout(PATIENCE):
                while b"PONG" not in said:
                    some = await reader.read(1 << 16)
                    assert some
                    said += some
            assert b"-ERR" not in said
            writer.close()
            heard: list[Message] = []
            while not heard or heard[-1].data != b"end":
                heard.append(await soon(anext(listener)))
        assert [message.data for message in heard] == [b"a", b"b", b"c", b"", b"", b"d", b"end"]
        assert all(message.reply is None for message in heard)

    on_a_server(tmp_path, body)


def test_answers_go_to_inboxes_only(tmp_path: Path) -> None:
    async def body(cluster: Cluster, network: Network) -> None:
        log = await network.log("log")
        channel = network.channel("c")
        connection = network._connection  # type: ignore[attr-defined]
        async with channel.listen("t") as listener:
            for inbox in (f"{TOKEN}.log.log", "$JS.API.STREAM.DELETE.x", "_INBOX", "_INBOX.a.>"):
                await connection.publish(f"{TOKEN}.ch.c.t", b"", inbox)
                assert (await soon(anext(listener))).reply is None
            await connection.publish(f"{TOKEN}.ch.c.t", b"", "_INBOX.abc.def")
            assert (await soon(anext(listener))).reply is not None
        assert await log.bounds() == (1, 0)

    on_a_server(tmp_path, body)


def test_a_member_has_nothing_to_present(tmp_path: Path) -> None:
    async def body(cluster: Cluster, network: Network) -> None:
        await network.present(b"bundle")
        guest = await connect(cluster.urls, identity=None)
        with pytest.raises(CallRejected) as caught:
            await guest.present(b"bundle")
        assert caught.value.rule == "present.identity"
        await guest.close()
        guest = await connect(cluster.urls, identity=member_key(1))
        with pytest.raises(TooLarge) as large:
            await guest.present(bytes(MAX_BUNDLE + 1))
        assert large.value.rule == "present.size"
        await guest.close()
        with pytest.raises(Unavailable):
            await guest.present(b"")
        await network.close()
        with pytest.raises(Unavailable):
            await network.present(b"")

    on_a_server(tmp_path, body)


def test_silence_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is frozen sends no end of the connection."""

    async def body(cluster: Cluster, network: Network) -> None:
        wire = network._connection._wire  # type: ignore[attr-defined]
        cluster.stop_signal(0)
        await soon(wire.ended(0.1, 3))
        cluster.kill(0)
        await asyncio.to_thread(cluster.revive, 0)
        await soon((await network.table("t")).put("k", b""))

    monkeypatch.setattr(_nats_wire, "CLOSE_SECONDS", 0.5)
    on_a_server(tmp_path, body)
