"""`attestation collateral`: fetch what quotes of a platform are verified with, and look at it."""

import asyncio
import json
import math
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click

from attestation.collateral_cache import (
    FMSPC_BYTES,
    Bundle,
    Ca,
    Platform,
    read_collateral,
)
from attestation.commands.verify import parse_moment, verifier
from attestation.errors import CollateralRejected
from attestation.files import read_file, write_whole
from attestation.quote import MAX_BYTES as MAX_QUOTE
from attestation.verify import MAX_COLLATERAL

WARN_DAYS = 3.0

_FILE = click.Path(path_type=Path)
_DAY = timedelta(days=1)
# Genuine all the same: a verifier looks at the dates last.
_DATES = frozenset({"collateral-expired", "collateral-not-yet-valid"})


@click.group("collateral")
def collateral() -> None:
    """What Intel publishes about a platform, without which no quote can be judged."""


@collateral.command("fetch")
@click.option("--quote", "file", metavar="FILE", type=_FILE, help="A quote of the platform.")
@click.option("--fmspc", "digits", metavar="HEX", help="The model of the platform, 12 hex digits.")
@click.option(
    "--ca", type=click.Choice([ca.value for ca in Ca]), help="Who issues its PCK certificate."
)
@click.option("--url", metavar="BASE", help="A caching service (PCCS), not Intel's.")
@click.option("--early", is_flag=True, help="With evaluations that are not yet standard.")
@click.option("--mock-root", metavar="FILE", type=_FILE, help="Of a mock; its certificate, DER.")
@click.option(
    "--out", required=True, metavar="BUNDLE", type=_FILE, help="Write it there, if it is genuine."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def fetch(
    file: Path | None,
    digits: str | None,
    ca: str | None,
    url: str | None,
    early: bool,
    mock_root: Path | None,
    out: Path,
    as_json: bool,
) -> None:
    """Fetch collateral for a platform, check that it is genuine and valid, and write a bundle.

    A bundle is for use without a network: `attestation verify --collateral BUNDLE`.
    """
    # Not at the top: an HTTP client takes as long to import as all the rest.
    from attestation.collateral_source import INTEL, Pcs  # noqa: PLC0415

    platform = _platform(file, digits, ca)
    judge = verifier(mock_root)
    source = Pcs(INTEL if url is None else url, "early" if early else "standard")
    bundle = Bundle(platform, asyncio.run(source.fetch(platform)))
    now = parse_moment(None)
    judge.check_collateral(bundle.collateral, now)
    write_whole(out, bundle.dumps())
    _Report(bundle, now, mock_root is not None, None).show(as_json)


@collateral.command("show")
@click.argument("file", metavar="BUNDLE", type=_FILE)
@click.option("--at", metavar="TIME", help="Judge as of this time (ISO 8601 with zone), not now.")
@click.option("--mock-root", metavar="FILE", type=_FILE, help="Of a mock; its certificate, DER.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(file: Path, at: str | None, mock_root: Path | None, as_json: bool) -> None:
    """Show the parts of a bundle with their dates, and whether all of it is genuine and valid.

    It also takes collateral without the wrapping of a bundle: the nine members alone.
    """
    now = parse_moment(at)
    bundle = Bundle.of(read_collateral(read_file(file, MAX_COLLATERAL)))
    refusal = None
    try:
        verifier(mock_root).check_collateral(bundle.collateral, now)
    except CollateralRejected as error:
        refusal = error
    _Report(bundle, now, mock_root is not None, refusal).show(as_json)
    if refusal is not None:
        raise refusal


def _platform(file: Path | None, digits: str | None, ca: str | None) -> Platform:
    if file is not None:
        if digits is not None or ca is not None:
            raise click.UsageError("--quote says it all: leave out --fmspc and --ca")
        return Platform.of_quote(read_file(file, MAX_QUOTE))
    if digits is None or ca is None:
        raise click.UsageError("name the platform: --quote, or --fmspc and --ca")
    if not re.fullmatch(f"[0-9a-fA-F]{{{2 * FMSPC_BYTES}}}", digits):
        raise click.UsageError(f"--fmspc must be {2 * FMSPC_BYTES} hex digits")
    return Platform(bytes.fromhex(digits), Ca(ca))


@dataclass(frozen=True, slots=True)
class _Report:
    """What is to be said of a bundle at a moment; `refusal` is why it is not good then."""

    bundle: Bundle
    now: datetime
    mock: bool
    refusal: CollateralRejected | None

    @property
    def genuine(self) -> bool:
        return self.refusal is None or self.refusal.rule in _DATES

    def show(self, as_json: bool) -> None:
        """Print it, with a warning if it is good for a few days only."""
        if as_json:
            click.echo(json.dumps(self._json(), indent=2, sort_keys=True))
        else:
            for line in self._lines():
                click.echo(line)
        left = _days(self.bundle.valid_until - self.now)
        if self.refusal is None and left < WARN_DAYS:
            click.echo(f"warning: expires in {left:.1f} days: fetch it again", err=True)

    def _json(self) -> dict[str, Any]:
        bundle = self.bundle
        return {
            "fmspc": bundle.platform.fmspc.hex(),
            "ca": str(bundle.platform.ca),
            "anchor": "mock" if self.mock else "intel",
            "at": self.now.isoformat(),
            "genuine": self.genuine,
            "valid": self.refusal is None,
            "refused": None if self.refusal is None else self.refusal.rule,
            "valid_from": _date(bundle.valid_from),
            "valid_until": _date(bundle.valid_until),
            "days_left": _days(bundle.valid_until - self.now),
            "evaluation_numbers": self._numbers(),
            "tcb_date": _tcb_date(bundle),
            "parts": [
                {
                    "name": name,
                    "issued": _date(start),
                    "expires": _date(end),
                    "days_left": _days(end - self.now),
                }
                for name, start, end in self._parts()
            ],
        }

    def _lines(self) -> list[str]:
        bundle = self.bundle
        root = "the mock root" if self.mock else "Intel's root"
        numbers = ", ".join(f"{name} {number}" for name, number in self._numbers().items())
        rows = [
            ("genuine", f"yes, under {root}" if self.genuine else f"NO, not under {root}"),
            ("valid now", "yes" if self.refusal is None else f"NO: {self.refusal.rule}"),
            ("platform", f"fmspc {bundle.platform.fmspc.hex()}, ca {bundle.platform.ca}"),
            ("valid from", _date(bundle.valid_from)),
            ("valid until", _date(bundle.valid_until)),
            ("evaluation number", numbers),
            ("tcb date", _tcb_date(bundle) or "unknown"),
        ]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {value}" for name, value in rows]
        parts = [
            (name, _date(start), _date(end), f"{_days(end - self.now):9.1f}")
            for name, start, end in self._parts()
        ]
        table = [("part", "issued", "expires", "days left"), *parts]
        widths = [max(len(row[column]) for row in table) for column in range(4)]
        return [*lines, "", *("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)]

    def _numbers(self) -> dict[str, int]:
        parsed = self.bundle.collateral.parsed
        return {
            "tcb_info": parsed.tcb_info.evaluation_number,
            "qe_identity": parsed.qe_identity.evaluation_number,
        }

    def _parts(self) -> list[tuple[str, datetime, datetime]]:
        """Of the certificates of a chain the one that expires first."""
        parts: dict[str, tuple[str, datetime, datetime]] = {}
        for name, start, end in self.bundle.collateral.parsed.periods():
            if name not in parts or end < parts[name][2]:
                parts[name] = (name, start, end)
        return list(parts.values())


def _tcb_date(bundle: Bundle) -> str | None:
    """The date of the newest TCB level; the members below were only signed, never checked."""
    levels = bundle.collateral.parsed.tcb_info.content.get("tcbLevels")
    dates = [
        level["tcbDate"]
        for level in (levels if isinstance(levels, list) else [])
        if isinstance(level, dict)
        and isinstance(level.get("tcbDate"), str)
        and re.fullmatch("[0-9TZ:-]{10,20}", level["tcbDate"])
    ]
    return max(dates, default=None)


def _date(when: datetime) -> str:
    return when.isoformat().replace("+00:00", "Z")


def _days(left: timedelta) -> float:
    """Days, rounded down to a tenth: never more than there are."""
    return math.floor(left / _DAY * 10) / 10
