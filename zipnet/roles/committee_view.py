"""How a client comes to know a committee that it has no reason to believe.

What it has is the configuration. The operators' documents lead from its operators to those in
force; their endorsements to the servers; the servers' tickets to the code that they run, under the
list that the operators signed; and the servers' signatures to headers and records.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from attestation.allowlist import AllowList
from attestation.bundle import Bundle, Role
from attestation.errors import AttestationError, CollateralUnavailable
from attestation.ticket import Beacons
from zipnet.config import Config
from zipnet.errors import Attestation, ConnectTimeout, EngineError, Protocol, Shutdown, ZipnetError
from zipnet.ids import server_id
from zipnet.network import index
from zipnet.network.base import Blobs, Log, Network, Table
from zipnet.network.places import Places
from zipnet.network.public import Card, Notice, card_key
from zipnet.operators import OperatorSet, chain
from zipnet.protocol.header import NO_HASH, Header
from zipnet.protocol.instance import Instance
from zipnet.protocol.record import SignedRecord
from zipnet.protocol.sheet import Sheet
from zipnet.roles.admission import Admission
from zipnet.roles.seats import POLL, Seats

BEACONS = 64


@dataclass(frozen=True, slots=True)
class CommitteeView:
    """A committee whose servers were all checked.

    `servers` maps their ids to peer keys, `names` to their operators' names.
    """

    instance: Instance
    operators: OperatorSet
    accepted: AllowList
    servers: dict[bytes, bytes]
    names: dict[bytes, str]
    beacons: tuple[bytes, ...]
    next_epoch: int
    expires: datetime

    def misses(self, header: Header, sheet: Sheet, waived: frozenset[bytes]) -> bool:
        """Whether an operator has no server in a round: it may be one no longer."""
        of = {entry.key.member: entry.endorsement.operator for entry in sheet.servers}
        there = {of[server] for server in header.servers if server in of}
        return not {*self.operators.keys} <= there | waived

    def turned_away(self, server: bytes, rule: str, said: str = "") -> Attestation:
        """The error of a client that this server refuses."""
        operator = self.names.get(server, "an operator not in force")
        return Attestation(
            f"the server of {operator} ({server.hex()[:16]}) refuses this client",
            got=said,
            rule=rule,
            hint=f"the rule is what that server checked; ask {operator} which list is in force",
        )


class Lookout:
    """Reads what is public, and believes what checks out. `waived` are operators' keys."""

    def __init__(
        self,
        network: Network,
        config: Config,
        deployment_id: bytes,
        waived: frozenset[bytes],
        admission: Callable[[Instance], Admission],
    ) -> None:
        self._network = network
        self._config = config
        self._id = deployment_id
        self._waived = waived
        self._admission = admission
        self.places = Places.of(deployment_id)
        self.live: Table
        self.cards: Table
        self.records: Log
        self.blobs: Blobs

    async def open(self) -> None:
        """Open what is read. Raises EngineError."""
        self.live = await self._network.table(self.places.live)
        self.cards = await self._network.table(self.places.servers)
        self.records = await self._network.log(self.places.broadcasts)
        self.blobs = await self._network.blobs(self.places.blobs)

    async def find(self, now: Callable[[], datetime], seconds: float) -> CommitteeView:
        """The committee, once all its servers are there and check out.

        Raises ConnectTimeout if there is none in time, Attestation if a server does not pass.
        """
        last: ZipnetError | None = None
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        return await self.look(now())
                    except ConnectTimeout as error:
                        last = error
                    await asyncio.sleep(POLL)
        except TimeoutError:
            raise await self.nobody(last) from last

    async def nobody(self, last: ZipnetError | None) -> ConnectTimeout:
        """Why there is no committee, as far as it can be known."""
        own = self._id.hex()
        hint = (
            f"this side's fingerprint is {own}; compare it with what the operators publish "
            "(`zipnet config fingerprint FILE` prints theirs)"
        )
        with contextlib.suppress(EngineError):
            ids = await index.deployments(self._network, self._config.name)
            others = [one.hex() for one in ids if one != self._id]
            if others and self._id not in ids:
                hint = (
                    f"this side's fingerprint is {own}, that of the servers which use the name "
                    f"here {' or '.join(others)}: a value of the configuration differs; compare "
                    "the files (`zipnet config show`)"
                )
        return ConnectTimeout(
            f"no committee of {self._config.name} answers on this network",
            expected=f"servers of {', '.join(o.name for o in self._config.operators)}",
            got=str(last) if last else "nothing",
            rule="connect",
            hint=hint,
        )

    async def look(self, now: datetime) -> CommitteeView:
        """The committee as it is now.

        Raises ConnectTimeout for what may still come, Attestation for what must not be.
        """
        operators = (await self.history())[-1]
        wanted = {one.key: one.name for one in operators.operators if one.key not in self._waived}
        by_operator = {n.endorsement.operator: n for n in await self._notices(tuple(wanted))}
        missing = [name for key, name in wanted.items() if key not in by_operator]
        if missing:
            raise ConnectTimeout(
                "servers are missing",
                expected="one of each operator",
                got=f"none of {', '.join(missing)}",
                rule="connect",
            )
        mine = [by_operator[key] for key in wanted]
        if len({(n.instance.generation, n.documents, n.accepted) for n in mine}) != 1:
            raise ConnectTimeout("the servers do not agree yet", rule="connect")
        accepted = await self.accepted_list(mine[0].accepted, operators)
        instance = mine[0].instance
        servers = {server_id(n.endorsement.dh_pub): n.endorsement.peer for n in mine}
        beacons = await self._beacons(mine, instance)
        if not beacons:
            raise ConnectTimeout("there is no beacon yet", rule="connect")
        expires = await self._check_cards(mine, wanted, accepted, beacons, instance, now)
        epoch = max(n.next_epoch for n in mine)
        names = {server_id(n.endorsement.dh_pub): wanted[n.endorsement.operator] for n in mine}
        return CommitteeView(instance, operators, accepted, servers, names, beacons, epoch, expires)

    async def history(self) -> tuple[OperatorSet, ...]:
        """All operators there were, those in force last: the longest chain that a server names.

        Raises DocumentRejected, EngineError.
        """
        sets: tuple[OperatorSet, ...] = (OperatorSet.genesis(self._config),)
        asked: set[bytes] = set()
        while new := set(sets[-1].keys) - asked:
            asked |= new
            for notice in await self._notices(tuple(new)):
                if len(notice.documents) >= len(sets):
                    documents = [await self.blobs.get(digest) for digest in notice.documents]
                    sets = chain(self._config, documents)
        return sets

    async def check_generation(self, instance: Instance, operators: OperatorSet) -> None:
        """Raise Shutdown once the servers of all operators are in another generation."""
        wanted = tuple(key for key in operators.keys if key not in self._waived)
        found = {notice.instance for notice in await self._notices(wanted)}
        if len(found) == 1 and instance not in found:
            raise Shutdown(
                "the committee goes on in another generation",
                expected=instance.generation.hex(),
                got=found.pop().generation.hex(),
                rule="generation",
                hint="connect again, and say again what was never heard of",
            )

    async def generation(self) -> Instance | None:
        """The generation that enough operators' servers are in for rounds; None if none is.

        Raises DocumentRejected, EngineError.
        """
        operators = (await self.history())[-1]
        wanted = tuple(key for key in operators.keys if key not in self._waived)
        found = Counter(notice.instance for notice in await self._notices(wanted))
        needed = max(len(wanted) // 2 + 1, operators.servers_needed(self._config))
        return next((one for one, n in found.items() if n >= min(needed, len(wanted))), None)

    async def absent(self, operators: OperatorSet) -> list[str]:
        """The names of those of whom no server shows itself, waived ones aside."""
        wanted = {one.key: one.name for one in operators.operators if one.key not in self._waived}
        there = {notice.endorsement.operator for notice in await self._notices(tuple(wanted))}
        return [name for key, name in wanted.items() if key not in there]

    async def accepted_list(self, digest: bytes, operators: OperatorSet) -> AllowList:
        """The list in a blob, by its digest. Raises ConnectTimeout while there is none."""
        if digest == NO_HASH:
            raise ConnectTimeout("the operators have signed no list yet", rule="connect")
        raw = await self.blobs.get(digest)
        keys = list(operators.keys)
        return AllowList.verify(raw, keys, operators.k, None, deployment_id=self._id)

    async def _notices(self, operators: tuple[bytes, ...]) -> list[Notice]:
        """The notices of these operators' servers, as far as there are good ones."""
        found = []
        for operator in operators:
            item = await self.live.get(f"notice/{operator.hex()}")
            if item is None or item.value is None:
                continue
            try:
                notice = Notice.decode(item.value)
                notice.verify()
            except ZipnetError:
                continue  # anybody on the bus may write there; who is missing will be named
            right = (notice.endorsement.operator, notice.instance.deployment_id)
            if right == (operator, self._id):
                found.append(notice)
        return found

    async def _beacons(self, notices: list[Notice], instance: Instance) -> tuple[bytes, ...]:
        """The hashes of the generation's last records that servers signed, the newest last.

        Not only the servers of today: one that was replaced has signed the beacon with which its
        successor shows that it is new. Before the first record the first beacon counts, as long as
        all servers say so.
        """
        start, last = await self.records.bounds()
        # They go through the sets of operators in order: these records begin before today's set.
        seats = Seats(self, self._config, self._waived)
        found: list[bytes] = []
        if last:
            records = self.records.read(after=max(start - 1, last - BEACONS))
            async for entry in records:
                try:
                    signed = SignedRecord.decode(entry.data)
                    if signed.record.header.instance == instance:
                        signed.verify(await seats.peers(signed.record.header))
                        found.append(signed.record.hash)
                except ZipnetError:
                    pass  # of another committee or forged: no beacon
                if entry.seq >= last:
                    break
        first = {notice.beacon for notice in notices}
        if len(first) == 1 and NO_HASH not in first and len(found) < BEACONS:
            found[:0] = first
        return tuple(found)

    async def _check_cards(
        self,
        notices: list[Notice],
        names: dict[bytes, str],
        accepted: AllowList,
        beacons: tuple[bytes, ...],
        instance: Instance,
        now: datetime,
    ) -> datetime:
        """When the first of the servers' tickets ends. Raises as `look`."""
        ends = []
        admission = self._admission(instance)
        for notice in notices:
            server = server_id(notice.endorsement.dh_pub)
            item = await self.cards.get(card_key(instance, server))
            name = names[notice.endorsement.operator]
            if item is None or item.value is None:
                raise ConnectTimeout(f"the server of {name} shows no ticket yet", rule="connect")
            try:
                card = Card.decode(item.value)
                bundle = Bundle.decode(card.bundle)
                if bundle.ticket.peer_id != notice.endorsement.peer:
                    raise Protocol("the ticket is of another peer", rule="peer")
                await admission.prepare(bundle, Role.SERVER)
                expiry = admission.validate(
                    bundle, Role.SERVER, accepted, Beacons(frozenset(beacons)), now
                )
            except CollateralUnavailable as error:
                raise ConnectTimeout(
                    f"the ticket of {name}'s server can't be judged: {error.message}",
                    got=error.got,
                    rule=error.rule,
                    hint=error.hint,
                ) from error
            except (AttestationError, ZipnetError) as error:
                if error.rule == "beacon":
                    raise ConnectTimeout(
                        f"the ticket of {name}'s server is old", rule="beacon"
                    ) from error
                raise Attestation(
                    f"the server of operator {name} is not to be trusted: {error.message}",
                    expected=error.expected,
                    got=error.got,
                    rule=error.rule,
                    hint=f"nothing is sealed for it; ask {name}. {error.hint}",
                ) from error
            ends.append(expiry.at)
        return min(ends)
