"""Clients register, are vouched for or refused, and go; who would be in the roster."""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter

from blake3 import blake3

from attestation.bundle import Bundle, Role, Ticket
from zipnet.committee.bodies import (
    RETIRE as SIGN_RETIRE,
)
from zipnet.committee.bodies import (
    Refuse,
    Register,
    Renew,
    Retire,
    Vouch,
)
from zipnet.committee.commands import Command
from zipnet.committee.events import Event
from zipnet.committee.membership import check_client_key
from zipnet.committee.state import (
    MAX_VOUCH_S,
    PENDING_ROUNDS,
    Client,
    Server,
    State,
    Voucher,
    refused,
)
from zipnet.committee.voting import wait_for_epoch
from zipnet.ids import client_id
from zipnet.protocol.header import NO_HASH
from zipnet.protocol.pads import check_point

# Between two tickets of a client, at least: each is kilobytes in the log.
RENEW_ROUNDS = 2


def registration_digest(body: Register | Renew) -> bytes:
    """What vouchers name: BLAKE3 of the command's body, by which the archive has it too."""
    return blake3(body.encode()).digest()


def register(state: State, command: Command, body: Register) -> list[Event]:
    """A client is entered, unvouched; a known one starts anew with the next epoch."""
    ticket = _ticket(state, body.bundle)
    check_point(ticket.dh_pub)
    new_id = client_id(ticket.dh_pub)
    old = state.clients.get(new_id)
    if old is not None and old.peer != ticket.peer_id:
        raise refused("register.peer", "another peer has registered this identity key")
    check_client_key(state, body.key, new_id, ticket.peer_id)
    if old is None:
        _make_room(state, command.author)
    client = Client(
        new_id,
        ticket.peer_id,
        ticket.dh_pub,
        registration_digest(body),
        state.servers[command.author].id,
        state.next_round,
        next_key=replace(body.key, member=new_id),
    )
    if old is not None:
        client.resume_serial, client.resumes = old.resume_serial, old.resumes
    state.clients[new_id] = client
    return []


def renew(state: State, command: Command, body: Renew) -> list[Event]:
    """A client shows a newer ticket, and stays in while the vouchers for the older one last.

    Nothing is gained by that: these would have lasted without the renewal.
    """
    ticket = _ticket(state, body.bundle)
    client = _known(state, client_id(ticket.dh_pub))
    if client.peer != ticket.peer_id:
        raise refused("register.peer", "another peer has registered this identity key")
    if state.next_round - client.registered_round < RENEW_ROUNDS:
        raise refused(
            "renew.soon",
            "the client has just registered",
            expected=f"{RENEW_ROUNDS} rounds between two tickets of a client",
            got=str(state.next_round - client.registered_round),
            hint="keep the present ticket for longer",
        )
    client.registration = registration_digest(body)
    client.registered_round = state.next_round
    client.carrier = state.servers[command.author].id
    return []


def vouch(state: State, command: Command, body: Vouch) -> list[Event]:
    """The author's word for some clients; all of the batch is good or none is taken."""
    author = state.servers[command.author].id
    now = state.time_ms // 1000
    clients = []
    for voucher in body.vouchers:
        client = _known(state, voucher.client)
        if client.registration != voucher.registration:
            raise refused(
                "vouch.registration",
                "the client has registered anew",
                expected=client.registration.hex(),
                got=voucher.registration.hex(),
                hint="validate the ticket of the present registration",
            )
        if not now < voucher.not_after <= now + MAX_VOUCH_S:
            raise refused(
                "vouch.expiry",
                "the voucher has no sensible end",
                expected=f"after {now}, at most {MAX_VOUCH_S} s later",
                got=str(voucher.not_after),
            )
        clients.append(client)
    if len({client.id for client in clients}) != len(clients) or not clients:
        raise refused("vouch.batch", "one client or more, each once")
    for client, voucher in zip(clients, body.vouchers, strict=True):
        client.vouchers[author] = Voucher(voucher.registration, voucher.not_after, voucher.platform)
        client.refusals.pop(author, None)
        wait_for_epoch(state, client)
    return []


def refuse(state: State, command: Command, body: Refuse) -> list[Event]:
    """The author's word against a client: it leaves the roster with the next header."""
    client = _known(state, body.client)
    if not body.rule:
        raise refused("refuse.rule", "a refusal says why")
    author = state.servers[command.author].id
    client.vouchers.pop(author, None)
    client.refusals[author] = body.rule
    wait_for_epoch(state, client)
    return []


def retire(state: State, command: Command, body: Retire) -> list[Event]:  # noqa: ARG001
    """A client goes by its own will."""
    client = _known(state, body.client)
    if client.registration != body.registration:
        raise refused("retire.registration", "the client has registered anew")
    statement = body.client + body.registration
    state.instance.verify(client.peer, body.signature, SIGN_RETIRE, 0, statement)
    del state.clients[client.id]
    return []


def eligible(state: State, servers: list[Server], *, next_epoch: bool) -> list[Client]:
    """The clients of a header with these servers, in this epoch or the next, by id.

    In the order of their ids, each platform takes at most `max_clients_per_platform`.
    """
    ids = [server.id for server in servers]
    now = state.time_ms // 1000
    found = []
    for client in state.clients.values():
        if (client.next_key if next_epoch else client.member) is None:
            continue
        # As `vouched`, but in every round for every client: without a call for each.
        for server in ids:
            voucher = client.vouchers.get(server)
            if voucher is None or voucher.not_after <= now:
                break
        else:
            found.append(client)
    found.sort(key=attrgetter("id"))
    limit = state.rules.window.max_clients_per_platform
    if not limit:
        return found
    taken: dict[bytes, int] = {}
    return [client for client in found if _fits(client, ids, taken, limit)]


def drop_stale(state: State) -> None:
    """Forget registrations that nobody vouches for any more, or ever did in time."""
    now = state.time_ms // 1000
    for client in list(state.clients.values()):
        young = state.next_round - client.registered_round <= PENDING_ROUNDS
        if not young and not any(v.not_after > now for v in client.vouchers.values()):
            del state.clients[client.id]


def _ticket(state: State, raw: bytes) -> Ticket:
    """The ticket of a client's bundle, of this deployment and signed by its peer key."""
    bundle = Bundle.decode(raw)
    ticket = bundle.ticket
    if ticket.role is not Role.CLIENT:
        raise refused("register.role", "only clients register", got=ticket.role.name.lower())
    if ticket.deployment_id != state.instance.deployment_id:
        raise refused(
            "register.deployment",
            "the ticket is for another deployment",
            expected=state.instance.deployment_id.hex(),
            got=ticket.deployment_id.hex(),
        )
    if not bundle.possessed():
        raise refused("register.pop", "the bundle is not signed by the key of its ticket")
    return ticket


def _fits(client: Client, servers: list[bytes], taken: dict[bytes, int], limit: int) -> bool:
    """Whether the client's platform has room, if all servers agree which one it is."""
    platforms = {client.vouchers[server].platform for server in servers}
    if len(platforms) != 1:
        return False
    platform = platforms.pop()
    if platform == NO_HASH:
        return True
    if taken.get(platform, 0) >= limit:
        return False
    taken[platform] = taken.get(platform, 0) + 1
    return True


def _known(state: State, client: bytes) -> Client:
    if client not in state.clients:
        raise refused("client.unknown", "no client has this id", got=client.hex())
    return state.clients[client]


def _make_room(state: State, author: bytes) -> None:
    """Check that there is room for one more registration by this carrier.

    Registrations that nobody vouches for must not keep others out: above half of the room each
    carrier has its share only.
    """
    limit = state.rules.window.max_clients
    if len(state.clients) * 2 < limit:
        return
    now = state.time_ms // 1000
    carrier = state.servers[author].id
    pending = sum(
        client.carrier == carrier and not any(v.not_after > now for v in client.vouchers.values())
        for client in state.clients.values()
    )
    share = max(1, limit // (2 * len(state.operators.operators)))
    if len(state.clients) >= limit or pending >= share:
        raise refused(
            "register.full",
            "there is no room for another client",
            expected=f"below {limit} clients, and {share} unvouched ones of a carrier",
            got=f"{len(state.clients)} and {pending}",
            hint="try again after the next epoch has begun",
        )
