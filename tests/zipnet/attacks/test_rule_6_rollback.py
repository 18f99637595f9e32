"""An old copy of a node must not use a pad again: rollbacks, restarts and clones."""

from tests.simulator.attacker import client_pads, server_pads, xor
from tests.simulator.hosts import clone, clone_user, restart, restart_user, resume_user
from tests.simulator.nodes import Backup, User
from tests.simulator.world import World
from tests.zipnet.attacks.support import SECRET, about_to_speak, messages, refused
from zipnet.committee import bodies
from zipnet.committee.commands import Command
from zipnet.committee.state import Ending
from zipnet.errors import GuardRefused, Refused
from zipnet.protocol.envelope import Envelope
from zipnet.protocol.guards import ClientGuard


def naive(world: World, user: User, backup: Backup) -> User:
    """The client as it would come back if nobody told it that it was away."""
    assert backup.guard is not None
    core = world.client_core(
        user.identity,
        user.disk,
        guard=ClientGuard.decode(backup.guard),
        keyring=backup.ring(user.id),
    )
    return User(user.identity, core, user.disk, user.bundle)


def test_a_client_rolled_back_seals_under_used_pads() -> None:
    world = World(30).start()
    about_to_speak(world, world.users[0])
    user, shape = world.users[0], world.current.header.shape
    backup = user.backup()
    first = world.seal_one(user)
    assert first is not None
    assert world.reused() == 0

    # Without the rule: pads come twice, the two envelopes' XOR has no pad left in it.
    again = world.seal_one(naive(world, user, backup))
    assert again is not None
    assert world.reused() > 0
    both = [Envelope.decode(raw, shape).payload for raw in (first, again)]
    # The second boot has no reservation and says nothing but a footprint: the rest is readable.
    assert SECRET in xor(*both)

    # With it: sealed state says that this node was away, and it waits for its own Resume.
    restart_user(world, user, backup)
    with refused(GuardRefused, "fenced"):
        world.seal_one(user)


def test_after_its_resume_a_client_has_other_pads() -> None:
    world = World(30).start()
    about_to_speak(world, world.users[0])
    user = world.users[0]
    world.seal()
    backup = user.backup()
    restart_user(world, user, backup)
    assert resume_user(world, user) == ""
    # Not in the round that is open: it began before.
    with refused(Refused, "header.round"):
        world.seal_one(user)
    world.submit(world.fold())
    world.settle()
    world.open()
    header, resumes = world.current.header, world.current.sheet.resumes
    assert [resume.node for resume in resumes] == [user.id]
    stale, fresh = client_pads(backup, header), client_pads(backup, header, resumes)
    assert not set(stale.values()) & set(fresh.values())
    world.seal()
    assert user.refusal == ""
    world.submit(world.fold())
    world.settle()
    # Servers have mixed the nonce in as well: the record reads, and nothing was used twice.
    assert world.records[-1].record.header == header
    assert world.reused() == 0
    user.core.submit(SECRET)
    # What it may say in this epoch it does not know any more: it goes on as cover until the next.
    while (record := world.round()).record.header.epoch == header.epoch:
        assert SECRET not in messages(record)
    for _ in range(6):
        world.round()
    assert [fate.value for _, fate in user.fates] == ["landed"]


def test_a_client_without_sealed_state_takes_a_new_key() -> None:
    world = World(31).start()
    world.round()
    user = world.users[0]
    old = user.backup()
    restart_user(world, user, None)
    world.open()
    with refused(Refused, "epoch.no-secret"):
        world.seal_one(user)
    epoch = world.state.epoch.number
    while world.state.epoch.number == epoch:
        world.seal()
        world.submit(world.fold())
        world.settle()
        world.open()
    assert world.seal_one(user) is not None
    assert user.core.keyring.key(epoch + 1) not in {None, old.key}
    assert world.reused() == 0


def test_of_two_clones_of_a_client_the_later_fences_the_earlier() -> None:
    world = World(32).start()
    world.round()
    user = world.users[0]
    twin = clone_user(world, user, user.backup())
    assert resume_user(world, twin) == ""
    world.open()
    with refused(GuardRefused, "fenced"):
        world.seal_one(user)
    assert world.seal_one(twin) is not None
    # The first can do what the second did. Then the second is the one that is out.
    restart_user(world, user, user.backup())
    assert resume_user(world, user) == ""
    world.time_out()
    world.open()
    with refused(GuardRefused, "fenced"):
        world.seal_one(twin)
    header, resumes = world.current.header, world.current.sheet.resumes
    pads = [client_pads(one, header, resumes[:count]) for one, count in ((twin, 1), (user, 2))]
    assert not set(pads[0].values()) & set(pads[1].values())
    assert world.seal_one(user) is not None
    assert world.reused() == 0


def test_an_old_resume_does_not_come_again() -> None:
    world = World(32).start()
    world.round()
    user = world.users[0]
    restart_user(world, user, user.backup())
    nonce, serial, signature = user.core.resume(world.now_ms)
    body = bodies.ResumeNode(user.id, nonce, serial, signature)
    assert not world.say(world.sites[0], body).rule
    # Another carrier repeats it, to take the nonce of a later boot out of force.
    assert world.say(world.sites[1], body).rule == "resume.serial"
    forged = bodies.ResumeNode(user.id, bytes(32), serial + 1, signature)
    assert world.say(world.sites[1], forged).rule == "signature"
    other = bodies.ResumeNode(world.sites[0].id, nonce, serial, signature)
    assert world.say(world.sites[1], other).rule == "resume.author"


def test_a_server_that_was_rolled_back_answers_nothing_from_before() -> None:
    """The attack without the rule is in test_rule_1_one_partial."""
    world = World(33).start()
    about_to_speak(world, world.users[0])
    world.seal()
    site = world.sites[1]
    backup = site.backup()
    whole = world.fold()
    restart(world, site, backup)
    assert not world.submit(whole).rule
    world.settle()
    kinds = {type(Command.decode(raw).body) for raw in world.log[-8:]}
    assert bodies.ResumeNode in kinds
    assert bodies.RevealPartial not in kinds
    server = world.state.server(site.id)
    assert server is not None
    assert server.resumed_round == world.state.next_round
    # Even with its commitment signed by the same key, the machine does not take it.
    assert world.say_here(site, bodies.CommitPartial(bytes(32))).rule == "commit.resumed"
    assert world.time_out().ending is Ending.EXPOSED
    header = world.round().record.header
    assert header.epoch == 1
    assert world.reused() == 0


def test_of_two_clones_of_a_server_the_later_fences_the_earlier() -> None:
    world = World(34).start()
    world.round()
    site = world.sites[2]
    backup = site.backup()
    twin = clone(world, site, backup)
    world.settle()
    assert site.core.fenced
    assert site.core.due(world.now_ms + 10**6) == []
    assert not twin.core.fenced
    world.open()
    header, resumes = world.current.header, world.current.sheet.resumes
    assert [resume.node for resume in resumes] == [site.id]
    # What the fenced one can still compute has nothing to do with the pads of this round.
    old, new = server_pads(backup, header), server_pads(twin, header, resumes)
    assert set(old) == set(new)
    assert not set(old.values()) & set(new.values())
    world.seal()
    world.submit(world.fold())
    world.settle()
    assert world.records[-1].record.header == header
    assert world.reused() == 0


def test_a_server_that_joins_anew_has_a_new_epoch() -> None:
    world = World(35).start()
    world.round()
    epoch = world.state.epoch.number
    site = world.sites[0]
    restart(world, site, None)
    world.join(site)
    world.post_keys()
    assert world.round().record.header.epoch == epoch + 1
    assert world.reused() == 0
