"""`attestation explain`: which input makes a TD measure otherwise than a listed image."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from attestation import envelope
from attestation.allowlist import PAYLOAD_TYPE, AllowList
from attestation.commands.measure import MAX_FIRMWARE, MAX_UKI
from attestation.commands.verify import parse_moment
from attestation.errors import AllowListRejected
from attestation.files import read_file
from attestation.measure.eventlog import MAX_BYTES as MAX_LOG
from attestation.measure.eventlog import EventLog
from attestation.measure.explain import Candidate, Cause, Finding, explain, nearest
from attestation.measure.record import Measurement, Measurements
from attestation.moments import moment, unix
from attestation.quote import MAX_BYTES as MAX_QUOTE
from attestation.quote import Quote, TdReport

_FILE = click.Path(path_type=Path)
_SHOWN = ("mr_td", "rtmr0", "rtmr1", "rtmr2", "rtmr3")
_DIGITS = 16  # of a register in the table


@click.command("explain")
@click.argument("file", metavar="QUOTE", type=_FILE)
@click.option(
    "--against",
    "files",
    required=True,
    multiple=True,
    metavar="FILE",
    type=_FILE,
    help="Measurements or an allow-list; first what is wanted, then other releases and roles.",
)
@click.option("--role", metavar="ROLE", help="The role that was expected.")
@click.option("--log", "log", metavar="FILE", type=_FILE, help="The TD's event log (CCEL).")
@click.option(
    "--firmware", metavar="FILE", type=_FILE, help="The .fd that is wanted, or that was started."
)
@click.option(
    "--uki", metavar="FILE", type=_FILE, help="The .efi that is wanted, or that was started."
)
@click.option("--at", metavar="TIME", help="Judge as of this time (ISO 8601 with zone), not now.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def explain_command(
    context: click.Context,
    file: Path,
    files: tuple[Path, ...],
    role: str | None,
    log: Path | None,
    firmware: Path | None,
    uki: Path | None,
    at: str | None,
    as_json: bool,
) -> None:
    """Say which input makes the TD of QUOTE measure otherwise than the image that is wanted.

    Nothing is decided here: neither the quote nor the signatures of a list are verified.
    """
    now = unix(parse_moment(at))
    report = Quote.parse(read_file(file, MAX_QUOTE)).body
    candidates = [c for n, path in enumerate(files) for c in _candidates(path, wanted=n == 0)]
    findings = explain(
        report,
        candidates,
        log=None if log is None else EventLog.parse(read_file(log, MAX_LOG)),
        firmware=None if firmware is None else read_file(firmware, MAX_FIRMWARE),
        uki=None if uki is None else read_file(uki, MAX_UKI),
        role=role,
        now=now,
    )
    wanted = _wanted(report, candidates, role)
    good = [finding.cause for finding in findings] == [Cause.MATCH]
    verdict = (
        "match"
        if good
        else f"would be refused: {', '.join(dict.fromkeys(f.cause for f in findings))}"
    )
    if as_json:
        result = {
            "verdict": verdict,
            "at": moment(now).isoformat(),
            "quote": {name: getattr(report, name).hex() for name in _SHOWN},
            "wanted": _place(wanted) | {"measurement": wanted.measurement.to_json()},
            "findings": [_finding(finding, candidates) for finding in findings],
        }
        click.echo(json.dumps(result, indent=2, sort_keys=True))
    else:
        click.echo(verdict)
        click.echo("neither the quote nor any list is verified here: see `attestation verify`")
        click.echo(f"wanted: {wanted.name}\n")
        for line in (*_table(report, wanted.measurement), *_lines(findings)):
            click.echo(line)
    context.exit(0 if good else 2)


def _candidates(path: Path, *, wanted: bool) -> list[Candidate]:
    """The entries of measurements, of a list, or of a signed list whose signatures don't count."""
    raw = read_file(path, envelope.MAX_BYTES)
    try:
        document = envelope.load_json(raw, "list")
    except AllowListRejected:
        document = None  # `Measurements.loads` says what is wrong
    keys = document.keys() if isinstance(document, dict) else set()
    if "payloadType" in keys:
        raw = envelope.parse(raw, PAYLOAD_TYPE).payload
    elif "entries" not in keys:
        return [
            Candidate(entry, str(path), index, wanted)
            for index, entry in enumerate(Measurements.loads(raw).entries)
        ]
    return [
        Candidate(e.measurement, str(path), index, wanted, e.not_before, e.retire_after)
        for index, e in enumerate(AllowList.loads(raw).entries)
    ]


def _wanted(report: TdReport, candidates: Sequence[Candidate], role: str | None) -> Candidate:
    """The entry for the table: the nearest of the role, of the first file if it has none."""
    first = [candidate for candidate in candidates if candidate.wanted]
    ours = [c for c in first if c.measurement.role == role] or first
    return ours[nearest(report, ours)]


def _table(report: TdReport, wanted: Measurement) -> list[str]:
    rows = [("register", "quote", "wanted", "same")]
    for name in _SHOWN:
        value = getattr(report, name)
        other = bytes(48) if name == "rtmr3" else getattr(wanted, name)
        if other is None:
            rows.append((name, _short(value), "not pinned", ""))
        else:
            rows.append((name, _short(value), _short(other), "yes" if value == other else "NO"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _lines(findings: Sequence[Finding]) -> list[str]:
    lines = []
    for finding in findings:
        lines += [
            "",
            f"{finding.cause}: {finding.message}",
            f"  proof: {finding.proof or 'none, this is only possible'}",
            f"  next: {finding.next}",
        ]
    return lines


def _finding(finding: Finding, candidates: Sequence[Candidate]) -> dict[str, Any]:
    return {
        "cause": finding.cause,
        "register": finding.register,
        "message": finding.message,
        "proved": finding.proved,
        "proof": finding.proof,
        "next": finding.next,
        "entry": None if finding.entry is None else _place(candidates[finding.entry]),
    }


def _place(candidate: Candidate) -> dict[str, Any]:
    return {"source": candidate.source, "index": candidate.index}


def _short(value: bytes) -> str:
    return value.hex()[:_DIGITS]
