"""The committee's machine over a log: when `execute` returns, the command was applied here.

The engine is trusted for order and liveness only. A tip, the last entry that was applied with the
chain's head after it, is kept outside: a log that is shorter, or has another chain, stops the node.
Late joiners begin with the newest checkpoint, which all servers of its moment must have signed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

from blake3 import blake3

from zipnet import ids
from zipnet.committee.bodies import SIGN_CHECKPOINT, Checkpoint, Recover
from zipnet.committee.commands import Command
from zipnet.committee.events import Applied, CheckpointDue, CheckpointSigned
from zipnet.committee.machine import Machine
from zipnet.committee.snapshot import digest as state_digest
from zipnet.committee.state import Rules, SignedCheckpoint
from zipnet.errors import (
    Conflict,
    EngineError,
    Lagged,
    LogBroken,
    Refused,
    SnapshotRejected,
    Unavailable,
    ZipnetError,
)
from zipnet.network.base import Blobs, Entry, Log, Network, Table
from zipnet.network.places import Places
from zipnet.operators import RecoveryDocument, follow
from zipnet.protocol.codec import Reader
from zipnet.protocol.header import NO_HASH
from zipnet.protocol.instance import Instance

LATEST = "checkpoint"
DEADLINE = 12.0
# Entries below a checkpoint that stay for nodes that are a little behind.
KEEP = 256
AGAIN = 0.2

log = logging.getLogger("zipnet.group")


@dataclass(frozen=True, slots=True)
class Tip:
    """The last entry that a node has applied, and the chain's head after it."""

    seq: int = 0
    head: bytes = NO_HASH


@dataclass(frozen=True, slots=True)
class Pointer:
    """Where the newest checkpoint lies: its signatures and the digest of its blob."""

    checkpoint: SignedCheckpoint
    blob: bytes

    def encode(self) -> bytes:
        """Blob digest, u64 seq, head, state digest, then (server id, signature) pairs."""
        one = self.checkpoint
        pairs = b"".join(server + signature for server, signature in one.signatures)
        head = self.blob + one.seq.to_bytes(8, "big") + one.head + one.digest
        return head + len(one.signatures).to_bytes(2, "big") + pairs

    @classmethod
    def decode(cls, raw: bytes) -> Pointer:
        """All of `raw`, nothing checked. Raises WireFormatError."""
        reader = Reader(raw, "checkpoint", at_most=8192)
        blob, seq, head, digest = reader.take(32), reader.u64(), reader.take(32), reader.take(32)
        pairs = reader.many(2, 64, lambda r: (r.take(32), r.take(64)))
        reader.done()
        servers = tuple(server for server, _ in pairs)
        return cls(SignedCheckpoint(seq, head, digest, servers, pairs), blob)


def verify_checkpoint(
    rules: Rules, instance: Instance, checkpoint: SignedCheckpoint, raw: bytes
) -> Machine:
    """The machine of a checkpoint that all of its servers signed, one of each operator in force.

    Nothing in it is believed before: the operators follow from the configuration by the documents
    in the snapshot, the servers from the operators' endorsements. Raises SnapshotRejected, Refused
    and DocumentRejected.
    """
    machine = Machine.restore(rules, raw)
    state = machine.state
    operators = follow(rules.config, state.operator_documents)
    expected = (instance.generation, checkpoint.seq, checkpoint.head, checkpoint.digest)
    found = (state.instance.generation, state.seq, state.head, state_digest(raw))
    if operators != state.operators or expected != found:
        raise SnapshotRejected(
            "the snapshot is not the one of its checkpoint",
            expected=f"entry {checkpoint.seq}, state {checkpoint.digest.hex()}",
            got=f"entry {state.seq}, state {state_digest(raw).hex()}",
            rule="checkpoint.state",
            hint="fetch the checkpoint from another server",
        )
    signed = set()
    statement = Checkpoint.body(checkpoint.seq, checkpoint.head, checkpoint.digest)
    for server_id, signature in checkpoint.signatures:
        server = state.server(server_id)
        if server is not None:
            endorsement = server.endorsement
            endorsement.verify(instance)
            endorsed = endorsement.peer, ids.server_id(endorsement.dh_pub)
            if endorsed != (server.peer, server.id):
                raise SnapshotRejected(
                    "a server of the snapshot has other keys than its operator endorsed",
                    expected=endorsement.peer.hex(),
                    got=server.peer.hex(),
                    rule="checkpoint.server",
                    hint="fetch the checkpoint from another server",
                )
            instance.verify(server.peer, signature, SIGN_CHECKPOINT, 0, statement)
            signed.add(server.operator)
    missing = [one.name for one in operators.operators if one.key not in signed]
    allowed = len(operators.operators) - operators.servers_needed(rules.config)
    if len(missing) > allowed:
        raise SnapshotRejected(
            "the checkpoint is not signed by the committee",
            expected=f"all servers but {allowed}",
            got=f"none of {', '.join(missing)}",
            rule="checkpoint.signatures",
            hint="fetch the checkpoint from another server",
        )
    if state.last_record is None:
        raise SnapshotRejected("the checkpoint follows no record", rule="checkpoint.state")
    machine.await_signatures(checkpoint.digest)
    return machine


class Group:
    """One replica. `apply` takes an entry into the core; `on_applied` hears of each result."""

    __slots__ = (
        "_apply",
        "_blobs",
        "_changed",
        "_due",
        "_log",
        "_on_applied",
        "_results",
        "_table",
        "halted",
        "machine",
        "tip",
    )

    def __init__(
        self,
        log: Log,
        table: Table,
        blobs: Blobs,
        machine: Machine,
        apply: Callable[[int, bytes], Applied],
        on_applied: Callable[[Applied], None],
    ) -> None:
        self.machine = machine
        self.tip = Tip(machine.state.seq, machine.state.head)
        self.halted: BaseException | None = None
        self._log = log
        self._table = table
        self._blobs = blobs
        self._apply = apply
        self._on_applied = on_applied
        self._changed = asyncio.Condition()
        # Results of the last entries, for those that wait in `execute`.
        self._results: dict[int, tuple[bytes, Applied]] = {}
        self._due: dict[int, bytes] = {}

    @classmethod
    async def open(
        cls,
        network: Network,
        rules: Rules,
        instance: Instance,
        known: Tip,
        connect: Callable[
            [Machine], tuple[Callable[[int, bytes], Applied], Callable[[Applied], None]]
        ],
        begin: Machine | None = None,
    ) -> Group:
        """A replica at the newest checkpoint, or at the beginning of the log.

        `known` is the tip that this node kept. `connect` gives the callbacks for the machine.
        `begin` is the machine before the first entry, where this is not the first generation.
        Raises LogBroken if the log does not reach or contain it, EngineError.
        """
        places = Places.of(instance.deployment_id)
        name = places.log(instance)
        log, table = await network.log(name), await network.table(name)
        blobs = await network.blobs(places.blobs)
        first, last = await log.bounds()
        if last < known.seq:
            raise _broken("the log is shorter than this node knows it", known.seq, last)
        machine = begin or Machine.genesis(rules, instance)
        pointer = await table.get(LATEST)
        if pointer is not None and pointer.value is not None:
            found = Pointer.decode(pointer.value)
            if found.checkpoint.seq >= first - 1:
                raw = await blobs.get(found.blob)
                machine = verify_checkpoint(rules, instance, found.checkpoint, raw)
        if machine.state.seq < first - 1:
            raise _broken("the log begins after what can be restored", machine.state.seq, first)
        _check_past(machine, known)
        return cls(log, table, blobs, machine, *connect(machine))

    async def run(self, known: Tip = Tip()) -> None:
        """Apply entries for ever. Raises what stops this node, after `halted` has it.

        `known` is the tip that this node kept from before: the chain must pass through it.
        """
        try:
            while True:
                try:
                    async for entry in self._log.read(after=self.tip.seq):
                        await self._take(entry, known)
                except Lagged as error:
                    first, last = await self._log.bounds()
                    if not first - 1 <= self.tip.seq <= last:
                        raise _broken("the log was cut", self.tip.seq, first) from error
                except Unavailable as error:
                    if error.rule == "closed":
                        raise
                    log.warning("the log can't be read, trying again: %s", error)
                    await asyncio.sleep(AGAIN)
        except (Exception, asyncio.CancelledError) as error:
            self.halted = error
            async with self._changed:
                self._changed.notify_all()
            raise

    async def execute(self, data: bytes, deadline: float = DEADLINE) -> Applied:
        """Append a command and wait until it was applied here.

        Raises Unavailable if it is not known by then what became of it (retry the same bytes),
        LogBroken if this node has halted, other EngineErrors of the engine.
        """
        self._check_running()
        try:
            async with asyncio.timeout(deadline):
                seq = await self._append(data, deadline)
                return await self._applied(seq)
        except TimeoutError:
            raise Unavailable(
                "the outcome of a command is not known",
                expected=f"its entry within {deadline:g} s",
                rule="execute",
                hint="retry the same bytes, or read the log",
            ) from None

    async def wait(self, seq: int, deadline: float = DEADLINE) -> None:
        """Return when entry `seq` was applied here. Raises as `execute`."""
        try:
            async with asyncio.timeout(deadline):
                await self._reach(seq)
        except TimeoutError:
            raise Unavailable("the log does not move", rule="execute") from None

    def signed_checkpoint(self, seq: int) -> tuple[Pointer, bytes] | None:
        """The pointer to the checkpoint at `seq`, and its snapshot, unless it is superseded."""
        raw, checkpoint = self._due.get(seq), self.machine.state.checkpoint
        if raw is None or checkpoint is None or checkpoint.seq != seq:
            return None
        return Pointer(checkpoint, blake3(raw).digest()), raw

    async def publish_checkpoint(self, seq: int) -> None:
        """Put the signed checkpoint at `seq` where late joiners find it, and trim the log."""
        found = self.signed_checkpoint(seq)
        if found is not None:
            pointer, raw = found
            await self._blobs.put(raw)
            before = await self._table.get(LATEST)
            there = before.value if before else None
            if there is None or not self._supersedes(there, seq):
                rev = before.rev if before and there is not None else 0
                try:
                    await self._table.put(LATEST, pointer.encode(), expect=rev)
                except Conflict:
                    return  # another server has done it
                await self._log.trim(max(0, seq - KEEP))
        # Only now: a call that failed on the way is repeated.
        self._due = {later: kept for later, kept in self._due.items() if later > seq}

    def _supersedes(self, raw: bytes, seq: int) -> bool:
        """Whether a pointer is to a checkpoint from `seq` on that most of the servers signed.

        Whoever is on the bus may have put junk there, which must not stay.
        """
        try:
            one = Pointer.decode(raw).checkpoint
        except ZipnetError:
            return False
        state = self.machine.state
        statement, signed = Checkpoint.body(one.seq, one.head, one.digest), set()
        for server_id, signature in one.signatures:
            server = state.server(server_id)
            with contextlib.suppress(Refused):
                if server is not None:
                    state.instance.verify(server.peer, signature, SIGN_CHECKPOINT, 0, statement)
                    signed.add(server_id)
        return one.seq >= seq and 2 * len(signed) > len(state.servers)

    async def _take(self, entry: Entry, known: Tip) -> None:
        if entry.seq != self.tip.seq + 1:
            raise _broken("entries of the log are missing", self.tip.seq + 1, entry.seq)
        applied = self._apply(entry.seq, entry.data)
        self.tip = Tip(entry.seq, self.machine.state.head)
        _check_chain(self.tip, known)
        if applied.rule == "command.recover":
            _check_begun(self.machine, entry.data)
        for event in applied.events:
            if isinstance(event, CheckpointDue):
                self._due = {event.seq: event.snapshot}
        self._results[entry.seq] = (blake3(entry.data).digest(), applied)
        while len(self._results) > 4096:
            del self._results[next(iter(self._results))]
        self._on_applied(applied)
        async with self._changed:
            self._changed.notify_all()

    async def _append(self, data: bytes, deadline: float) -> int:
        """Append under a key of these bytes, past those that others took for something else."""
        digest = blake3(data).hexdigest()
        for attempt in range(8):
            key = digest if attempt == 0 else f"{digest}.{attempt}"
            seq = await self._log.append(data, key=key, deadline=deadline)
            await self._reach(seq)
            known = self._results.get(seq)
            if known is None or known[0].hex() == digest:
                return seq
        _, last = await self._log.bounds()
        if last < self.tip.seq:
            raise _broken("the log was replaced by a shorter one", self.tip.seq, last)
        raise EngineError(
            "all keys of a command are taken by other entries",
            rule="execute.key",
            hint="a member of the bus squats keys: remove it",
        )

    async def _applied(self, seq: int) -> Applied:
        await self._reach(seq)
        known = self._results.get(seq)
        if known is None:
            raise Unavailable(
                "the result of a command is forgotten",
                expected="an entry among the last 4096",
                got=str(seq),
                rule="execute.forgotten",
            )
        return known[1]

    async def _reach(self, seq: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.tip.seq >= seq or self.halted is not None)
        if self.tip.seq < seq:
            self._check_running()

    def _check_running(self) -> None:
        if self.halted is not None:
            raise LogBroken(
                "this node has halted",
                got=str(self.halted) or type(self.halted).__name__,
                rule="halted",
                hint="read its log for the cause",
            ) from self.halted


def checkpoint_signed(applied: Applied) -> int | None:
    """The seq of the checkpoint that this entry completed, if it did."""
    found = (event.seq for event in applied.events if isinstance(event, CheckpointSigned))
    return next(found, None)


def _check_past(machine: Machine, known: Tip) -> None:
    """Check that a checkpoint at or beyond the tip has it in its past. Raises LogBroken.

    What the machine has forgotten nobody can tell: then the checkpoint's signatures must do.
    """
    state = machine.state
    back = state.seq - known.seq
    if 0 <= back < len(state.ring):
        _check_chain(Tip(known.seq, state.ring[-1 - back][1]), known)


def _check_chain(tip: Tip, known: Tip) -> None:
    if tip.seq == known.seq and tip.head != known.head:
        raise LogBroken(
            "the log has another past than this node knows",
            expected=f"entry {known.seq} with head {known.head.hex()}",
            got=tip.head.hex(),
            rule="log.chain",
            hint="somebody rewrote the log; see `zipnet admin recover`",
        )


def _check_begun(machine: Machine, raw: bytes) -> None:
    """Stop a node that knows nothing of what came before the log, where there was something.

    Not after a recovery: then this node knows, and the document is another server's. Raises
    LogBroken.
    """
    state = machine.state
    if state.recovering or state.counter:
        return
    try:
        body = Command.decode(raw).body
        if not isinstance(body, Recover):
            return
        document = RecoveryDocument.verify(body.document, state.operators)
    except ZipnetError:
        return  # anybody may write such a thing
    if (document.deployment_id, document.new_generation) == (
        state.instance.deployment_id,
        state.instance.generation,
    ):
        raise LogBroken(
            "this generation begins with a checkpoint that this node has not got",
            expected=f"checkpoint {document.checkpoint.hex()}",
            got="nothing",
            rule="recovery.missing",
            hint="start it with --recovery FILE, which `zipnet admin recover` has made",
        )


def _broken(what: str, expected: int, got: int) -> LogBroken:
    return LogBroken(
        what,
        expected=f"entry {expected}",
        got=str(got),
        rule="log.shorter" if got < expected else "log.gap",
        hint="the log was altered behind our back; see `zipnet admin recover`",
    )
