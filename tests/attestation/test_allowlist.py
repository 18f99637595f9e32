"""Allow-lists: format, windows, signatures by k of n, roll-back."""

import base64
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from attestation import allowlist, envelope
from attestation.allowlist import (
    PAYLOAD_TYPE,
    AllowList,
    Entry,
    TcbPolicy,
    Window,
    assemble,
    sign,
)
from attestation.errors import AllowListRejected, PolicyError
from attestation.moments import LAST_SECOND
from attestation.verify import TcbStatus
from tests.attestation.measure.support import refused
from tests.attestation.measure.test_record import entries as measurements
from tests.attestation.tickets import ALLOW_LIST, DEPLOYMENT, ENTRY, ISSUED

OPERATORS = [Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32) for seed in (1, 2, 3)]
KEYS = [key.public_key().public_bytes_raw() for key in OPERATORS]
STRANGER = Ed25519PrivateKey.from_private_bytes(b"\x63" * 32)
PAYLOAD = ALLOW_LIST.dumps()
SIGNATURES = [sign(PAYLOAD, key) for key in OPERATORS]
VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "attestation" / "allowlist.json").read_text()
)


def verify(
    raw: bytes, k: int = 2, previous: int | None = None, digest: bytes | None = None
) -> AllowList:
    return AllowList.verify(
        raw, KEYS, k, previous, deployment_id=DEPLOYMENT, previous_digest=digest
    )


def enveloped(changed: AllowList) -> bytes:
    payload = changed.dumps()
    return assemble(payload, [sign(payload, key) for key in OPERATORS])


# Signatures.


def test_two_of_three_operators_sign_a_list_of_k_3_refused() -> None:
    with refused(AllowListRejected, "signers"):
        verify(assemble(PAYLOAD, SIGNATURES[:2]), k=3)


def test_two_of_three_operators_sign_a_list_of_k_2_accepted() -> None:
    assert verify(assemble(PAYLOAD, SIGNATURES[:2]), k=2) == ALLOW_LIST
    assert verify(assemble(PAYLOAD, SIGNATURES[1:]), k=2) == ALLOW_LIST
    assert verify(assemble(PAYLOAD, SIGNATURES), k=3) == ALLOW_LIST


def test_older_number_refused() -> None:
    raw = assemble(PAYLOAD, SIGNATURES)
    assert verify(raw, previous=ALLOW_LIST.number - 1) == ALLOW_LIST
    with refused(AllowListRejected, "number"):
        verify(raw, previous=ALLOW_LIST.number + 1)
    with refused(AllowListRejected, "number"):
        verify(raw, previous=ALLOW_LIST.number + 1, digest=ALLOW_LIST.digest)


def test_equal_number_is_the_same_list_or_refused() -> None:
    raw = assemble(PAYLOAD, SIGNATURES)
    assert verify(raw, previous=ALLOW_LIST.number, digest=ALLOW_LIST.digest) == ALLOW_LIST
    for digest in (None, bytes(32)):
        with refused(AllowListRejected, "number-reused"):
            verify(raw, previous=ALLOW_LIST.number, digest=digest)


def test_another_deployment_refused() -> None:
    with refused(AllowListRejected, "deployment"):
        verify(enveloped(replace(ALLOW_LIST, deployment_id=b"\x99" * 32)))


def test_unknown_signers_do_not_count() -> None:
    foreign = sign(PAYLOAD, STRANGER)
    with refused(AllowListRejected, "signers"):
        verify(assemble(PAYLOAD, [SIGNATURES[0], foreign]))
    with refused(AllowListRejected, "signers"):
        verify(assemble(PAYLOAD, [foreign]), k=1)
    assert verify(assemble(PAYLOAD, [*SIGNATURES[:2], foreign])) == ALLOW_LIST


def test_bad_signatures_do_not_count_and_are_named() -> None:
    other = replace(ALLOW_LIST, number=9).dumps()
    stolen = sign(other, OPERATORS[1])
    with pytest.raises(AllowListRejected, match=f"bad signatures by {KEYS[1].hex()}") as caught:
        verify(assemble(PAYLOAD, [SIGNATURES[0], stolen]))
    assert caught.value.rule == "signers"
    assert verify(assemble(PAYLOAD, [SIGNATURES[0], stolen, SIGNATURES[2]])) == ALLOW_LIST


def test_the_payload_type_is_signed() -> None:
    signatures = [envelope.sign(PAYLOAD, "application/json", key) for key in OPERATORS]
    with refused(AllowListRejected, "signers"):
        verify(assemble(PAYLOAD, signatures))
    with refused(AllowListRejected, "envelope.payload-type"):
        verify(envelope.assemble(PAYLOAD, "application/json", signatures))


def test_one_key_is_one_signer() -> None:
    with refused(AllowListRejected, "envelope.duplicate-signer"):
        assemble(PAYLOAD, [SIGNATURES[0], SIGNATURES[0]])
    document = json.loads(assemble(PAYLOAD, SIGNATURES[:1]))
    document["signatures"] *= 2
    with refused(AllowListRejected, "envelope.duplicate-signer"):
        verify(json.dumps(document).encode())


@pytest.mark.parametrize("k", [0, -1, 4])
def test_thresholds_that_make_no_sense(k: int) -> None:
    with refused(PolicyError, "threshold"):
        verify(assemble(PAYLOAD, SIGNATURES), k=k)


@pytest.mark.parametrize(
    ("keys", "rule"),
    [
        ([KEYS[0], KEYS[0], KEYS[1]], "operator-keys"),
        ([KEYS[0], KEYS[1][:31]], "operator-keys"),
        ([], "threshold"),
    ],
)
def test_operators_that_make_no_sense(keys: list[bytes], rule: str) -> None:
    raw = assemble(PAYLOAD, SIGNATURES)
    with refused(PolicyError, rule):
        AllowList.verify(raw, keys, 1, None, deployment_id=DEPLOYMENT)


def test_operators_sign_on_their_own() -> None:
    alone = [envelope.parse(assemble(PAYLOAD, [one]), PAYLOAD_TYPE) for one in SIGNATURES]
    collected = [one for each in alone for one in each.signatures.values()]
    assert assemble(PAYLOAD, reversed(collected)) == assemble(PAYLOAD, SIGNATURES)
    with refused(AllowListRejected, "envelope.signatures"):
        assemble(PAYLOAD, [])


def test_nobody_signs_what_nobody_takes() -> None:
    with refused(AllowListRejected, "list.json"):
        sign(b"{", OPERATORS[0])
    with refused(AllowListRejected, "list.canonical"):
        assemble(PAYLOAD + b"\n", SIGNATURES)


def test_a_signed_payload_is_still_checked() -> None:
    for payload, rule in ((PAYLOAD + b" ", "list.canonical"), (b"[]", "list.fields")):
        signatures = [envelope.sign(payload, PAYLOAD_TYPE, key) for key in OPERATORS]
        with refused(AllowListRejected, rule):
            verify(envelope.assemble(payload, PAYLOAD_TYPE, signatures))


def test_nothing_unsigned_is_parsed() -> None:
    with refused(AllowListRejected, "signers"):
        verify(envelope.assemble(b"[" * 100_000, PAYLOAD_TYPE, SIGNATURES))


# Envelopes.


def wrapped(**changes: Any) -> bytes:
    document = json.loads(assemble(PAYLOAD, SIGNATURES))
    return json.dumps({k: v for k, v in {**document, **changes}.items() if v is not ...}).encode()


def signature(**changes: Any) -> list[dict[str, Any]]:
    (first, *rest) = json.loads(assemble(PAYLOAD, SIGNATURES))["signatures"]
    return [{k: v for k, v in {**first, **changes}.items() if v is not ...}, *rest]


GOOD = base64.b64encode(PAYLOAD).decode()


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        (b"", "envelope.json"),
        (b"\xff", "envelope.json"),
        (b"[" * 100_000, "envelope.json"),
        (b"9" * 10_000, "envelope.json"),
        (b"[]", "envelope.fields"),
        (b" " * (envelope.MAX_BYTES + 1), "envelope.size"),
        (b" " * envelope.MAX_BYTES, "envelope.json"),
        (b'{"payload": "", "payload": ""}', "envelope.duplicate-key"),
        (wrapped(extra=1), "envelope.fields"),
        (wrapped(payload=...), "envelope.fields"),
        (wrapped(payloadType="application/json"), "envelope.payload-type"),
        (wrapped(payloadType=["a"]), "envelope.payload-type"),
        (wrapped(payload=GOOD + "\n"), "envelope.base64"),
        (wrapped(payload=" " + GOOD), "envelope.base64"),
        (wrapped(payload=GOOD.rstrip("=") + "!"), "envelope.base64"),
        (wrapped(payload="QR=="), "envelope.base64"),
        (wrapped(payload="QQ"), "envelope.base64"),
        (wrapped(payload="__8="), "envelope.base64"),
        (wrapped(payload="\ud800"), "envelope.base64"),
        (wrapped(payload=7), "envelope.base64"),
        (wrapped(signatures={}), "envelope.fields"),
        (wrapped(signatures=[]), "envelope.signatures"),
        (wrapped(signatures=signature()[:1] * 65), "envelope.signatures"),
        (wrapped(signatures=signature()[:1] * 64), "envelope.duplicate-signer"),
        (wrapped(signatures=["x"]), "envelope.fields"),
        (wrapped(signatures=signature(extra=1)), "envelope.fields"),
        (wrapped(signatures=signature(sig=...)), "envelope.fields"),
        (wrapped(signatures=signature(keyid=KEYS[0].hex().upper())), "envelope.keyid"),
        (wrapped(signatures=signature(keyid=KEYS[0].hex()[:-1])), "envelope.keyid"),
        (wrapped(signatures=signature(keyid=None)), "envelope.keyid"),
        (wrapped(signatures=signature(sig="QUJD")), "envelope.signature-size"),
        (wrapped(signatures=signature(sig="*")), "envelope.base64"),
    ],
)
def test_envelopes_that_break_the_format(raw: bytes, rule: str) -> None:
    with refused(AllowListRejected, rule):
        verify(raw)


@pytest.mark.parametrize(
    ("value", "got"),
    [
        ("x" * 1_000, "'" + "x" * 79 + "..."),
        ([[["nested"]]], "list"),
        ({"a": {}}, "dict"),
        (None, "None"),
        ("\ud800", r"'\ud800'"),
    ],
)
def test_what_came_is_shown_briefly(value: Any, got: str) -> None:
    with pytest.raises(AllowListRejected) as caught:
        verify(wrapped(payloadType=value))
    assert caught.value.got == got


def test_every_flipped_byte_of_an_envelope() -> None:
    raw = assemble(PAYLOAD, SIGNATURES[:2])
    rules = set()
    # In white space a flip can be harmless; everywhere else it must be refused.
    for place, byte in enumerate(raw):
        changed = raw[:place] + bytes([byte ^ 1]) + raw[place + 1 :]
        try:
            found = verify(changed)
        except AllowListRejected as error:
            rules.add(error.rule.partition(".")[0])
        else:
            assert found == ALLOW_LIST
            assert chr(byte).isspace(), place
    assert rules == {"envelope", "signers"}


# Lists.

windows = st.tuples(
    st.integers(0, LAST_SECOND - 1), st.none() | st.integers(1, LAST_SECOND)
).filter(lambda window: window[1] is None or window[0] < window[1])
states = st.sampled_from([status for status in TcbStatus if status != "Revoked"])


@st.composite
def policies(draw: st.DrawFn) -> TcbPolicy:
    accepted = draw(st.frozensets(states, min_size=1))
    graced = sorted(draw(st.frozensets(states)) - accepted)
    return TcbPolicy(
        accepted,
        tuple((status, draw(st.integers(0, LAST_SECOND))) for status in graced),
        draw(st.integers(0, 1 << 50)),
    )


@st.composite
def lists(draw: st.DrawFn) -> AllowList:
    found = draw(st.lists(measurements, min_size=1, max_size=3, unique=True))
    return AllowList(
        number=draw(st.integers(1, (1 << 53) - 1)),
        deployment_id=draw(st.binary(min_size=32, max_size=32)),
        issued_at=draw(st.integers(0, LAST_SECOND)),
        entries=tuple(Entry(one, *draw(windows)) for one in found),
        tcb=draw(policies()),
    )


@given(lists())
def test_round_trip(chosen: AllowList) -> None:
    payload = chosen.dumps()
    assert AllowList.loads(payload) == chosen
    assert chosen.digest == hashlib.sha256(payload).digest()
    for wrong in (payload[:-1], payload + b"\n", payload.replace(b"  ", b"\t", 1)):
        with pytest.raises(AllowListRejected):
            AllowList.loads(wrong)


def document(tcb: dict[str, Any] | None = None, **changes: Any) -> bytes:
    whole = json.loads(PAYLOAD)
    whole["tcb"] = {**whole["tcb"], **(tcb or {})}
    whole = {k: v for k, v in {**whole, **changes}.items() if v is not ...}
    return json.dumps(whole, indent=2, sort_keys=True).encode() + b"\n"


def entry(**changes: Any) -> list[Any]:
    one = json.loads(PAYLOAD)["entries"][0]
    return [{k: v for k, v in {**one, **changes}.items() if v is not ...}]


@pytest.mark.parametrize(
    ("payload", "rule"),
    [
        (b"", "list.json"),
        (b"\xff", "list.json"),
        (b"[" * 100_000, "list.json"),
        (b" " * (allowlist.MAX_BYTES + 1), "list.size"),
        (b" " * allowlist.MAX_BYTES, "list.json"),
        (b'{"number": 1, "number": 2}', "list.duplicate-key"),
        (b"[]", "list.fields"),
        (document(extra=1), "list.fields"),
        (document(number=...), "list.fields"),
        (document(schema="zipnet.allow-list/2"), "list.schema"),
        (document(schema=None), "list.schema"),
        (document(number=0), "list.value"),
        (document(number=True), "list.value"),
        (document(number=1.0), "list.value"),
        (document(number=1 << 53), "list.value"),
        (document(number="3"), "list.value"),
        (document(deployment_id="01" * 31), "list.value"),
        (document(deployment_id="AB" * 32), "list.value"),
        (document(deployment_id=7), "list.value"),
        (document(issued_at=-1), "list.value"),
        (document(issued_at=LAST_SECOND + 1), "list.value"),
        (document(entries=[]), "list.empty"),
        (document(entries={}), "list.value"),
        (document(entries=[7]), "list.fields"),
        (document(entries=entry() * 2), "list.duplicate"),
        (document(entries=entry(extra=1)), "list.fields"),
        (document(entries=entry(retire_after=...)), "list.fields"),
        (document(entries=entry(not_before=None)), "list.value"),
        (document(entries=entry(not_before=-1)), "list.value"),
        (document(entries=entry(retire_after=LAST_SECOND + 1)), "list.value"),
        (document(entries=entry(retire_after=ISSUED - 500)), "list.window"),
        (document(entries=entry(measurement={})), "list.measurement"),
        (document(entries=entry(measurement=None)), "list.measurement"),
        (document(tcb={"extra": 1}), "list.fields"),
        (document(tcb={"accepted": []}), "list.tcb-empty"),
        (document(tcb={"accepted": ["Revoked"]}), "list.tcb-revoked"),
        (document(tcb={"accepted": ["Fine"]}), "list.tcb-unknown-state"),
        (document(tcb={"accepted": [["UpToDate"]]}), "list.tcb-unknown-state"),
        (document(tcb={"accepted": "UpToDate"}), "list.value"),
        (document(tcb={"accepted": ["UpToDate", "UpToDate"]}), "list.canonical"),
        (document(tcb={"accepted": ["UpToDate", "OutOfDate"]}), "list.canonical"),
        (document(tcb={"grace": []}), "list.value"),
        (document(tcb={"grace": {"Revoked": 1}}), "list.tcb-revoked"),
        (document(tcb={"grace": {"UpToDate": 1}}), "list.tcb-state-twice"),
        (document(tcb={"grace": {"Fine": 1}}), "list.tcb-unknown-state"),
        (document(tcb={"grace": {"OutOfDate": None}}), "list.value"),
        (document(tcb={"min_evaluation_number": -1}), "list.value"),
        (document(tcb={"min_evaluation_number": False}), "list.value"),
        (PAYLOAD.rstrip(), "list.canonical"),
        (json.dumps(json.loads(PAYLOAD)).encode(), "list.canonical"),
        (PAYLOAD.replace(b'"schema"', b'"\\u0073chema"'), "list.canonical"),
    ],
)
def test_lists_that_break_the_schema(payload: bytes, rule: str) -> None:
    assert AllowList.loads(document()) == ALLOW_LIST
    with refused(AllowListRejected, rule):
        AllowList.loads(payload)


def test_values_are_checked_on_construction() -> None:
    with refused(AllowListRejected, "list.value"):
        replace(ALLOW_LIST, deployment_id=b"")
    with refused(AllowListRejected, "list.empty"):
        replace(ALLOW_LIST, entries=())
    with refused(AllowListRejected, "list.window"):
        Entry(ENTRY, 5, 5)
    with refused(PolicyError, "tcb-empty"):
        TcbPolicy(frozenset())


def test_windows() -> None:
    entry = Entry(ENTRY, 10, 20)
    assert [entry.window(now) for now in (9, 10, 19, 20)] == [
        Window.EARLY,
        Window.OPEN,
        Window.OPEN,
        Window.RETIRED,
    ]
    assert Entry(ENTRY).window(0) is Entry(ENTRY).window(LAST_SECOND) is Window.OPEN


def test_grace() -> None:
    policy = TcbPolicy(grace=((TcbStatus("OutOfDate"), 20),))
    assert policy.end(TcbStatus("UpToDate"), 30) == LAST_SECOND
    assert [policy.end(TcbStatus("OutOfDate"), now) for now in (19, 20)] == [20, None]
    assert policy.end(TcbStatus("ConfigurationNeeded"), 0) is None


@pytest.mark.parametrize("vector", VECTORS["cases"], ids=lambda vector: vector["name"])
def test_vectors(vector: dict[str, Any]) -> None:
    def run() -> AllowList:
        return AllowList.verify(
            json.dumps(vector["envelope"]).encode(),
            [bytes.fromhex(key) for key in vector["keys"]],
            vector["k"],
            vector["previous_number"],
            deployment_id=bytes.fromhex(VECTORS["deployment_id"]),
        )

    if vector["expect"] == "success":
        assert run().digest.hex() == vector["digest"]
        return
    with refused(AllowListRejected, vector["expect"]):
        run()
