"""Snapshots: the whole state in one canonical form. Equal states give equal bytes.

All in the order of `State`, big endian; mappings sorted by key; optional parts led by a flag. The
configuration is not in it: whoever restores a snapshot brings it, and its deployment id must match.
A snapshot's digest is BLAKE3.derive_key(STATE) of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from enum import IntEnum
from typing import TypeVar

from blake3 import blake3

from zipnet.committee.bodies import (
    MAX_COMMAND,
    MAX_DOCUMENT,
    MAX_RULE,
    MAX_TREES,
)
from zipnet.committee.state import (
    BEACONS,
    LOG_WINDOW,
    MAX_OPERATOR_DOCUMENTS,
    OUTCOME_RING,
    PENDING_LISTS,
    REFUSED_RING,
    Client,
    Ending,
    Epoch,
    ListInForce,
    Outcome,
    Phase,
    Refusal,
    Round,
    Rules,
    Server,
    SignedCheckpoint,
    State,
    Status,
    Voucher,
)  # fmt: skip
from zipnet.config import Operator
from zipnet.errors import SnapshotRejected, ZipnetError
from zipnet.operators import Endorsement, OperatorSet
from zipnet.protocol.codec import Reader, sized, text
from zipnet.protocol.header import MAX_HEADER, NO_HASH, Header
from zipnet.protocol.instance import Instance
from zipnet.protocol.record import MAX_SIGNED_RECORD, Record, SignedRecord
from zipnet.protocol.roster import (
    MAX_CLIENTS,
    MAX_RESUMES,
    MAX_SERVERS,
    EpochKey,
    Resume,
)
from zipnet.protocol.shape import MAX_PAYLOAD
from zipnet.protocol.sheet import MAX_SHEET, Sheet
from zipnet.protocol.tree import MAX_TREE_BYTES, AggregatorTree

STATE = "zipnet/state/v2"
MAGIC = b"zipnet state 3\n"
MAX_SNAPSHOT = 1 << 30

T = TypeVar("T")
Kind = TypeVar("Kind", bound=IntEnum)


def digest(raw: bytes) -> bytes:
    """The digest of a snapshot (32 bytes)."""
    return blake3(raw, derive_key_context=STATE).digest()


def encode(state: State) -> bytes:
    """The snapshot of a state."""
    return b"".join(
        (
            MAGIC,
            state.instance.deployment_id,
            state.instance.generation,
            _u64(state.counter),
            _u64(state.seq),
            state.head,
            _many(state.ring, lambda pair: pair[0] + pair[1]),
            _maybe(state.recovering or None, bytes),
            _u64(state.time_ms),
            _u64(state.quota_since),
            _operators(state.operators),
            _many(state.operator_documents, lambda raw: sized(raw, 4)),
            _many(sorted(state.serials.items()), lambda item: item[0] + _u64(item[1])),
            _many((state.servers[peer] for peer in sorted(state.servers)), _server),
            _many((state.clients[one] for one in sorted(state.clients)), _client),
            _u64(state.epoch.number),
            _u64(state.epoch.base_round),
            _many(state.epoch.resumes, Resume.encode),
            _maybe(state.allow_list, _list),
            _many(state.pending_lists, _list),
            _many(state.trees, _tree),
            _u64(state.tree_at),
            _many(sorted(state.tree_votes.items()), lambda vote: vote[0] + sized(vote[1], 4)),
            _u64(state.next_round),
            _u64(state.opened_ms),
            _maybe(state.current, _round),
            state.previous_record,
            state.schedule_hash,
            _maybe(state.last_record, _signed_record),
            state.first_beacon,
            _many(state.beacons, bytes),
            _many(state.outcomes, _outcome),
            _many(state.refused, _refusal),
            _maybe(state.pending_checkpoint, _checkpoint),
            _maybe(state.checkpoint, _checkpoint),
        )
    )


def decode(rules: Rules, raw: bytes) -> State:
    """The state of a snapshot. Raises SnapshotRejected, also for a form that is not canonical."""
    try:
        state = _read(rules, raw)
    except SnapshotRejected:
        raise
    except ZipnetError as error:
        raise SnapshotRejected(
            f"the snapshot is damaged: {error.message}",
            expected=error.expected,
            got=error.got,
            rule=error.rule or "snapshot",
            hint="fetch it again from another server",
        ) from error
    if encode(state) != raw:
        raise SnapshotRejected(
            "the snapshot is not in its canonical form",
            rule="snapshot.canonical",
            hint="it was not written by this release",
        )
    return state


def _read(rules: Rules, raw: bytes) -> State:
    reader = Reader(raw, "snapshot", at_most=MAX_SNAPSHOT)
    reader.expect("magic", MAGIC)
    deployment_id = reader.take(32)
    if deployment_id != rules.operators.digest:
        raise SnapshotRejected(
            "the snapshot is of another deployment",
            expected=rules.operators.digest.hex(),
            got=deployment_id.hex(),
            rule="snapshot.deployment",
        )
    state = State(rules, Instance(deployment_id, reader.take(32)))
    state.counter, state.seq, state.head = reader.u64(), reader.u64(), reader.take(32)
    ring = reader.many(4, LOG_WINDOW, lambda r: (r.take(32), r.take(32)))
    state.ring.extend(ring)
    state.seen = {entry for entry, _ in ring if entry != NO_HASH}
    state.recovering = _read_maybe(reader, lambda r: r.take(32)) or b""
    state.time_ms, state.quota_since = reader.u64(), reader.u64()
    state.operators = _read_operators(reader)
    state.operator_documents = [
        *reader.many(4, MAX_OPERATOR_DOCUMENTS, lambda r: r.sized(4, MAX_DOCUMENT))
    ]
    most = MAX_SERVERS * (MAX_OPERATOR_DOCUMENTS + 1)
    state.serials = dict(reader.many(4, most, lambda r: (r.take(32), r.u64())))
    state.servers = {s.peer: s for s in reader.many(4, MAX_SERVERS, _read_server)}
    state.clients = {c.id: c for c in reader.many(4, MAX_CLIENTS, _read_client)}
    _share_ids(state)
    number, base_round = reader.u64(), reader.u64()
    state.epoch = Epoch(number, base_round, [*reader.many(4, MAX_RESUMES, Resume.read)])
    state.allow_list = _read_maybe(reader, _read_list)
    state.pending_lists = [*reader.many(4, PENDING_LISTS, _read_list)]
    state.trees = reader.many(4, MAX_TREES, _read_tree)
    state.tree_at = reader.u64()
    votes = reader.many(
        4, MAX_SERVERS, lambda r: (r.take(32), r.sized(4, 1 + MAX_TREES * (4 + MAX_TREE_BYTES)))
    )
    state.tree_votes = dict(votes)
    state.next_round, state.opened_ms = reader.u64(), reader.u64()
    state.current = _read_maybe(reader, _read_round)
    state.previous_record, state.schedule_hash = reader.take(32), reader.take(32)
    state.last_record = _read_maybe(reader, _read_signed_record)
    state.first_beacon = reader.take(32)
    state.beacons = deque(reader.many(4, BEACONS, lambda r: r.take(32)), BEACONS)
    state.outcomes = deque(reader.many(4, OUTCOME_RING, _read_outcome), OUTCOME_RING)
    state.refused = deque(reader.many(4, REFUSED_RING, _read_refusal), REFUSED_RING)
    state.pending_checkpoint = _read_maybe(reader, _read_checkpoint)
    state.checkpoint = _read_maybe(reader, _read_checkpoint)
    reader.done()
    return state


def _share_ids(state: State) -> None:
    """Keep each id once: read as often as it is written, ids take a fifth of a client's memory."""
    servers = {server.id: server.id for server in state.servers.values()}
    for client in state.clients.values():
        client.carrier = servers.get(client.carrier, client.carrier)
        client.vouchers = {servers.get(one, one): v for one, v in client.vouchers.items()}
        client.member = client.member and replace(client.member, member=client.id)
        client.next_key = client.next_key and replace(client.next_key, member=client.id)


def _u64(value: int) -> bytes:
    return value.to_bytes(8, "big")


def _many(items: Iterable[T], one: Callable[[T], bytes]) -> bytes:
    parts = [one(item) for item in items]
    return len(parts).to_bytes(4, "big") + b"".join(parts)


def _maybe(value: T | None, one: Callable[[T], bytes]) -> bytes:
    return b"\0" if value is None else b"\1" + one(value)


def _read_maybe(reader: Reader, one: Callable[[Reader], T]) -> T | None:
    return one(reader) if reader.flag() else None


def _member_of(reader: Reader, kind: type[Kind]) -> Kind:
    value = reader.u8()
    try:
        return kind(value)
    except ValueError:
        raise reader.wrong(kind.__name__.lower(), "a known value", str(value)) from None


def _operators(value: OperatorSet) -> bytes:
    names = _many(value.operators, lambda operator: text(operator.name) + operator.key)
    return _u64(value.number) + value.digest + _u64(value.k) + names


def _read_operators(reader: Reader) -> OperatorSet:
    number, chain, k = reader.u64(), reader.take(32), reader.u64()
    operators = reader.many(4, MAX_SERVERS, lambda r: Operator(r.text(255), r.take(32)))
    return OperatorSet(operators, k, number, chain)


def _server(value: Server) -> bytes:
    return b"".join(
        (
            value.peer,
            value.id,
            value.endorsement.encode(),
            _u64(value.clock_ms),
            bytes([value.status]),
            _maybe(value.member, EpochKey.encode),
            _maybe(value.next_key, EpochKey.encode),
            _u64(value.bytes_used),
            _u64(value.resumes),
            _u64(value.resume_serial),
            value.last_resume,
            _u64(value.resumed_round),
        )
    )


def _read_server(reader: Reader) -> Server:
    return Server(
        reader.take(32),
        reader.take(32),
        Endorsement.read(reader),
        reader.u64(),
        _member_of(reader, Status),
        _read_maybe(reader, EpochKey.read),
        _read_maybe(reader, EpochKey.read),
        reader.u64(),
        reader.u64(),
        reader.u64(),
        reader.take(32),
        reader.u64(),
    )


def _voucher(value: Voucher) -> bytes:
    return value.registration + _u64(value.not_after) + value.platform


def _read_voucher(reader: Reader) -> Voucher:
    return Voucher(reader.take(32), reader.u64(), reader.take(32))


def _client(value: Client) -> bytes:
    return b"".join(
        (
            value.id,
            value.peer,
            value.dh_pub,
            value.registration,
            value.carrier,
            _u64(value.registered_round),
            _maybe(value.member, EpochKey.encode),
            _maybe(value.next_key, EpochKey.encode),
            _many(
                sorted(value.vouchers.items()),
                lambda item: item[0] + _voucher(item[1]),
            ),
            _many(sorted(value.refusals.items()), lambda item: item[0] + text(item[1])),
            _u64(value.waiting_since),
            _u64(value.resumes),
            _u64(value.resume_serial),
            value.last_resume,
        )
    )


def _read_client(reader: Reader) -> Client:
    return Client(
        reader.take(32),
        reader.take(32),
        reader.take(32),
        reader.take(32),
        reader.take(32),
        reader.u64(),
        _read_maybe(reader, EpochKey.read),
        _read_maybe(reader, EpochKey.read),
        dict(reader.many(4, MAX_SERVERS, lambda r: (r.take(32), _read_voucher(r)))),
        dict(reader.many(4, MAX_SERVERS, lambda r: (r.take(32), r.text(MAX_RULE)))),
        reader.u64(),
        reader.u64(),
        reader.u64(),
        reader.take(32),
    )


def _list(value: ListInForce) -> bytes:
    return _u64(value.number) + value.digest + sized(value.envelope, 4) + _u64(value.from_round)


def _read_list(reader: Reader) -> ListInForce:
    return ListInForce(reader.u64(), reader.take(32), reader.sized(4, MAX_DOCUMENT), reader.u64())


def _tree(value: AggregatorTree) -> bytes:
    return sized(value.encode(), 4)


def _read_tree(reader: Reader) -> AggregatorTree:
    return AggregatorTree.decode(reader.sized(4, MAX_TREE_BYTES))


def _by_server(values: dict[bytes, bytes]) -> bytes:
    return _many(sorted(values.items()), lambda item: item[0] + sized(item[1], 4))


def _read_by_server(reader: Reader) -> dict[bytes, bytes]:
    return dict(reader.many(4, MAX_SERVERS, lambda r: (r.take(32), r.sized(4, MAX_PAYLOAD))))


def _round(value: Round) -> bytes:
    return b"".join(
        (
            sized(value.header.encode(), 4),
            sized(value.sheet.encode(), 4),
            _tree(value.tree),
            _u64(value.not_before),
            bytes([value.phase]),
            _u64(value.phase_since),
            _by_server(value.header_signatures),
            sized(value.aggregate, 4),
            _by_server(value.commitments),
            _by_server(value.partials),
            _maybe(value.record, _signed_record),
            _by_server(value.record_signatures),
            _many(sorted(value.votes), bytes),
        )
    )


def _read_round(reader: Reader) -> Round:
    return Round(
        Header.decode(reader.sized(4, MAX_HEADER)),
        Sheet.decode(reader.sized(4, MAX_SHEET)),
        _read_tree(reader),
        reader.u64(),
        _member_of(reader, Phase),
        reader.u64(),
        _read_by_server(reader),
        reader.sized(4, MAX_COMMAND),
        _read_by_server(reader),
        _read_by_server(reader),
        _read_maybe(reader, _read_signed_record),
        _read_by_server(reader),
        set(reader.many(4, MAX_SERVERS, lambda r: r.take(32))),
    )


def _signed_record(value: SignedRecord) -> bytes:
    return sized(value.record.encode(), 4) + _many(value.signatures, bytes)


def _read_signed_record(reader: Reader) -> SignedRecord:
    record = Record.decode(reader.sized(4, MAX_SIGNED_RECORD))
    return SignedRecord(record, reader.many(4, MAX_SERVERS, lambda r: r.take(64)))


def _outcome(value: Outcome) -> bytes:
    return _u64(value.round) + bytes([value.ending]) + _many(value.missing, bytes)


def _read_outcome(reader: Reader) -> Outcome:
    missing: Callable[[Reader], bytes] = lambda r: r.take(32)  # noqa: E731
    return Outcome(reader.u64(), _member_of(reader, Ending), reader.many(4, MAX_SERVERS, missing))


def _refusal(value: Refusal) -> bytes:
    return _u64(value.seq) + value.author + bytes([value.kind]) + text(value.rule)


def _read_refusal(reader: Reader) -> Refusal:
    return Refusal(reader.u64(), reader.take(32), reader.u8(), reader.text(MAX_RULE))


def _checkpoint(value: SignedCheckpoint) -> bytes:
    return b"".join(
        (
            _u64(value.seq),
            value.head,
            value.digest,
            _many(value.servers, bytes),
            _many(value.signatures, lambda pair: pair[0] + pair[1]),
        )
    )


def _read_checkpoint(reader: Reader) -> SignedCheckpoint:
    return SignedCheckpoint(
        reader.u64(),
        reader.take(32),
        reader.take(32),
        reader.many(4, MAX_SERVERS, lambda r: r.take(32)),
        reader.many(4, MAX_SERVERS, lambda r: (r.take(32), r.take(64))),
    )
