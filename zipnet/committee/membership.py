"""Servers come, go, rest and return; members post the keys of the next epoch."""

from __future__ import annotations

from dataclasses import replace

from zipnet.committee.bodies import (
    ChangeOperators,
    EpochKeys,
    Join,
    Leave,
    ResumeNode,
    Suspend,
)
from zipnet.committee.commands import Command
from zipnet.committee.events import Event, ServerGone, ServerSuspended
from zipnet.committee.state import (
    MAX_OPERATOR_DOCUMENTS,
    RESUMES_PER_ROUND,
    Client,
    Server,
    State,
    Status,
    may_resume,
    refused,
)
from zipnet.committee.voting import count_out, wait_for_epoch
from zipnet.ids import server_id
from zipnet.operators import OperatorDocument
from zipnet.protocol.pads import check_point
from zipnet.protocol.roster import RESUME, EpochKey, Resume


def join(state: State, command: Command, body: Join) -> list[Event]:
    """A server enters for its operator, in place of the one that stood there before."""
    endorsement = body.endorsement
    endorsement.verify(state.instance)
    if endorsement.peer != command.author:
        raise refused(
            "join.author",
            "a server joins for itself only",
            expected=command.author.hex(),
            got=endorsement.peer.hex(),
        )
    known = {operator.key: operator.name for operator in state.operators.operators}
    if endorsement.operator not in known:
        raise refused(
            "join.operator",
            "the server's operator is none of this deployment",
            expected=" or ".join(known.values()),
            got=endorsement.operator.hex(),
            hint="let an operator of the configuration endorse the server",
        )
    server = _replaceable(state, endorsement.operator, endorsement.peer, endorsement.serial)
    there = state.servers.get(command.author)
    if there is not None and there.operator != endorsement.operator:
        raise refused("join.two-operators", "the server stands for another operator already")
    check_point(endorsement.dh_pub)
    new_id = server_id(endorsement.dh_pub)
    other = state.server(new_id)
    if other is not None and other.peer != command.author:
        raise refused("join.identity", "another server has this identity key", got=new_id.hex())
    _check_key(state, body.key, new_id, command.author, old=server if other else None)

    events: list[Event] = []
    if server is not None:
        del state.servers[server.peer]
        if server.id != new_id:
            events = [*_forget(state, server)]
    fresh = Server(
        command.author, new_id, endorsement, command.clock_ms, resumed_round=state.next_round
    )
    fresh.next_key = body.key
    if server is not None and server.peer == command.author:
        # Its quota and its place in the order of Resumes are the peer's, not the boot's.
        fresh.bytes_used, fresh.resume_serial = server.bytes_used, server.resume_serial
    state.servers[command.author] = fresh
    if not state.beacons:
        present = {other.operator for other in state.servers.values()}
        if len(present & known.keys()) >= state.operators.servers_needed(state.rules.config):
            state.first_beacon = state.head
    return events


def leave(state: State, command: Command, body: Leave) -> list[Event]:
    """The author leaves, or sends another server of its operator away."""
    peer = command.author
    if body.dismissal is not None:
        body.dismissal.verify(state.instance)
        peer = body.dismissal.peer
        there = state.servers.get(peer)
        if there is None or there.operator != body.dismissal.operator:
            raise refused("leave.operator", "the operator has no such server here", got=peer.hex())
        if body.dismissal.serial < there.endorsement.serial:
            raise refused(
                "leave.serial",
                "the dismissal is older than the server's endorsement",
                expected=f"{there.endorsement.serial} or more",
                got=str(body.dismissal.serial),
            )
    server = state.servers.pop(peer)
    events = _forget(state, server)
    if body.dismissal is not None:
        state.serials[server.operator] = body.dismissal.serial
    return events


def suspend(state: State, command: Command, body: Suspend) -> list[Event]:  # noqa: ARG001
    """The author rests until its Resume."""
    return stop(state, state.servers[command.author], "suspend.own")


def resume(state: State, command: Command, body: ResumeNode) -> list[Event]:
    """A node that restarted is fenced off from its past and takes part again."""
    node: Server | Client | None = state.clients.get(body.node) or state.server(body.node)
    if node is None:
        raise refused("resume.unknown", "no member has this id", got=body.node.hex())
    if isinstance(node, Server) and node.peer != command.author:
        raise refused("resume.author", "a server resumes for itself only", got=body.node.hex())
    state.instance.verify(node.peer, body.signature, RESUME, 0, body.statement())
    if body.serial <= node.resume_serial:
        raise refused(
            "resume.serial",
            "the Resume is not newer than the last of this node",
            expected=f"above {node.resume_serial}",
            got=str(body.serial),
            hint="a clone of the node may be running",
        )
    if not may_resume(state, node):
        raise refused(
            "resume.quota",
            "too many Resumes before the next header",
            expected=f"at most {RESUMES_PER_ROUND} of a node",
            hint="wait for the next round",
        )
    node.resumes += 1
    node.resume_serial = body.serial
    node.last_resume = body.nonce
    state.epoch.resumes.append(Resume(state.next_round, node.id, body.nonce))
    if isinstance(node, Server):
        node.status = Status.ACTIVE
        node.resumed_round = state.next_round
    return []


def change_operators(state: State, command: Command, body: ChangeOperators) -> list[Event]:  # noqa: ARG001
    """The operators change; servers of those who left are gone."""
    if len(state.operator_documents) >= MAX_OPERATOR_DOCUMENTS:
        raise refused(
            "operators.documents",
            "the operators have changed too often",
            expected=f"at most {MAX_OPERATOR_DOCUMENTS} documents",
            hint="begin a new deployment with the present operators",
        )
    after = OperatorDocument.verify(body.document, state.operators, state.instance.deployment_id)
    state.operators = after
    state.operator_documents.append(body.document)
    keys = {operator.key for operator in after.operators}
    gone = [server for server in state.servers.values() if server.operator not in keys]
    events: list[Event] = []
    for server in sorted(gone, key=lambda one: one.id):
        del state.servers[server.peer]
        events += _forget(state, server)
    return events


def epoch_keys(state: State, command: Command, body: EpochKeys) -> list[Event]:  # noqa: ARG001
    """Keys for the next epoch; all of them are good or none is taken."""
    owners: list[Server | Client] = []
    for key in body.keys:
        owner: Server | Client | None = state.clients.get(key.member) or state.server(key.member)
        if owner is None:
            raise refused("epoch-key.unknown", "no member has this id", got=key.member.hex())
        _check_key(state, key, owner.id, owner.peer, old=owner)
        owners.append(owner)
    if len({owner.id for owner in owners}) != len(owners) or not owners:
        raise refused("epoch-key.batch", "one key or more, and one a member")
    for owner, key in zip(owners, body.keys, strict=True):
        owner.next_key = replace(key, member=owner.id)  # one object for the id, not one a key
        if isinstance(owner, Client):
            wait_for_epoch(state, owner)
    return []


def check_client_key(state: State, key: EpochKey, client: bytes, peer: bytes) -> None:
    """Check a registering client's key. Raises CommandRefused and Refused."""
    _check_key(state, key, client, peer, old=state.clients.get(client))


def stop(state: State, server: Server, rule: str) -> list[Event]:
    """Suspend a server and say so."""
    server.status = Status.SUSPENDED
    count_out(state, server.id)
    return [ServerSuspended(server.id, rule)]


def _check_key(
    state: State, key: EpochKey, member: bytes, peer: bytes, old: Server | Client | None
) -> None:
    if key.member != member:
        raise refused(
            "epoch-key.member", "the key is another member's", expected=member.hex(),
            got=key.member.hex(),
        )  # fmt: skip
    if key.epoch != state.next_epoch():
        raise refused(
            "epoch-key.epoch",
            "the key is not for the next epoch",
            expected=str(state.next_epoch()),
            got=str(key.epoch),
            hint="read the epoch from the live round and post a key for the one after it",
        )
    last = max((k.serial for k in (old.member, old.next_key) if k), default=-1) if old else -1
    if key.serial <= last:
        raise refused(
            "epoch-key.serial",
            "the key is not newer than the last of this member",
            expected=f"above {last}",
            got=str(key.serial),
        )
    check_point(key.key)
    key.verify(state.instance, peer)


def _replaceable(state: State, operator: bytes, peer: bytes, serial: int) -> Server | None:
    """The server that a newer endorsement of its operator replaces, if there is one."""
    server = next((s for s in state.servers.values() if s.operator == operator), None)
    if server is None:
        least = state.serials.get(operator, -1) + 1
    else:
        least = server.endorsement.serial + (peer != server.peer)
    if serial < least:
        raise refused(
            "join.serial",
            "the endorsement is older than the operator's last word",
            expected=f"{least} or more",
            got=str(serial),
            hint="let the operator endorse the new server with a greater serial",
        )
    return server


def _forget(state: State, server: Server) -> list[Event]:
    """Drop what a server that is gone has said; its endorsement does not bring it back."""
    state.serials[server.operator] = server.endorsement.serial
    for client in state.clients.values():
        client.vouchers.pop(server.id, None)
        client.refusals.pop(server.id, None)
    count_out(state, server.id)
    return [ServerGone(server.id)]
