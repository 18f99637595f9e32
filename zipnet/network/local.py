"""The network within one process: asyncio, SQLite and files.

One process opens a folder at a time; in it, any number of handles share the engine. What was
answered survives a crash of the process and, but for a folder that is temporary, of the machine.
All handles belong to the event loop in which the engine was opened.
"""

import asyncio
from collections import deque
from functools import partial
from pathlib import Path

from zipnet.errors import EngineMisconfigured, Unavailable
from zipnet.network import _files, _sql
from zipnet.network._engine import Action, Engine, Handle, Permits, claim, wake
from zipnet.network._hub import Subscription
from zipnet.network.base import (
    LISTEN_BYTES,
    Entry,
    Item,
    Message,
    check_digest,
    check_log_key,
    check_name,
    check_number,
    check_pattern,
    check_prefix,
    check_size,
    check_table_key,
    check_topic,
    check_ttl,
)

__all__ = ["MAX_MESSAGE", "Action", "LocalNetwork", "Permits"]

MAX_MESSAGE = (8 << 20) - (4 << 10)
MESSAGE_LIMIT = 256 << 20
# For calls of the port that have no deadline of their own.
CALL_SECONDS = 10.0


class LocalNetwork:
    """A `Network`: one handle on an engine in this process. Made by `open` and `connect`."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    @classmethod
    async def open(
        cls, path: Path | None = None, *, max_message: int = MAX_MESSAGE
    ) -> "LocalNetwork":
        """Open or create the engine in a folder; if None in a temporary one, which `close` removes.

        Raises EngineMisconfigured (in use, of another version), LogBroken (damaged), Unavailable.
        """
        if not 1 <= max_message <= MESSAGE_LIMIT:
            raise EngineMisconfigured(
                "this is no limit for messages",
                expected=f"1 to {MESSAGE_LIMIT} bytes",
                got=str(max_message),
                rule="max-message",
            )
        folder, lock = claim(path)
        engine = Engine(folder, lock, max_message, temporary=path is None)
        try:
            await engine.writer.open()
        except BaseException:
            engine.release()
            raise
        return cls(Handle(engine, None))

    async def connect(self, permits: Permits | None = None) -> "LocalNetwork":
        """Another handle on the same engine, which lasts as long as any handle is open.

        `permits` says what the new handle may do, None for all. In a process that is no boundary:
        it lets a node meet the refusals that a real network has. Raises Denied, Unavailable.
        """
        self._handle.check_alive()
        handle = Handle(self._handle.engine, permits)
        try:
            handle.check(Action.CONNECT, "")
        except BaseException:
            await handle.close()
            raise
        return LocalNetwork(handle)

    @property
    def max_message(self) -> int:
        """The largest payload in bytes that a log, a table or a channel takes."""
        return self._handle.engine.max_message

    async def log(self, name: str) -> "LocalLog":
        """As `Network.log`."""
        check_name(name)
        await self._handle.submit(partial(_sql.open_log, log=name), CALL_SECONDS)
        return LocalLog(self._handle, name)

    async def table(self, name: str) -> "LocalTable":
        """As `Network.table`."""
        check_name(name)
        await self._handle.submit(partial(_sql.open_table, table=name), CALL_SECONDS)
        return LocalTable(self._handle, name)

    def channel(self, name: str) -> "LocalChannel":
        """As `Network.channel`."""
        return LocalChannel(self._handle, check_name(name))

    async def blobs(self, name: str) -> "LocalBlobs":
        """As `Network.blobs`."""
        folder = self._handle.engine.folder / "blobs" / check_name(name)
        await self._handle.with_files(partial(_files.tidy, folder), CALL_SECONDS)
        return LocalBlobs(self._handle, name, folder)

    async def present(self, bundle: bytes) -> None:  # noqa: ARG002
        """As `Network.present`: nobody guards it."""
        self._handle.check_alive()

    async def close(self) -> None:
        """As `Network.close`. The last handle closes the engine."""
        await self._handle.close()


class LocalLog:
    """A `Log`."""

    def __init__(self, handle: Handle, name: str) -> None:
        self._handle = handle
        self._name = name

    async def append(
        self, data: bytes, *, key: str, expect: int | None = None, deadline: float = 10.0
    ) -> int:
        """As `Log.append`."""
        check_log_key(key)
        check_size(data, self._handle.engine.max_message)
        if expect is not None:
            check_number(expect, "append.expect")
        self._handle.check(Action.WRITE, f"log/{self._name}")
        write = partial(_sql.append, log=self._name, data=bytes(data), key=key, expect=expect)
        return await self._handle.submit(write, deadline)

    def read(self, after: int = 0) -> "_Reader":
        """As `Log.read`."""
        return _Reader(self._handle, self._name, check_number(after, "log.after"))

    async def bounds(self) -> tuple[int, int]:
        """As `Log.bounds`."""
        self._handle.check(Action.READ, f"log/{self._name}")
        return await self._handle.submit(partial(_sql.bounds, log=self._name), CALL_SECONDS)

    async def trim(self, upto: int) -> None:
        """As `Log.trim`."""
        self._handle.check(Action.WRITE, f"log/{self._name}")
        await self._handle.submit(partial(_sql.trim, log=self._name, upto=upto), CALL_SECONDS)


class _Reader:
    def __init__(self, handle: Handle, log: str, after: int) -> None:
        self._handle = handle
        self._log = log
        self._seen = after
        self._page: deque[Entry] = deque()
        self._paged = False

    def __aiter__(self) -> "_Reader":
        return self

    async def __anext__(self) -> Entry:
        self._handle.check(Action.READ, f"log/{self._log}")
        engine = self._handle.engine
        while not self._page:
            self._handle.check_alive()
            if self._paged and engine.tips[self._log] <= self._seen:
                await self._handle.park(engine.readers.setdefault(self._log, set()))
                continue
            page = partial(_sql.page, log=self._log, after=self._seen)
            self._page.extend(await self._handle.submit(page, CALL_SECONDS))
            self._paged = True
        entry = self._page.popleft()
        self._seen = entry.seq
        return entry


class LocalTable:
    """A `Table`."""

    def __init__(self, handle: Handle, name: str) -> None:
        self._handle = handle
        self._name = name

    async def get(self, key: str) -> Item | None:
        """As `Table.get`."""
        check_table_key(key)
        self._handle.check(Action.READ, f"table/{self._name}")
        read = partial(_sql.get, table=self._name, key=key)
        return await self._handle.submit(read, CALL_SECONDS)

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
        check_size(value, self._handle.engine.max_message)
        check_ttl(ttl)
        if expect is not None:
            check_number(expect, "table.expect")
        self._handle.check(Action.WRITE, f"table/{self._name}")
        write = partial(
            _sql.put, table=self._name, key=key, value=bytes(value), expect=expect, ttl=ttl
        )
        return await self._handle.submit(write, deadline)

    async def delete(self, key: str, *, expect: int | None = None) -> None:
        """As `Table.delete`."""
        check_table_key(key)
        if expect is not None:
            check_number(expect, "table.expect")
        self._handle.check(Action.WRITE, f"table/{self._name}")
        write = partial(_sql.delete, table=self._name, key=key, expect=expect)
        await self._handle.submit(write, CALL_SECONDS)

    def watch(self, prefix: str = "") -> "_Watch":
        """As `Table.watch`."""
        return _Watch(self._handle, self._name, check_prefix(prefix))


class _Watch:
    def __init__(self, handle: Handle, table: str, prefix: str) -> None:
        self._handle = handle
        self._table = table
        self._prefix = prefix
        self._current: deque[Item] = deque()
        # The last change of each key, oldest change first.
        self._changes: dict[str, Item] = {}
        self._started = False
        self._parked: set[asyncio.Future[None]] = set()

    def __aiter__(self) -> "_Watch":
        return self

    async def __anext__(self) -> Item:
        self._handle.check(Action.READ, f"table/{self._table}")
        if not self._started:
            await self._start()
        while not self._current and not self._changes:
            self._handle.check_alive()
            await self._handle.park(self._parked)
        if self._current:
            return self._current.popleft()
        return self._changes.pop(next(iter(self._changes)))

    def offer(self, table: str, item: Item) -> None:
        """Something was committed."""
        if table == self._table and item.key.startswith(self._prefix):
            self._changes.pop(item.key, None)
            self._changes[item.key] = item
            self.wake()

    def wake(self) -> None:
        """Look again."""
        wake(self._parked)

    async def _start(self) -> None:
        self._handle.engine.watchers.add(self)
        read = partial(_sql.snapshot, table=self._table, prefix=self._prefix)
        rev, items = await self._handle.submit(read, CALL_SECONDS)
        self._current.extend(items)
        self._changes = {key: item for key, item in self._changes.items() if item.rev > rev}
        self._started = True


class LocalChannel:
    """A `Channel`."""

    def __init__(self, handle: Handle, name: str) -> None:
        self._handle = handle
        self._name = name

    async def send(self, topic: str, data: bytes) -> None:
        """As `Channel.send`."""
        self._check(Action.SEND, topic, data)
        self._handle.engine.hub.publish(self._name, Message(topic, bytes(data)))
        # Listeners of the same process take turns with a busy sender.
        await asyncio.sleep(0)

    async def ask(self, topic: str, data: bytes, timeout: float = 5.0) -> bytes:
        """As `Channel.ask`."""
        self._check(Action.ASK, topic, data)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def reply(data: bytes) -> None:
            check_size(data, self._handle.engine.max_message)
            if not answer.done():
                answer.set_result(bytes(data))

        if not self._handle.engine.hub.publish(self._name, Message(topic, bytes(data), reply)):
            raise Unavailable(
                "nobody listens",
                expected=f"an answer about {topic}",
                rule="ask.nobody",
                hint="try again later",
            )
        return await self._handle.wait(answer, timeout)

    def listen(self, pattern: str, *, max_bytes: int = LISTEN_BYTES) -> Subscription:
        """As `Channel.listen`."""
        check_pattern(pattern)
        check_number(max_bytes, "listen.max-bytes", 1)
        may = partial(self._handle.check, Action.LISTEN, f"channel/{self._name}/{pattern}")
        subscription = Subscription(self._handle.engine.hub, self._name, pattern, max_bytes, may)
        self._handle.subscriptions.add(subscription)
        return subscription

    def _check(self, action: Action, topic: str, data: bytes) -> None:
        check_topic(topic)
        check_size(data, self._handle.engine.max_message)
        self._handle.check(action, f"channel/{self._name}/{topic}")


class LocalBlobs:
    """A `Blobs`."""

    def __init__(self, handle: Handle, name: str, folder: Path) -> None:
        self._handle = handle
        self._name = name
        self._folder = folder

    async def put(self, data: bytes) -> bytes:
        """As `Blobs.put`."""
        self._handle.check(Action.WRITE, f"blobs/{self._name}")
        durable = self._handle.engine.durable
        store = partial(_files.put, self._folder, bytes(data), durable=durable)
        return await self._handle.with_files(store, CALL_SECONDS)

    async def get(self, digest: bytes) -> bytes:
        """As `Blobs.get`."""
        check_digest(digest)
        self._handle.check(Action.READ, f"blobs/{self._name}")
        return await self._handle.with_files(
            partial(_files.get, self._folder, bytes(digest)), CALL_SECONDS
        )
