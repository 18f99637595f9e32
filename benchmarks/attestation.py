"""What attestation costs: `python -m benchmarks.attestation`.

All figures of one run are taken on one machine in that run, on tickets of a mock TEE: its quotes
and collateral have the size and the cryptography of real ones. Ratios are against bare dcap-qvl on
the same quote, in turns, so that a slow moment of the machine hits both; medians count.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from math import inf, isfinite
from statistics import median

import click
import dcap_qvl  # type: ignore[import-untyped]
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console
from rich.table import Table

from attestation.allowlist import AllowList, Entry, TcbPolicy
from attestation.measure.firmware import Model
from attestation.measure.record import Binding, BootProof, Measurement
from attestation.measure.rtmr import BootPath
from attestation.measure.tdvf import HostProfile
from attestation.providers.mock import MockTee, MockVerifier
from attestation.quote import Quote
from attestation.ticket import (
    AllOf,
    Beacons,
    Bundle,
    BundleValidator,
    Expiry,
    Fresh,
    Peer,
    Role,
    Ticket,
)
from attestation.unsafe_mock_tdx import UnsafeMockTdx

ISSUED = 1_800_000_000
NOW = ISSUED + 10
ID = bytes(range(32))
BEACON = b"\xbe" * 32
TICK = 0.001


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value in `unit`, good from `least` to `most`."""

    name: str
    value: float
    unit: str
    least: float = 0
    most: float = inf

    @property
    def good(self) -> bool:
        return self.least <= self.value <= self.most

    @property
    def limit(self) -> str:
        """For people."""
        if self.least:
            return f"≥ {self.least:g}"
        return f"≤ {self.most:g}" if isfinite(self.most) else ""


class Deployment:
    """A mock platform, the list in force, and what peers show."""

    def __init__(self) -> None:
        self.tee = MockTee(b"benchmark")
        self.collateral = self.tee.collateral()
        image = Measurement(
            role="server",
            binding=Binding.MRTD_CFV,
            host_profile=HostProfile.UPSTREAM,
            boot_path=BootPath.KERNEL,
            mr_td=b"\1" * 48,
            rtmr1=b"\2" * 48,
            rtmr2=b"\3" * 48,
            is_dev=False,
            boot_proof=BootProof.PASSED,
            model=Model.CONFIRMED,
            firmware_sha256=bytes(32),
            uki_sha256=bytes(32),
        )
        next_image = replace(image, mr_td=b"\4" * 48)
        self.body = {
            "mr_td": image.mr_td,
            "rtmr1": image.rtmr1,
            "rtmr2": image.rtmr2,
            "mr_config_id": ID + bytes(16),
        }
        entries = (Entry(image), Entry(next_image))
        self.old = AllowList(1, ID, ISSUED, entries[:1], TcbPolicy())
        self.new = AllowList(2, ID, ISSUED, entries, TcbPolicy())

    def bundle(self, index: int) -> Bundle:
        """What one peer shows."""
        key = Ed25519PrivateKey.from_private_bytes(index.to_bytes(32, "big"))
        ticket = Ticket(
            role=Role.SERVER,
            deployment_id=ID,
            instance_id=index.to_bytes(32, "big"),
            peer_id=key.public_key().public_bytes_raw(),
            dh_pub=ID,
            policy_id=ID,
            config_digest=ID,
            boot_epoch=1,
            issued_at=ISSUED,
            not_after=ISSUED + 3_600,
            fresh_kind=Fresh.BEACON,
            fresh=BEACON,
        )
        quote = self.tee.quote(ticket.report_data(), body=self.body)
        return Bundle.sign(ticket, quote, key)

    def peer(self, bundle: Bundle) -> Peer:
        """What the validating side knows of it."""
        return Peer(
            peer_id=bundle.ticket.peer_id,
            deployment_id=ID,
            policy_ids=frozenset({ID}),
            roles=frozenset({Role.SERVER}),
            now=datetime.fromtimestamp(NOW, UTC),
            freshness=Beacons(frozenset({BEACON})),
            collateral=self.collateral,
        )

    def policy(self, accepted: AllowList) -> UnsafeMockTdx:
        verifier = MockVerifier(self.tee.root_der)
        return UnsafeMockTdx(verifier=verifier).require_mrtd(accepted)

    def bare(self, quote: bytes) -> Callable[[], object]:
        """The verification of dcap-qvl and nothing else, arguments made beforehand."""
        parts = {
            f.name: getattr(self.collateral, f.name) for f in fields(self.collateral) if f.init
        }
        collateral, root = dcap_qvl.QuoteCollateralV3(**parts), self.tee.root_der
        return lambda: dcap_qvl.verify_with_root_ca(quote, collateral, root, NOW)


def rate(action: Callable[[], object], times: int) -> float:
    """Calls per second."""
    begin = time.perf_counter()
    for _ in range(times):
        action()
    return times / (time.perf_counter() - begin)


def throughput(deployment: Deployment, runs: int) -> Iterator[Figure]:
    """Parsing and whole validation against bare verification."""
    bundle = deployment.bundle(1)
    raw, quote = bundle.encode(), bundle.quote
    peer, bare = deployment.peer(bundle), deployment.bare(quote)
    stack = AllOf(BundleValidator(), deployment.policy(deployment.old))
    verifying, parsing, validating = [], [], []
    for _ in range(runs):
        verifying.append(rate(bare, 100))
        parsing.append(rate(lambda: Quote.parse(quote), 5_000))
        validating.append(rate(lambda: stack.validate(Bundle.decode(raw), peer), 100))
    yield Figure("bare dcap-qvl", median(verifying), "quotes/s")
    ratio = median(p / v for p, v in zip(parsing, verifying, strict=True))
    yield Figure("Quote.parse / bare dcap-qvl", ratio, "x", least=30)
    ratio = median(t / v for t, v in zip(validating, verifying, strict=True))
    yield Figure("whole ticket validation / bare dcap-qvl", ratio, "x", least=0.5)


async def watched(work: Awaitable[object]) -> tuple[float, float]:
    """Seconds that `work` takes, and by how many at worst the event loop was late meanwhile."""
    worst = 0.0

    async def watch() -> None:
        nonlocal worst
        while True:
            begin = time.perf_counter()
            await asyncio.sleep(TICK)
            worst = max(worst, time.perf_counter() - begin - TICK)

    watcher = asyncio.create_task(watch())
    await asyncio.sleep(0)
    begin = time.perf_counter()
    await work
    took = time.perf_counter() - begin
    # The watcher may still wait for its turn.
    await asyncio.sleep(2 * TICK)
    watcher.cancel()
    return took, worst


def rotation(deployment: Deployment, peers: int) -> Iterator[Figure]:
    """All peers let in, then judged again under a new list, while the event loop goes on."""
    bundles = [deployment.bundle(index) for index in range(1, peers + 1)]
    met = [(bundle, deployment.peer(bundle)) for bundle in bundles]
    old, new = deployment.policy(deployment.old), deployment.policy(deployment.new)
    known: list[tuple[Ticket, Expiry, Peer]] = []

    async def admit() -> None:
        # A thread: one call holds the interpreter for no more than the time of a verification.
        stack = AllOf(BundleValidator(), old)
        for bundle, peer in met:
            verdict = await asyncio.to_thread(stack.validate, bundle, peer)
            known.append((bundle.ticket, verdict, peer))

    async def judge_again() -> None:
        for ticket, verdict, peer in known:
            assert verdict.evidence is not None
            new.check(ticket, verdict.evidence, peer)
            await asyncio.sleep(0)

    for name, work in (("admitted", admit), ("under a new list", judge_again)):
        took, worst = asyncio.run(watched(work()))
        yield Figure(f"{peers:,} peers {name}: time", took, "s")
        yield Figure(f"{peers:,} peers {name}: worst loop lag", worst * 1_000, "ms", most=50)


@click.command()
@click.option("--runs", default=7, show_default=True, help="Turns of each kind; medians count.")
@click.option("--peers", default=1_000, show_default=True, help="Live peers at a list change.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(runs: int, peers: int, as_json: bool) -> None:
    """Measure attestation; exit 2 if a figure is out of its limit."""
    deployment = Deployment()
    found = [*throughput(deployment, runs), *rotation(deployment, peers)]
    if as_json:
        rows = [{**asdict(f), "most": f.most if isfinite(f.most) else None} for f in found]
        click.echo(json.dumps({"schema": "zipnet.benchmark/1", "figures": rows}, indent=2))
    else:
        table = Table("figure", "value", "unit", "limit", "", box=None)
        for f in found:
            table.add_row(f.name, f"{f.value:.2f}", f.unit, f.limit, "ok" if f.good else "OVER")
        Console().print(table)
    sys.exit(0 if all(f.good for f in found) else 2)


if __name__ == "__main__":
    main()
