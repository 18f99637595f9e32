"""What clients broadcast: data of one type, each of exactly the same size on the wire.

The size is part of a deployment's id. Variable sizes would tell senders apart, so whatever is
shorter is padded by its own encoding, as `bytes_datum` does for plain bytes.
"""

from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Protocol, Self, TypeVar

from zipnet.errors import DatumRejected

MAX_TAG = 64
MAX_WIRE_SIZE = 1 << 20
LENGTH_SIZE = 2


class ShuffleDatum(Protocol):
    """A type that can be broadcast.

    `TYPE_TAG` is 1 to 64 characters of printable ASCII and names the schema; `WIRE_SIZE` is 1 to
    2^20 bytes. `decode` must accept exactly what `encode` returns.
    """

    TYPE_TAG: ClassVar[str]
    WIRE_SIZE: ClassVar[int]

    def encode(self) -> bytes:
        """Exactly WIRE_SIZE bytes."""
        ...

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """The datum in WIRE_SIZE bytes; any exception says that there is none."""
        ...


D = TypeVar("D", bound=ShuffleDatum)


def type_tag_is_valid(tag: object) -> bool:
    """Whether this is 1 to 64 characters of printable ASCII."""
    return (
        isinstance(tag, str)
        and 1 <= len(tag) <= MAX_TAG
        and all(" " <= letter <= "~" for letter in tag)
    )


def check_kind(kind: type[ShuffleDatum]) -> None:
    """Check a type's tag and size. Raises DatumRejected."""
    tag, size = getattr(kind, "TYPE_TAG", None), getattr(kind, "WIRE_SIZE", None)
    if not type_tag_is_valid(tag):
        raise DatumRejected(
            f"the TYPE_TAG of {kind.__name__} is wrong",
            expected=f"1 to {MAX_TAG} characters of printable ASCII",
            got=ascii(tag)[:80],
            rule="datum.type-tag",
        )
    # Not isinstance: a bool is an int.
    if type(size) is not int or not 1 <= size <= MAX_WIRE_SIZE:
        raise DatumRejected(
            f"the WIRE_SIZE of {kind.__name__} is wrong",
            expected=f"1 to {MAX_WIRE_SIZE} bytes",
            got=ascii(size)[:80],
            rule="datum.wire-size",
        )


def encode_exact(datum: ShuffleDatum) -> bytes:
    """The datum's encoding: WIRE_SIZE bytes that decode to what encodes to them again.

    Raises DatumRejected.
    """
    kind = type(datum)
    check_kind(kind)
    raw = _encoded(datum)
    decode_exact(kind, raw)
    return raw


def decode_exact(kind: type[D], raw: bytes) -> D:
    """The datum that `raw` encodes in its one form. Raises DatumRejected."""
    check_kind(kind)
    _check_size(kind, raw)
    try:
        result = kind.decode(raw)
    except DatumRejected:
        raise
    except Exception as error:
        raise DatumRejected(
            f"these bytes are no {kind.__name__}",
            got=type(error).__name__,
            rule="datum.decode",
            hint="the sender uses another type, or something other than zipnet wrote the slot",
        ) from error
    if type(result) is not kind:
        raise DatumRejected(
            f"{kind.__name__}.decode is wrong",
            expected=f"a {kind.__name__}",
            got=type(result).__name__,
            rule="datum.decode",
        )
    if _encoded(result) != raw:
        raise DatumRejected(
            f"these bytes are not how a {kind.__name__} is encoded",
            expected="the one encoding of each value",
            rule="datum.canonical",
            hint="let `decode` refuse every encoding but that of `encode`",
        )
    return result


def _encoded(datum: ShuffleDatum) -> bytes:
    kind = type(datum)
    try:
        raw = datum.encode()
    except DatumRejected:
        raise
    except Exception as error:
        raise DatumRejected(
            f"a {kind.__name__} can't be encoded",
            got=type(error).__name__,
            rule="datum.encode",
        ) from error
    if type(raw) is not bytes:
        raise DatumRejected(
            f"{kind.__name__}.encode is wrong",
            expected="bytes",
            got=type(raw).__name__,
            rule="datum.encode",
        )
    _check_size(kind, raw)
    return raw


def _check_size(kind: type[ShuffleDatum], raw: bytes) -> None:
    if len(raw) != kind.WIRE_SIZE:
        raise DatumRejected(
            f"an encoded {kind.__name__} has another size",
            expected=f"{kind.WIRE_SIZE} bytes",
            got=str(len(raw)),
            rule="datum.size",
            hint="pad every value to WIRE_SIZE",
        )


@dataclass(frozen=True, slots=True)
class Blob:
    """Plain bytes: u16 length ‖ content ‖ zeros up to WIRE_SIZE.

    Use a type that `bytes_datum` makes. Raises DatumRejected for content that doesn't fit.
    """

    TYPE_TAG: ClassVar[str] = "zipnet.bytes"
    WIRE_SIZE: ClassVar[int] = 256

    content: bytes

    def __post_init__(self) -> None:
        if type(self.content) is not bytes or len(self.content) > self.capacity():
            size = len(self.content) if type(self.content) is bytes else None
            raise DatumRejected(
                "this does not fit a datum",
                expected=f"at most {self.capacity()} bytes",
                got=type(self.content).__name__ if size is None else str(size),
                rule="datum.content",
                hint="send less, or use a deployment with a larger wire size",
            )

    @classmethod
    def capacity(cls) -> int:
        """How many bytes of content fit."""
        return min(cls.WIRE_SIZE - LENGTH_SIZE, (1 << 8 * LENGTH_SIZE) - 1)

    def encode(self) -> bytes:
        """The content with its length and padding."""
        length = len(self.content).to_bytes(LENGTH_SIZE, "big")
        return (length + self.content).ljust(self.WIRE_SIZE, b"\0")

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """The content in `raw`. Raises DatumRejected."""
        length = int.from_bytes(raw[:LENGTH_SIZE], "big")
        end = LENGTH_SIZE + length
        if length > cls.capacity() or len(raw) != cls.WIRE_SIZE or any(raw[end:]):
            raise DatumRejected(
                "these bytes are no content with its length",
                expected=f"a length of at most {cls.capacity()}, the content, zeros",
                got=f"length {length}",
                rule="datum.decode",
            )
        return cls(raw[LENGTH_SIZE:end])


@cache
def bytes_datum(wire_size: int) -> type[Blob]:
    """The type of plain bytes that takes `wire_size` bytes, 2 of them for the length.

    Raises DatumRejected for a size that holds no content.
    """

    class SizedBlob(Blob):
        __slots__ = ()
        WIRE_SIZE = wire_size

    check_kind(SizedBlob)
    if wire_size <= LENGTH_SIZE:
        raise DatumRejected(
            "no content fits this wire size",
            expected=f"more than {LENGTH_SIZE} bytes",
            got=str(wire_size),
            rule="datum.wire-size",
        )
    return SizedBlob
