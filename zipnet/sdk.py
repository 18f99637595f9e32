"""What programs use: write to a deployment, read from it, learn what became of a message.

    network = await Network.local()
    async with await Zipnet[Note].submit(network, ACME) as tx:
        receipt = await tx.send(Note("hi"))
    async for message in await Zipnet[Note].read(network, ACME):
        print(message.round, message.datum)

`Zipnet.bind(network, "acme.mainnet")` does both for plain bytes, with a configuration from a file.

Nothing is ever sent again by itself: a message that was or may have been read ties its author to
both rounds, so `Receipt.outcome` says what a caller must know before it sends again. A handle
belongs to the event loop in which it was made.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

from attestation.bundle import Role
from zipnet import config_file
from zipnet.access import Access, Network
from zipnet.config import Clients, Config, deployment_id
from zipnet.datum import Blob, ShuffleDatum, bytes_datum, encode_exact
from zipnet.errors import ConfigRejected, DatumRejected, EngineError, Protocol, Shutdown
from zipnet.ids import UniqueId
from zipnet.protocol.instance import Instance
from zipnet.protocol.pads import keystream_xor
from zipnet.reading import Broadcast, LeafReceipt, Message, Reader, Receipts
from zipnet.roles.admission import Admission, Ticketing
from zipnet.roles.client import ClientRole, ClientSettings
from zipnet.roles.committee_view import Lookout
from zipnet.roles.reader import RecordReader
from zipnet.roles.receipt_reader import ReceiptReader
from zipnet.roles.seats import Seats

__all__ = [
    "Access",
    "Bound",
    "Broadcast",
    "LeafReceipt",
    "Message",
    "Network",
    "Outcome",
    "Reader",
    "Receipt",
    "Receipts",
    "Submitter",
    "Zipnet",
]

FOLDER = "ZIPNET_CONFIG"
GOODBYE_S = 2.0

log = logging.getLogger("zipnet.sdk")

D = TypeVar("D", bound=ShuffleDatum)


class Outcome(StrEnum):
    """What became of a message."""

    LANDED = "landed"  # the final record has it
    COLLIDED = "collided"  # the final record has its slot spoiled; somebody may have read it
    LATE = "late"  # not in the round, so not read: sending it again is safe
    REFUSED = "refused"  # as LATE, and the aggregator said why
    EXPOSED = "exposed"  # no record, but it may have been read: treat it as published


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a message in a round; `rule` says why, if it was refused or never read."""

    outcome: Outcome
    round: int
    rule: str = ""


class Submitter(Generic[D]):
    """A client that takes part in each round, with a message or with cover, until it is closed.

    Made by `Zipnet[Note].submit`; an async context manager that closes it.
    """

    def __init__(
        self, network: Network, deployment: UniqueId, kind: type[D], role: ClientRole
    ) -> None:
        network.enter(deployment, self.close)
        self._network = network
        self._deployment = deployment
        self._kind = kind
        self._role = role
        self._closed = False
        self._task = asyncio.create_task(role.run())

    async def send(self, datum: D) -> Receipt:
        """Put a datum into a round, and wait until it is known what became of it.

        That takes as long as it takes until a round has room for it: a slot is won by lot. Who
        gives up (`asyncio.timeout`) takes the datum back, unless a round holds it already.

        Raises DatumRejected; Refused if too many are waiting; Attestation if this client is
        refused, with the operator and the rule, or refuses a server; Shutdown after `close`.
        """
        if type(datum) is not self._kind:
            raise DatumRejected(
                "the submitter is for another type",
                expected=self._kind.__name__,
                got=type(datum).__name__,
                rule="datum.type",
            )
        raw = encode_exact(datum)
        if self._task.done() or self._closed:
            raise await self._ended()
        try:
            told = await self._role.send(raw)
        except Shutdown:
            raise await self._ended() from None
        if told.outcome == "unpublished":
            return Receipt(Outcome.LATE, told.round, "round.unpublished")
        return Receipt(Outcome(told.outcome), told.round, told.rule)

    async def close(self) -> None:
        """Stop taking part. Messages that wait get Shutdown: those in a round may still land."""
        if self._closed:
            await asyncio.wait({self._task})
            return
        self._closed = True
        self._task.cancel()
        await asyncio.wait({self._task})
        try:
            # Rounds would wait for this client; they do if nobody hears it go.
            async with asyncio.timeout(GOODBYE_S):
                await self._role.retire()
        except (EngineError, Protocol, TimeoutError) as error:
            log.info("the client goes without a word: %s", error)
        finally:
            self._network.leave(self._deployment)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def wait_ready(self) -> None:
        """Until the client is registered; raises what ended it before."""
        ready = asyncio.ensure_future(self._role.ready())
        try:
            await asyncio.wait({self._task, ready}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if self._task.done():
            raise _cause(self._task)

    async def _ended(self) -> Shutdown:
        if self._closed:
            return Shutdown("the submitter is closed", rule="closed")
        await asyncio.wait({self._task})
        cause = _cause(self._task)
        return Shutdown(
            "the client has ended",
            got=str(cause),
            rule="ended",
            hint=getattr(cause, "hint", "") or "close this submitter, and open another",
        )


def _cause(task: asyncio.Task[None]) -> BaseException:
    """What ended a client: of a group of errors, the first."""
    error = None if task.cancelled() else task.exception()
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error or Shutdown("the submitter is closed", rule="closed")


class _Typed(Generic[D]):
    """`Zipnet[Note]`: what there is for deployments of one type."""

    def __init__(self, kind: type[D]) -> None:
        self._kind = kind

    def deployment_id(self, config: Config) -> UniqueId:
        """The id of a deployment that carries this type. Raises ConfigRejected."""
        return deployment_id(config, self._kind)

    async def submit(
        self, network: Network, config: Config, access: Access | None = None
    ) -> Submitter[D]:
        """Take part; returns when the committee checked out and has the registration.

        Raises ConfigRejected, CallRejected (this node does so already), ConnectTimeout,
        Attestation (a server is not to be trusted: which, by which rule), Protocol (a server
        refuses the registration), EngineError, and ProviderError if there is no quote to be had.
        """
        access = access or Access()
        deployment = self.deployment_id(config)
        lookout = _lookout(network, config, deployment, access)
        settings = ClientSettings(
            config=config,
            deployment_id=deployment.raw,
            identity=network.identity,
            ticketing=partial(_ticketing, network, config, access),
            store=access.store,
            xor=keystream_xor(),
            draw=secrets.token_bytes,
            clock=_clock,
            waived=access.waived_keys(config),
            participation=access.participation,
            connect_s=access.connect_s,
        )
        role = ClientRole(network.port, lookout, settings)
        submitter = Submitter(network, deployment, self._kind, role)
        try:
            await submitter.wait_ready()
        except BaseException:
            await submitter.close()
            raise
        return submitter

    async def read(
        self,
        network: Network,
        config: Config,
        access: Access | None = None,
        *,
        from_round: int | None = None,
    ) -> Reader[D]:
        """Read from now on, or from a round on that the network still has.

        Raises ConfigRejected, ConnectTimeout, EngineError. Servers need not prove what code they
        run for this: a record is believed if the servers of all operators signed it.
        """
        access = access or Access()
        deployment = self.deployment_id(config)
        lookout, seats = await _seats(network, config, deployment, access)
        records = RecordReader(lookout, seats, from_round)
        await records.open()
        return Reader(records, self._kind)

    async def receipts(
        self, network: Network, config: Config, access: Access | None = None
    ) -> Receipts:
        """The receipts of this node's envelopes. Raises as `read`."""
        access = access or Access()
        deployment = self.deployment_id(config)
        lookout, seats = await _seats(network, config, deployment, access)
        table = await network.port.table(lookout.places.receipts)
        return Receipts(ReceiptReader(lookout, seats, table, network.identity))


class Bound:
    """A deployment of plain bytes, by its name. An async context manager; made by `Zipnet.bind`."""

    def __init__(self, network: Network, config: Config, access: Access) -> None:
        self.config = config
        self._kind: type[Blob] = bytes_datum(config.wire_size)
        self._typed = _Typed(self._kind)
        self.deployment_id = self._typed.deployment_id(config)
        self._network = network
        self._access = access
        self._submitter: Submitter[Blob] | None = None
        self._opening = asyncio.Lock()
        self._closed = False

    async def publish(self, content: bytes) -> Receipt:
        """Broadcast some bytes; the first call begins to take part. Raises as `submit`, `send`."""
        datum = self._kind(content)
        async with self._opening:
            if self._closed:
                raise Shutdown("the deployment's handle is closed", rule="closed")
            if self._submitter is None:
                self._submitter = await self._typed.submit(self._network, self.config, self._access)
        return await self._submitter.send(datum)

    async def subscribe(self, *, from_round: int | None = None) -> AsyncIterator[Message[bytes]]:
        """Messages from the first `anext` on, or from a round on. Raises as `read`."""
        reader = await self._typed.read(
            self._network, self.config, self._access, from_round=from_round
        )
        async for message in reader:
            yield Message(message.round, message.slot, message.datum.content)

    async def close(self) -> None:
        """Stop taking part; as `Submitter.close`."""
        self._closed = True
        if self._submitter is not None:
            await self._submitter.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        await self.close()


class _Zipnet:
    """See `Zipnet`."""

    def __getitem__(self, kind: type[D]) -> _Typed[D]:
        return _Typed(kind)

    @staticmethod
    def deployment_id(config: Config) -> UniqueId:
        """The id of a deployment, whatever it carries."""
        return deployment_id(config)

    @staticmethod
    async def bind(
        network: Network,
        name: str,
        *,
        folder: Path | None = None,
        access: Access | None = None,
    ) -> Bound:
        """The deployment whose configuration is NAME.toml in a folder, ZIPNET_CONFIG if None.

        Raises ConfigRejected: for an unknown name it lists the known ones. Also FileError.
        """
        return Bound(network, _named(_folder(folder), name), access or Access())


# `Zipnet[Note]` is typed by what it carries, `Zipnet.bind` goes by a name.
Zipnet: Final = _Zipnet()


def _folder(given: Path | None) -> Path:
    value = given or os.environ.get(FOLDER)
    if not value:
        raise ConfigRejected(
            "it is not known where configurations are",
            expected=f"a folder of NAME.toml files in {FOLDER}, or as an argument",
            got="none",
            rule="folder",
            hint="`zipnet config new` writes such a file",
        )
    return Path(value)


def _named(folder: Path, name: str) -> Config:
    # Only what the folder lists is opened: a name is no path.
    known = {path.stem: path for path in sorted(folder.glob("*.toml"))}
    if name not in known:
        raise ConfigRejected(
            "no deployment has this name",
            expected=", ".join(known) or f"a file NAME.toml in {folder}",
            got=ascii(name)[:80],
            rule="name.unknown",
            hint="names are looked up in files, never on the network: get the operators' file",
        )
    config = config_file.load(known[name])
    if config.name != name:
        raise ConfigRejected(
            "the file is of another deployment than its name says",
            expected=name,
            got=config.name,
            rule="name.file",
            hint=f"call it {config.name}.toml",
        )
    return config


def _lookout(network: Network, config: Config, deployment: UniqueId, access: Access) -> Lookout:
    network.check(deployment)

    def admission(instance: Instance) -> Admission:
        return access.admission(config, instance)

    return Lookout(network.port, config, deployment.raw, access.waived_keys(config), admission)


async def _seats(
    network: Network, config: Config, deployment: UniqueId, access: Access
) -> tuple[Lookout, Seats]:
    lookout = _lookout(network, config, deployment, access)
    await lookout.open()
    seats = Seats(lookout, config, access.waived_keys(config))
    await seats.wait(access.connect_s)
    return lookout, seats


def _ticketing(network: Network, config: Config, access: Access, instance: Instance) -> Ticketing:
    attested = config.clients is Clients.ATTESTED
    return Ticketing(
        config,
        instance,
        Role.CLIENT,
        network.identity,
        access.provider if attested else None,
        boot_epoch=network.opened,
        instance_id=network.identity.dh_pub,
    )


def _clock() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000
