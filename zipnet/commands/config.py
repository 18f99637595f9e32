"""`zipnet config`: write, show and fingerprint the configuration of a deployment."""

import json
import re
import secrets
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from attestation.errors import FileUnreadable, ProviderAbsent
from attestation.measure.record import Measurements
from zipnet import config_file
from zipnet.config import Anchor, Clients, Config, Operator, ShuffleWindow, deployment_id
from zipnet.datum import Blob
from zipnet.ids import InstanceIds
from zipnet.roles.admission import config_digest

_PRESETS = {
    "interactive": ShuffleWindow.interactive,
    "standard": ShuffleWindow.standard,
    "bulk": ShuffleWindow.bulk,
}
_FILE = click.Path(path_type=Path)


@click.group("config")
def config() -> None:
    """Write, show and fingerprint the configuration of a deployment."""


@config.command("new")
@click.argument("name")
@click.option(
    "--operator",
    "operators",
    metavar="NAME=HEXKEY",
    required=True,
    multiple=True,
    help="An operator and his Ed25519 public key; once for each.",
)
@click.option(
    "--preset",
    type=click.Choice(list(_PRESETS)),
    default="interactive",
    show_default=True,
    help="Sizes and times of rounds.",
)
@click.option(
    "--type-tag", default=Blob.TYPE_TAG, show_default=True, help="What kind of data it carries."
)
@click.option(
    "--wire-size", type=int, default=Blob.WIRE_SIZE, show_default=True, help="Their size in bytes."
)
@click.option(
    "--anchor",
    default="tdx",
    show_default=True,
    metavar="tdx|mock=HEX",
    help="What quotes chain to; for mock, the SHA-256 of the mock root's DER.",
)
@click.option(
    "--clients",
    type=click.Choice(list(map(str, Clients))),
    default=str(Clients.ATTESTED),
    show_default=True,
    help="Whether clients must prove which code they run.",
)
@click.option("--k", type=click.IntRange(min=1), help="How many operators sign a list, if not all.")
@click.option("-o", "--out", metavar="FILE", type=_FILE, help="Write there; else print.")
def new(
    name: str,
    operators: tuple[str, ...],
    preset: str,
    type_tag: str,
    wire_size: int,
    anchor: str,
    clients: str,
    k: int | None,
    out: Path | None,
) -> None:
    """Write the configuration of a new deployment NAME, with a random init.

    A file that exists is not replaced.
    """
    made = Config(
        name=name,
        type_tag=type_tag,
        wire_size=wire_size,
        window=_PRESETS[preset](),
        operators=tuple(map(_operator, operators)),
        init=secrets.token_bytes(32),
        k=k or 0,
        clients=Clients(clients),
        anchor=Anchor.parse(anchor),
    )
    text = config_file.dumps(made)
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        with out.open("x", encoding="ascii") as file:
            file.write(text)
    except OSError as error:
        raise FileUnreadable(
            f"can't write {out}: {error.strerror}",
            rule="file.write",
            hint="name a new file in a folder that you may write to",
        ) from error
    click.echo(deployment_id(made).hex())


@config.command("fingerprint")
@click.argument("file", type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def fingerprint(file: Path, as_json: bool) -> None:
    """Print the id of the deployment that FILE describes.

    Whoever has the same id has the same configuration, whatever the text of his file.
    """
    found = config_file.load(file)
    identity = deployment_id(found).hex()
    click.echo(_json({"name": found.name, "deployment_id": identity}) if as_json else identity)


@config.command("mrconfigid")
@click.argument("file", type=_FILE)
def mrconfigid(file: Path) -> None:
    """Print what a guest of the deployment in FILE is launched with: 96 hex digits.

    `run-qemu --mrconfigid` takes it. The guest then accepts this configuration and no other.
    """
    click.echo((config_digest(config_file.load(file)) + bytes(16)).hex())


@config.command("show")
@click.argument("file", type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(file: Path, as_json: bool) -> None:
    """Print what FILE says, all ids that derive from it, and the sizes of a round."""
    facts = _facts(config_file.load(file))
    if as_json:
        click.echo(_json(facts))
        return
    rows = [row for name, value in facts.items() for row in _rows(name, value)]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {value}".rstrip())


@config.command("program")
@click.argument("role", type=click.Choice(["server", "client"]))
@click.option("--name", help="The program's name, as `--program` gives it; else that of the role.")
def program(role: str, name: str | None) -> None:
    """Print what a software TEE measures a program as: an entry for a list of measurements.

    It proves nothing, and only deployments with a mock anchor take it.
    """
    try:
        from zipnet.unsafe_programs import Program, default_program  # noqa: PLC0415
    except ImportError:
        raise ProviderAbsent(
            "there is no software TEE in this image",
            expected="an installation with mock code",
            rule="program.absent",
            hint="production images hold no mock code; `pip install` zipnet on another machine",
        ) from None
    found = Program(name, role) if name else default_program(role)
    click.echo(Measurements((found.measurement,)).dumps().decode(), nl=False)


def _facts(found: Config) -> dict[str, Any]:
    identity, shape = deployment_id(found), found.shape
    derived = InstanceIds.of(identity)
    return {
        "name": found.name,
        "deployment_id": identity.hex(),
        "ids": {field.name: getattr(derived, field.name).hex() for field in fields(InstanceIds)},
        "type_tag": found.type_tag,
        "wire_size": found.wire_size,
        "window": {
            field.name: getattr(found.window, field.name) for field in fields(ShuffleWindow)
        },
        "sizes": {
            "slot_bytes": shape.slot_bytes,
            "message_bytes": shape.message_bytes,
            "schedule_bytes": shape.schedule_bytes,
            "payload_bytes": shape.payload_bytes,
        },
        "suite": found.suite,
        "wire_version": found.wire_version,
        "init": found.init.hex(),
        "operators": {each.name: each.key.hex() for each in found.operators},
        "k": found.k,
        "clients": str(found.clients),
        "anchor": str(found.anchor),
    }


def _rows(name: str, value: object) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        prefix = "operator " if name == "operators" else "id " if name == "ids" else ""
        return [(prefix + inner, str(each)) for inner, each in value.items()]
    return [(name, str(value))]


def _json(value: object) -> str:
    return json.dumps(value, indent=2, sort_keys=True)


def _operator(text: str) -> Operator:
    name, equals, key = text.partition("=")
    if not equals or not re.fullmatch(r"[0-9a-f]{64}", key):
        raise click.BadParameter(
            f"{ascii(text)[:100]} is not NAME=HEXKEY with 64 lower-case hex digits",
            param_hint="--operator",
        )
    return Operator(name, bytes.fromhex(key))
