"""A node of a program: its connection, its identity, and what it checks peers with."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from attestation.providers import QuoteProvider
from attestation.providers.tsm import TsmProvider
from zipnet.config import Config, deployment_id
from zipnet.errors import Attestation, CallRejected, ConfigRejected
from zipnet.ids import UNIVERSE, UniqueId
from zipnet.network import base, index
from zipnet.network.local import LocalNetwork
from zipnet.node.service_network import Caller, Place, reach
from zipnet.protocol.guards import Store
from zipnet.protocol.instance import Instance
from zipnet.roles.admission import Admission, CollateralFetch, CollateralSource
from zipnet.roles.identity import Identity


class _Forgetful:
    """A guard's store for a client that draws new epoch keys at each start: nothing is kept."""

    def write(self, record: bytes) -> None:
        """Keep nothing."""


@dataclass(frozen=True, slots=True)
class Access:
    """How a client proves itself, and how it checks servers.

    `provider` makes this machine's quotes; `collateral` is asked for the collateral of servers'
    quotes, and reading needs none; `fetch` brings it to hand first, where it is set; `mock_root`
    is the root certificate (DER) where the configuration's anchor is a mock. `waived` names
    operators whose server may be missing: their honesty is then not counted on. `participation` is
    the probability of taking part in a round.
    """

    provider: QuoteProvider = field(default_factory=TsmProvider, repr=False)
    collateral: CollateralSource | None = field(default=None, repr=False)
    mock_root: bytes = field(default=b"", repr=False)
    waived: frozenset[str] = frozenset()
    participation: float = 1.0
    connect_s: float = 30.0
    store: Store = field(default_factory=_Forgetful, repr=False)
    fetch: CollateralFetch | None = field(default=None, repr=False)

    def admission(self, config: Config, instance: Instance) -> Admission:
        """The stack that judges servers. Raises ConfigRejected for another anchor, Attestation."""
        if self.collateral is None:
            raise Attestation(
                "the servers' quotes can't be checked",
                expected="collateral for their platforms",
                got="none",
                rule="collateral",
                hint="give `Access(collateral=...)`, a function from a quote to its Collateral",
            )
        return Admission(config, instance, self.collateral, self.mock_root, self.fetch)

    def waived_keys(self, config: Config) -> frozenset[bytes]:
        """The keys of the waived operators. Raises ConfigRejected for a name that is unknown."""
        keys = {one.name: one.key for one in config.operators}
        unknown = self.waived - keys.keys()
        if unknown:
            raise ConfigRejected(
                "a waived operator is none of the configuration",
                expected=", ".join(keys),
                got=", ".join(sorted(unknown)),
                rule="waived",
            )
        return frozenset(keys[name] for name in self.waived)


class Network:
    """One node on a network: a connection and the identity it acts under.

    `port` is the connection, `opened` when it was made, in Unix seconds; `deployment` the only one
    that it serves, if so.
    """

    def __init__(
        self,
        port: base.Network,
        universe: UniqueId,
        identity: Identity,
        deployment: UniqueId | None = None,
    ) -> None:
        self.port = port
        self.universe = universe
        self.identity = identity
        self.deployment = deployment
        self.opened = int(time.time())
        self._writers: dict[UniqueId, Callable[[], Awaitable[None]]] = {}

    @classmethod
    async def over(
        cls,
        port: base.Network,
        *,
        universe: UniqueId = UNIVERSE,
        identity: Identity | None = None,
    ) -> Self:
        """A node on a connection that is there; a new identity if none is given.

        Raises WrongUniverse, EngineError.
        """
        await index.check_universe(port, universe)
        return cls(port, universe, identity or Identity.fresh(secrets.token_bytes))

    @classmethod
    async def local(
        cls,
        path: Path | None = None,
        *,
        universe: UniqueId = UNIVERSE,
        identity: Identity | None = None,
    ) -> Self:
        """The network within this process, in a folder, or in a temporary one if None.

        Raises WrongUniverse, EngineError.
        """
        port = await LocalNetwork.open(path)
        try:
            return await cls.over(port, universe=universe, identity=identity)
        except BaseException:
            await port.close()
            raise

    @classmethod
    async def connect(
        cls,
        urls: str,
        config: Config,
        *,
        universe: UniqueId = UNIVERSE,
        identity: Identity | None = None,
        certificates: Path | None = None,
        connect_s: float = 30.0,
    ) -> Self:
        """The network of one deployment on a bus, `urls` between commas.

        All names on a bus begin with a deployment's id, so that a connection serves no other.
        `certificates` (PEM) are those that the bus may show, for tls:// URLs.
        Raises NoNetwork if nothing answers, ConfigRejected, FileError, WrongUniverse, EngineError.
        """
        identity = identity or Identity.fresh(secrets.token_bytes)
        place = Place(tuple(urls.split(",")), None, certificates)
        deployment = deployment_id(config)
        caller = Caller(identity=identity.signing)
        port = await reach(place, deployment, universe, caller, connect_s)
        return cls(port, universe, identity, deployment)

    async def close(self) -> None:
        """Close what was opened on this network, then the connection. Twice is once."""
        for close in list(self._writers.values()):
            await close()
        await self.port.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        await self.close()

    def check(self, deployment: UniqueId) -> None:
        """Check that this connection serves a deployment. Raises CallRejected."""
        if self.deployment is not None and self.deployment != deployment:
            raise CallRejected(
                "the connection is for another deployment",
                expected=self.deployment.hex(),
                got=deployment.hex(),
                rule="deployment",
                hint="call `Network.connect` with the configuration that you use here",
            )

    def enter(self, deployment: UniqueId, close: Callable[[], Awaitable[None]]) -> None:
        """Note what writes to a deployment, and how to close it. Raises CallRejected."""
        if deployment in self._writers:
            raise CallRejected(
                "this node writes to the deployment already",
                expected="one submitter of a node",
                rule="submit.twice",
                hint="use the one that is open, or another node: two would seal each round twice",
            )
        self._writers[deployment] = close

    def leave(self, deployment: UniqueId) -> None:
        """Forget what wrote to a deployment."""
        self._writers.pop(deployment, None)
