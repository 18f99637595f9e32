"""`attestation doctor`: where attestation breaks on this machine, and the next step."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import click

from attestation import doctor_guest, doctor_host
from attestation.collateral_cache import Platform, read_collateral
from attestation.collateral_source import INTEL, Pcs
from attestation.commands.verify import verifier
from attestation.doctor import Area, Check, Diagnosis, Status, System, is_td
from attestation.doctor_system import RealSystem
from attestation.doctor_trust import Trust
from attestation.errors import CollateralUnavailable
from attestation.files import read_file
from attestation.providers import QuoteProvider
from attestation.verify import MAX_COLLATERAL, Collateral

# With one answer of the kernel and one Date less than a minute in all.
FETCH_SECONDS = 10.0

_MAX_SHOWN = 400
_FILE = click.Path(path_type=Path)
_AREA = max(map(len, Area))
_STATUS = max(map(len, Status))
# The longest name of a check.
_NAME = len("quote provider")


@click.command("doctor")
@click.option("--guest", "where", flag_value="guest", help="Examine this machine as a TD.")
@click.option("--host", "where", flag_value="host", help="Examine this machine as a host of TDs.")
@click.option("--collateral", metavar="FILE", type=_FILE, help="Judge by these documents.")
@click.option("--url", metavar="BASE", help="Fetch collateral from this service, not from Intel's.")
@click.option("--offline", is_flag=True, help="Ask no service.")
@click.option(
    "--mock-root",
    metavar="FILE",
    type=_FILE,
    help="Judge mock quotes; their root certificate, DER.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(
    context: click.Context,
    where: str | None,
    collateral: Path | None,
    url: str | None,
    offline: bool,
    mock_root: Path | None,
    as_json: bool,
) -> None:
    """Tell guest, hypervisor, quoting service, clock, collateral and platform faults apart.

    Without --guest or --host it sees for itself whether this is a TD. It changes nothing, and takes
    less than a minute. Exit code 0 if nothing failed, else 3.
    """
    if (collateral is not None) + (url is not None) + offline > 1:
        raise click.UsageError("--collateral, --url and --offline exclude each other")
    provider: QuoteProvider | None = context.obj
    system: System = RealSystem() if provider is None else RealSystem(provider)
    guest = is_td(system) if where is None else where == "guest"
    # A host asks what its quoting service asks, unless told otherwise.
    ask = collateral is None and not offline
    trust = _trust(collateral, url or (INTEL if ask and guest else None), mock_root)
    if guest:
        checks = doctor_guest.examine(system, trust)
    else:
        checks = doctor_host.examine(system, trust, ask=ask and url is None)
    diagnosis = Diagnosis(tuple(checks if as_json else _shown(checks)))
    if as_json:
        click.echo(json.dumps(_to_json(diagnosis, guest=guest), indent=2, sort_keys=True))
    else:
        _conclude(diagnosis)
    context.exit(0 if diagnosis.cause is None else 3)


def _trust(collateral: Path | None, service: str | None, mock_root: Path | None) -> Trust:
    judge = verifier(mock_root)
    return Trust(
        check=judge.check_collateral,
        verify=lambda raw, documents, now: judge.verify(raw, documents, now).claims,
        bundle=None if collateral is None else _loaded(collateral),
        fetch=None if service is None else _fetcher(service),
        service=service,
    )


def _loaded(path: Path) -> Collateral:
    return read_collateral(read_file(path, MAX_COLLATERAL))


def _fetcher(base: str) -> Callable[[bytes], Collateral]:
    """Get the collateral of a quote's platform, within FETCH_SECONDS in all."""
    source = Pcs(base, patience=FETCH_SECONDS)

    def fetch(quote: bytes) -> Collateral:
        asked = asyncio.wait_for(source.fetch(Platform.of_quote(quote)), FETCH_SECONDS)
        try:
            return asyncio.run(asked)
        except TimeoutError as error:
            raise CollateralUnavailable(
                "collateral service is too slow",
                expected=f"four answers within {FETCH_SECONDS:g} seconds",
                got="fewer",
                rule="source.timeout",
                hint="check that the service runs, and the network between",
            ) from error

    return fetch


def _shown(checks: Iterator[Check]) -> Iterator[Check]:
    """Print each check as soon as it is done: the quote alone can take half a minute."""
    click.echo(_row("area", "check", "status", "found"))
    for check in checks:
        click.echo(_row(check.area, check.name, check.status, check.found))
        yield check


def _row(area: str, name: str, status: str, found: str) -> str:
    return f"{area:<{_AREA}}  {name:<{_NAME}}  {status:<{_STATUS}}  {_printable(found)}".rstrip()


def _conclude(diagnosis: Diagnosis) -> None:
    for check in diagnosis.checks:
        if check.next:
            click.echo(f"next: {check.area}, {check.name}: {_printable(check.next)}")
    cause = diagnosis.cause
    if cause is not None:
        click.echo(f"verdict: {cause.area}: {_printable(cause.found)}")
        return
    warnings = sum(check.status is Status.WARN for check in diagnosis.checks)
    shown = f", {warnings} warning{'s' if warnings > 1 else ''}" if warnings else ""
    click.echo(f"verdict: nothing failed{shown}")


def _printable(text: str) -> str:
    """What came from outside may hold anything; a terminal shall show it, not obey it."""
    shown = "".join(c if c.isprintable() else " " for c in text)
    return shown.encode("ascii", "backslashreplace").decode()[:_MAX_SHOWN]


def _to_json(diagnosis: Diagnosis, *, guest: bool) -> dict[str, object]:
    return {
        "machine": "guest" if guest else "host",
        "verdict": diagnosis.verdict,
        "checks": [asdict(check) for check in diagnosis.checks],
    }
