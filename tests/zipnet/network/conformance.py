"""What every engine must do, independent of the engine.

A back-end plugs in by a `Harness`; `suites.CASES` has all cases, each with a name. A case gets
three handles on one engine, makes names of its own with `Bench.name`, and so can share the engine
with others; only cases that need an ability may harm it for a while.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import pytest

from zipnet.network.base import Network

T = TypeVar("T")
# The log, table and archive that a guest may read; it may do nothing else.
PUBLIC_LOG = "public"
# How long anything but a killed engine may take, in seconds. Enough for a busy machine.
PATIENCE = 20.0

Action = Callable[["Bench"], Awaitable[None]]


class Harness(Protocol):
    """One engine, and what can be done to it. Abilities that it lacks are named with a reason.

    `max_message` should be about 2 MB.
    """

    @property
    def lacks(self) -> dict[str, str]: ...

    async def connect(self) -> Network:
        """One more handle."""
        ...

    async def guest(self) -> Network:
        """A handle that may only read what has the name PUBLIC_LOG (ability "deny")."""
        ...

    async def stranger(self) -> Network:
        """Must raise Denied: a node that is not admitted (ability "deny")."""
        ...

    async def kill(self) -> None:
        """End the engine now; calls under way fail (ability "kill")."""
        ...

    async def revive(self) -> None:
        """Start it again with what it had stored; older handles need not work (ability "kill")."""
        ...

    async def delete_log(self, name: str) -> None:
        """Delete a log behind everybody's back (ability "delete-log")."""
        ...

    async def alter_blob(self, archive: str, digest: bytes) -> None:
        """Change a stored blob (ability "alter-blob")."""
        ...

    async def cut(self, network: Network) -> None:
        """Break a handle's connection, and let it come back (ability "cut")."""
        ...

    async def close(self) -> None:
        """End all handles and the engine."""
        ...


@dataclass(slots=True)
class Bench:
    """What a case works with. `d` is for who comes later."""

    harness: Harness
    a: Network
    b: Network
    c: Network
    prefix: str
    _made: int = 0

    def name(self) -> str:
        """A name that no other case has."""
        self._made += 1
        return f"{self.prefix}-{self._made}"

    async def d(self) -> Network:
        return await self.harness.connect()


@dataclass(frozen=True, slots=True)
class Case:
    """`needs` is the ability of the harness without which the case is skipped."""

    name: str
    run: Action
    needs: str = ""

    def __str__(self) -> str:
        return self.name


class Suite:
    """Cases of one subject, in order."""

    def __init__(self) -> None:
        self.cases: list[Case] = []

    def case(self, name: str, *, needs: str = "") -> Callable[[Action], Action]:
        """Add a function under a name."""

        def add(run: Action) -> Action:
            self.cases.append(Case(name, run, needs))
            return run

        return add


def run(case: Case, harness: Harness) -> None:
    """Run one case on an engine of its own or on a shared one, as the harness has it."""
    if case.needs in harness.lacks:
        pytest.skip(f"{case.name}: {harness.lacks[case.needs]}")

    async def body() -> None:
        try:
            a, b, c = [await harness.connect() for _ in range(3)]
            prefix = "".join(c if c.isalnum() else "-" for c in case.name)
            await case.run(Bench(harness, a, b, c, prefix))
        finally:
            await harness.close()

    asyncio.run(asyncio.wait_for(body(), 5 * PATIENCE))


async def soon(awaitable: Awaitable[T]) -> T:
    """The result, which must come in time."""
    return await asyncio.wait_for(awaitable, PATIENCE)


async def take(iterator: AsyncIterator[T], number: int) -> list[T]:
    """So many of them."""
    return [await soon(anext(iterator)) for _ in range(number)]


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Poll until it holds; fail if it does not in time."""

    async def poll() -> None:
        while not await condition():
            await asyncio.sleep(0.02)

    await soon(poll())
