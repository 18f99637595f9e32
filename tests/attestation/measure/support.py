"""What the tests of this folder share."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from attestation.errors import AttestationError

VECTORS = Path(__file__).parents[2] / "vectors" / "measure"


def vectors(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((VECTORS / name).read_text())
    return loaded


@contextmanager
def refused(kind: type[AttestationError], rule: str, where: str = "") -> Iterator[None]:
    """The block must raise exactly this kind of error, by this rule, its message saying where."""
    with pytest.raises(AttestationError) as caught:
        yield
    assert (type(caught.value), caught.value.rule) == (kind, rule)
    assert where in caught.value.message
    assert rule in caught.value.diagnostics()


def patched(offset: int, new: bytes) -> Callable[[bytes], bytes]:
    """A change of some bytes; a negative offset counts from the end."""

    def change(data: bytes) -> bytes:
        at = offset % len(data)
        return data[:at] + new + data[at + len(new) :]

    return change
