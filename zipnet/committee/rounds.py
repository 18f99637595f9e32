"""One round after another: header, aggregate, commitments, partials, record, or a time-out."""

from __future__ import annotations

from zipnet.committee.bodies import (
    CommitPartial,
    ProposeHeader,
    RevealPartial,
    SignHeader,
    SignRecord,
    SubmitAggregate,
    TimeoutRound,
)
from zipnet.committee.clients import drop_stale, eligible
from zipnet.committee.commands import Command
from zipnet.committee.epochs import begin, epoch_of_next_header
from zipnet.committee.events import Event, HeaderLive, HeaderProposed, RoundEnded, RoundFinal
from zipnet.committee.membership import stop
from zipnet.committee.policy import due_list
from zipnet.committee.state import (
    Client,
    Ending,
    Outcome,
    Phase,
    Round,
    Server,
    State,
    refused,
)
from zipnet.committee.voting import majority, reset_quota
from zipnet.protocol.aggregate import Aggregate
from zipnet.protocol.fold import check_aggregate
from zipnet.protocol.header import NO_HASH, SIGN_HEADER, Header, SignedHeader
from zipnet.protocol.record import SIGN_RECORD, Record, SignedRecord
from zipnet.protocol.roster import Member, Roster, resumes_hash
from zipnet.protocol.sheet import ClientEntry, ServerEntry, Sheet
from zipnet.protocol.unblind import check_reveal, finalize


def propose(state: State, command: Command, body: ProposeHeader) -> list[Event]:  # noqa: ARG001
    """Open the next round. All of its header follows from the state before this command."""
    if state.current is not None:
        raise refused(
            "propose.in-flight",
            "another round is in flight",
            got=f"round {state.current.header.round}, {state.current.phase.name.lower()}",
        )
    if command.round != state.next_round:
        raise refused(
            "propose.round",
            "rounds come one after another",
            expected=str(state.next_round),
            got=str(command.round),
        )
    in_force = due_list(state)
    if in_force is None:
        raise refused(
            "propose.list",
            "there is no list of accepted measurements",
            hint="let the operators sign one: zipnet admin allow-list push",
        )
    if not state.trees:
        raise refused("propose.tree", "no aggregator is assigned")
    opens = epoch_of_next_header(state)
    servers, clients = participants(state, opens=opens)
    tree = state.trees[state.tree_at]

    if opens:
        begin(state)
        drop_stale(state)
    if in_force is not state.allow_list:
        state.allow_list = in_force
        later = [entry for entry in state.pending_lists if entry.number > in_force.number]
        state.pending_lists[:] = later
    roster = Roster(tuple(map(_member, clients)), tuple(map(_member, servers)))
    header = Header(
        instance=state.instance,
        round=state.next_round,
        epoch=state.epoch.number,
        shape=state.rules.shape,
        servers=tuple(member.id for member in roster.servers),
        roster_hash=roster.hash(),
        schedule_hash=state.schedule_hash,
        previous_record=state.previous_record,
        log_seq=state.seq - 1,
        log_head=state.ring[-2][1] if len(state.ring) > 1 else NO_HASH,
        list_number=in_force.number,
        list_hash=in_force.digest,
        tree_hash=tree.hash(),
        base_round=state.epoch.base_round,
        resumes_hash=resumes_hash(state.epoch.resumes),
        time_ms=state.time_ms,
    )
    state.current = Round(
        header,
        _sheet(state, clients),
        tree,
        state.opened_ms + state.rules.window.round_period_ms,
        Phase.PROPOSED,
        state.time_ms,
    )
    state.opened_ms = state.time_ms
    state.next_round += 1
    for server in state.servers.values():
        server.resumes = 0
    for client in state.clients.values():
        client.resumes = 0
    reset_quota(state)
    return [HeaderProposed(header)]


def participants(state: State, *, opens: bool) -> tuple[list[Server], list[Client]]:
    """Who would be in the next header, by id. Raises CommandRefused if too few."""
    servers = [
        server
        for server in state.active()
        if (server.next_key if opens else server.member) is not None
    ]
    least = state.operators.servers_needed(state.rules.config)
    if len(servers) < least:
        raise refused(
            "propose.servers",
            "too few servers take part",
            expected=f"at least {least}",
            got=str(len(servers)),
            hint="start the missing servers; a suspended one returns by its Resume",
        )
    clients = eligible(state, servers, next_epoch=opens)
    if len(clients) < state.rules.window.min_participants:
        raise refused(
            "propose.clients",
            "too few clients would be in the roster",
            expected=f"at least {state.rules.window.min_participants}",
            got=str(len(clients)),
            hint="wait for more clients; zipnet status says who refuses whom",
        )
    return servers, clients


def _member(node: Server | Client) -> Member:
    assert node.member is not None
    return Member(node.id, node.member.key)


def _sheet(state: State, clients: list[Client]) -> Sheet:
    servers = sorted(state.servers.values(), key=lambda server: server.id)
    return Sheet(
        tuple(ServerEntry(s.endorsement, s.member) for s in servers if s.member),
        tuple(ClientEntry(c.peer, c.dh_pub, c.member) for c in clients if c.member),
        tuple(state.epoch.resumes),
    )


def sign_header(state: State, command: Command, body: SignHeader) -> list[Event]:
    """One server's signature; with the last one the round is live."""
    current, server = _in_phase(state, command, Phase.PROPOSED, "sign-header")
    if body.header_id != current.header.id:
        raise refused(
            "sign-header.id",
            "the author signed another header",
            expected=current.header.id.hex(),
            got=body.header_id.hex(),
            hint="one of the two nodes is broken: compare their releases and logs",
        )
    if server.id in current.header_signatures:
        raise refused("sign-header.twice", "the author has signed this header")
    state.instance.verify(
        server.peer, body.signature, SIGN_HEADER, current.header.round, current.header.id
    )
    current.header_signatures[server.id] = body.signature
    if len(current.header_signatures) < len(current.header.servers):
        return []
    _enter(state, current, Phase.LIVE)
    # By now a majority has told the time; at the proposal it may have stood still for a period.
    state.opened_ms = state.time_ms
    return [HeaderLive(signed_header(current))]


def signed_header(current: Round) -> SignedHeader:
    """The header of a live round, with its signatures in order."""
    signatures = (current.header_signatures[server] for server in current.header.servers)
    return SignedHeader(current.header, tuple(signatures))


def submit(state: State, command: Command, body: SubmitAggregate) -> list[Event]:
    """The root aggregator's sum; the first valid one of a round is the only one."""
    current, _ = _in_phase(state, command, Phase.LIVE, "aggregate")
    aggregate = Aggregate.decode(body.aggregate, state.rules.shape)
    check_aggregate(
        aggregate,
        current.header,
        current.tree,
        len(current.sheet.clients),
        state.rules.window.min_participants,
    )
    current.aggregate = body.aggregate
    _enter(state, current, Phase.COMMITTING)
    return []


def commit(state: State, command: Command, body: CommitPartial) -> list[Event]:
    """A server binds itself to its partial before it sees another's."""
    current, server = _in_phase(state, command, Phase.COMMITTING, "commit")
    if server.id in current.commitments:
        raise refused("commit.twice", "the author has committed to a partial")
    if body.commitment in current.commitments.values():
        raise refused("commit.copied", "another server has made this commitment")
    current.commitments[server.id] = body.commitment
    if len(current.commitments) == len(current.header.servers):
        _enter(state, current, Phase.REVEALING)
    return []


def reveal(state: State, command: Command, body: RevealPartial) -> list[Event]:
    """A server's partial; with the last one the record stands and waits for signatures."""
    current, server = _in_phase(state, command, Phase.REVEALING, "reveal")
    if server.id in current.partials:
        raise refused("reveal.twice", "the author has revealed its partial")
    aggregate = Aggregate.decode(current.aggregate, state.rules.shape)
    check_reveal(
        current.commitments[server.id],
        state.instance,
        current.header.round,
        aggregate.digest,
        server.id,
        body.partial,
        state.rules.shape,
    )
    current.partials[server.id] = body.partial
    if len(current.partials) < len(current.header.servers):
        return []
    order = current.header.servers
    record = Record(
        header=current.header,
        clients=len(current.sheet.clients),
        participants=aggregate.participants,
        aggregate=aggregate.digest,
        commitments=tuple(current.commitments[one] for one in order),
        payload=finalize(aggregate.payload, [current.partials[one] for one in order]),
    )
    current.record = SignedRecord(record, ())
    current.partials.clear()
    current.aggregate = b""
    _enter(state, current, Phase.SIGNING)
    return []


def sign_record(state: State, command: Command, body: SignRecord) -> list[Event]:
    """One server's signature; with the last one the record is final."""
    current, server = _in_phase(state, command, Phase.SIGNING, "sign-record")
    assert current.record is not None
    record = current.record.record
    if body.record_hash != record.hash:
        raise refused(
            "sign-record.hash",
            "the author signed another record",
            expected=record.hash.hex(),
            got=body.record_hash.hex(),
            hint="one of the two nodes is broken: compare their releases and logs",
        )
    if server.id in current.record_signatures:
        raise refused("sign-record.twice", "the author has signed this record")
    state.instance.verify(
        server.peer, body.signature, SIGN_RECORD, record.header.round, record.hash
    )
    current.record_signatures[server.id] = body.signature
    if len(current.record_signatures) < len(record.header.servers):
        return []
    signatures = (current.record_signatures[one] for one in record.header.servers)
    final = SignedRecord(record, tuple(signatures))
    state.last_record = final
    state.previous_record = record.hash
    state.schedule_hash = record.schedule_hash()
    state.beacons.append(record.hash)
    _close(state, current, Ending.FINAL, ())
    return [RoundFinal(final)]


def time_out(state: State, command: Command, body: TimeoutRound) -> list[Event]:
    """A vote to give the round up; a majority of the active servers decides."""
    current = _current(state, command, "timeout")
    if body.phase != current.phase:
        raise refused(
            "timeout.phase", "the round is in another phase", expected=current.phase.name.lower(),
            got=str(body.phase),
        )  # fmt: skip
    due = current.phase_since + state.rules.window.round_deadline_ms
    if command.clock_ms < due:
        raise refused(
            "timeout.early",
            "the round has time left",
            expected=f"a clock at {due} or later",
            got=str(command.clock_ms),
        )
    voter = state.servers[command.author]
    if len(current.votes | {voter.id}) < majority(state):
        current.votes.add(voter.id)
        return []
    done = {
        Phase.PROPOSED: set(current.header_signatures),
        Phase.LIVE: set(current.header.servers),  # the aggregator is missing, no server
        Phase.COMMITTING: set(current.commitments),
        Phase.REVEALING: set(current.partials),
        Phase.SIGNING: set(current.record_signatures),
    }[current.phase]
    missing = tuple(one for one in current.header.servers if one not in done)
    ending = Ending.EXPOSED
    if current.phase is Phase.PROPOSED:
        ending = Ending.UNSIGNED
    elif current.phase is Phase.LIVE:
        ending = Ending.NO_AGGREGATE
        if current.tree == state.trees[state.tree_at]:  # not one that was assigned meanwhile
            state.tree_at = (state.tree_at + 1) % len(state.trees)
    state.schedule_hash = NO_HASH
    events: list[Event] = [_close(state, current, ending, missing)]
    for server in map(state.server, missing):
        if server is not None:
            events += stop(state, server, f"timeout.{current.phase.name.lower()}")
    return events


def _close(state: State, current: Round, ending: Ending, missing: tuple[bytes, ...]) -> RoundEnded:
    outcome = Outcome(current.header.round, ending, missing)
    state.outcomes.append(outcome)
    state.current = None
    return RoundEnded(outcome)


def _enter(state: State, current: Round, phase: Phase) -> None:
    current.phase = phase
    current.phase_since = state.time_ms
    current.votes.clear()


def _current(state: State, command: Command, what: str) -> Round:
    current = state.current
    if current is None or command.round != current.header.round:
        raise refused(
            f"{what}.round",
            "the command is about another round",
            expected="none in flight" if current is None else str(current.header.round),
            got=str(command.round),
        )
    return current


def _in_phase(state: State, command: Command, phase: Phase, what: str) -> tuple[Round, Server]:
    """The round of the command, if it waits for this and the author has a part in it."""
    current = _current(state, command, what)
    if current.phase is not phase:
        raise refused(
            f"{what}.phase",
            "the round waits for something else",
            expected=current.phase.name.lower(),
            got=phase.name.lower(),
        )
    server = state.servers[command.author]
    if server.id not in current.header.servers:
        raise refused(f"{what}.server", "the author is no server of this round")
    if server.resumed_round > current.header.round:
        raise refused(
            f"{what}.resumed",
            "the author restarted after this round had begun",
            expected=f"a round from {server.resumed_round} on",
            got=str(current.header.round),
        )
    return current, server
