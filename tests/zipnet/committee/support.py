"""What tests of the committee share: worlds brought to a point, commands, states to compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from attestation import envelope as dsse
from tests.simulator.world import Disk, Ledger, Site, World, window
from zipnet.committee import bodies, snapshot
from zipnet.committee.commands import Command
from zipnet.committee.events import Applied, Verdict
from zipnet.committee.machine import Machine
from zipnet.committee.state import Phase, State, Status
from zipnet.committee.voting import reset_quota
from zipnet.ids import client_id
from zipnet.operators import (
    RECOVERY_TYPE,
    Endorsement,
    OperatorDocument,
    OperatorSet,
    RecoveryDocument,
)
from zipnet.protocol.header import NO_HASH
from zipnet.protocol.instance import Instance
from zipnet.protocol.pads import keystream_xor
from zipnet.protocol.roster import EPOCH_KEY, RESUME, EpochKey
from zipnet.roles.identity import Identity
from zipnet.roles.server_core import ServerCore

SMALL_ORDER = bytes(32)


def started(*, seed: int = 3, clients: int = 3, servers: int = 3, **changes: int) -> World:
    """A deployment that may open its first round."""
    return world_of(seed, clients, servers, **changes).start()


def world_of(seed: int = 3, clients: int = 3, servers: int = 3, **changes: int) -> World:
    """The same before anything has happened."""
    settings = window(**changes)
    return World(
        seed,
        clients=clients,
        servers=servers,
        config=lambda config: config.with_window(settings),
    )


def state_of(world: World) -> State:
    return world.state


def command(world: World, site: Site, body: bodies.Body, round_number: int = 0) -> bytes:
    """A command that this server signs now."""
    return site.core.command(body, round_number, world.clock(site))


def forged(
    world: World,
    key: Ed25519PrivateKey,
    body: bodies.Body,
    *,
    round_number: int = 0,
    instance: Instance | None = None,
    back: int = 0,
    clock_ms: int | None = None,
) -> bytes:
    """A command by whatever key, tied to the entry that many places back."""
    state = state_of(world)
    return Command.make(
        key,
        instance or world.instance,
        body,
        round_number=round_number,
        seq=state.seq - back,
        head=state.ring[-1 - back][1] if state.ring else NO_HASH,
        clock_ms=world.now_ms if clock_ms is None else clock_ms,
    )


def good(applied: Applied) -> Applied:
    """The entry must have been applied."""
    assert applied.verdict is Verdict.APPLIED, (applied.rule, applied.detail)
    return applied


def bad(applied: Applied, rule: str) -> Applied:
    """The entry must have been refused by exactly this rule."""
    assert (applied.verdict, applied.rule) == (Verdict.REFUSED, rule), applied.detail
    return applied


def reach(world: World, phase: Phase) -> World:
    """Bring the next round to this phase, and not a step further."""
    world.post_keys()
    while state_of(world).current is None:
        step(world)
    if phase is Phase.PROPOSED:
        return world
    world.open()
    if phase is Phase.LIVE:
        return world
    world.seal()
    good(world.submit(world.fold()))
    while (current := state_of(world).current) is not None and current.phase is not phase:
        step(world)
    assert state_of(world).current is not None
    return world


def step(world: World) -> Applied:
    """The next command that a server is to append; time goes on if there is none."""
    for _ in range(24):
        for site in world.up():
            for raw in site.core.due(world.clock(site)):
                return world.append(raw)
        world.now_ms += world.config.window.round_period_ms // 2
        for site in world.up():
            good(world.say(site, bodies.Tick()))
    raise AssertionError("the servers have nothing to do")


def pass_time(world: World, ms: int, *, tick: bool = True) -> None:
    """Let time go by on all clocks, and in the machine too."""
    while ms > 0:
        world.now_ms += min(ms, 20_000)
        ms -= 20_000
        for site in world.up() if tick else []:
            world.say(site, bodies.Tick())


def spare(world: World, at: int = 2) -> Site:
    """Another server of this operator, with keys of its own, that has not joined."""
    name, operator = world.sites[at].name, world.sites[at].operator
    site = world.site(name, operator, Ledger())
    site.serial = world.sites[at].serial
    site.core.machine = Machine.restore(world.rules, world.sites[0].core.machine.snapshot())
    site.applied += world.sites[0].applied[-1:]
    return site


def replace_server(world: World, at: int = 2) -> Site:
    """The operator's other server joins in the place of the one that stood there."""
    site = spare(world, at)
    good(world.join(site))
    world.sites[at] = site
    world.deliver(site)
    return site


def give_up(world: World) -> list[Applied]:
    """Servers vote to end the round in flight, until it has ended."""
    state = state_of(world)
    current = state.current
    assert current is not None
    pass_time(world, state.rules.window.round_deadline_ms + 1)
    body = bodies.TimeoutRound(current.phase)
    votes = []
    for site in world.up():
        if state_of(world).current is None:
            break
        votes.append(good(world.say(site, body, current.header.round)))
    assert state_of(world).current is None
    return votes


def endorsement(
    world: World,
    site: Site,
    *,
    operator: Ed25519PrivateKey | None = None,
    serial: int | None = None,
    identity: Identity | None = None,
    dh_pub: bytes | None = None,
) -> Endorsement:
    """An operator's word for this server, and for another than there is in it if asked for."""
    who = identity or site.identity
    return Endorsement.make(
        state_of(world).instance,
        operator or site.operator,
        who.peer,
        who.dh_pub if dh_pub is None else dh_pub,
        site.serial if serial is None else serial,
    )


def epoch_key(
    world: World,
    signer: Ed25519PrivateKey,
    member: bytes,
    *,
    epoch: int | None = None,
    serial: int | None = None,
    key: bytes | None = None,
) -> EpochKey:
    """A member's key for the next epoch, or with something wrong about it."""
    state = state_of(world)
    if key is None:
        secret = X25519PrivateKey.from_private_bytes(world.draw(32))
        key = secret.public_key().public_bytes_raw()
    number = state.next_epoch() if epoch is None else epoch
    count = world.now_ms * 1000 if serial is None else serial
    body = EpochKey.body(member, number, count, key)
    signature = state.instance.sign(signer, EPOCH_KEY, 0, body)
    return EpochKey(member, number, count, key, signature)


def resume_node(
    world: World, identity: Identity, node: bytes, *, serial: int | None = None
) -> bodies.ResumeNode:
    """A node's word that it restarted."""
    bare = bodies.ResumeNode(
        node, world.draw(32), world.now_ms if serial is None else serial, bytes(64)
    )
    signature = state_of(world).instance.sign(identity.signing, RESUME, 0, bare.statement())
    return replace(bare, signature=signature)


def voucher(world: World, client: bytes, **changes: object) -> bodies.Voucher:
    """A good word for a client."""
    registration = state_of(world).clients[client].registration
    plain = bodies.Voucher(client, registration, world.now_ms // 1000 + 86_400, bytes(32))
    return replace(plain, **changes)  # type: ignore[arg-type]


def operators_document(
    world: World,
    keep: list[int],
    *,
    current: OperatorSet | None = None,
    deployment: bytes | None = None,
    signers: list[int] | None = None,
    k: int = 1,
) -> bytes:
    """The document by which only these operators remain."""
    state = state_of(world)
    before = current or state.operators
    known = {each.name: each for each in state.operators.operators}
    document = OperatorDocument.after(
        before,
        state.instance.deployment_id if deployment is None else deployment,
        [known[f"op{at}"] for at in keep],
        k,
    )
    who = range(len(world.operators)) if signers is None else signers
    return document.assemble([document.sign(world.operators[at]) for at in who])


def recovery(world: World, **changes: object) -> bytes:
    """The document that leads from the last snapshot to the next generation."""
    state = state_of(world)
    plain = {
        "deployment_id": state.instance.deployment_id,
        "old_generation": state.instance.generation,
        "new_generation": b"\x77" * 32,
        "counter": state.counter + 1,
        "checkpoint": state.recovering,
    }
    signers = changes.pop("signers", range(len(world.operators)))
    document = RecoveryDocument(**{**plain, **changes})  # type: ignore[arg-type]
    return document.assemble(
        [document.sign(world.operators[at]) for at in signers]  # type: ignore[attr-defined]
    )


def reopened(world: World) -> World:
    """The same servers before the first entry of a new generation's log."""
    raw = world.sites[0].core.machine.snapshot()
    world.log.clear()
    for site in world.sites:
        core = ServerCore(
            Machine.reopen(world.rules, raw),
            site.identity,
            store=Disk(),
            xor=keystream_xor(),
            draw=world.draw,
        )
        site.core = core
        site.applied.clear()
    return world


def recover_command(world: World, document: bytes, site: Site | None = None) -> bytes:
    """The first entry of the new generation, which is signed in it."""
    try:
        found = RecoveryDocument.loads(_payload(document)).new_generation
    except ValueError:
        found = world.instance.generation
    author = site or world.sites[0]
    return forged(
        world,
        author.identity.signing,
        bodies.Recover(document),
        instance=Instance(world.instance.deployment_id, found),
    )


def _payload(document: bytes) -> bytes:
    return dsse.parse(document, RECOVERY_TYPE).payload


def bare(machine: Machine, author: bytes) -> bytes:
    """The state without what a refused command of this author's may change."""
    state = snapshot.decode(machine.state.rules, machine.snapshot())
    state.seq, state.head = 0, NO_HASH
    state.ring.clear()
    state.refused.clear()
    # The counting of bytes begins anew with the first command after a round's time.
    if state.time_ms - state.quota_since >= state.rules.window.round_deadline_ms:
        reset_quota(state)
    if author in state.servers:
        state.servers[author].bytes_used = 0
    return snapshot.encode(state)


def check_refused(world: World, raw: bytes, rule: str) -> None:
    """The entry is refused by this rule everywhere, and changes nothing anywhere."""
    author = raw[3:35]
    machines = [site.core.machine for site in world.up()]
    before = [bare(machine, author) for machine in machines]
    applied = bad(world.append(raw), rule)
    assert applied.events == ()
    assert [bare(machine, author) for machine in machines] == before
    assert len(world.snapshots()) == 1
    ring = machines[0].state.refused[-1]
    assert (ring.seq, ring.rule) == (applied.seq, rule[: bodies.MAX_RULE])


@dataclass(frozen=True)
class Case:
    """A command that this rule refuses, in the world in which it does."""

    rule: str
    name: str
    make: Callable[[], tuple[World, bytes]]


CASES: list[Case] = []
Maker = Callable[[World], bytes]


def case(rule: str, world: Callable[[], World] = started) -> Callable[[Maker], Maker]:
    """Enter a function that makes the command for this rule."""

    def enter(make: Maker) -> Maker:
        def both() -> tuple[World, bytes]:
            there = world()
            return there, make(there)

        CASES.append(Case(rule, f"{rule}-{make.__name__.strip('_')}", both))
        return make

    return enter


def suspend(world: World, at: int = 2) -> None:
    """The server steps back."""
    good(world.say(world.sites[at], bodies.Suspend()))
    assert state_of(world).servers[world.sites[at].identity.peer].status is Status.SUSPENDED


def user_id(world: World, at: int = 0) -> bytes:
    return client_id(world.users[at].identity.dh_pub)
