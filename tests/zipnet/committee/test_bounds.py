"""However long the log, the state stays small."""

from __future__ import annotations

import sys
import tracemalloc

from tests.zipnet.committee.support import (
    bad,
    give_up,
    good,
    reach,
    started,
    state_of,
    user_id,
    world_of,
)
from zipnet.committee import bodies
from zipnet.committee.machine import Machine
from zipnet.committee.state import (
    BEACONS,
    LOG_WINDOW,
    OUTCOME_RING,
    REFUSED_RING,
    Client,
    Phase,
    Voucher,
)
from zipnet.protocol.roster import EpochKey

MAX_CLIENT_BYTES = 2048


def test_thousands_of_refused_entries_leave_nothing_behind() -> None:
    world = started()
    machine = world.sites[0].core.machine
    sizes = []
    for at in range(3 * LOG_WINDOW):
        machine.apply(machine.state.seq + 1, b"\0\2%d" % at)
        if at and at % LOG_WINDOW == 0:
            sizes.append(len(machine.snapshot()))
    assert len(set(sizes)) == 1
    state = machine.state
    assert len(state.ring) == LOG_WINDOW
    assert len(state.seen) == LOG_WINDOW
    assert len(state.refused) == REFUSED_RING
    assert Machine.restore(world.rules, machine.snapshot()).state == state


def test_repeating_one_entry_leaves_nothing_behind() -> None:
    world = started()
    machine = world.sites[0].core.machine
    for _ in range(2 * LOG_WINDOW):
        machine.apply(machine.state.seq + 1, world.log[-1])
    assert len(machine.state.ring) == LOG_WINDOW
    assert len(machine.state.seen) <= 2
    assert machine.state.seen == Machine.restore(world.rules, machine.snapshot()).state.seen


def test_many_rounds_leave_no_more_than_their_rings() -> None:
    world = started(epoch_rounds=4, messages_per_epoch=4)
    sizes = []
    for number in range(BEACONS + 12):
        if number % 8 == 0:
            reach(world, Phase.LIVE)
            give_up(world)
        world.round()
        if number >= BEACONS and number % 4 == 0:
            sizes.append(len(world.sites[0].core.machine.snapshot()) - 64 * len(
                state_of(world).ring
            ))  # fmt: skip
    state = state_of(world)
    assert (len(state.beacons), len(state.outcomes)) == (BEACONS, OUTCOME_RING)
    assert len(state.refused) <= REFUSED_RING
    assert state.epoch.resumes == []
    assert max(sizes) - min(sizes) < 2_000
    assert len(world.snapshots()) == 1


def test_votes_and_lists_are_bounded_by_their_authors() -> None:
    world = started()
    for number in range(2, 20):
        world.say(world.sites[0], bodies.RotateAllowList(world.allow_list(number)))
        world.now_ms += 1
        good(world.say(world.sites[0], bodies.Assign((world.tree,) * (1 + number % 8))))
    state = state_of(world)
    assert len(state.pending_lists) == 4
    assert len(state.tree_votes) <= 3


def test_unvouched_registrations_end_with_the_room() -> None:
    world = world_of(clients=0, max_clients=8, min_participants=1)
    for site in world.sites:
        good(world.join(site))
    for _ in range(4):
        good(world.register(world.user()))
    for _ in range(5):
        bad(world.register(world.user()), "register.full")
    assert len(state_of(world).clients) == 4


def deep_size(value: object, seen: set[int]) -> int:
    """The memory of a value with all that only it holds."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    size = sys.getsizeof(value)
    if isinstance(value, dict):
        size += sum(deep_size(k, seen) + deep_size(v, seen) for k, v in value.items())
    for name in getattr(type(value), "__slots__", ()):
        size += deep_size(getattr(value, name), seen)
    return size


def test_a_client_takes_at_most_two_kibibytes() -> None:
    """Vouched for by three servers, with a key of this epoch and one of the next."""
    world = reach(started(clients=2), Phase.LIVE)
    world.post_keys()
    machine = Machine.restore(world.rules, world.sites[0].core.machine.snapshot())
    for state in (state_of(world), machine.state):
        client = state.clients[user_id(world)]
        assert client.member is not None
        assert client.next_key is not None
        assert len(client.vouchers) == 3
        shared = {id(server.id) for server in state.servers.values()}
        assert deep_size(client, {*shared, id(Client)}) <= MAX_CLIENT_BYTES


def make_client(number: int, servers: list[bytes]) -> Client:
    def fresh(size: int) -> bytes:
        return number.to_bytes(size, "big")

    member = fresh(32)
    return Client(
        member,
        fresh(32),
        fresh(32),
        fresh(32),
        servers[0],
        number,
        EpochKey(member, 1, 1 << 40, fresh(32), fresh(64)),
        EpochKey(member, 2, 1 << 41, fresh(32), fresh(64)),
        {server: Voucher(bytes(32), 1_900_000_000, bytes(32)) for server in servers},
    )


def test_so_much_is_really_allocated() -> None:
    servers = [bytes([at]) * 32 for at in range(3)]
    count = 500
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        clients = {number: make_client(1 << 50 | number, servers) for number in range(count)}
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(clients) == count
    assert used / count <= MAX_CLIENT_BYTES
