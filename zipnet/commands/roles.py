"""`zipnet server`, `zipnet aggregator` and `zipnet client`: look at the machine, then start."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Any

import click

from attestation.files import read_file
from zipnet import __version__
from zipnet.commands.settings import (
    COMMITTEE_SECRET,
    Deployment,
    Secrets,
    cover_options,
    deployment_from,
    deployment_options,
    metrics_option,
    network_options,
    recovery_option,
    secret_options,
    secrets_from,
)
from zipnet.committee.state import Rules
from zipnet.config import Anchor
from zipnet.errors import ConfigRejected, NoNetwork, NoTdx
from zipnet.network.recovery import MAX_FILE, Reopening
from zipnet.preflight import EVENT_LOG, Preflight, Role, event_log, look

MOCK = "mock"
LINE = 120


def lines(role: Role, seen: Preflight) -> list[str]:
    """What the preflight says, aligned, one fact a line."""
    facts = [
        ("flavor", seen.flavor),
        ("tdx guest", "yes" if seen.tdx_device else "no"),
        ("configfs-tsm", "present" if seen.tsm_report else "absent"),
        ("secure boot", {True: "on", False: "off", None: "unknown"}[seen.secure_boot]),
        ("lockdown", seen.lockdown or "unknown"),
        ("listening", ", ".join(seen.listeners) or "nothing"),
    ]
    if seen.memory_mib is not None:
        facts.append(("memory", f"{seen.memory_mib[0]} of {seen.memory_mib[1]} MiB used"))
    if seen.uptime_s is not None:
        facts.append(("time", f"{seen.uptime_s:.1f} s since the kernel started"))
    facts += seen.registers or (("registers", "none visible"),)
    return [f"zipnet {role} {__version__}: preflight"] + [
        f"  {name:<14} {value}" for name, value in facts
    ]


def start(role: Role, root: Path, values: dict[str, Any] | None = None) -> int:
    """Print the preflight and what follows from it; return the exit code.

    `values` are the options. Raises ConfigRejected for those that describe no deployment or
    contradict each other, NoNetwork for what a start needs and has not.
    """
    seen = look(root)
    for line in lines(role, seen):
        click.echo(line)
    if seen.flavor == MOCK:
        # Only the test flavour speaks for hours: its log is what predictions are checked against.
        encoded = base64.b64encode(event_log(root)).decode()
        for begin in range(0, len(encoded), LINE):
            click.echo(f"zipnet-event-log {encoded[begin : begin + LINE]}")
        click.echo(f"zipnet-event-log end of {EVENT_LOG}")
    values = dict(values or {})
    deployment = deployment_from(values)
    needed = role.attested and (deployment is None or deployment.config.anchor == Anchor.tdx())
    if needed and not seen.tdx:
        error = NoTdx(
            f"no TDX on this machine: a {role} must be attested, so it stops here",
            hint="boot this image as a TD: run-qemu --tdx",
        )
        click.echo(f"zipnet {role}: {error}")
        return error.exit_code
    if not seen.tdx and deployment is None:
        click.echo(f"zipnet {role}: no TDX on this machine: the {role} needs none and goes on")
    if deployment is None:
        click.echo(
            f"zipnet {role}: preflight passed; version {__version__} has no {role} service yet"
        )
        return 0
    secrets = secrets_from(values["secret_file"], values["committee_secret_file"])
    counter = _counter(values.get("recovery"), deployment, secrets)
    _join(role, deployment, secrets, values, counter)
    return 0


def _counter(path: Path | None, deployment: Deployment, secrets: Secrets) -> int:
    """The number of the generation that a recovery opens; 0 without one.

    Raises FileUnreadable, WireFormatError, and what a server says to another checkpoint than one
    that the servers signed, or to another committee secret.
    """
    if path is None:
        return 0
    recovery = Reopening.decode(read_file(path, MAX_FILE))
    recovery.machine(Rules.of(deployment.config), deployment.id.raw)
    document = recovery.unverified
    opened = secrets.instance(deployment.id, document.counter).generation
    if opened != document.new_generation:
        raise ConfigRejected(
            "the committee secret opens another generation than the recovery",
            expected=document.new_generation.hex(),
            got=opened.hex(),
            rule="recovery.secret",
            hint="take the secret that was given to `zipnet admin recover`",
        )
    return document.counter


def _join(
    role: Role, deployment: Deployment, secrets: Secrets, values: dict[str, Any], counter: int
) -> None:
    """Say who this node is and where it belongs. Raises NoNetwork, ConfigRejected."""
    config = deployment.config
    facts = [("deployment", config.name), ("fingerprint", deployment.id.hex())]
    key = secrets.signing_key(config, role)
    if key is not None:
        facts.append(("peer", key.public_key().public_bytes_raw().hex()))
    if secrets.committee:
        facts.append(("generation", secrets.instance(deployment.id, counter).generation.hex()))
    for name, value in facts:
        click.echo(f"  {name:<14} {value}")
    if role is Role.SERVER and len(config.operators) < 3:
        count = len(config.operators)
        click.echo(
            f"zipnet {role}: warning: {count} of 3 operators: fewer than 3 servers", err=True
        )
    network = f"the folder {values['local']}" if values["local"] else values["bootstrap"]
    wanted = {"ZIPNET_BOOTSTRAP (--bootstrap), the URLs of the bus": network}
    if role is Role.SERVER:
        name = f"{COMMITTEE_SECRET} (--committee-secret-file), the secret that servers share"
        wanted[name] = secrets.committee
    missing = [name for name, given in wanted.items() if not given]
    if missing:
        raise NoNetwork(
            f"the {role} can't start: something is missing",
            expected="; ".join(missing),
            got="nothing",
            rule="start.missing",
            hint="set it, then start again; `zipnet demo` needs nothing",
        )
    raise NoNetwork(
        f"the {role} can't start: version {__version__} has no network between processes",
        expected="a network in this process",
        got=network,
        rule="network.absent",
        hint="several processes need NATS, which comes later; `zipnet demo` runs all in one",
    )


def _command(role: Role) -> click.Command:
    @click.command(name=str(role), help=f"Start as {role}, after a look at the machine.")
    @deployment_options
    @network_options
    @metrics_option
    @secret_options
    def command(**values: Any) -> None:
        sys.exit(start(role, Path("/"), values))

    if role is Role.SERVER:
        return recovery_option(command)
    return cover_options(command) if role is Role.CLIENT else command


COMMANDS = tuple(map(_command, Role))
