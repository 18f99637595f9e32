"""The anonymity set: nobody is unblinded alone, twice, or as one who is not in the roster."""

from dataclasses import replace

import pytest

from tests.simulator.attacker import aggregate_of, roster_ids, sign_sum, xor
from tests.simulator.world import World
from tests.zipnet.attacks.support import (
    SECRET,
    about_to_speak,
    kinds,
    messages,
    no_check,
    refused,
)
from zipnet.committee import rounds
from zipnet.committee.epochs import epoch_of_next_header
from zipnet.errors import CommandRefused, Refused, WireFormatError
from zipnet.protocol import seal
from zipnet.protocol.aggregate import Aggregate
from zipnet.protocol.fold import check_aggregate
from zipnet.protocol.record import SignedRecord
from zipnet.protocol.roster import Roster, bitmap, places
from zipnet.protocol.slots import Kind


def ready(seed: int = 20, **settings: int) -> World:
    world = World(seed, **settings).start()  # type: ignore[arg-type]
    about_to_speak(world, world.users[0])
    world.seal()
    return world


def present(record: SignedRecord) -> int:
    return len(places(record.record.participants, record.record.clients))


def test_an_aggregate_of_one_client_names_its_author(monkeypatch: pytest.MonkeyPatch) -> None:
    world = ready()
    everyone = roster_ids(world)
    only = aggregate_of(world, [world.users[0].id])
    assert world.submit(only).rule == "aggregate.min-participants"
    assert world.submit(aggregate_of(world, [])).rule == "aggregate.min-participants"
    monkeypatch.setattr(rounds, "check_aggregate", no_check)
    assert not world.submit(only).rule
    world.settle()
    # The record says who was in, and what was said.
    record = world.records[-1]
    at = places(record.record.participants, record.record.clients)
    assert [everyone[place] for place in at] == [world.users[0].id]
    assert messages(record) == [SECRET]


def test_no_header_opens_for_too_few() -> None:
    world = World(21, clients=2, min_participants=3).start()
    with pytest.raises(CommandRefused) as caught:
        rounds.participants(world.state, opens=epoch_of_next_header(world.state))
    assert caught.value.rule == "propose.clients"
    with pytest.raises(AssertionError, match="no header"):
        world.open()


def test_a_client_counts_for_itself() -> None:
    """A committee that would open a round for fewer finds no client that seals."""
    world = World(21, clients=2, min_participants=2).start()
    world.open()
    user = world.users[0]
    user.core._config = replace(
        world.config, window=replace(world.config.window, min_participants=3)
    )
    with refused(Refused, "header.min-participants"):
        world.seal_one(user)


def test_a_client_through_two_leaves_cancels_itself() -> None:
    world = World(22, clients=4, tree=(0, 0, 0)).start()
    about_to_speak(world, world.users[0])
    world.seal()
    victim = world.users[0].id
    world.begin_folds()
    leaf = world.tree.leaf_for(victim)
    other = next(one for one in world.tree.leaves if one != leaf)
    twice = world.envelopes[victim]
    # Added twice, x xor x is nothing: the sum has the bit set and no message, and stays noise.
    everyone = roster_ids(world)
    honest = Aggregate.decode(aggregate_of(world, everyone), world.current.header.shape)
    lone = Aggregate.decode(aggregate_of(world, [victim]), world.current.header.shape)
    assert xor(honest.payload, lone.payload, lone.payload) == honest.payload

    with refused(Refused, "envelope.not-assigned"):
        world.folds[other].absorb(twice)
    # Leaves that work together get it past themselves, and not past their parent.
    world.folds[leaf].absorb(twice)
    world.folds[0].absorb_child(world.folds[leaf].close())
    second = Aggregate.decode(
        aggregate_of(world, [victim], signer=other), world.current.header.shape
    )
    with refused(Refused, "aggregate.overlap"):
        world.folds[0].absorb_child(second)
    world.begin_folds()
    with refused(Refused, "aggregate.foreign-client"):
        world.folds[0].absorb_child(second)


def test_a_child_closes_once_and_only_a_child() -> None:
    world = World(22, clients=4, tree=(0, 0, 0)).start()
    world.round()
    world.open()
    world.seal()
    world.begin_folds()
    mine = [user.id for user in world.users if world.tree.leaf_for(user.id) == 1]
    shape = world.current.header.shape
    one = Aggregate.decode(aggregate_of(world, mine, signer=1), shape)
    none = Aggregate.decode(aggregate_of(world, [], signer=1), shape)
    world.folds[0].absorb_child(none)
    with refused(Refused, "aggregate.again"):
        world.folds[0].absorb_child(one)
    with refused(Refused, "aggregate.child"):
        world.folds[0].absorb_child(Aggregate.decode(aggregate_of(world, [], signer=0), shape))
    forged = replace(one, aggregator=world.tree.nodes[2].peer)
    with refused(Refused, "signature"):
        world.folds[0].absorb_child(forged)


def test_a_tampered_sum_is_not_the_roots() -> None:
    world = ready()
    shape = world.current.header.shape
    honest = Aggregate.decode(aggregate_of(world, roster_ids(world)), shape)
    tampered = replace(honest, payload=xor(honest.payload, b"\1" * shape.payload_bytes))
    assert world.submit(tampered.encode()).rule == "signature"
    # Anybody may carry the root's sum; nobody else's is taken.
    world.aggregators.append(world.users[0].identity)
    stranger = sign_sum(world, honest.participants, honest.payload, signer=-1)
    assert world.submit(stranger.encode()).rule == "aggregate.root"
    # A root that tampers with its own spoils the round; who reads it sees no message, not another.
    bad = sign_sum(world, honest.participants, tampered.payload)
    assert not world.submit(bad.encode()).rule
    world.settle()
    assert messages(world.records[-1]) == []
    assert set(kinds(world.records[-1])) == {Kind.GARBLED}


def test_participants_are_of_the_roster_and_the_sum_is_of_the_round() -> None:
    world = ready()
    shape, clients = world.current.header.shape, len(roster_ids(world))
    honest = Aggregate.decode(aggregate_of(world, roster_ids(world)), shape)
    beyond = honest.encode().replace(
        honest.participants, (honest.participants[0] | 1 << clients).to_bytes(1, "big"), 1
    )
    assert world.submit(beyond).rule == "bitmap"
    with refused(WireFormatError, "bitmap"):
        replace(honest, participants=bytes([1 << clients]))
    larger = Aggregate.sign(
        world.current.header,
        world.aggregators[0].signing,
        clients + 1,
        bitmap([0, 1, clients], clients + 1),
        bytes(32),
        honest.payload,
    )
    assert world.submit(larger.encode()).rule == "aggregate.roster"
    short = sign_sum(world, honest.participants, honest.payload[:-1])
    assert world.submit(short.encode()).rule.startswith("aggregate.")
    with refused(Refused, "aggregate.size"):
        check_aggregate(short, world.current.header, world.current.tree, clients, 2)
    stale = replace(honest, round=honest.round - 1)
    assert world.submit(stale.encode()).rule == "aggregate.round"
    assert world.current.aggregate == b""


def test_roster_of_one_is_refused_by_the_check_that_a_client_makes() -> None:
    world = World(23).start()
    world.open()
    user, current = world.users[0], world.current
    me = next(entry.member for entry in current.sheet.clients if entry.key.member == user.id)
    servers = [entry.member for entry in current.sheet.servers]
    roster = Roster.of([me], servers)
    header = replace(current.header, roster_hash=roster.hash())
    operators = world.state.operators
    committee = current.sheet.committee(header, operators.keys, frozenset())
    with refused(Refused, "header.min-participants"):
        seal._check_roster(header, committee, roster, me, 2)


def public(world: World) -> list[tuple[bytes, list[bool], list[bool]]]:
    """What anybody sees of the rounds: who was in, which slots and which entries are not empty."""
    traces = []
    for signed in world.records:
        record = signed.record
        slots = [kind is not Kind.EMPTY for kind in kinds(signed)]
        entries = [any(record.schedule[at : at + 2]) for at in range(0, len(record.schedule), 2)]
        traces.append((record.participants, slots, entries))
    return traces


def test_drop_and_watch() -> None:
    """An aggregator drops a client and looks at what is missing.

    Of clients that take part only when they have something to say, the bitmap alone names the
    author. Ours do the same whether they have or not.
    """
    naive = World(24, participation=0.0, clients=4).start()
    talker = naive.users[0]
    talker.core._participation = 1.0
    talker.core.submit(SECRET)
    naive.open()
    naive.seal()
    assert set(naive.envelopes) == {talker.id}

    talking, silent = World(24).start(), World(24).start()
    for world in (talking, silent):
        for number in range(6):
            if world is talking:
                world.users[0].core.submit(bytes([number]) * 16)
            # Every third round the victim is dropped.
            world.drop = {world.users[0].id} if number % 3 == 2 else set()
            world.round()
    assert public(talking) == public(silent)
    sizes = [{len(raw) for raw in world.log} for world in (talking, silent)]
    assert sizes[0] == sizes[1]
    assert any(map(messages, talking.records))
    assert not any(map(messages, silent.records))
    # A dropped message was not read, and its author knows.
    fates = {what.value for _, what in talking.users[0].fates}
    assert fates <= {"landed", "collided", "late"}
    assert "late" in fates
