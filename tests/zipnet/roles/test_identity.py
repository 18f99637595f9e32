"""Keys that name a node."""

from tests.simulator.world import World
from zipnet.roles.identity import Identity


def test_keys_follow_from_what_is_drawn() -> None:
    drawn: list[int] = []

    def draw(size: int) -> bytes:
        drawn.append(size)
        return bytes([len(drawn)]) * size

    one = Identity.fresh(draw)
    assert drawn == [32, 32]
    assert one.signing.private_bytes_raw() == b"\1" * 32
    assert one.dh.private_bytes_raw() == b"\2" * 32
    assert one.peer == one.signing.public_key().public_bytes_raw()
    assert one.dh_pub == one.dh.public_key().public_bytes_raw()
    assert len({one.peer, one.dh_pub}) == 2


def test_secrets_stay_out_of_logs() -> None:
    one = Identity.fresh(World(0).draw)
    assert repr(one) == "Identity()"
