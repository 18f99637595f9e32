"""One member: nonces, what a request must be bound by, what it keeps, what it releases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from attestation.bundle import Bundle, Fresh, Role
from attestation.errors import (
    AttestationError,
    SealFormatError,
    SealRefused,
    SealUnavailable,
    TicketFormatError,
    TicketRejected,
)
from attestation.seal.committee import Asking, read
from attestation.seal.committee_format import (
    ID,
    MAX_REQUEST,
    MAX_RULE,
    MAX_TEXT,
    NOTHING,
    Answer,
    Asked,
    Op,
    Refusal,
    Released,
    Request,
    Seat,
)
from attestation.seal.committee_member import MAX_NONCES, NONCE_LIFE, Known, Member
from tests.attestation.measure.support import refused
from tests.attestation.seal.committee_simulator import Node, Simulator
from tests.attestation.tickets import DEPLOYMENT

KEY_ID = b"\x0c" * ID
DIGEST = b"\x0d" * ID
OWN = X25519PrivateKey.from_private_bytes(b"\x0e" * 32)


class Alone:
    """A committee of one, and an asker of requests that no honest asker would make."""

    def __init__(self) -> None:
        self.simulator = Simulator(1)
        (self.id,) = self.simulator.ids
        self.member: Member = self.simulator.members[self.id]
        self.node = Node(self.simulator)
        self.now = 1_000

    def request(self, op: Op = Op.OPEN, nonce: bytes | None = None, **changes: Any) -> Request:
        boot = changes.pop("boot", 0)
        seat = Seat(self.id, self.member.nonce(self.now) if nonce is None else nonce, boot)
        first = (0, NOTHING) if op is Op.CREATE else (1, DIGEST)
        request = Request(op, DEPLOYMENT, self.node.instance, KEY_ID, 3, *first, (seat,))
        return replace(request, **changes)

    def raw(self, request: Request, *, dh_pub: bytes = b"", **ticket: Any) -> bytes:
        self.node.changes = ticket
        public = dh_pub or OWN.public_key().public_bytes_raw()
        return request.encode() + asyncio.run(self.node.bundle(request.challenge, public))

    def answered(self, raw: bytes, list_number: int = 3) -> Released:
        """Straight from the member: what it raises gets out."""
        asked = self.member.take(raw, self.now)
        answer = self.member.answer(asked, self.simulator.validate, list_number)
        asking = Asking(asked.request, raw, OWN)
        return read(self.simulator.committee(self.node.instance), asking, {self.id: answer})[
            self.id
        ]

    def asked(self, op: Op = Op.OPEN, **changes: Any) -> Released:
        return self.answered(self.raw(self.request(op, **changes)))

    def commit(self, version: int, digest: bytes = DIGEST, boot: int = 1) -> Released:
        return self.asked(Op.COMMIT, version=version, digest=digest, boot=boot)

    @property
    def known(self) -> Known | None:
        return self.simulator.tables[self.id].kept.get(DEPLOYMENT + self.node.instance)


# Nonces.


def test_a_nonce_serves_once() -> None:
    one = Alone()
    raw = one.raw(one.request())
    one.answered(raw)
    with refused(SealRefused, "seal.nonce"):
        one.answered(raw)


def test_a_nonce_is_used_up_by_a_request_that_is_refused() -> None:
    one = Alone()
    nonce = one.member.nonce(one.now)
    with refused(SealRefused, "seal.binding"):
        one.answered(one.raw(one.request(nonce=nonce), fresh=bytes(32)))
    with refused(SealRefused, "seal.nonce"):
        one.answered(one.raw(one.request(nonce=nonce)))


@pytest.mark.parametrize("later", [NONCE_LIFE + 1, -1])
def test_a_nonce_ends(later: int) -> None:
    one = Alone()
    raw = one.raw(one.request())
    one.now += later
    with refused(SealRefused, "seal.nonce"):
        one.answered(raw)


def test_a_nonce_holds_for_a_minute() -> None:
    one = Alone()
    raw = one.raw(one.request())
    one.now += NONCE_LIFE
    assert one.answered(raw).boot == 1


def test_the_oldest_nonce_makes_room() -> None:
    one = Alone()
    first, second = one.raw(one.request()), one.raw(one.request())
    for _ in range(MAX_NONCES - 1):
        one.member.nonce(one.now)
    assert len(one.member._nonces) == MAX_NONCES
    with refused(SealRefused, "seal.nonce"):
        one.answered(first)
    assert one.answered(second).boot == 1


def test_a_nonce_of_nobody_and_a_request_to_others() -> None:
    one = Alone()
    with refused(SealRefused, "seal.nonce"):
        one.answered(one.raw(one.request(nonce=bytes(32))))
    seats = (Seat(bytes(32), one.member.nonce(one.now)),)
    with refused(SealRefused, "seal.nonce"):
        one.answered(one.raw(one.request(seats=seats)))


def test_a_request_that_was_held_up_fences_nobody() -> None:
    one = Alone()
    late, early = one.raw(one.request()), one.raw(one.request())
    assert one.answered(early).boot == 1
    with refused(SealRefused, "seal.late"):
        one.answered(late)
    assert one.commit(1).boot == 1
    # What another instance asks has nothing to do with it.
    one.node = Node(one.simulator, seed=b"\x99" * 32)
    other = one.raw(one.request())
    one.node = Node(one.simulator)
    one.asked()
    one.node = Node(one.simulator, seed=b"\x99" * 32)
    assert one.answered(other).boot == 1


# What the ticket binds.


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"role": Role.CLIENT}, "role"),
        ({"role": Role.SERVER}, "role"),
        ({"fresh": b"\x01" * 32}, "challenge"),
        ({"fresh_kind": Fresh.BEACON}, "kind of freshness"),
        ({"deployment_id": b"\x02" * 32}, "deployment"),
        ({"instance_id": b"\x02" * 32}, "instance"),
    ],
)
def test_a_ticket_for_something_else(changes: dict[str, Any], what: str) -> None:
    one = Alone()
    with refused(SealRefused, "seal.binding", f"its {what} differs"):
        one.answered(one.raw(one.request(), **changes))
    assert one.known is None


def test_another_guest_without_the_instance_key_can_t_ask() -> None:
    one = Alone()
    victim = one.node.instance
    one.node = Node(one.simulator, seed=b"\x99" * 32)
    with refused(SealRefused, "seal.binding", "its peer differs"):
        one.answered(one.raw(one.request(instance=victim), instance_id=victim))
    # Nor with the victim's name on a ticket that another key signs.
    request = one.request(instance=victim)
    bundle = Bundle.decode(one.raw(request, instance_id=victim)[len(request.encode()) :])
    forged = replace(bundle, ticket=replace(bundle.ticket, peer_id=victim))
    with refused(TicketRejected, "pop"):
        one.answered(request.encode() + forged.encode())
    assert one.known is None


@pytest.mark.parametrize(
    "change",
    [
        lambda request: replace(request, op=Op.COMMIT, seats=(replace(request.seats[0], boot=1),)),
        lambda request: replace(request, key_id=bytes(32)),
        lambda request: replace(request, list_number=2),
        lambda request: replace(request, version=2),
        lambda request: replace(request, digest=bytes(32)),
        lambda request: replace(request, seats=(Seat(bytes(32), bytes(32)), *request.seats)),
    ],
)
def test_the_challenge_binds_every_field(change: Callable[[Request], Request]) -> None:
    one = Alone()
    request = one.request()
    bundle = one.raw(request)[len(request.encode()) :]
    with refused(SealRefused, "seal.binding", "its challenge differs"):
        one.answered(change(request).encode() + bundle)


def test_bytes_that_are_no_request() -> None:
    one = Alone()
    raw = one.raw(one.request())
    for broken in (b"", raw[:100], b"x" + raw[1:], bytes(MAX_REQUEST + 1)):
        with refused(SealFormatError, "seal.request"):
            one.member.take(broken, one.now)
    for broken in (raw[:-1], raw + b"\0"):
        with refused(
            TicketFormatError, "bundle.size" if broken == raw[:-1] else "bundle.quote-size"
        ):
            one.member.take(broken, one.now)


def test_nobody_is_told_under_a_key_that_hides_nothing() -> None:
    one = Alone()
    with refused(SealRefused, "seal.ephemeral"):
        one.answered(one.raw(one.request(), dh_pub=(1).to_bytes(32, "little")))
    assert one.known is None


# What is released.


def test_a_contribution_is_of_deployment_instance_key_and_list() -> None:
    one = Alone()
    first = one.asked().contribution
    assert one.asked(Op.CREATE).contribution == first
    found = {
        first,
        one.asked(key_id=bytes(32)).contribution,
        one.asked(list_number=2).contribution,
    }
    one.node = Node(one.simulator, seed=b"\x99" * 32)
    found.add(one.asked().contribution)
    one.member = one.simulator.member(one.id, root=b"\x98" * 32)
    found.add(one.asked().contribution)
    assert len(found) == 5


def test_a_commit_releases_no_contribution() -> None:
    one = Alone()
    one.asked(Op.CREATE)
    assert one.commit(1).contribution == NOTHING


def test_a_list_that_is_not_in_force_yet() -> None:
    one = Alone()
    for op in (Op.OPEN, Op.CREATE):
        with refused(SealRefused, "seal.list"):
            one.asked(op, list_number=4)
    assert one.known is None
    assert one.answered(one.raw(one.request(list_number=4)), list_number=4).boot == 1


def test_nothing_leaves_when_the_table_fails() -> None:
    one = Alone()

    def full(key: bytes, known: Known) -> None:
        raise SealUnavailable("no space", rule="test.table")

    one.simulator.tables[one.id].put = full  # type: ignore[method-assign]
    with refused(SealUnavailable, "test.table"):
        one.asked()


def test_nothing_is_kept_of_a_guest_that_the_validator_refuses() -> None:
    one = Alone()

    def retired(bundle: Bundle, challenge: bytes) -> None:
        raise TicketRejected("the image is retired", rule="retired")

    one.simulator.validate = retired
    with refused(TicketRejected, "retired"):
        one.asked()
    assert one.known is None


# Versions and boots.


def test_versions_follow_each_other() -> None:
    one = Alone()
    assert one.asked().version == 0
    for version in (1, 2, 3):
        assert one.commit(version, bytes([version]) * ID).version == version
    for version in (5, 2, 1):
        with refused(SealRefused, "seal.version"):
            one.commit(version)
    assert one.known == Known(3, b"\x03" * ID, 1)


def test_the_same_commit_again() -> None:
    one = Alone()
    one.asked()
    first = one.commit(1)
    assert one.commit(1) == first
    with refused(SealRefused, "seal.fork"):
        one.commit(1, bytes(ID))


def test_after_create_versions_may_be_left_out_once() -> None:
    one = Alone()
    one.asked(Op.CREATE)
    assert one.commit(7).version == 7
    with refused(SealRefused, "seal.version"):
        one.commit(9)
    one.asked(Op.CREATE)
    with refused(SealRefused, "seal.version"):
        one.commit(6, boot=2)
    with refused(SealRefused, "seal.fork"):
        one.commit(7, bytes(ID), boot=2)
    one.asked(Op.OPEN)
    with refused(SealRefused, "seal.version"):
        one.commit(9, boot=3)


def test_every_open_and_create_is_a_boot() -> None:
    one = Alone()
    assert [one.asked(op).boot for op in (Op.OPEN, Op.CREATE, Op.OPEN)] == [1, 2, 3]
    assert one.commit(1, boot=3).boot == 3
    for boot in (1, 2):
        with refused(SealRefused, "seal.fenced"):
            one.commit(2, boot=boot)
    with refused(SealRefused, "seal.behind"):
        one.commit(2, boot=4)


# Refusals on the way back.


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        ("retired", "no\n\x1b[31mentry é", Refusal("retired", "no??[31mentry ?")),
        ("Not A Rule", "", Refusal("seal.refused", "")),
        ("", "x" * 1_000, Refusal("seal.refused", "x" * MAX_TEXT)),
        ("a" * (MAX_RULE + 1), "", Refusal("seal.refused", "")),
    ],
)
def test_a_refusal_is_signed_short_and_printable(rule: str, text: str, expected: Refusal) -> None:
    one = Alone()
    raw = one.raw(one.request())
    answer = one.member.refuse(raw, AttestationError(text, rule=rule))
    assert Answer.decode(answer).content == expected
    asking = Asking(Asked.decode(raw).request, raw, OWN)
    committee = one.simulator.committee(one.node.instance)
    with refused(SealRefused, expected.rule, f"refuses: {expected.text}"):
        read(committee, asking, {one.id: answer})
    other = replace(asking, raw=raw + b"\0")
    with refused(SealRefused, "seal.signature"):
        read(committee, other, {one.id: answer})
