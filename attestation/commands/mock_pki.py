"""`attestation mock-pki`: a software TDX as files, and as a service. No production image has it."""

import secrets
from contextlib import suppress
from pathlib import Path

import click

from attestation.errors import FileUnreadable
from attestation.files import read_file
from attestation.providers.mock import MockTee
from attestation.providers.mock_server import MockPccs
from attestation.verify import MAX_COLLATERAL, Collateral

_COLLATERAL = "collateral.json"


@click.command("mock-pki")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--seed", "digits", metavar="HEX", help="Make the PKI of this seed, not a new one.")
@click.option("--serve", is_flag=True, help="Serve its collateral as a PCCS until interrupted.")
@click.option(
    "--listen",
    metavar="HOST:PORT",
    default="127.0.0.1:0",
    show_default=True,
    help="Where; port 0 is any that is free.",
)
def mock_pki(folder: Path, digits: str | None, serve: bool, listen: str) -> None:
    """Write a mock PKI to DIR: seed.hex, root.der, collateral.json and a sample, quote.bin.

    Whoever has seed.hex can sign quotes of any code. Files that exist are not replaced; with
    --serve, a DIR that holds a PKI is served as it is. The URL is the first line that is printed.
    """
    host, port = _address(listen)
    exists = serve and (folder / _COLLATERAL).exists()
    if exists and digits is not None:
        raise click.UsageError(f"{folder} holds a PKI already: --seed makes a new one")
    names = "as it was" if exists else _make(folder, digits)
    if serve:
        collateral = Collateral.loads(read_file(folder / _COLLATERAL, MAX_COLLATERAL))
        try:
            pccs = MockPccs(collateral, (host, port))
        except OSError as error:
            raise FileUnreadable(
                f"can't listen at {listen}: {error.strerror}",
                rule="listen",
                hint="give an address of this machine and a port that is free",
            ) from error
        click.echo(pccs.url)
        click.echo(f"mock PKI in {folder}: {names}")
        with suppress(KeyboardInterrupt):
            pccs.serve()
    else:
        click.echo(f"mock PKI in {folder}: {names}")


def _make(folder: Path, digits: str | None) -> str:
    """Write a PKI; the names of its files. Raises FileUnreadable, or click.UsageError."""
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
        _COLLATERAL: tee.collateral().dumps(),
        "quote.bin": tee.quote(bytes(64)),
    }
    for name, data in files.items():
        _write(folder / name, data)
    return ", ".join(files)


def _address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not host or not port.isascii() or not port.isdecimal() or int(port[:6]) > 65_535:
        raise click.UsageError("--listen must be HOST:PORT")
    return host, int(port)


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
