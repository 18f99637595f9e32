"""Who is let in to an instance on guarded nodes, and that all the others hear why they are not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from attestation.bundle import Fresh, Role
from attestation.providers.mock import MockTee
from tests.zipnet.instance.nats_town import NatsTown, nats_town
from tests.zipnet.instance.support import PATIENCE, run, together
from zipnet.demo import CLIENT, SERVER
from zipnet.errors import Attestation
from zipnet.protocol.instance import Instance
from zipnet.roles.admission import TICKET_LIFE, Ticketing, config_digest
from zipnet.roles.client import ClientRole
from zipnet.unsafe_programs import Program, ProgramQuotes

OTHER_CLIENT = Program("client 2", "client")


@dataclass(frozen=True)
class Old:
    """Tickets that are always some time old."""

    made: Ticketing
    age: timedelta

    def bundle(self, fresh: bytes, kind: Fresh, now: datetime) -> bytes:
        return self.made.bundle(fresh, kind, now - self.age)


async def outsider(made: NatsTown, change: Callable[[Ticketing], object]) -> ClientRole:
    """A client with other tickets than it should have, started."""
    role_of: list[ClientRole] = []

    def ticketing(_instance: Instance) -> object:
        identity = role_of[0]._set.identity
        return change(made.operators.ticketing(Role.CLIENT, identity, CLIENT))

    role = await made.enter(ticketing=ticketing)
    role_of.append(role)
    return role


async def refused(made: NatsTown, client: ClientRole, text: str) -> Attestation:
    """The reason that a client's program hears."""
    await asyncio.wait_for(client.ready(), PATIENCE)
    with pytest.raises(Attestation) as caught:
        await asyncio.wait_for(made.say(client, text), PATIENCE)
    return caught.value


def forged(made: NatsTown) -> Callable[[Ticketing], object]:
    """Quotes that a laptop has signed by itself."""
    config = made.operators.config
    quotes = ProgramQuotes(MockTee(b"\x66" * 32), CLIENT, config_digest(config) + bytes(16))

    def change(plain: Ticketing) -> Ticketing:
        return Ticketing(
            config, plain.instance, Role.CLIENT, plain.identity, quotes, 1, plain.instance_id
        )

    return change


@pytest.mark.slow
def test_three_operators_admit_who_passes_and_tell_the_others_why(tmp_path: Path) -> None:
    async def body() -> None:
        async with nats_town(tmp_path, nodes=3) as made:
            good = [await made.enter() for _ in range(4)]
            forger = await outsider(made, forged(made))
            unlisted = await made.enter(OTHER_CLIENT)
            age = timedelta(seconds=TICKET_LIFE + 20)
            expired = await outsider(made, lambda plain: Old(plain, age))
            await together([made.say_until_landed(one, f"{at}") for at, one in enumerate(good)])
            for client, rule in (
                (forger, "root-mismatch"),
                (unlisted, "mrtd"),
                (expired, "expired"),
            ):
                error = await refused(made, client, f"let me in by {rule}")
                assert error.rule == rule
                assert any(f"of {name} " in error.message for name in made.operators.keys)
                assert client.rounds == 0
            assert {"root-mismatch", "mrtd", "expired"} <= made.refusals()
            # Each door has admitted somebody, by its own issuer.
            assert sum(door.admitted for door in made.doors.values()) >= len(made.clients)
            await together(
                [made.say_until_landed(one, f"more {at}") for at, one in enumerate(good)]
            )
            assert not made.errors
            await made.check()

    run(body())


def test_a_new_list_ends_connections_and_lets_others_in(tmp_path: Path) -> None:
    async def body() -> None:
        async with nats_town(tmp_path) as made:
            old = [await made.enter() for _ in range(3)]
            await made.say_until_landed(old[0], "in time")
            new = [await made.enter(OTHER_CLIENT) for _ in range(3)]
            assert (await refused(made, new[0], "too early")).rule == "mrtd"
            await made.push(made.operators.allow_list(2, SERVER, CLIENT, OTHER_CLIENT))
            await made.until(lambda: all(client.taking_part.is_set() for client in new))
            await made.say_until_landed(new[0], "both")
            door = made.doors["alpha"]
            before = door.refused.get("mrtd", 0)
            await made.push(made.operators.allow_list(3, SERVER, OTHER_CLIENT))
            await made.until(lambda: all(client.refusal == "mrtd" for client in old))
            # They were thrown out, came back, and were refused.
            await made.until(lambda: door.refused.get("mrtd", 0) > before)
            for client in old:
                shown = client._network._presented  # type: ignore[attr-defined]
                await made.until(lambda shown=shown: shown.refused)  # type: ignore[misc]
            assert (await refused(made, old[0], "too late")).rule == "mrtd"
            await together([made.say_until_landed(one, f"news {at}") for at, one in enumerate(new)])
            assert not made.errors
            await made.check()

    run(body())
