"""Reading and writing fixed binary structs: big endian, every length checked, nothing left over."""

from collections.abc import Callable
from typing import TypeVar

from zipnet.errors import WireFormatError

T = TypeVar("T")


class Reader:
    """Takes fields off the front of `raw`; `what` leads the rules of its errors.

    Every method raises WireFormatError instead of reading past the end.
    """

    __slots__ = ("_at", "_raw", "_what")

    def __init__(self, raw: bytes, what: str, *, at_most: int) -> None:
        self._raw = raw
        self._what = what
        self._at = 0
        if len(raw) > at_most:
            raise self.wrong("size", f"at most {at_most} bytes", str(len(raw)))

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        end = self._at + size
        if end > len(self._raw):
            left = len(self._raw) - self._at
            raise self.wrong("truncated", f"{size} more bytes at offset {self._at}", str(left))
        part = self._raw[self._at : end]
        self._at = end
        return part

    def number(self, size: int) -> int:
        """The next `size` bytes as an unsigned integer."""
        return int.from_bytes(self.take(size), "big")

    def u8(self) -> int:
        """One byte."""
        return self.number(1)

    def u16(self) -> int:
        """Two bytes."""
        return self.number(2)

    def u32(self) -> int:
        """Four bytes."""
        return self.number(4)

    def u64(self) -> int:
        """Eight bytes, at most 2^63 - 1: what every language's integers hold."""
        value = self.number(8)
        if value >> 63:
            raise self.wrong("number", "at most 2^63 - 1", str(value))
        return value

    def flag(self) -> bool:
        """One byte, 0 or 1."""
        value = self.u8()
        if value > 1:
            raise self.wrong("flag", "0 or 1", str(value))
        return value == 1

    def sized(self, length_size: int, at_most: int) -> bytes:
        """A length of `length_size` bytes, then as many bytes."""
        length = self.number(length_size)
        if length > at_most:
            raise self.wrong("length", f"at most {at_most}", str(length))
        return self.take(length)

    def many(self, length_size: int, at_most: int, one: Callable[["Reader"], T]) -> tuple[T, ...]:
        """A count of `length_size` bytes, then as many items as `one` reads."""
        count = self.number(length_size)
        if count > at_most:
            raise self.wrong("count", f"at most {at_most}", str(count))
        return tuple(one(self) for _ in range(count))

    def text(self, at_most: int) -> str:
        """A length byte, then printable ASCII."""
        raw = self.sized(1, at_most)
        if not all(0x20 <= byte < 0x7F for byte in raw):
            raise self.wrong("text", "printable ASCII", ascii(raw)[:80])
        return raw.decode("ascii")

    def expect(self, name: str, expected: bytes) -> None:
        """The next bytes, which must be these."""
        got = self.take(len(expected))
        if got != expected:
            raise self.wrong(name, expected.hex(), got.hex())

    def done(self) -> None:
        """Refuse what is left over."""
        if self._at != len(self._raw):
            raise self.wrong("trailing", f"{self._at} bytes", str(len(self._raw)))

    def wrong(self, rule: str, expected: str, got: str) -> WireFormatError:
        """The error about what was just read."""
        return WireFormatError(
            f"this is no {self._what}",
            expected=expected,
            got=got,
            rule=f"{self._what}.{rule}",
            hint="the sender runs another version, or the bytes were damaged",
        )


def sized(value: bytes, length_size: int) -> bytes:
    """The length of `value` in `length_size` bytes, then `value`."""
    return len(value).to_bytes(length_size, "big") + value


def text(value: str) -> bytes:
    """As `Reader.text` reads it."""
    return sized(value.encode("ascii"), 1)
