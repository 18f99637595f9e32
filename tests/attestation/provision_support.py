"""A mock guest, its operator and his tool: everything passes until a test changes one thing."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.errors import AttestationError
from attestation.providers import QuoteProvider
from attestation.providers.mock import MockTee, MockVerifier
from attestation.provision import Accepted, Granted, Guest, Terms, check_offer, make_grant
from attestation.provision_stream import Limits, provision, serve
from attestation.ticket import AllOf, BundleValidator, Role, TicketValidator
from attestation.unsafe_mock_tdx import UnsafeMockTdx
from attestation.verify import Collateral
from tests.attestation.tickets import ENTRY, ISSUED, at

TEE = MockTee(b"provisioning")
COLLATERAL = TEE.collateral()
CODE = UnsafeMockTdx(verifier=MockVerifier(TEE.root_der)).require_mrtd(ENTRY)
STACK = AllOf(BundleValidator(), CODE)
OPERATOR = Ed25519PrivateKey.from_private_bytes(b"\x11" * 32)
STRANGER = Ed25519PrivateKey.from_private_bytes(b"\x12" * 32)
COLLEAGUE = Ed25519PrivateKey.from_private_bytes(b"\x13" * 32)
CONFIG = b"a deployment\n"
DIGEST = hashlib.sha256(CONFIG).digest()
SECRET = b"the secret of the committee"
CHALLENGE = b"\xca" * 32
NOW = at(ISSUED)


class ConfigError(AttestationError):
    """What the caller's parser raises for bytes that are no configuration."""


def terms(config: bytes) -> Terms:
    """Stands for a parser of configurations: they begin with `a ` and end with a line feed."""
    if not (config.startswith(b"a ") and config.endswith(b"\n")):
        raise ConfigError("this is no configuration", rule="config.format")
    named = frozenset(key.public_key().public_bytes_raw() for key in (OPERATOR, COLLEAGUE))
    return Terms(hashlib.sha256(config).digest(), named)


def draws(label: str) -> Callable[[int], bytes]:
    """Bytes that look random and are the same each time."""
    calls = iter(range(1 << 30))
    return lambda size: hashlib.shake_256(f"{label} {next(calls)}".encode()).digest(size)


@dataclass
class Provider:
    """The quoting service of a mock guest, with a TD launched as `body` says."""

    tee: MockTee = TEE
    body: dict[str, bytes | int] = field(default_factory=dict)
    asked: int = 0

    def quote(self, report_data: bytes) -> bytes:
        self.asked += 1
        launched: dict[str, bytes | int] = {
            "mr_td": ENTRY.mr_td,
            "rtmr1": ENTRY.rtmr1,
            "rtmr2": ENTRY.rtmr2,
            "rtmr3": bytes(48),
            "mr_config_id": DIGEST + bytes(16),
        }
        return self.tee.quote(report_data, body={**launched, **self.body})


def guest(
    provider: QuoteProvider | None = None,
    *,
    role: Role = Role.SERVER,
    boot: str = "boot",
    **body: Any,
) -> Guest:
    """A guest after a boot; each boot has its own identity."""
    draw = draws(boot)
    signing = Ed25519PrivateKey.from_private_bytes(draw(32))
    provider = provider or Provider(body=body)
    return Guest(role, signing, draw(32), provider, terms, draw, lambda: ISSUED)


def accepted(
    raw: bytes,
    *,
    challenge: bytes = CHALLENGE,
    role: Role = Role.SERVER,
    config: bytes = CONFIG,
    validator: TicketValidator = STACK,
    collateral: Collateral | None = COLLATERAL,
    now: datetime = NOW,
) -> Accepted:
    """The tool's judgement."""
    return check_offer(
        raw,
        challenge=challenge,
        role=role,
        config_digest=hashlib.sha256(config).digest(),
        validator=validator,
        collateral=collateral,
        now=now,
    )


def granted(
    offer: bytes, key: Ed25519PrivateKey = OPERATOR, config: bytes = CONFIG, secret: bytes = SECRET
) -> bytes:
    """The tool's answer to an offer."""
    return make_grant(accepted(offer), key, config, secret, draws("tool"))


QUICK = Limits(between_quotes=0.0)


@dataclass
class Listening:
    """A guest that waits on `port`; `lines` is what it said since."""

    port: int
    serving: asyncio.Task[Granted]
    lines: list[str]


async def _listening(waiting_guest: Guest, limits: Limits = QUICK) -> Listening:
    """Let a guest listen on a port of this machine."""
    lines: asyncio.Queue[str] = asyncio.Queue()
    kept: list[str] = []

    def said(line: str) -> None:
        kept.append(line)
        lines.put_nowait(line)

    serving = asyncio.create_task(serve(waiting_guest, HOST, 0, said, limits=limits))
    first = asyncio.create_task(lines.get())
    await asyncio.wait({serving, first}, return_when=asyncio.FIRST_COMPLETED)
    port = int((await first).rpartition(" ")[2])
    kept.clear()
    return Listening(port, serving, kept)


HOST = "127.0.0.1"
# No exchange of the tests takes longer, in seconds.
PATIENCE = 30.0


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, PATIENCE))


@contextlib.asynccontextmanager
async def waiting(at: Guest | None = None, limits: Limits = QUICK) -> AsyncIterator[Listening]:
    """A guest that listens, until the end of the block."""
    found = await _listening(at or guest(), limits)
    try:
        yield found
    finally:
        found.serving.cancel()
        await asyncio.gather(found.serving, return_exceptions=True)


async def tool(
    to: Listening, answer: Callable[[bytes], bytes] = granted, timeout: float = PATIENCE
) -> None:
    await provision(HOST, to.port, CHALLENGE, answer, timeout)


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


async def read(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))


async def connect(to: Listening) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(HOST, to.port)
