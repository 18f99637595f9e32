"""On which occasions each pad was used, over all boots of a node: one file a node.

Each use is written before the bytes leave, so that nothing is missing after a kill: a line is
BLAKE3 of the pad's key and the occasion, as hex digits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from blake3 import blake3

from zipnet.protocol.pads import KeystreamXor, keystream_xor


class Book:
    """Notes what a cipher is used for."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._xor = keystream_xor()

    def cipher(self, occasion: Callable[[], bytes]) -> KeystreamXor:
        """The cipher, whose calls belong to the occasion of the moment."""

        def xor(keys: Sequence[bytes], buffer: memoryview) -> None:
            of = blake3(occasion()).hexdigest()
            lines = "".join(f"{blake3(key).hexdigest()} {of}\n" for key in keys)
            os.write(self._file, lines.encode())
            self._xor(keys, buffer)

        return xor


def uses(paths: Iterable[Path]) -> dict[str, set[str]]:
    """The occasions of each pad, in all these files."""
    found: dict[str, set[str]] = {}
    for path in paths:
        for line in path.read_text("ascii").splitlines():
            pad, occasion = line.split()
            found.setdefault(pad, set()).add(occasion)
    return found


def reused(paths: Iterable[Path]) -> int:
    """How many pads were used on more than one occasion. Raises AssertionError if none was used."""
    found = uses(paths)
    assert found, "no pad was used at all"
    return sum(len(occasions) > 1 for occasions in found.values())
