"""`zipnet demo`: a whole instance in this process, clients that speak, a reader that counts.

What it ends with is counted from the broadcasts alone, as anybody could read them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from attestation.errors import FileUnreadable, ProviderAbsent
from zipnet import config_file
from zipnet.commands.settings import duration
from zipnet.config import deployment_id
from zipnet.datum import Blob, bytes_datum, decode_exact, encode_exact
from zipnet.errors import Unavailable
from zipnet.network.base import Network
from zipnet.network.local import LocalNetwork
from zipnet.network.public import LiveRound
from zipnet.protocol.record import SignedRecord
from zipnet.protocol.slots import Kind, read_slots
from zipnet.roles.committee_view import Lookout

if TYPE_CHECKING:
    from zipnet.demo import DemoInstance, Operators
    from zipnet.roles.client import ClientRole

NAME = "demo.local"
CONFIG_FILE = f"{NAME}.toml"
# What a client may say in one epoch of 64 rounds.
MOST_EACH = 32
# Without any news for so long, nothing more is to be expected.
STALLED_S = 20.0
COLUMNS = (
    ("round", 6),
    ("epoch", 6),
    ("participants", 13),
    ("slots used", 11),
    ("messages", 9),
    ("latency", 9),
)
SENT_AGAIN = ("collided", "late", "refused", "exposed", "unpublished")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do. `folder` keeps the network; None for a temporary one."""

    rounds: int
    clients: int
    messages: int
    period_ms: int
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class Round:
    """One final round as read. `latency_ms` from the first sight of its header; -1 if not seen."""

    round: int
    epoch: int
    participants: int
    clients: int
    used: int
    slots: int
    messages: int
    latency_ms: int

    def line(self) -> str:
        """A row of the table."""
        cells = (
            str(self.round),
            str(self.epoch),
            f"{self.participants} of {self.clients}",
            f"{self.used} of {self.slots}",
            str(self.messages),
            f"{self.latency_ms} ms" if self.latency_ms >= 0 else "-",
        )
        return _row(cells)


@dataclass(slots=True)
class Tally:
    """What is known so far. `read` counts texts as they came out of the broadcasts."""

    rounds: list[Round] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    read: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    waits_ms: list[int] = field(default_factory=list)
    opened: dict[int, float] = field(default_factory=dict)
    news: float = field(default_factory=time.monotonic)

    @property
    def missing(self) -> list[str]:
        """What was sent and has not come out."""
        return [text for text in self.sent if not self.read[text]]

    @property
    def strange(self) -> list[str]:
        """What came out twice, or was never sent."""
        ours = set(self.sent)
        return [text for text, count in self.read.items() if count > 1 or text not in ours]


@dataclass(frozen=True, slots=True)
class Summary:
    """How it ended. Latencies in milliseconds: of messages from sending to the final record."""

    name: str
    deployment_id: str
    clients: int
    rounds: int
    messages: int
    delivered: int
    doubled_or_foreign: int
    sent_again: dict[str, int]
    round_latency_ms: dict[str, int]
    message_latency_ms: dict[str, int]
    seconds: float

    @property
    def complete(self) -> bool:
        """Every message came out, once."""
        return self.delivered == self.messages and not self.doubled_or_foreign

    def lines(self) -> list[str]:
        """What a person reads at the end."""
        again = ", ".join(f"{count} {word}" for word, count in self.sent_again.items() if count)
        rows = (
            ("deployment", self.name),
            ("fingerprint", self.deployment_id),
            ("rounds", f"{self.rounds} in {self.seconds:.1f} s, {self.clients} clients"),
            ("messages", f"{self.delivered} of {self.messages} delivered, each exactly once")
            if self.complete
            else ("messages", f"{self.delivered} of {self.messages} delivered"),
            ("sent again", again or "none"),
            ("round", _latency(self.round_latency_ms)),
            ("message", _latency(self.message_latency_ms)),
        )
        return [f"{name:<12} {value}" for name, value in rows]


@click.command("demo")
@click.option(
    "--rounds", type=click.IntRange(1, 1000), default=20, show_default=True, help="At least."
)
@click.option(
    "--clients", type=click.IntRange(2, 200), default=8, show_default=True, help="How many."
)
@click.option(
    "--messages",
    type=click.IntRange(min=0),
    help=f"In all, at most {MOST_EACH} a client; one a client every other round if not given.",
)
@click.option(
    "--round-period", type=duration, default="500ms", show_default=True, help="Between rounds."
)
@click.option(
    "--local",
    "folder",
    metavar="FOLDER",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"Keep the network there, with {CONFIG_FILE}, for `subscribe`, `status`, `archive`.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, at the end.")
@click.option("--verbose", is_flag=True, help="Log what the nodes do, on standard error.")
def demo(
    rounds: int,
    clients: int,
    messages: int | None,
    round_period: int,
    folder: Path | None,
    as_json: bool,
    verbose: bool,
) -> int:
    """Run an instance in this process: 3 operators with a server each, an aggregator, clients.

    Its TEE is software with a root of its own: it shows how things work, and protects nothing.
    Exits with 0 if every message came out of the broadcasts exactly once.
    """
    if messages is None:
        messages = clients * min(MOST_EACH, max(1, rounds // 2))
    if messages > clients * MOST_EACH:
        most = f"{clients} clients say at most {clients * MOST_EACH}"
        raise click.BadParameter(most, param_hint="--messages")
    plan = Plan(rounds, clients, messages, round_period, folder)
    say = _nothing if as_json else click.echo
    with _logging(verbose):
        tally, summary = asyncio.run(run(plan, say))
    if as_json:
        document = asdict(summary) | {"table": [asdict(one) for one in tally.rounds]}
        click.echo(json.dumps(document, indent=2, sort_keys=True))
    else:
        click.echo("")
        for line in summary.lines():
            click.echo(line)
    if not summary.complete:
        for text in (tally.missing + tally.strange)[:10]:
            click.echo(f"error: not exactly once: {text}", err=True)
    return 0 if summary.complete else 2


async def run(plan: Plan, say: Callable[[str], None]) -> tuple[Tally, Summary]:
    """Play it. Raises ProviderAbsent where there is no software TEE, and what stops a node."""
    try:
        from zipnet.demo import DemoInstance, Operators, demo_window  # noqa: PLC0415
    except ImportError:
        raise ProviderAbsent(
            "there is no demo in this image",
            expected="an installation with the software TEE",
            rule="demo.absent",
            hint="production images hold no mock code; `pip install` zipnet on another machine",
        ) from None
    begin = time.monotonic()
    operators = Operators.new(
        NAME, demo_window(round_period_ms=plan.period_ms, min_participants=max(2, plan.clients))
    )
    if plan.folder is not None:
        _keep(plan.folder, config_file.dumps(operators.config))
    network = await LocalNetwork.open(plan.folder)
    instance = DemoInstance(network, operators, lambda: network)
    tally = Tally()
    say(
        f"{NAME}: 3 operators with a server each, an aggregator, {plan.clients} clients, "
        f"a round every {plan.period_ms} ms"
    )
    say("software TEE, one process: nothing here is secret from who runs it")
    say("")
    say(_row([name for name, _ in COLUMNS]))
    try:
        await instance.start()
        await _play(instance, operators, network, plan, tally, say)
    finally:
        await instance.close()
        await network.close()
    return tally, _summary(operators, plan, tally, time.monotonic() - begin)


async def _play(
    instance: DemoInstance,
    operators: Operators,
    network: Network,
    plan: Plan,
    tally: Tally,
    say: Callable[[str], None],
) -> None:
    identity = deployment_id(operators.config).raw
    datum = bytes_datum(operators.config.wire_size)
    lookout = Lookout(network, operators.config, identity, frozenset(), operators.admission)
    await lookout.open()
    clients = [instance.client() for _ in range(plan.clients)]
    view = await lookout.find(lambda: datetime.now(UTC), STALLED_S)
    tasks = [
        asyncio.create_task(_watch(lookout, tally)),
        asyncio.create_task(_read(lookout, view.servers, datum, tally, say)),
    ]
    texts = [f"message {at}" for at in range(plan.messages)]
    tally.sent += texts
    for at, client in enumerate(clients):
        mine = texts[at :: plan.clients]
        tasks.append(asyncio.create_task(_speak(client, datum, mine, tally)))
    try:
        while tally.missing or len(tally.rounds) < plan.rounds:
            if instance.errors:
                raise instance.errors[0]
            for task in tasks:
                if task.done() and not task.cancelled() and task.exception():
                    task.result()
            if time.monotonic() - tally.news > STALLED_S:
                raise Unavailable(
                    "the demo stands still",
                    expected=f"a round or a message within {STALLED_S:g} s",
                    got=next((c.refusal for c in clients if c.refusal), "nothing"),
                    rule="demo.stalled",
                    hint="run it again with --verbose",
                )
            # Senders that give up would leave the loop waiting for rounds without end.
            if len(tally.rounds) >= 2 * plan.rounds + MOST_EACH:
                return
            await asyncio.sleep(0.02)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _speak(client: ClientRole, datum: type[Blob], texts: list[str], tally: Tally) -> None:
    """Say one thing after another, and what was not delivered again, as a user would decide."""
    for text in texts:
        begin = time.monotonic()
        while True:
            told = await client.send(encode_exact(datum(text.encode())))
            tally.outcomes[told.outcome] += 1
            if told.outcome == "landed":
                break
        tally.waits_ms.append(_ms(time.monotonic() - begin))


async def _watch(lookout: Lookout, tally: Tally) -> None:
    """Note when rounds open."""
    async for item in lookout.live.watch("live"):
        if item.key == "live" and item.value is not None:
            header = LiveRound.decode(item.value).header.header
            tally.opened.setdefault(header.round, time.monotonic())


async def _read(
    lookout: Lookout,
    servers: dict[bytes, bytes],
    datum: type[Blob],
    tally: Tally,
    say: Callable[[str], None],
) -> None:
    """Read the broadcasts, as anybody could. Raises Refused for a record that not all signed."""
    async for entry in lookout.records.read():
        signed = SignedRecord.decode(entry.data)
        signed.verify(servers)
        record, now = signed.record, time.monotonic()
        slots = read_slots(record.payload, record.header)
        found = 0
        for slot in slots:
            if slot.kind is Kind.MESSAGE:
                content = decode_exact(datum, slot.datum).content
                tally.read[content.decode(errors="replace")] += 1
                found += 1
        opened = tally.opened.get(record.header.round)
        line = Round(
            round=record.header.round,
            epoch=record.header.epoch,
            participants=sum(byte.bit_count() for byte in record.participants),
            clients=record.clients,
            used=sum(slot.kind is not Kind.EMPTY for slot in slots),
            slots=len(slots),
            messages=found,
            latency_ms=-1 if opened is None else _ms(now - opened),
        )
        tally.rounds.append(line)
        tally.news = now
        say(line.line())


def _summary(operators: Operators, plan: Plan, tally: Tally, seconds: float) -> Summary:
    return Summary(
        name=operators.config.name,
        deployment_id=deployment_id(operators.config).hex(),
        clients=plan.clients,
        rounds=len(tally.rounds),
        messages=plan.messages,
        delivered=plan.messages - len(tally.missing),
        doubled_or_foreign=len(tally.strange),
        sent_again={word: tally.outcomes[word] for word in SENT_AGAIN},
        round_latency_ms=_spread([one.latency_ms for one in tally.rounds if one.latency_ms >= 0]),
        message_latency_ms=_spread(tally.waits_ms),
        seconds=round(seconds, 3),
    )


def _keep(folder: Path, text: str) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (folder / CONFIG_FILE).open("x", encoding="ascii") as file:
            file.write(text)
    except OSError as error:
        raise FileUnreadable(
            f"can't write {folder / CONFIG_FILE}: {error.strerror}",
            rule="file.write",
            hint="name a new folder: each demo is a deployment of its own",
        ) from error


@contextmanager
def _logging(verbose: bool) -> Iterator[None]:
    """What the nodes log on standard error, or nowhere: Python's default prints warnings."""
    logger = logging.getLogger("zipnet")
    handler = logging.StreamHandler() if verbose else logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(relativeCreated)7d ms %(name)s: %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if verbose else level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _row(cells: tuple[str, ...] | list[str]) -> str:
    return "".join(cell.rjust(width) for cell, (_, width) in zip(cells, COLUMNS, strict=True))


def _spread(values: list[int]) -> dict[str, int]:
    if not values:
        return {}
    return {"p50": int(statistics.median(values)), "max": max(values)}


def _latency(spread: dict[str, int]) -> str:
    return f"p50 {spread['p50']} ms, max {spread['max']} ms" if spread else "-"


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _nothing(_: str) -> None:
    pass
