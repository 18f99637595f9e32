"""What nodes do once only: first the attack with the guard left out, then the guard.

The pads are toys: the attacks need no more of a pad than that it is the same twice.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tests.zipnet.protocol import support
from tests.zipnet.protocol.support import INSTANCE, OTHER_INSTANCE, h, refused
from zipnet.errors import GuardRefused, WireFormatError
from zipnet.protocol.guards import (
    Answer,
    ClientGuard,
    ServerGuard,
    answer_once,
    check_binding,
    check_resumed,
    reveal,
    seal_once,
    sign_header_once,
)
from zipnet.protocol.roster import Resume
from zipnet.protocol.unblind import commitment

CLIENT = ClientGuard(INSTANCE.binding)
SERVER = ServerGuard(INSTANCE.binding)
SERVER_ID = h("server")
HEADER, OTHER_HEADER = h("header"), h("another header")
NAMES = ("ann", "bob", "cyn", "dan")
SECRETS = {name: h(f"message of {name}") for name in NAMES}


class Memory:
    """A store that keeps all records, or fails after or before keeping one."""

    def __init__(self, fails: str = "") -> None:
        self.records: list[bytes] = []
        self.fails = fails

    def write(self, record: bytes) -> None:
        if self.fails == "before":
            raise OSError(28, "no space left")
        self.records.append(record)
        if self.fails == "after":
            raise OSError(5, "no answer from the disk")


def xor(*parts: bytes) -> bytes:
    return bytes(reduce(lambda a, b: a ^ b, column) for column in zip(*parts, strict=True))


def pad(name: str, server: str = "honest", round_number: int = 7, mixed: bytes = b"") -> bytes:
    return h(f"{name}'s pad with {server} in {round_number}, {mixed.hex()}")


def envelope(name: str, content: bytes) -> bytes:
    """Content under the pads of both servers."""
    return xor(content, pad(name), pad(name, "evil"))


def partial(participants: tuple[str, ...]) -> bytes:
    """What the honest server reveals for this set."""
    return xor(*(pad(name) for name in participants))


def answer_for(participants: tuple[str, ...], header: bytes = HEADER, number: int = 7) -> Answer:
    aggregate = h(f"aggregate of {participants}")
    return Answer(
        number,
        header,
        aggregate,
        h(f"bitmap of {participants}"),
        commitment(INSTANCE, number, aggregate, SERVER_ID, partial(participants)),
    )


def signed(guard: ServerGuard = SERVER, number: int = 7) -> ServerGuard:
    return sign_header_once(guard, number, HEADER, Memory())[0]


def test_rule_1_two_answers_are_a_clients_pad() -> None:
    everyone, without = NAMES, NAMES[1:]
    # Without the guard: the servers' other end colludes, and ann has no anonymity.
    leaked = xor(partial(everyone), partial(without))
    assert leaked == pad("ann")
    assert xor(envelope("ann", SECRETS["ann"]), leaked, pad("ann", "evil")) == SECRETS["ann"]

    store = Memory()
    guard, committed = answer_once(signed(), answer_for(everyone), store)
    assert committed == answer_for(everyone).commitment
    assert reveal(guard, INSTANCE, SERVER_ID, partial(everyone)) == partial(everyone)
    with refused(GuardRefused, "answered"):
        answer_once(guard, answer_for(without), store)
    with refused(GuardRefused, "revealed"):
        reveal(guard, INSTANCE, SERVER_ID, partial(without))
    assert len(store.records) == 1
    # Nor after a restart from the record.
    with refused(GuardRefused, "answered"):
        answer_once(ServerGuard.decode(store.records[-1]), answer_for(without), store)


@pytest.mark.parametrize("field", ["header", "aggregate", "participants", "commitment"])
def test_rule_1_an_answer_is_one_header_aggregate_bitmap_and_partial(field: str) -> None:
    first = answer_for(NAMES)
    guard, _ = answer_once(signed(), first, Memory())
    changed: dict[str, Any] = {field: h("other")}
    with refused(GuardRefused, "answered"):
        answer_once(guard, replace(first, **changed), Memory())


def test_rule_1_the_same_question_gets_the_same_answer_without_another_write() -> None:
    first = answer_for(NAMES)
    guard, committed = answer_once(signed(), first, Memory())
    store = Memory()
    assert answer_once(guard, first, store) == (guard, committed)
    assert store.records == []
    # Also when the next header has been signed meanwhile, but no longer after the next answer.
    later = signed(guard, 8)
    assert answer_once(later, first, store) == (later, committed)
    later, _ = answer_once(later, answer_for(NAMES[1:], number=8), store)
    with refused(GuardRefused, "answered"):
        answer_once(later, first, store)
    with refused(GuardRefused, "revealed"):
        reveal(later, INSTANCE, SERVER_ID, partial(NAMES))


def test_answers_are_under_the_header_that_was_signed() -> None:
    for guard in (SERVER, signed(number=6), signed(number=8)):
        with refused(GuardRefused, "answer.header"):
            answer_once(guard, answer_for(NAMES), Memory())
    with refused(GuardRefused, "answer.header"):
        answer_once(signed(), answer_for(NAMES, OTHER_HEADER), Memory())


def test_nothing_is_revealed_before_it_is_answered() -> None:
    with refused(GuardRefused, "revealed"):
        reveal(signed(), INSTANCE, SERVER_ID, partial(NAMES))
    guard, _ = answer_once(signed(), answer_for(NAMES), Memory())
    for instance, server in ((OTHER_INSTANCE, SERVER_ID), (INSTANCE, h("another server"))):
        with refused(GuardRefused, "revealed"):
            reveal(guard, instance, server, partial(NAMES))
    with refused(GuardRefused, "answered"):
        answer_once(SERVER, Answer(), Memory())


def test_rule_2_two_envelopes_under_one_pad_are_their_contents() -> None:
    hello, other = h("hello"), h("something else")
    first, second = envelope("ann", hello), envelope("ann", other)
    # Without the guard: who knows or guesses one content reads the other.
    assert xor(first, second, hello) == other

    store = Memory()
    guard, sent = seal_once(CLIENT, 7, HEADER, first, store)
    assert sent == first
    with refused(GuardRefused, "sealed"):
        seal_once(guard, 7, HEADER, second, store)
    with refused(GuardRefused, "sealed"):
        seal_once(guard, 6, HEADER, second, store)
    assert len(store.records) == 1


def test_rule_2_two_headers_of_one_round_are_an_intersection() -> None:
    # Without the guard: dan's message is in both outputs, so it is of someone who is in both.
    rosters = ("ann", "bob", "dan"), ("cyn", "dan")
    outputs = [{SECRETS[name] for name in names} for names in rosters]
    (common,) = outputs[0] & outputs[1]
    authors = set(rosters[0]) & set(rosters[1])
    assert {SECRETS[name] for name in authors} == {common}

    guard, _ = seal_once(CLIENT, 7, HEADER, b"under the first header", Memory())
    for second in (b"under the second header", b"under the first header"):
        with refused(GuardRefused, "sealed"):
            seal_once(guard, 7, OTHER_HEADER, second, Memory())
    assert seal_once(guard, 8, OTHER_HEADER, b"the next round", Memory())[1] == b"the next round"


def test_rule_3_a_server_signs_one_header_a_round() -> None:
    # Without the guard: two headers of one round are live, each with a roster of its own, and ann
    # is hidden only among those who are shown the one that she is shown.
    both = [support.header(support.roster(clients)) for clients in (5, 1)]
    assert both[0].round == both[1].round
    for one in both:
        support.signed(one).verify(support.peers(one))

    store = Memory()
    guard, to_sign = sign_header_once(SERVER, 7, HEADER, store)
    assert to_sign == HEADER
    for number, header in ((7, OTHER_HEADER), (6, HEADER), (6, OTHER_HEADER)):
        with refused(GuardRefused, "signed"):
            sign_header_once(guard, number, header, store)
    assert sign_header_once(guard, 7, HEADER, store) == (guard, HEADER)
    assert len(store.records) == 1
    # A header of the next round forgets no answer.
    guard, _ = answer_once(guard, answer_for(NAMES), store)
    assert signed(guard, 8).answer == guard.answer


def test_rule_6_a_client_set_back_would_seal_under_used_pads() -> None:
    backup = CLIENT.encode()
    guard, first = seal_once(CLIENT, 7, HEADER, envelope("ann", h("one")), Memory())
    # The guard alone was kept: refused. All was set back: the guard knows nothing.
    with refused(GuardRefused, "sealed"):
        seal_once(guard, 7, HEADER, envelope("ann", h("two")), Memory())
    _, second = seal_once(
        ClientGuard.decode(backup), 7, HEADER, envelope("ann", h("two")), Memory()
    )
    assert xor(first, second) == xor(h("one"), h("two"))

    # So a node that restarts acts only once its own Resume is in the log, from that round on, and
    # the nonce has changed its pads.
    own = h("fresh nonce")
    with refused(GuardRefused, "fenced"):
        check_resumed(own, None, 7)
    last = Resume(8, h("ann"), own)
    with refused(GuardRefused, "resumed-later"):
        check_resumed(own, last, 7)
    check_resumed(own, last, 8)
    assert pad("ann", mixed=own) != pad("ann")


def test_the_later_of_two_clones_fences_the_earlier() -> None:
    first, second = Resume(8, h("ann"), h("first")), Resume(9, h("ann"), h("second"))
    check_resumed(None, None, 7)
    check_resumed(first.nonce, first, 8)
    check_resumed(second.nonce, second, 9)
    for nonce in (None, first.nonce):
        with refused(GuardRefused, "fenced"):
            check_resumed(nonce, second, 9)


ACTIONS: list[Callable[[Memory], tuple[object, bytes]]] = [
    lambda store: seal_once(CLIENT, 7, HEADER, b"envelope", store),
    lambda store: sign_header_once(SERVER, 7, HEADER, store),
    lambda store: answer_once(signed(), answer_for(NAMES), store),
]


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("fails", ["before", "after"])
def test_no_bytes_come_out_if_the_store_fails(
    action: Callable[[Memory], tuple[object, bytes]], fails: str
) -> None:
    store = Memory(fails)
    with pytest.raises(OSError, match=r"disk|space"):
        action(store)
    assert len(store.records) == (fails == "after")


@pytest.mark.parametrize("action", ACTIONS)
def test_the_record_is_there_before_the_bytes_are(
    action: Callable[[Memory], tuple[object, bytes]],
) -> None:
    order = []
    store = Memory()
    guard, sent = action(store)
    order += [*store.records, sent]
    assert isinstance(guard, (ClientGuard, ServerGuard))
    assert order == [guard.encode(), sent]


def test_a_crash_between_writing_and_sending() -> None:
    store = Memory("after")
    with pytest.raises(OSError, match="disk"):
        seal_once(CLIENT, 7, HEADER, b"envelope", store)
    with pytest.raises(OSError, match="disk"):
        answer_once(signed(), answer_for(NAMES), store)
    client, server = ClientGuard.decode(store.records[0]), ServerGuard.decode(store.records[1])
    # The same bytes may go, and nothing has to be written for that; others may not.
    healthy = Memory()
    assert seal_once(client, 7, HEADER, b"envelope", healthy) == (client, b"envelope")
    committed = answer_for(NAMES).commitment
    assert answer_once(server, answer_for(NAMES), healthy) == (server, committed)
    assert healthy.records == []
    with refused(GuardRefused, "sealed"):
        seal_once(client, 7, HEADER, b"another", healthy)
    with refused(GuardRefused, "answered"):
        answer_once(server, answer_for(NAMES[1:]), healthy)


def test_a_guard_is_of_one_instance() -> None:
    for guard in (CLIENT, SERVER):
        check_binding(guard, INSTANCE.binding)
        with refused(GuardRefused, "binding"):
            check_binding(guard, OTHER_INSTANCE.binding)


ids = st.binary(min_size=32, max_size=32)
rounds = st.integers(0, (1 << 63) - 1)
clients = st.builds(ClientGuard, ids, rounds, ids, ids)
answers = st.builds(Answer, rounds, ids, ids, ids, ids)
servers = st.builds(ServerGuard, ids, rounds, ids, answers)


@given(clients, servers)
def test_records_round_trip_and_are_of_constant_size(
    client: ClientGuard, server: ServerGuard
) -> None:
    assert ClientGuard.decode(client.encode()) == client
    assert ServerGuard.decode(server.encode()) == server
    assert (len(client.encode()), len(server.encode())) == (127, 231)


@pytest.mark.parametrize("guard", [CLIENT, SERVER])
def test_malformed_records(guard: ClientGuard | ServerGuard) -> None:
    raw, kind = guard.encode(), type(guard)
    what = "client-guard" if kind is ClientGuard else "server-guard"
    with refused(WireFormatError, f"{what}.size"):
        kind.decode(raw + b"\0")
    with refused(WireFormatError, f"{what}.truncated"):
        kind.decode(raw[:-1])
    with refused(WireFormatError, f"{what}.version"):
        kind.decode(raw.replace(b"/v2", b"/v3", 1))
    other = SERVER if guard is CLIENT else CLIENT
    with refused(WireFormatError, f"{what}.{'size' if guard is CLIENT else 'version'}"):
        kind.decode(other.encode())
    with refused(WireFormatError, f"{what}.number"):
        kind.decode(raw[:55] + b"\xff" * 8 + raw[63:])


def test_envelopes_are_kept_as_a_hash() -> None:
    guard, _ = seal_once(CLIENT, 7, HEADER, b"envelope", Memory())
    expected = blake3(b"envelope", derive_key_context="zipnet/guard/envelope/v2").digest()
    assert guard.envelope == expected
