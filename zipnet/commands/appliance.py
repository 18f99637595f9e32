"""`zipnet appliance`: what an image runs; its operator does the rest by `zipnet provision`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import click

from attestation.errors import FileUnreadable
from zipnet import __version__
from zipnet.errors import NoTdx
from zipnet.node import service
from zipnet.node.appliance import Machine, console, own_quote, provider_of, run
from zipnet.node.service_notify import Readiness
from zipnet.preflight import MOCK, event_log_lines, lines, look, role_of

# EX_CONFIG of sysexits.h: the unit does not try again, as a TEE does not come by itself.
NO_TEE = 78


@click.command("appliance")
def appliance() -> None:
    """Run this image: prove itself to its operator, then serve in its role. Not for a host."""
    sys.exit(start(Path("/")))


def start(root: Path) -> int:
    """Print the preflight, then be an appliance; the exit code.

    0 says that it was told to end, NO_TEE that this machine can't prove anything. Raises
    FileUnreadable where this is no appliance, and what stops the node.
    """
    role = role_of(root)
    if role is None:
        raise FileUnreadable(
            "this machine is no appliance",
            expected="an image of `python build.py`, which knows its role",
            rule="appliance.role",
            hint="on a host: zipnet server, zipnet aggregator or zipnet client",
        )
    seen = look(root)
    for line in lines(role, __version__, seen):
        click.echo(line)
    if seen.flavor == MOCK:
        # Only the test flavour speaks for hours: its log is what predictions are checked against.
        for line in event_log_lines(root):
            click.echo(line)
    try:
        provider = provider_of(role, seen, root)
    except NoTdx as error:
        click.echo(f"zipnet {role}: {error}\n  next: {error.hint}")
        return NO_TEE
    quote = own_quote(provider)
    click.echo(f"  {'MR_TD':<14} {quote.body.mr_td.hex()}")
    click.echo(f"  {'MRCONFIGID':<14} {quote.body.mr_config_id.hex()}")
    readiness = Readiness.of_environment(console(role, __version__, quote, click.echo))
    return service.run(partial(run, Machine(role, provider, root)), readiness)
