"""The program of a guest: it waits for its operator, proves itself to him, and becomes a node.

An image knows only its role. Keys are made at each start, in the guest; the configuration and all
secrets come by `attestation.provision`, on the one port that is open until then. What a node writes
is in the guest's memory and ends with it, except a client's state that the committee seals.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from attestation import provision, provision_stream
from attestation.bundle import Role as Ticketed
from attestation.errors import ProviderAbsent
from attestation.providers import QuoteProvider
from attestation.providers.tsm import TsmProvider
from attestation.quote import Quote
from zipnet import config_file
from zipnet.config import Config
from zipnet.errors import DocumentRejected, NoTdx
from zipnet.node import power
from zipnet.node.appliance_role import METRICS_PORT, Provisioned, serve_role
from zipnet.node.grant import Grant
from zipnet.node.service_notify import Readiness
from zipnet.operators import OperatorSet, follow
from zipnet.preflight import MOCK, Preflight, Role
from zipnet.roles.admission import config_digest
from zipnet.roles.identity import Identity

# Over what no ticket hashes to: this quote never leaves the guest.
SELF = hashlib.sha512(b"zipnet/appliance/self/v1").digest()
# Of operators, as many as an instance can change them.
MAX_DOCUMENTS = 64
# How much of a status fits on one line of a console, and how much of MR_TD tells images apart.
MAX_STATUS = 160
SHOWN_DIGITS = 16

log = logging.getLogger("zipnet.service")


@dataclass(frozen=True, slots=True)
class Machine:
    """What an appliance runs on: its role, what quotes it, its file system, where it listens.

    An empty `host` is every address. `port` is that of provisioning, `metrics_port` that of metrics
    and evidence; 0 is any.
    """

    role: Role
    provider: QuoteProvider = field(repr=False)
    root: Path = Path("/")
    host: str = ""
    port: int = provision_stream.PORT
    metrics_port: int = METRICS_PORT


def provider_of(role: Role, seen: Preflight, root: Path = Path("/")) -> QuoteProvider:
    """What makes this guest's quotes. Raises NoTdx where there is nothing, or no mock TEE's port.

    Quotes of the mock flavour are never TDX's: its images are for deployments with a mock anchor.
    """
    if seen.flavor == MOCK:
        try:
            # Production images hold no mock code: there this import fails.
            from attestation.providers.mock_td import MockTdProvider, find_port  # noqa: PLC0415
        except ImportError:
            raise ProviderAbsent(
                "this image says that it is a mock, and holds no mock code", rule="mock-td.absent"
            ) from None
        port = find_port(root)
        if port is not None:
            return MockTdProvider(port)
        raise NoTdx(
            f"no virtual TDX on this machine: a {role} must prove itself, so it stops here",
            expected="a virtio port of the mock TEE",
            got="none",
            rule="mock-td.none",
            hint="`attestation mock-td` on the host, then run-qemu --emulate --mock-td SOCKET",
        )
    if seen.tdx:
        return TsmProvider()
    raise NoTdx(
        f"no TDX on this machine: a {role} must be attested, so it stops here"
        if role.attested
        else f"no TDX on this machine: an {role} that can't prove itself gets no configuration, so "
        "it stops here",
        rule="tdx.none",
        hint="boot this image as a TD: run-qemu --tdx"
        + ("" if role.attested else f"; or run `zipnet {role}` as a service on a host"),
    )


def console(
    role: Role, version: str, quote: Quote, show: Callable[[str], None]
) -> Callable[[str], None]:
    """A line for people at each change of state, however long its text."""
    head = f"zipnet {role} {version}  MR_TD {quote.body.mr_td.hex()[:SHOWN_DIGITS]}..  "
    return lambda text: show(head + ascii(" ".join(text.split()))[1:-1][:MAX_STATUS])


def own_quote(provider: QuoteProvider) -> Quote:
    """What this guest measures as, in its own eyes; nobody verified it.

    Raises ProviderAbsent, ProviderFailed, QuoteFormatError.
    """
    return Quote.parse(provider.quote(SELF))


@dataclass(frozen=True, slots=True)
class Told:
    """What a guest is told in the clear: its configuration, and which operators came since.

    The bytes are the configuration's file, then each change of operators after a byte 0, in order.
    Each is signed by all operators before it, so a guest needs nobody's word for who may sign.
    """

    config: Config
    documents: tuple[bytes, ...] = ()

    def encode(self) -> bytes:
        """The bytes that a grant carries."""
        return b"\0".join((config_file.dumps(self.config).encode(), *self.documents))

    @classmethod
    def decode(cls, raw: bytes) -> Told:
        """What these bytes say, the documents not checked. Raises ConfigRejected."""
        config, *documents = raw.split(b"\0", MAX_DOCUMENTS)
        return cls(config_file.loads(config), tuple(documents))

    def operators(self) -> OperatorSet:
        """Who may sign grants. Raises DocumentRejected."""
        return follow(self.config, self.documents)


def terms(raw: bytes) -> provision.Terms:
    """What a configuration says about its own delivery. Raises ConfigRejected, DocumentRejected."""
    told = Told.decode(raw)
    return provision.Terms(config_digest(told.config), frozenset(told.operators().keys))


async def run(machine: Machine, readiness: Readiness) -> None:
    """Wait for the operator, then serve until cancelled. Raises what stops the node."""
    identity = Identity.fresh(secrets.token_bytes)
    guest = provision.Guest(
        Ticketed[machine.role.name],
        identity.signing,
        identity.dh_pub,
        machine.provider,
        terms,
        secrets.token_bytes,
        clock,
    )
    booted, listens = clock(), False

    def said(text: str) -> None:
        nonlocal listens
        if listens:
            log.info("%s", text)
            return
        # Where it listens. To the service manager the node has started: how long its operator takes
        # is unknown.
        readiness.ready(text)
        listens = True

    with power.watching(machine.root, _end):
        granted = await provision_stream.serve(guest, machine.host, machine.port, said)
        grant = Grant.loads(granted.secret)
        if grant.role is not machine.role:
            raise DocumentRejected(
                "the grant is for another role",
                expected=machine.role,
                got=grant.role,
                rule="grant.role",
                hint="name the role of this image to `zipnet provision`",
            )
        config = Told.decode(granted.config).config
        await serve_role(
            Provisioned(
                config,
                grant,
                identity,
                machine.provider,
                booted,
                machine.root,
                (machine.host, machine.metrics_port),
            ),
            readiness,
        )


def clock() -> int:
    """Unix seconds."""
    return int(time.time())


def _end() -> None:
    log.info("the power button was pressed")
    signal.raise_signal(signal.SIGTERM)
