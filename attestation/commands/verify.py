"""`attestation verify`: whether a quote is genuine and current, and whose code it names."""

import json
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attestation.collateral_cache import read_collateral
from attestation.errors import QuoteRejected
from attestation.files import read_file
from attestation.measure.record import MAX_BYTES as MAX_MEASUREMENTS
from attestation.measure.record import Binding, BootProof, Measurement, Measurements
from attestation.quote import MAX_BYTES as MAX_QUOTE
from attestation.verify import MAX_COLLATERAL, Claims, Collateral, TcbStatus, Verifier

if TYPE_CHECKING:
    from attestation.providers.mock import MockVerifier

MOCK = "attestation.providers.mock"

_MAX_CERTIFICATE = 4096
_FILE = click.Path(path_type=Path)
_NAMES = ("mr_td", "rtmr1", "rtmr2", "rtmr0")


@click.command("verify")
@click.argument("file", metavar="FILE", type=_FILE)
@click.option(
    "--collateral", required=True, metavar="FILE", type=_FILE, help="Intel's documents: a bundle."
)
@click.option("--measurements", metavar="FILE", type=_FILE, help="Accepted code.")
@click.option("--at", metavar="TIME", help="Judge as of this time (ISO 8601 with zone), not now.")
@click.option(
    "--mock-root", metavar="FILE", type=_FILE, help="Judge a mock quote; its root certificate, DER."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(
    file: Path,
    collateral: Path,
    measurements: Path | None,
    at: str | None,
    mock_root: Path | None,
    as_json: bool,
) -> None:
    """Verify the binary quote in FILE: signatures, revocation, dates, TCB, debug, attributes.

    With --measurements also that it names accepted code. The TCB status is shown, not judged:
    which states are good enough is a policy of each deployment.
    """
    now = parse_moment(at)
    raw = read_file(file, MAX_QUOTE)
    documents = read_collateral(read_file(collateral, MAX_COLLATERAL))
    accepted = None if measurements is None else read_file(measurements, MAX_MEASUREMENTS)
    entries = None if accepted is None else Measurements.loads(accepted)
    claims = verified_claims(raw, documents, now, mock_root)
    what = "genuine quote" if mock_root is None else "mock quote"
    index = None if entries is None else matching(claims, entries, mock=mock_root is not None)
    entry = None if entries is None or index is None else entries.entries[index]
    verdict = f"{what}; code NOT checked" if entry is None else f"{what} of accepted code"
    acpi = "verified" if entry is not None and entry.rtmr0 is not None else claims.acpi
    if as_json:
        result: dict[str, Any] = {
            "verdict": verdict,
            "anchor": "intel" if mock_root is None else "mock",
            "at": now.isoformat(),
            "measurement": None if entry is None else {"index": index, **entry.to_json()},
            "claims": {**claims.to_json(), "acpi": acpi},
        }
        click.echo(json.dumps(result, indent=2, sort_keys=True))
    else:
        click.echo(verdict)
        rows = _rows({**claims.to_json(), "acpi": acpi})
        if entry is not None:
            rows.insert(0, ("entry", f"measurements[{index}]: {_describe(entry)}"))
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            click.echo(f"  {name:<{width}}  {value}".rstrip())
    if claims.tcb_status is not TcbStatus.UP_TO_DATE:
        click.echo(f"warning: TCB status is {claims.tcb_status}: most policies refuse it", err=True)


def matching(claims: Claims, measurements: Measurements, *, mock: bool) -> int:
    """The index of the entry that the quote has, registers and all.

    Raises QuoteRejected: measurement if there is none, rtmr3 if something was extended at run
    time, dev-image and boot-proof for entries that only a mock anchor may use.
    """
    body = claims.quote.body
    if any(body.rtmr3):
        raise QuoteRejected(
            "TD extended RTMR3, which no accepted code does",
            expected="zeros",
            got=body.rtmr3.hex(),
            rule="rtmr3",
            hint="find out what runs in this TD",
        )
    best: tuple[int, int] = (-1, 0)
    for index, entry in enumerate(measurements.entries):
        if entry.binding is Binding.PROCESS:
            continue
        wanted = [getattr(entry, name) for name in _NAMES]
        same = [w in {None, getattr(body, n)} for n, w in zip(_NAMES, wanted, strict=True)]
        if all(same):
            return _allowed(index, entry, mock=mock)
        best = max(best, (sum(same), -index))
    raise QuoteRejected(
        "quote is genuine, but of code that is not in the file of measurements",
        expected="mr_td, rtmr1 and rtmr2 of one entry, and rtmr0 where the entry pins it",
        got=_nearest(claims, measurements, best),
        rule="measurement",
        hint="compare host profile and boot path of the host with the entries, and the release",
    )


def _allowed(index: int, entry: Measurement, *, mock: bool) -> int:
    for rule, bad, what in (
        ("dev-image", entry.is_dev, "a development image"),
        ("boot-proof", entry.boot_proof is not BootProof.PASSED, "an image without boot proof"),
    ):
        if bad and not mock:
            raise QuoteRejected(
                f"quote is of {what}",
                expected="an image that a production deployment may run",
                got=f"measurements[{index}]: {_describe(entry)}",
                rule=rule,
                hint="run the production image, built with its boot proof",
            )
    return index


def _nearest(claims: Claims, measurements: Measurements, best: tuple[int, int]) -> str:
    count, index = best[0], -best[1]
    if count < 1:
        return f"mr_td {claims.quote.body.mr_td.hex()}"
    entry = measurements.entries[index]
    other = [
        name
        for name in _NAMES
        if getattr(entry, name) not in {None, getattr(claims.quote.body, name)}
    ]
    return f"other {', '.join(other)} than the nearest, measurements[{index}]: {_describe(entry)}"


def verified_claims(
    raw: bytes, collateral: Collateral, now: datetime, mock_root: Path | None
) -> Claims:
    """As `Verifier.verify`, or under the mock root in that file, where the mock is installed."""
    return verifier(mock_root).verify(raw, collateral, now).claims


def verifier(mock_root: Path | None) -> "Verifier | MockVerifier":
    """The verifier that ends at Intel's root, or at the mock root in this file.

    Raises FileError, CollateralFormatError, PolicyError; click.UsageError where there is no mock.
    """
    if mock_root is None:
        return Verifier()
    if find_spec(MOCK) is None:
        raise click.UsageError("this installation has no mock verifier: --mock-root is for tests")
    # Not at the top: production images don't hold it.
    from attestation.providers.mock import MockVerifier  # noqa: PLC0415

    return MockVerifier(read_file(mock_root, _MAX_CERTIFICATE))


def parse_moment(at: str | None) -> datetime:
    """The time of an option `--at`, now without it. Raises click.UsageError."""
    if at is None:
        return datetime.now(UTC)
    try:
        when = datetime.fromisoformat(at)
    except ValueError as error:
        raise click.UsageError(f"--at {at!r} is no ISO 8601 time") from error
    if when.utcoffset() is None:
        raise click.UsageError(f"--at {at!r} has no time zone: append Z for UTC")
    return when


def _describe(entry: Measurement) -> str:
    parts = [entry.role, entry.binding, f"host {entry.host_profile}", f"boot {entry.boot_path}"]
    return ", ".join([*parts, "dev"] if entry.is_dev else parts)


def _rows(claims: dict[str, Any]) -> list[tuple[str, str]]:
    quote = claims.pop("quote")
    names = {"version": "quote version", "digest": "quote digest"}
    rows = [(name.replace("_", " "), value) for name, value in claims.items()]
    rows += [(names.get(name, name), value) for name, value in quote.items()]
    return [
        (name, ", ".join(value) or "none" if isinstance(value, list) else str(value))
        for name, value in rows
        if value is not None
    ]
