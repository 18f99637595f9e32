"""Any-trust sealing between nodes and members: what one honest member is enough for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attestation.errors import (
    PolicyError,
    SealError,
    SealFormatError,
    SealRefused,
    SealUnavailable,
)
from attestation.seal.committee import Committee
from attestation.seal.committee_format import (
    MAX_DATA,
    MAX_NUMBER,
    NONCE_ASK,
    NOTHING,
    Asked,
    Blob,
    Op,
    Released,
)
from attestation.seal.committee_member import Known, MemoryTable
from tests.attestation.measure.support import refused as rejected
from tests.attestation.seal.committee_simulator import (
    Crash,
    MemoryDisk,
    Node,
    Simulator,
    names,
    refused,
    run,
    sealed,
)
from tests.attestation.tickets import DEPLOYMENT


@pytest.mark.parametrize("size", [1, 2, 5, 64])
def test_what_was_sealed_opens(size: int) -> None:
    simulator, node = sealed(size)
    sealer = node.boot()
    assert run(sealer.open()) == b"1"
    for data in (b"", b"\0", bytes(MAX_DATA)):
        run(sealer.update(data))
        again = node.boot()
        assert run(again.open()) == data
        sealer = again
    assert sealer.version == 4
    assert {known.version for known in simulator.known(node)} == {4}


def test_a_whole_exchange_takes_one_ticket_and_one_nonce_of_each_member() -> None:
    simulator, node = sealed()
    simulator.requests.clear()
    run(node.boot().open())
    assert len({asked.raw for asked in simulator.requests}) == 1
    assert len(simulator.requests) == len(simulator.ids)
    assert simulator.requests[0].request.op is Op.OPEN


def test_an_empty_disk() -> None:
    refused(Node(Simulator()).boot().open(), "seal.absent")
    refused(Node(Simulator()).boot().unsafe_open_older(), "seal.absent")
    refused(Node(Simulator()).boot().update(b""), "seal.closed")


def test_too_much_data_changes_nothing() -> None:
    _, node = sealed()
    sealer = node.boot()
    run(sealer.open())
    before = node.disk.raw
    refused(sealer.update(bytes(MAX_DATA + 1)), "seal.size")
    assert node.disk.raw == before
    run(sealer.update(b"small"))
    assert run(node.boot().open()) == b"small"


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_a_missing_member_is_named_and_nothing_opens(cut: int) -> None:
    simulator, node = sealed()
    gone = simulator.ids[cut]
    sealer = node.boot()
    run(sealer.open())
    simulator.down = {gone}
    for attempt in (node.boot().open(), node.boot().create(b"", 3), sealer.update(b"2")):
        refused(attempt, "seal.members", gone, kind=SealUnavailable)
    simulator.clear()
    # What was written and not committed is the newest.
    assert run(node.boot().open()) == b"2"


def test_all_missing_members_are_named() -> None:
    simulator, node = sealed()
    simulator.down = set(simulator.ids[1:])
    refused(node.boot().open(), "seal.members", *simulator.ids[1:], kind=SealUnavailable)


def test_a_member_that_goes_between_nonce_and_answer() -> None:
    simulator, node = sealed()
    gone = simulator.ids[0]

    def leave(member: bytes, raw: bytes, answer: bytes) -> bytes:
        simulator.down = {gone}
        return answer

    simulator.change = leave
    refused(node.boot().open(), "seal.members", gone, kind=SealUnavailable)


# Older copies.


@pytest.mark.parametrize("honest", [0, 1, 4])
def test_one_honest_member_sees_a_rollback(honest: int) -> None:
    simulator, node = sealed(5, versions=2)
    old, past = node.disk.raw, simulator.known(node)[0]
    sealer = node.boot()
    run(sealer.open())
    run(sealer.update(b"3"))
    node.disk.raw = old
    for number, member in enumerate(simulator.ids):
        if number != honest:
            # All of these say what they would have said before.
            simulator.tables[member].lie = lambda known: replace(
                known, version=past.version, digest=past.digest
            )
    refused(node.boot().open(), "seal.rollback", simulator.ids[honest])


def test_a_lie_about_a_newer_version_costs_the_data_and_no_more() -> None:
    simulator, node = sealed(versions=2)
    liar = simulator.ids[1]
    simulator.tables[liar].lie = lambda known: replace(known, version=9, digest=b"\x09" * 32)
    refused(node.boot().open(), "seal.rollback", liar)
    sealer = node.boot()
    assert run(sealer.unsafe_open_older()) == b"2"
    run(sealer.update(b"3"))
    assert {known.version for known in simulator.known(node)} == {10}
    assert run(node.boot().open()) == b"3"


def test_a_member_that_confirms_something_else() -> None:
    simulator, node = sealed()
    sealer = node.boot()
    run(sealer.open())
    liar = simulator.ids[1]

    def confirm(member: bytes, raw: bytes, answer: bytes) -> bytes:
        if member != liar or raw == NONCE_ASK:
            return answer
        asked = Asked.decode(raw)
        box = simulator.members[liar]._box(asked, Released(NOTHING, 2, b"\x02" * 32, 2))
        return simulator.members[liar]._signed(raw, box)

    simulator.change = confirm
    refused(sealer.update(b"2"), "seal.commit", liar)
    simulator.clear()
    run(sealer.update(b"3"))
    assert run(node.boot().open()) == b"3"


def test_an_older_copy_opens_by_its_unsafe_name_and_goes_on_from_the_newest() -> None:
    simulator, node = sealed(versions=2)
    old = node.disk.raw
    sealer = node.boot()
    run(sealer.open())
    run(sealer.update(b"3"))
    run(sealer.update(b"4"))
    newest = node.disk.raw
    node.disk.raw = old
    sealer = node.boot()
    refused(sealer.open(), "seal.rollback")
    refused(sealer.update(b"not opened"), "seal.closed")
    assert run(sealer.unsafe_open_older()) == b"2"
    run(sealer.update(b"5"))
    assert {known.version for known in simulator.known(node)} == {5}
    assert run(node.boot().open()) == b"5"
    node.disk.raw = newest
    refused(node.boot().open(), "seal.rollback")


def test_a_member_that_has_forgotten_is_named_and_a_new_key_mends_it() -> None:
    simulator, node = sealed(versions=3)
    lost = simulator.ids[2]
    sealer = node.boot()
    run(sealer.open())
    simulator.tables[lost].kept = MemoryTable()
    refused(sealer.update(b"4"), "seal.behind", lost)
    refused(node.boot().open(), "seal.behind", lost)
    sealer = node.boot()
    run(sealer.create(b"new", 3))
    assert {known.version for known in simulator.known(node)} == {5}
    run(sealer.update(b"newer"))
    assert run(node.boot().open()) == b"newer"


def test_a_new_key_fences_off_what_the_old_one_sealed() -> None:
    simulator, node = sealed(versions=2)
    old = node.disk.raw
    run(node.boot().create(b"anew", 3))
    assert run(node.boot().open()) == b"anew"
    assert Blob.parse(node.disk.raw or b"").header.key_id != Blob.parse(old or b"").header.key_id
    node.disk.raw = old
    refused(node.boot().open(), "seal.rollback", *simulator.ids)


# Other data of the same version.


def test_a_fork_is_refused() -> None:
    simulator, node = sealed()
    left = node.boot()
    run(left.open())
    twin = node.clone()
    node.disk.fail = "after"
    with pytest.raises(Crash):
        run(left.update(b"left"))
    right = twin.boot()
    run(right.open())
    run(right.update(b"right"))
    # Both are version 2, and only one was committed.
    refused(node.boot().open(), "seal.fork", *simulator.ids)
    assert run(twin.boot().open()) == b"right"
    assert run(node.boot().unsafe_open_older()) == b"left"


def test_one_honest_member_sees_a_fork() -> None:
    simulator, node = sealed()
    twin, sealer = node.clone(), node.boot()
    run(sealer.open())
    node.disk.fail = "after"
    with pytest.raises(Crash):
        run(sealer.update(b"never committed"))
    other = twin.boot()
    run(other.open())
    run(other.update(b"used"))
    honest = simulator.ids[1]
    for member in set(simulator.ids) - {honest}:
        # They would take the other version 2 for the one that follows what they know.
        simulator.tables[member].lie = lambda known: replace(known, version=1)
    error = refused(node.boot().open(), "seal.fork", honest)
    assert names(simulator.ids[0]) not in error.message


def test_every_bit_of_a_blob_counts() -> None:
    _, node = sealed()
    raw = node.disk.raw or b""
    for at in range(0, len(raw), 7):
        node.disk.raw = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        with pytest.raises(SealError) as caught:
            run(node.boot().open())
        assert caught.value.rule in {
            *("seal.damaged", "seal.foreign", "seal.members", "seal.fork", "seal.list"),
            "seal.behind",
        }, (at, caught.value.diagnostics())
    node.disk.raw = raw[:-1]
    refused(node.boot().open(), "seal.damaged", kind=SealFormatError)


# Where a blob belongs.


def test_a_blob_of_another_instance_or_deployment() -> None:
    simulator, node = sealed()
    stranger = Node(simulator, seed=b"\x22" * 32, disk=MemoryDisk(node.disk.raw))
    refused(stranger.boot().open(), "seal.foreign")
    refused(stranger.boot().unsafe_open_older(), "seal.foreign")
    blob = Blob.parse(node.disk.raw or b"")
    node.disk.raw = replace(blob, header=replace(blob.header, deployment=bytes(32))).encode()
    refused(node.boot().open(), "seal.foreign")
    assert not simulator.refusals


def test_a_blob_of_another_committee() -> None:
    simulator, node = sealed(4)
    blob = Blob.parse(node.disk.raw or b"")
    for members, name in (
        (blob.header.members[:-1], simulator.ids[-1]),
        ((*blob.header.members, (b"\xff" * 32, bytes(32))), b"\xff" * 32),
    ):
        node.disk.raw = replace(blob, header=replace(blob.header, members=members)).encode()
        for attempt in (node.boot().open(), node.boot().unsafe_open_older()):
            error = refused(attempt, "seal.members")
            assert names(name) in error.got
    assert not simulator.refusals


def test_instances_don_t_share_keys_or_counts() -> None:
    simulator = Simulator()
    nodes = [Node(simulator, seed=bytes([seed]) * 32) for seed in (1, 2)]
    for node in nodes:
        run(node.boot().create(node.seed, 3))
    run(nodes[0].boot().open())
    for node in nodes:
        assert run(node.boot().open()) == node.seed
    first, second = (Blob.parse(node.disk.raw or b"").header for node in nodes)
    assert not {c for _, c in first.members} & {c for _, c in second.members}


def test_a_version_beyond_all() -> None:
    simulator, node = sealed()
    liar = simulator.ids[0]
    simulator.tables[liar].lie = lambda known: replace(known, version=MAX_NUMBER)
    refused(node.boot().create(b"", 3), "seal.version")


def test_committees_that_make_no_sense() -> None:
    good = {bytes([n]) * 32: bytes(32) for n in range(65)}
    for deployment, keys in (
        (DEPLOYMENT, {}),
        (DEPLOYMENT, good),
        (DEPLOYMENT, {b"a": bytes(32)}),
        (DEPLOYMENT, {bytes(32): b"a"}),
        (b"", {bytes(32): bytes(32)}),
    ):
        with rejected(PolicyError, "seal.committee"):
            Committee(deployment, bytes(32), keys)


def test_secrets_are_in_no_repr() -> None:
    simulator, node = sealed()
    sealer = node.boot()
    run(sealer.open())
    run(sealer.update(b"hunter2"))
    shown = f"{sealer!r} {sealer._opened!r} {simulator.members!r} {simulator.requests[-1]!r}"
    assert "hunter2" not in shown
    for secret in (*simulator.roots.values(), sealer._opened.key if sealer._opened else b""):
        assert repr(secret)[2:-1] not in shown


def test_a_table_never_drops_an_instance() -> None:
    table = MemoryTable(1)
    table.put(b"a", Known(1, bytes(32), 1))
    table.put(b"a", Known(2, bytes(32), 1))
    with rejected(SealRefused, "seal.table-full"):
        table.put(b"b", Known())
    assert table.get(b"a") == Known(2, bytes(32), 1)
    assert table.get(b"b") is None
