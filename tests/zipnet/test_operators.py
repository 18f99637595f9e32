"""Operators' documents and statements: who must have signed what, and what they follow."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from attestation import envelope
from tests.zipnet.configs import CONFIG, KEYS, LABELS
from zipnet.config import Operator, ShuffleWindow, deployment_id
from zipnet.errors import DocumentRejected, Refused, WireFormatError
from zipnet.operators import (
    MAX_BYTES,
    NOBODY,
    OPERATORS_TYPE,
    RECOVERY_TYPE,
    Dismissal,
    Endorsement,
    OperatorDocument,
    OperatorSet,
    RecoveryDocument,
)
from zipnet.protocol.codec import Reader
from zipnet.protocol.instance import Instance

SIGNERS = [Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32) for seed in (1, 2, 3, 4)]
OPERATORS = tuple(
    Operator(name, key.public_key().public_bytes_raw())
    for name, key in zip("abcd", SIGNERS, strict=True)
)
DEPLOYED = replace(CONFIG, operators=OPERATORS[:3])
ID = deployment_id(DEPLOYED).raw
FIRST = OperatorSet.genesis(DEPLOYED)
INSTANCE = Instance(ID, b"\x11" * 32)
DOCUMENT = OperatorDocument.after(FIRST, ID, OPERATORS[1:], 2)
RECOVERY = RecoveryDocument(ID, INSTANCE.generation, b"\x12" * 32, 6, b"\x13" * 32)


def rule(call: Any, *arguments: Any, **named: Any) -> str:
    with pytest.raises(DocumentRejected) as caught:
        call(*arguments, **named)
    caught.value.diagnostics().encode()
    return caught.value.rule


def signed(
    document: OperatorDocument | RecoveryDocument, signers: Iterable[Ed25519PrivateKey]
) -> bytes:
    return document.assemble([document.sign(key) for key in signers])


def verify(raw: bytes, current: OperatorSet = FIRST) -> OperatorSet:
    return OperatorDocument.verify(raw, current, ID)


# Operators.


def test_genesis() -> None:
    assert OperatorSet(OPERATORS[:3], 3, 0, ID) == FIRST
    assert FIRST.keys == tuple(each.key for each in OPERATORS[:3])


def test_all_operators_change_them() -> None:
    second = verify(signed(DOCUMENT, SIGNERS[:3]))
    digest = hashlib.sha256(DOCUMENT.dumps()).digest()
    assert second == OperatorSet(OPERATORS[1:], 2, 1, digest)
    third = OperatorDocument.after(second, ID, OPERATORS, 4)
    assert (third.number, third.previous) == (2, digest)
    assert verify(signed(third, SIGNERS[1:]), second).operators == OPERATORS
    # Those of the first set no longer count, and the newcomer does.
    assert rule(verify, signed(third, SIGNERS[:3]), second) == "signers"


@pytest.mark.parametrize("signers", [SIGNERS[:2], SIGNERS[1:3], SIGNERS[1:]])
def test_fewer_operators_do_not(signers: list[Ed25519PrivateKey]) -> None:
    # Not even where `k`, which is for lists, would be content.
    current = replace(FIRST, k=1)
    assert rule(verify, signed(DOCUMENT, signers), current) == "signers"


def test_other_signers_do_no_harm() -> None:
    assert verify(signed(DOCUMENT, SIGNERS)).number == 1


def test_a_signature_over_something_else() -> None:
    stolen = replace(DOCUMENT, k=1).sign(SIGNERS[2])
    raw = DOCUMENT.assemble([*map(DOCUMENT.sign, SIGNERS[:2]), stolen])
    assert rule(verify, raw) == "signers"
    foreign = envelope.sign(DOCUMENT.dumps(), RECOVERY_TYPE, SIGNERS[2])
    assert rule(verify, DOCUMENT.assemble([*map(DOCUMENT.sign, SIGNERS[:2]), foreign])) == "signers"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"deployment_id": b"\x99" * 32}, "deployment"),
        ({"number": 2}, "number"),
        ({"previous": b"\x99" * 32}, "previous"),
    ],
)
def test_out_of_turn(changes: dict[str, Any], expected: str) -> None:
    assert rule(verify, signed(replace(DOCUMENT, **changes), SIGNERS[:3])) == expected


def test_no_document_twice() -> None:
    raw = signed(OperatorDocument.after(FIRST, ID, OPERATORS[:3], 1), SIGNERS[:3])
    second = verify(raw)
    assert rule(verify, raw, second) == "number"
    forked = OperatorDocument.after(replace(second, digest=b"\x99" * 32), ID, OPERATORS, 1)
    assert rule(verify, signed(forked, SIGNERS[:3]), second) == "previous"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", "envelope.json"),
        (b"{}", "envelope.fields"),
        (signed(RECOVERY, SIGNERS[:3]), "envelope.payload-type"),
        (b" " * (envelope.MAX_BYTES + 1), "envelope.size"),
    ],
)
def test_envelopes(raw: bytes, expected: str) -> None:
    assert rule(verify, raw) == expected


def test_nothing_unsigned_is_parsed() -> None:
    signatures = [DOCUMENT.sign(key) for key in SIGNERS[:3]]
    raw = envelope.assemble(b"[" * 10_000, OPERATORS_TYPE, signatures)
    assert rule(verify, raw) == "signers"
    signatures = [RECOVERY.sign(key) for key in SIGNERS[:3]]
    raw = envelope.assemble(b"[" * 10_000, RECOVERY_TYPE, signatures)
    assert rule(RecoveryDocument.verify, raw, FIRST) == "signers"


def test_nobody_assembles_nothing() -> None:
    assert rule(DOCUMENT.assemble, []) == "envelope.signatures"
    assert rule(RECOVERY.assemble, [RECOVERY.sign(SIGNERS[0])] * 2) == "envelope.duplicate-signer"


def with_fields(document: OperatorDocument | RecoveryDocument, **changes: Any) -> bytes:
    merged = {**json.loads(document.dumps()), **changes}
    found = {name: value for name, value in merged.items() if value is not ...}
    return json.dumps(found, indent=2, sort_keys=True).encode() + b"\n"


ENTRIES = json.loads(DOCUMENT.dumps())["operators"]


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"", "json"),
        (b"\xff", "json"),
        (b"[" * MAX_BYTES, "json"),
        (b" " * (MAX_BYTES + 1), "size"),
        (b"[]", "fields"),
        (b'{"k": 1, "k": 1}', "duplicate-key"),
        (DOCUMENT.dumps() + b" ", "canonical"),
        (json.dumps(json.loads(DOCUMENT.dumps())).encode(), "canonical"),
        (with_fields(DOCUMENT, operators=ENTRIES[::-1]), "canonical"),
        (with_fields(DOCUMENT, extra=1), "fields"),
        (with_fields(DOCUMENT, k=...), "fields"),
        (with_fields(DOCUMENT, schema="zipnet.operators/2"), "schema"),
        (with_fields(DOCUMENT, schema=[]), "schema"),
        (with_fields(DOCUMENT, number=0), "number"),
        (with_fields(DOCUMENT, number=True), "number"),
        (with_fields(DOCUMENT, number=1.0), "number"),
        (with_fields(DOCUMENT, number=1 << 53), "number"),
        (with_fields(DOCUMENT, k=0), "k"),
        (with_fields(DOCUMENT, k=4), "k"),
        (with_fields(DOCUMENT, k="2"), "k"),
        (with_fields(DOCUMENT, deployment_id="00"), "deployment_id"),
        (with_fields(DOCUMENT, deployment_id=ID.hex().upper()), "deployment_id"),
        (with_fields(DOCUMENT, previous=None), "previous"),
        (with_fields(DOCUMENT, operators={}), "operators"),
        (with_fields(DOCUMENT, operators=[]), "operators"),
        (with_fields(DOCUMENT, operators=ENTRIES[:1] * 2), "operators"),
        (with_fields(DOCUMENT, operators=["a"]), "fields"),
        (with_fields(DOCUMENT, operators=[{**ENTRIES[0], "name": "\ud800"}]), "name"),
        (with_fields(DOCUMENT, operators=[{**ENTRIES[0], "name": 1}]), "name"),
        (with_fields(DOCUMENT, operators=[{**ENTRIES[0], "key": "00" * 32}]), "key"),
        (with_fields(DOCUMENT, operators=[{**ENTRIES[0], "key": 1}]), "key"),
    ],
)
def test_payloads_that_break_the_format(payload: bytes, expected: str) -> None:
    assert rule(OperatorDocument.loads, payload) == f"operators.{expected}"


def test_values_that_break_the_format() -> None:
    for changes in ({"previous": b""}, {"deployment_id": bytes(33)}, {"number": 0}, {"k": 0}):
        (name,) = changes
        assert rule(replace, DOCUMENT, **changes) == f"operators.{name}"
    assert rule(replace, FIRST, digest=b"") == "operators.digest"
    assert rule(replace, FIRST, number=-1) == "operators.number"
    assert rule(replace, FIRST, operators=()) == "operators.operators"


@given(st.lists(LABELS, min_size=1, max_size=5, unique=True), st.data())
def test_round_trip(names: list[str], data: st.DataObject) -> None:
    count = len(names)
    keys = data.draw(st.lists(KEYS, min_size=count, max_size=count, unique=True))
    document = OperatorDocument(
        data.draw(st.binary(min_size=32, max_size=32)),
        data.draw(st.integers(1, (1 << 53) - 1)),
        data.draw(st.binary(min_size=32, max_size=32)),
        tuple(map(Operator, names, keys)),
        data.draw(st.integers(1, count)),
    )
    assert OperatorDocument.loads(document.dumps()) == document


def test_servers_needed() -> None:
    more, fewer = replace(FIRST, operators=OPERATORS), replace(FIRST, operators=OPERATORS[:1], k=1)
    # All of them at first, so all of them later.
    assert [each.servers_needed(DEPLOYED) for each in (FIRST, more, fewer)] == [3, 4, 1]
    window = replace(ShuffleWindow.interactive(), min_servers=2)
    two = DEPLOYED.with_window(window)
    assert [each.servers_needed(two) for each in (FIRST, more, fewer)] == [2, 2, 1]


# Recovery.


def recover(document: RecoveryDocument, signers: Iterable[Ed25519PrivateKey]) -> RecoveryDocument:
    return RecoveryDocument.verify(signed(document, signers), FIRST)


def test_all_operators_recover() -> None:
    assert recover(RECOVERY, SIGNERS[:3]) == RECOVERY
    RECOVERY.check_follows(INSTANCE, 5)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_all_but_the_named_offender_recover(at: int) -> None:
    named = replace(RECOVERY, offender=OPERATORS[at].key)
    others = [key for place, key in enumerate(SIGNERS[:3]) if place != at]
    assert recover(named, others) == named
    # Exactly those: not the offender too, not another stranger, not one less.
    assert rule(recover, named, SIGNERS[:3]) == "recovery.signers"
    assert rule(recover, named, [*others, SIGNERS[3]]) == "recovery.signers"
    assert rule(recover, named, others[:1]) == "signers"
    # One is missing, but not the one who is named.
    wrong = [key for place, key in enumerate(SIGNERS[:3]) if place != (at + 1) % 3]
    assert rule(recover, named, wrong) == "signers"
    assert rule(recover, RECOVERY, others) == "signers"


def test_an_offender_is_an_operator() -> None:
    named = replace(RECOVERY, offender=OPERATORS[3].key)
    assert rule(recover, named, SIGNERS[:3]) == "recovery.offender"


def test_a_stranger_beside_all() -> None:
    assert rule(recover, RECOVERY, SIGNERS) == "recovery.signers"


def test_an_offender_alone_does_not_excuse_himself() -> None:
    alone = OperatorSet(OPERATORS[:1], 1, 0, ID)
    named = replace(RECOVERY, offender=OPERATORS[0].key)
    for signers in (SIGNERS[:1], SIGNERS[1:2]):
        assert rule(RecoveryDocument.verify, signed(named, signers), alone) in {
            "signers",
            "threshold",
        }
    assert RecoveryDocument.verify(signed(RECOVERY, SIGNERS[:1]), alone) == RECOVERY


def test_recovery_of_something_else() -> None:
    for instance, counter in (
        (Instance(bytes(32), INSTANCE.generation), 5),
        (Instance(ID, bytes(32)), 5),
        (INSTANCE, 4),
        (INSTANCE, 6),
    ):
        assert rule(RECOVERY.check_follows, instance, counter) == "recovery.follows"


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"{", "json"),
        (b" " * (MAX_BYTES + 1), "size"),
        (RECOVERY.dumps() + b"\n", "canonical"),
        (with_fields(RECOVERY, more=1), "fields"),
        (with_fields(RECOVERY, offender=...), "fields"),
        (with_fields(RECOVERY, schema="zipnet.recovery/2"), "schema"),
        (with_fields(RECOVERY, counter=0), "counter"),
        (with_fields(RECOVERY, counter=False), "counter"),
        (with_fields(RECOVERY, checkpoint="0" * 63), "checkpoint"),
        (with_fields(RECOVERY, offender=None), "offender"),
        (with_fields(RECOVERY, new_generation=RECOVERY.old_generation.hex()), "new_generation"),
    ],
)
def test_recoveries_that_break_the_format(payload: bytes, expected: str) -> None:
    assert rule(RecoveryDocument.loads, payload) == f"recovery.{expected}"


def test_recoveries_round_trip() -> None:
    for document in (RECOVERY, replace(RECOVERY, offender=OPERATORS[0].key)):
        assert RecoveryDocument.loads(document.dumps()) == document
    assert RECOVERY.offender == NOBODY
    assert rule(replace, RECOVERY, checkpoint=b"") == "recovery.checkpoint"


# Statements.

PEER, DH = b"\x21" * 32, b"\x22" * 32
ENDORSEMENT = Endorsement.make(INSTANCE, SIGNERS[0], PEER, DH, 7)
DISMISSAL = Dismissal.make(INSTANCE, SIGNERS[0], PEER, 8)


def test_statements_verify() -> None:
    ENDORSEMENT.verify(INSTANCE)
    DISMISSAL.verify(INSTANCE)
    assert ENDORSEMENT.operator == DISMISSAL.operator == OPERATORS[0].key


def test_what_is_signed() -> None:
    lead = b"\0" + ID + INSTANCE.generation + bytes(8)
    public = SIGNERS[0].public_key()
    domain = b"zipnet/sig/endorse/v2"
    public.verify(ENDORSEMENT.signature, domain + lead + PEER + DH + (7).to_bytes(8, "big"))
    domain = b"zipnet/sig/dismiss/v2"
    public.verify(DISMISSAL.signature, domain + lead + PEER + (8).to_bytes(8, "big"))


@pytest.mark.parametrize(
    "statement",
    [
        *(
            replace(ENDORSEMENT, **change)
            for change in (
                {"operator": OPERATORS[1].key},
                {"peer": DH},
                {"dh_pub": PEER},
                {"serial": 8},
                {"signature": bytes(64)},
                {"signature": DISMISSAL.signature},
            )
        ),
        *(
            replace(DISMISSAL, **change)
            for change in (
                {"operator": OPERATORS[1].key},
                {"peer": DH},
                {"serial": 7},
                {"signature": ENDORSEMENT.signature},
            )
        ),
    ],
)
def test_changed_statements(statement: Endorsement | Dismissal) -> None:
    with pytest.raises(Refused) as caught:
        statement.verify(INSTANCE)
    assert caught.value.rule == "signature"


@pytest.mark.parametrize("statement", [ENDORSEMENT, DISMISSAL])
def test_statements_of_other_instances(statement: Endorsement | Dismissal) -> None:
    for instance in (Instance(bytes(32), INSTANCE.generation), Instance(ID, bytes(32))):
        with pytest.raises(Refused) as caught:
            statement.verify(instance)
        assert caught.value.rule == "signature"


def test_sizes_of_statements() -> None:
    for statement, size in ((ENDORSEMENT, 168), (DISMISSAL, 136)):
        raw = statement.encode()
        assert len(raw) == size
        reader = Reader(raw, "statement", at_most=size)
        assert type(statement).read(reader) == statement
        reader.done()
        with pytest.raises(WireFormatError) as caught:
            type(statement).read(Reader(raw[:-1], "statement", at_most=size))
        assert caught.value.rule == "statement.truncated"


@given(st.binary(min_size=168, max_size=168))
def test_statements_are_canonical(raw: bytes) -> None:
    for kind, size in ((Endorsement, 168), (Dismissal, 136)):
        reader = Reader(raw[:size], "statement", at_most=size)
        try:
            statement = kind.read(reader)
        except WireFormatError:
            # Only the serial can be wrong.
            assert raw[size - 72] >> 7
        else:
            assert statement.encode() == raw[:size]
