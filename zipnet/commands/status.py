"""`zipnet status`: what a deployment says of itself on a network."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import click

from zipnet.commands.archive import final
from zipnet.commands.network import Committee, committee, opened
from zipnet.commands.settings import (
    Deployment,
    deployment_from,
    deployment_options,
    network_options,
    required,
)
from zipnet.errors import Refused, WireFormatError
from zipnet.network.archive import Archive
from zipnet.network.base import Network
from zipnet.network.places import Places
from zipnet.network.public import LiveRound
from zipnet.protocol.header import Header


@click.command("status")
@deployment_options
@network_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(as_json: bool, **values: Any) -> None:
    """Print the committee, the live round and the last final record.

    Who signs is checked, and which code they run is not: a client does that before it seals.
    """
    deployment = required(deployment_from(values))
    facts = asyncio.run(_look(deployment, values))
    if as_json:
        click.echo(json.dumps(facts, indent=2, sort_keys=True))
        return
    servers = facts.pop("servers")
    warning = facts.pop("warning")
    for name, value in facts.items():
        click.echo(f"{name.replace('_', ' '):<18} {'-' if value is None else value}")
    for name, peer in servers.items():
        click.echo(f"{'server of ' + name:<18} {peer or 'absent'}")
    if warning:
        click.echo(f"warning: {warning}", err=True)


async def _look(deployment: Deployment, values: dict[str, Any]) -> dict[str, Any]:
    async with opened(values, deployment) as network:
        return await look(network, deployment)


async def look(network: Network, deployment: Deployment) -> dict[str, Any]:
    """The facts. Raises ConnectTimeout, EngineError."""
    known = await committee(network, deployment)
    header = await _live(network, deployment, known)
    newest = await (await Archive.open(network, deployment.id.raw)).newest()
    last = (await final(network, deployment, newest)).record if newest else None
    operators = known.operators.operators
    fewer = f"{len(operators)} operators: fewer than 3 servers" if len(operators) < 3 else ""
    generations = {one.instance.generation.hex() for one in known.notices.values()}
    return {
        "deployment": deployment.config.name,
        "fingerprint": deployment.id.hex(),
        "universe": deployment.universe.hex(),
        "generation": ", ".join(sorted(generations)),
        "servers": {
            one.name: known.notices[one.name].endorsement.peer.hex()
            if one.name in known.notices
            else None
            for one in operators
        },
        "live_round": header.round if header else None,
        "epoch": header.epoch if header else None,
        "list": header.list_number if header else None,
        "last_final_round": last.header.round if last else None,
        "last_record": last.hash.hex() if last else None,
        "acpi": "unverified",
        "warning": fewer or (f"no server of {', '.join(known.missing)}" if known.missing else ""),
    }


async def _live(network: Network, deployment: Deployment, known: Committee) -> Header | None:
    """The live header; None until there is one by these servers.

    Raises Refused if they have not signed it, EngineError.
    """
    table = await network.table(Places.of(deployment.id.raw).live)
    item = await table.get("live")
    if item is None or item.value is None:
        return None
    try:
        live = LiveRound.decode(item.value)
    except WireFormatError:
        return None
    try:
        live.header.verify(known.peers)
    except Refused as error:
        if error.rule != "header.unknown-server":
            raise
        return None  # the committee has changed since: the next round is with its new server
    return live.header.header
