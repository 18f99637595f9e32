"""Provisioning without a network: formats, the judgement of both sides, and what each refuses."""

import hashlib
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.errors import (
    AttestationError,
    PolicyError,
    ProviderFailed,
    ProvisionFormatError,
    ProvisionRefused,
    QuoteFormatError,
    TicketFormatError,
    TicketRejected,
)
from attestation.providers.mock import MockTee, MockVerifier
from attestation.provision import (
    MAX_CONFIG,
    MAX_GRANT,
    MAX_OFFER,
    MAX_SECRET,
    UNTOLD,
    Accepted,
    Grant,
    Offer,
    make_grant,
)
from attestation.tdx import Tdx
from attestation.ticket import BundleValidator, Fresh, Role
from attestation.unsafe_mock_tdx import UnsafeMockTdx
from attestation.verify import TcbStatus
from tests.attestation.measure.support import refused
from tests.attestation.provision_support import (
    CHALLENGE,
    COLLEAGUE,
    CONFIG,
    DIGEST,
    OPERATOR,
    SECRET,
    STRANGER,
    TEE,
    ConfigError,
    Provider,
    accepted,
    draws,
    granted,
    guest,
)
from tests.attestation.tickets import ALLOW_LIST, ENTRY, ISSUED, at

OFFER_DOMAIN = b"attestation/provision/offer/v1"
GRANT_DOMAIN = b"attestation/provision/grant/v1"
POLICY = UnsafeMockTdx(verifier=MockVerifier(TEE.root_der))
ONE = b"\1" + bytes(31)


def fresh(challenge: bytes, box_pub: bytes) -> bytes:
    parts = (OFFER_DOMAIN, challenge, box_pub)
    return hashlib.sha256(b"".join(len(p).to_bytes(4, "big") + p for p in parts)).digest()


def test_from_end_to_end() -> None:
    waiting = guest()
    offer = waiting.offer(CHALLENGE)
    judged = accepted(offer)
    assert judged.expiry.measurement == ENTRY
    given = waiting.accept(make_grant(judged, OPERATOR, CONFIG, SECRET, draws("tool")))
    assert (given.config, given.secret) == (CONFIG, SECRET)
    assert given.signer == OPERATOR.public_key().public_bytes_raw()


def test_the_offer_says_who_asks_and_nothing_of_a_deployment() -> None:
    draw = draws("boot")
    signing = Ed25519PrivateKey.from_private_bytes(draw(32))
    dh_pub = draw(32)
    box_pub = X25519PrivateKey.from_private_bytes(draw(32)).public_key().public_bytes_raw()
    offer = Offer.decode(guest(boot="boot").offer(CHALLENGE))
    ticket = offer.ticket
    assert offer.box_pub == offer.raw[:32] == box_pub
    assert offer.raw[32:] == offer.bundle.encode()
    assert ticket.role is Role.SERVER
    assert ticket.deployment_id == UNTOLD == bytes(32)
    assert ticket.peer_id == signing.public_key().public_bytes_raw()
    assert ticket.instance_id == ticket.dh_pub == dh_pub
    assert ticket.policy_id == hashlib.sha256(b"attestation/provision/policy/v1").digest()
    assert ticket.config_digest == DIGEST
    assert ticket.boot_epoch == ticket.issued_at == ISSUED
    assert ticket.not_after == ISSUED + 600
    assert ticket.fresh_kind is Fresh.CHALLENGE
    assert ticket.fresh == fresh(CHALLENGE, box_pub)


def test_the_grant_opens_as_the_format_says() -> None:
    draw = draws("boot")
    _ = draw(32), draw(32)
    key = X25519PrivateKey.from_private_bytes(draw(32))
    offer = guest(boot="boot").offer(CHALLENGE)
    raw = granted(offer)

    signer, body, signature = raw[:32], raw[32:-64], raw[-64:]
    size = int.from_bytes(body[:4], "big")
    config, rest = body[4 : 4 + size], body[4 + size :]
    box = rest[4:]
    assert (config, int.from_bytes(rest[:4], "big")) == (CONFIG, len(box))
    hashes = b"".join(hashlib.sha512(part).digest() for part in (offer, config, box))
    OPERATOR.public_key().verify(signature, GRANT_DOMAIN + b"\0" + hashes)
    info = GRANT_DOMAIN + box[:32] + key.public_key().public_bytes_raw()
    shared = key.exchange(X25519PublicKey.from_public_bytes(box[:32]))
    derived = HKDF(SHA256(), 32, hashlib.sha256(offer).digest(), info).derive(shared)
    aad = hashlib.sha512(offer).digest() + hashlib.sha512(config).digest() + signer
    assert ChaCha20Poly1305(derived).decrypt(bytes(12), box[32:], aad) == SECRET


def test_quotes_are_dear() -> None:
    provider = Provider()
    waiting = guest(provider)
    for asked in (2, 3, 4):
        waiting.offer(CHALLENGE)
        assert provider.asked == asked


# What the tool refuses.

TOOL: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"challenge": b"\xcb" * 32}, "challenge"),
    ({"role": Role.CLIENT}, {}, "role"),
    ({"role": Role.CLIENT}, {"role": Role.CLIENT}, "image-role"),
    ({"mr_td": b"\xee" * 48}, {}, "mrtd"),
    ({"rtmr1": b"\xee" * 48}, {}, "rtmr1"),
    ({"rtmr2": b"\xee" * 48}, {}, "rtmr2"),
    ({"rtmr3": b"\xee" * 48}, {}, "rtmr3"),
    ({"td_attributes": 1 << 28 | 1}, {}, "debug-td"),
    ({"mr_config_id": b"\xee" * 32 + bytes(16)}, {}, "config-digest"),
    ({}, {"config": b"a deploymenT\n"}, "config-digest"),
    ({"mr_owner": b"\xee" * 48}, {}, "mr-owner"),
    ({}, {"collateral": TEE.collateral(platform_status=TcbStatus.OUT_OF_DATE)}, "tcb-status"),
    ({}, {"collateral": TEE.collateral(expires=at(ISSUED - 1))}, "collateral-expired"),
    ({}, {"collateral": None}, "collateral"),
    ({}, {"validator": Tdx().require_mrtd(ENTRY)}, "root-mismatch"),
    ({"provider": Provider(MockTee(b"another"))}, {}, "root-mismatch"),
    ({}, {"now": at(ISSUED + 601)}, "expired"),
    ({}, {"now": at(ISSUED - 61)}, "future"),
    # However little the caller demands of the code, the ticket answers his challenge.
    ({}, {"challenge": b"\xcb" * 32, "validator": POLICY.require_mrtd(ENTRY)}, "challenge"),
]


@pytest.mark.parametrize(("launched", "tool", "rule"), TOOL)
def test_what_the_tool_refuses(launched: dict[str, Any], tool: dict[str, Any], rule: str) -> None:
    offer = guest(**launched).offer(CHALLENGE)
    with refused(ProvisionRefused if rule == "config-digest" else TicketRejected, rule):
        accepted(offer, **tool)


def test_a_replayed_offer() -> None:
    seen = guest().offer(CHALLENGE)
    accepted(seen)
    with refused(TicketRejected, "challenge"):
        accepted(seen, challenge=b"\xcc" * 32)


def test_another_box_key() -> None:
    """A box key that the quote does not bind would let the host open the box."""
    offer = guest().offer(CHALLENGE)
    own = X25519PrivateKey.generate().public_key().public_bytes_raw()
    with refused(TicketRejected, "challenge"):
        accepted(own + offer[32:])


def test_a_quote_of_another_guest() -> None:
    """A host that relays the offer of a good guest can't put its own identity into it."""
    good = Offer.decode(guest().offer(CHALLENGE))
    ticket = replace(good.ticket, peer_id=STRANGER.public_key().public_bytes_raw())
    forged = good.bundle.sign(ticket, good.bundle.quote, STRANGER)
    with refused(TicketRejected, "report-data"):
        accepted(good.box_pub + forged.encode())


def test_a_guest_that_lies_about_its_configuration() -> None:
    """The digest of the ticket is the guest's word; the quote decides."""
    good = Offer.decode(guest(mr_config_id=b"\xee" * 32 + bytes(16)).offer(CHALLENGE))
    draw = draws("boot")
    key = Ed25519PrivateKey.from_private_bytes(draw(32))
    ticket = replace(good.ticket, config_digest=DIGEST)
    quote = Provider(body={"mr_config_id": b"\xee" * 48}).quote(ticket.report_data())
    with refused(TicketRejected, "mr-config-id"):
        accepted(good.box_pub + good.bundle.sign(ticket, quote, key).encode())


def test_tickets_of_other_kinds_are_no_offers() -> None:
    good = Offer.decode(guest().offer(CHALLENGE))
    key = Ed25519PrivateKey.from_private_bytes(draws("boot")(32))
    for change, rule in (
        ({"deployment_id": b"\1" * 32}, "deployment"),
        ({"policy_id": b"\5" * 32}, "policy-id"),
        ({"fresh_kind": Fresh.BEACON}, "challenge"),
    ):
        other = good.bundle.sign(replace(good.ticket, **change), good.bundle.quote, key)
        with refused(TicketRejected, rule):
            accepted(good.box_pub + other.encode())


def test_an_allow_list_for_a_guest_that_knows_no_deployment() -> None:
    offer = guest().offer(CHALLENGE)
    with refused(PolicyError, "list-deployment"):
        accepted(offer, validator=POLICY.require_mrtd(ALLOW_LIST))
    untold = replace(ALLOW_LIST, deployment_id=UNTOLD)
    assert accepted(offer, validator=POLICY.require_mrtd(untold)).expiry.measurement == ENTRY


def test_a_role_without_a_demand_on_code() -> None:
    offer = guest().offer(CHALLENGE)
    assert accepted(offer, validator=BundleValidator(), collateral=None).expiry.by == "ticket"


def test_a_box_key_of_small_order() -> None:
    offer = Offer.decode(guest().offer(CHALLENGE))
    judged = accepted(offer.raw)
    weak = Accepted(replace(offer, box_pub=ONE), judged.expiry)
    with refused(ProvisionRefused, "provision.box"):
        make_grant(weak, OPERATOR, CONFIG, SECRET, draws("tool"))


# What the guest refuses.


def test_a_grant_is_good_once() -> None:
    waiting = guest()
    grant = granted(waiting.offer(CHALLENGE))
    waiting.accept(grant)
    with refused(ProvisionRefused, "provision.used"):
        waiting.accept(grant)
    waiting.offer(CHALLENGE)
    with refused(ProvisionRefused, "provision.signature"):
        waiting.accept(grant)


def test_a_grant_after_a_reboot() -> None:
    grant = granted(guest(boot="first").offer(CHALLENGE))
    again = guest(boot="second")
    with refused(ProvisionRefused, "provision.used"):
        again.accept(grant)
    again.offer(CHALLENGE)
    with refused(ProvisionRefused, "provision.signature"):
        again.accept(grant)


def test_a_new_offer_forgets_the_last() -> None:
    waiting = guest()
    first = granted(waiting.offer(CHALLENGE))
    second = granted(waiting.offer(CHALLENGE))
    with refused(ProvisionRefused, "provision.signature"):
        waiting.accept(first)
    # And a bad grant uses the offer up.
    with refused(ProvisionRefused, "provision.used"):
        waiting.accept(second)


def test_an_offer_that_fails_leaves_none_open() -> None:
    waiting = guest()
    grant = granted(waiting.offer(CHALLENGE))
    with refused(ProvisionFormatError, "provision.challenge-size"):
        waiting.offer(CHALLENGE[1:])
    with refused(ProvisionRefused, "provision.used"):
        waiting.accept(grant)


def test_configurations_that_the_guest_was_not_launched_for() -> None:
    waiting = guest()
    for config, kind, rule in (
        (b"a deploymenT\n", ProvisionRefused, "provision.config"),
        (CONFIG[:-1], ConfigError, "config.format"),
        (b"", ConfigError, "config.format"),
    ):
        grant = granted(waiting.offer(CHALLENGE), config=config)
        with refused(kind, rule):
            waiting.accept(grant)
    # Swapped on the way: the guest was launched for it, but nobody signed it.
    grant = granted(waiting.offer(CHALLENGE), config=b"a deploymenT\n")
    with refused(ProvisionRefused, "provision.signature"):
        waiting.accept(replace(Grant.decode(grant), config=CONFIG).encode())


def test_operators() -> None:
    waiting = guest()
    grant = granted(waiting.offer(CHALLENGE), STRANGER)
    with refused(ProvisionRefused, "provision.operator"):
        waiting.accept(grant)
    # The stranger's signature in an operator's name.
    grant = granted(waiting.offer(CHALLENGE), STRANGER)
    signer = OPERATOR.public_key().public_bytes_raw()
    with refused(ProvisionRefused, "provision.signature"):
        waiting.accept(replace(Grant.decode(grant), signer=signer).encode())
    given = waiting.accept(granted(waiting.offer(CHALLENGE), COLLEAGUE))
    assert given.signer == COLLEAGUE.public_key().public_bytes_raw()


def signed(offer: bytes, box: bytes, key: Ed25519PrivateKey = OPERATOR) -> bytes:
    hashes = b"".join(hashlib.sha512(part).digest() for part in (offer, CONFIG, box))
    signature = key.sign(GRANT_DOMAIN + b"\0" + hashes)
    return Grant(key.public_key().public_bytes_raw(), CONFIG, box, signature).encode()


def test_boxes_that_do_not_open() -> None:
    waiting, other = guest(), guest(boot="other")
    foreign = Grant.decode(granted(other.offer(CHALLENGE))).box
    for box in (foreign, ONE + foreign[32:]):
        offer = waiting.offer(CHALLENGE)
        with refused(ProvisionRefused, "provision.box"):
            waiting.accept(signed(offer, box))


def test_an_operator_who_signs_the_box_of_another() -> None:
    waiting = guest()
    offer = waiting.offer(CHALLENGE)
    box = Grant.decode(granted(offer)).box
    with refused(ProvisionRefused, "provision.box"):
        waiting.accept(signed(offer, box, COLLEAGUE))
    offer = waiting.offer(CHALLENGE)
    assert waiting.accept(signed(offer, Grant.decode(granted(offer)).box)).secret == SECRET


def test_launches_without_a_digest() -> None:
    for at_byte in (32, 47):
        odd = bytearray(DIGEST + bytes(16))
        odd[at_byte] = 1
        with refused(ProvisionRefused, "provision.mr-config-id"):
            guest(mr_config_id=bytes(odd)).offer(CHALLENGE)
    # Zeros are no configuration's digest: the tool says so.
    with refused(ProvisionRefused, "config-digest"):
        accepted(guest(mr_config_id=bytes(48)).offer(CHALLENGE))


class Failing:
    """A quoting service with trouble, then without."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)

    def quote(self, report_data: bytes) -> bytes:
        answer = self.answers.pop(0) if self.answers else Provider().quote(report_data)
        if answer is None:
            raise ProviderFailed("the host refused", rule="tsm.hypercall")
        return answer


def test_a_provider_that_fails() -> None:
    waiting = guest(Failing(None, b"no quote"))
    with refused(ProviderFailed, "tsm.hypercall"):
        waiting.offer(CHALLENGE)
    with refused(QuoteFormatError, "size"):
        waiting.offer(CHALLENGE)
    assert waiting.accept(granted(waiting.offer(CHALLENGE))).secret == SECRET


# Formats.


def test_sizes_of_offers() -> None:
    offer = guest().offer(CHALLENGE)
    for raw in (b"", offer[:32], bytes(MAX_OFFER + 1)):
        with refused(ProvisionFormatError, "provision.offer-size"):
            Offer.decode(raw)
    with refused(TicketFormatError, "bundle.size"):
        Offer.decode(offer[:33])
    with refused(TicketFormatError, "ticket.version"):
        Offer.decode(bytes(MAX_OFFER))
    for raw in (offer[:-1], offer + b"\0"):
        with refused(TicketFormatError, "bundle.quote-size"):
            Offer.decode(raw)


def lengths(config: int, box: int, *, raw_config: int, raw_box: int) -> bytes:
    sized = ((config, raw_config), (box, raw_box))
    return bytes(32) + b"".join(n.to_bytes(4, "big") + bytes(m) for n, m in sized) + bytes(64)


def test_sizes_of_grants() -> None:
    largest = lengths(MAX_CONFIG, MAX_SECRET + 48, raw_config=MAX_CONFIG, raw_box=MAX_SECRET + 48)
    assert len(largest) == MAX_GRANT
    assert len(Grant.decode(largest).box) == MAX_SECRET + 48
    assert Grant.decode(largest).encode() == largest
    smallest = lengths(0, 48, raw_config=0, raw_box=48)
    assert Grant.decode(smallest).box == bytes(48)
    for raw in (b"", smallest[:-1], largest + b"\0"):
        with refused(ProvisionFormatError, "provision.grant-size"):
            Grant.decode(raw)
    for raw in (
        smallest + b"\0",
        lengths(1, 48, raw_config=0, raw_box=48),
        lengths(0, 47, raw_config=1, raw_box=47),
        lengths(0, 49, raw_config=0, raw_box=48),
        lengths((1 << 32) - 1, 48, raw_config=0, raw_box=48),
        lengths(MAX_CONFIG + 1, 48, raw_config=MAX_CONFIG + 1, raw_box=48),
        lengths(0, MAX_SECRET + 49, raw_config=0, raw_box=MAX_SECRET + 49),
    ):
        with refused(ProvisionFormatError, "provision.grant-lengths"):
            Grant.decode(raw)


def test_what_fits_no_grant() -> None:
    judged = accepted(guest().offer(CHALLENGE))
    for config, secret, named in (
        (bytes(MAX_CONFIG + 1), b"", "configuration"),
        (b"", bytes(MAX_SECRET + 1), "secret"),
    ):
        with refused(ProvisionFormatError, "provision.grant-size", named):
            make_grant(judged, OPERATOR, config, secret, draws("tool"))
    assert len(make_grant(judged, OPERATOR, bytes(MAX_CONFIG), bytes(MAX_SECRET), draws(""))) == (
        MAX_GRANT
    )


GOOD_OFFER = guest().offer(CHALLENGE)
GOOD_GRANT = granted(GOOD_OFFER)


@settings(deadline=None)
@given(st.integers(0, len(GOOD_OFFER) - 1), st.integers(1, 255))
def test_every_byte_of_an_offer_counts(place: int, change: int) -> None:
    changed = bytearray(GOOD_OFFER)
    changed[place] ^= change
    with pytest.raises(AttestationError) as caught:
        accepted(bytes(changed))
    assert caught.value.rule


def test_every_byte_of_a_grant_counts() -> None:
    """All of them: the guest's answer depends on the place, never on the value."""
    for place in range(len(GOOD_GRANT)):
        waiting = guest()
        assert waiting.offer(CHALLENGE) == GOOD_OFFER
        changed = bytearray(GOOD_GRANT)
        changed[place] ^= 1 << place % 8
        with pytest.raises(AttestationError) as caught:
            waiting.accept(bytes(changed))
        assert caught.value.rule


@settings(deadline=None)
@given(st.binary(max_size=300), st.binary(max_size=300))
def test_round_trip(text: bytes, secret: bytes) -> None:
    config = b"a " + text + b"\n"
    waiting = guest(mr_config_id=hashlib.sha256(config).digest() + bytes(16))
    judged = accepted(waiting.offer(CHALLENGE), config=config)
    raw = make_grant(judged, OPERATOR, config, secret, draws("tool"))
    assert Grant.decode(raw).encode() == raw
    given = waiting.accept(raw)
    assert (given.config, given.secret) == (config, secret)


def test_secrets_are_in_no_text() -> None:
    waiting = guest()
    offer = waiting.offer(CHALLENGE)
    grant = granted(offer)
    draw = draws("boot")
    hidden = [SECRET, draw(32), OPERATOR.private_bytes_raw()]
    _ = draw(32)
    hidden.append(draw(32))
    texts = [repr(waiting), repr(vars(waiting)), repr(Grant.decode(grant))]
    texts.append(repr(accepted(offer)))
    given = waiting.accept(grant)
    texts.append(repr(given))
    for key in (STRANGER, COLLEAGUE):
        waiting.offer(CHALLENGE)
        with pytest.raises(ProvisionRefused) as caught:
            waiting.accept(grant if key is STRANGER else signed(offer, b"\1" * 60, key))
        texts += [caught.value.diagnostics(), repr(caught.value), repr(caught.value.__cause__)]
    for text in texts:
        for secret in hidden:
            assert secret.hex() not in text
            assert repr(secret)[2:-1] not in text
