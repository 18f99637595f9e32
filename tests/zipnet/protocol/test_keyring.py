"""Key rings: secrets of coming epochs, pairs of the present one, nothing of the past."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.zipnet.protocol.support import INSTANCE, Node, h, header, node, nodes, refused
from zipnet.errors import GuardRefused, Refused
from zipnet.protocol.keyring import KeyRing
from zipnet.protocol.pads import Pair
from zipnet.protocol.roster import EpochKey, Member, Resume

BASE = 5


def secret(name: str) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(h(name))


def offer(ring: KeyRing, one: Node, epoch: int, name: str = "") -> EpochKey:
    return ring.offer(INSTANCE, epoch, 7, secret(name or f"{one.name} {epoch}"), one.signer)


def rings(clients: int = 2, servers: int = 2) -> tuple[list[KeyRing], list[KeyRing]]:
    """Key rings of some clients and servers with the pairs of epoch 1."""
    users, hosts = nodes("client", clients), nodes("server", servers)
    ours, theirs = [KeyRing(one.id) for one in users], [KeyRing(one.id) for one in hosts]
    keys = [offer(ring, one, 1).key for ring, one in zip(ours, users, strict=True)]
    host_keys = [offer(ring, one, 1).key for ring, one in zip(theirs, hosts, strict=True)]
    for ring in ours:
        others = [Member(one.id, key) for one, key in zip(hosts, host_keys, strict=True)]
        ring.open(INSTANCE, 1, BASE, others, server=False)
    for ring in theirs:
        others = [Member(one.id, key) for one, key in zip(users, keys, strict=True)]
        ring.open(INSTANCE, 1, BASE, others, server=True)
    return ours, theirs


def ids(kind: str, count: int = 2) -> list[bytes]:
    return [one.id for one in nodes(kind, count)]


def secrets(pairs: Sequence[Pair]) -> list[bytes]:
    return [pair.export() for pair in pairs]


def test_a_key_is_offered_signed_and_kept() -> None:
    one = node("client 0")
    ring = KeyRing(one.id)
    assert (ring.key(0), ring.key(4)) == (None, None)
    key = offer(ring, one, 4)
    key.verify(INSTANCE, one.peer)
    assert (key.member, key.epoch, key.serial) == (one.id, 4, 7)
    public = secret("client 0 4").public_key().public_bytes_raw()
    assert key.key == public == ring.key(4)
    assert ring.epoch == 0


def test_a_later_offer_for_the_same_epoch_holds() -> None:
    one = node("client 0")
    ring = KeyRing(one.id)
    offer(ring, one, 4)
    again = offer(ring, one, 4, "another")
    assert ring.key(4) == again.key == secret("another").public_key().public_bytes_raw()


def test_both_sides_have_the_same_pairs() -> None:
    clients, servers = rings()
    for number in (BASE, BASE + 3):
        for at, client in enumerate(ids("client")):
            for place, server in enumerate(ids("server")):
                ours = clients[at].pairs([server], number, ())
                theirs = servers[place].pairs([client], number, ())
                assert secrets(ours) == secrets(theirs)
                assert (ours[0].client, ours[0].server) == (client, server)


def test_resumes_are_mixed_in_on_both_sides() -> None:
    (client, _), (server, _) = rings()
    resume = Resume(BASE + 1, ids("client")[0], h("nonce"))
    ours = client.pairs(ids("server")[:1], BASE + 2, [resume])
    theirs = server.pairs(ids("client")[:1], BASE + 2, [resume])
    assert secrets(ours) == secrets(theirs)
    plain = rings()[0][0].pairs(ids("server")[:1], BASE + 2, ())
    assert secrets(ours) != secrets(plain)


def test_pairs_come_in_the_order_that_is_asked_for() -> None:
    (client, _), _ = rings()
    order = ids("server")[::-1]
    assert [pair.server for pair in client.pairs(order, BASE, ())] == order


def test_pairs_that_a_round_needs_not_move_on_as_well() -> None:
    (client, _), _ = rings()
    one, other = ids("server")
    client.pairs([one], BASE + 4, ())
    with refused(Refused, "ratchet.backward"):
        client.pairs([other], BASE + 3, ())
    assert client.pairs([other], BASE + 4, ())[0].round == BASE + 4


def test_a_node_of_another_epoch_has_no_pair() -> None:
    (client, _), _ = rings()
    with refused(Refused, "epoch.no-pair"):
        client.pairs([*ids("server"), h("newcomer")], BASE, ())
    with refused(Refused, "epoch.no-pair"):
        KeyRing(h("client")).pairs(ids("server"), BASE, ())


def test_opening_an_epoch_forgets_its_secret_and_older_ones() -> None:
    one, server = node("client 0"), nodes("server", 1)[0]
    ring = KeyRing(one.id)
    for epoch in (1, 2, 3, 4):
        offer(ring, one, epoch)
    ring.open(INSTANCE, 3, BASE, [server.member], server=False)
    assert ring.epoch == 3
    assert (ring.key(1), ring.key(2)) == (None, None)
    assert ring.key(3) == secret("client 0 3").public_key().public_bytes_raw()
    assert ring.key(4) == secret("client 0 4").public_key().public_bytes_raw()
    for epoch in (1, 2, 3):
        with refused(Refused, "epoch.no-secret"):
            ring.open(INSTANCE, epoch, BASE, [server.member], server=False)
    assert ring.epoch == 3


def test_the_pairs_of_the_epoch_before_are_overwritten() -> None:
    one, server = node("client 0"), nodes("server", 1)[0]
    ring = KeyRing(one.id)
    for epoch in (1, 2):
        offer(ring, one, epoch)
    ring.open(INSTANCE, 1, BASE, [server.member], server=False)
    old = ring.pairs([server.id], BASE, ())[0]
    ring.open(INSTANCE, 2, BASE + 9, [server.member], server=False)
    with pytest.raises(GuardRefused):
        old.keys(header())
    assert ring.pairs([server.id], BASE + 9, ())[0].round == BASE + 9


def test_a_key_of_small_order_leaves_everything_as_it_was() -> None:
    one, server = node("client 0"), nodes("server", 1)[0]
    ring = KeyRing(one.id)
    for epoch in (1, 2):
        offer(ring, one, epoch)
    ring.open(INSTANCE, 1, BASE, [server.member], server=False)
    weak = Member(h("weak"), bytes(32))
    with refused(Refused, "dh-zero"):
        ring.open(INSTANCE, 2, BASE, [server.member, weak], server=False)
    assert ring.epoch == 1
    assert ring.key(2) is not None
    assert len(ring.pairs([server.id], BASE, ())) == 1


def test_without_a_secret_the_error_names_those_there_are() -> None:
    ring = KeyRing(h("node"))
    with pytest.raises(Refused, match="none"):
        ring.open(INSTANCE, 1, BASE, (), server=False)
    offer(ring, node("client 0"), 4)
    with pytest.raises(Refused, match="4"):
        ring.open(INSTANCE, 1, BASE, (), server=False)


def test_what_was_sealed_is_taken_over() -> None:
    clients, servers = rings()
    for ring, own, others in (
        (clients[0], ids("client")[0], ids("server")),
        (servers[0], ids("server")[0], ids("client")),
    ):
        ring.pairs(others, BASE + 2, ())
        sealed, key = ring.export(), ring.key(1)
        assert key is not None
        again = KeyRing(own)
        again.restore(1, key, map(Pair.restore, sealed))
        assert (again.epoch, again.key(1)) == (1, key)
        assert again.export() == sealed
        found = again.pairs(others, BASE + 5, ())
        assert secrets(found) == secrets(ring.pairs(others, BASE + 5, ()))


def test_coming_secrets_are_not_sealed() -> None:
    (client, _), _ = rings()
    before = client.export()
    offer(client, node("client 0"), 2)
    assert client.export() == before


def test_closing_overwrites_all_pairs() -> None:
    (client, _), _ = rings()
    pairs = client.pairs(ids("server"), BASE, ())
    client.close()
    assert (client.epoch, client.key(1), client.export()) == (0, None, [])
    for pair in pairs:
        with pytest.raises(GuardRefused):
            pair.export()


def test_nothing_secret_is_shown() -> None:
    (client, _), _ = rings()
    shown = repr(client)
    assert shown == f"KeyRing({ids('client')[0].hex()[:16]}, epoch 1, 2 pairs)"
