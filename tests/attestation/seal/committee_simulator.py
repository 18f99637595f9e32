"""Members that answer in this process, what can be wrong with them, and nodes that ask them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.bundle import Bundle, Fresh, Role, Ticket
from attestation.errors import AttestationError, SealRefused, SealUnavailable
from attestation.seal.committee import Committee
from attestation.seal.committee_format import NONCE_ASK, Asked
from attestation.seal.committee_member import Known, Member, MemoryTable
from attestation.seal.committee_sealer import CommitteeSealer
from attestation.ticket import BundleValidator, Challenge
from tests.attestation.tickets import DEPLOYMENT, ISSUED, PEER, POLICY, at

Lie = Callable[[Known], Known]
NOW = ISSUED + 1


@dataclass
class Table:
    """A member's table; `lie` changes what is read, `get` None or not."""

    kept: MemoryTable = field(default_factory=MemoryTable)
    lie: Lie | None = None

    def get(self, key: bytes) -> Known | None:
        known = self.kept.get(key)
        return known if self.lie is None or known is None else self.lie(known)

    def put(self, key: bytes, known: Known) -> None:
        self.kept.put(key, known)


def possessed(bundle: Bundle, challenge: bytes) -> None:
    """What every member checks at least; quotes are for test_committee_admission.py."""
    key = bundle.ticket.peer_id
    peer = replace(
        PEER,
        peer_id=key,
        roles=frozenset({Role.SEALER}),
        now=at(NOW),
        freshness=Challenge(challenge),
    )
    BundleValidator().validate(bundle, peer)


class Simulator:
    """`size` members, and knobs: who is down, what becomes of answers, whose table lies."""

    def __init__(self, size: int = 3, seed: int = 1) -> None:
        self.random = random.Random(seed)
        draw = self.random.randbytes
        self.ids = sorted(draw(32) for _ in range(size))
        self.tables = {member: Table() for member in self.ids}
        self.roots = {member: draw(32) for member in self.ids}
        self.keys = {member: Ed25519PrivateKey.from_private_bytes(draw(32)) for member in self.ids}
        self.members = {member: self.member(member) for member in self.ids}
        self.validate: Callable[[Bundle, bytes], object] = possessed
        self.list_number = 3
        self.now = 1_000
        self.down: set[bytes] = set()
        # How many requests still reach somebody; None for all.
        self.reaching: int | None = None
        self.change: Callable[[bytes, bytes, bytes], bytes] = lambda _, __, answer: answer
        self.refusals: list[str] = []
        self.requests: list[Asked] = []

    def member(self, member: bytes, **changes: bytes) -> Member:
        """One with its keys, started anew."""
        root = changes.get("root", self.roots[member])
        seed = changes.get("seed")
        key = self.keys[member] if seed is None else Ed25519PrivateKey.from_private_bytes(seed)
        return Member(root, member, key, self.tables[member], self.random.randbytes)

    async def ask(self, member: bytes, raw: bytes) -> bytes:
        """As `Members.ask`."""
        if raw != NONCE_ASK and self.reaching is not None:
            self.reaching -= 1
        if member in self.down or (self.reaching is not None and self.reaching < 0):
            raise SealUnavailable("nobody there", rule="test.down")
        return self.change(member, raw, self.answer(member, raw))

    def answer(self, member: bytes, raw: bytes) -> bytes:
        one = self.members[member]
        if raw == NONCE_ASK:
            return one.nonce(self.now)
        try:
            asked = one.take(raw, self.now)
            self.requests.append(asked)
            return one.answer(asked, self.validate, self.list_number)
        except AttestationError as error:
            self.refusals.append(error.rule)
            return one.refuse(raw, error)

    def committee(self, instance: bytes) -> Committee:
        keys = {m: key.public_key().public_bytes_raw() for m, key in self.keys.items()}
        return Committee(DEPLOYMENT, instance, keys)

    def known(self, node: Node) -> list[Known]:
        """What the members really know of a node."""
        found = [self.tables[m].kept.get(DEPLOYMENT + node.instance) for m in self.ids]
        return [known or Known() for known in found]

    def clear(self) -> None:
        """Everybody there and true to the protocol again."""
        self.down, self.reaching = set(), None
        self.change = lambda _, __, answer: answer
        for table in self.tables.values():
            table.lie = None


class Crash(Exception):
    """The node's power went."""


@dataclass
class MemoryDisk:
    """A disk. `fail` is "before" or "after" the next write."""

    raw: bytes | None = None
    fail: str = ""
    writes: int = 0

    def read(self) -> bytes | None:
        return self.raw

    def write(self, raw: bytes) -> None:
        fail, self.fail = self.fail, ""
        if fail == "before":
            raise Crash
        self.raw = raw
        self.writes += 1
        if fail == "after":
            raise Crash


@dataclass
class Node:
    """An instance: its key and its disk; each `boot` is a new process with nothing in memory."""

    simulator: Simulator
    seed: bytes = b"\x21" * 32
    disk: MemoryDisk = field(default_factory=MemoryDisk)
    quote: Callable[[Ticket], bytes] = lambda _: b""
    changes: dict[str, object] = field(default_factory=dict)

    @property
    def key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)

    @property
    def instance(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    async def bundle(self, challenge: bytes, dh_pub: bytes) -> bytes:
        ticket = Ticket(
            role=Role.SEALER,
            deployment_id=DEPLOYMENT,
            instance_id=self.instance,
            peer_id=self.instance,
            dh_pub=dh_pub,
            policy_id=POLICY,
            config_digest=b"\x06" * 32,
            boot_epoch=1,
            issued_at=ISSUED,
            not_after=ISSUED + 1_000,
            fresh_kind=Fresh.CHALLENGE,
            fresh=challenge,
        )
        ticket = replace(ticket, **self.changes)  # type: ignore[arg-type]
        return Bundle.sign(ticket, self.quote(ticket), self.key).encode()

    def boot(self) -> CommitteeSealer:
        committee = self.simulator.committee(self.instance)
        draw = self.simulator.random.randbytes
        return CommitteeSealer(committee, self.simulator, self.disk, self.bundle, draw)

    def clone(self) -> Node:
        """The same instance with a copy of the disk."""
        return replace(self, disk=MemoryDisk(self.disk.raw))


def names(member: bytes) -> str:
    """How errors name a member."""
    return f"member {member.hex()[:16]}"


def run(coroutine: Awaitable[object]) -> object:
    async def main() -> object:
        return await coroutine

    return asyncio.run(main())


def refused(
    coroutine: Awaitable[object],
    rule: str,
    *named: bytes,
    kind: type[AttestationError] = SealRefused,
) -> AttestationError:
    """It fails by this rule, and its message names these members."""
    with pytest.raises(AttestationError) as caught:
        run(coroutine)
    error = caught.value
    assert (type(error), error.rule) == (kind, rule), error.diagnostics()
    for member in named:
        assert names(member) in error.message, error.diagnostics()
    error.diagnostics().encode("ascii")
    return error


def sealed(size: int = 3, versions: int = 1) -> tuple[Simulator, Node]:
    """A node whose blob is at some version; the data of version n is b"n"."""
    simulator = Simulator(size)
    node = Node(simulator)
    sealer = node.boot()
    run(sealer.create(b"1", 3))
    for version in range(2, versions + 1):
        run(sealer.update(b"%d" % version))
    return simulator, node


def answers_changed(simulator: Simulator, member: bytes, how: Callable[[bytes], bytes]) -> None:
    def change(asked: bytes, raw: bytes, answer: bytes) -> bytes:
        return how(answer) if asked == member and raw != NONCE_ASK else answer

    simulator.change = change
