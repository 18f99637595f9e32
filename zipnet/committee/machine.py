"""The machine: entries of the log in, state and events out. Deterministic, without I/O or clock.

An entry that breaks a rule changes nothing but the chain's head, its author's byte count and the
ring of refusals. Time is the machine's own: the lower median of the active servers' latest clocks,
never backwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from blake3 import blake3

from attestation.errors import Explained
from zipnet.committee import bodies, clients, membership, policy, rounds, snapshot
from zipnet.committee.bodies import MAX_RULE
from zipnet.committee.commands import Command
from zipnet.committee.events import (
    Applied,
    CheckpointDue,
    Event,
    RoundFinal,
    ServerSuspended,
    Verdict,
)
from zipnet.committee.state import (
    CHECKPOINT_ROUNDS,
    LOG_WINDOW,
    MAX_LEAD_MS,
    Refusal,
    Rules,
    SignedCheckpoint,
    State,
    Status,
    refused,
)
from zipnet.committee.voting import reset_quota
from zipnet.errors import LogBroken
from zipnet.protocol.header import NO_HASH, WIRE_VERSION
from zipnet.protocol.instance import Instance

MACHINE_VERSION = 1
SIGNATURE = "zipnet/machine/v2"
QUOTA = "command.quota"

# Bodies differ in type, and each handler takes its own.
Handler = Callable[[State, Command, Any], list[Event]]
HANDLERS: dict[type, Handler] = {
    bodies.Join: membership.join,
    bodies.Leave: membership.leave,
    bodies.Suspend: membership.suspend,
    bodies.ResumeNode: membership.resume,
    bodies.ChangeOperators: membership.change_operators,
    bodies.EpochKeys: membership.epoch_keys,
    bodies.Register: clients.register,
    bodies.Renew: clients.renew,
    bodies.Vouch: clients.vouch,
    bodies.Refuse: clients.refuse,
    bodies.Retire: clients.retire,
    bodies.ProposeHeader: rounds.propose,
    bodies.SignHeader: rounds.sign_header,
    bodies.SubmitAggregate: rounds.submit,
    bodies.CommitPartial: rounds.commit,
    bodies.RevealPartial: rounds.reveal,
    bodies.SignRecord: rounds.sign_record,
    bodies.TimeoutRound: rounds.time_out,
    bodies.RotateAllowList: policy.rotate,
    bodies.Assign: policy.assign,
    bodies.Tick: policy.tick,
    bodies.Checkpoint: policy.checkpoint,
    bodies.Recover: policy.recover,
}
# A server whose clock runs ahead, or that is suspended, may still do these.
ANY_CLOCK = (bodies.Tick, bodies.Join, bodies.ResumeNode)
WHILE_SUSPENDED = (bodies.Tick, bodies.Join, bodies.ResumeNode, bodies.Leave, bodies.EpochKeys)


class Machine:
    """One replica. `state` is for reading only."""

    __slots__ = ("state",)

    def __init__(self, state: State) -> None:
        self.state = state

    @classmethod
    def genesis(cls, rules: Rules, instance: Instance) -> Machine:
        """The machine before the first entry of the first generation."""
        return cls(State(rules, instance))

    @classmethod
    def restore(cls, rules: Rules, raw: bytes) -> Machine:
        """The machine of a snapshot, which the caller knows to be genuine.

        Raises SnapshotRejected.
        """
        return cls(snapshot.decode(rules, raw))

    @classmethod
    def reopen(cls, rules: Rules, raw: bytes) -> Machine:
        """The machine before the first entry of a new generation's log, which must be a Recover.

        `raw` is the checkpoint that the recovery document names. Raises SnapshotRejected.
        """
        state = snapshot.decode(rules, raw)
        state.recovering = snapshot.digest(raw)
        state.seq, state.head = 0, NO_HASH
        state.ring.clear()
        state.seen.clear()
        return cls(state)

    def snapshot(self) -> bytes:
        """The whole state, canonical: equal states give equal bytes."""
        return snapshot.encode(self.state)

    def await_signatures(self, digest: bytes) -> None:
        """Let the servers of the last record sign this state, whose snapshot has this digest.

        For whoever restores a checkpoint: replicas that were there wait for signatures after it.
        """
        state = self.state
        assert state.last_record is not None
        servers = state.last_record.record.header.servers
        state.pending_checkpoint = SignedCheckpoint(state.seq, state.head, digest, servers, ())

    def signature(self) -> bytes:
        """What replicas must agree on before they share a log (32 bytes).

        BLAKE3.derive_key(SIGNATURE)(u16 wire ‖ u16 machine version ‖ deployment id).
        """
        versions = WIRE_VERSION.to_bytes(2, "big") + MACHINE_VERSION.to_bytes(2, "big")
        material = versions + self.state.instance.deployment_id
        return blake3(material, derive_key_context=SIGNATURE).digest()

    def apply(self, seq: int, raw: bytes) -> Applied:
        """Apply entry `seq` of the log.

        Raises LogBroken if it is not the next one; whatever the bytes, nothing else.
        """
        state = self.state
        if seq != state.seq + 1:
            raise LogBroken(
                "an entry of the log is missing or comes twice",
                expected=f"entry {state.seq + 1}",
                got=str(seq),
                rule="log.gap",
                hint="the log was altered behind our back; see `zipnet admin recover`",
            )
        digest = blake3(raw).digest()
        duplicate = digest in state.seen
        state.seq = seq
        state.head = blake3(state.head + raw).digest()
        if len(state.ring) == LOG_WINDOW:
            # Whoever repeats what is forgotten here fails `_check_position`: its tie is older.
            state.seen.discard(state.ring[0][0])
        state.ring.append((NO_HASH if duplicate else digest, state.head))
        if duplicate:
            return Applied(seq, Verdict.DUPLICATE)
        state.seen.add(digest)
        return self._apply_new(seq, raw)

    def _apply_new(self, seq: int, raw: bytes) -> Applied:
        state = self.state
        author, kind = NO_HASH, 0
        try:
            command = Command.decode(raw)
            author, kind = command.author, command.body.KIND
            self._admit(command, raw)
            events = HANDLERS[type(command.body)](state, command, command.body)
        except Explained as error:
            # Rules of other packages are not made for the ring's entries.
            rule = error.rule.encode("ascii", "replace")[:MAX_RULE].decode() or "unnamed"
            state.refused.append(Refusal(seq, author, kind, rule))
            suspended: tuple[Event, ...] = ()
            if rule == QUOTA and state.servers[author].bytes_used - len(raw) <= (
                state.rules.window.byte_quota
            ):
                suspended = (ServerSuspended(state.servers[author].id, rule),)
            return Applied(seq, Verdict.REFUSED, rule, error.diagnostics(), suspended)
        self._advance_clock(command)
        events += self._checkpoint_if_due(events)
        return Applied(seq, Verdict.APPLIED, events=tuple(events))

    def _admit(self, command: Command, raw: bytes) -> None:
        """What every command must satisfy. Raises CommandRefused and Refused."""
        state, instance = self.state, self.state.instance
        recovers = isinstance(command.body, bodies.Recover)
        if command.instance.deployment_id != instance.deployment_id:
            raise refused(
                "command.deployment",
                "the command is for another deployment",
                expected=instance.deployment_id.hex(),
                got=command.instance.deployment_id.hex(),
            )
        if recovers != bool(state.recovering):
            raise refused(
                "command.recover",
                "a new generation begins with a Recover, and nothing else does",
                got=type(command.body).__name__,
            )
        if not recovers and command.instance.generation != instance.generation:
            raise refused(
                "command.generation",
                "the command is for another generation",
                expected=instance.generation.hex(),
                got=command.instance.generation.hex(),
                hint="check the committee secret",
            )
        self._check_position(command)
        command.check_signature(raw)
        if recovers:
            return  # The operators' signatures carry it, and its servers may all be lost.
        server = state.servers.get(command.author)
        if server is None:
            if not isinstance(command.body, bodies.Join):
                raise refused(
                    "command.author", "the author is no server here", got=command.author.hex()
                )
            return
        self._charge(command, len(raw))
        if server.status is Status.SUSPENDED and not isinstance(command.body, WHILE_SUSPENDED):
            raise refused(
                "command.suspended",
                "the author is suspended",
                hint="a Resume ends that",
            )
        lead = command.clock_ms - state.time_ms
        if lead > MAX_LEAD_MS and not isinstance(command.body, ANY_CLOCK):
            raise refused(
                "command.clock",
                "the author's clock is ahead of the committee's",
                expected=f"at most {state.time_ms + MAX_LEAD_MS}",
                got=str(command.clock_ms),
                hint="send a Tick; if a majority does not follow, correct this server's clock",
            )

    def _check_position(self, command: Command) -> None:
        """The entry that the author saw last must be a recent one of this very log."""
        state = self.state
        # The last element of the ring is this command itself.
        back = state.seq - command.seq
        if command.seq == 0:
            known = NO_HASH if state.seq <= LOG_WINDOW else None
        else:
            known = state.ring[-1 - back][1] if 1 <= back < len(state.ring) else None
        if known != command.head:
            raise refused(
                "command.position",
                "the command is not tied to the recent past of this log",
                expected=f"an entry from {max(0, state.seq - LOG_WINDOW + 1)} to {state.seq - 1} "
                "with its head",
                got=f"{command.seq} {command.head.hex()[:16]}",
                hint="apply the log to its end and sign the command anew",
            )

    def _charge(self, command: Command, size: int) -> None:
        """Count the author's bytes in this round; over the quota he is suspended."""
        state, window = self.state, self.state.rules.window
        if state.time_ms - state.quota_since >= window.round_deadline_ms:
            reset_quota(state)
        server = state.servers[command.author]
        server.bytes_used += size
        if server.bytes_used > window.byte_quota and not isinstance(command.body, ANY_CLOCK):
            membership.stop(state, server, QUOTA)
            raise refused(
                QUOTA,
                "the author has written too much since the last header",
                expected=f"at most {window.byte_quota} bytes",
                got=str(server.bytes_used),
            )

    def _advance_clock(self, command: Command) -> None:
        state = self.state
        server = state.servers.get(command.author)
        if server is not None:
            server.clock_ms = command.clock_ms
        clocks = sorted(server.clock_ms for server in state.active())
        if not clocks:
            return
        median = clocks[(len(clocks) - 1) // 2]
        # Before the first round nothing hangs on the time yet, and a first server that joins with
        # a wrong clock must not decide it for good.
        state.time_ms = median if state.next_round == 1 else max(state.time_ms, median)

    def _checkpoint_if_due(self, events: list[Event]) -> list[Event]:
        """After every sixteenth final round the state's digest is there to be signed."""
        state = self.state
        final = next((event for event in events if isinstance(event, RoundFinal)), None)
        if final is None or final.record.record.header.round % CHECKPOINT_ROUNDS:
            return []
        state.pending_checkpoint = None
        raw = self.snapshot()
        digest = snapshot.digest(raw)
        self.await_signatures(digest)
        return [CheckpointDue(state.seq, state.head, digest, raw)]
