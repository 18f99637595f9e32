"""`zipnet admin`: what operators do. What only signs needs no network."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation import envelope
from attestation.allowlist import AllowList
from attestation.bundle import Role
from attestation.errors import FileUnreadable
from attestation.files import read_file
from zipnet.commands.admin_files import erase, read_signed, write_new
from zipnet.commands.network import ask_servers, committee, opened
from zipnet.commands.settings import (
    FILE,
    Deployment,
    Secrets,
    deployment_from,
    deployment_options,
    hex32,
    network_options,
    required,
    secret_options,
    secrets_from,
    state_option,
)
from zipnet.committee import bodies, snapshot
from zipnet.committee.machine import Machine
from zipnet.committee.state import Rules
from zipnet.errors import BlobMissing, ConfigRejected, DocumentRejected
from zipnet.network.base import Network
from zipnet.network.places import Places
from zipnet.network.public import Ask, Request
from zipnet.network.recovery import MAX_FILE, VERSION, Reopening, kept_checkpoint, last_checkpoint
from zipnet.node.service_identity import kept
from zipnet.node.service_network import GUEST, Caller
from zipnet.operators import (
    NOBODY,
    RECOVERY_TYPE,
    Dismissal,
    Endorsement,
    OperatorSet,
    RecoveryDocument,
    follow,
)
from zipnet.protocol.instance import Instance

F = TypeVar("F", bound=Callable[..., Any])

MAX_KEY = 4096
MAX_DOCUMENT = 1 << 20
MAX_SNAPSHOT = 1 << 30


@click.group("admin")
def admin() -> None:
    """What operators do: lists, servers, recovery."""


@admin.group("allow-list")
def allow_list() -> None:
    """The list of accepted measurements."""


@admin.group("server")
def server() -> None:
    """An operator's word for or against a server."""


def signer_options(command: F) -> F:
    """The options of who signs, and what for."""
    for option in reversed(
        (
            click.option(
                "--key",
                "key_file",
                metavar="FILE",
                type=FILE,
                required=True,
                help="The operator's Ed25519 key: PEM without a password, or 64 hex digits.",
            ),
            click.option(
                "-o", "--out", metavar="FILE", type=FILE, required=True, help="A new file."
            ),
            click.option(
                "--document",
                "documents",
                metavar="FILE",
                type=FILE,
                multiple=True,
                help="Each change of operators since the configuration, in order.",
            ),
        )
    ):
        command = option(command)
    return command


def generation_options(command: F) -> F:
    """The options of the generation that a signature is good in."""
    for option in reversed(
        (
            click.option(
                "--generation", type=hex32, help="As `zipnet status` prints it; else of the secret."
            ),
            click.option(
                "--counter",
                type=click.IntRange(min=0),
                default=0,
                show_default=True,
                help="How many generations came before, for the secret.",
            ),
            click.option(
                "--serial",
                type=click.IntRange(min=1, max=(1 << 63) - 1),
                help="Above that of all that this operator signed before; the time if not given.",
            ),
        )
    ):
        command = option(command)
    return command


@allow_list.command("push")
@click.argument("file", type=FILE)
@deployment_options
@network_options
def push(file: Path, **values: Any) -> None:
    """Hand the signed list in FILE to the committee."""
    deployment = required(deployment_from(values))
    number = asyncio.run(_push(deployment, values, read_file(file, envelope.MAX_BYTES)))
    click.echo(f"list {number} is in the log; it comes in force some rounds later")


@allow_list.command("show")
@deployment_options
@network_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(as_json: bool, **values: Any) -> None:
    """Print the list in force."""
    deployment = required(deployment_from(values))
    found = asyncio.run(_show(deployment, values))
    if as_json:
        click.echo(found.dumps().decode(), nl=False)
        return
    click.echo(f"number       {found.number}")
    click.echo(f"digest       {found.digest.hex()}")
    click.echo(f"tcb          {', '.join(sorted(found.tcb.accepted))}")
    for entry in found.entries:
        one = entry.measurement
        until = "" if entry.retire_after is None else f", until {entry.retire_after}"
        dev = ", development" if one.is_dev else ""
        click.echo(f"{one.role:<12} {one.mr_td.hex()}{dev}{until}")


@server.command("add")
@deployment_options
@secret_options
@signer_options
@generation_options
@click.option("--peer", type=hex32, required=True, help="The server's Ed25519 key.")
@click.option("--dh", type=hex32, required=True, help="The server's X25519 identity key.")
def add(peer: bytes, dh: bytes, out: Path, **values: Any) -> None:
    """Sign for a server: it joins with what is written to --out. Needs no network."""
    _, key, instance, serial = _signer(values)
    made = Endorsement.make(instance, key, peer, dh, serial)
    write_new(out, made.encode())
    click.echo(f"endorsed the server {peer.hex()}, serial {serial}")


@server.command("remove")
@deployment_options
@network_options
@secret_options
@signer_options
@generation_options
@click.option("--peer", type=hex32, required=True, help="The server's Ed25519 key.")
@click.option("--push", "send", is_flag=True, help="Hand it to the committee at once.")
@click.option("--wipe", is_flag=True, help="Erase the state of the server on this machine.")
@click.option("--state", metavar="FILE", type=FILE, help="The state that --wipe erases.")
def remove(
    peer: bytes, out: Path, send: bool, wipe: bool, state: Path | None, **values: Any
) -> None:
    """Sign against a server: the committee goes on without it once it has that.

    With --wipe its secrets are gone afterwards, and no old partial can be made again.
    """
    if wipe != (state is not None):
        raise click.UsageError("--wipe and --state FILE belong together")
    names = ("local", "bootstrap", "bus_certificates", "replicas")
    bus = {name: values.pop(name) for name in names}
    deployment, key, instance, serial = _signer(values)
    made = Dismissal.make(instance, key, peer, serial)
    write_new(out, made.encode())
    click.echo(f"dismissed the server {peer.hex()}, serial {serial}")
    if send:
        asyncio.run(_ask(deployment, bus, Request(Ask.DISMISS, made.encode())))
        click.echo("the committee has it")
    if state is not None:
        erase(state)
        click.echo(f"erased {state}")


@admin.command("recover")
@click.argument("checkpoint", type=FILE, required=False)
@deployment_options
@network_options
@secret_options
@signer_options
@state_option
@click.option("--offender", metavar="NAME", help="The one operator who doesn't sign.")
@click.option(
    "--generation", type=hex32, help="The old one, of the network's checkpoint; else as announced."
)
@click.option(
    "--recovery",
    metavar="FILE",
    type=FILE,
    help="Once all have signed: a new file for servers, with the checkpoint.",
)
@click.option(
    "--join",
    "others",
    metavar="FILE",
    type=FILE,
    multiple=True,
    help="The same document as another operator signed it.",
)
def recover(
    checkpoint: Path | None,
    out: Path,
    offender: str | None,
    others: tuple[Path, ...],
    generation: bytes | None,
    recovery: Path | None,
    state: Path | None,
    **values: Any,
) -> None:
    """Sign that the next generation begins from CHECKPOINT, which a server has kept in its state.

    Without CHECKPOINT it is the last one on the network that all servers signed. A bus shows it to
    servers only: --state is the folder of this operator's server, which has stopped.

    All operators do so with the same checkpoint and the same new committee secret; the last one
    joins the documents of the others.
    """
    deployment = required(deployment_from(values))
    config = deployment.config
    rules = Rules.of(config)
    left = None
    raw = b"" if checkpoint is None else read_file(checkpoint, MAX_FILE)
    if checkpoint is None:
        left = asyncio.run(_last_checkpoint(deployment, values, generation, state))
    elif raw.startswith(VERSION):
        left = kept_checkpoint(raw, rules, deployment.id.raw)
    elif recovery is not None:
        raise click.UsageError("--recovery takes a signed checkpoint, as servers keep it")
    raw = raw if left is None else left.snapshot
    last = Machine.restore(rules, raw).state
    if last.instance.deployment_id != deployment.id.raw:
        raise DocumentRejected(
            "the checkpoint is of another deployment",
            expected=deployment.id.hex(),
            got=last.instance.deployment_id.hex(),
            rule="deployment",
        )
    documents = [read_file(path, MAX_DOCUMENT) for path in values["documents"]]
    known = follow(config, [*last.operator_documents, *documents])
    key = operator_key(values["key_file"], known)
    secrets = secrets_from(values["secret_file"], values["committee_secret_file"])
    counter = last.counter + 1
    document = RecoveryDocument(
        deployment_id=deployment.id.raw,
        old_generation=last.instance.generation,
        new_generation=secrets.instance(deployment.id, counter).generation,
        counter=counter,
        checkpoint=snapshot.digest(raw),
        offender=NOBODY if offender is None else _named(known, offender),
    )
    signatures = {key.public_key().public_bytes_raw().hex(): document.sign(key)}
    for path in others:
        signatures |= _signatures(path, document)
    signed = document.assemble(signatures.values())
    wanted = [one for one in known.operators if one.key != document.offender]
    missing = [one.name for one in wanted if one.key.hex() not in signatures]
    if not missing:
        RecoveryDocument.verify(signed, known)
    write_new(out, signed)
    click.echo(f"generation   {document.new_generation.hex()}")
    click.echo(f"counter      {counter}")
    click.echo(f"checkpoint   {document.checkpoint.hex()}, entry {last.seq}")
    click.echo(f"signatures   {len(wanted) - len(missing)} of {len(wanted)}")
    if missing:
        click.echo(f"missing      {', '.join(missing)}")
    elif recovery is not None and left is not None:
        write_new(recovery, replace(left, document=signed).encode())
        click.echo(f"recovery     {recovery}: start each server with it, as --recovery")


async def send_list(network: Network, deployment: Deployment, raw: bytes) -> int:
    """Check a list as the committee will, and hand it over; its number.

    Raises AllowListRejected, Refused, ConnectTimeout, EngineError.
    """
    known = (await committee(network, deployment)).operators
    keys = list(known.keys)
    made = AllowList.verify(raw, keys, known.k, None, deployment_id=deployment.id.raw)
    body = bodies.RotateAllowList(raw).encode()
    await ask_servers(network, deployment, Request(Ask.ALLOW_LIST, body))
    return made.number


async def list_in_force(network: Network, deployment: Deployment) -> AllowList:
    """The list that servers name. Raises BlobMissing if there is none, AllowListRejected."""
    known = await committee(network, deployment)
    digest = max(one.accepted for one in known.notices.values())
    if not any(digest):
        raise BlobMissing(
            "there is no list yet",
            expected="one that the operators signed",
            rule="list.none",
            hint="`zipnet admin allow-list push FILE`",
        )
    blobs = await network.blobs(Places.of(deployment.id.raw).blobs)
    keys = list(known.operators.keys)
    return AllowList.verify(
        await blobs.get(digest), keys, known.operators.k, None, deployment_id=deployment.id.raw
    )


async def _push(deployment: Deployment, values: dict[str, Any], raw: bytes) -> int:
    async with opened(values, deployment) as network:
        return await send_list(network, deployment, raw)


async def _show(deployment: Deployment, values: dict[str, Any]) -> AllowList:
    async with opened(values, deployment) as network:
        return await list_in_force(network, deployment)


async def _last_checkpoint(
    deployment: Deployment, values: dict[str, Any], generation: bytes | None, folder: Path | None
) -> Reopening:
    """The network's last checkpoint of this generation, or of the one that servers announce."""
    if generation is None:
        async with opened(values, deployment) as network:
            known = await committee(network, deployment)
        found = {one.instance.generation for one in known.notices.values()}
        if len(found) != 1:
            raise ConfigRejected(
                "the servers were not all in one generation",
                expected="--generation, the one whose log is lost",
                got=", ".join(sorted(one.hex() for one in found)),
                rule="recovery.generation",
            )
        generation = found.pop()
    instance, caller = Instance(deployment.id.raw, generation), GUEST
    if folder is not None:
        if not (folder / "server.state").is_file():
            raise FileUnreadable(
                f"no server has kept its state in {folder}",
                rule="file.read",
                hint="give the folder that this operator's server is started with, as --state",
            )
        with kept(folder, Role.SERVER, instance, config=deployment.config) as state:
            caller = Caller(member=state.identity.signing)
    async with opened(values, deployment, caller) as network:
        return await last_checkpoint(network, Rules.of(deployment.config), instance)


async def _ask(deployment: Deployment, bus: dict[str, Any], request: Request) -> None:
    async with opened(bus, deployment) as network:
        await ask_servers(network, deployment, request)


def _signer(values: dict[str, Any]) -> tuple[Deployment, Ed25519PrivateKey, Instance, int]:
    """Whose deployment, who signs, in which generation, with which serial."""
    deployment = required(deployment_from(values))
    documents = [read_file(path, MAX_DOCUMENT) for path in values["documents"]]
    key = operator_key(values["key_file"], follow(deployment.config, documents))
    secrets: Secrets = secrets_from(values["secret_file"], values["committee_secret_file"])
    named: bytes | None = values["generation"]
    instance = (
        secrets.instance(deployment.id, values["counter"])
        if named is None
        else Instance(deployment.id.raw, named)
    )
    return deployment, key, instance, values["serial"] or time.time_ns() // 1_000_000


def operator_key(path: Path, known: OperatorSet) -> Ed25519PrivateKey:
    """The private key in a file, of one of these operators. Raises ConfigRejected, FileError."""
    key = private_key(path, read_file(path, MAX_KEY))
    public = key.public_key().public_bytes_raw()
    if public not in known.keys:
        raise DocumentRejected(
            f"the key in {path} is none of the operators'",
            expected=f"that of {', '.join(one.name for one in known.operators)}",
            got=f"public key {public.hex()}",
            rule="key.operator",
            hint="if operators changed since the configuration, give each --document",
        )
    return key


def private_key(path: Path, raw: bytes) -> Ed25519PrivateKey:
    """The private key in the content of a file. Raises ConfigRejected."""
    key = envelope.private_key(raw)
    if key is None:
        raise ConfigRejected(
            f"{path} holds no Ed25519 private key",
            expected="PEM (PKCS 8) without a password, or 64 hex digits",
            rule="key.format",
            hint="`openssl genpkey -algorithm ed25519` makes one",
        )
    return key


def _named(known: OperatorSet, name: str) -> bytes:
    for one in known.operators:
        if one.name == name:
            return one.key
    raise ConfigRejected(
        f"{ascii(name)[:80]} is no operator",
        expected=", ".join(one.name for one in known.operators),
        rule="operator.unknown",
    )


def _signatures(path: Path, document: RecoveryDocument) -> dict[str, envelope.Signature]:
    """The signatures in an envelope with exactly this document."""
    signed = read_signed(path, RECOVERY_TYPE)
    if signed.payload != document.dumps():
        other = RecoveryDocument.loads(signed.payload)
        raise DocumentRejected(
            f"{path} is another document",
            expected=f"checkpoint {document.checkpoint.hex()}, "
            f"generation {document.new_generation.hex()}",
            got=f"checkpoint {other.checkpoint.hex()}, generation {other.new_generation.hex()}",
            rule="recovery.other",
            hint="all operators use the same checkpoint, secret and offender",
        )
    return dict(signed.signatures)
