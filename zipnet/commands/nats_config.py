"""`zipnet nats-config`: what one operator's node of the bus needs: configuration, keys, pins."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from attestation.bundle import Role
from attestation.errors import FileUnreadable
from attestation.files import read_file
from zipnet import preflight
from zipnet.commands.settings import (
    FILE,
    SECRET,
    deployment_from,
    deployment_options,
    hex32,
    required,
    secrets_from,
)
from zipnet.errors import StateDamaged
from zipnet.network.bus_keys import BusKeys
from zipnet.network.nats_config import Node, Peer, Routes, Tls, render
from zipnet.network.tls import MAX_PEM, pin, self_signed
from zipnet.node.slots import TwoSlots
from zipnet.node.state import SLOT_BYTES, NodeRecord
from zipnet.roles.identity import Identity

F = TypeVar("F", bound=Callable[..., Any])

STATE_FILE = "server.state"
# The options that no configuration can be written without, and those of a node among others.
NEEDED = ("node", "listen", "issuer", "responder", "system", "store", "tls_cert", "tls_key", "out")
ROUTES = ("route", "route_cert", "route_key", "route_ca")


def _peer(text: str) -> Peer:
    """A node in `NAME=HOST:PORT=PIN`. Raises BadParameter, ConfigRejected."""
    parts = text.split("=")
    if len(parts) != 3:
        raise click.BadParameter(f"{ascii(text)[:100]} is not NAME=HOST:PORT=PIN")
    return Peer(*parts)


def _node_options(command: F) -> F:
    for option in reversed(
        (
            click.option("--node", metavar="NAME", help="The name of this node, its own for good."),
            click.option("--listen", metavar="HOST:PORT", help="For clients and servers."),
            click.option("--route", metavar="HOST:PORT", help="For the other nodes."),
            click.option(
                "--monitor",
                metavar="HOST:PORT",
                default="127.0.0.1:8222",
                show_default=True,
                help="For health checks of this machine.",
            ),
            click.option(
                "--peer",
                "peers",
                metavar="NAME=HOST:PORT=PIN",
                type=_peer,
                multiple=True,
                help="Another operator's node, once for each; its pin as `pin` prints it.",
            ),
            click.option(
                "--server",
                "servers",
                metavar="PEERHEX",
                type=hex32,
                multiple=True,
                help="The peer key of each server, this operator's own among them.",
            ),
            click.option(
                "--aggregator",
                "aggregators",
                metavar="PEERHEX",
                type=hex32,
                multiple=True,
                help="The peer key of each aggregator that may use this node.",
            ),
            click.option("--issuer", metavar="NKEY", help="As `keys` prints it, of one's server."),
            click.option("--responder", metavar="NKEY", help="The same."),
            click.option("--system", metavar="NKEY", help="The same."),
            click.option("--store", metavar="DIR", type=FILE, help="Where the node stores logs."),
            click.option("--tls-cert", metavar="FILE", type=FILE, help="What clients are shown."),
            click.option("--tls-key", metavar="FILE", type=FILE, help="Its key."),
            click.option("--route-cert", metavar="FILE", type=FILE, help="What nodes are shown."),
            click.option("--route-key", metavar="FILE", type=FILE, help="Its key."),
            click.option(
                "--route-ca",
                metavar="FILE",
                type=FILE,
                help="The route certificates of all nodes, one after the other.",
            ),
            click.option("-o", "--out", metavar="FILE", type=FILE, help="A new file."),
        )
    ):
        command = option(command)
    return command


@click.group("nats-config", invoke_without_command=True)
@deployment_options
@_node_options
@click.pass_context
def nats_config(context: click.Context, /, **values: Any) -> None:
    """Write the nats-server configuration of one operator's node.

    Of another node's keys only the public halves are needed. A file that exists is not replaced.
    """
    if context.invoked_subcommand is not None:
        return
    deployment = required(deployment_from(values))
    _need(values, NEEDED)
    routes = None
    if values["peers"]:
        _need(values, ROUTES)
        tls = Tls(_absolute(values["route_cert"]), _absolute(values["route_key"]))
        others = _absolute(values["route_ca"])
        routes = Routes(values["route"], tls, others, values["peers"])
    node = Node(
        name=values["node"],
        listen=values["listen"],
        monitor=values["monitor"],
        routes=routes,
        servers=values["servers"],
        aggregators=values["aggregators"],
        issuer=values["issuer"],
        responder=values["responder"],
        system=values["system"],
        store=_absolute(values["store"]),
        tls=Tls(_absolute(values["tls_cert"]), _absolute(values["tls_key"])),
    )
    _write(values["out"], render(deployment.config, node).encode(), 0o644)
    click.echo(f"wrote {values['out']}; check it with `nats-server -t -c {values['out']}`")


@nats_config.command("keys")
@deployment_options
@click.option("--state", metavar="DIR", type=FILE, help="The state of a server that is its own.")
@click.option(
    "--secret-file",
    metavar="FILE",
    type=FILE,
    help=f"The text that the server's identity derives from; else in {SECRET}.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def keys(state: Path | None, secret_file: Path | None, as_json: bool, **values: Any) -> None:
    """Print the public keys by which a server acts on its own node of the bus.

    They derive from its signing key. A server that makes its keys itself prints them at start.
    With a secret the deployment must be named as well.
    """
    if state is not None:
        signing = _of_state(state)
    else:
        config = required(deployment_from(values)).config
        made = secrets_from(secret_file, None).signing_key(config, preflight.Role.SERVER)
        if made is None:
            raise click.UsageError(f"give --state DIR, or --secret-file FILE (or {SECRET})")
        signing = made
    identity = Identity(signing, X25519PrivateKey.generate())
    found = {"peer": identity.peer.hex()} | BusKeys.of(identity).public
    if as_json:
        click.echo(json.dumps(found, indent=2, sort_keys=True))
        return
    for name, value in found.items():
        click.echo(f"{name:<10} {value}")


@nats_config.command("cert")
@click.option("--name", required=True, help="The name of the node.")
@click.option(
    "--host",
    "hosts",
    required=True,
    multiple=True,
    help="A host name or address by which it is reached; once for each.",
)
@click.option(
    "--days",
    type=click.IntRange(1, 7300),
    default=1095,
    show_default=True,
    help="How long it is good for.",
)
@click.option("--cert", metavar="FILE", type=FILE, required=True, help="A new file, to publish.")
@click.option("--key", metavar="FILE", type=FILE, required=True, help="A new file, to keep.")
def cert(name: str, hosts: tuple[str, ...], days: int, cert: Path, key: Path) -> None:
    """Make a certificate of a node, signed by itself, and print its pin.

    A node has two: one that clients are shown, and one for the routes between nodes.
    """
    made = self_signed(name, hosts, datetime.now(UTC), days)
    _write(key, made.key, 0o600)
    _write(cert, made.pem, 0o644)
    click.echo(made.pin)


@nats_config.command("pin")
@click.argument("file", type=FILE)
def pin_of(file: Path) -> None:
    """Print the pin of the certificate in FILE: the SHA-256 of its public key."""
    click.echo(pin(read_file(file, MAX_PEM)))


def _need(values: dict[str, Any], names: tuple[str, ...]) -> None:
    missing = [f"--{name.replace('_', '-')}" for name in names if not values[name]]
    if missing:
        raise click.UsageError(f"missing {', '.join(missing)}")


def _absolute(path: Path) -> str:
    return str(path.absolute())


def _of_state(path: Path) -> Ed25519PrivateKey:
    """The signing key in a server's state, which is only read. Raises StateDamaged, FileError."""
    file = path / STATE_FILE if path.is_dir() else path
    read_file(file, 2 * SLOT_BYTES)
    slots = TwoSlots(file, SLOT_BYTES)
    try:
        raw = slots.read()
    finally:
        slots.close()
    record = NodeRecord.decode(raw or b"")
    if record.role is not Role.SERVER:
        raise StateDamaged(
            "this is the state of another role",
            expected="server",
            got=record.role.name.lower(),
            rule="state.role",
            hint="only servers guard nodes of the bus",
        )
    return Ed25519PrivateKey.from_private_bytes(record.signing)


def _write(path: Path, data: bytes, mode: int) -> None:
    """Into a new file, which nobody else may read meanwhile if they may not later."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except OSError as error:
        raise FileUnreadable(
            f"can't write {path}: {error.strerror}",
            rule="file.write",
            hint="name a new file in a folder that you may write to",
        ) from error
