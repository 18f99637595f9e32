"""What attackers compute from what they hold: the primitives, with no check and no guard.

Each function is what a node would do if it did not refuse. Tests show with them that an attack
works, before they show which rule stops it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tests.simulator.nodes import Backup, Site, User
from tests.simulator.world import World
from zipnet.committee import bodies
from zipnet.committee.commands import Command
from zipnet.errors import WireFormatError
from zipnet.protocol.aggregate import Aggregate
from zipnet.protocol.envelope import Envelope, leaf_keys, seal_envelope
from zipnet.protocol.fold import Total, absorb_payload, payload_xor
from zipnet.protocol.header import Header, SignedHeader
from zipnet.protocol.pads import Pair, keystream_xor
from zipnet.protocol.roster import Resume, bitmap, places
from zipnet.protocol.shape import Shape

_XOR, _PADS = payload_xor(), keystream_xor()


def xor(*parts: bytes) -> bytes:
    total = bytearray(len(parts[0]))
    for part in parts:
        _XOR(total, part)
    return bytes(total)


def pad(pair: Pair, header: Header, resumes: Iterable[Resume] = ()) -> bytes:
    """Both pads of a pair under a header; the pair is a thief's copy and is left as it is."""
    copy = Pair.restore(pair.export())
    copy.advance(header.round, tuple(resumes))
    result = bytearray(header.shape.payload_bytes)
    copy.keys(header).apply(_PADS, result, header.shape)
    return bytes(result)


def server_pads(
    source: Site | Backup, header: Header, resumes: Iterable[Resume] = ()
) -> dict[bytes, bytes]:
    """What a server, or who has a backup of it, can compute: its pad with each client."""
    backup = source.backup() if isinstance(source, Site) else source
    listed = tuple(resumes)
    return {pair.client: pad(pair, header, listed) for pair in backup.open()}


def client_pads(
    source: User | Backup, header: Header, resumes: Iterable[Resume] = ()
) -> dict[bytes, bytes]:
    """As `server_pads`, for a client: its pad with each server."""
    backup = source.backup() if isinstance(source, User) else source
    listed = tuple(resumes)
    return {pair.server: pad(pair, header, listed) for pair in backup.open()}


def read(envelope: bytes, pads: Iterable[Mapping[bytes, bytes]], shape: Shape) -> bytes:
    """The content of a client's envelope, for whoever has all of its pads with all servers."""
    one = Envelope.decode(envelope, shape)
    return xor(one.payload, *(mapping[one.client] for mapping in pads))


def partial(pads: Mapping[bytes, bytes], clients: Iterable[bytes], shape: Shape) -> bytes:
    """A server's answer for these clients, whatever was answered before."""
    return xor(bytes(shape.payload_bytes), *(pads[client] for client in clients))


def sign_all(world: World, header: Header) -> SignedHeader:
    """The header with the signatures of all of its servers, whatever they signed before."""
    signers = (world.where(server).identity.signing for server in header.servers)
    return SignedHeader(header, tuple(header.sign(signer) for signer in signers))


def roster_ids(world: World) -> list[bytes]:
    """The clients of the round in flight, in the order of bits."""
    return [entry.key.member for entry in world.current.sheet.clients]


def aggregate_of(world: World, clients: Iterable[bytes], signer: int = 0) -> bytes:
    """The sum of exactly these clients' envelopes, signed by one aggregator; no fold, no checks."""
    header, everyone = world.current.header, roster_ids(world)
    total = Total.zero(header, len(everyone))
    for client in clients:
        payload = Envelope.decode(world.envelopes[client], header.shape).payload
        absorb_payload(total, everyone.index(client), memoryview(payload), _XOR)
    return sign_sum(world, bytes(total.bits), bytes(total.payload), signer).encode()


def sign_sum(world: World, bits: bytes, payload: bytes, signer: int = 0) -> Aggregate:
    """Any sum and any bitmap, as one of the aggregators says it."""
    key = world.aggregators[signer].signing
    count = len(roster_ids(world))
    return Aggregate.sign(world.current.header, key, count, bits, bytes(32), payload)


def without(aggregate: bytes, client: bytes, world: World) -> bytes:
    """The bitmap of an aggregate without one client's bit."""
    everyone = roster_ids(world)
    one = Aggregate.decode(aggregate, world.current.header.shape)
    present = places(one.participants, len(everyone))
    return bitmap((at for at in present if everyone[at] != client), len(everyone))


def seal_anything(world: World, user: User, content: bytes, rate_tag: bytes = bytes(16)) -> bytes:
    """An envelope of this client with whatever it likes to put in, under its real pads.

    Its pads come from the state before the round was sealed.
    """
    header = world.current.header
    pads = client_pads(user, header, world.current.sheet.resumes)
    payload = xor(content, *(pads[server] for server in header.servers))
    return authentic(world, user, header, payload, rate_tag)


def authentic(
    world: World, user: User, header: Header, payload: bytes, rate_tag: bytes = bytes(16)
) -> bytes:
    """An envelope with a right MAC and a right signature around any payload."""
    leaf_dh = world.tree.nodes[world.tree.leaf_for(user.id)].dh_pub
    keys = leaf_keys(user.identity.dh, leaf_dh, world.instance, user.id, leaf_dh)
    return seal_envelope(header, user.id, rate_tag, payload, keys.mac, user.identity.signing)


def equivocations(log: Iterable[bytes]) -> list[tuple[bytes, int, int]]:
    """Who said two things of one kind about one round, of what may be said once only."""
    once = (bodies.SignHeader, bodies.CommitPartial, bodies.RevealPartial, bodies.SignRecord)
    said: dict[tuple[bytes, int, int], set[bytes]] = {}
    for raw in log:
        try:
            command = Command.decode(raw)
        except WireFormatError:
            continue
        if isinstance(command.body, once):
            place = command.author, command.round, command.body.KIND
            said.setdefault(place, set()).add(command.body.encode())
    return [place for place, what in said.items() if len(what) > 1]
