"""Whoever gets the disk of a removed server computes no old partial, wiped or not."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from attestation.bundle import Role
from tests.simulator.attacker import server_pads
from tests.simulator.nodes import Backup, Site
from tests.simulator.world import World
from tests.zipnet.attacks.support import about_to_speak
from zipnet.commands.admin_files import erase
from zipnet.node.state import UnsafePlainState
from zipnet.protocol.header import Header
from zipnet.protocol.pads import Pair, exchange, pair_base
from zipnet.protocol.roster import Member


class Search:
    """All that stands in a file, tried as the epoch secret of a past round."""

    def __init__(self, world: World, site: Site) -> None:
        self.header: Header = world.current.header
        sheet = world.current.sheet
        self.binding = world.instance.binding
        self.me = next(e.member for e in sheet.servers if e.key.member == site.id)
        self.client: Member = sheet.clients[0].member
        self.pad = server_pads(site, self.header)[self.client.id]

    def gives_the_pad(self, secret: bytes) -> bool:
        shared = exchange(X25519PrivateKey.from_private_bytes(secret), self.client.key)
        at = self.header.base_round
        base = pair_base(self.binding, shared, self.client, self.me, at)
        pair = Pair(self.client.id, self.me.id, at, base)
        backup = Backup(None, 1, self.me.key, (pair.export(),))
        return server_pads(backup, self.header)[self.client.id] == self.pad

    def succeeds(self, raw: bytes) -> bool:
        windows = {raw[at : at + 32] for at in range(len(raw) - 31)} - {bytes(32)}
        return any(map(self.gives_the_pad, windows))


def test_what_a_removed_server_leaves(tmp_path: Path) -> None:
    world = World(44).start()
    site = world.sites[0]
    secret = site.core.keyring._secrets[1].private_bytes_raw()
    about_to_speak(world, world.users[0])
    world.seal()
    search = Search(world, site)
    world.submit(world.fold())
    world.settle()

    keys = iter((site.identity.signing.private_bytes_raw(), site.identity.dh.private_bytes_raw()))
    path = tmp_path / "server.state"
    state = UnsafePlainState.open(path, Role.SERVER, world.instance, lambda _count: next(keys))
    state.write(site.disk.records[-1])
    state.close()
    # Another name for the same bytes shows what becomes of them.
    (tmp_path / "stolen").hardlink_to(path)

    # The search finds what it looks for where there is something to find ...
    assert search.succeeds(b"before " + secret + b" after")
    # ... but epoch secrets are never on the disk, and the lasting keys make no pads.
    before = path.read_bytes()
    identity = site.identity.dh.private_bytes_raw()
    assert identity in before
    assert not search.succeeds(before)
    erase(path)
    after = (tmp_path / "stolen").read_bytes()
    assert identity not in after
    assert not any(after)
