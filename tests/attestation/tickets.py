"""Tickets, claims and contexts for tests: everything passes until a test changes one thing."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.allowlist import AllowList, Entry, TcbPolicy
from attestation.measure.firmware import Model
from attestation.measure.record import Binding, BootProof, Measurement
from attestation.measure.rtmr import BootPath
from attestation.measure.tdvf import HostProfile
from attestation.quote import Quote
from attestation.tdx import Tdx, TdxPolicy
from attestation.ticket import Beacons, Bundle, Expiry, Fresh, Peer, Role, Ticket
from attestation.verify import Claims, Evidence, TcbStatus
from tests.attestation.quotes import Draft

ISSUED = 1_800_000_000
NOW = ISSUED + 100
DEPLOYMENT = b"\x01" * 32
POLICY = b"\x05" * 32
BEACON = b"\xbe" * 32
OTHER = b"\xee" * 48
KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
PEER_ID = KEY.public_key().public_bytes_raw()

TICKET = Ticket(
    role=Role.SERVER,
    deployment_id=DEPLOYMENT,
    instance_id=b"\x02" * 32,
    peer_id=PEER_ID,
    dh_pub=b"\x04" * 32,
    policy_id=POLICY,
    config_digest=b"\x06" * 32,
    boot_epoch=7,
    issued_at=ISSUED,
    not_after=ISSUED + 3_000,
    fresh_kind=Fresh.BEACON,
    fresh=BEACON,
)

ENTRY = Measurement(
    role="server",
    binding=Binding.MRTD_CFV,
    host_profile=HostProfile.UPSTREAM,
    boot_path=BootPath.KERNEL,
    mr_td=b"\xa0" * 48,
    rtmr1=b"\xa1" * 48,
    rtmr2=b"\xa2" * 48,
    is_dev=False,
    boot_proof=BootProof.PASSED,
    model=Model.CONFIRMED,
    firmware_sha256=b"\xf0" * 32,
    uki_sha256=b"\xf1" * 32,
)

ALLOW_LIST = AllowList(
    number=3,
    deployment_id=DEPLOYMENT,
    issued_at=ISSUED - 1_000,
    entries=(Entry(ENTRY, ISSUED - 500, ISSUED + 900),),
    tcb=TcbPolicy(),
)


def at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


PEER = Peer(
    peer_id=PEER_ID,
    deployment_id=DEPLOYMENT,
    policy_ids=frozenset({POLICY}),
    roles=frozenset({Role.SERVER}),
    now=at(NOW),
    freshness=Beacons(frozenset({BEACON, b"\xbf" * 32})),
)


def peer(now: int = NOW, **changes: Any) -> Peer:
    return replace(PEER, now=at(now), **changes)


def bundle(quote: bytes = b"", **changes: Any) -> Bundle:
    return Bundle.sign(replace(TICKET, **changes), quote, KEY)


def quote(ticket: Ticket = TICKET, **changes: bytes) -> Quote:
    """A quote of ENTRY's image for this ticket; nobody signed it."""
    fields = {
        "mr_td": ENTRY.mr_td,
        "rtmr1": ENTRY.rtmr1,
        "rtmr2": ENTRY.rtmr2,
        "rtmr3": bytes(48),
        "mr_config_id": ticket.config_digest + bytes(16),
        "mr_owner": bytes(48),
        "mr_owner_config": bytes(48),
        "report_data": ticket.report_data(),
    }
    return Quote.parse(Draft().with_(**{**fields, **changes}).build())


def claims(of: Quote | None = None, **changes: Any) -> Claims:
    """What a verifier would say about it."""
    genuine = Claims(
        quote=of or quote(),
        tcb_status=TcbStatus("UpToDate"),
        platform_status=TcbStatus("UpToDate"),
        qe_status=TcbStatus("UpToDate"),
        advisory_ids=(),
        tcb_evaluation_number=17,
        tcb_date=at(ISSUED - 1_000_000),
        fmspc=bytes(6),
        pce_id=bytes(2),
        ppid=b"\x0a" * 16,
        platform_instance_id=b"\x0b" * 16,
        valid_from=at(ISSUED - 10_000),
        valid_until=at(ISSUED + 2_000),
        root_key_id=bytes(48),
    )
    return replace(genuine, **changes)


def evidence(of: Quote | None = None, **changes: Any) -> Evidence:
    return Evidence(claims(of, **changes))


PRODUCTION = Tdx().require_mrtd(ENTRY)


def check(
    policy: TdxPolicy = PRODUCTION,
    *,
    registers: dict[str, bytes] | None = None,
    ticket: Ticket = TICKET,
    context: Peer = PEER,
    **changes: Any,
) -> Expiry:
    """The verdict over a genuine quote with some registers and claims changed."""
    return policy.check(ticket, evidence(quote(ticket, **(registers or {})), **changes), context)
