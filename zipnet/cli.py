"""The `zipnet` command line. Each verb is in a module of `zipnet.commands`."""

from __future__ import annotations

import click

from attestation.commands.group import ExplainedGroup
from zipnet import __version__
from zipnet.commands import roles
from zipnet.commands.admin import admin
from zipnet.commands.archive import archive, subscribe
from zipnet.commands.config import config
from zipnet.commands.demo import demo
from zipnet.commands.publish import publish
from zipnet.commands.status import status


@click.group(cls=ExplainedGroup)
@click.version_option(__version__)
def main() -> None:
    """Anonymous broadcast by a committee of attested appliances."""


for _command in (*roles.COMMANDS, demo, publish, subscribe, status, config, admin, archive):
    main.add_command(_command)
