"""A node as a process: what it logs, when it is ready, how signals and errors end it.

SIGTERM and SIGINT let a node say goodbye and close what it has open; after GRACE_S it ends whatever
it is doing. Everything that must survive is on disk before it counts, so nothing is lost then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from attestation.collateral_cache import read_collateral
from attestation.errors import Explained, FileUnreadable
from attestation.files import read_file
from attestation.verify import MAX_COLLATERAL, Collateral
from zipnet.errors import Attestation
from zipnet.node import exposition
from zipnet.node.exposition import Bundles
from zipnet.node.service_notify import Readiness
from zipnet.roles.admission import CollateralSource

GRACE_S = 5.0
# For what a node does on its way out, so that closing has time left.
GOODBYE_S = 2.0
# Said by the tasks that another one's error has stopped.
CONSEQUENCES = frozenset({"halted", "closed", "ended"})

log = logging.getLogger("zipnet.service")

Node = Callable[[Readiness], Awaitable[None]]


def run(node: Node, readiness: Readiness | None = None) -> int:
    """Run a node until it is told to end; the exit code.

    Raises Explained for what stopped it: of several errors the one that the others follow from.
    """
    with logged():
        try:
            asyncio.run(_until_told(node, readiness or Readiness.of_environment()))
        except BaseExceptionGroup as group:
            raise _explained(cause(group)) from group
        except OSError as error:
            raise _explained(error) from error
    return 0


def cause(error: BaseException) -> BaseException:
    """What stopped a node: of all errors in a group the first that follows from no other."""
    errors = list(_flat(error))
    explained = [one for one in errors if isinstance(one, Explained)]
    unexpected = [one for one in errors if not isinstance(one, Explained)]
    first = [one for one in explained if one.rule not in CONSEQUENCES]
    return (unexpected or first or explained)[0]


@contextlib.contextmanager
def logged() -> Iterator[None]:
    """Log to standard error, one line a message."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine())
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    # What it says at this level of each request has addresses in it that nobody asked for.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before)


class OneLine(logging.Formatter):
    """Time (UTC), level, logger and message, line ends escaped: others have a say in messages."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802, ARG002
        """As `logging.Formatter.formatTime`."""
        at = datetime.fromtimestamp(record.created, UTC)
        return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def format(self, record: logging.LogRecord) -> str:
        """As `logging.Formatter.format`."""
        return "\\n".join(super().format(record).splitlines())


@contextlib.asynccontextmanager
async def measured(
    address: tuple[str, int] | None, text: Callable[[], str], evidence: Bundles | None = None
) -> AsyncIterator[int | None]:
    """Serve metrics, and evidence if there is some, at `address`; gives the port.

    Nothing without an address. Raises NoNetwork.
    """
    if address is None:
        yield None
        return
    async with exposition.serve(*address, text, evidence) as port:
        log.info("metrics on port %d", port)
        yield port


def collateral_source(path: Path | None) -> CollateralSource:
    """The collateral in a file, whichever quote it is asked for.

    Raises FileError, CollateralFormatError. What it gives raises Attestation if there is no file.
    """
    return at_hand(None if path is None else read_collateral(read_file(path, MAX_COLLATERAL)))


def at_hand(found: Collateral | None) -> CollateralSource:
    """This collateral, whichever quote it is asked for; raises Attestation if there is none."""

    def get(_quote: bytes) -> Collateral:
        if found is None:
            raise Attestation(
                "the servers' quotes can't be checked",
                expected="collateral for their platforms",
                got="none",
                rule="collateral",
                hint="give Intel's documents by --collateral FILE, or --pccs and --fmspc",
            )
        return found

    return get


async def _until_told(node: Node, readiness: Readiness) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    told: list[signal.Signals] = []

    def end(which: signal.Signals) -> None:
        if not told and task is not None:
            log.info("%s: stopping", which.name)
            readiness.stopping()
            loop.call_later(GRACE_S, _give_up)
            task.cancel()
        told.append(which)

    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, end, number)
    try:
        await node(readiness)
    except (Exception, asyncio.CancelledError) as error:
        if not told:
            raise
        if not isinstance(error, asyncio.CancelledError):
            log.warning("on the way out: %s", cause(error))
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _give_up() -> None:
    log.warning("still not done after %g s: ending", GRACE_S)
    os._exit(0)


def _flat(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _flat(one)
    else:
        yield error


def _explained(error: BaseException) -> BaseException:
    """An error of the operating system as ours."""
    if not isinstance(error, OSError):
        return error
    return FileUnreadable(
        f"the system does not do what this node needs: {error}",
        rule="system",
        hint="look at the disk and at permissions; nothing is lost by starting again",
    )
