"""`attestation mock-pki`: a software TDX as files. Production images hold neither."""

import secrets
from pathlib import Path

import click

from attestation.errors import FileUnreadable
from attestation.providers.mock import MockTee


@click.command("mock-pki")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--seed", "digits", metavar="HEX", help="Make the PKI of this seed, not a new one.")
def mock_pki(folder: Path, digits: str | None) -> None:
    """Write a mock PKI to DIR: seed.hex, root.der, collateral.json and a sample, quote.bin.

    Whoever has seed.hex can sign quotes of any code. Files that exist are not replaced.
    """
    try:
        seed = secrets.token_bytes(32) if digits is None else bytes.fromhex(digits)
    except ValueError as error:
        raise click.UsageError("--seed must be hex digits") from error
    if not seed:
        raise click.UsageError("--seed must not be empty")
    tee = MockTee(seed)
    files = {
        "seed.hex": seed.hex().encode() + b"\n",
        "root.der": tee.root_der,
        "collateral.json": tee.collateral().dumps(),
        "quote.bin": tee.quote(bytes(64)),
    }
    for name, data in files.items():
        _write(folder / name, data)
    click.echo(f"mock PKI in {folder}: {', '.join(files)}")


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            if path.suffix == ".hex":
                path.chmod(0o600)
            file.write(data)
    except OSError as error:
        raise FileUnreadable(
            f"can't write {path}: {error.strerror}",
            rule="file.write",
            hint="give a folder that is new or empty, and check its permissions",
        ) from error
