"""The ratchet does not run back, so a round id from far ahead would put a client out of action."""

from dataclasses import replace

import pytest

from tests.simulator.attacker import sign_all
from tests.simulator.world import World
from tests.zipnet.attacks.support import refused
from zipnet.errors import Refused
from zipnet.protocol import pads, seal
from zipnet.protocol.header import SignedHeader
from zipnet.protocol.pads import MAX_SKIP


def far(world: World, rounds: int) -> SignedHeader:
    return sign_all(world, replace(world.current.header, round=world.current.header.round + rounds))


def sealed(world: World, live: SignedHeader) -> bool:
    current, user = world.current, world.users[0]
    sheet, tree = current.sheet, current.tree
    return user.core.seal(live, sheet, tree, world.state.operators) is not None


def test_a_far_round_spends_the_ratchet(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(11).start()
    world.open()
    with monkeypatch.context() as patched:
        for module in (pads, seal):
            patched.setattr(module, "MAX_SKIP", 1 << 30)
        assert sealed(world, far(world, MAX_SKIP + 1))
    # From now on this client can seal no round that there really is.
    with refused(Refused, "header.round"):
        sealed(world, world.header)
    for pair in world.users[0].backup().open():
        with refused(Refused, "ratchet.backward"):
            pair.advance(world.current.header.round, ())


def test_a_far_round_is_refused() -> None:
    world = World(11).start()
    world.open()
    with refused(Refused, "header.max-skip"):
        sealed(world, far(world, MAX_SKIP + 1))
    # Nothing was stepped: the round that there is can be sealed.
    assert sealed(world, world.header)


def test_the_ratchet_itself_refuses_a_far_round() -> None:
    world = World(11).start()
    world.round()
    for pair in world.users[0].backup().open():
        before = pair.export()
        with refused(Refused, "ratchet.max-skip"):
            pair.advance(pair.round + MAX_SKIP + 1, ())
        assert pair.export() == before


def test_only_a_header_of_all_servers_moves_the_ratchet() -> None:
    world = World(11).start()
    world.round()
    world.open()
    user = world.users[0]
    before = user.backup()
    ahead = far(world, 100)
    with refused(Refused, "signature"):
        sealed(world, replace(ahead, signatures=(bytes(64), *ahead.signatures[1:])))
    assert user.backup() == before
