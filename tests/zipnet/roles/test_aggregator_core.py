"""An aggregator between headers, envelopes and sums."""

from dataclasses import replace

import pytest

from tests.simulator.attacker import authentic
from tests.simulator.world import World
from tests.zipnet.attacks.support import refused
from zipnet.errors import Refused, WireFormatError
from zipnet.protocol.aggregate import Aggregate
from zipnet.protocol.fold import payload_xor
from zipnet.protocol.roster import places
from zipnet.protocol.tree import AggregatorTree
from zipnet.roles.aggregator_core import AggregatorCore
from zipnet.roles.identity import Identity

TREE = (0, 0, 0)


def ready(tree: tuple[int, ...] = TREE, **settings: int) -> World:
    world = World(1, clients=5, tree=tree, **settings).start()  # type: ignore[arg-type]
    world.open()
    world.seal()
    return world


def test_nothing_is_folded_before_a_round_begins() -> None:
    world = World(1)
    core = world.folds[0]
    assert core.complete
    with refused(Refused, "envelope.round"):
        core.absorb(b"")
    with refused(Refused, "envelope.round"):
        core.close()
    other = ready()
    other.begin_folds()
    sum_ = other.folds[1].close()
    with refused(Refused, "envelope.round"):
        core.absorb_child(sum_)


def test_leaves_take_envelopes_and_parents_sums() -> None:
    world = ready()
    world.begin_folds()
    root, *leaves = world.folds
    assert (root.leaf, [leaf.leaf for leaf in leaves]) == (False, [True, True])
    for client, envelope in world.envelopes.items():
        at = world.tree.leaf_for(client)
        assert not world.folds[at].complete
        with refused(Refused, "envelope.round"):
            root.absorb(envelope)
        world.folds[at].absorb(envelope)
    sums = [leaf.close() for leaf in leaves]
    with refused(Refused, "envelope.round"):
        leaves[0].absorb_child(sums[1])
    assert all(leaf.complete for leaf in leaves)
    assert not root.complete
    for one in sums:
        root.absorb_child(one)
    assert root.complete
    whole = root.close()
    assert whole == root.close()
    assert len(places(whole.participants, 5)) == 5
    world.envelopes.clear()
    assert not world.submit(whole.encode()).rule


def test_a_stranger_has_no_place() -> None:
    world = ready()
    core = AggregatorCore(Identity.fresh(world.draw), payload_xor(), 10)
    with refused(Refused, "tree.place"):
        core.begin(world.header, world.current.sheet, world.current.tree)


def test_sheet_and_tree_are_those_of_the_header() -> None:
    world = ready()
    core = world.folds[1]
    fewer = replace(world.current.sheet, clients=world.current.sheet.clients[1:])
    with refused(Refused, "sheet.roster"):
        core.begin(world.header, fewer, world.current.tree)
    other = AggregatorTree(world.tree.nodes[:2])
    with refused(Refused, "fold.tree"):
        core.begin(world.header, world.current.sheet, other)


def test_envelopes_that_are_refused() -> None:
    world = ready((0,))
    world.begin_folds()
    core, user = world.folds[0], world.users[0]
    good = world.envelopes[user.id]
    flipped = bytearray(good)
    flipped[-100] ^= 1
    with refused(Refused, "envelope.mac"):
        core.absorb(bytes(flipped))
    with refused(WireFormatError, "envelope.size"):
        core.absorb(good[:-1])
    stranger = world.user()
    header = world.current.header
    payload = bytes(header.shape.payload_bytes)
    with refused(Refused, "envelope.unknown-client"):
        core.absorb(authentic(world, stranger, header, payload))
    core.absorb(good)
    core.absorb(good)
    sum_ = core.close()
    assert len(places(sum_.participants, 5)) == 1
    core.absorb(good)  # the same answer after the deadline, too
    with refused(Refused, "envelope.late"):
        core.absorb(world.envelopes[world.users[1].id])


def test_rate_tags_are_of_one_epoch() -> None:
    world = ready((0,), epoch_rounds=2, messages_per_epoch=2)
    core, user = world.folds[0], world.users[0]
    header = world.current.header
    world.begin_folds()
    tag, payload = b"t" * 16, bytes(header.shape.payload_bytes)
    core.absorb(authentic(world, user, header, payload, tag))
    world.time_out()

    world.open()
    assert world.current.header.epoch == header.epoch
    world.begin_folds()
    with refused(Refused, "envelope.rate-tag"):
        core.absorb(authentic(world, user, world.current.header, payload, tag))
    while world.current.header.epoch == header.epoch:
        world.time_out()
        world.open()
    world.begin_folds()
    core.absorb(authentic(world, user, world.current.header, payload, tag))


@pytest.mark.parametrize("tree", [(0,), (0, 0, 0), (0, 0, 0, 1, 1, 2)])
def test_any_tree_gives_the_same_sum(tree: tuple[int, ...]) -> None:
    world = ready(tree)
    raw = world.fold()
    one = Aggregate.decode(raw, world.current.header.shape)
    assert one.aggregator == world.tree.nodes[0].peer
    assert len(places(one.participants, 5)) == 5
    assert not world.submit(raw).rule
    world.settle()
    assert len(world.records) == 1
