"""Commands about rounds and epochs that are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tests.simulator.world import Site, World
from tests.zipnet.committee.support import (
    case,
    command,
    give_up,
    good,
    pass_time,
    reach,
    replace_server,
    resume_node,
    spare,
    started,
    state_of,
    suspend,
    world_of,
)
from zipnet.committee import bodies
from zipnet.committee.state import Phase, Round
from zipnet.protocol.aggregate import Aggregate
from zipnet.protocol.instance import Instance
from zipnet.protocol.roster import bitmap
from zipnet.protocol.unblind import commitment

STEPS: dict[str, tuple[Phase, Callable[[], bodies.Body]]] = {
    "sign-header": (Phase.PROPOSED, lambda: bodies.SignHeader(bytes(32), bytes(64))),
    "aggregate": (Phase.LIVE, lambda: bodies.SubmitAggregate(b"")),
    "commit": (Phase.COMMITTING, lambda: bodies.CommitPartial(bytes(32))),
    "reveal": (Phase.REVEALING, lambda: bodies.RevealPartial(b"")),
    "sign-record": (Phase.SIGNING, lambda: bodies.SignRecord(bytes(32), bytes(64))),
}


def current(world: World) -> Round:
    found = state_of(world).current
    assert found is not None
    return found


def about(world: World, site: Site, body: bodies.Body) -> bytes:
    """A command about the round in flight."""
    return command(world, site, body, current(world).header.round)


def in_phase(phase: Phase) -> Callable[[], World]:
    return lambda: reach(started(), phase)


def enter(step: str, phase: Phase, body: Callable[[], bodies.Body]) -> None:
    """What every step of a round refuses."""

    @case(f"{step}.round", world=in_phase(phase))
    def about_the_next_round(world: World) -> bytes:
        return command(world, world.sites[0], body(), current(world).header.round + 1)

    @case(f"{step}.round")
    def about_a_round_that_never_was(world: World) -> bytes:
        return command(world, world.sites[0], body(), 1)

    @case(
        f"{step}.phase", world=in_phase(Phase.LIVE if phase is Phase.PROPOSED else Phase.PROPOSED)
    )
    def in_another_phase(world: World) -> bytes:
        return about(world, world.sites[0], body())

    @case(f"{step}.server", world=in_phase(phase))
    def by_a_server_that_came_later(world: World) -> bytes:
        return about(world, replace_server(world), body())

    @case(f"{step}.resumed", world=in_phase(phase))
    def by_a_server_that_restarted(world: World) -> bytes:
        one = world.sites[0]
        good(world.say(one, resume_node(world, one.identity, one.core.id)))
        return about(world, one, body())

    @case(f"{step}.resumed", world=in_phase(phase))
    def by_a_server_that_joined_anew(world: World) -> bytes:
        good(world.join(world.sites[0]))
        return about(world, world.sites[0], body())


for _step, (_phase, _body) in STEPS.items():
    enter(_step, _phase, _body)


def proposes(world: World, at: int = 0, round_number: int = 1) -> bytes:
    return command(world, world.sites[at], bodies.ProposeHeader(), round_number)


@case("propose.in-flight", world=in_phase(Phase.PROPOSED))
def proposal_while_a_round_is_on(world: World) -> bytes:
    return proposes(world, round_number=2)


@case("propose.round")
def proposal_of_a_later_round(world: World) -> bytes:
    return proposes(world, round_number=2)


def joined_only() -> World:
    world = world_of(clients=0)
    for site in world.sites:
        good(world.join(site))
    return world


@case("propose.list", world=joined_only)
def proposal_without_a_list(world: World) -> bytes:
    return proposes(world)


@case("propose.tree", world=joined_only)
def proposal_without_an_aggregator(world: World) -> bytes:
    good(world.say(world.sites[0], bodies.RotateAllowList(world.allow_list())))
    return proposes(world)


@case("propose.clients", world=lambda: started(clients=1))
def proposal_with_too_few_clients(world: World) -> bytes:
    return proposes(world)


@case("propose.servers")
def proposal_with_too_few_servers(world: World) -> bytes:
    suspend(world)
    return proposes(world)


@case("propose.servers", world=lambda: started(min_servers=2))
def proposal_with_fewer_servers_than_the_least(world: World) -> bytes:
    suspend(world, 1)
    suspend(world, 2)
    return proposes(world)


def keyless() -> World:
    """An epoch in which nobody has posted a key for the next one."""
    world = started(epoch_rounds=1, messages_per_epoch=1)
    reach(world, Phase.LIVE)
    return world


@case("propose.epoch", world=keyless)
def proposal_when_an_epoch_is_overdue(world: World) -> bytes:
    give_up(world)
    for site in world.sites:
        state = site.core.machine.state
        state.next_round += 2
        for server in state.servers.values():
            server.next_key = None
    return proposes(world, round_number=state_of(world).next_round)


@case("propose.epoch", world=lambda: reach(started(), Phase.LIVE))
def proposal_with_a_server_that_has_no_key(world: World) -> bytes:
    give_up(world)
    for site in world.sites:
        server = site.core.machine.state.servers[world.sites[1].identity.peer]
        server.member = server.next_key = None
    return proposes(world, round_number=2)


@case("sign-header.id", world=in_phase(Phase.PROPOSED))
def signature_over_another_header(world: World) -> bytes:
    return about(world, world.sites[0], bodies.SignHeader(bytes(32), bytes(64)))


@case("signature", world=in_phase(Phase.PROPOSED))
def signature_of_a_header_by_another(world: World) -> bytes:
    header = current(world).header
    signature = header.sign(world.sites[1].identity.signing)
    return about(world, world.sites[0], bodies.SignHeader(header.id, signature))


@case("sign-header.twice", world=in_phase(Phase.PROPOSED))
def header_signed_twice(world: World) -> bytes:
    header = current(world).header
    body = bodies.SignHeader(header.id, header.sign(world.sites[0].identity.signing))
    good(world.append(about(world, world.sites[0], body)))
    return about(world, world.sites[0], body)


def aggregate(world: World, **changes: object) -> bytes:
    """The sum of nothing, of as many clients as there must be, or another of the root's words."""
    there = current(world)
    header, clients = there.header, len(there.sheet.clients)
    plain = {
        "instance": header.instance,
        "round": header.round,
        "header_id": header.id,
        "aggregator": world.aggregators[0].peer,
        "clients": clients,
        "participants": bitmap(range(clients), clients),
        "tags_hash": bytes(32),
        "payload": bytes(header.shape.payload_bytes),
        "signature": bytes(64),
    }
    bare = Aggregate(**{**plain, **changes})  # type: ignore[arg-type]
    signature = bare.instance.sign(
        world.aggregators[0].signing, b"zipnet/sig/aggregate/v2", bare.round, bare.digest
    )
    return replace(bare, signature=signature).encode()


def submits(world: World, raw: bytes) -> bytes:
    return about(world, world.sites[0], bodies.SubmitAggregate(raw))


live = in_phase(Phase.LIVE)


@case("aggregate.truncated", world=live)
def aggregate_that_is_cut(world: World) -> bytes:
    return submits(world, aggregate(world)[:-1])


@case("aggregate.trailing", world=live)
def aggregate_that_is_longer(world: World) -> bytes:
    return submits(world, aggregate(world) + b"\0")


@case("bitmap", world=live)
def aggregate_with_bits_beyond_the_roster(world: World) -> bytes:
    raw = bytearray(aggregate(world))
    raw[2 + 32 + 32 + 8 + 32 + 32 + 4] = 0xFF
    return submits(world, bytes(raw))


@case("aggregate.instance", world=live)
def aggregate_of_another_generation(world: World) -> bytes:
    other = Instance(world.instance.deployment_id, bytes(32))
    return submits(world, aggregate(world, instance=other))


@case("aggregate.round", world=live)
def aggregate_of_another_round(world: World) -> bytes:
    return submits(world, aggregate(world, round=2))


@case("aggregate.header", world=live)
def aggregate_under_another_header(world: World) -> bytes:
    return submits(world, aggregate(world, header_id=bytes(32)))


@case("aggregate.roster", world=live)
def aggregate_over_another_roster(world: World) -> bytes:
    return submits(world, aggregate(world, clients=4, participants=b"\x0f"))


@case("aggregate.root", world=live)
def aggregate_of_another_node(world: World) -> bytes:
    return submits(world, aggregate(world, aggregator=world.sites[0].identity.peer))


@case("signature", world=live)
def aggregate_that_nobody_signed(world: World) -> bytes:
    return submits(world, aggregate(world)[:-64] + bytes(64))


@case("aggregate.min-participants", world=live)
def aggregate_that_isolates_a_client(world: World) -> bytes:
    return submits(world, aggregate(world, participants=b"\1"))


@case("commit.twice", world=in_phase(Phase.COMMITTING))
def second_commitment(world: World) -> bytes:
    one = world.sites[0]
    good(world.append(about(world, one, bodies.CommitPartial(bytes(32)))))
    return about(world, one, bodies.CommitPartial(b"\1" * 32))


@case("commit.copied", world=in_phase(Phase.COMMITTING))
def copied_commitment(world: World) -> bytes:
    good(world.append(about(world, world.sites[0], bodies.CommitPartial(bytes(32)))))
    return about(world, world.sites[1], bodies.CommitPartial(bytes(32)))


def committed() -> World:
    """Every server has committed to a partial of its number only."""
    world = reach(started(), Phase.COMMITTING)
    there = current(world)
    digest = Aggregate.decode(there.aggregate, there.header.shape).digest
    for at, site in enumerate(world.sites):
        made = commitment(
            world.instance, there.header.round, digest, site.core.id, partial_of(world, at)
        )
        good(world.append(about(world, site, bodies.CommitPartial(made))))
    return world


def partial_of(world: World, at: int) -> bytes:
    return bytes([at]) * current(world).header.shape.payload_bytes


@case("reveal.twice", world=committed)
def second_reveal(world: World) -> bytes:
    good(world.append(about(world, world.sites[0], bodies.RevealPartial(partial_of(world, 0)))))
    return about(world, world.sites[0], bodies.RevealPartial(partial_of(world, 0)))


@case("reveal.size", world=committed)
def reveal_of_another_size(world: World) -> bytes:
    return about(world, world.sites[0], bodies.RevealPartial(partial_of(world, 0)[1:]))


@case("reveal.commitment", world=committed)
def reveal_of_another_partial(world: World) -> bytes:
    return about(world, world.sites[0], bodies.RevealPartial(partial_of(world, 1)))


@case("sign-record.hash", world=in_phase(Phase.SIGNING))
def signature_over_another_record(world: World) -> bytes:
    return about(world, world.sites[0], bodies.SignRecord(bytes(32), bytes(64)))


def signs_record(world: World, at: int, by: int) -> bytes:
    signed = current(world).record
    assert signed is not None
    signature = signed.record.sign(world.sites[by].identity.signing)
    return about(world, world.sites[at], bodies.SignRecord(signed.record.hash, signature))


@case("signature", world=in_phase(Phase.SIGNING))
def signature_of_a_record_by_another(world: World) -> bytes:
    return signs_record(world, 0, 1)


@case("sign-record.twice", world=in_phase(Phase.SIGNING))
def record_signed_twice(world: World) -> bytes:
    good(world.append(signs_record(world, 0, 0)))
    world.now_ms += 1
    return signs_record(world, 0, 0)


@case("timeout.round")
def time_out_of_no_round(world: World) -> bytes:
    return command(world, world.sites[0], bodies.TimeoutRound(Phase.LIVE), 1)


@case("timeout.round", world=live)
def time_out_of_another_round(world: World) -> bytes:
    return command(world, world.sites[0], bodies.TimeoutRound(Phase.LIVE), 2)


@case("timeout.phase", world=live)
def time_out_in_another_phase(world: World) -> bytes:
    pass_time(world, 5_000)
    return about(world, world.sites[0], bodies.TimeoutRound(Phase.PROPOSED))


@case("timeout.phase", world=live)
def time_out_in_no_phase(world: World) -> bytes:
    pass_time(world, 5_000)
    return about(world, world.sites[0], bodies.TimeoutRound(255))


@case("timeout.early", world=live)
def time_out_before_the_deadline(world: World) -> bytes:
    since = current(world).phase_since
    world.now_ms = since + world.config.window.round_deadline_ms - 1
    return about(world, world.sites[0], bodies.TimeoutRound(Phase.LIVE))


@case("command.author", world=live)
def round_of_a_stranger(world: World) -> bytes:
    return about(world, spare(world), bodies.TimeoutRound(Phase.LIVE))
