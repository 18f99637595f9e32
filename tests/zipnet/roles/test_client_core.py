"""A client between headers and envelopes: what it refuses and seals, what it tells its user."""

from dataclasses import replace
from typing import Any

import pytest

from tests.simulator.attacker import sign_all
from tests.simulator.hosts import clone_user, restart_user, resume_user
from tests.simulator.nodes import Disk, User
from tests.simulator.world import World
from tests.zipnet.attacks.support import SECRET, about_to_speak, messages, refused
from zipnet.committee.state import Ending
from zipnet.errors import DatumRejected, GuardRefused, Refused
from zipnet.protocol.envelope import Envelope, audit
from zipnet.protocol.guards import ClientGuard
from zipnet.protocol.header import NO_HASH, Header
from zipnet.protocol.ratelimit import Budget
from zipnet.protocol.roster import RESUME
from zipnet.protocol.shape import Shape
from zipnet.protocol.sheet import Sheet
from zipnet.roles.client_core import ClientCore


def live(seed: int = 1) -> tuple[World, User]:
    world = World(seed).start()
    world.round()
    world.open()
    return world, world.users[0]


def sealing(world: World, user: User, header: Header, **changes: Any) -> None:
    """Seal under a header that all servers have signed, whatever it says."""
    current = world.current
    sheet: Sheet = changes.get("sheet", current.sheet)
    tree = changes.get("tree", current.tree)
    user.core.seal(sign_all(world, header), sheet, tree, world.state.operators)


def test_a_round_is_sealed_for_the_right_leaf() -> None:
    world = World(2, tree=(0, 0, 0), clients=5).start()
    world.open()
    for user in world.users:
        current = world.current
        sealed = user.core.seal(world.header, current.sheet, current.tree, world.state.operators)
        assert sealed is not None
        assert sealed.leaf == world.tree.leaf_for(user.id)
        envelope = Envelope.decode(sealed.envelope, current.header.shape)
        assert (envelope.client, envelope.header_id) == (user.id, current.header.id)
        audit(envelope, user.identity.peer)
        assert "envelope" not in repr(sealed)
        guard = ClientGuard.decode(user.disk.records[-1])
        assert (guard.round, guard.header) == (current.header.round, current.header.id)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"shape": Shape(8, 33, 32)}, "header.shape"),
        ({"resumes_hash": bytes(32)}, "header.resumes"),
        ({"tree_hash": bytes(32)}, "header.tree"),
        ({"list_number": 0}, "header.list"),
        ({"round": 1}, "header.round"),
        ({"round": 5_000}, "header.max-skip"),
        ({"roster_hash": bytes(32)}, "sheet.roster"),
        ({"epoch": 2}, "sheet.key"),
    ],
)
def test_headers_that_are_refused(change: dict[str, Any], rule: str) -> None:
    world, user = live()
    before = user.backup()
    with refused(Refused, rule):
        sealing(world, user, replace(world.current.header, **change))
    # Nothing has moved: the right one is sealed after that.
    assert user.backup() == before
    assert world.seal_one(user) is not None


def test_a_header_of_another_instance() -> None:
    world, user = live()
    other = replace(world.current.header, instance=world.generation(1))
    with refused(Refused, "signature"):  # of the sheet, whose entries are of this generation
        sealing(world, user, other)


def test_a_client_of_another_committee() -> None:
    world, user = live()
    stranger = world.user()
    with refused(Refused, "epoch.no-secret"):
        world.seal_one(stranger)
    world.open()
    assert world.seal_one(user) is not None


def test_a_client_stays_away_by_chance_and_once() -> None:
    world = World(3, participation=0.5, clients=6).start()
    counts = []
    for _ in range(12):
        world.open()
        world.seal()
        counts.append(len(world.envelopes))
        assert all(user.refusal == "" for user in world.users)
        stayed = next((u for u in world.users if u.id not in world.envelopes), None)
        if stayed is not None:
            with refused(GuardRefused, "turn.round"):
                world.seal_one(stayed)
        if len(world.envelopes) < 2:
            world.envelopes.clear()
            world.time_out()
            continue
        world.submit(world.fold())
        world.settle()
    assert 0 < sum(counts) < 72
    assert len(set(counts)) > 1


def test_a_queue_is_bounded_and_data_have_one_size() -> None:
    user = live()[1]
    with pytest.raises(DatumRejected):
        user.core.submit(b"short")
    assert [user.core.submit(SECRET) for _ in range(64)] == list(range(64))
    with refused(Refused, "queue.full"):
        user.core.submit(SECRET)


def test_what_landed_is_told_once() -> None:
    world = World(4).start()
    user = world.users[0]
    about_to_speak(world, user)
    world.seal()
    world.submit(world.fold())
    world.settle()
    assert SECRET in messages(world.records[-1])
    assert [fate.value for _, fate in user.fates] == ["landed"]
    assert user.core.final(world.records[-1]) == ()


def test_a_record_that_comes_after_the_next_header() -> None:
    """The bus decides what a client reads first; it must not make it tell that a message is lost.

    Its author would send it again, and be known by the two rounds.
    """
    world = World(5).start()
    user = world.users[0]
    about_to_speak(world, user)
    world.seal()
    world.submit(world.fold())
    user.gone = True  # the record is kept from this client
    world.settle()
    record = world.records[-1]
    world.open()
    assert world.seal_one(user) is not None
    assert [what.value for _, what in user.core.final(record)] == ["landed"]
    # An old record again takes nothing back.
    user.gone = False
    for other in world.users[1:]:
        envelope = world.seal_one(other)
        assert envelope is not None
        world.envelopes[other.id] = envelope
    world.submit(world.fold())
    world.settle()
    newest = user.core._last
    assert user.core.final(record) == ()
    assert user.core._last is newest


def test_a_record_under_another_header_is_none_of_its() -> None:
    world = World(6).start()
    user = world.users[0]
    about_to_speak(world, user)
    world.seal()
    world.submit(world.fold())
    world.settle()
    signed = world.records[-1]
    place = user.core._places[signed.record.header.round]
    user.core._places[signed.record.header.round] = replace(place, header_id=NO_HASH)
    assert not user.core._is_in(signed)


def test_a_record_that_not_all_servers_signed() -> None:
    world = World(7).start()
    record = world.round()
    user = world.users[0]
    forged = replace(record, signatures=(bytes(64), *record.signatures[1:]))
    with refused(Refused, "signature"):
        user.core.final(forged)
    with refused(Refused, "record.signatures"):
        user.core.final(replace(record, signatures=record.signatures[1:]))
    with refused(Refused, "record.unknown-server"):
        world.user().core.final(record)


@pytest.mark.parametrize("exposed", [False, True])
def test_rounds_that_end_without_a_record(exposed: bool) -> None:
    world = World(8).start()
    user = world.users[0]
    about_to_speak(world, user)
    world.seal()
    if exposed:
        world.submit(world.fold())
    ending = world_end(world, exposed)
    assert ending is (Ending.EXPOSED if exposed else Ending.NO_AGGREGATE)
    assert [fate.value for _, fate in user.fates] == ["exposed" if exposed else "unpublished"]


def world_end(world: World, exposed: bool) -> Ending:
    if exposed:
        world.sites[2].down = True
        world.settle()
    return world.time_out().ending


# Restarts


def test_a_restarted_client_waits_for_its_own_resume() -> None:
    world = World(10).start()
    world.round()
    user = world.users[0]
    restart_user(world, user, user.backup())
    world.open()
    with refused(GuardRefused, "fenced"):
        world.seal_one(user)
    assert resume_user(world, user) == ""
    # The round that is open began before, and its list does not have the Resume.
    with refused(GuardRefused, "fenced"):
        world.seal_one(user)
    world.time_out()
    world.open()
    assert world.seal_one(user) is not None
    assert world.reused() == 0


def test_a_resume_is_signed_and_its_serials_grow() -> None:
    world, user = live()
    last = 0
    for clock in (world.now_ms, world.now_ms, world.now_ms - 5):
        nonce, serial, signature = user.core.resume(clock)
        assert serial > last
        last = serial
        statement = user.id + nonce + serial.to_bytes(8, "big")
        world.instance.verify(user.identity.peer, signature, RESUME, 0, statement)


def test_a_restarted_client_says_nothing_more_in_its_epoch() -> None:
    world = World(11).start()
    world.round()
    user = world.users[0]
    restart_user(world, user, user.backup())
    budget = user.core.speaker.budget
    assert (budget.epoch, budget.used) == (1, budget.limit)


def test_a_guard_of_another_instance() -> None:
    world = World(12)
    user = world.users[0]
    with refused(GuardRefused, "binding"):
        world.client_core(user.identity, Disk(), guard=ClientGuard(bytes(32)))


def test_a_header_of_an_epoch_whose_key_is_another_boots() -> None:
    """The log has the old boot's key; the new one has offered its own since."""
    world = World(13).start()
    user = world.users[0]
    user.core.epoch_key(1, world.now_ms + 1)
    user.gone = True  # it has posted its key, and the log does not take it in time
    world.open()
    with refused(Refused, "header.client-key"):
        world.seal_one(user)


def test_who_waits_for_its_resume_is_not_fenced() -> None:
    world = World(14).start()
    world.round()
    user = world.users[0]
    twin = clone_user(world, user, user.backup())
    assert resume_user(world, twin) == ""
    world.open()
    with refused(GuardRefused, "fenced"):
        world.seal_one(user)
    assert user.core.fenced, "the twin has started after it"
    assert world.seal_one(twin) is not None
    restart_user(world, user, user.backup())
    world.time_out()
    world.open()
    with refused(GuardRefused, "fenced"):
        world.seal_one(user)
    assert not user.core.fenced, "what it sees is the boot before its own"
    assert resume_user(world, user) == ""
    world.time_out()
    world.open()
    with refused(GuardRefused, "fenced"):
        world.seal_one(twin)
    assert twin.core.fenced
    assert world.seal_one(user) is not None
    assert world.reused() == 0


def test_pairs_of_a_later_epoch_need_no_resume() -> None:
    """The Resume came too late for the epoch whose pairs were sealed."""
    world = World(15).start()
    header = world.round().record.header
    user = world.users[0]
    restart_user(world, user, user.backup())
    while world.round().record.header.epoch == header.epoch:
        assert user.refusal == "fenced"
    assert user.core.keyring.epoch == header.epoch + 1
    assert user.refusal == ""
    assert not user.core.fenced
    assert world.reused() == 0


def test_a_share_of_the_tags_in_each_epoch() -> None:
    world = World(16)
    user = world.users[0]
    ring, limit = user.backup().ring(user.id), world.config.window.messages_per_epoch
    core = ClientCore(
        world.config, world.instance, user.identity, store=Disk(), xor=world.client_ledger.xor,
        draw=world.draw, keyring=ring, restarted=True, share=limit // 2,
        budget=Budget(ring.epoch, limit - 1, limit // 2),
    )  # fmt: skip
    assert core.speaker.budget == Budget(ring.epoch, limit - 1, limit // 2)
    user.core = core
    world.start()
    world.round()
    assert core.keyring.epoch == 1
    assert core.speaker.budget == Budget(1, limit // 2)
