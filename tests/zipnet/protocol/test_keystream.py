"""The cipher's self-test at start: what it passes over, and when it gives up."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.zipnet.protocol.rounds import digest, refused
from zipnet.errors import GuardRefused
from zipnet.protocol.pads import keystream, keystream_xor, xor_by_copy, xor_in_place


def test_the_cipher_works_in_place_here() -> None:
    assert keystream_xor() is xor_in_place


def reads_what_it_wrote(keys: Sequence[bytes], buffer: memoryview) -> None:
    """A cipher that spoils its input: the second block depends on the output of the first."""
    xor_in_place(keys, buffer)
    for at in range(16, len(buffer)):
        buffer[at] ^= buffer[at - 16]


def refuses_overlap(keys: Sequence[bytes], buffer: memoryview) -> None:
    raise ValueError("input and output overlap")


def writes_beyond(keys: Sequence[bytes], buffer: memoryview) -> None:
    xor_in_place(keys, buffer)
    whole = buffer.obj
    assert isinstance(whole, bytearray)
    whole[-1] ^= 1


def first_key_only(keys: Sequence[bytes], buffer: memoryview) -> None:
    xor_in_place(keys[:1], buffer)


def overwrites(keys: Sequence[bytes], buffer: memoryview) -> None:
    buffer[:] = bytes(len(buffer))
    xor_in_place(keys, buffer)


def wrong_only_when_long(keys: Sequence[bytes], buffer: memoryview) -> None:
    xor_in_place(keys, buffer)
    if len(buffer) > 4096:
        buffer[4096] ^= 1


BROKEN = [
    reads_what_it_wrote,
    refuses_overlap,
    writes_beyond,
    first_key_only,
    overwrites,
    wrong_only_when_long,
]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_broken_cipher_is_passed_over(broken: Any) -> None:
    chosen = keystream_xor((broken, xor_by_copy))
    assert chosen is xor_by_copy
    keys = [digest("a"), digest("b"), digest("c")]
    content = bytes(i % 253 for i in range(777))
    buffer = bytearray(content)
    chosen(keys, memoryview(buffer))
    for key in keys:
        buffer = bytearray(a ^ b for a, b in zip(buffer, keystream(key, 777), strict=True))
    assert buffer == content


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_without_a_right_cipher_nothing_is_sealed(broken: Any) -> None:
    with refused(GuardRefused, "keystream"):
        keystream_xor((broken, broken))


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=70), st.integers(0, 300))
def test_in_place_and_by_copy_agree(keys: list[bytes], size: int) -> None:
    one, other = bytearray(size), bytearray(size)
    xor_in_place(keys, memoryview(one))
    xor_by_copy(keys, memoryview(other))
    assert one == other
