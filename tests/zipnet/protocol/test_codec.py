"""Reading and writing structs."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.zipnet.protocol.support import refused
from zipnet.errors import WireFormatError
from zipnet.protocol.codec import Reader, sized, text

PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=255)


def reader(raw: bytes) -> Reader:
    return Reader(raw, "thing", at_most=4096)


@given(st.integers(0, 255), st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1), st.booleans())
def test_numbers_are_big_endian(a: int, b: int, c: int, flag: bool) -> None:
    raw = a.to_bytes(1, "big") + b.to_bytes(2, "big") + c.to_bytes(4, "big") + bytes([flag])
    r = reader(raw)
    assert (r.u8(), r.u16(), r.u32(), r.flag()) == (a, b, c, flag)
    r.done()


@given(PRINTABLE, st.binary(max_size=600))
def test_texts_and_sized_bytes_come_back(words: str, value: bytes) -> None:
    r = reader(text(words) + sized(value, 2))
    assert (r.text(255), r.sized(2, 600)) == (words, value)
    r.done()


@pytest.mark.parametrize(
    ("raw", "read", "rule"),
    [
        (b"", Reader.u8, "truncated"),
        (b"\0", Reader.u16, "truncated"),
        (bytes(3), Reader.u32, "truncated"),
        (bytes(7), Reader.u64, "truncated"),
        (b"\x80" + bytes(7), Reader.u64, "number"),
        (b"\2", Reader.flag, "flag"),
        (b"\5abcd", lambda r: r.sized(1, 9), "truncated"),
        (b"\5abcde", lambda r: r.sized(1, 4), "length"),
        (b"\3\0\0\0", lambda r: r.many(1, 2, Reader.u8), "count"),
        (b"\3\0\0", lambda r: r.many(1, 3, Reader.u8), "truncated"),
        (b"\2a\n", lambda r: r.text(9), "text"),
        (b"\2a\x7f", lambda r: r.text(9), "text"),
        (b"\1\xe9", lambda r: r.text(9), "text"),
        (b"\3abc", lambda r: r.text(2), "length"),
        (b"ab", lambda r: r.expect("magic", b"ac"), "magic"),
        (b"a", lambda r: r.expect("magic", b"ac"), "truncated"),
        (b"ab", lambda r: (r.u8(), r.done()), "trailing"),
    ],
)
def test_what_is_not_read(raw: bytes, read: Callable[[Reader], object], rule: str) -> None:
    with refused(WireFormatError, f"thing.{rule}"):
        read(reader(raw))


def test_what_is_read_at_the_edge() -> None:
    r = reader(b"\x7f" + b"\xff" * 7 + b"\2\0\1" + b"\2a~")
    assert (r.u64(), r.many(1, 2, Reader.u8), r.text(2)) == (2**63 - 1, (0, 1), "a~")
    r.done()


def test_sizes_are_bounded_before_anything_is_read() -> None:
    Reader(bytes(8), "thing", at_most=8)
    with refused(WireFormatError, "thing.size"):
        Reader(bytes(9), "thing", at_most=8)
