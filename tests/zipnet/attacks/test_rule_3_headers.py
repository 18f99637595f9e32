"""A client seals only under a header that all servers of its committee have signed.

The leader here is whoever hands out headers. It may drop servers, invent them, or boot a whole
committee in the names of operators that never saw it.
"""

from dataclasses import replace

import pytest

from tests.simulator.attacker import read, server_pads, sign_all
from tests.simulator.nodes import User
from tests.simulator.world import World
from tests.zipnet.attacks.support import SECRET, about_to_speak, no_check, refused
from zipnet.committee import bodies
from zipnet.errors import Refused
from zipnet.operators import Endorsement
from zipnet.protocol.header import SignedHeader
from zipnet.protocol.roster import Roster
from zipnet.protocol.sheet import Sheet
from zipnet.roles import client_core


def alone(world: World, keep: int = 2) -> SignedHeader:
    """The live round again, with the first honest servers dropped, signed by the rest."""
    current = world.current
    servers = sorted(site.id for site in world.sites[keep:])
    members = [entry.member for entry in current.sheet.servers if entry.key.member in servers]
    roster = Roster.of([entry.member for entry in current.sheet.clients], members)
    header = replace(current.header, servers=tuple(servers), roster_hash=roster.hash())
    return sign_all(world, header)


def test_a_leader_that_drops_the_honest_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(7).start()
    about_to_speak(world, world.users[0])
    user, current = world.users[0], world.current
    live = alone(world)
    pads = server_pads(world.sites[2], live.header, current.sheet.resumes)
    operators = world.state.operators
    with refused(Refused, "header.operator-missing"):
        user.core.seal(live, current.sheet, current.tree, operators)
    with monkeypatch.context() as patched:
        # It is signed by all of its servers: whoever asks no more than that is read.
        live.verify({world.sites[2].id: world.sites[2].identity.peer})
        patched.setattr(client_core, "check_header", no_check)
        sealed = user.core.seal(live, current.sheet, current.tree, operators)
    assert sealed is not None
    assert SECRET in read(sealed.envelope, [pads], live.header.shape)


def test_signatures_are_missing_or_wrong() -> None:
    world = World(7).start()
    about_to_speak(world, world.users[0])
    user, current, live = world.users[0], world.current, world.header
    operators = world.state.operators
    for signatures, rule in (
        (live.signatures[:-1], "header.signatures"),
        ((), "header.signatures"),
        ((*live.signatures[:-1], bytes(64)), "signature"),
        (live.signatures[::-1], "signature"),
        ((live.signatures[0],) * 3, "signature"),
    ):
        with refused(Refused, rule):
            user.core.seal(
                SignedHeader(live.header, signatures), current.sheet, current.tree, operators
            )
    # None of these attempts cost it the round.
    assert world.seal_one(user) is not None


def test_a_server_of_no_operator_in_force() -> None:
    world = World(8).start()
    about_to_speak(world, world.users[0])
    user, current = world.users[0], world.current
    operators = world.state.operators
    others = replace(operators, operators=operators.operators[1:], k=2)
    with refused(Refused, "header.operator"):
        user.core.seal(world.header, current.sheet, current.tree, others)


def booted_by_one(world: World) -> list[Endorsement]:
    """Endorsements in the names of all operators, made by the last one alone."""
    forged = []
    for site in world.sites:
        real = Endorsement.make(
            world.instance, world.operators[-1], site.identity.peer, site.identity.dh_pub, 9
        )
        name = site.operator.public_key().public_bytes_raw()
        forged.append(replace(real, operator=name))
    return forged


def committee_of_one(world: World) -> None:
    """All servers are the last operator's: the machine is fed what it would refuse."""
    for site, endorsement in zip(world.sites, booted_by_one(world), strict=True):
        assert not world.append(site.core.join(endorsement, world.now_ms)).rule
    world.say(world.sites[0], bodies.RotateAllowList(world.allow_list()))
    for site in world.sites:
        world.say(site, bodies.Assign((world.tree,)))
    for user in world.users:
        world.admit(user)


def test_a_committee_that_one_operator_booted_in_the_names_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(9)
    with monkeypatch.context() as patched:
        patched.setattr(Endorsement, "verify", no_check)
        committee_of_one(world)
        about_to_speak(world, world.users[0])
        pads = [server_pads(site, world.current.header) for site in world.sites]
        user, current = world.users[0], world.current
        careless = world.seal_one(user)
    # One server for each operator, all signatures right, and one operator reads everything.
    assert careless is not None
    assert SECRET in read(careless, pads, current.header.shape)

    # A client that checks whose servers these are seals nothing for this committee.
    other: User = world.users[1]
    with refused(Refused, "signature"):
        other.core.seal(world.header, current.sheet, current.tree, world.state.operators)
    # Neither do machines let its servers in.
    honest = World(9)
    for site, endorsement in zip(honest.sites, booted_by_one(honest), strict=True):
        applied = honest.append(site.core.join(endorsement, honest.now_ms))
        mine = endorsement.operator == honest.operators[-1].public_key().public_bytes_raw()
        assert applied.rule == ("" if mine else "signature")


def test_a_sheet_of_other_keys_does_not_fit_the_header() -> None:
    """The leader can't swap a server's epoch key for its own: header and signatures name it."""
    world = World(10).start()
    about_to_speak(world, world.users[0])
    user, current, operators = world.users[0], world.current, world.state.operators
    entry = current.sheet.servers[0]
    forged = replace(entry, key=replace(entry.key, key=world.draw(32)))
    sheet = Sheet((forged, *current.sheet.servers[1:]), current.sheet.clients, ())
    with refused(Refused, "signature"):
        user.core.seal(world.header, sheet, current.tree, operators)
    fewer = replace(current.sheet, clients=current.sheet.clients[:-1])
    with refused(Refused, "sheet.roster"):
        user.core.seal(world.header, fewer, current.tree, operators)
    assert world.seal_one(user) is not None
