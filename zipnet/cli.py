"""The `zipnet` command line. Each verb is in a module of `zipnet.commands`."""

from __future__ import annotations

import click

from attestation.commands.group import ExplainedGroup
from zipnet import __version__
from zipnet.commands import roles
from zipnet.commands.admin import admin
from zipnet.commands.admin_documents import operators
from zipnet.commands.appliance import appliance
from zipnet.commands.archive import archive, subscribe
from zipnet.commands.config import config
from zipnet.commands.demo import demo
from zipnet.commands.nats_config import nats_config
from zipnet.commands.provision import provision
from zipnet.commands.publish import publish
from zipnet.commands.status import status
from zipnet.committee.machine import MACHINE_VERSION
from zipnet.config import WIRE_VERSION


@click.group(cls=ExplainedGroup)
@click.version_option(
    __version__,
    message=f"%(prog)s, version %(version)s, wire {WIRE_VERSION}, machine {MACHINE_VERSION}",
)
def main() -> None:
    """Anonymous broadcast by a committee of attested appliances."""


for _command in (
    *roles.COMMANDS,
    appliance,
    provision,
    demo,
    publish,
    subscribe,
    status,
    config,
    admin,
    archive,
    nats_config,
):
    main.add_command(_command)
admin.add_command(operators)
