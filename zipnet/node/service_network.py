"""How a node or a command comes to its network: a bus by its URLs, or a folder."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.files import read_file
from zipnet.errors import ConfigRejected, ConnectTimeout, Denied, NoNetwork, Unavailable
from zipnet.ids import UniqueId
from zipnet.network import index
from zipnet.network.base import Network
from zipnet.network.local import LocalNetwork
from zipnet.network.nats import REPLICAS, NatsNetwork
from zipnet.network.places import Places
from zipnet.network.tls import MAX_PEM, client_context

# A node gives up then, and its service manager starts it again.
PATIENCE_S = 30.0
FIRST_S, MOST_S = 0.5, 5.0
CLOSE_S = 2.0
# A server of a bus. Nor is there a place for a password: nodes are known by their keys.
URL = re.compile(r"(nats|tls)://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}")

log = logging.getLogger("zipnet.service")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a network is: URLs of a bus, or a folder that no other process has open.

    `certificates` are those (PEM) that the bus may show, where its URLs begin with `tls://`;
    `replicas` is how many of its servers hold what is stored.
    """

    urls: tuple[str, ...] = ()
    folder: Path | None = None
    certificates: Path | None = None
    replicas: int = REPLICAS

    def __str__(self) -> str:
        return f"the folder {self.folder}" if self.folder else ", ".join(self.urls)


@dataclass(frozen=True, slots=True)
class Caller:
    """As whom to connect: a member of the committee's network by its key, or a guest.

    A guest that has an `identity` may show a ticket later on, and submit then.
    """

    member: Ed25519PrivateKey | None = field(default=None, repr=False)
    identity: Ed25519PrivateKey | None = field(default=None, repr=False)


GUEST = Caller()


@contextlib.asynccontextmanager
async def opened(
    place: Place,
    deployment: UniqueId,
    universe: UniqueId,
    caller: Caller = GUEST,
    seconds: float = PATIENCE_S,
) -> AsyncIterator[Network]:
    """The network of a deployment, until the context is left. Raises as `reach`."""
    network = await reach(place, deployment, universe, caller, seconds)
    try:
        yield network
    finally:
        # What is not closed in time ends with the process.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await network.close()


async def reach(
    place: Place,
    deployment: UniqueId,
    universe: UniqueId,
    caller: Caller = GUEST,
    seconds: float = PATIENCE_S,
) -> Network:
    """The network of a deployment, which the caller closes.

    Raises NoNetwork if nothing answers in time, ConnectTimeout where the deployment is unknown,
    WrongUniverse, Denied, EngineError.
    """
    if place.folder is not None:
        network: Network = await LocalNetwork.open(place.folder)
    else:
        network = await _connected(place, deployment, caller, seconds)
    try:
        await index.check_universe(network, universe)
    except (Denied, Unavailable) as error:
        await network.close()
        # Only members can note a universe, or make the table: a guest came before all of them.
        if caller.member is not None or error.rule == "closed":
            raise
        raise ConnectTimeout(
            "this bus knows nothing of the deployment",
            expected=f"the deployment {deployment.hex()}",
            got=str(error),
            rule="instance.unknown",
            hint="compare the fingerprint with what the operators publish (`zipnet config "
            "fingerprint FILE` prints this side's); or its servers never started here",
        ) from error
    except BaseException:
        await network.close()
        raise
    return network


async def connect(
    place: Place, deployment: UniqueId, caller: Caller = GUEST, timeout: float = 10.0
) -> Network:
    """One attempt at the bus. Raises ConfigRejected, FileError, EngineError."""
    return await NatsNetwork.connect(
        place.urls,
        token=deployment.hex()[:16],
        public=Places.of(deployment.raw).public,
        replicas=place.replicas,
        key=caller.member,
        identity=caller.identity,
        tls=bus_tls(place),
        timeout=timeout,
    )


async def _connected(place: Place, deployment: UniqueId, caller: Caller, seconds: float) -> Network:
    loop = asyncio.get_running_loop()
    end, pause = loop.time() + seconds, FIRST_S
    while True:
        left = end - loop.time()
        try:
            return await connect(place, deployment, caller, max(FIRST_S, min(10.0, left)))
        except Unavailable as error:
            if loop.time() + pause >= end:
                raise NoNetwork(
                    "no server of the bus can be reached",
                    expected=f"an answer of {place} within {seconds:g} s",
                    got=str(error),
                    rule="network.unreachable",
                    hint="check ZIPNET_BOOTSTRAP (--bootstrap), and that nats-server runs there",
                ) from error
            log.warning("the bus does not answer, trying again: %s", error)
        await asyncio.sleep(pause)
        pause = min(2 * pause, MOST_S)


def bus_tls(place: Place) -> ssl.SSLContext | None:
    """What the bus must show where its URLs begin with `tls://`.

    Raises ConfigRejected, also where certificates and URLs don't fit together, and FileError.
    """
    encrypted = [url.startswith("tls://") for url in place.urls]
    wanted = place.certificates is not None
    if encrypted != [wanted] * len(encrypted):
        raise ConfigRejected(
            "certificates of the bus belong to tls:// URLs",
            expected="all URLs tls://, and --bus-certificates FILE; or neither",
            got=f"{place}, {'with' if wanted else 'without'} certificates",
            rule="bus.certificates",
            hint="operators publish the certificate of their node: put them into one file",
        )
    if place.certificates is None:
        return None
    return client_context(read_file(place.certificates, MAX_PEM))
