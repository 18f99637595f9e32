"""The order of steps: clones, crashes around every step, and what goes on afterwards."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attestation.errors import (
    SealFormatError,
    SealUnavailable,
)
from attestation.seal.committee_format import (
    NONCE_ASK,
)
from tests.attestation.seal.committee_simulator import (
    Crash,
    answers_changed,
    refused,
    run,
    sealed,
)


def test_of_two_clones_the_later_fences_the_earlier() -> None:
    simulator, node = sealed()
    twin = node.clone()
    earlier, later = node.boot(), twin.boot()
    run(earlier.open())
    run(later.open())
    refused(earlier.update(b"earlier"), "seal.fenced", simulator.ids[0])
    run(later.update(b"later"))
    refused(earlier.update(b"again"), "seal.fenced", simulator.ids[0])
    assert {known.version for known in simulator.known(node)} == {2}


def test_one_honest_member_fences() -> None:
    simulator, node = sealed()
    twin = node.clone()
    earlier = node.boot()
    run(earlier.open())
    run(twin.boot().open())
    honest = simulator.ids[2]
    for member in simulator.ids[:2]:
        simulator.tables[member].lie = lambda known: replace(known, boots=2)
    refused(earlier.update(b"earlier"), "seal.fenced", honest)


def test_clones_that_start_a_member_apart_fence_each_other() -> None:
    simulator, node = sealed()
    first, second = node.boot(), node.clone().boot()
    run(first.open())
    simulator.down = set(simulator.ids[1:])
    refused(second.open(), "seal.members", kind=SealUnavailable)
    simulator.clear()
    # The second asked only for nonces: that fences nobody.
    run(first.update(b"2"))


@pytest.mark.parametrize(("fail", "data"), [("before", b"1"), ("after", b"2")])
def test_a_crash_around_the_write(fail: str, data: bytes) -> None:
    simulator, node = sealed()
    sealer = node.boot()
    run(sealer.open())
    node.disk.fail = fail
    with pytest.raises(Crash):
        run(sealer.update(b"2"))
    assert {known.version for known in simulator.known(node)} == {1}
    sealer = node.boot()
    assert run(sealer.open()) == data
    run(sealer.update(b"on"))
    assert run(node.boot().open()) == b"on"


@pytest.mark.parametrize("reached", [0, 1, 2])
def test_a_crash_while_the_members_are_told(reached: int) -> None:
    simulator, node = sealed(versions=2)
    sealer = node.boot()
    run(sealer.open())
    simulator.reaching = reached
    refused(sealer.update(b"3"), "seal.members", kind=SealUnavailable)
    simulator.clear()
    told = sorted(known.version for known in simulator.known(node))
    assert told == [2] * (3 - reached) + [3] * reached
    # The next boot finds the newest and tells the rest.
    assert run(node.boot().open()) == b"3"
    assert {known.version for known in simulator.known(node)} == {3}


def test_an_update_after_one_that_was_not_confirmed() -> None:
    simulator, node = sealed()
    sealer = node.boot()
    run(sealer.open())

    def lose(member: bytes, raw: bytes, answer: bytes) -> bytes:
        return answer if raw == NONCE_ASK or member != simulator.ids[0] else b""

    simulator.change = lose
    refused(sealer.update(b"2"), "seal.answer", kind=SealFormatError)
    assert {known.version for known in simulator.known(node)} == {2}
    simulator.clear()
    run(sealer.update(b"3"))
    assert run(node.boot().open()) == b"3"


def test_a_failed_start_leaves_nothing_open() -> None:
    simulator, node = sealed()
    sealer = node.boot()
    run(sealer.open())
    answers_changed(simulator, simulator.ids[0], lambda _: b"")
    refused(sealer.create(b"x", 3), "seal.answer", kind=SealFormatError)
    simulator.clear()
    refused(sealer.update(b"x"), "seal.closed")
    run(sealer.create(b"y", 3))
    assert run(node.boot().open()) == b"y"
