"""The one thread that touches the local engine's SQLite file, and commits calls in groups.

Results, and what changed, go to the event loop only after the commit. A call whose caller has gone
is carried out all the same. After what can't be made good (another program wrote into the file, the
disk failed) every call gets the same error, until the engine is opened anew.
"""

import asyncio
import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from zipnet.errors import LogBroken, Unavailable, ZipnetError
from zipnet.network import _sql
from zipnet.network._sql import Transaction

T = TypeVar("T")
MAX_GROUP = 512
MAX_WAITING = 16_384
IDLE_SECONDS = 1.0
_FATAL = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

# Makes a new exception for each caller, lest they share a traceback.
Failure = Callable[[], ZipnetError]


@dataclass(frozen=True, slots=True)
class _Job:
    run: Callable[[Transaction], Any]
    future: asyncio.Future[Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What to tell the caller that waits for `future`: an error, or else the result."""

    future: asyncio.Future[Any]
    result: Any
    error: ZipnetError | None = None

    def deliver(self) -> None:
        """To be called in the event loop."""
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class Writer:
    """Runs functions over a `Transaction`, in the order of the calls.

    `on_commit` and `on_failure` are called in the event loop; the former before any caller hears
    of the commit, the latter at most once.
    """

    def __init__(
        self,
        path: Path,
        *,
        durable: bool,
        on_commit: Callable[[Transaction], None],
        on_failure: Callable[[Failure], None],
    ) -> None:
        self._path = path
        self._durable = durable
        self._on_commit = on_commit
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        # A daemon: a program that ends without `close` ends as by a crash, which loses nothing.
        self._thread = threading.Thread(target=self._run, name="zipnet-sqlite", daemon=True)

    async def open(self) -> None:
        """Start. Raises EngineMisconfigured, LogBroken, Unavailable."""
        self._thread.start()
        try:
            await self._opened
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Carry out what was asked for, and end."""
        self._jobs.put(None)
        try:
            await asyncio.shield(self._ended)
        finally:
            self._thread.join()

    def submit(self, run: Callable[[Transaction], T]) -> asyncio.Future[T]:
        """Let the thread run it. The future raises what `run` raises, LogBroken, Unavailable."""
        if self._jobs.qsize() >= MAX_WAITING:
            raise Unavailable(
                "too many calls at a time",
                expected=f"at most {MAX_WAITING}",
                rule="overload",
                hint="the disk is slow or hangs: wait, then try again",
            )
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put(_Job(run, future))
        return future

    def _run(self) -> None:
        try:
            with contextlib.closing(_sql.connect(self._path, durable=self._durable)) as db:
                work = _Work(self, db)
                self._post(_succeed, self._opened)
                work.run()
        except ZipnetError as error:
            self._post(_fail, self._opened, error)
        except sqlite3.Error as error:
            self._post(_fail, self._opened, _explain(error, self._path)())
        finally:
            self._post(_succeed, self._ended)

    def _post(self, call: Callable[..., None], *arguments: Any) -> bool:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:  # the loop was closed
            return False
        return True


class _Work:
    """The part that lives in the thread."""

    def __init__(self, writer: Writer, db: sqlite3.Connection) -> None:
        self._writer = writer
        self._db = db
        self._files = _identities(writer._path)
        self._version = _data_version(db)
        self._expiry = _sql.next_expiry(db)
        self._failure: Failure | None = None

    def run(self) -> None:
        going = True
        while going:
            jobs, going = self._take()
            going = self._step(jobs) and going

    def _take(self) -> tuple[list[_Job], bool]:
        wait = max(0.0, min(IDLE_SECONDS, self._expiry - time.time()))
        jobs: list[_Job] = []
        with contextlib.suppress(queue.Empty):
            job = self._writer._jobs.get(timeout=wait)
            while job is not None and len(jobs) < MAX_GROUP - 1:
                jobs.append(job)
                job = self._writer._jobs.get_nowait()
            if job is None:
                return jobs, False
            jobs.append(job)
        return jobs, True

    def _step(self, jobs: list[_Job]) -> bool:
        writer = self._writer
        if self._failure is None:
            try:
                transaction, outcomes = self._commit(jobs)
            except LogBroken as error:
                self._fail(partial(_copy, error))
            except Exception as error:
                explain = _explain(error, writer._path)
                if _code(error) in _FATAL:
                    self._fail(explain)
                else:
                    outcomes = [Outcome(job.future, None, explain()) for job in jobs]
                    return writer._post(_deliver, outcomes)
            else:
                return writer._post(self._publish, transaction, outcomes)
        failure = self._failure
        assert failure is not None
        return writer._post(_deliver, [Outcome(job.future, None, failure()) for job in jobs])

    def _publish(self, transaction: Transaction, outcomes: list[Outcome]) -> None:
        self._writer._on_commit(transaction)
        _deliver(outcomes)

    def _fail(self, failure: Failure) -> None:
        self._failure = failure
        self._expiry = float("inf")
        self._writer._post(self._writer._on_failure, failure)

    def _commit(self, jobs: list[_Job]) -> tuple[Transaction, list[Outcome]]:
        transaction = Transaction(self._db, time.time())
        outcomes = []
        self._check_files()
        self._db.execute("begin immediate")
        try:
            self._check_version()
            if transaction.now >= self._expiry:
                _sql.expire(transaction)
            for job in jobs:
                try:
                    outcomes.append(Outcome(job.future, job.run(transaction)))
                except ZipnetError as error:
                    outcomes.append(Outcome(job.future, None, error))
            expiry = _sql.next_expiry(self._db) if transaction.items else self._expiry
            self._db.execute("commit")
            self._expiry = expiry
        except BaseException:
            self._expiry = max(self._expiry, transaction.now + IDLE_SECONDS)
            if self._db.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("rollback")
            raise
        return transaction, outcomes

    def _check_files(self) -> None:
        if _identities(self._writer._path) != self._files:
            raise LogBroken(
                "the engine's files were removed or replaced",
                expected=str(self._writer._path),
                rule="log.file",
                hint="stop this node; restore the folder, or have it join anew",
            )

    def _check_version(self) -> None:
        if _data_version(self._db) != self._version:
            raise LogBroken(
                "another program wrote into the engine's file",
                expected=f"no writer of {self._writer._path} but this process",
                rule="log.foreign",
                hint="stop this node; find out what was changed",
            )


def _identities(path: Path) -> list[tuple[int, int] | None]:
    found: list[tuple[int, int] | None] = []
    for file in (path, path.with_name(f"{path.name}-wal")):
        try:
            state = file.stat()
        except OSError:
            found.append(None)
        else:
            found.append((state.st_dev, state.st_ino))
    return found


def _data_version(db: sqlite3.Connection) -> int:
    """A number that changes when another connection commits, not when this one does."""
    (version,) = db.execute("pragma data_version").fetchone()
    return int(version)


def _code(error: Exception) -> int:
    """SQLite's primary result code; -1 for another error."""
    code = getattr(error, "sqlite_errorcode", None)
    return -1 if code is None else code & 0xFF


def _explain(error: Exception, path: Path) -> Failure:
    if _code(error) not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return lambda: _unavailable(error)
    return lambda: LogBroken(
        "the engine's file is damaged",
        expected=f"an SQLite file at {path}",
        got=str(error),
        rule="log.damaged",
        hint="stop this node; restore the folder, or have it join anew",
    )


def _unavailable(error: Exception) -> Unavailable:
    unavailable = Unavailable(
        "the engine could not commit",
        got=f"{type(error).__name__}: {error}",
        rule="commit",
        hint="check the disk; then try again with the same key and bytes",
    )
    unavailable.__cause__ = error
    return unavailable


def _copy(error: LogBroken) -> LogBroken:
    return LogBroken(
        error.message,
        expected=error.expected,
        got=error.got,
        rule=error.rule,
        hint=error.hint,
    )


def _deliver(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        outcome.deliver()


def _succeed(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[None], error: ZipnetError) -> None:
    if not future.done():
        future.set_exception(error)
