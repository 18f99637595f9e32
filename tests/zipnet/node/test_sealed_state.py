"""What a client makes of what it finds on its disk, and of what the committee says to it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from attestation.errors import SealRefused
from attestation.seal.committee_format import Blob
from attestation.seal.committee_member import Known
from tests.attestation.seal.committee_simulator import Crash, Simulator
from tests.zipnet.node.sealed_nodes import LIMIT, Client, guard, ring, tags
from tests.zipnet.protocol.support import INSTANCE, refused
from zipnet.errors import Shutdown, StateDamaged
from zipnet.node.sealed_disk import BLOB_SLOT, JOURNAL_AT, JOURNAL_SLOT
from zipnet.node.sealed_state import SealedState, Start
from zipnet.node.slots import HEAD
from zipnet.protocol.guards import ClientGuard
from zipnet.protocol.instance import Instance


@pytest.fixture
def client(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Client]:
    caplog.set_level(logging.WARNING, "zipnet.sealing")
    made = Client(tmp_path / "disk", Simulator())
    yield made
    made.close()


def settled(client: Client) -> Start:
    """A client in the middle of an epoch: sealed, and with a guard in its journal."""
    start = client.boot()
    client.open_epoch(start)
    start.journal.write(guard(25))
    return start


def blob(client: Client) -> Blob:
    assert client.disk is not None
    raw = client.disk.read()
    assert raw is not None
    return Blob.parse(raw)


def flip(client: Client, *places: int) -> None:
    client.close()
    raw = bytearray(client.path.read_bytes())
    for at in places:
        raw[at] ^= 1
    client.path.write_bytes(raw)


def newest(client: Client, at: int, size: int) -> int:
    raw = client.path.read_bytes()
    return max((at, at + size), key=lambda place: raw[place : place + 22])


def check(client: Client, before: Start, rule: str, log: str, *, same: bool) -> Start:
    """The next boot has no pairs, for this reason; its identity is that of before, or not."""
    start = client.boot()
    assert (start.rule, start.ring, start.guard) == (rule, None, None)
    found = start.record.signing == before.record.signing, start.record.dh == before.record.dh
    assert found == (same, same)
    kind = "the same identity" if same else "a new identity"
    assert f"rule {rule}; the client goes on with {kind}" in log or not log
    if same:
        assert start.budget is not None
        assert start.budget.epoch == client.epoch
        assert not tags(start.budget)
    return start


def test_a_first_start(client: Client) -> None:
    start = client.boot()
    assert (start.rule, start.ring, start.guard, start.budget) == ("", None, None, None)
    assert (blob(client).header.version, client.state.share) == (1, LIMIT // 2)
    again = client.boot()
    assert again.record == start.record
    assert again.rule == ""
    assert not tags(again.budget)


def test_pairs_come_back(client: Client) -> None:
    start = settled(client)
    pairs = ring(start.record.identity, client.epoch).export()
    used = set(range(client.state.share))
    for boot in range(1, 6):
        start = client.boot()
        assert start.ring is not None
        assert start.ring.export() == pairs
        assert start.ring.epoch == client.epoch
        assert start.guard == ClientGuard.decode(guard(25))
        assert blob(client).header.version == 2 + boot
        assert not used & set(tags(start.budget))
        used |= set(tags(start.budget))
    assert used == set(range(LIMIT))


def test_an_epoch_that_is_over(client: Client) -> None:
    before = settled(client)
    client.epoch += 1
    start = client.boot()
    assert (start.rule, start.ring, start.record.signing) == ("", None, before.record.signing)
    client.open_epoch(start)
    assert client.boot().ring is not None


def test_an_epoch_that_was_not_sealed_in_time(client: Client) -> None:
    before = settled(client)
    client.open_epoch(before, seals=False)
    start = client.boot()
    assert (start.rule, start.ring, start.record.signing) == ("", None, before.record.signing)


def test_an_older_copy(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    before = settled(client)
    old = client.path.read_bytes()
    client.boot()
    client.close()
    client.path.write_bytes(old)
    start = client.boot()
    client.close()
    check_older = start.rule, start.ring, start.record.signing == before.record.signing
    assert check_older == ("seal.rollback", None, True)
    assert "rule seal.rollback; the client goes on with the same identity" in caplog.text
    # From there on it is the newest.
    assert client.boot().rule == ""


def test_one_honest_server_is_enough(client: Client) -> None:
    before = settled(client)
    old = client.path.read_bytes()
    version = blob(client).header.version
    client.boot()
    client.close()
    client.path.write_bytes(old)
    sim = client.simulator
    digest = Blob.parse(_raw(old)).digest
    for member in sim.ids[1:]:
        sim.tables[member].lie = lambda known: Known(version, digest, known.boots, known.anew)
    check(client, before, "seal.rollback", "", same=True)


def _raw(image: bytes) -> bytes:
    """The newest seal in an image."""
    at = max((0, BLOB_SLOT), key=lambda place: image[place : place + 22])
    length = int.from_bytes(image[at + 22 : at + 26], "big")
    return image[at + HEAD : at + HEAD + length]


@pytest.mark.parametrize(
    ("at", "rule", "same"),
    [
        # Within one slot the other one, which is older, counts.
        (lambda c: [newest(c, 0, BLOB_SLOT) + 200], "seal.rollback", True),
        (lambda _: [200, BLOB_SLOT + 200], "slots.damaged", False),
        (lambda _: [JOURNAL_AT + 60, JOURNAL_AT + JOURNAL_SLOT + 60], "slots.damaged", True),
    ],
)
def test_flipped_bits(
    client: Client,
    caplog: pytest.LogCaptureFixture,
    at: Callable[[Client], list[int]],
    rule: str,
    same: bool,
) -> None:
    before = settled(client)
    flip(client, *at(client))
    check(client, before, rule, "", same=same)
    assert f"rule {rule}" in caplog.text
    assert client.boot().rule == ""


def test_a_seal_that_was_changed_with_its_checksum(client: Client) -> None:
    before = settled(client)
    raw = bytearray(blob(client).encode())
    raw[-1] ^= 1
    assert client.disk is not None
    client.disk.write(bytes(raw))
    # The servers know another digest of this version, and under it there is nothing.
    check(client, before, "seal.damaged", "", same=False)
    assert client.boot().rule == ""


def test_another_clients_journal(client: Client) -> None:
    before = settled(client)
    assert client.disk is not None
    client.disk.journal.write(b"the guard of another")
    check(client, before, "journal.damaged", "", same=True)
    assert client.boot().rule == ""


def test_an_old_journal_is_no_worse_than_none(client: Client) -> None:
    """What is older than the seal is left to the Resume: no round before it is sealed again."""
    start = settled(client)
    old = client.path.read_bytes()[JOURNAL_AT : JOURNAL_AT + 2 * JOURNAL_SLOT]
    for number in (26, 27):
        start.journal.write(guard(number))
    client.close()
    raw = bytearray(client.path.read_bytes())
    raw[JOURNAL_AT : JOURNAL_AT + 2 * JOURNAL_SLOT] = old
    client.path.write_bytes(raw)
    found = client.boot()
    assert found.ring is not None
    assert found.guard == ClientGuard.decode(guard(25))


def test_another_generation(client: Client) -> None:
    before = settled(client)
    client.instance = Instance(INSTANCE.deployment_id, b"\x09" * 32)
    start = check(client, before, "state.generation", "", same=True)
    assert start.record.binding == client.instance.binding
    assert client.boot().rule == ""


def test_another_nodes_disk(client: Client) -> None:
    settled(client)
    client.close()
    before = client.path.read_bytes()
    client.node.seed = b"\x22" * 32
    with refused(StateDamaged, "state.foreign"):
        client.boot()
    client.close()
    assert client.path.read_bytes() == before


def test_a_server_that_is_gone(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    before = settled(client)
    name = client.simulator.ids[1]
    client.simulator.down = {name}
    start = check(client, before, "seal.members", "", same=False)
    assert f"member {name.hex()[:16]} does not answer" in caplog.text
    assert "is not sealed" in caplog.text
    client.simulator.down = set()
    client.open_epoch(start)
    assert client.boot().record.signing == start.record.signing


def test_a_server_that_was_away_for_a_moment(client: Client) -> None:
    before = settled(client)
    sim = client.simulator
    sim.reaching = 0
    asked = sim.ask

    async def later(member: bytes, raw: bytes) -> bytes:
        try:
            return await asked(member, raw)
        finally:
            if sim.reaching is not None and sim.reaching < -2:
                sim.clear()

    sim.ask = later  # type: ignore[method-assign]
    start = client.boot()
    assert (start.rule, start.record.signing) == ("", before.record.signing)


def test_a_server_that_lost_its_root(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    before = settled(client)
    name = client.simulator.ids[2]
    client.simulator.members[name] = client.simulator.member(name, root=bytes(32))
    key = blob(client).header.key_id
    start = check(client, before, "seal.equivocation", "", same=False)
    assert f"member {name.hex()[:16]} gives another contribution" in caplog.text
    assert blob(client).header.key_id != key
    assert client.boot().record.signing == start.record.signing


def test_a_server_that_lost_its_table(client: Client) -> None:
    before = settled(client)
    name = client.simulator.ids[0]
    client.simulator.tables[name].kept = type(client.simulator.tables[name].kept)()
    check(client, before, "seal.behind", "", same=True)


def test_a_server_that_refuses(client: Client) -> None:
    settled(client)

    def no(*_: object) -> object:
        raise SealRefused("the image is retired", rule="retired")

    client.simulator.validate = no
    before = client.path.read_bytes()
    with pytest.raises(SealRefused) as caught:
        client.boot()
    assert caught.value.rule == "retired"
    client.close()
    assert client.path.read_bytes() == before


def test_a_later_copy_fences_this_one(client: Client, tmp_path: Path) -> None:
    start = settled(client)
    twin = Client(tmp_path / "twin", client.simulator)
    twin.path.write_bytes(client.path.read_bytes())
    twin.epoch = client.epoch
    assert twin.boot().ring is not None
    with refused(Shutdown, "fenced"):
        client.open_epoch(start)
    twin.close()


@pytest.mark.parametrize("number", [3, 4])
def test_of_two_that_opened_one_seal_one_goes_on(
    client: Client, tmp_path: Path, number: int
) -> None:
    """Whether or not there is a new list, and so a new key to be made."""
    settled(client)
    client.list = client.simulator.list_number = number
    client.close()
    twin = Client(tmp_path / "twin", client.simulator)
    twin.path.write_bytes(client.path.read_bytes())
    twin.epoch, twin.list = client.epoch, number
    resumed = SealedState._resumed
    begun: list[Start] = []

    async def after_the_twin(state: SealedState, *found: object) -> object:
        if state is client.state:
            begun.append(await twin.start())
        return await resumed(state, *found)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SealedState, "_resumed", after_the_twin)
        with refused(Shutdown, "fenced"):
            client.boot()
    assert begun[0].ring is not None
    twin.close()


def test_a_crash_between_the_disk_and_the_servers(client: Client) -> None:
    """The blob is on the disk, and no server knows it: it is taken, and they are told."""
    before = settled(client)
    client.crash = 1
    with pytest.raises(Crash):
        client.open_epoch(before)
    start = client.boot()
    assert start.rule == ""
    assert start.ring is not None
    assert {one.version for one in client.simulator.known(client.node)} == {4}


def test_a_new_list_has_a_new_key(client: Client) -> None:
    start = settled(client)
    old = blob(client).header
    client.list = client.simulator.list_number = 4
    client.open_epoch(start)
    new = blob(client).header
    assert (old.list_number, new.list_number) == (3, 4)
    assert new.key_id != old.key_id
    assert client.boot().ring is not None
