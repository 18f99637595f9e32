"""A server's sum of pads: equal to the plain XOR for every crowd, in any portions, erased."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.zipnet.protocol.rounds import (
    BASE,
    SERVER,
    SHAPE,
    both_ends,
    digest,
    header,
    refused,
)
from zipnet.errors import GuardRefused, Refused, WireFormatError
from zipnet.protocol.pads import Pair, keystream, xor_in_place
from zipnet.protocol.precompute import RoundPads, advance_all
from zipnet.protocol.roster import Resume, bitmap

HEADER = header()


def pairs_of(count: int) -> list[Pair]:
    found = [digest(f"client {i}") for i in range(count)]
    return [Pair(client, SERVER.id, BASE, digest(client.hex())) for client in sorted(found)]


def plain(pairs: Sequence[Pair], chosen: Sequence[int]) -> bytes:
    """The sum by the definition, from pairs that still stand at the round."""
    total = bytearray(SHAPE.payload_bytes)
    for place in chosen:
        keys = pairs[place].keys(HEADER)
        pad = keystream(keys.message, SHAPE.message_bytes) + keystream(
            keys.schedule, SHAPE.schedule_bytes
        )
        total = bytearray(a ^ b for a, b in zip(total, pad, strict=True))
    return bytes(total)


@given(st.data(), st.integers(0, 40))
def test_partial_is_the_sum_over_the_participants(data: st.DataObject, count: int) -> None:
    chosen = sorted(data.draw(st.sets(st.integers(0, max(count - 1, 0)), max_size=count)))
    pairs = pairs_of(count)
    expected = plain(pairs, chosen)
    pads = RoundPads.prepare(HEADER, pairs, xor_in_place)
    assert pads.partial(bitmap(chosen, count)) == expected
    assert pads.partial(bitmap(chosen, count)) == expected
    assert all(pair.round == BASE + 1 for pair in pairs)


@pytest.mark.parametrize("present", [0, 1, 4, 5, 9, 10])
def test_the_smaller_set_is_summed(present: int) -> None:
    used: list[int] = []

    def counting(keys: Sequence[bytes], buffer: memoryview) -> None:
        used.append(len(keys))
        xor_in_place(keys, buffer)

    pads = RoundPads.prepare(HEADER, pairs_of(10), counting)
    assert used == [10, 10]
    pads.partial(bitmap(range(present), 10))
    assert sum(used[2:]) == 2 * min(present, 10 - present)


@given(st.lists(st.integers(1, 9), max_size=6), st.booleans())
def test_work_in_portions(portions: list[int], finish: bool) -> None:
    pairs, whole = pairs_of(20), pairs_of(20)
    expected = RoundPads.prepare(HEADER, whole, xor_in_place).partial(bitmap(range(18), 20))
    pads = RoundPads(HEADER, pairs, xor_in_place)
    assert all(pair.round == BASE for pair in pairs)
    done = 0
    for portion in portions:
        left = pads.work(portion)
        done = min(20, done + portion)
        assert left == (done < 20)
        assert [pair.round - BASE for pair in pairs] == [1] * done + [0] * (20 - done)
    while finish and pads.work(3):
        pass
    assert pads.partial(bitmap(range(18), 20)) == expected
    assert [pair.export() for pair in pairs] == [pair.export() for pair in whole]


def test_a_client_and_its_server_cancel() -> None:
    ends = [both_ends(name) for name in ("a", "b", "c")]
    ends.sort(key=lambda each: each[0].client)
    payload = bytearray(b"\x5a" * SHAPE.payload_bytes)
    for mine, _ in ends[:2]:
        mine.keys(HEADER).apply(xor_in_place, payload, SHAPE)
    pads = RoundPads.prepare(HEADER, [theirs for _, theirs in ends], xor_in_place)
    partial = pads.partial(bitmap([0, 1], 3))
    assert bytes(a ^ b for a, b in zip(payload, partial, strict=True)) == b"\x5a" * len(payload)


def test_pairs_out_of_step_are_refused_before_any_steps() -> None:
    pairs = pairs_of(3)
    pairs[2].step()
    before = [pair.export() for pair in pairs]
    with refused(Refused, "ratchet.backward"):
        RoundPads.prepare(HEADER, pairs, xor_in_place)
    with refused(Refused, "ratchet.behind"):
        RoundPads.prepare(header(BASE + 1), pairs, xor_in_place)
    assert [pair.export() for pair in pairs] == before


def test_pairs_must_be_in_the_order_of_the_roster() -> None:
    pairs = pairs_of(3)
    for wrong in (pairs[::-1], [pairs[0], pairs[0]]):
        with refused(Refused, "roster.order"):
            RoundPads.prepare(HEADER, wrong, xor_in_place)
    assert all(pair.round == BASE for pair in pairs)


def test_a_round_is_prepared_once() -> None:
    pairs = pairs_of(3)
    RoundPads.prepare(HEADER, pairs, xor_in_place)
    with refused(Refused, "ratchet.backward"):
        RoundPads.prepare(HEADER, pairs, xor_in_place)


@pytest.mark.parametrize("bits", [b"", b"\1", b"\0\0\0", b"\0\4", b"\xff\xff"], ids=bytes.hex)
def test_a_wrong_bitmap_is_refused(bits: bytes) -> None:
    pairs = pairs_of(10)
    pads = RoundPads(HEADER, pairs, xor_in_place)
    with refused(WireFormatError, "bitmap"):
        pads.partial(bits)
    assert all(pair.round == BASE for pair in pairs)


def test_erase_overwrites_and_ends() -> None:
    pads = RoundPads.prepare(HEADER, pairs_of(3), xor_in_place)
    total, keys = pads._sum, pads._keys
    assert any(total)
    assert any(keys)
    pads.erase()
    assert not any(total)
    assert not any(keys)
    with refused(GuardRefused, "erased"):
        pads.partial(bitmap([0], 3))
    with refused(GuardRefused, "erased"):
        pads.work(1)


def test_nothing_shows_a_secret() -> None:
    pads = RoundPads.prepare(HEADER, pairs_of(1), xor_in_place)
    assert bytes(pads._keys).hex() not in repr(pads)


def test_advancing_all_equals_advancing_each() -> None:
    clients = [pair.client for pair in pairs_of(5)]
    nodes = [clients[1], SERVER.id, digest("stranger"), clients[3], clients[1], SERVER.id]
    resumes = [Resume(BASE + i // 2, node, digest(str(i))) for i, node in enumerate(nodes)]
    one, other = pairs_of(5), pairs_of(5)
    for goal in (BASE, BASE + 2, BASE + 2):
        advance_all(one, goal, resumes)
        for pair in other:
            pair.advance(goal, resumes)
    assert [pair.export() for pair in one] == [pair.export() for pair in other]
    assert len({pair.export()[9:13] for pair in one}) == 3
