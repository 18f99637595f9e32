"""The frame of commands."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from tests.zipnet.committee.strategies import BODIES, IDS, NUMBERS
from tests.zipnet.protocol.support import INSTANCE, OTHER_INSTANCE, h, refused
from zipnet.committee import bodies
from zipnet.committee.bodies import ABOUT_A_ROUND, MAX_COMMAND, Body
from zipnet.committee.commands import COMMAND, MAX_CLOCK_MS, Command, kind_name
from zipnet.errors import Refused, WireFormatError

KEY = Ed25519PrivateKey.from_private_bytes(h("author"))
AUTHOR = KEY.public_key().public_bytes_raw()


def make(body: Body, round_number: int | None = None) -> bytes:
    number = int(body.KIND in ABOUT_A_ROUND) if round_number is None else round_number
    return Command.make(KEY, INSTANCE, body, round_number=number, seq=7, head=h("head"), clock_ms=9)


@given(BODIES, NUMBERS, NUMBERS, IDS, st.integers(0, MAX_CLOCK_MS))
def test_each_command_reads_back(
    body: Body, round_number: int, seq: int, head: bytes, clock: int
) -> None:
    number = max(round_number, 1) if body.KIND in ABOUT_A_ROUND else 0
    raw = Command.make(KEY, INSTANCE, body, round_number=number, seq=seq, head=head, clock_ms=clock)
    decoded = Command.decode(raw)
    assert decoded.encode() == raw
    assert decoded == Command(AUTHOR, INSTANCE, number, seq, head, clock, body, decoded.signature)
    decoded.check_signature(raw)


def test_the_layout_is_as_documented() -> None:
    raw = make(bodies.CommitPartial(h("commitment")), 5)
    part = b"".join(
        (
            b"\0\2\x0e",
            AUTHOR,
            INSTANCE.deployment_id,
            INSTANCE.generation,
            (5).to_bytes(8, "big"),
            (7).to_bytes(8, "big"),
            h("head"),
            (9).to_bytes(8, "big"),
            h("commitment"),
        )
    )
    assert raw == part + INSTANCE.sign(KEY, COMMAND, 5, part)


@given(BODIES, st.data())
def test_changed_bytes_are_refused_by_form_or_signature(body: Body, data: st.DataObject) -> None:
    raw = bytearray(make(body))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    changed = bytes(raw)
    try:
        decoded = Command.decode(changed)
    except WireFormatError:
        return
    assert decoded.encode() == changed
    with refused(Refused, "signature"):
        decoded.check_signature(changed)


@given(BODIES)
def test_a_round_stands_exactly_where_the_kind_is_about_one(body: Body) -> None:
    with refused(WireFormatError, "command.round"):
        Command.decode(make(body, int(body.KIND not in ABOUT_A_ROUND)))


@pytest.mark.parametrize("rule", ["truncated", "trailing"])
@given(body=BODIES, data=st.data())
def test_a_command_has_one_length(rule: str, body: Body, data: st.DataObject) -> None:
    raw = make(body)
    end = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(WireFormatError) as caught:
        Command.decode(raw + b"\0" if rule == "trailing" else raw[:end])
    # What is cut off may also make the rest another form of the body.
    assert caught.value.rule == f"command.{rule}"


def test_a_command_is_of_bounded_size() -> None:
    with refused(WireFormatError, "command.size"):
        Command.decode(bytes(MAX_COMMAND + 1))


def test_the_domain_is_of_commands_only() -> None:
    raw = make(bodies.Tick())
    forged = raw[:-64] + INSTANCE.sign(KEY, b"zipnet/sig/record/v2", 0, raw[:-64])
    with refused(Refused, "signature"):
        Command.decode(forged).check_signature(forged)


def test_a_signature_holds_in_one_round_and_generation() -> None:
    raw = make(bodies.ProposeHeader(), 3)
    part, decoded = raw[:-64], Command.decode(raw)
    for other in (
        replace(decoded, signature=INSTANCE.sign(KEY, COMMAND, 4, part)),
        replace(decoded, signature=OTHER_INSTANCE.sign(KEY, COMMAND, 3, part)),
    ):
        with refused(Refused, "signature"):
            other.check_signature(raw)


def test_a_kind_has_a_name_for_log_lines() -> None:
    assert kind_name(make(bodies.Tick())) == "Tick"
    assert kind_name(b"") == "unreadable"
