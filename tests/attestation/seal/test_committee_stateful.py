"""Hosts that copy disks, cut power and networks, and own all members but one: nothing old opens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from attestation.errors import SealError
from attestation.seal.committee_format import NONCE_ASK, NOTHING, Asked, Op, Released
from attestation.seal.committee_sealer import CommitteeSealer
from tests.attestation.seal.committee_simulator import Crash, Node, Simulator

CLONES = st.integers(0, 1)


def attempt(coroutine: Awaitable[object]) -> object:
    """What it returns; None if it fails as it may."""

    async def main() -> object:
        with suppress(SealError, Crash):
            return await coroutine
        return None

    return asyncio.run(main())


class Hosts(RuleBasedStateMachine):
    """Two clones of one instance. The first member is honest; the others may agree to anything."""

    def __init__(self) -> None:
        super().__init__()
        self.simulator = Simulator(3)
        first = Node(self.simulator)
        self.nodes = [first, first.clone()]
        self.sealers: list[CommitteeSealer | None] = [None, None]
        # Every blob that was ever on a disk, the newest (version, data) in use, who opened last.
        self.copies: list[bytes] = []
        self.used = (0, b"")
        self.last: CommitteeSealer | None = None
        self.counter = 0

    def data(self) -> bytes:
        self.counter += 1
        return b"data %d" % self.counter

    def boot(self, clone: int) -> CommitteeSealer:
        self.sealers[clone] = sealer = self.nodes[clone].boot()
        return sealer

    def keep(self) -> None:
        for node in self.nodes:
            raw = node.disk.raw
            if raw is not None and raw not in self.copies:
                self.copies.append(raw)

    def use(self, sealer: CommitteeSealer, data: bytes) -> None:
        version, newest = self.used
        assert sealer.version >= version, "an older copy opened"
        assert sealer.version > version or data == newest, "other data of the same version opened"
        self.used = (sealer.version, data)
        self.keep()

    @initialize()
    def begin(self) -> None:
        self.create(0)
        self.nodes[1].disk.raw = self.nodes[0].disk.raw

    @rule(clone=CLONES)
    def open(self, clone: int) -> None:
        sealer = self.boot(clone)
        data = attempt(sealer.open())
        if isinstance(data, bytes):
            self.last = sealer
            self.use(sealer, data)

    @rule(clone=CLONES)
    def create(self, clone: int) -> None:
        sealer, data = self.boot(clone), self.data()
        if attempt(created(sealer, data)):
            self.last = sealer
            assert sealer.version > self.used[0]
            self.use(sealer, data)
        self.keep()

    @rule(clone=CLONES)
    def open_older(self, clone: int) -> None:
        sealer, data = self.boot(clone), self.data()
        if attempt(gone_on(sealer, data)):
            self.last = sealer
            assert sealer.version > self.used[0]
            self.use(sealer, data)
        self.keep()

    @rule(clone=CLONES, fail=st.sampled_from(["", "", "before", "after"]))
    def update(self, clone: int, fail: str) -> None:
        sealer, data = self.sealers[clone], self.data()
        self.nodes[clone].disk.fail = fail
        if sealer is not None and attempt(updated(sealer, data)):
            assert sealer is self.last, "a clone went on that was fenced off"
            assert sealer.version > self.used[0]
            self.use(sealer, data)
        elif fail:
            self.sealers[clone] = None  # its power went
        self.nodes[clone].disk.fail = ""
        self.keep()

    @rule(clone=CLONES, data=st.data())
    def put_back(self, clone: int, data: st.DataObject) -> None:
        self.nodes[clone].disk.raw = data.draw(st.sampled_from(self.copies))

    @rule(reaching=st.none() | st.integers(0, 4))
    def cut(self, reaching: int | None) -> None:
        self.simulator.reaching = reaching

    @rule()
    def corrupt(self) -> None:
        """All but the first say what the asker wants to hear, and keep nothing."""
        simulator = self.simulator

        def agree(member: bytes, raw: bytes, answer: bytes) -> bytes:
            if raw == NONCE_ASK or member == simulator.ids[0]:
                return answer
            asked, liar = Asked.decode(raw), simulator.members[member]
            request = asked.request
            share = NOTHING if request.op is Op.COMMIT else liar._contribution(request)
            released = Released(share, request.version, request.digest, 1)
            return liar._signed(raw, liar._box(asked, released))

        simulator.change = agree

    @rule()
    def repent(self) -> None:
        self.simulator.clear()

    @rule(clone=CLONES)
    def mend(self, clone: int) -> None:
        """Whatever came before: with everybody there, a new key works and opens again."""
        self.simulator.clear()
        self.create(clone)
        assert self.last is self.sealers[clone]
        self.open(clone)
        assert self.last is self.sealers[clone]


async def created(sealer: CommitteeSealer, data: bytes) -> bool:
    await sealer.create(data, 3)
    return True


async def updated(sealer: CommitteeSealer, data: bytes) -> bool:
    await sealer.update(data)
    return True


async def gone_on(sealer: CommitteeSealer, data: bytes) -> bool:
    await sealer.unsafe_open_older()
    await sealer.update(data)
    return True


TestHosts = Hosts.TestCase
TestHosts.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
