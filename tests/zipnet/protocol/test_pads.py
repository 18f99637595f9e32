"""Pads: the pair, its ratchet, Resumes, erasure, saved state."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from tests.zipnet.protocol.rounds import (
    BASE,
    INSTANCE,
    SERVER,
    SHAPE,
    both_ends,
    digest,
    epoch_secret,
    header,
    member,
    refused,
)
from zipnet.errors import GuardRefused, Refused, WireFormatError
from zipnet.protocol.instance import Instance
from zipnet.protocol.pads import (
    MAX_SKIP,
    PAIR_BYTES,
    PadKeys,
    Pair,
    exchange,
    keystream,
    pair_secret,
    xor_in_place,
)
from zipnet.protocol.roster import Member, Resume

CLIENT = member("client")
STRANGER = digest("id of a stranger")


def pair() -> Pair:
    return both_ends()[0]


def resume(round_number: int, node: bytes = CLIENT.id, nonce: str = "nonce") -> Resume:
    return Resume(round_number, node, digest(nonce))


def pads(at: Pair) -> PadKeys:
    """The keys at whatever round the pair stands."""
    return at.keys(header(at.round))


def advanced(*calls: tuple[int, Sequence[Resume]]) -> Pair:
    result = pair()
    for round_number, resumes in calls:
        result.advance(round_number, resumes)
    return result


# The pair.


def test_both_ends_have_the_same_pads() -> None:
    mine, theirs = both_ends()
    assert pads(mine) == pads(theirs)
    assert (mine.client, mine.server, mine.round) == (CLIENT.id, SERVER.id, BASE)


@pytest.mark.parametrize("small", [bytes(32), b"\1" + bytes(31)], ids=["zero", "one"])
def test_a_key_of_small_order_is_refused(small: bytes) -> None:
    with refused(Refused, "dh-zero"):
        exchange(epoch_secret("client"), small)
    with refused(Refused, "dh-zero"):
        pair_secret(
            INSTANCE.binding, epoch_secret("client"), CLIENT, Member(SERVER.id, small), BASE
        )


def test_a_secret_of_neither_end_is_refused() -> None:
    with refused(Refused, "pair.own-key"):
        pair_secret(INSTANCE.binding, epoch_secret("other"), CLIENT, SERVER, BASE)


CHANGES: dict[str, dict[str, Any]] = {
    "binding": {"binding": digest("other")},
    "client id": {"client": replace(CLIENT, id=digest("other"))},
    "server id": {"server": replace(SERVER, id=digest("other"))},
    "server key": {"server": replace(SERVER, key=member("other").key)},
    "base round": {"base_round": BASE - 1},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_pair_is_bound_to_everything(change: dict[str, Any]) -> None:
    given_fields: dict[str, Any] = {
        "binding": INSTANCE.binding,
        "own": epoch_secret("client"),
        "client": CLIENT,
        "server": SERVER,
        "base_round": BASE,
    }
    one = pair_secret(**given_fields)
    other = pair_secret(**{**given_fields, **change})
    other.advance(BASE, [])
    # The same header and ids for both, so that only the secret differs.
    other.client, other.server = one.client, one.server
    assert not {pads(one).message, pads(one).schedule} & {
        pads(other).message,
        pads(other).schedule,
    }


HEADERS: dict[str, dict[str, Any]] = {
    "shape": {"shape": replace(SHAPE, num_sched_slots=10)},
    "servers": {"servers": tuple(sorted((SERVER.id, digest("another"))))},
    "roster": {"roster_hash": digest("other")},
    "schedule": {"schedule_hash": digest("other")},
    "epoch": {"epoch": 1},
    "generation": {"instance": Instance(INSTANCE.deployment_id, digest("other"))},
}


@pytest.mark.parametrize("change", HEADERS.values(), ids=HEADERS)
def test_another_header_of_the_same_round_has_unrelated_pads(change: dict[str, Any]) -> None:
    at = pair()
    one, other = at.keys(header()), at.keys(header(**change))
    assert len({one.message, one.schedule, other.message, other.schedule}) == 4


def test_apply_is_its_own_inverse_and_covers_both_vectors() -> None:
    keys = pads(pair())
    content = bytes(range(SHAPE.payload_bytes % 256)) + bytes(SHAPE.payload_bytes // 256 * 256)
    payload = bytearray(content)
    keys.apply(xor_in_place, payload, SHAPE)
    both = keystream(keys.message, SHAPE.message_bytes) + keystream(
        keys.schedule, SHAPE.schedule_bytes
    )
    assert payload == bytes(a ^ b for a, b in zip(content, both, strict=True))
    keys.apply(xor_in_place, memoryview(payload), SHAPE)
    assert payload == content


@pytest.mark.parametrize("size", [0, SHAPE.payload_bytes - 1, SHAPE.payload_bytes + 1])
def test_apply_refuses_another_size(size: int) -> None:
    payload = bytearray(size)
    with refused(Refused, "payload-size"):
        pads(pair()).apply(xor_in_place, payload, SHAPE)
    assert payload == bytes(size)


# The ratchet.


def test_a_skipped_round_steps_both_sides() -> None:
    mine, theirs = both_ends()
    mine.step()
    mine.step()
    theirs.advance(BASE + 2, [])
    assert pads(mine) == pads(theirs)


@pytest.mark.parametrize("rounds", [1, 2, 17, MAX_SKIP])
def test_catching_up_equals_stepping(rounds: int) -> None:
    one, other = pair(), pair()
    one.advance(BASE + rounds, [])
    for _ in range(rounds):
        other.step()
    assert one.round == other.round == BASE + rounds
    assert one.export() == other.export()


def test_every_round_has_its_own_keys() -> None:
    at = pair()
    seen = set()
    for _ in range(20):
        seen |= {pads(at).message, pads(at).schedule}
        at.step()
    assert len(seen) == 40


def test_a_far_round_is_refused_and_changes_nothing() -> None:
    at = pair()
    before = at.export()
    with refused(Refused, "ratchet.max-skip"):
        at.advance(BASE + MAX_SKIP + 1, [resume(BASE)])
    assert at.export() == before
    at.advance(BASE + MAX_SKIP, [])


def test_no_way_back() -> None:
    at = pair()
    at.step()
    before = at.export()
    with refused(Refused, "ratchet.backward"):
        at.keys(header(BASE))
    with refused(Refused, "ratchet.backward"):
        at.advance(BASE, [])
    assert at.export() == before


def test_a_round_that_was_not_reached_has_no_keys() -> None:
    with refused(Refused, "ratchet.behind"):
        pair().keys(header(BASE + 1))


# Resumes.


@pytest.mark.parametrize("node", [CLIENT.id, SERVER.id], ids=["client", "server"])
@pytest.mark.parametrize("at", [BASE, BASE + 1, BASE + 3])
def test_both_ends_mix_the_same_list(node: bytes, at: int) -> None:
    mine, theirs = both_ends()
    listed = [resume(at, node)]
    mine.advance(BASE + 3, listed)
    for round_number in range(BASE, BASE + 4):
        theirs.advance(round_number, listed)
    assert mine.export() == theirs.export()
    assert pads(mine) == pads(theirs)


def test_a_clone_that_missed_the_resume_has_unrelated_pads() -> None:
    mine, clone = advanced((BASE + 2, [resume(BASE + 1)])), advanced((BASE + 2, []))
    assert len({*keys_of(mine), *keys_of(clone)}) == 4
    before = clone.export()
    with refused(Refused, "resume.missed"):
        clone.advance(BASE + 2, [resume(BASE + 1)])
    assert clone.export() == before


def keys_of(at: Pair) -> tuple[bytes, bytes]:
    return pads(at).message, pads(at).schedule


def test_the_later_of_two_clones_fences_the_earlier() -> None:
    first, second = resume(BASE, nonce="first"), resume(BASE + 1, nonce="second")
    earlier = advanced((BASE + 1, [first]))
    later = advanced((BASE + 1, [first, second]))
    assert len({*keys_of(earlier), *keys_of(later)}) == 4


def test_the_order_in_a_round_matters() -> None:
    one, two = resume(BASE, nonce="one"), resume(BASE, SERVER.id, "two")
    assert keys_of(advanced((BASE, [one, two]))) != keys_of(advanced((BASE, [two, one])))


def test_the_round_of_a_resume_matters() -> None:
    early, late = (advanced((BASE + 2, [resume(at, nonce="same")])) for at in (BASE, BASE + 1))
    assert keys_of(early) != keys_of(late)


def test_the_resume_of_another_node_changes_nothing() -> None:
    assert (
        advanced((BASE + 2, [resume(BASE, STRANGER)])).export() == advanced((BASE + 2, [])).export()
    )


def test_a_resume_of_a_later_round_waits() -> None:
    listed = [resume(BASE + 3)]
    assert advanced((BASE + 2, listed)).export() == advanced((BASE + 2, [])).export()
    assert (
        advanced((BASE + 2, listed), (BASE + 3, listed)).export()
        == advanced((BASE + 3, listed)).export()
    )


def test_the_same_call_again_changes_nothing() -> None:
    listed = [resume(BASE), resume(BASE + 1, STRANGER), resume(BASE + 2, SERVER.id)]
    at = pair()
    for round_number in (BASE, BASE + 2):
        at.advance(round_number, listed)
        before = at.export()
        at.advance(round_number, listed)
        assert at.export() == before


def test_a_longer_list_adds_the_new_ones_only() -> None:
    one, two = resume(BASE, nonce="one"), resume(BASE, SERVER.id, "two")
    twice = advanced((BASE, [one]), (BASE, [one, two]))
    assert twice.export() == advanced((BASE, [one, two])).export()


def test_a_shorter_list_is_refused() -> None:
    at = advanced((BASE, [resume(BASE)]))
    before = at.export()
    for listed in ([], [resume(BASE, STRANGER)]):
        with refused(Refused, "resume.missing"):
            at.advance(BASE + 1, listed)
    assert at.export() == before


@pytest.mark.parametrize(
    "listed",
    [[resume(BASE - 1)], [resume(BASE + 2), resume(BASE + 1)]],
    ids=["before the base round", "out of order"],
)
def test_a_resume_that_came_too_late_is_refused(listed: list[Resume]) -> None:
    at = pair()
    before = at.export()
    with refused(Refused, "resume.missed"):
        at.advance(BASE + 3, listed)
    assert at.export() == before


logs = st.lists(
    st.tuples(st.integers(0, 12), st.sampled_from([CLIENT.id, SERVER.id, STRANGER])), max_size=8
).map(
    lambda found: [
        resume(BASE + at, node, str(i))
        for i, (at, node) in enumerate(sorted(found, key=lambda each: each[0]))
    ]
)


@given(logs, st.integers(0, 12), st.lists(st.tuples(st.integers(0, 12), st.booleans())))
def test_any_way_to_a_round_gives_the_same_keys(
    log: list[Resume], goal: int, stops: list[tuple[int, bool]]
) -> None:
    """A stop sees the log as far as its own round, or (a client that fetches late) all of it."""
    direct, wandering = both_ends()
    direct.advance(BASE + goal, log)
    for stop, sees_all in sorted(stops):
        if stop > goal:
            break
        known = [each for each in log if sees_all or each.round <= BASE + stop]
        wandering.advance(BASE + stop, known)
        wandering = Pair.restore(wandering.export())
    wandering.advance(BASE + goal, log)
    assert wandering.export() == direct.export()
    assert pads(wandering) == pads(direct)


# Secrets and saved state.


def test_nothing_shows_a_secret() -> None:
    at = pair()
    secret = at.export()[-32:]
    keys = pads(at)
    shown = repr(at) + repr(keys) + str(at)
    for value in (secret, keys.message, keys.schedule):
        assert value.hex() not in shown
        assert repr(value)[2:-1] not in shown


def test_step_overwrites_the_secret() -> None:
    at = pair()
    held = at._secret
    before = bytes(held)
    at.step()
    assert at._secret is held
    assert bytes(held) != before
    at.advance(BASE + 5, [resume(BASE + 2)])
    assert at._secret is held


def test_erase_overwrites_the_secret() -> None:
    at = pair()
    held = at._secret
    for _ in range(2):
        at.erase()
        assert held == bytes(32)
    for use in (at.step, at.export, lambda: at.advance(BASE, []), lambda: at.keys(header())):
        with refused(GuardRefused, "erased"):
            use()


def test_a_pair_is_small() -> None:
    at = Pair.restore(pair().export())
    parts = [at, *(getattr(at, name) for name in Pair.__slots__)]
    assert sum(sys.getsizeof(part) for part in parts) <= 500


def test_saved_state_goes_on_alike() -> None:
    listed = [resume(BASE), resume(BASE + 1, SERVER.id)]
    at = advanced((BASE + 1, listed))
    raw = at.export()
    assert len(raw) == PAIR_BYTES
    again = Pair.restore(raw)
    assert again.export() == raw
    assert (again.client, again.server, again.round) == (at.client, at.server, at.round)
    for each in (at, again):
        each.advance(BASE + 4, listed)
    assert pads(again) == pads(at)


@given(st.binary(max_size=PAIR_BYTES + 2))
def test_restore_takes_nothing_else(raw: bytes) -> None:
    for given_bytes in (raw, b"\1" + raw):
        with suppress(WireFormatError):
            assert Pair.restore(given_bytes).export() == given_bytes


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda raw: raw[:-1], "pair.truncated"),
        (lambda raw: raw + b"\0", "pair.size"),
        (lambda raw: b"\2" + raw[1:], "pair.version"),
        (lambda raw: b"\0" + raw[1:], "pair.version"),
        (lambda raw: raw[:1] + b"\xff" + raw[2:], "pair.number"),
        (lambda raw: raw[:0], "pair.truncated"),
    ],
    ids=["short", "long", "newer", "older", "round", "empty"],
)
def test_restore_says_what_is_wrong(change: Any, rule: str) -> None:
    raw = pair().export()
    with pytest.raises(WireFormatError) as caught:
        Pair.restore(change(raw))
    assert caught.value.rule == rule
    assert raw[-32:].hex()[:16] not in caught.value.diagnostics()


def test_generated_keys_agree() -> None:
    own, peer = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    client, server = (
        Member(digest(name), key.public_key().public_bytes_raw())
        for name, key in (("c", own), ("s", peer))
    )
    one, other = (pair_secret(INSTANCE.binding, key, client, server, BASE) for key in (own, peer))
    assert one.export() == other.export()
