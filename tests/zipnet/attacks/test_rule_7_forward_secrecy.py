"""Past pads can't be computed again, because the epoch secrets that they follow from are erased."""

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.simulator.attacker import client_pads, read, server_pads
from tests.simulator.nodes import Backup, Site
from tests.simulator.world import World
from tests.zipnet.attacks.support import SECRET, about_to_speak, refused
from zipnet.errors import GuardRefused, Refused
from zipnet.protocol.header import Header
from zipnet.protocol.keyring import KeyRing
from zipnet.protocol.pads import Pair, pair_secret


def kept(core_ring: KeyRing, epoch: int) -> X25519PrivateKey:
    """The epoch secret, taken from a node's memory before the epoch opened."""
    return core_ring._secrets[epoch]


def again(world: World, site: Site, secret: X25519PrivateKey, header: Header) -> dict[bytes, bytes]:
    """All pads of a server in a past round, from nothing but its epoch secret."""
    sheet = world.current.sheet
    me = next(entry.member for entry in sheet.servers if entry.key.member == site.id)
    pairs = [
        pair_secret(world.instance.binding, secret, entry.member, me, header.base_round)
        for entry in sheet.clients
    ]
    return server_pads(Backup(None, 1, me.key, tuple(pair.export() for pair in pairs)), header)


def test_a_kept_epoch_secret_opens_all_past_rounds() -> None:
    world = World(40).start()
    secrets = {site.id: kept(site.core.keyring, 1) for site in world.sites}
    about_to_speak(world, world.users[0])
    world.seal()
    envelope, header = world.envelopes[world.users[0].id], world.current.header
    world.submit(world.fold())
    world.settle()
    for _ in range(2):
        world.round()
    world.open()
    assert world.current.header.epoch == header.epoch
    # The ratchet alone does not help: it is recomputed from its start.
    pads = [again(world, site, secrets[site.id], header) for site in world.sites]
    assert SECRET in read(envelope, pads, header.shape)

    # But nobody has the secrets: they went when the epoch opened. The key is remembered only.
    nodes = [*(site.core.keyring for site in world.sites), *(u.core.keyring for u in world.users)]
    for ring in nodes:
        assert header.epoch not in ring._secrets
        with refused(Refused, "epoch.no-secret"):
            ring.open(world.instance, header.epoch, header.base_round, [], server=True)
    # Nor are they in what a node seals to disk.
    for site in world.sites:
        raw = b"".join(site.backup().pairs)
        assert secrets[site.id].private_bytes_raw() not in raw


def test_whoever_takes_all_servers_after_a_round_reads_nothing_of_it() -> None:
    world = World(41).start()
    about_to_speak(world, world.users[0])
    world.seal()
    header, shape = world.current.header, world.current.header.shape
    user = world.users[0]
    envelope = world.envelopes[user.id]
    during = [server_pads(site, header) for site in world.sites]
    # During the round all servers together can read it, as any-trust has it ...
    assert SECRET in read(envelope, during, shape)
    world.submit(world.fold())
    world.settle()
    # ... after it they can't, and neither can who takes the client.
    stolen: list[Backup] = [*(site.backup() for site in world.sites), user.backup()]
    for pair in (pair for backup in stolen for pair in backup.open()):
        assert pair.round == header.round + 1
        with refused(Refused, "ratchet.backward"):
            pair.advance(header.round, ())
        with refused(Refused, "ratchet.backward"):
            pair.keys(header)
    # Relabelled as the state of the past round, what is there gives other pads.
    for backup in stolen[:-1]:
        older = [
            Pair(pair.client, pair.server, header.round, pair.export()[-32:]).export()
            for pair in backup.open()
        ]
        pads = server_pads(Backup(None, 1, backup.key, tuple(older)), header)
        assert all(pads[user.id] != before[user.id] for before in during)


def test_closed_epochs_leave_no_pairs() -> None:
    world = World(42, epoch_rounds=2, messages_per_epoch=2).start()
    world.round()
    user, site = world.users[0], world.sites[0]
    first = [*user.core.keyring._pairs.values(), *site.core.keyring._pairs.values()]
    stolen = user.backup()
    while world.state.epoch.number == 1:
        world.round()
    for pair in first:
        with refused(GuardRefused, "erased"):
            pair.step()
    # An epoch's keys say nothing of the next one's.
    world.open()
    header = world.current.header
    pads = client_pads(stolen, header)
    assert not set(pads.values()) & set(client_pads(user, header).values())
