"""What the handles of one process share, and a handle: permission, waiting, and being closed."""

import asyncio
import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from zipnet.errors import Denied, EngineMisconfigured, Unavailable
from zipnet.network._hub import Hub, Subscription, closed
from zipnet.network._sql import Transaction
from zipnet.network._writer import Failure, Writer
from zipnet.network.base import Item

T = TypeVar("T")


class Action(StrEnum):
    """What a handle may be refused."""

    CONNECT = "connect"
    READ = "read"
    WRITE = "write"
    SEND = "send"
    ASK = "ask"
    LISTEN = "listen"


# Whether an action is allowed on `log/NAME`, `table/NAME`, `blobs/NAME` or `channel/NAME/TOPIC`
# (a pattern for LISTEN); CONNECT is asked with the empty name.
Permits = Callable[[Action, str], bool]


class Watcher(Protocol):
    """Who is told what happens in tables."""

    def offer(self, table: str, item: Item) -> None: ...

    def wake(self) -> None: ...


class Engine:
    """One folder, its lock, its threads, and who waits for changes."""

    def __init__(self, folder: Path, lock: int, max_message: int, *, temporary: bool) -> None:
        self.folder = folder
        self.max_message = max_message
        self.durable = not temporary
        self.hub = Hub()
        self.handles = 0
        self.failure: Failure | None = None
        self.tips: dict[str, int] = {}
        self.readers: dict[str, set[asyncio.Future[None]]] = {}
        self.watchers: weakref.WeakSet[Watcher] = weakref.WeakSet()
        self.writer = Writer(
            folder / "engine.sqlite",
            durable=self.durable,
            on_commit=self._committed,
            on_failure=self._failed,
        )
        self.files = ThreadPoolExecutor(1, "zipnet-blobs")
        self._lock = lock

    async def close(self) -> None:
        """Carry out what was asked for, and leave nothing open."""
        try:
            await self.writer.close()
            await asyncio.get_running_loop().run_in_executor(self.files, int)
        finally:
            self.release()

    def release(self) -> None:
        """As `close`, for an engine whose writer has ended."""
        self.files.shutdown()
        if not self.durable:
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)

    def _committed(self, transaction: Transaction) -> None:
        for log, tip in transaction.tips.items():
            self.tips[log] = tip
            wake(self.readers.get(log, set()))
        for table, item in transaction.items:
            for watcher in self.watchers:
                watcher.offer(table, item)

    def _failed(self, failure: Failure) -> None:
        self.failure = failure
        for parked in self.readers.values():
            wake(parked)
        for watcher in self.watchers:
            watcher.wake()


class Handle:
    """One user of an engine. Its methods raise Unavailable once it was closed."""

    def __init__(self, engine: Engine, permits: Permits | None) -> None:
        self.engine = engine
        self.subscriptions: weakref.WeakSet[Subscription] = weakref.WeakSet()
        self._permits = permits
        self._closed = False
        self._waiting: set[asyncio.Future[Any]] = set()
        engine.handles += 1

    def check(self, action: Action, name: str) -> None:
        """Raises Denied."""
        if self._closed:
            raise closed()
        if self._permits is not None and not self._permits(action, name):
            raise Denied(
                "this node may not do that",
                got=f"{action} {name}".rstrip(),
                rule=f"permits.{action}",
                hint="tell the operator which node this is, and what it needs",
            )

    def check_alive(self) -> None:
        """Raises what the engine failed of."""
        if self._closed:
            raise closed()
        if self.engine.failure is not None:
            raise self.engine.failure()

    async def submit(self, run: Callable[[Transaction], T], seconds: float) -> T:
        """The result of `run` in the engine's next commit, which it reaches whoever waits."""
        if self._closed:
            raise closed()
        return await self.wait(self.engine.writer.submit(run), seconds)

    async def with_files(self, run: Callable[[], T], seconds: float) -> T:
        """The result of `run`, one at a time."""
        if self._closed:
            raise closed()
        loop = asyncio.get_running_loop()
        return await self.wait(loop.run_in_executor(self.engine.files, run), seconds)

    async def wait(self, source: asyncio.Future[T], seconds: float) -> T:
        """The result of `source`, which goes on when this ends early."""
        gate: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        source.add_done_callback(partial(_pass_on, gate))
        self._waiting.add(gate)
        try:
            async with asyncio.timeout(seconds):
                return await gate
        except TimeoutError:
            raise Unavailable(
                "no answer in time",
                expected=f"one within {seconds} s",
                rule="deadline",
                hint="it may have happened: try again with the same key and bytes",
            ) from None
        finally:
            self._waiting.discard(gate)

    async def park(self, parked: set[asyncio.Future[None]]) -> None:
        """Wait until `parked` is woken."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        parked.add(future)
        self._waiting.add(future)
        try:
            await future
        finally:
            parked.discard(future)
            self._waiting.discard(future)

    async def close(self) -> None:
        """Give Unavailable to all who wait. The last handle closes the engine."""
        if self._closed:
            return
        self._closed = True
        for future in self._waiting:
            if not future.done():
                future.set_exception(closed())
        for subscription in list(self.subscriptions):
            subscription.close()
        self.engine.handles -= 1
        if not self.engine.handles:
            await self.engine.close()


def claim(path: Path | None) -> tuple[Path, int]:
    """The engine's folder, made if need be, and a lock on it. Raises EngineMisconfigured."""
    try:
        if path is None:
            path = Path(tempfile.mkdtemp(prefix="zipnet-"))
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise EngineMisconfigured(
            "the engine's folder can't be used",
            expected="a folder that this process may write to",
            got=str(error),
            rule="folder",
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise EngineMisconfigured(
            "the engine's folder is in use",
            expected=f"no other process with {path} open",
            got=str(error),
            rule="folder-in-use",
            hint="stop the other process; nodes in several processes or machines need NATS",
        ) from error
    return path, lock


def wake(parked: set[asyncio.Future[None]]) -> None:
    """End the wait of all who are parked."""
    for future in parked:
        if not future.done():
            future.set_result(None)


def _pass_on(gate: asyncio.Future[T], source: asyncio.Future[T]) -> None:
    # Asked for even if nobody waits, or asyncio would complain that nobody did.
    error = None if source.cancelled() else source.exception()
    if gate.done():
        return
    if error is not None:
        gate.set_exception(error)
    elif not source.cancelled():
        gate.set_result(source.result())
