"""A long mixed run: whatever happens to nodes and bus, no pad hides two things."""

from collections import Counter

import pytest

from tests.simulator.attacker import equivocations
from tests.simulator.hosts import recover, restart, restart_user, resume_user
from tests.simulator.world import Bus, World
from tests.zipnet.attacks.support import messages
from zipnet.committee import bodies
from zipnet.committee.commands import Command
from zipnet.committee.state import Ending
from zipnet.errors import Refused

TROUBLES = (
    "calm", "client", "client-bare", "server", "server-bare", "late", "silent", "list", "bus"
)  # fmt: skip


class Run:
    """A world, what was ever submitted in it, and the logs of generations that are over."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed, servers=3, clients=6, tree=(0, 0, 0), participation=0.9).start()
        self.logs: list[list[bytes]] = []
        self.count = 0
        self.list_number = 1
        self.landed: Counter[bytes] = Counter()
        self.seen = 0

    def submit(self) -> None:
        for user in self.world.users:
            if self.world.random.random() < 0.6 and len(user.core.speaker.queue) < 4:
                self.count += 1
                user.core.submit(self.count.to_bytes(16, "big"))

    def trouble(self, what: str) -> None:
        """Something happens between two rounds, to one server or one client."""
        world = self.world
        site, user = world.random.choice(world.sites), world.random.choice(world.users)
        if what == "client":
            restart_user(world, user, user.backup())
            resume_user(world, user)
        elif what == "client-bare":
            restart_user(world, user, None)
        elif what == "server":
            restart(world, site, site.backup())
        elif what == "server-bare":
            restart(world, site, None)
            world.join(site)
        elif what == "late":
            world.open()
            world.seal()
            world.envelopes.clear()
            world.time_out()
        elif what == "silent":
            world.aggregate()
            site.down = True
            assert world.time_out().ending is Ending.EXPOSED
            site.down = False
            world.deliver(site)
        elif what == "list":
            self.list_number += 1
            rotated = bodies.RotateAllowList(world.allow_list(self.list_number))
            world.say(world.sites[0], rotated)
        elif what == "bus":
            world.bus = Bus(delay=world.random.random() / 2, replay=0.2, lose=0.1)

    def round(self) -> None:
        """One round, or what ends it."""
        world = self.world
        try:
            world.aggregate()
        except Refused:
            world.time_out()  # too few had something to send
        world.settle()
        if world.state.current is not None and world.state.current.commitments:
            world.time_out()

    def check(self) -> None:
        world = self.world
        assert world.reused() == 0
        assert len(world.snapshots()) == 1
        assert not any(equivocations(log) for log in [*self.logs, world.log])
        assert all(user.settled() for user in world.users)
        for record in world.records[self.seen :]:
            self.landed.update(messages(record))
        self.seen = len(world.records)
        assert all(times == 1 for times in self.landed.values())
        assert not any(site.core.fenced for site in world.sites)


@pytest.mark.parametrize("seed", [1, 2])
def test_no_pad_is_used_twice_whatever_happens(seed: int) -> None:
    run = Run(seed)
    world = run.world
    happened: Counter[str] = Counter()
    for number in range(90):
        run.submit()
        what = world.random.choice(TROUBLES)
        happened[what] += 1
        run.trouble(what)
        run.round()
        world.bus.delay = world.bus.lose = 0.0
        run.check()
        if number == 60:
            assert world.checkpoint is not None
            run.logs.append(list(world.log))
            recover(world)
            happened["recover"] += 1
    assert set(happened) == {*TROUBLES, "recover"}
    assert {outcome.ending for outcome in world.outcomes} >= {Ending.NO_AGGREGATE, Ending.EXPOSED}
    fates = Counter(
        fate.value for user in world.users for _, past in [*user.past, (0, user.fates)]
        for _, fate in past
    )  # fmt: skip
    assert sum(run.landed.values()) == fates["landed"] > 50
    assert world.state.epoch.number > 6
    assert len(world.records) > 60
    assert world.state.allow_list is not None
    assert world.state.allow_list.number > 1
    assert any(
        isinstance(Command.decode(raw).body, bodies.ResumeNode) for log in run.logs for raw in log
    )
