"""`attestation quote`: a quote about the TD that this command runs in."""

import json
import secrets
from pathlib import Path

import click

from attestation.errors import FileUnreadable
from attestation.files import read_file
from attestation.providers import QuoteProvider
from attestation.providers.tsm import REPORT_DATA_SIZE, TsmProvider

_MAX_FILE = 4096


@click.command("quote")
@click.option("--report-data", "digits", metavar="HEX", help="The 64 bytes that it shall carry.")
@click.option(
    "--report-data-file",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="A file of those 64 bytes.",
)
@click.option(
    "--out", metavar="FILE", type=click.Path(path_type=Path), help="Write the quote there, binary."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def quote(
    provider: QuoteProvider | None,
    digits: str | None,
    file: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Ask the kernel of this TDX guest for a quote; print it as hex.

    Without report data it carries random bytes, so that no two quotes are alike.
    """
    report_data = _report_data(digits, file)
    raw = (provider or TsmProvider()).quote(report_data)
    if out is not None:
        try:
            out.write_bytes(raw)
        except OSError as error:
            raise FileUnreadable(
                f"can't write {out}: {error.strerror}",
                rule="file.write",
                hint="check the path, its permissions and the space there",
            ) from error
    if as_json:
        result = {"quote": raw.hex(), "report_data": report_data.hex()}
        click.echo(json.dumps(result, indent=2, sort_keys=True))
    elif out is None:
        click.echo(raw.hex())


def _report_data(digits: str | None, file: Path | None) -> bytes:
    """The bytes that the options name. Raises FileError, or click.UsageError for no 64 bytes."""
    if digits is not None and file is not None:
        raise click.UsageError("--report-data and --report-data-file exclude each other")
    if file is not None:
        data = read_file(file, _MAX_FILE)
    elif digits is not None:
        try:
            data = bytes.fromhex(digits)
        except ValueError as error:
            raise click.UsageError("--report-data must be hex digits") from error
    else:
        data = secrets.token_bytes(REPORT_DATA_SIZE)
    if len(data) != REPORT_DATA_SIZE:
        raise click.UsageError(
            f"report data must be {REPORT_DATA_SIZE} bytes, not {len(data)} "
            "(hash what the quote shall vouch for, for example with SHA-512)"
        )
    return data
