"""`zipnet publish`: one message, and what became of it."""

from __future__ import annotations

import asyncio
import json
import secrets
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from attestation.bundle import Role
from attestation.files import read_file
from zipnet.access import Access, Network
from zipnet.commands.network import opened
from zipnet.commands.settings import (
    FILE,
    Deployment,
    attestation_options,
    deployment_from,
    deployment_options,
    duration,
    network_options,
    required,
)
from zipnet.datum import bytes_datum
from zipnet.errors import Unavailable
from zipnet.network import base
from zipnet.node.service import collateral_source
from zipnet.node.service_identity import access_of
from zipnet.node.service_network import Caller
from zipnet.roles.identity import Identity
from zipnet.sdk import Outcome, Receipt, Zipnet

MAX_FILE = 1 << 20
MEANING = {
    Outcome.LANDED: "it is in the final record",
    Outcome.COLLIDED: "its slot was spoiled; somebody may have read it, so sending it again shows "
    "them two rounds of its author",
    Outcome.LATE: "it was not in the round and nobody has read it; send it again",
    Outcome.REFUSED: "the aggregator refused it and nobody has read it",
    Outcome.EXPOSED: "there is no record, but somebody may have read it: treat it as published",
}


@click.command("publish")
@click.argument("message", envvar="ZIPNET_MESSAGE")
@deployment_options
@network_options
@attestation_options
@click.option("--mock-root", metavar="FILE", type=FILE, help="Root (DER) of a mock anchor.")
@click.option("--timeout", type=duration, default="2m", show_default=True, help="In all.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def publish(
    message: str,
    collateral: Path | None,
    mock_tee: Path | None,
    program: str,
    mock_root: Path | None,
    timeout: int,
    as_json: bool,
    **values: Any,
) -> int:
    """Put MESSAGE into a round, and wait for what becomes of it.

    Exits with 0 if it landed. Nothing is sent again by itself.
    """
    deployment = required(deployment_from(values))
    if mock_tee is None:
        access = Access(
            collateral=collateral_source(collateral),
            mock_root=b"" if mock_root is None else read_file(mock_root, MAX_FILE),
        )
    else:
        access = access_of(deployment.config, Role.CLIENT, mock_tee, program, collateral)
    access = replace(access, connect_s=timeout / 1000)
    receipt = asyncio.run(_publish(deployment, values, access, message.encode(), timeout))
    if as_json:
        click.echo(json.dumps(asdict(receipt), indent=2, sort_keys=True))
    else:
        why = f" (rule {receipt.rule})" if receipt.rule else ""
        click.echo(f"{receipt.outcome} in round {receipt.round}{why}: {MEANING[receipt.outcome]}")
    return 0 if receipt.outcome is Outcome.LANDED else 2


async def send(
    network: base.Network,
    deployment: Deployment,
    access: Access,
    content: bytes,
    timeout_ms: int,
    identity: Identity | None = None,
) -> Receipt:
    """What became of these bytes.

    Raises DatumRejected, ConfigRejected where the deployment carries another datum, what `submit`
    raises, and Unavailable if it takes longer.
    """
    kind = bytes_datum(deployment.config.wire_size)
    datum = kind(content)
    node = await Network.over(network, universe=deployment.universe, identity=identity)
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            async with await Zipnet[kind].submit(node, deployment.config, access) as sender:
                return await sender.send(datum)
    except TimeoutError:
        raise Unavailable(
            "it is not known what became of the message",
            expected=f"an outcome within {timeout_ms / 1000:g} s",
            rule="publish.timeout",
            hint="rounds may be rare, or have too few clients: look at `zipnet status`",
        ) from None


async def _publish(
    deployment: Deployment, values: dict[str, Any], access: Access, content: bytes, timeout_ms: int
) -> Receipt:
    identity = Identity.fresh(secrets.token_bytes)
    caller = Caller(identity=identity.signing)
    async with opened(values, deployment, caller) as network:
        return await send(network, deployment, access, content, timeout_ms, identity)
