"""Data of exactly one size, and what happens where a type breaks its promise."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipnet.datum import Blob, ShuffleDatum, bytes_datum, check_kind, decode_exact, encode_exact
from zipnet.errors import DatumRejected


@dataclass(frozen=True)
class Note:
    """The honest type."""

    TYPE_TAG: ClassVar[str] = "test.note"
    WIRE_SIZE: ClassVar[int] = 4

    value: int

    def encode(self) -> bytes:
        return self.value.to_bytes(4, "big")

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        return cls(int.from_bytes(raw, "big"))


def rule(call: Any, *arguments: Any) -> str:
    with pytest.raises(DatumRejected) as caught:
        call(*arguments)
    caught.value.diagnostics().encode()
    return caught.value.rule


def variant(**members: Any) -> type[Note]:
    return type("Variant", (Note,), members)


def raising(error: BaseException) -> Any:
    def call(*_: Any) -> Any:
        raise error

    return call


def test_round_trip() -> None:
    assert encode_exact(Note(7)) == b"\0\0\0\7"
    assert decode_exact(Note, b"\0\0\0\7") == Note(7)


@pytest.mark.parametrize("size", [0, 3, 5])
def test_other_sizes(size: int) -> None:
    assert rule(decode_exact, Note, bytes(size)) == "datum.size"
    kind = variant(encode=lambda _: bytes(size))
    assert rule(encode_exact, kind(1)) == "datum.size"


@pytest.mark.parametrize("error", [ValueError("x"), KeyError(1), RecursionError(), OSError()])
def test_any_exception_of_a_type(error: Exception) -> None:
    assert rule(decode_exact, variant(decode=raising(error)), bytes(4)) == "datum.decode"
    assert rule(encode_exact, variant(encode=raising(error))(1)) == "datum.encode"
    # Another person's text: only its kind goes into the message.
    with pytest.raises(DatumRejected, match=type(error).__name__):
        decode_exact(variant(decode=raising(error)), bytes(4))


def test_its_own_refusal_stands() -> None:
    error = DatumRejected("no", rule="mine")
    assert rule(decode_exact, variant(decode=raising(error)), bytes(4)) == "mine"
    assert rule(encode_exact, variant(encode=raising(error))(1)) == "mine"


def test_interrupts_pass() -> None:
    with pytest.raises(KeyboardInterrupt):
        decode_exact(variant(decode=raising(KeyboardInterrupt())), bytes(4))


def test_a_value_too_large() -> None:
    assert rule(encode_exact, Note(1 << 32)) == "datum.encode"


@pytest.mark.parametrize("raw", [None, "text", bytearray(4), memoryview(bytes(4))])
def test_encodings_that_are_no_bytes(raw: object) -> None:
    assert rule(encode_exact, variant(encode=lambda _: raw)(1)) == "datum.encode"


def test_decoding_to_another_type() -> None:
    assert rule(decode_exact, variant(decode=lambda _: Note(0)), bytes(4)) == "datum.decode"
    assert rule(decode_exact, variant(decode=lambda _: None), bytes(4)) == "datum.decode"


def test_two_encodings_of_one_value() -> None:
    class Loose(Note):
        @classmethod
        def decode(cls, raw: bytes) -> Self:
            return cls(raw[3])

    assert decode_exact(Loose, b"\0\0\0\7") == Loose(7)
    assert rule(decode_exact, Loose, b"\1\0\0\7") == "datum.canonical"
    assert rule(encode_exact, Loose(256)) == "datum.canonical"


@pytest.mark.parametrize("tag", ["", "x" * 65, "é", "a\n", "\x7f", 7, None, b"tag"])
def test_tags(tag: object) -> None:
    assert rule(check_kind, variant(TYPE_TAG=tag)) == "datum.type-tag"
    assert rule(encode_exact, variant(TYPE_TAG=tag)(1)) == "datum.type-tag"


@pytest.mark.parametrize("size", [0, -1, (1 << 20) + 1, True, 4.0, "4", None])
def test_sizes(size: object) -> None:
    assert rule(check_kind, variant(WIRE_SIZE=size)) == "datum.wire-size"
    assert rule(decode_exact, variant(WIRE_SIZE=size), bytes(4)) == "datum.wire-size"


def test_limits() -> None:
    for members in ({"TYPE_TAG": "~" * 64}, {"TYPE_TAG": " "}, {"WIRE_SIZE": 1 << 20}):
        check_kind(variant(**members))


# Plain bytes.


def test_blob() -> None:
    kind: type[ShuffleDatum] = bytes_datum(8)
    assert (kind.TYPE_TAG, kind.WIRE_SIZE) == ("zipnet.bytes", 8)
    assert encode_exact(bytes_datum(8)(b"abc")) == b"\0\3abc\0\0\0"
    assert encode_exact(Blob(b"")) == bytes(256)
    assert bytes_datum(8)(b"abc") == bytes_datum(8)(b"abc") != bytes_datum(9)(b"abc")


@given(st.integers(3, 300), st.data())
def test_blobs_round_trip(size: int, data: st.DataObject) -> None:
    kind = bytes_datum(size)
    content = data.draw(st.binary(max_size=size - 2))
    raw = encode_exact(kind(content))
    assert len(raw) == size
    assert decode_exact(kind, raw) == kind(content)


@given(st.binary(min_size=8, max_size=8))
def test_what_decodes_is_canonical(raw: bytes) -> None:
    kind = bytes_datum(8)
    if raw[0] or raw[1] > 6 or any(raw[2 + raw[1] :]):
        assert rule(decode_exact, kind, raw) == "datum.decode"
    else:
        assert encode_exact(decode_exact(kind, raw)) == raw


@pytest.mark.parametrize(
    "raw", [b"\0\7abcdef", b"\xff\xffabcdef", b"\0\3abc\0\0\1", b"\0\0\1\0\0\0\0\0"]
)
def test_blobs_that_are_none(raw: bytes) -> None:
    assert rule(decode_exact, bytes_datum(8), raw) == "datum.decode"


def test_content_that_does_not_fit() -> None:
    kind = bytes_datum(8)
    kind(b"abcdef")
    for content in (b"abcdefg", "abc", None, bytearray(2)):
        assert rule(kind, content) == "datum.content"
    large = bytes_datum(1 << 20)
    assert large.capacity() == 0xFFFF
    assert rule(large, bytes(1 << 16)) == "datum.content"
    assert decode_exact(large, encode_exact(large(b"\1" * 0xFFFF))).content == b"\1" * 0xFFFF


@pytest.mark.parametrize("size", [-1, 0, 1, 2, (1 << 20) + 1])
def test_sizes_without_content(size: int) -> None:
    assert rule(bytes_datum, size) == "datum.wire-size"
