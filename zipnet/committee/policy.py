"""Lists, aggregator trees, the clock, checkpoints and new generations."""

from __future__ import annotations

from attestation import envelope as dsse
from attestation.allowlist import PAYLOAD_TYPE, AllowList
from zipnet.committee.bodies import (
    SIGN_CHECKPOINT,
    Assign,
    Checkpoint,
    Recover,
    RotateAllowList,
    Tick,
)
from zipnet.committee.commands import Command
from zipnet.committee.events import CheckpointSigned, Event, ListAccepted, Recovered
from zipnet.committee.state import (
    LIST_DELAY,
    PENDING_LISTS,
    Epoch,
    ListInForce,
    SignedCheckpoint,
    State,
    refused,
)
from zipnet.committee.voting import majority
from zipnet.operators import RecoveryDocument
from zipnet.protocol.header import NO_HASH
from zipnet.protocol.instance import Instance


def rotate(state: State, command: Command, body: RotateAllowList) -> list[Event]:  # noqa: ARG001
    """A newer list, in force some rounds later; the first one at once."""
    lists = [state.allow_list, *state.pending_lists] if state.allow_list else []
    newest = lists[-1] if lists else None
    keys = [operator.key for operator in state.operators.operators]
    accepted = AllowList.verify(
        body.envelope,
        keys,
        state.operators.k,
        newest.number if newest else None,
        deployment_id=state.instance.deployment_id,
        previous_digest=newest.digest if newest else None,
    )
    if newest and accepted.number == newest.number:
        raise refused("list.known", "this list is known already", got=str(accepted.number))
    if len(state.pending_lists) >= PENDING_LISTS:
        raise refused("list.pending", "too many lists wait to be in force")
    first_round = state.next_round + LIST_DELAY if newest else state.next_round
    entry = ListInForce(accepted.number, accepted.digest, body.envelope, first_round)
    if newest:
        state.pending_lists.append(entry)
    else:
        state.allow_list = entry
    return [ListAccepted(entry.number, first_round)]


def due_list(state: State) -> ListInForce | None:
    """The list that the next header names."""
    due = [entry for entry in state.pending_lists if entry.from_round <= state.next_round]
    return due[-1] if due else state.allow_list


def accepted_list(entry: ListInForce) -> AllowList:
    """The list itself; its signatures were checked when it was accepted."""
    return AllowList.loads(dsse.parse(entry.envelope, PAYLOAD_TYPE).payload)


def assign(state: State, command: Command, body: Assign) -> list[Event]:
    """A vote for aggregator trees; a majority of the active servers decides."""
    if not body.trees:
        raise refused("assign.empty", "a vote for no tree at all")
    server = state.servers[command.author]
    ballot = body.encode()
    votes = sum(other == ballot for voter, other in state.tree_votes.items() if voter != server.id)
    if votes + 1 < majority(state):
        state.tree_votes[server.id] = ballot
        return []
    state.trees = body.trees
    state.tree_at = 0
    state.tree_votes.clear()
    return []


def tick(state: State, command: Command, body: Tick) -> list[Event]:  # noqa: ARG001
    """Nothing but the clock of the frame."""
    return []


def checkpoint(state: State, command: Command, body: Checkpoint) -> list[Event]:
    """A server's signature over the state that this machine has seen as well."""
    pending = state.pending_checkpoint
    server = state.servers[command.author]
    if pending is None or body.seq != pending.seq:
        raise refused(
            "checkpoint.seq",
            "no checkpoint is due there",
            expected="none" if pending is None else str(pending.seq),
            got=str(body.seq),
        )
    if (body.head, body.digest) != (pending.head, pending.digest):
        raise refused(
            "checkpoint.digest",
            "the author has another state",
            expected=f"{pending.head.hex()} {pending.digest.hex()}",
            got=f"{body.head.hex()} {body.digest.hex()}",
            hint="one of the two nodes is broken: compare their releases and logs",
        )
    if server.id not in pending.servers:
        raise refused("checkpoint.server", "the author was no server then")
    signatures = dict(pending.signatures)
    if server.id in signatures:
        raise refused("checkpoint.twice", "the author has signed this checkpoint")
    statement = Checkpoint.body(body.seq, body.head, body.digest)
    state.instance.verify(server.peer, body.signature, SIGN_CHECKPOINT, 0, statement)
    signatures[server.id] = body.signature
    signed = SignedCheckpoint(
        pending.seq,
        pending.head,
        pending.digest,
        pending.servers,
        tuple(sorted(signatures.items())),
    )
    if not signed.complete:
        state.pending_checkpoint = signed
        return []
    state.checkpoint, state.pending_checkpoint = signed, None
    return [CheckpointSigned(signed.seq)]


def recover(state: State, command: Command, body: Recover) -> list[Event]:
    """The operators open the next generation on a checkpoint; everybody joins anew."""
    document = RecoveryDocument.verify(body.document, state.operators)
    expected = (
        state.instance.deployment_id,
        state.instance.generation,
        state.counter + 1,
        state.recovering,
        command.instance.generation,
    )
    got = (
        document.deployment_id,
        document.old_generation,
        document.counter,
        document.checkpoint,
        document.new_generation,
    )
    names = ("deployment", "old-generation", "counter", "checkpoint", "new-generation")
    for name, a, b in zip(names, expected, got, strict=True):
        if a != b:
            raise refused(
                f"recover.{name}",
                "the recovery document is for something else",
                expected=a.hex() if isinstance(a, bytes) else str(a),
                got=b.hex() if isinstance(b, bytes) else str(b),
            )
    state.instance = Instance(state.instance.deployment_id, document.new_generation)
    state.counter = document.counter
    state.recovering = b""
    state.serials.clear()
    state.servers.clear()
    state.clients.clear()
    state.epoch = Epoch(state.epoch.number, 0)
    state.tree_votes.clear()
    state.current = None
    state.schedule_hash = NO_HASH
    state.first_beacon = NO_HASH
    state.beacons.clear()
    state.pending_checkpoint = None
    return [Recovered(document.new_generation)]
