"""`attestation mock-td`: a virtual TDX for emulated guests. No production image has it."""

import signal
from contextlib import suppress
from pathlib import Path

import click

from attestation.providers.mock_folder import MockFolder
from attestation.providers.mock_td_host import MockTdHost


@click.command("mock-td")
@click.option(
    "--tee",
    "folder",
    metavar="DIR",
    required=True,
    type=click.Path(path_type=Path),
    help="The folder of `attestation mock-pki`, whose seed signs the quotes.",
)
@click.option(
    "--socket",
    "path",
    metavar="PATH",
    required=True,
    type=click.Path(path_type=Path),
    help="Where to listen; `run-qemu --emulate --mock-td PATH` connects to it.",
)
def mock_td(folder: Path, path: Path) -> None:
    """Quote emulated guests, until it is told to end.

    It measures the files that QEMU was started with, and prints a line for each guest. Its quotes
    are worth as much as the word of whoever has DIR.
    """
    with suppress(KeyboardInterrupt):
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        host = MockTdHost(MockFolder.load(folder).tee, path, click.echo)
        click.echo(f"mock TDX at {path}")
        host.serve()
