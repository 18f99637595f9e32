"""The command line `attestation`."""

from importlib import import_module
from importlib.util import find_spec

import click

from attestation.commands.collateral import collateral
from attestation.commands.doctor import doctor
from attestation.commands.explain import explain_command
from attestation.commands.group import ExplainedGroup
from attestation.commands.measure import measure
from attestation.commands.quote import quote
from attestation.commands.record import record
from attestation.commands.verify import MOCK, verify


@click.group("attestation", cls=ExplainedGroup)
def main() -> None:
    """What runs in an Intel TDX guest, and how to tell."""


main.add_command(collateral)
main.add_command(doctor)
main.add_command(explain_command)
main.add_command(measure)
main.add_command(quote)
main.add_command(record)
main.add_command(verify)
if find_spec(MOCK) is not None:  # not in production images
    main.add_command(import_module("attestation.commands.mock_pki").mock_pki)
    main.add_command(import_module("attestation.commands.mock_td").mock_td)
