"""What every sealer must do. A back-end takes the names NAMES and gives a fresh, empty sealer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from attestation.errors import SealError, SealRefused
from attestation.seal.base import MAX_DATA, Sealer

NAMES = ("node", "a", "pair-secrets-2")


@contextmanager
def refused(rule: str, kind: type[SealError] = SealRefused) -> Iterator[None]:
    """The block fails by this rule."""
    with pytest.raises(SealError) as caught:
        yield
    error = caught.value
    assert (type(error), error.rule) == (kind, rule), error.diagnostics()
    assert error.message
    error.diagnostics().encode("ascii")


def gives_back_what_was_sealed(sealer: Sealer) -> None:
    for data in (b"", b"\0", b"a secret", bytes(MAX_DATA)):
        sealer.seal("node", data)
        assert sealer.unseal("node") == data
        assert sealer.unseal("node") == data


def replaces(sealer: Sealer) -> None:
    for number in range(4):
        sealer.seal("node", b"%d" % number)
    assert sealer.unseal("node") == b"3"


def keeps_names_apart(sealer: Sealer) -> None:
    for name in NAMES:
        sealer.seal(name, name.encode())
    sealer.seal("a", b"another")
    assert [sealer.unseal(name) for name in NAMES] == [b"node", b"another", b"pair-secrets-2"]


def copies(sealer: Sealer) -> None:
    data = bytearray(b"before")
    sealer.seal("node", data)  # type: ignore[arg-type]
    data[:] = b"after!"
    assert sealer.unseal("node") == b"before"
    assert type(sealer.unseal("node")) is bytes


def says_that_nothing_is_there(sealer: Sealer) -> None:
    sealer.seal("a", b"of another name")
    with refused("seal.absent"):
        sealer.unseal("node")


def refuses_what_is_no_name(sealer: Sealer) -> None:
    for name in ("", "A", "1a", "a" * 33, "a/b", "..", "a\n", "ä", "a b", "-a"):
        for attempt in (lambda: sealer.seal(name, b""), lambda: sealer.unseal(name)):  # noqa: B023
            with refused("seal.name"):
                attempt()


def refuses_too_much(sealer: Sealer) -> None:
    sealer.seal("node", b"small")
    with refused("seal.size"):
        sealer.seal("node", bytes(MAX_DATA + 1))
    assert sealer.unseal("node") == b"small"


def shows_no_secret(sealer: Sealer) -> None:
    sealer.seal("node", b"hunter2")
    assert "hunter2" not in f"{sealer!r} {sealer}"


CASES: tuple[Callable[[Sealer], None], ...] = (
    gives_back_what_was_sealed,
    replaces,
    keeps_names_apart,
    copies,
    says_that_nothing_is_there,
    refuses_what_is_no_name,
    refuses_too_much,
    shows_no_secret,
)
