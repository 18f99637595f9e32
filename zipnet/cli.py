"""The `zipnet` command line: one verb a role. The roles themselves come later; see `preflight`."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import click

from attestation.commands.group import ExplainedGroup
from zipnet import __version__
from zipnet.commands.config import config
from zipnet.errors import NoTdx
from zipnet.preflight import EVENT_LOG, Preflight, Role, event_log, look

MOCK = "mock"
LINE = 120


@click.group(cls=ExplainedGroup)
@click.version_option(__version__)
def main() -> None:
    """Anonymous broadcast by a committee of attested appliances."""


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


def start(role: Role, root: Path) -> int:
    """Print the preflight and what follows from it; return the exit code."""
    seen = look(root)
    for line in lines(role, seen):
        click.echo(line)
    if seen.flavor == MOCK:
        # Only the test flavour speaks for hours: its log is what predictions are checked against.
        encoded = base64.b64encode(event_log(root)).decode()
        for begin in range(0, len(encoded), LINE):
            click.echo(f"zipnet-event-log {encoded[begin : begin + LINE]}")
        click.echo(f"zipnet-event-log end of {EVENT_LOG}")
    if role.attested and not seen.tdx:
        error = NoTdx(
            f"no TDX on this machine: a {role} must be attested, so it stops here",
            hint="boot this image as a TD: run-qemu --tdx",
        )
        click.echo(f"zipnet {role}: {error}")
        return error.exit_code
    if not seen.tdx:
        click.echo(f"zipnet {role}: no TDX on this machine: the {role} needs none and goes on")
    click.echo(f"zipnet {role}: preflight passed; version {__version__} has no {role} service yet")
    return 0


def _command(role: Role) -> click.Command:
    @click.command(name=str(role), help=f"Start as {role}; in this version, the preflight only.")
    def command() -> None:
        sys.exit(start(role, Path("/")))

    return command


for _role in Role:
    main.add_command(_command(_role))
main.add_command(config)
