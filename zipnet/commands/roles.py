"""`zipnet server`, `zipnet aggregator` and `zipnet client`: look at the machine, then start."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from attestation.bundle import Role as Ticketed
from attestation.files import read_file
from zipnet import __version__
from zipnet.commands.settings import (
    COMMITTEE_SECRET,
    Deployment,
    Secrets,
    attestation_options,
    cover_options,
    deployment_from,
    deployment_options,
    metrics_option,
    network_options,
    place_of,
    recovery_option,
    required,
    secret_options,
    secrets_from,
    server_options,
    state_option,
)
from zipnet.config import Anchor, Config
from zipnet.errors import ConfigRejected, NoNetwork, NoTdx
from zipnet.ids import server_id
from zipnet.network.bus_keys import BusKeys
from zipnet.network.nkeys import Kind, public_text
from zipnet.network.recovery import MAX_FILE, Reopening
from zipnet.node import service
from zipnet.node.service_collateral import attesting, fetching
from zipnet.node.service_identity import access_of, aggregator_instance, instance_of, kept
from zipnet.node.service_network import Place, bus_tls, opened
from zipnet.node.service_roles import (
    ClientSetup,
    DoorOf,
    ServerSetup,
    Setup,
    aggregator,
    client,
    server,
)
from zipnet.operators import Endorsement
from zipnet.preflight import Role, lines, look
from zipnet.protocol.codec import Reader
from zipnet.protocol.instance import Instance

CADENCE_MS = 10_000
MAX_ENDORSEMENT = 256


def start(role: Role, root: Path, values: dict[str, Any] | None = None) -> int:
    """Print the preflight and what follows from it; return the exit code.

    `values` are the options. Raises ConfigRejected for those that describe no deployment or
    contradict each other, NoNetwork for what a start needs and has not, and what stops the node.
    """
    seen = look(root)
    for line in lines(role, __version__, seen):
        click.echo(line)
    values = dict(values or {})
    deployment = deployment_from(values)
    needed = role.attested and (deployment is None or deployment.config.anchor == Anchor.tdx())
    if needed and not seen.tdx:
        error = NoTdx(
            f"no TDX on this machine: a {role} must be attested, so it stops here",
            hint="build and boot the image of the role: run-qemu --tdx",
        )
        click.echo(f"zipnet {role}: {error}")
        return error.exit_code
    deployment = required(deployment)
    secrets = secrets_from(values["secret_file"], values["committee_secret_file"])
    return _run(role, deployment, secrets, values, recovery_from(values.get("recovery")))


def recovery_from(path: Path | None) -> Reopening | None:
    """What leads into the generation to serve; None for the first one.

    Raises FileError, WireFormatError.
    """
    return None if path is None else Reopening.decode(read_file(path, MAX_FILE))


def _instance(deployment: Deployment, secrets: Secrets, recovery: Reopening | None) -> Instance:
    """The generation to serve. Raises as `instance_of`."""
    return instance_of(deployment.config, deployment.id, secrets.committee, recovery)


def _run(
    role: Role,
    deployment: Deployment,
    secrets: Secrets,
    values: dict[str, Any],
    recovery: Reopening | None,
) -> int:
    """Say who this node is and where it belongs, and run it. Raises what stops it."""
    config = deployment.config
    facts = [("deployment", config.name), ("fingerprint", deployment.id.hex())]
    key = secrets.signing_key(config, role)
    if key is not None:
        facts.append(("peer", key.public_key().public_bytes_raw().hex()))
    if secrets.committee:
        facts.append(("generation", _instance(deployment, secrets, recovery).generation.hex()))
    for name, value in facts:
        click.echo(f"  {name:<14} {value}")
    if role is Role.SERVER and len(config.operators) < 3:
        count = len(config.operators)
        click.echo(
            f"zipnet {role}: warning: {count} of 3 operators: fewer than 3 servers", err=True
        )
    _check_complete(role, config, secrets, values)
    place = place_of(values)
    bus_tls(place)  # a wrong file is told before anything waits for the bus
    setup = Setup(
        config,
        deployment.id,
        partial(opened, place, deployment.id, deployment.universe),
        state=values["state"],
        signing=key,
        metrics=values["metrics"],
    )
    if role is Role.AGGREGATOR:
        return service.run(partial(aggregator, setup))
    access = access_of(
        config,
        Ticketed[role.name],
        values["mock_tee"],
        values["program"],
        values["collateral"],
    )
    sources = fetching(values["pccs"], values["fmspc"], values["collateral"], values["state"])
    attests = attesting(access, sources)
    if role is Role.CLIENT:
        cadence = values["cadence"] or CADENCE_MS
        said = ClientSetup(attests, (values["message"] or "").encode(), cadence)
        return service.run(partial(client, setup, said))
    own = ServerSetup(
        _instance(deployment, secrets, recovery),
        attests,
        _endorsement(values["endorsement"]),
        values["trees"],
        recovery,
        _door(place, values["door"]),
    )
    return service.run(partial(server, setup, own))


def _check_complete(role: Role, config: Config, secrets: Secrets, values: dict[str, Any]) -> None:
    """Name all that a start needs and has not. Raises NoNetwork, ConfigRejected."""
    if role is Role.SERVER and config.anchor == Anchor.tdx():
        raise ConfigRejected(
            "a server under TDX runs as an appliance only: this host could read its keys",
            expected="a deployment whose anchor is a mock",
            got="tdx",
            rule="start.appliance",
            hint="build and boot the server's image (`python build.py --role server`), then give "
            "it configuration and secrets: `zipnet provision HOST server`",
        )
    place = place_of(values)
    wanted: dict[str, object] = {
        "ZIPNET_BOOTSTRAP (--bootstrap), the URLs of the bus": place.urls or place.folder
    }
    if role is Role.SERVER:
        name = f"{COMMITTEE_SECRET} (--committee-secret-file), the secret that servers share"
        wanted[name] = secrets.committee
        wanted["ZIPNET_STATE (--state), a folder for its keys"] = values["state"]
        name = "ZIPNET_ENDORSEMENT (--endorsement), its operator's word for it"
        wanted[name] = values["endorsement"]
    if role is Role.AGGREGATOR:
        name = "ZIPNET_STATE (--state) or ZIPNET_SECRET, as servers know it by its keys"
        wanted[name] = values["state"] or secrets.identity
    missing = [name for name, given in wanted.items() if not given]
    if missing:
        raise NoNetwork(
            f"the {role} can't start: something is missing",
            expected="; ".join(missing),
            got="nothing",
            rule="start.missing",
            hint="set it, then start again; `zipnet demo` needs nothing",
        )


def _door(place: Place, url: str | None) -> DoorOf | None:
    return DoorOf(url, bus_tls(replace(place, urls=(url,)))) if url else None


def _endorsement(path: Path) -> Endorsement:
    """The file that `zipnet admin server add` writes. Raises FileError, WireFormatError."""
    raw = read_file(path, MAX_ENDORSEMENT)
    reader = Reader(raw, "endorsement", at_most=MAX_ENDORSEMENT)
    found = Endorsement.read(reader)
    reader.done()
    return found


def _identity(role: Role) -> click.Command:
    @click.command("identity", help=f"Print the keys that name this {role}; it must not run.")
    @deployment_options
    @state_option
    @secret_options
    @recovery_option
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    def identity(as_json: bool, **values: Any) -> None:
        facts = _keys(role, values)
        if as_json:
            click.echo(json.dumps(facts, indent=2, sort_keys=True))
            return
        for name, value in facts.items():
            click.echo(f"{name.replace('_', ' '):<12} {value}")

    return identity


def _keys(role: Role, values: dict[str, Any]) -> dict[str, str]:
    """What others have to know of a node before it starts; its keys are made if there are none.

    Raises ConfigRejected, StateDamaged, FileError.
    """
    deployment = required(deployment_from(values))
    secrets = secrets_from(values["secret_file"], values["committee_secret_file"])
    signing = secrets.signing_key(deployment.config, role)
    if values["state"] is None:
        raise ConfigRejected(
            "it is not known where this node keeps its keys",
            expected="--state DIR, or ZIPNET_STATE",
            rule="state.none",
            hint="give the folder that the node is started with",
        )
    recovery = None
    if role is Role.AGGREGATOR:
        instance = aggregator_instance(deployment.id)
    else:
        recovery = recovery_from(values["recovery"])
        instance = _instance(deployment, secrets, recovery)
    config, kind = deployment.config, Ticketed[role.name]
    state_of = partial(kept, values["state"], kind, instance, config=config)
    with state_of(signing=signing, recovery=recovery) as state:
        found = state.identity
    facts = {"peer": found.peer.hex(), "dh": found.dh_pub.hex()}
    if role is Role.AGGREGATOR:
        tree = f"{found.peer.hex()}:{found.dh_pub.hex()}"
        return facts | {"user": public_text(Kind.USER, found.peer), "tree": tree}
    return facts | {"server": server_id(found.dh_pub).hex()} | BusKeys.of(found).public


def _command(role: Role) -> click.Command:
    def begin(**values: Any) -> None:
        # With a verb it does that: the options are those of a start.
        if click.get_current_context().invoked_subcommand is None:
            sys.exit(start(role, Path("/"), values))

    own = {
        Role.SERVER: (server_options, attestation_options),
        Role.CLIENT: (cover_options, attestation_options),
    }.get(role, ())
    every = (secret_options, metrics_option, state_option, network_options, deployment_options)
    for options in (*own, *every):
        begin = options(begin)
    about = f"Start as {role}, after a look at the machine."
    if role is Role.CLIENT:
        return click.command(str(role), help=about)(begin)
    group = click.group(str(role), help=about, invoke_without_command=True)(begin)
    group.add_command(_identity(role))
    return group


COMMANDS = tuple(map(_command, Role))
