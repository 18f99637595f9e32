"""Members that answer wrongly, and whoever is between: each is named, by its rule."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from attestation.errors import (
    AttestationError,
    SealFormatError,
    SealRefused,
    SealUnavailable,
)
from attestation.seal.committee_format import (
    NONCE_ASK,
    Answer,
)
from tests.attestation.seal.committee_simulator import (
    answers_changed,
    names,
    refused,
    run,
    sealed,
)


def test_an_equivocating_member_is_named() -> None:
    simulator, node = sealed()
    liar = simulator.ids[1]
    simulator.members[liar] = simulator.member(liar, root=b"\x66" * 32)
    refused(node.boot().open(), "seal.equivocation", liar)
    assert names(simulator.ids[0]) not in str(
        refused(node.boot().unsafe_open_older(), "seal.equivocation", liar)
    )


def test_a_changed_blob_that_nobody_knows_does_not_open() -> None:
    simulator, node = sealed()
    sealer = node.boot()
    run(sealer.open())
    simulator.down = {simulator.ids[0]}
    refused(sealer.update(b"2"), "seal.members", kind=SealUnavailable)
    simulator.clear()
    raw = node.disk.raw or b""
    node.disk.raw = raw[:-1] + bytes([raw[-1] ^ 1])
    refused(node.boot().open(), "seal.damaged", kind=SealFormatError)


def test_a_signature_by_another_key() -> None:
    simulator, node = sealed()
    liar = simulator.ids[2]
    simulator.members[liar] = simulator.member(liar, seed=b"\x77" * 32)
    refused(node.boot().open(), "seal.signature", liar)


def test_an_answer_that_is_repeated() -> None:
    simulator, node = sealed()
    member = simulator.ids[0]
    kept: list[bytes] = []

    def keep(answer: bytes) -> bytes:
        kept.append(answer)
        return answer

    answers_changed(simulator, member, keep)
    run(node.boot().open())
    answers_changed(simulator, member, lambda _: kept[0])
    refused(node.boot().open(), "seal.signature", member)


def test_an_answer_of_another_member() -> None:
    simulator, node = sealed()
    one, other = simulator.ids[:2]
    last: dict[bytes, bytes] = {}

    def swap(member: bytes, raw: bytes, answer: bytes) -> bytes:
        last[member] = answer
        return last[one] if member == other and raw != NONCE_ASK else answer

    simulator.change = swap
    refused(node.boot().open(), "seal.signature", other)


@pytest.mark.parametrize(
    ("how", "rule", "kind"),
    [
        (lambda _: b"", "seal.answer", SealFormatError),
        (lambda answer: answer + b"\0", "seal.answer", SealFormatError),
        (lambda answer: answer[:19] + b"\2" + answer[20:], "seal.answer", SealFormatError),
        (lambda answer: answer[:30] + b"\0" + answer[31:], "seal.signature", SealRefused),
    ],
)
def test_answers_that_are_none(
    how: Callable[[bytes], bytes], rule: str, kind: type[AttestationError]
) -> None:
    simulator, node = sealed()
    answers_changed(simulator, simulator.ids[1], how)
    refused(node.boot().open(), rule, simulator.ids[1], kind=kind)


@pytest.mark.parametrize(
    "change",
    [lambda box: bytes(32) + box[32:], lambda box: box[:-1] + bytes([box[-1] ^ 1])],
)
def test_a_signed_box_that_does_not_open(change: Callable[[bytes], bytes]) -> None:
    simulator, node = sealed()
    member = simulator.ids[1]

    def rebox(asked: bytes, raw: bytes, answer: bytes) -> bytes:
        if asked != member or raw == NONCE_ASK:
            return answer
        content = Answer.decode(answer).content
        assert isinstance(content, bytes)
        return simulator.members[member]._signed(raw, change(content))

    simulator.change = rebox
    refused(node.boot().open(), "seal.answer", member, kind=SealFormatError)


def test_a_nonce_that_is_none() -> None:
    simulator, node = sealed()
    member = simulator.ids[1]
    simulator.change = lambda asked, _, answer: b"short" if asked == member else answer
    refused(node.boot().open(), "seal.answer", member, kind=SealFormatError)
