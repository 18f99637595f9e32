"""`attestation measure`: MR_TD of a firmware, and what a TD that boots an image will measure."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from attestation.errors import FirmwareError
from attestation.files import read_file
from attestation.measure import authenticode, firmware, rtmr, tdvf
from attestation.measure.firmware import Audit
from attestation.measure.pe import Pe

MAX_FIRMWARE = 64 << 20
MAX_UKI = 1 << 30


@click.command("measure")
@click.argument("firmware_file", metavar="FIRMWARE", type=click.Path(path_type=Path))
@click.argument("uki_file", metavar="[UKI]", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Also show sections, modules and events.")
def measure(firmware_file: Path, uki_file: Path | None, as_json: bool, verbose: bool) -> None:
    """Compute MR_TD of FIRMWARE, and with a UKI what a TD that boots it will measure.

    Without a UKI a firmware that the audit refuses is measured all the same; with one it is an
    error, because the prediction assumes Secure Boot.
    """
    report = _Report.of(
        read_file(firmware_file, MAX_FIRMWARE),
        None if uki_file is None else read_file(uki_file, MAX_UKI),
    )
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2, sort_keys=True))
    else:
        rows = report.rows(verbose)
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            click.echo(f"{name:<{width}}  {value}".rstrip())
    if report.image is not None and not report.image.bound:
        click.echo(
            "warning: this firmware is not bound to this image: its MR_TD names the firmware only",
            err=True,
        )


@dataclass(frozen=True, slots=True)
class _Image:
    """What is known of the UKI."""

    sha256: str
    authenticode: str
    bound: bool
    rtmr1: dict[str, tuple[rtmr.Event, ...]]
    rtmr2: tuple[rtmr.Event, ...]


@dataclass(frozen=True, slots=True)
class _Report:
    """All results of one `measure`; exactly one of `audit` and `refusal` is not None."""

    size: int
    sha256: str
    sections: tuple[tdvf.Section, ...]
    mr_td: dict[str, str]
    audit: Audit | None
    refusal: FirmwareError | None
    image: _Image | None

    @classmethod
    def of(cls, fd: bytes, uki: bytes | None) -> "_Report":
        audit, refusal, image = None, None, None
        mr_td = {p.value: tdvf.mr_td(fd, p.page_order).hex() for p in tdvf.HostProfile}
        try:
            audit = firmware.audit(fd)
        except FirmwareError as error:
            if uki is not None:
                raise
            refusal = error
        if uki is not None and audit is not None:
            pe = Pe.parse(uki)
            name = authenticode.digest(pe).hex()
            image = _Image(
                sha256=hashlib.sha256(uki).hexdigest(),
                authenticode=name,
                bound=audit.cfv_measured and audit.policy == (name,),
                rtmr1={path.value: rtmr.rtmr1_events(pe, path) for path in rtmr.BootPath},
                rtmr2=rtmr.rtmr2_events(pe),
            )
        sha256 = hashlib.sha256(fd).hexdigest()
        return cls(len(fd), sha256, tdvf.Tdvf.parse(fd).sections, mr_td, audit, refusal, image)

    def to_json(self) -> dict[str, Any]:
        result: dict[str, Any] = {
            "firmware": {"sha256": self.sha256, "size": self.size},
            "mr_td": self.mr_td,
            "audit": None if self.audit is None else asdict(self.audit),
            "refused": None if self.refusal is None else _refusal(self.refusal),
        }
        if self.image is not None:
            result["uki"] = {
                "sha256": self.image.sha256,
                "authenticode_sha256": self.image.authenticode,
            }
            result["bound"] = self.image.bound
            result["rtmr1"] = {path: rtmr.replay(e).hex() for path, e in self.image.rtmr1.items()}
            result["rtmr2"] = rtmr.replay(self.image.rtmr2).hex()
        return result

    def rows(self, verbose: bool) -> list[tuple[str, str]]:
        rows = [("firmware sha256", self.sha256), *self._audit_rows(verbose)]
        if verbose:
            rows += [
                (
                    f"section {section.name}",
                    f"{section.gpa:#010x} {section.mem_size // tdvf.PAGE} pages"
                    + (", measured" if section.measured else ""),
                )
                for section in self.sections
            ]
        rows += [(f"mr_td {profile}", value) for profile, value in self.mr_td.items()]
        if self.image is not None:
            rows += _image_rows(self.image, verbose)
        return rows

    def _audit_rows(self, verbose: bool) -> list[tuple[str, str]]:
        if self.audit is None:
            return [("audit", f"refused: {self.refusal}")]
        audit = self.audit
        rows = [
            ("firmware code", audit.code_sha256),
            ("audit", "passed"),
            ("event model", audit.model.value),
            ("store measured", "yes" if audit.cfv_measured else "no"),
            ("policy admits", " ".join(audit.policy) if audit.policy else "not a policy of ours"),
        ]
        if verbose:
            rows += [
                (f"module {m.name}", m.volume + ("" if m.loadable else ", not in a TD"))
                for m in audit.modules
            ]
        return rows


def _image_rows(image: _Image, verbose: bool) -> list[tuple[str, str]]:
    rows = [
        ("uki sha256", image.sha256),
        ("uki authenticode", image.authenticode),
        ("bound", "yes" if image.bound else "no"),
    ]
    registers = {f"rtmr1 {path}": events for path, events in image.rtmr1.items()}
    for name, events in {**registers, "rtmr2": image.rtmr2}.items():
        rows.append((name, rtmr.replay(events).hex()))
        if verbose:
            rows += [("", f"  {event.digest.hex()} {event.description}") for event in events]
    return rows


def _refusal(error: FirmwareError) -> dict[str, str]:
    return {"rule": error.rule, "message": str(error), "hint": error.hint}
