"""Evidence of a running node: `GET /evidence/<64 hex digits>` answers a bundle to a challenge.

It is for whoever audits a node from outside. The ticket has POLICY_ID, so that no service takes
it for a request to come in, and as its challenge

    SHA-256(u32be 23 | DOMAIN | u32be 32 | challenge)
"""

import asyncio
import hashlib
import struct
from datetime import datetime

import httpx

from attestation.bundle import MAX_BUNDLE
from attestation.errors import EvidenceUnavailable, PolicyError, TicketFormatError
from attestation.ticket import (
    AllOf,
    Bundle,
    BundleValidator,
    Challenge,
    Expiry,
    Fresh,
    Peer,
    Role,
    Ticket,
    TicketValidator,
)
from attestation.verify import Collateral

__all__ = [
    "CHALLENGE_SIZE",
    "CONTENT_TYPE",
    "PATH",
    "POLICY_ID",
    "check_evidence",
    "evidence_ticket",
    "fetch",
]

POLICY_ID = hashlib.sha256(b"attestation/evidence/policy/v1").digest()
DOMAIN = b"attestation/evidence/v1"
PATH = "/evidence/"
CONTENT_TYPE = "application/octet-stream"
CHALLENGE_SIZE = 32
# How long the ticket holds, in seconds: it answers a question of now.
LIFETIME = 600

_LENGTH = struct.Struct(">I")


def evidence_ticket(
    *,
    role: Role,
    deployment_id: bytes,
    instance_id: bytes,
    peer_id: bytes,
    dh_pub: bytes,
    config_digest: bytes,
    boot_epoch: int,
    challenge: bytes,
    now: int,
) -> Ticket:
    """The ticket that a node quotes for `challenge` (32 bytes) at `now` (Unix seconds).

    Raises TicketFormatError.
    """
    return Ticket(
        role=role,
        deployment_id=deployment_id,
        instance_id=instance_id,
        peer_id=peer_id,
        dh_pub=dh_pub,
        policy_id=POLICY_ID,
        config_digest=config_digest,
        boot_epoch=boot_epoch,
        issued_at=now,
        not_after=now + LIFETIME,
        fresh_kind=Fresh.CHALLENGE,
        fresh=_fresh(challenge),
    )


def check_evidence(
    raw: bytes,
    *,
    challenge: bytes,
    role: Role,
    deployment_id: bytes | None,
    validator: TicketValidator,
    collateral: Collateral | None,
    now: datetime,
) -> Expiry:
    """The verdict over the answer to `challenge`; `deployment_id` None stands for any deployment.

    `validator` says which code may run; a `BundleValidator` comes before it.

    Raises TicketFormatError, TicketRejected, PolicyError.
    """
    bundle = Bundle.decode(raw)
    ticket = bundle.ticket
    peer = Peer(
        peer_id=ticket.peer_id,
        deployment_id=ticket.deployment_id if deployment_id is None else deployment_id,
        policy_ids=frozenset({POLICY_ID}),
        roles=frozenset({role}),
        now=now,
        freshness=Challenge(_fresh(challenge)),
        collateral=collateral,
    )
    return AllOf(BundleValidator(), validator).validate(bundle, peer)


async def fetch(
    url: str,
    challenge: bytes,
    timeout: float,
    *,
    transport: httpx.AsyncBaseTransport | None = None,
) -> bytes:
    """What the node whose metrics are at `url` (`http://host:port`) answers to `challenge`.

    At most MAX_BUNDLE bytes, not looked at, within `timeout` seconds. HTTP in the clear is good
    enough: what comes proves itself. `transport` is for tests.

    Raises PolicyError (`evidence.url`), EvidenceUnavailable, TicketFormatError (`bundle.size`).
    """
    target = _target(url, challenge)
    try:
        async with (
            # httpx bounds each step only; a node that sends a byte a minute never ends.
            asyncio.timeout(timeout),
            httpx.AsyncClient(
                transport=transport,
                # No proxy because of the environment.
                trust_env=False,
                follow_redirects=False,
                timeout=timeout,
                headers={"accept-encoding": "identity"},
            ) as client,
            client.stream("GET", target) as response,
        ):
            if response.status_code != 200:
                raise EvidenceUnavailable(
                    "the node gives no evidence",
                    expected="status 200",
                    got=str(response.status_code),
                    rule="evidence.status",
                    hint="503: ask again in a second; 404: the node runs without a TEE, or this is "
                    "not the address of its metrics",
                )
            body = b""
            # Raw: what is not asked for is not unpacked.
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MAX_BUNDLE:
                    raise TicketFormatError(
                        "the answer is larger than any bundle",
                        expected=f"at most {MAX_BUNDLE} bytes",
                        got="more",
                        rule="bundle.size",
                        hint="check that this is the address of a node's metrics",
                    )
            return body
    except (TimeoutError, httpx.HTTPError) as error:
        raise EvidenceUnavailable(
            "the node does not answer",
            expected=f"an answer of {target.host} within {timeout:g} seconds",
            got=ascii(str(error)[:120]) if str(error) else "none",
            rule="evidence.unreachable",
            hint="check the address, and that the node serves metrics",
        ) from error


def _target(url: str, challenge: bytes) -> httpx.URL:
    try:
        base = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        base = httpx.URL()
    extra = base.userinfo or base.query or base.fragment
    if base.scheme not in {"http", "https"} or not base.host or extra:
        # Not shown: it may hold a password.
        raise PolicyError(
            "this is no address of a node's metrics",
            expected="http://host:port",
            rule="evidence.url",
            hint="metrics of an appliance are on port 9464",
        )
    return base.copy_with(path=base.path.rstrip("/") + PATH + challenge.hex())


def _fresh(challenge: bytes) -> bytes:
    parts = (DOMAIN, challenge)
    return hashlib.sha256(b"".join(_LENGTH.pack(len(part)) + part for part in parts)).digest()
