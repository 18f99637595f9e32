"""`zipnet archive` and `zipnet subscribe`: what was broadcast, from final records."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import click

from attestation.errors import FileUnreadable
from zipnet.commands.network import committee, lookout, opened
from zipnet.commands.settings import (
    FILE,
    Deployment,
    deployment_from,
    deployment_options,
    network_options,
    required,
)
from zipnet.datum import Blob, bytes_datum, decode_exact
from zipnet.errors import DatumRejected, Refused
from zipnet.network.archive import Archive
from zipnet.network.base import Network
from zipnet.protocol.record import Record, SignedRecord
from zipnet.protocol.slots import Kind, read_slots
from zipnet.roles.reader import RecordReader
from zipnet.roles.seats import Seats


@click.group("archive")
def archive() -> None:
    """Final records of rounds."""


@archive.command("get")
@click.argument("number", metavar="ROUND", type=click.IntRange(min=1))
@deployment_options
@network_options
@click.option("-o", "--out", metavar="FILE", type=FILE, help="Write the signed record there too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def get(number: int, out: Path | None, as_json: bool, **values: Any) -> None:
    """Print what was broadcast in ROUND, after a check of all servers' signatures."""
    deployment = required(deployment_from(values))
    signed = asyncio.run(_get(deployment, values, number))
    if out is not None:
        _write(out, signed.encode())
    facts = describe(deployment, signed.record)
    if as_json:
        click.echo(json.dumps(facts, indent=2, sort_keys=True))
        return
    found = facts.pop("messages")
    facts["slots"] = ", ".join(f"{count} {kind}" for kind, count in facts["slots"].items() if count)
    for name, value in facts.items():
        click.echo(f"{name:<13} {value}")
    for one in found:
        click.echo(f"slot {one['slot']:>4}     {one.get('text', one['hex'])}")


@click.command("subscribe")
@deployment_options
@network_options
@click.option("--after", metavar="ROUND", type=click.IntRange(min=0), default=0, help="From there.")
@click.option("--follow", is_flag=True, help="Go on with what comes; on a bus only.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line.")
def subscribe(after: int, follow: bool, as_json: bool, **values: Any) -> None:
    """Print the messages of final records, the oldest first."""
    if follow and values["local"]:
        raise click.UsageError("--follow: a network in a folder is open in this process only")
    deployment = required(deployment_from(values))
    asyncio.run(_subscribe(deployment, values, after, as_json, follow))


def describe(deployment: Deployment, record: Record) -> dict[str, Any]:
    """What a record says, for a person or as JSON."""
    header = record.header
    slots = read_slots(record.payload, header)
    kinds = {kind.value: sum(slot.kind is kind for slot in slots) for kind in Kind}
    return {
        "round": header.round,
        "epoch": header.epoch,
        "record": record.hash.hex(),
        "servers": len(header.servers),
        "clients": record.clients,
        "participants": sum(byte.bit_count() for byte in record.participants),
        "slots": kinds,
        "messages": messages(deployment, record),
    }


def messages(deployment: Deployment, record: Record) -> list[dict[str, Any]]:
    """The messages of a record: slot, bytes, and text if the deployment carries plain bytes."""
    return [
        {"slot": at, "hex": slot.datum.hex()} | _text(deployment, slot.datum)
        for at, slot in enumerate(read_slots(record.payload, record.header))
        if slot.kind is Kind.MESSAGE
    ]


async def final(network: Network, deployment: Deployment, number: int) -> SignedRecord:
    """The final record of a round, signed by a server of each operator.

    Raises Refused, ConnectTimeout, EngineError.
    """
    archived = await Archive.open(network, deployment.id.raw)
    try:
        return await archived.get(number, (await committee(network, deployment)).peers)
    except Refused as error:
        if error.rule == "archive.round":
            raise
    # Signed by servers that are no longer there: their cards say whose they were.
    around = lookout(network, deployment)
    await around.open()
    header = (await archived.get(number)).record.header
    peers = await Seats(around, deployment.config, frozenset()).peers(header)
    return await archived.get(number, peers)


async def _get(deployment: Deployment, values: dict[str, Any], number: int) -> SignedRecord:
    async with opened(values, deployment) as network:
        return await final(network, deployment, number)


async def _subscribe(
    deployment: Deployment, values: dict[str, Any], after: int, as_json: bool, follow: bool
) -> None:
    async with opened(values, deployment) as network:
        await committee(network, deployment)
        newest = await (await Archive.open(network, deployment.id.raw)).newest()
        if newest <= after and not follow:
            return
        around = lookout(network, deployment)
        await around.open()
        reader = RecordReader(around, Seats(around, deployment.config, frozenset()), after + 1)
        await reader.open()
        async for record in reader:
            number = record.header.round
            for one in messages(deployment, record):
                if as_json:
                    click.echo(json.dumps({"round": number} | one, sort_keys=True))
                else:
                    click.echo(f"{number:>6}  {one.get('text', one['hex'])}")
            if number >= newest and not follow:
                return


def _text(deployment: Deployment, datum: bytes) -> dict[str, str]:
    """The content as text, if these are plain bytes; without what would move a cursor."""
    if deployment.config.type_tag != Blob.TYPE_TAG:
        return {}
    try:
        content = decode_exact(bytes_datum(deployment.config.wire_size), datum).content
        text = content.decode()
    except (DatumRejected, UnicodeDecodeError):
        return {}
    return {"text": "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)}


def _write(path: Path, data: bytes) -> None:
    try:
        with path.open("xb") as file:
            file.write(data)
    except OSError as error:
        raise FileUnreadable(
            f"can't write {path}: {error.strerror}",
            rule="file.write",
            hint="name a new file in a folder that you may write to",
        ) from error
