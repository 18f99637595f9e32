"""Documents of all operators: who they are, and which measurements count. Made, signed, handed in.

One of them makes the payload, each signs it, and the last one joins the signatures of the others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from attestation import envelope
from attestation.allowlist import PAYLOAD_TYPE, AllowList, Entry, TcbPolicy
from attestation.allowlist import sign as sign_list
from attestation.errors import AllowListRejected
from attestation.files import read_file
from attestation.measure.record import Measurements
from zipnet.commands.admin import MAX_DOCUMENT, allow_list, operator_key, signer_options
from zipnet.commands.admin_files import read_signed, write_new
from zipnet.commands.network import ask_servers, committee, opened
from zipnet.commands.settings import (
    FILE,
    Deployment,
    deployment_from,
    deployment_options,
    network_options,
    operator,
    required,
)
from zipnet.committee import bodies
from zipnet.config import Operator
from zipnet.errors import ConfigRejected, DocumentRejected
from zipnet.network.base import Network
from zipnet.network.places import Places
from zipnet.network.public import Ask, Request
from zipnet.operators import OPERATORS_TYPE, OperatorDocument, OperatorSet, follow

F = TypeVar("F", bound=Callable[..., Any])

OUT = click.option("-o", "--out", metavar="FILE", type=FILE, required=True, help="A new file.")
DOCUMENTS = click.option(
    "--document",
    "documents",
    metavar="FILE",
    type=FILE,
    multiple=True,
    help="Each change of operators since the configuration, in order.",
)
JOIN = click.option(
    "--join",
    "others",
    metavar="FILE",
    type=FILE,
    multiple=True,
    help="The same document as another operator signed it.",
)


@click.group("operators")
def operators() -> None:
    """Who the operators are."""


@allow_list.command("new")
@click.argument("files", metavar="MEASUREMENTS...", type=FILE, nargs=-1)
@deployment_options
@click.option(
    "--after",
    metavar="FILE",
    type=FILE,
    help="The list in force, as `allow-list show --json` prints it: its entries and TCB policy "
    "stay. Without it this is the first list.",
)
@click.option(
    "--drop",
    "dropped",
    metavar="FILE",
    type=FILE,
    multiple=True,
    help="Measurements that the list in force has, and this one has not.",
)
@OUT
def new_list(
    files: tuple[Path, ...], after: Path | None, dropped: tuple[Path, ...], out: Path, **values: Any
) -> None:
    """Write the list after the one in force, for all to sign. Needs no network.

    It also accepts what is in MEASUREMENTS, files as image builds write them.
    """
    deployment = required(deployment_from(values))
    if after is None:
        old = AllowList(1, deployment.id.raw, 0, _entries(files), TcbPolicy())
    else:
        found = AllowList.loads(read_file(after, envelope.MAX_BYTES))
        _check_deployment(found.deployment_id, deployment)
        entries = (*found.entries, *_entries(files))
        old = replace(found, number=found.number + 1, entries=entries)
    made = replace(old, issued_at=int(time.time()), entries=_without(old.entries, dropped))
    write_new(out, made.dumps())
    click.echo(f"list {made.number} of {len(made.entries)} entries, {made.digest.hex()}")


@allow_list.command("sign")
@click.argument("file", type=FILE)
@deployment_options
@signer_options
@JOIN
def sign_allow_list(file: Path, out: Path, others: tuple[Path, ...], **values: Any) -> None:
    """Sign the list in FILE, as `allow-list new` writes it. Needs no network."""
    deployment, known, payload = _given(file, values)
    made = AllowList.loads(payload)
    _check_deployment(made.deployment_id, deployment)
    key = operator_key(values["key_file"], known)
    signatures = _joined(payload, PAYLOAD_TYPE, sign_list(payload, key), others)
    _finish(out, envelope.assemble(payload, PAYLOAD_TYPE, signatures.values()), signatures, known,
            known.k)  # fmt: skip


@operators.command("new")
@deployment_options
@DOCUMENTS
@click.option("--add", "added", metavar="NAME=HEXKEY", type=operator, multiple=True)
@click.option("--drop", "dropped", metavar="NAME", multiple=True)
@click.option(
    "--k",
    type=click.IntRange(min=1),
    help="How many sign a list from then on; as many as now if not given.",
)
@OUT
def new_operators(
    added: tuple[Operator, ...],
    dropped: tuple[str, ...],
    k: int | None,
    documents: tuple[Path, ...],
    out: Path,
    **values: Any,
) -> None:
    """Write who follows the operators in force, for all of these to sign. Needs no network.

    Whoever gets another key is dropped and added by the same name.
    """
    deployment = required(deployment_from(values))
    known = _known(deployment, documents)
    names = {one.name for one in known.operators}
    if unknown := sorted(set(dropped) - names):
        raise ConfigRejected(
            f"no operator has the name {ascii(unknown[0])[:80]}",
            expected=", ".join(sorted(names)),
            rule="operator.unknown",
        )
    after = [*(one for one in known.operators if one.name not in dropped), *added]
    made = OperatorDocument.after(known, deployment.id.raw, after, k or min(known.k, len(after)))
    write_new(out, made.dumps())
    click.echo(f"document {made.number}: {', '.join(one.name for one in made.operators)}")


@operators.command("sign")
@click.argument("file", type=FILE)
@deployment_options
@signer_options
@JOIN
def sign_operators(file: Path, out: Path, others: tuple[Path, ...], **values: Any) -> None:
    """Sign the operators in FILE, as `operators new` writes them. Needs no network."""
    deployment, known, payload = _given(file, values)
    made = OperatorDocument.loads(payload)
    _check_deployment(made.deployment_id, deployment)
    key = operator_key(values["key_file"], known)
    signatures = _joined(payload, OPERATORS_TYPE, made.sign(key), others)
    raw = made.assemble(signatures.values())
    if not _missing(known, signatures):
        OperatorDocument.verify(raw, known, deployment.id.raw)
    _finish(out, raw, signatures, known, len(known.operators))


@operators.command("push")
@click.argument("file", type=FILE)
@deployment_options
@network_options
def push(file: Path, **values: Any) -> None:
    """Hand the signed operators in FILE to the committee."""
    deployment = required(deployment_from(values))
    raw = read_file(file, MAX_DOCUMENT)
    after = asyncio.run(_push(deployment, values, raw))
    names = ", ".join(one.name for one in after.operators)
    click.echo(f"document {after.number} is in the log; the operators are {names}")


async def send_operators(network: Network, deployment: Deployment, raw: bytes) -> OperatorSet:
    """Check operators as the committee will, and hand them over.

    Raises DocumentRejected, Refused, ConnectTimeout, EngineError.
    """
    known = await committee(network, deployment)
    after = OperatorDocument.verify(raw, known.operators, deployment.id.raw)
    await _check_list(network, deployment, max(n.accepted for n in known.notices.values()), after)
    body = bodies.ChangeOperators(raw).encode()
    await ask_servers(network, deployment, Request(Ask.OPERATORS, body))
    return after


async def _check_list(
    network: Network, deployment: Deployment, digest: bytes, after: OperatorSet
) -> None:
    """Check that the list in force stays good: clients take none that too few operators signed."""
    if not any(digest):
        return
    blobs = await network.blobs(Places.of(deployment.id.raw).blobs)
    try:
        AllowList.verify(
            await blobs.get(digest), after.keys, after.k, None, deployment_id=deployment.id.raw
        )
    except AllowListRejected as error:
        raise DocumentRejected(
            "under these operators the list in force would be signed by too few",
            expected=error.expected,
            got=error.got,
            rule="operators.list",
            hint="sign its entries by those who stay first: `zipnet admin allow-list new --after`",
        ) from error


async def _push(deployment: Deployment, values: dict[str, Any], raw: bytes) -> OperatorSet:
    async with opened(values, deployment) as network:
        return await send_operators(network, deployment, raw)


def _known(deployment: Deployment, documents: tuple[Path, ...]) -> OperatorSet:
    return follow(deployment.config, [read_file(path, MAX_DOCUMENT) for path in documents])


def _given(file: Path, values: dict[str, Any]) -> tuple[Deployment, OperatorSet, bytes]:
    """Whose deployment, who signs there, and what."""
    deployment = required(deployment_from(values))
    known = _known(deployment, values["documents"])
    return deployment, known, read_file(file, envelope.MAX_BYTES)


def _entries(files: tuple[Path, ...]) -> tuple[Entry, ...]:
    return tuple(Entry(one) for path in files for one in Measurements.load(path).entries)


def _without(entries: tuple[Entry, ...], dropped: tuple[Path, ...]) -> tuple[Entry, ...]:
    """The entries but those of these files. Raises ConfigRejected for one that is not there."""
    gone = {one.measurement: path for path in dropped for one in _entries((path,))}
    there = {entry.measurement for entry in entries}
    for measurement, path in gone.items():
        if measurement not in there:
            raise ConfigRejected(
                f"{path} has a measurement that is not on the list",
                expected="measurements of the list in force",
                got=f"{measurement.role} {measurement.mr_td.hex()}",
                rule="list.drop",
                hint="`zipnet admin allow-list show` prints what is on it",
            )
    return tuple(entry for entry in entries if entry.measurement not in gone)


def _check_deployment(found: bytes, deployment: Deployment) -> None:
    if found != deployment.id.raw:
        raise DocumentRejected(
            "the document is for another deployment",
            expected=deployment.id.hex(),
            got=found.hex(),
            rule="deployment",
            hint="give the configuration that it was made with",
        )


def _joined(
    payload: bytes, payload_type: str, own: envelope.Signature, others: tuple[Path, ...]
) -> dict[str, envelope.Signature]:
    """This signature and those in the envelopes of others, by key. Raises DocumentRejected."""
    signatures = {str(own.keyid): own}
    for path in others:
        signed = read_signed(path, payload_type)
        if signed.payload != payload:
            raise DocumentRejected(
                f"{path} is another document",
                expected="the same bytes, signed by another operator",
                rule="document.other",
                hint="all operators sign the same file",
            )
        signatures |= signed.signatures
    return signatures


def _missing(known: OperatorSet, signatures: dict[str, envelope.Signature]) -> list[str]:
    return [one.name for one in known.operators if one.key.hex() not in signatures]


def _finish(
    out: Path,
    raw: bytes,
    signatures: dict[str, envelope.Signature],
    known: OperatorSet,
    needed: int,
) -> None:
    write_new(out, raw)
    missing = _missing(known, signatures)
    click.echo(f"signatures   {len(known.operators) - len(missing)}, needed {needed}")
    if missing:
        click.echo(f"missing      {', '.join(missing)}")
