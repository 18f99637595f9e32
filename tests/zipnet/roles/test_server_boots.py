"""A server's core over restarts, clones and epochs."""

from dataclasses import replace

from tests.simulator.attacker import server_pads
from tests.simulator.hosts import clone, restart
from tests.simulator.world import World
from tests.zipnet.attacks.support import messages, needing
from tests.zipnet.roles.test_server_core import at, due, said, status
from zipnet.committee import bodies
from zipnet.committee.state import Ending, Phase, Status


def test_a_fenced_node_is_silent_for_good() -> None:
    world = World(23).start()
    world.round()
    site = world.sites[1]
    twin = clone(world, site, site.backup())
    world.append(twin.core.due(world.now_ms)[0])
    assert site.core.due(world.now_ms) == []
    assert "resumed" in site.core.fenced
    world.settle()
    for later in (1_000, 100_000):
        assert site.core.due(world.now_ms + later) == []
    world.round()
    # Both restored and started, the clone that came back last is the one.
    again = clone(world, twin, twin.backup())
    world.settle()
    assert (bool(twin.core.fenced), bool(again.core.fenced)) == (True, False)
    world.round()


def test_an_epoch_key_is_posted_again_after_a_restart() -> None:
    world = World(24).start()
    world.round()
    world.settle()
    site = world.sites[2]
    before = world.state.servers[site.identity.peer].next_key
    assert before is not None
    restart(world, site, site.backup())
    assert site.core.keyring.key(world.state.next_epoch()) is None
    world.settle()
    after = world.state.servers[site.identity.peer].next_key
    assert after is not None
    assert after.key == site.core.keyring.key(world.state.next_epoch()) != before.key
    assert after.serial > before.serial
    epoch = world.state.epoch.number
    while world.round().record.header.epoch == epoch:
        pass
    assert world.reused() == 0


def test_a_clock_that_was_set_back_between_two_boots() -> None:
    """Serials order a node's keys and Resumes; its host decides what its clock says."""
    world = World(34).start()
    world.now_ms += 60_000
    world.pass_time(1)
    world.round()
    world.settle()
    site = world.sites[2]
    restart(world, site, site.backup())
    world.settle()
    for _ in range(2):
        restart(world, site, site.backup())
        site.skew_ms -= 20_000
        world.settle()
    assert site.core.fenced == ""
    assert not [one for one in world.state.refused if one.rule.endswith("serial")]
    site.skew_ms = 0
    world.round()


def test_a_key_under_way_is_not_posted_twice() -> None:
    """Of two, the epoch might open with the one while this server works with the other."""
    world = World(25).start()
    world.round()
    world.settle()
    site = world.sites[2]
    restart(world, site, site.backup())
    world.append(site.core.due(world.now_ms)[0])
    (key,) = site.core.due(world.now_ms)
    assert said(key) is bodies.EpochKeys
    site.down = True
    world.now_ms += 1_000
    while world.state.current is None:
        assert world.step()
    site.down = False
    world.deliver(site)
    assert key in site.core.due(world.now_ms)
    assert not world.append(key).rule
    assert bodies.EpochKeys not in due(world, site)
    posted = world.state.servers[site.identity.peer].next_key
    assert posted is not None
    assert posted.key == site.core.keyring.key(world.state.next_epoch())


def test_an_epoch_that_opens_with_a_key_of_an_earlier_boot() -> None:
    """Its pads would be noise, so it does not sign headers of this epoch; it joins anew."""
    world = World(26).start()
    world.round()
    site = world.sites[0]
    epoch = world.state.epoch.number
    while world.state.next_round - world.state.epoch.base_round < 8:
        world.round()
    world.settle()
    # The new boot's own key is on its way when the epoch opens with the old one's.
    restart(world, site, site.backup())
    world.append(site.core.due(world.now_ms)[0])
    (late,) = site.core.due(world.now_ms)
    assert said(late) is bodies.EpochKeys
    site.down = True
    world.post_keys()
    world.now_ms += 1_000
    while world.state.current is None:
        assert world.step()
    site.down = False
    world.deliver(site)
    assert world.current.header.epoch == epoch + 1
    assert site.core.keyring.epoch == epoch
    assert bodies.SignHeader not in due(world, site)
    assert world.append(late).rule == "epoch-key.epoch"
    assert site.core.must_join
    world.join(site)
    assert not site.core.must_join
    assert world.time_out().ending is Ending.UNSIGNED
    world.open()
    world.seal()
    world.submit(world.fold())
    world.settle()
    assert world.records[-1].record.header.epoch == epoch + 2
    assert world.reused() == 0


def test_a_new_boot_waits_for_its_join_and_is_not_fenced() -> None:
    """The log has a Resume of an earlier boot, of which a bare new one knows nothing."""
    world = World(27).start()
    world.round()
    site = world.sites[0]
    restart(world, site, site.backup())
    world.settle()
    world.round()
    restart(world, site, None)
    assert site.core.due(world.now_ms) == []
    assert site.core.fenced == ""
    world.join(site)
    world.settle()
    world.round()
    assert site.core.fenced == ""
    assert world.reused() == 0


def test_a_suspended_server_returns_with_other_pads() -> None:
    world = World(28, config=needing(3)).start()
    world.round()
    site = world.sites[0]
    backup = site.backup()
    at(world, Phase.PROPOSED)
    site.down = True
    world.settle()
    assert world.time_out().ending is Ending.UNSIGNED
    assert status(world, site) is Status.SUSPENDED
    site.down = False
    world.deliver(site)
    assert due(world, site) == [bodies.ResumeNode]
    world.round()
    header = world.records[-1].record.header
    pads = server_pads(backup, header)
    assert site.core.keyring.epoch == header.epoch
    assert len(world.state.epoch.resumes) == 1
    mixed = server_pads(backup, header, world.state.epoch.resumes)
    assert not set(pads.values()) & set(mixed.values())
    assert world.reused() == 0


def test_a_header_signed_by_another_boot_gets_no_pads() -> None:
    """A guard that has not signed this header may not answer it."""
    world = at(World(29).start(), Phase.PROPOSED)
    site = world.sites[0]
    world.append(site.core.due(world.now_ms)[0])
    site.core._guard = replace(site.core.guard, header=bytes(32))
    world.open()
    world.seal()
    world.submit(world.fold())
    assert due(world, site) == []
    world.settle()
    assert world.time_out().missing == (site.id,)


def test_a_partial_of_another_round_is_not_revealed() -> None:
    world = at(World(30).start(), Phase.REVEALING)
    site = world.sites[0]
    site.core._partial = None
    assert due(world, site) == []


def test_a_round_without_this_server() -> None:
    world = World(31, clients=0, config=needing(2))
    key = world.sites[0].operator.public_key().public_bytes_raw()
    world.users = [world.user(frozenset({key})) for _ in range(3)]
    world.start()
    world.round()
    at(world, Phase.PROPOSED)
    site = world.sites[0]
    site.down = True
    world.settle()
    world.time_out()
    at(world, Phase.LIVE)
    site.down = False
    world.deliver(site)
    assert site.id not in world.current.header.servers
    assert due(world, site) == [bodies.ResumeNode]
    world.seal()
    aggregate = bodies.SubmitAggregate(world.fold())
    assert not world.say_here(world.sites[1], aggregate).rule
    world.settle()
    assert len(world.records) == 2
    assert messages(world.records[-1]) == []


def test_a_second_node_with_the_same_keys_that_joins_fences_the_first() -> None:
    """It has no sealed state, and so no Resume: its epoch key is the newer one."""
    world = World(33).start()
    world.round()
    world.settle()
    site = world.sites[2]
    twin = clone(world, site, None)
    world.join(twin)
    world.settle()
    assert "posted a key" in site.core.fenced
    assert twin.core.fenced == ""
    world.round()
    assert world.records[-1].record.header.epoch == 2
    assert world.reused() == 0


def test_nothing_shows_a_secret() -> None:
    world = World(32).start()
    world.round()
    core = world.sites[0].core
    pair = world.sites[0].backup().pairs[0]
    assert pair[-32:].hex() not in repr(core) + repr(core.keyring) + repr(core.guard)
