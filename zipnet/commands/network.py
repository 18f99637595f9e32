"""What the commands that use a network share: opening it, and whose servers count."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from zipnet.access import Access
from zipnet.commands.settings import Deployment, place_of
from zipnet.errors import BlobMissing, ConnectTimeout, NoNetwork, ZipnetError
from zipnet.ids import server_id
from zipnet.network.base import Blobs, Network, Table
from zipnet.network.places import Places
from zipnet.network.public import Answer, Notice, Request, server_topic
from zipnet.node.service_network import GUEST, Caller
from zipnet.node.service_network import opened as reached
from zipnet.operators import OperatorSet, follow
from zipnet.roles.committee_view import Lookout

# How long a command waits for a bus to answer.
ATTEMPT_S = 10.0


@contextlib.asynccontextmanager
async def opened(
    values: dict[str, Any], deployment: Deployment, caller: Caller = GUEST
) -> AsyncIterator[Network]:
    """The network that the options `local` and `bootstrap` name, until the context is left.

    Raises NoNetwork, WrongUniverse, EngineError.
    """
    place = place_of(values)
    if place.folder is not None and not (place.folder / "engine.sqlite").is_file():
        raise NoNetwork(
            f"there is no network in {place.folder}",
            expected="a folder that `zipnet demo --local FOLDER` or a node has made",
            rule="network.folder",
            hint="check the path",
        )
    if place.folder is None and not place.urls:
        raise NoNetwork(
            "no network was named",
            expected="ZIPNET_BOOTSTRAP (--bootstrap), the URLs of the bus, or --local FOLDER",
            got="neither",
            rule="network.absent",
            hint="operators publish the URLs; `zipnet demo --local FOLDER` leaves a network",
        )
    network = reached(place, deployment.id, deployment.universe, caller, ATTEMPT_S)
    async with network as found:
        yield found


@dataclass(frozen=True, slots=True)
class Committee:
    """The servers that the operators endorsed, by the notices that they signed.

    `notices` goes by operators' names. Tickets are not looked at: what follows from this is who
    signs, not which code runs.
    """

    operators: OperatorSet
    notices: dict[str, Notice]

    @property
    def peers(self) -> dict[bytes, bytes]:
        """Peer keys by server id."""
        return {
            server_id(one.endorsement.dh_pub): one.endorsement.peer for one in self.notices.values()
        }

    @property
    def missing(self) -> list[str]:
        """The operators of whom there is no server."""
        return [one.name for one in self.operators.operators if one.name not in self.notices]


def lookout(network: Network, deployment: Deployment) -> Lookout:
    """For reading, which asks servers for no tickets."""
    admission = partial(Access().admission, deployment.config)
    return Lookout(network, deployment.config, deployment.id.raw, frozenset(), admission)


async def committee(network: Network, deployment: Deployment) -> Committee:
    """The committee as it is announced. Raises ConnectTimeout if nobody is, EngineError."""
    places = Places.of(deployment.id.raw)
    table, blobs = await network.table(places.live), await network.blobs(places.blobs)
    genesis = OperatorSet.genesis(deployment.config)
    operators = await _in_force(table, blobs, deployment, genesis)
    notices = {}
    for one in operators.operators:
        notice = await _notice(table, one.key, deployment.id.raw)
        if notice is not None:
            notices[one.name] = notice
    if not notices:
        raise await lookout(network, deployment).nobody(None)
    return Committee(operators, notices)


async def ask_servers(network: Network, deployment: Deployment, request: Request) -> bytes:
    """The answer of the first server that gives one.

    Raises Refused with the reason that a server gave, ConnectTimeout if none answers.
    """
    known = await committee(network, deployment)
    channel = network.channel(Places.of(deployment.id.raw).register)
    last = "nothing"
    for name, notice in known.notices.items():
        topic = server_topic(server_id(notice.endorsement.dh_pub))
        try:
            raw = await channel.ask(topic, request.encode())
        except ZipnetError as error:
            last = str(error)
            continue
        return Answer.decode(raw).content_or_raise(f"the server of {name}")
    raise ConnectTimeout(
        f"no server of {deployment.config.name} answers",
        expected=f"one of {', '.join(known.notices)}",
        got=last,
        rule="connect",
        hint="on a local network the servers must run in this very process; "
        "on a bus, look at the servers' logs",
    )


async def _in_force(
    table: Table, blobs: Blobs, deployment: Deployment, genesis: OperatorSet
) -> OperatorSet:
    """The operators after the longest chain of documents that their servers name."""
    found = genesis
    for operator in genesis.operators:
        notice = await _notice(table, operator.key, deployment.id.raw)
        if notice is None or len(notice.documents) <= found.number:
            continue
        with contextlib.suppress(BlobMissing):
            documents = await asyncio.gather(*map(blobs.get, notice.documents))
            found = follow(deployment.config, documents)
    return found


async def _notice(table: Table, operator: bytes, deployment_id: bytes) -> Notice | None:
    """The notice of an operator's server, if it is one: anybody on the bus may write there."""
    item = await table.get(f"notice/{operator.hex()}")
    if item is None or item.value is None:
        return None
    try:
        notice = Notice.decode(item.value)
        notice.verify()
    except ZipnetError:
        return None
    right = (notice.endorsement.operator, notice.instance.deployment_id)
    return notice if right == (operator, deployment_id) else None
