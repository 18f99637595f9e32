"""Why an envelope is not in its round: what a client learns though the answer was lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from secrets import token_bytes
from typing import Any

import pytest

from tests.simulator.world import World
from tests.zipnet.instance.support import PATIENCE, Town, run, town
from zipnet.demo import DemoInstance
from zipnet.errors import Refused, Unavailable
from zipnet.network.base import Channel
from zipnet.network.local import LocalNetwork
from zipnet.network.places import Places
from zipnet.network.public import receipts_key, submit_topic
from zipnet.protocol.envelope import (
    PAYLOAD_AT,
    RATE_TAG_AT,
    TRAILER_BYTES,
    Envelope,
    envelope_bytes,
    leaf_keys,
    seal_envelope,
)
from zipnet.protocol.receipts import ENTRY, Receipt, Status, check_blob, join
from zipnet.roles.aggregator import AggregatorRole
from zipnet.roles.aggregator_core import AggregatorCore
from zipnet.roles.client import ClientRole
from zipnet.roles.identity import Identity
from zipnet.roles.unanswered import ABSENT, LATE, NO_RECEIPT, TAKEN, Told

# The leaf's bookkeeping, without a network


def begun(clients: int = 4, tree: tuple[int, ...] = (0,)) -> World:
    """A world whose round is live, and whose folds have begun."""
    world = World(3, clients=clients, tree=tree).start()
    world.open()
    world.seal()
    world.begin_folds()
    return world


def read(world: World, at: int = 0) -> dict[bytes, Receipt]:
    """What each client reads in the receipts of the leaf at this place."""
    core, header = world.folds[at], world.header.header
    receipts = core.receipts()
    assert receipts is not None
    assert (receipts.header, receipts.node) == (header, at)
    blob = join(receipts.seal(place, world.draw) for place in range(len(receipts.due)))
    found = {}
    for user in world.users:
        if world.tree.leaf_for(user.id) == at:
            leaf = world.tree.nodes[at]
            receipt = user.core.receipt(blob, header.round, leaf, len(receipts.due))
            assert receipt is not None
            found[user.id] = receipt
    assert len(found) == len(receipts.due)
    assert len(blob) == len(found) * ENTRY
    return found


def absorb(core: AggregatorCore, envelope: bytes) -> str:
    """The rule by which an envelope is refused, if it is."""
    try:
        core.absorb(envelope)
    except Refused as error:
        return error.rule
    return ""


def test_everybody_has_a_receipt() -> None:
    world = begun()
    one, other, lazy, late = world.users
    core = world.folds[0]
    for user in (one, other):
        core.absorb(world.envelopes[user.id])
    core.close()
    assert absorb(core, world.envelopes[late.id]) == LATE
    assert absorb(core, world.envelopes[one.id]) == ""
    assert read(world) == {
        one.id: Receipt(Status.TAKEN),
        other.id: Receipt(Status.TAKEN),
        lazy.id: Receipt(Status.ABSENT),
        late.id: Receipt(Status.LATE),
    }


def test_leaves_of_a_tree_have_their_own() -> None:
    world = begun(8, tree=(0, 0, 0))
    assert world.folds[0].receipts() is None
    assert read(world, 1).keys() | read(world, 2).keys() == {user.id for user in world.users}


def resealed(world: World, at: int, **changes: Any) -> bytes:
    """An envelope of a client with other content, under its own keys."""
    user = world.users[at]
    old = Envelope.decode(world.envelopes[user.id], world.config.shape)
    leaf = world.tree.nodes[world.tree.leaf_for(user.id)].dh_pub
    keys = leaf_keys(user.identity.dh, leaf, world.instance, user.id, leaf)
    header = replace(world.header.header, **changes.pop("header", {}))
    parts = {"payload": old.payload, "rate_tag": old.rate_tag, **changes}
    return seal_envelope(
        header, user.id, parts["rate_tag"], parts["payload"], keys.mac, user.identity.signing
    )


def test_refusals_that_only_the_client_can_bring_about_are_noted() -> None:
    world = begun()
    core = world.folds[0]
    core.absorb(world.envelopes[world.users[0].id])
    tag = Envelope.decode(world.envelopes[world.users[0].id], world.config.shape).rate_tag
    assert absorb(core, resealed(world, 1, rate_tag=tag)) == "envelope.rate-tag"
    assert absorb(core, resealed(world, 2, header={"time_ms": 1})) == "envelope.header"
    found = read(world)
    assert found[world.users[1].id] == Receipt(Status.REFUSED, "envelope.rate-tag")
    assert found[world.users[2].id] == Receipt(Status.REFUSED, "envelope.header")
    # What is taken in the end counts, and a second envelope does not undo it.
    core.absorb(world.envelopes[world.users[1].id])
    twice = resealed(world, 1, rate_tag=bytes(16))
    assert absorb(core, twice) == "envelope.double-seal"
    assert read(world)[world.users[1].id] == Receipt(Status.TAKEN)


def test_nobody_writes_refusals_for_others() -> None:
    world = begun()
    core, victim = world.folds[0], world.users[0]
    good = world.envelopes[victim.id]
    flipped = bytearray(good)
    flipped[PAYLOAD_AT] ^= 1
    forged = bytearray(resealed(world, 0, header={"time_ms": 1}))
    forged[-TRAILER_BYTES] ^= 1
    assert absorb(core, bytes(flipped)) == "envelope.mac"
    assert absorb(core, bytes(forged)) == "envelope.header"
    assert read(world)[victim.id] == Receipt(Status.ABSENT)
    assert absorb(core, good) == ""
    assert read(world)[victim.id] == Receipt(Status.TAKEN)


def test_an_envelope_of_another_round_says_nothing_about_this_one() -> None:
    world = begun()
    old = dict(world.envelopes)
    for envelope in old.values():
        world.folds[0].absorb(envelope)
    world.envelopes.clear()
    world.submit(world.folds[0].close().encode())
    world.settle()
    world.open()
    world.begin_folds()
    for envelope in old.values():
        assert absorb(world.folds[0], envelope) == "envelope.round"
    assert set(read(world).values()) == {Receipt(Status.ABSENT)}


@pytest.mark.parametrize("moment", ["before", "during", "after"])
def test_what_was_lost_is_late(moment: str) -> None:
    world = begun()
    core = world.folds[0]
    if moment == "before":
        core.close()
        core.lose()
        world.begin_folds()
    core.absorb(world.envelopes[world.users[0].id])
    if moment == "during":
        core.lose()
    core.close()
    if moment == "after":
        core.lose()
    found = read(world)
    rest = Status.ABSENT if moment == "after" else Status.LATE
    assert found.pop(world.users[0].id) == Receipt(Status.TAKEN)
    assert set(found.values()) == {Receipt(rest)}


def test_receipts_are_bound_to_client_round_and_leaf() -> None:
    world = begun()
    receipts = world.folds[0].receipts()
    assert receipts is not None
    blob = join(receipts.seal(place, world.draw) for place in range(4))
    again = join(receipts.seal(place, world.draw) for place in range(4))
    check_blob(blob, 4)
    number, leaf, core = world.header.header.round, world.tree.nodes[0], world.users[0].core
    # Fresh keys each time: only the tags are the same.
    assert blob != again
    assert core.receipt(again, number, leaf, 4) == core.receipt(blob, number, leaf, 4)
    assert core.receipt(blob, number + 1, leaf, 4) is None
    stranger = world.user()
    assert stranger.core.receipt(blob, number, leaf, 4) is None
    altered = bytearray(blob)
    for at in range(4):
        altered[at * ENTRY + 60] ^= 1
    with pytest.raises(Refused) as caught:
        core.receipt(bytes(altered), number, leaf, 4)
    assert caught.value.rule == "receipt.open"


# On a network


class Deaf:
    """A channel that loses answers, or keeps envelopes back."""

    def __init__(self, real: Channel, before: Callable[[bytes], Awaitable[None]]) -> None:
        self._real = real
        self._before = before
        self.asked = 0

    async def ask(self, topic: str, data: bytes, timeout: float = 5.0) -> bytes:
        self.asked += 1
        await self._before(data)
        with contextlib.suppress(Unavailable):
            await self._real.ask(topic, data, timeout)
        raise Unavailable("the answer was lost", rule="ask.lost")


def deafen(
    client: ClientRole, when_it_speaks: Callable[[bytes], Awaitable[None]] | None = None
) -> None:
    """Lose this client's answers, and act before an envelope that has a message leaves."""

    async def before(envelope: bytes) -> None:
        spoken = {sent.round for sent in client._core.speaker.in_flight}
        if when_it_speaks is not None and max(client._unanswered) in spoken:
            await when_it_speaks(envelope)

    deaf = Deaf(client._submit_channel, before)
    client._submit_channel = deaf  # type: ignore[assignment]


async def everybody(made: Town) -> ClientRole:
    """Wait until all take part; the first of them."""
    await made.until(lambda: all(one.taking_part.is_set() for one in made.clients))
    await made.say_until_landed(made.clients[0], "hello")
    return made.clients[0]


async def say_until(made: Town, client: ClientRole, good: Callable[[Told], bool]) -> Told:
    for attempt in range(8):
        told = await asyncio.wait_for(made.say(client, f"try {attempt}"), 10)
        if good(told):
            return told
    raise AssertionError("it never comes to that")


def test_a_lost_answer_changes_no_outcome() -> None:
    async def body() -> None:
        async with town(clients=4) as made:
            await made.say_until_landed(made.clients[0], "hello")
            deafen(made.clients[0])
            told = await say_until(made, made.clients[0], lambda one: one.outcome == "landed")
            assert told.rule == ""
            await made.check()

    run(body())


def test_a_late_client_learns_it_without_an_answer() -> None:
    async def body() -> None:
        async with town(clients=4, round_period_ms=250, fold_deadline_ms=200) as made:
            client = await everybody(made)

            async def dawdle(_envelope: bytes) -> None:
                await made.until(lambda: made.aggregator._core._fold.closed)  # type: ignore[union-attr]

            deafen(client, dawdle)
            told = await say_until(made, client, lambda one: one.outcome == "late")
            assert told.rule in {LATE, ABSENT}
            assert told == Told("late", told.round, LATE)
            await made.check()

    run(body())


def test_a_refused_client_learns_it_without_an_answer() -> None:
    async def body() -> None:
        async with town(clients=4) as made:
            client, core = await everybody(made), made.aggregator._core

            async def spend(envelope: bytes) -> None:
                core._tags.add(envelope[RATE_TAG_AT:PAYLOAD_AT])

            deafen(client, spend)
            told = await say_until(made, client, lambda one: one.rule != "")
            assert told == Told("refused", told.round, "envelope.rate-tag")

    run(body())


def test_a_dead_leaf_leaves_no_receipts() -> None:
    async def body() -> None:
        async with town(clients=4, round_deadline_ms=1000) as made:
            client = await everybody(made)

            async def kill(_envelope: bytes) -> None:
                made._tasks[3].cancel()
                await asyncio.sleep(0.01)

            deafen(client, kill)
            told = await say_until(made, client, lambda one: one.rule != "")
            assert told == Told("unpublished", told.round, NO_RECEIPT)

    run(body())


def test_what_the_leaf_took_and_lost() -> None:
    """The leaf says that it has it, though there was never a record with it: both are told."""

    async def body() -> None:
        async with town(clients=4, round_deadline_ms=1000) as made:
            client = await everybody(made)

            async def nothing(live: object, aggregate: object) -> None:
                """Hand nothing on."""

            async def lose(_envelope: bytes) -> None:
                made.aggregator._hand_on = nothing  # type: ignore[method-assign]

            deafen(client, lose)
            told = await say_until(made, client, lambda one: one.rule != "")
            assert told == Told("unpublished", told.round, TAKEN)

    run(body())


def test_junk_in_the_table_is_passed_over() -> None:
    async def body() -> None:
        async with town(clients=4, round_period_ms=250, fold_deadline_ms=200) as made:
            client = await everybody(made)
            table = await made.network.table(
                Places.of(made.operators.instance.deployment_id).receipts
            )

            async def vandal(_envelope: bytes) -> None:
                key = receipts_key(max(client._unanswered), 0)
                await table.put(key, token_bytes(4 * ENTRY))
                await made.until(lambda: made.aggregator._core._fold.closed)  # type: ignore[union-attr]

            deafen(client, vandal)
            told = await say_until(made, client, lambda one: one.outcome == "late")
            assert told.rule == LATE

    run(body())


def test_each_round_has_receipts_of_constant_size_for_an_hour() -> None:
    async def body() -> None:
        async with town(clients=4) as made:
            await made.say_until_landed(made.clients[0], "hello")
            await made.rounds(3)
            table = await made.network.table(
                Places.of(made.operators.instance.deployment_id).receipts
            )
            sizes = {}
            rounds = made.aggregator.rounds
            async with asyncio.timeout(PATIENCE):
                async for item in table.watch():
                    assert item.value is not None
                    sizes[item.key] = len(item.value)
                    if len(sizes) >= rounds:
                        break
            assert all(key.endswith("/0") for key in sizes)
            assert set(sizes.values()) <= {size * ENTRY for size in range(2, 5)}

    run(body())


def test_silent_clients_look_for_receipts_as_talkers_do() -> None:
    """Else whoever sees reads of the table would know who had something to say."""

    async def body() -> None:
        async with town(clients=4) as made:
            await everybody(made)
            looked: list[int] = []
            for at, client in enumerate(made.clients):
                deafen(client)
                plain = client._receipt

                async def receipt(asked: Any, at: int = at, plain: Any = plain) -> str:
                    looked.append(at)
                    return str(await plain(asked))

                client._receipt = receipt  # type: ignore[method-assign]
            await made.rounds(3)
            await made.until(lambda: set(looked) == set(range(4)))
            counts = [looked.count(at) for at in range(4)]
            assert max(counts) - min(counts) <= 1

    run(body())


def test_envelopes_over_the_byte_budget_are_late(monkeypatch: pytest.MonkeyPatch) -> None:
    def small(made: DemoInstance, identity: Identity) -> AggregatorRole:
        """A leaf with room for as many envelopes as it has clients."""
        config = made.operators.config
        budget = 4 * (envelope_bytes(config.shape) + 128)
        return AggregatorRole(
            made.network, config, made.operators.instance, identity, max_pending=budget
        )

    monkeypatch.setattr(DemoInstance, "aggregator_role", small)

    async def body() -> None:
        async with town(clients=4) as made:
            client, leaf = await everybody(made), made.aggregator
            take = leaf._answer
            channel = made.network.channel(Places.of(made.operators.instance.deployment_id).submit)

            async def slow(message: Any) -> None:
                await asyncio.sleep(0.05)
                await take(message)

            async def flood(envelope: bytes) -> None:
                leaf._answer = slow  # type: ignore[method-assign]
                where = submit_topic(leaf._identity.peer, bytes(32))
                junk = bytes(len(envelope))
                # The node takes one of the first, and is busy with that while the second come.
                for _ in range(2):
                    await asyncio.gather(*(channel.send(where, junk) for _ in range(8)))
                    await asyncio.sleep(0.01)

            deafen(client, flood)
            told = await say_until(made, client, lambda one: one.rule != "")
            assert told.outcome in {"late", "unpublished"}
            assert told.rule == LATE

    run(body())


def test_an_envelope_that_is_faster_than_the_live_header_is_kept() -> None:
    """A client may see the header before its leaf does: its envelope waits for the round."""

    async def body() -> None:
        network = await LocalNetwork.open()
        async with town(network=network, clients=3) as made:
            fold = made.aggregator._fold

            async def slow(live: Any) -> None:
                await asyncio.sleep(0.1)
                await fold(live)

            made.aggregator._fold = slow  # type: ignore[method-assign]
            await made.say_until_landed(made.clients[0], "hello")
            assert made.aggregator.refused.get("envelope.round", 0) == 0
            await made.check()
        await network.close()

    run(body())
