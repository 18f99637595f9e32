"""What a server or the bus can do to the committee, and how far it gets."""

from dataclasses import replace

import pytest

from tests.simulator.attacker import equivocations, read, server_pads
from tests.simulator.nodes import Site
from tests.simulator.world import Bus, World
from tests.zipnet.attacks.support import SECRET, about_to_speak, needing, no_check, refused
from zipnet.committee import bodies
from zipnet.committee.events import Event, ServerSuspended, Verdict
from zipnet.committee.state import Ending, Status
from zipnet.config import Config
from zipnet.errors import LogBroken, Refused
from zipnet.roles import client_core


def status(world: World, site: Site) -> Status:
    server = world.state.server(site.id)
    assert server is not None
    return server.status


def silenced(world: World, site: Site) -> None:
    """A majority of the others gives a round up that waits for this honest server."""
    site.down = True
    world.now_ms += 1_000
    while world.state.current is None:
        world.pass_time(500)
        world.settle()
    assert world.time_out().missing == (site.id,)
    assert status(world, site) is Status.SUSPENDED


def test_a_majority_suspends_an_honest_server_and_clients_stay_away() -> None:
    world = World(70, config=needing(2)).start()
    world.round()
    honest = world.sites[0]
    operator = honest.operator.public_key().public_bytes_raw()
    waiving = world.user(frozenset({operator}))
    world.users.append(waiving)
    world.admit(waiving)
    while waiving.core.keyring.epoch == 0:
        world.round()
    silenced(world, honest)
    world.open()
    assert honest.id not in world.current.header.servers
    world.seal()
    # Without the waiver the suspended server's operator is insisted on.
    assert {user.refusal for user in world.users[:4]} == {"header.operator-missing"}
    assert waiving.refusal == ""
    # One alone is too few to be unblinded: those who waive need company.
    assert world.submit(world.fold()).rule == "aggregate.min-participants"


def test_a_timed_out_honest_server_leaves_clients_to_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two servers suspend the third, and read whoever goes on without it."""
    world = World(79, config=needing(2)).start()
    world.round()
    silenced(world, world.sites[0])
    user, other = world.users[:2]
    with monkeypatch.context() as patched:
        patched.setattr(client_core, "check_header", no_check)
        about_to_speak(world, user)
        current = world.current
        colluding = [
            server_pads(site, current.header, current.sheet.resumes) for site in world.sites[1:]
        ]
        careless = world.seal_one(user)
    assert world.sites[0].id not in current.header.servers
    assert careless is not None
    assert SECRET in read(careless, colluding, current.header.shape)
    # One that checks seals nothing without the server of each operator.
    with refused(Refused, "header.operator-missing"):
        other.core.seal(world.header, current.sheet, current.tree, world.state.operators)


def test_clients_that_waive_an_operator_go_on_without_it() -> None:
    world = World(71, clients=0, config=needing(2))
    operator = world.sites[0].operator.public_key().public_bytes_raw()
    world.users = [world.user(frozenset({operator})) for _ in range(3)]
    world.start()
    world.round()
    silenced(world, world.sites[0])
    record = world.round().record
    assert len(record.header.servers) == 2
    # It comes back by its Resume, in the same epoch, with pads that nobody has used.
    world.sites[0].down = False
    world.deliver(world.sites[0])
    world.settle()
    assert status(world, world.sites[0]) is Status.ACTIVE
    while world.sites[0].id not in world.round().record.header.servers:
        pass
    assert world.records[-1].record.header.epoch == record.header.epoch
    assert all(user.refusal == "" for user in world.users)
    assert world.reused() == 0


def test_without_enough_servers_no_round_opens() -> None:
    """By default all servers are needed: one that is away stops the deployment, and no more."""
    world = World(72).start()
    world.round()
    silenced(world, world.sites[1])
    with pytest.raises(AssertionError, match="no header"):
        world.open()
    assert world.outcomes[-1].ending is Ending.UNSIGNED
    world.sites[1].down = False
    world.deliver(world.sites[1])
    world.round()


def test_a_minority_can_not_give_up_a_round() -> None:
    world = World(73).start()
    world.open()
    world.seal()
    early = bodies.TimeoutRound(world.current.phase)
    assert world.say_here(world.sites[0], early).rule == "timeout.early"
    liar = world.sites[0]
    liar.skew_ms = world.config.window.round_deadline_ms + 1
    assert world.say_here(liar, early).verdict is Verdict.APPLIED
    assert world.say_here(liar, early).verdict is Verdict.APPLIED
    assert world.state.current is not None
    assert not world.submit(world.fold()).rule
    liar.skew_ms = 0
    world.settle()
    assert world.records


def test_a_lying_server_keeps_a_client_out_and_is_seen() -> None:
    world = World(74, clients=4).start()
    world.round()
    liar, victim = world.sites[2], world.users[0]
    assert not world.say(liar, bodies.Refuse(victim.id, "ticket.measurement")).rule
    world.open()
    with refused(Refused, "header.absent"):
        world.seal_one(victim)
    # Everybody reads who said what about whom.
    assert world.state.clients[victim.id].refusals == {liar.id: "ticket.measurement"}
    assert set(world.state.clients[victim.id].vouchers) == {
        site.id for site in world.sites if site is not liar
    }


def test_a_lying_server_lets_nobody_in() -> None:
    world = World(75).start()
    world.round()
    stranger = world.user()
    world.users.append(stranger)
    world.register(stranger, world.sites[2])
    world.vouch(stranger, [world.sites[2], world.sites[1]])
    for _ in range(18):
        header = world.round().record.header
        assert stranger.core.keyring.epoch == 0
        assert stranger.refusal in {"header.absent", "epoch.no-secret"}
    assert header.epoch > 1
    # It can't vouch for itself in others' names either: the author is whoever signed.
    registration = world.state.clients.get(stranger.id)
    assert registration is None or set(registration.vouchers) <= {
        world.sites[1].id,
        world.sites[2].id,
    }


def test_a_vouched_client_of_all_gets_in() -> None:
    world = World(75).start()
    world.round()
    stranger = world.user()
    world.users.append(stranger)
    world.admit(stranger)
    while stranger.core.keyring.epoch == 0:
        world.round()
    assert stranger.refusal == ""


def with_quota(config: Config) -> Config:
    quota = 3 << 19
    return replace(config, window=replace(config.window, byte_quota=quota))


def test_endless_refusals_end_in_a_suspension() -> None:
    world = World(76, config=with_quota).start()
    world.round()
    liar = world.sites[1]
    rules: list[str] = []
    events: list[Event] = []
    for number in range(20):
        applied = world.say(liar, bodies.RotateAllowList(bytes([number]) * 100_000))
        rules.append(applied.rule)
        events += applied.events
    assert set(rules) == {"envelope.json", "command.quota"}
    assert rules[-1] == "command.quota"
    assert status(world, liar) is Status.SUSPENDED
    assert len(world.state.refused) <= world.state.refused.maxlen  # type: ignore[operator]
    assert {type(event) for event in events} == {ServerSuspended}
    # It comes back, and rounds go on.
    world.round()


def test_a_bus_that_reorders_delays_and_repeats() -> None:
    world = World(77).start()
    world.bus = Bus(delay=0.5, lose=0.2, replay=0.3)
    for number in range(24):
        world.users[number % 4].core.submit(bytes([number]) * 16)
        world.round()
    assert len(world.records) == 24
    assert len(world.snapshots()) == 1
    assert world.reused() == 0
    assert not equivocations(world.log)
    assert not any(site.core.fenced for site in world.sites)


def test_a_suspended_server_resumes_over_a_slow_bus() -> None:
    """Its Resume is under way while rounds go on: it makes no second one that would fence it."""
    world = World(78, config=needing(2)).start()
    world.round()
    silenced(world, world.sites[0])
    site = world.sites[0]
    site.down = False
    world.deliver(site)
    (slow,) = site.core.due(world.now_ms)
    for _ in range(2):  # phases and rounds pass
        world.pass_time(500)
        site.down = True
        world.settle()
        site.down = False
        world.deliver(site)
        assert site.core.due(world.now_ms) == [slow]
    assert not world.append(slow).rule
    assert site.core.fenced == ""
    world.settle()
    assert site.core.fenced == ""
    assert status(world, site) is Status.ACTIVE


def test_a_bus_that_deletes_an_entry_stops_the_server_loudly() -> None:
    world = World(79).start()
    world.round()
    site = world.sites[1]
    with pytest.raises(LogBroken) as caught:
        site.core.apply(len(world.log) + 2, world.log[-1])
    assert caught.value.rule == "log.gap"


def test_a_bus_that_cuts_an_entry_out_for_one_server() -> None:
    """The rest is renumbered, so that there is no gap: heads differ, and nothing of it counts."""
    world = World(80).start()
    world.round()
    site = world.sites[1]
    site.view = list(world.log)
    world.say(world.sites[0], bodies.Tick())  # the one that this server never sees
    raw = world.sites[0].core.command(bodies.Tick(), 0, world.now_ms)
    world.append(raw)
    site.view.append(raw)
    assert world.deliver(site).rule == "command.position"
    assert len(world.snapshots()) == 2
    # What it says is tied to a log that is not the others', and its signatures are for nothing.
    mine = site.core.command(bodies.Tick(), 0, world.now_ms)
    assert world.append(mine).rule == "command.position"
    # It signs no header of theirs, and without it none is live.
    site.down = True
    with pytest.raises(AssertionError, match="no header"):
        world.open()


def test_a_rewritten_entry_changes_every_head_after_it() -> None:
    world = World(81).start()
    world.round()
    fork = World(81).start()
    fork.round()
    assert fork.state.head == world.state.head
    world.say(world.sites[0], bodies.Tick())
    fork.now_ms += 1
    fork.say(fork.sites[0], bodies.Tick())
    assert fork.state.head != world.state.head
    world.now_ms = fork.now_ms = world.now_ms + 1_000
    for one in (world, fork):
        one.open()
    assert fork.current.header.hash == world.current.header.hash
    assert fork.current.header.id != world.current.header.id
    # A client that holds a header of one log takes no signatures of the other.
    with refused(Refused, "signature"):
        live = replace(fork.header, signatures=world.header.signatures)
        current = fork.current
        fork.users[0].core.seal(live, current.sheet, current.tree, fork.state.operators)


@pytest.mark.parametrize("skew_ms", [-600_000, 45_000, 3_600_000])
def test_a_server_with_a_wrong_clock_moves_no_time(skew_ms: int) -> None:
    world = World(82).start()
    world.round()
    world.sites[2].skew_ms = skew_ms
    before = world.state.time_ms
    for _ in range(3):
        world.pass_time(10)
    assert before <= world.state.time_ms <= world.now_ms
    applied = world.say(world.sites[2], bodies.Suspend())
    assert applied.rule == ("command.clock" if skew_ms > 30_000 else "")


def test_an_aggregate_after_a_time_out_is_late() -> None:
    world = World(83).start()
    about_to_speak(world, world.users[0], SECRET)
    world.seal()
    late, number = world.fold(), world.current.header.round
    assert world.time_out().ending is Ending.NO_AGGREGATE
    world.open()
    assert world.say(world.sites[0], bodies.SubmitAggregate(late), number).rule == "aggregate.round"
    assert world.submit(late).rule == "aggregate.round"
