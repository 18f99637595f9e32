"""What a guest is given: round trips, and everything that is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.zipnet.node.grants import AGGREGATOR, ALL, ASKED, CLIENT, FILED, SERVER, client
from zipnet.errors import DocumentRejected
from zipnet.node.grant import MAX_BYTES, ForClient, Grant
from zipnet.preflight import Role


def raw(value: object) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"


def refused(data: bytes) -> str:
    with pytest.raises(DocumentRejected) as caught:
        Grant.loads(data)
    return caught.value.rule


def changed(grant: Grant, change: Callable[[dict[str, Any]], object]) -> str:
    """The rule that refuses a grant after a change of its JSON value."""
    value = json.loads(grant.dumps())
    change(value)
    return refused(raw(value))


@pytest.mark.parametrize("grant", ALL, ids=lambda grant: str(grant.role))
def test_there_and_back(grant: Grant) -> None:
    data = grant.dumps()
    assert data.isascii()
    assert Grant.loads(data) == grant
    assert Grant.loads(data).role is grant.role
    assert data == raw(json.loads(data))


def test_roles() -> None:
    assert [grant.role for grant in ALL] == list(Role)


def test_a_client_that_keeps_nothing() -> None:
    grant = client(trust=FILED, instance_key=b"", message="")
    assert Grant.loads(grant.dumps()) == grant


def test_secrets_are_not_shown() -> None:
    for grant in ALL:
        text = repr(grant)
        assert "horse" not in text
        assert "hello" not in text
        assert "\\x09" not in text


def test_other_texts_of_the_same() -> None:
    value = json.loads(AGGREGATOR.dumps())
    for data in (
        json.dumps(value, sort_keys=True).encode(),
        AGGREGATOR.dumps() + b" ",
        json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n",
        AGGREGATOR.dumps().replace(b'"metrics": true', b'"metrics":  true'),
    ):
        assert refused(data) == "grant.canonical"
    key = b'"replicas": 1,'
    assert refused(AGGREGATOR.dumps().replace(key, key + key)) == "grant.duplicate-key"


@pytest.mark.parametrize("data", [b"", b"\xff", b"{", b"[" * 100_000, b"NaN", b"1" * 5000])
def test_no_json(data: bytes) -> None:
    assert refused(data) in {"grant.json", "grant.fields"}


def test_too_large() -> None:
    assert refused(b" " * (MAX_BYTES + 1)) == "grant.size"


@pytest.mark.parametrize("grant", ALL, ids=lambda grant: str(grant.role))
def test_fields(grant: Grant) -> None:
    whole = json.loads(grant.dumps())
    others = [json.loads(other.dumps()) for other in ALL if other is not grant]
    wrong = [without(whole, name) for name in whole]
    wrong += [whole | {"own": without(whole["own"], name)} for name in whole["own"]]
    wrong += [whole | {"more": 1}, whole | {"own": whole["own"] | {"secrets": ""}}]
    # What belongs to another role.
    wrong += [whole | {"own": other["own"]} for other in others]
    wrong += [whole | {"role": other["role"]} for other in others]
    assert {refused(raw(value)) for value in wrong} == {"grant.fields"}


def without(value: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: each for key, each in value.items() if key != name}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("schema", "zipnet.grant/2"),
        ("role", "gateway"),
        ("role", ["server"]),
        ("universe", "ab"),
        ("universe", "AB" * 32),
        ("universe", 7),
        ("urls", []),
        ("urls", ["http://a:1"]),
        ("urls", ["nats://user:word@a:1"]),
        ("urls", ["nats://a:1"] * 17),
        ("urls", "nats://a:1"),
        ("urls", [None]),
        ("replicas", 0),
        ("replicas", 6),
        ("replicas", True),
        ("replicas", 1.0),
        ("replicas", "3"),
        ("certificates", None),
        ("metrics", 1),
        ("metrics", "true"),
    ],
)
def test_values(name: str, value: object) -> None:
    assert changed(SERVER, lambda found: found.update({name: value})) == f"grant.{name}"


@pytest.mark.parametrize(
    ("grant", "name", "value", "rule"),
    [
        (SERVER, "committee_secret", "", "grant.committee_secret"),
        (SERVER, "committee_secret", "x" * 4097, "grant.committee_secret"),
        (SERVER, "committee_secret", "\ud800", "grant.committee_secret"),
        (SERVER, "committee_secret", 1, "grant.committee_secret"),
        (SERVER, "endorsement", "ab" * 167, "grant.endorsement"),
        (SERVER, "endorsement", "", "grant.endorsement"),
        (SERVER, "trees", ["00"], "grant.tree.truncated"),
        (SERVER, "trees", ["0000"], "grant.tree.size"),
        (SERVER, "trees", ["0001" + "00" * 67], "grant.tree.trailing"),
        (SERVER, "trees", {}, "grant.trees"),
        (SERVER, "door", "http://a", "grant.door"),
        (SERVER, "door", None, "grant.door"),
        (SERVER, "door", 0, "grant.door"),
        (SERVER, "recovery", "ab", "grant.recovery.truncated"),
        (SERVER, "recovery", "a", "grant.recovery"),
        (AGGREGATOR, "secret", "", "grant.secret"),
        (AGGREGATOR, "secret", None, "grant.secret"),
        (CLIENT, "instance_key", "ab", "grant.instance_key"),
        (CLIENT, "instance_key", False, "grant.instance_key"),
        (CLIENT, "message", "x" * 4097, "grant.message"),
        (CLIENT, "message", None, "grant.message"),
        (CLIENT, "cadence_ms", 0, "grant.cadence_ms"),
        (CLIENT, "cadence_ms", True, "grant.cadence_ms"),
        (CLIENT, "cadence_ms", 1 << 33, "grant.cadence_ms"),
        (CLIENT, "trust", None, "grant.fields"),
    ],
)
def test_values_of_a_role(grant: Grant, name: str, value: object, rule: str) -> None:
    found = changed(grant, lambda top: top["own"].update({name: value}))
    assert found == rule


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("collateral", [], "grant.collateral"),
        ("collateral", {}, "grant.fields"),
        ("pccs", "", "grant.trust"),
        ("pccs", None, "grant.pccs"),
        ("fmspcs", [], "grant.trust"),
        ("fmspcs", ["ab"], "grant.fmspcs"),
        ("fmspcs", ["ab" * 6] * 17, "grant.fmspcs"),
        ("mock_root", "x", "grant.mock_root"),
    ],
)
def test_values_of_trust(name: str, value: object, rule: str) -> None:
    found = changed(CLIENT, lambda top: top["own"]["trust"].update({name: value}))
    assert found == rule or found.startswith("grant.collateral")


def test_what_can_not_be_written() -> None:
    for grant, rule in (
        (replace(SERVER, urls=()), "grant.urls"),
        (replace(SERVER, certificates=b"\xff"), "grant.canonical"),
        (replace(SERVER, certificates=b"x" * MAX_BYTES), "grant.size"),
        (client(trust=replace(ASKED, collateral=FILED.collateral)), "grant.trust"),
        (client(cadence_ms=0), "grant.cadence_ms"),
        (client(instance_key=b"short"), "grant.instance_key"),
        (client(message="\ud800"), "grant.message"),
    ):
        with pytest.raises(DocumentRejected) as caught:
            grant.dumps()
        assert caught.value.rule == rule


@given(
    message=st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    cadence=st.integers(1, 1 << 32),
    key=st.one_of(st.just(b""), st.binary(min_size=32, max_size=32)),
    replicas=st.integers(1, 5),
    metrics=st.booleans(),
)
def test_any_client(message: str, cadence: int, key: bytes, replicas: int, metrics: bool) -> None:
    own = ForClient(ASKED, key, message, cadence)
    grant = Grant(own, ("nats://a:1",), replicas=replicas, metrics=metrics)
    assert Grant.loads(grant.dumps()) == grant


@given(data=st.data())
def test_any_byte(data: st.DataObject) -> None:
    """A changed byte gives another grant, or an error of our tree; never the same one."""
    before = data.draw(st.sampled_from([grant.dumps() for grant in ALL]))
    at = data.draw(st.integers(0, len(before) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda one: one != before[at]))
    after = before[:at] + bytes([value]) + before[at + 1 :]
    rule, told = outcome(after)
    assert rule == "" or rule.startswith("grant.")
    assert "horse" not in told


def outcome(data: bytes) -> tuple[str, str]:
    """By which rule the bytes are refused, and what is said; nothing if they are taken."""
    try:
        assert Grant.loads(data).dumps() == data
    except DocumentRejected as error:
        return error.rule, error.diagnostics()
    return "", ""
