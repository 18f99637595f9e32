"""`attestation record`: the RTMR0 of this kind of host, proved by the event log, for a list."""

import json
import secrets
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from attestation.collateral_cache import read_collateral
from attestation.commands.verify import verified_claims
from attestation.errors import FileUnreadable, QuoteRejected
from attestation.files import read_file
from attestation.measure import eventlog
from attestation.measure import eventlog_events as kinds
from attestation.measure.eventlog import EventLog, LogEvent, backing
from attestation.measure.record import MAX_BYTES as MAX_MEASUREMENTS
from attestation.measure.record import Binding, Measurement, Measurements
from attestation.providers import QuoteProvider
from attestation.providers.tsm import REPORT_DATA_SIZE, TsmProvider
from attestation.quote import MAX_BYTES as MAX_QUOTE
from attestation.quote import Quote, TdReport
from attestation.verify import MAX_COLLATERAL

CCEL = Path("/sys/firmware/acpi/tables/data/CCEL")
SCOPE = "holds for this firmware, memory size, devices and QEMU version only"

_FILE = click.Path(path_type=Path)
_DEBUG = 0x01  # bit 0 of the attributes
_IMAGE = ("mr_td", "rtmr1", "rtmr2")
# What the host's configuration is in: memory map and other tables, ACPI and fw_cfg, boot options.
_HOST = (
    kinds.EV_EFI_HANDOFF_TABLES,
    kinds.EV_EFI_HANDOFF_TABLES2,
    kinds.EV_PLATFORM_CONFIG_FLAGS,
    kinds.EV_EFI_VARIABLE_BOOT,
    kinds.EV_EFI_VARIABLE_BOOT2,
)


@click.command("record")
@click.option("--against", required=True, metavar="FILE", type=_FILE, help="Measurements.")
@click.option("--quote", "quote_file", metavar="FILE", type=_FILE, help="Not a new quote.")
@click.option("--log", "log_file", metavar="FILE", type=_FILE, help="Not the log of this machine.")
@click.option("--out", metavar="FILE", type=_FILE, help="Write the entry with RTMR0 there.")
@click.option("--collateral", metavar="FILE", type=_FILE, help="Verify the quote with these.")
@click.option(
    "--mock-root", metavar="FILE", type=_FILE, help="Judge a mock quote; its root certificate, DER."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def record(
    provider: QuoteProvider | None,
    against: Path,
    quote_file: Path | None,
    log_file: Path | None,
    out: Path | None,
    collateral: Path | None,
    mock_root: Path | None,
    as_json: bool,
) -> None:
    """Pin RTMR0, the register of the host's configuration, in an entry of a list.

    Run it in a guest on a host of your own, configured as those that the list shall accept. Quote
    and event log must agree, and the guest must run the code of an entry of --against.
    """
    if mock_root is not None and collateral is None:
        raise click.UsageError("--mock-root needs --collateral")
    accepted = Measurements.loads(read_file(against, MAX_MEASUREMENTS))
    if quote_file is None:
        raw = (provider or TsmProvider()).quote(secrets.token_bytes(REPORT_DATA_SIZE))
    else:
        raw = read_file(quote_file, MAX_QUOTE)
    body = Quote.parse(raw).body
    log = EventLog.parse(_log(log_file))
    if collateral is not None:
        documents = read_collateral(read_file(collateral, MAX_COLLATERAL))
        verified_claims(raw, documents, datetime.now(UTC), mock_root)
    index, entry = recorded(body, log, accepted)
    pinned = Measurements((entry,))
    if out is not None:
        _write(out, pinned.dumps())
    events = log.of_rtmr(0)
    shape = host_shape(events)
    scope = SCOPE if any(event.kind in _HOST for event in events) else "holds for this firmware"
    anchor = None if collateral is None else "intel" if mock_root is None else "mock"
    if as_json:
        result: dict[str, Any] = {
            "verified": anchor,
            "scope": scope,
            "against": index,
            "events": [_event(event) for event in events],
            "host": dict(shape),
            "measurement": entry.to_json(),
        }
        click.echo(json.dumps(result, indent=2, sort_keys=True))
    else:
        click.echo(f"RTMR0 of measurements[{index}]: {scope}")
        rows = [("rtmr0", body.rtmr0.hex()), *shape]
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            click.echo(f"  {name:<{width}}  {value}")
        _table(events)
    if anchor is None:
        click.echo(_unverified(quote_file, out), err=True)


def recorded(body: TdReport, log: EventLog, accepted: Measurements) -> tuple[int, Measurement]:
    """The index of the entry that the quote has, and that entry with RTMR0 pinned.

    Raises QuoteRejected (rules debug-td, measurement), and EventLogRejected as
    `eventlog.check_digests` and `eventlog.check_registers` do.
    """
    if body.td_attributes[0] & _DEBUG:
        raise QuoteRejected(
            "quote is of a debug TD, whose registers its host can have written",
            expected="td_attributes without bit 0",
            got=body.td_attributes.hex(),
            rule="debug-td",
            hint="start the TD without debug=on, and record anew",
        )
    nearest: tuple[int, int] = (0, 0)
    for index, entry in enumerate(accepted.entries):
        same = sum(getattr(entry, name) == getattr(body, name) for name in _IMAGE)
        if same == len(_IMAGE) and entry.binding is not Binding.PROCESS:
            eventlog.check_digests(log)
            eventlog.check_registers(log, body)
            return index, replace(entry, rtmr0=body.rtmr0)
        nearest = max(nearest, (same, -index))
    other = accepted.entries[-nearest[1]]
    differing = [name for name in _IMAGE if getattr(other, name) != getattr(body, name)]
    raise QuoteRejected(
        "quote is of code that is not in the file of measurements",
        expected="mr_td, rtmr1 and rtmr2 of one entry",
        got=f"other {', '.join(differing) or 'binding'} than measurements[{-nearest[1]}]",
        rule="measurement",
        hint="run attestation explain QUOTE --against FILE: it finds out which input differs",
    )


def host_shape(events: Sequence[LogEvent]) -> list[tuple[str, str]]:
    """What RTMR0's events tell of the host's configuration, named for people.

    Memory size, tables and fw_cfg values are in it as digests only; the number of CPUs only in
    ACPI tables.
    """

    def of(*wanted: int) -> list[LogEvent]:
        return [event for event in events if event.kind in wanted]

    flags = of(kinds.EV_PLATFORM_CONFIG_FLAGS)
    fw_cfg = [e.description.removeprefix("fw_cfg ") for e in flags if "fw_cfg " in e.description]
    tables = of(kinds.EV_EFI_HANDOFF_TABLES, kinds.EV_EFI_HANDOFF_TABLES2)
    blobs = of(kinds.EV_EFI_PLATFORM_FIRMWARE_BLOB2)
    boot = of(kinds.EV_EFI_VARIABLE_BOOT, kinds.EV_EFI_VARIABLE_BOOT2)
    rows = [
        ("firmware volumes", [event.description for event in blobs]),
        ("memory map, tables", [f"{e.description} {_short(e)}" for e in tables]),
        ("ACPI data", [_short(e) for e in flags if "fw_cfg " not in e.description]),
        ("fw_cfg", fw_cfg),
        ("boot options", [event.description for event in boot]),
    ]
    return [(name, ", ".join(values) or "none") for name, values in rows]


def _log(path: Path | None) -> bytes:
    try:
        return read_file(path or CCEL, eventlog.MAX_BYTES)
    except FileUnreadable as error:
        if path is not None:
            raise
        raise FileUnreadable(
            "this machine shows no event log of a TD",
            expected=str(CCEL),
            got=error.message,
            rule="log.absent",
            hint="run as root in a TDX guest whose firmware measures, or give --log",
        ) from error


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise FileUnreadable(
            f"can't write {path}: {error.strerror}",
            rule="file.write",
            hint="check the path, its permissions and the space there",
        ) from error


def _event(event: LogEvent) -> dict[str, Any]:
    return {
        "number": event.number,
        "type": event.name,
        "digest": event.digest.hex(),
        "digest_of": backing(event),
        "description": event.description,
    }


def _table(events: Sequence[LogEvent]) -> None:
    """One line an event; `data` can be recomputed from the log, `content` can't."""
    rows = [("event", "type", "digest", "of", "description")]
    rows += [(str(e.number), e.name, _short(e), backing(e), e.description) for e in events]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)]
        click.echo("  ".join(["", *cells, row[4]]).rstrip())


def _short(event: LogEvent) -> str:
    return event.digest.hex()[:16]


def _unverified(quote_file: Path | None, out: Path | None) -> str:
    quote = "QUOTE" if quote_file is None else str(quote_file)
    made = "attestation quote --out QUOTE; " if quote_file is None else ""
    return (
        "warning: the quote is NOT verified: without its signature anyone can have written these "
        f"values\n  next: {made}attestation verify {quote} --collateral FILE --measurements "
        f"{out or 'FILE'}"
    )
