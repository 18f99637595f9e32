"""Which images get at sealed data: real lists, and quotes of a software TDX."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from attestation.allowlist import AllowList, Entry
from attestation.bundle import Bundle, Role, Ticket
from attestation.errors import SealRefused
from attestation.measure.record import Measurement
from attestation.providers.mock import MockTee, MockVerifier
from attestation.ticket import AllOf, BundleValidator, Challenge
from attestation.unsafe_mock_tdx import UnsafeMockTdx
from tests.attestation.seal.committee_simulator import NOW, Node, Simulator, names, run
from tests.attestation.tickets import ALLOW_LIST, ENTRY, PEER, at

TEE = MockTee(b"tests of committee sealing")
COLLATERAL = TEE.collateral()
OLD = replace(ENTRY, role="client")
NEW = replace(OLD, mr_td=b"\xb0" * 48, rtmr2=b"\xb2" * 48, uki_sha256=b"\xb3" * 32)
UNLISTED = replace(OLD, mr_td=b"\xc0" * 48)
FIRST = replace(ALLOW_LIST, number=3, entries=(Entry(OLD),))
BOTH = replace(ALLOW_LIST, number=4, entries=(Entry(OLD), Entry(NEW)))
RETIRED = replace(ALLOW_LIST, number=5, entries=(Entry(OLD, retire_after=NOW - 1), Entry(NEW)))


def quote(image: Measurement, **knobs: bytes) -> Callable[[Ticket], bytes]:
    """What a TD of this image shows."""

    def draw(ticket: Ticket) -> bytes:
        body = {
            "mr_td": image.mr_td,
            "rtmr1": image.rtmr1,
            "rtmr2": image.rtmr2,
            "rtmr3": bytes(48),
            "mr_config_id": ticket.config_digest + bytes(16),
        }
        return TEE.quote(ticket.report_data(), body={**body, **knobs})

    return draw


def under(simulator: Simulator, accepted: AllowList) -> None:
    """The list that is in force from now on."""
    tdx = UnsafeMockTdx(verifier=MockVerifier(TEE.root_der)).require_mrtd(accepted)
    stack = AllOf(BundleValidator(), tdx)

    def validate(bundle: Bundle, challenge: bytes) -> None:
        peer = replace(
            PEER,
            peer_id=bundle.ticket.peer_id,
            roles=frozenset({Role.SEALER}),
            now=at(NOW),
            freshness=Challenge(challenge),
            collateral=COLLATERAL,
        )
        stack.validate(bundle, peer)

    simulator.validate, simulator.list_number = validate, accepted.number


def refused(coroutine: Awaitable[object], rule: str, member: bytes) -> None:
    """Refused by this rule of the validators, as this member says."""
    with pytest.raises(SealRefused) as caught:
        run(coroutine)
    assert caught.value.rule == rule, caught.value.diagnostics()
    assert f"{names(member)} refuses" in caught.value.message


@pytest.fixture
def simulator() -> Simulator:
    simulator = Simulator()
    under(simulator, FIRST)
    return simulator


@pytest.fixture
def node(simulator: Simulator) -> Node:
    node = Node(simulator, quote=quote(OLD))
    run(node.boot().create(b"secret", 3))
    return node


def test_an_upgraded_image_on_the_list_opens(simulator: Simulator, node: Node) -> None:
    assert run(node.boot().open()) == b"secret"
    node.quote = quote(NEW)
    refused(node.boot().open(), "mrtd", simulator.ids[0])
    under(simulator, BOTH)
    assert run(node.boot().open()) == b"secret"
    node.quote = quote(OLD)
    assert run(node.boot().open()) == b"secret"


def test_a_retired_and_an_unlisted_image_can_t_open(simulator: Simulator, node: Node) -> None:
    under(simulator, RETIRED)
    refused(node.boot().open(), "retired", simulator.ids[0])
    refused(node.boot().unsafe_open_older(), "retired", simulator.ids[0])
    refused(node.boot().create(b"", 5), "retired", simulator.ids[0])
    node.quote = quote(UNLISTED)
    refused(node.boot().open(), "mrtd", simulator.ids[0])
    node.quote = quote(NEW)
    assert run(node.boot().open()) == b"secret"


def test_one_member_that_goes_by_the_list_is_enough(simulator: Simulator, node: Node) -> None:
    under(simulator, RETIRED)
    strict, honest = simulator.validate, simulator.ids[2]
    calls = []

    def careless(bundle: Bundle, challenge: bytes) -> None:
        calls.append(challenge)
        # The members are asked in the order of their ids.
        if len(calls) % 3 == 0:
            strict(bundle, challenge)

    simulator.validate = careless
    refused(node.boot().open(), "retired", honest)


def test_an_image_that_retires_can_t_commit(simulator: Simulator, node: Node) -> None:
    sealer = node.boot()
    run(sealer.open())
    under(simulator, RETIRED)
    refused(sealer.update(b"2"), "retired", simulator.ids[0])
    assert {known.version for known in simulator.known(node)} == {1}


def test_a_new_key_after_a_new_list(simulator: Simulator, node: Node) -> None:
    under(simulator, RETIRED)
    node.quote = quote(NEW)
    sealer = node.boot()
    run(sealer.open())
    run(sealer.create(b"of the new list", 5))
    assert run(node.boot().open()) == b"of the new list"
    # Members that are still under the list before give nothing for it.
    under(simulator, BOTH)
    refused(node.boot().open(), "seal.list", simulator.ids[0])


def test_a_quote_that_is_not_of_this_request(simulator: Simulator, node: Node) -> None:
    drawn = quote(OLD)
    kept: list[bytes] = []

    def first(ticket: Ticket) -> bytes:
        kept.append(drawn(ticket))
        return kept[0]

    node.quote = first
    assert run(node.boot().open()) == b"secret"
    refused(node.boot().open(), "report-data", simulator.ids[0])


def test_an_accepted_guest_under_another_instance_key(simulator: Simulator, node: Node) -> None:
    other = replace(node, seed=b"\x31" * 32)
    with pytest.raises(SealRefused) as caught:
        run(other.boot().open())
    assert caught.value.rule == "seal.foreign"
    # It claims to be the instance, in ticket and request, and signs with what it has.
    other.changes = {"instance_id": node.instance}
    committee = simulator.committee(node.instance)
    sealer = other.boot()
    sealer._committee = committee
    refused(sealer.open(), "seal.binding", simulator.ids[0])
    # Nobody has counted that as a start of the real one.
    assert {known.boots for known in simulator.known(node)} == {1}


def test_no_quote_and_a_debug_guest(simulator: Simulator, node: Node) -> None:
    node.quote = lambda _: b""
    refused(node.boot().open(), "size", simulator.ids[0])
    node.quote = quote(OLD, td_attributes=b"\1" + bytes(7))
    refused(node.boot().open(), "debug-td", simulator.ids[0])
