"""Whatever power and host do to a sealed client: no boot takes what another boot had."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from attestation.errors import SealRefused
from attestation.seal.committee_member import Known
from tests.attestation.seal.committee_simulator import Crash, Simulator
from tests.zipnet.node.sealed_nodes import Client, guard, tags
from zipnet.node.sealed_disk import BLOB_SLOT, JOURNAL_AT, JOURNAL_SLOT
from zipnet.node.sealed_state import Start

USED = JOURNAL_AT + 2 * JOURNAL_SLOT
FLIP = st.tuples(st.just("flip"), st.integers(0, USED - 1), st.integers(0, 7))
WIPE = st.tuples(
    st.just("wipe"),
    st.sampled_from([0, BLOB_SLOT, JOURNAL_AT, JOURNAL_AT + JOURNAL_SLOT]),
    st.just(JOURNAL_SLOT),
)
LIE = st.tuples(st.just("lie"), st.integers(0, 40), st.just(0))


class Machine(RuleBasedStateMachine):
    """One client, its disk as its host has it, three servers of which one is honest."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.client = Client(self.folder / "disk", Simulator())
        self.images: list[bytes] = []
        self.start: Start | None = None
        # By identity and epoch: the tags that some boot may have used.
        self.used: dict[tuple[bytes, int], set[int]] = {}
        self.round = 0
        self.lying = False
        self.honest = True  # the host has done nothing to the disk
        self.identities: list[bytes] = []

    @initialize()
    def first(self) -> None:
        self.boot()

    @rule()
    def boot(self) -> None:
        try:
            self.start = start = self.client.boot()
        except SealRefused:
            assert self.lying  # one that lies can always refuse
            self.start = None
            return
        who = start.record.signing
        if self.honest and self.identities and not self.lying:
            assert start.rule == ""
            assert who == self.identities[-1]
        if start.rule:
            assert start.ring is None
            assert start.guard is None
        if start.ring is not None:
            mine = set(tags(start.budget))
            taken = self.used.setdefault((who, self.client.epoch), set())
            assert not mine & taken, "a tag of another boot"
            taken |= mine
            # A guard may be an old one, never one from the future.
            assert start.guard is None or start.guard.round <= self.round
        else:
            assert not tags(start.budget)
        self.identities.append(who)
        self.honest = True
        self.images.append(self.client.path.read_bytes())

    @precondition(lambda self: self.start is not None)
    @rule(seals=st.booleans())
    def epoch(self, seals: bool) -> None:
        assert self.start is not None
        self.client.open_epoch(self.start, seals=seals)
        who = self.start.record.signing
        self.used[who, self.client.epoch] = set(range(self.client.state.share))
        self.images.append(self.client.path.read_bytes())

    @precondition(lambda self: self.start is not None)
    @rule()
    def seal_round(self) -> None:
        assert self.start is not None
        self.round += 1
        self.start.journal.write(guard(self.round))
        self.images.append(self.client.path.read_bytes())

    @precondition(lambda self: self.start is not None)
    @rule(what=st.sampled_from(["boot", "epoch", "round"]), part=st.floats(0, 1))
    def power_fails(self, what: str, part: float) -> None:
        """While something is written, after `part` of it."""
        assert self.start is not None
        before = self.client.path.read_bytes()
        self.client.crash = 1
        with contextlib.suppress(Crash, SealRefused):
            if what == "boot":
                self.client.boot()
            elif what == "epoch":
                self.client.open_epoch(self.start)
            else:
                self.round += 1
                self.start.journal.write(guard(self.round))
        crashed, self.client.crash = not self.client.crash, 0
        if what == "epoch":
            who = self.start.record.signing
            self.used[who, self.client.epoch] = set(range(self.client.state.share))
        self.client.close()
        after = self.client.path.read_bytes()
        changed = [at for at in range(USED) if before[at] != after[at]]
        if crashed and changed:
            cut = changed[0] + int(part * (changed[-1] + 1 - changed[0]))
            self.client.path.write_bytes(after[:cut] + before[cut:])
        self.start = None

    @precondition(lambda self: self.images)
    @rule(ago=st.integers(1, 6))
    def old_image(self, ago: int) -> None:
        self.client.close()
        self.honest = False
        self.client.path.write_bytes(self.images[-min(ago, len(self.images))])
        self.start = None

    @rule(harm=st.one_of(FLIP, WIPE, LIE))
    def harm(self, harm: tuple[str, int, int]) -> None:
        """A bit of the disk flips, a slot is wiped, or all servers but one know nothing newer."""
        what, at, more = harm
        if what == "lie":
            for member in self.client.simulator.ids[1:]:
                lie = (lambda known: lower(known, at)) if at <= 20 else None
                self.client.simulator.tables[member].lie = lie
            self.lying = True  # what they were told meanwhile they may not have noted
            return
        self.client.close()
        raw = bytearray(self.client.path.read_bytes())
        if what == "flip":
            raw[at] ^= 1 << more
        else:
            raw[at : at + more] = bytes(more)
        self.client.path.write_bytes(raw)
        self.honest, self.start = False, None

    @invariant()
    def one_process(self) -> None:
        assert (self.start is None) or self.client.disk is not None

    def teardown(self) -> None:
        self.client.close()
        shutil.rmtree(self.folder)


def lower(known: Known, most: int) -> Known:
    """What a server says whose table is an old one."""
    if known.version <= most:
        return known
    return Known(most, bytes(32), known.boots, known.anew)


TestSealedClient = Machine.TestCase
TestSealedClient.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
