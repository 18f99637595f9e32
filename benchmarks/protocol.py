"""What a round costs: `python -m benchmarks.protocol`.

All figures of one run are taken on one machine in that run, in one process and one thread. Ratios
are medians over runs in which both sides take turns. The measure of pads is bulk AES-256-CTR in
place on a context that exists: no way of making keys and pads can be faster with this cipher.
"""

import hmac
import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from math import inf
from statistics import median

import click
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES128, AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from benchmarks._committee import rows as committee
from benchmarks._figures import Figure, in_turns, ratio, seconds, show
from tests.zipnet.protocol.delivery import footprints, hashed, shape_of
from tests.zipnet.protocol.support import header, tree
from zipnet.protocol.envelope import seal_envelope
from zipnet.protocol.fold import LeafFold, TagSet, payload_xor
from zipnet.protocol.header import Header
from zipnet.protocol.pads import Pair, RoundInfo, expand, keystream_xor
from zipnet.protocol.precompute import RoundPads
from zipnet.protocol.roster import Member, Roster, bitmap
from zipnet.protocol.shape import Shape

MIB = 1 << 20
PAPER = Shape(1024, 160, 4096)
LARGE = Shape(1024, 1024, 4096)
# 16 KiB of messages, 1 KiB of schedule.
SMALL = Shape(64, 256, 512)
SERVER = Member(b"\xff" * 32, bytes(32))


def members(count: int) -> list[Member]:
    source = random.Random(count)
    return sorted(
        (Member(source.randbytes(32), source.randbytes(32)) for _ in range(count)),
        key=lambda member: member.id,
    )


def town(clients: int, shape: Shape) -> tuple[Header, Roster]:
    """A header over so many clients and one server."""
    roster = Roster.of(members(clients), [SERVER])
    return header(roster, shape=shape), roster


def pairs(over: Header, roster: Roster) -> list[Pair]:
    source = random.Random(1)
    return [Pair(m.id, SERVER.id, over.round, source.randbytes(32)) for m in roster.clients]


def bulk(size: int, times: int) -> Callable[[], float]:
    """So many passes over a buffer with one context."""
    stream = Cipher(AES256(bytes(32)), CTR(bytes(16))).encryptor()
    buffer = memoryview(bytearray(size))

    def run() -> float:
        def passes() -> None:
            for _ in range(times):
                stream.update_into(buffer, buffer)

        return seconds(passes)

    return run


def message_partial(shape: Shape, clients: int) -> Callable[[], float]:
    """A server's pads of the message label only, keys included, without the ratchet."""
    over, roster = town(clients, shape)
    source = random.Random(2)
    secrets = [(bytearray(source.randbytes(32)), m.id + SERVER.id) for m in roster.clients]
    xor = keystream_xor()
    buffer = memoryview(bytearray(shape.message_bytes))

    def pads_of_all() -> None:
        info = RoundInfo.of(over)
        xor([expand(secret, info.message + ends) for secret, ends in secrets], buffer)

    return lambda: seconds(pads_of_all)


def whole_partial(shape: Shape, clients: int) -> Callable[[], float]:
    """A server's whole work on the pads of a round: two keys, ratchet, both vectors."""
    over, roster = town(clients, shape)
    everybody = bitmap(range(clients), clients)
    xor = keystream_xor()

    def run() -> float:
        fresh = pairs(over, roster)
        return seconds(lambda: RoundPads.prepare(over, fresh, xor).partial(everybody))

    return run


def late_partial(shape: Shape, clients: int, absent: int) -> Callable[[], float]:
    """What is left of that once the aggregate is there."""
    over, roster = town(clients, shape)
    pads = RoundPads.prepare(over, pairs(over, roster), keystream_xor())
    there = bitmap(random.Random(3).sample(range(clients), clients - absent), clients)
    return lambda: seconds(lambda: pads.partial(there))


def pads(runs: int) -> Iterator[Figure]:
    """Against the limit of the cipher; and what precomputation saves."""
    for name, shape, limit in (("1024 x 160 B", PAPER, 1.3), ("1 MiB", LARGE, 1.2)):
        count = 100 if shape is PAPER else 40
        ours, bare = in_turns(runs, message_partial(shape, count), bulk(shape.message_bytes, count))
        yield Figure(f"{name}: bulk AES-256-CTR", 1e6 * median(bare) / count, "µs per client")
        yield Figure(f"{name}: message pads / bulk", ratio(ours, bare), "x", most=limit)
    ours, bare = in_turns(runs, whole_partial(PAPER, 100), bulk(PAPER.payload_bytes, 100))
    yield Figure("1024 x 160 B: whole partial / bulk", ratio(ours, bare), "x", most=1.75)
    ours, bare = in_turns(runs, whole_partial(SMALL, 400), bulk(SMALL.payload_bytes, 400))
    yield Figure("17 KiB: whole partial / bulk", ratio(ours, bare), "x")
    for absent in (10, 100, 500):
        full, late = in_turns(runs, whole_partial(SMALL, 1000), late_partial(SMALL, 1000, absent))
        name = f"1,000 clients, 17 KiB, {absent / 10:g} % absent: full / after precomputation"
        yield Figure(name, ratio(full, late), "x", least=50 if absent == 10 else 0)


def research(size: int, count: int) -> Callable[[], float]:
    """The loop of the research code's server, in Python: HKDF-SHA256 to 16 bytes, AES-128-CTR, a
    keystream into a buffer of zeros, which is XORed to the sum. One keystream for both vectors,
    no ratchet."""
    source = random.Random(4)
    secrets = [source.randbytes(32) for _ in range(count)]
    zeros, pad, total = bytes(size), bytearray(size), np.zeros(size, np.uint8)
    info = (7).to_bytes(4, "little") + bytes(28)

    def pads_of_all() -> None:
        for secret in secrets:
            prk = hmac.digest(bytes(32), secret, "sha256")
            key = hmac.digest(prk, info + b"\1", "sha256")[:16]
            Cipher(AES128(key), CTR(bytes(16))).encryptor().update_into(zeros, pad)
            np.bitwise_xor(total, np.frombuffer(pad, np.uint8), out=total)

    return lambda: seconds(pads_of_all)


def against_research(runs: int) -> Iterator[Figure]:
    """Our message pads against theirs, as many bytes; ours have keys of 256 bits."""
    for name, shape, count in (
        ("1 KiB", Shape(4, 256, 16), 1000),
        ("100 x 160 B", Shape(100, 160, 400), 400),
        ("1024 x 160 B", PAPER, 100),
        ("1 MiB", LARGE, 40),
    ):
        ours, theirs = in_turns(
            runs, message_partial(shape, count), research(shape.message_bytes, count)
        )
        yield Figure(f"{name}: message pads / the research code's loop", ratio(ours, theirs), "x")


class Leaf:
    """A leaf's fold over so many clients, which are fed to it in chunks, each client once."""

    def __init__(self, clients: int) -> None:
        self.over, self.roster = town(clients, SMALL)
        self.key = bytes(range(32))
        self.signer = Ed25519PrivateKey.from_private_bytes(bytes(32))
        self.mac_keys = {member.id: self.key for member in self.roster.clients}
        self.payload = random.Random(5).randbytes(SMALL.payload_bytes)
        self.at = len(self.roster.clients)
        self.fold = self.fresh()

    def fresh(self) -> LeafFold:
        return LeafFold(
            self.over, self.roster, tree(), 0, self.mac_keys, TagSet(1 << 20), payload_xor()
        )

    def chunk(self, size: int) -> list[bytes]:
        """Envelopes of clients that this fold has not seen."""
        if self.at + size > len(self.roster.clients):
            self.fold, self.at = self.fresh(), 0
        some = self.roster.clients[self.at : self.at + size]
        self.at += size
        return [
            seal_envelope(self.over, m.id, m.id[:16], self.payload, self.key, self.signer)
            for m in some
        ]

    def absorb(self, size: int) -> float:
        chunk, fold = self.chunk(size), self.fold

        def run() -> None:
            for raw in chunk:
                fold.absorb(raw)

        return seconds(run) / size

    def absorb_unchecked(self, size: int) -> float:
        """The same without digest and MAC."""
        chunk, fold = [(raw, raw[-96:-64]) for raw in self.chunk(size)], self.fold

        def run() -> None:
            for raw, digest in chunk:
                place, _ = fold.admit(raw)
                fold._take(place, digest, raw)

        return seconds(run) / size


def aggregator(runs: int) -> Iterator[Figure]:
    """A leaf's work on an envelope of 17 KiB."""
    one, other = Leaf(1000), Leaf(1000)
    for name, size, turns, limit in (
        ("a round of 1,000", 1000, runs, 2.5),
        # What has just been received is in the cache, and adding it up takes less time.
        ("10 at a time, in the cache", 10, 100 * runs, inf),
    ):
        checked, unchecked = in_turns(
            turns, partial(one.absorb, size), partial(other.absorb_unchecked, size)
        )
        yield Figure(f"absorb of 17 KiB, {name}", 1e6 * median(checked), "µs")
        rate = ratio(checked, unchecked)
        yield Figure(f"absorb with MAC / without, {name}", rate, "x", most=limit)
    few, many = Leaf(1000), Leaf(8000)
    # As many chunks as fill the large fold once.
    small, large = in_turns(31, lambda: few.absorb(250), lambda: many.absorb(250))
    flat = ratio(large, small)
    yield Figure("absorb among 8,000 / among 1,000", flat, "x", least=0.85, most=1.15)


def deliveries(quick: bool) -> Iterator[Figure]:
    """How many of N clients that all talk get through; `v1` is the peer, with hashed slots."""
    table = (
        # clients, slots, rounds, entries per slot, back-off, expected
        (8, 64, 800, 4, False, 7.78),
        (32, 64, 400, 4, False, 28.3),
        (64, 64, 300, 4, False, 50.0),
        (64, 64, 300, 8, False, 56.6),
        (64, 64, 300, 16, False, 60.1),
        (128, 64, 200, 4, False, 49.3),
        (128, 64, 300, 4, True, 52.8),
        (256, 64, 200, 4, False, 37.2),
        (256, 64, 300, 4, True, 52.1),
        (1000, 64, 400, 4, False, 5.0),
        (1000, 64, 300, 4, True, 52.1),
        (1000, 1000, 3, 4, False, 778),
    )
    for clients, slots, rounds, entries, back_off, expected in table:
        if quick and clients == 1000:
            continue
        found = footprints(clients, shape_of(slots, entries), rounds, 1, back_off=back_off)
        more = (", back-off" if back_off else "") + (f", S = {entries}m" if entries != 4 else "")
        name = f"{clients:,} clients, {slots:,} slots{more}"
        yield within(name, found, expected)
    for clients, slots, rounds, expected in (
        (8, 64, 2000, 7.14),
        (32, 64, 2000, 19.6),
        (64, 64, 1000, 23.7),
        (128, 64, 1000, 17.3),
        (256, 64, 3000, 4.6),
        (1000, 64, 100, 0.0),
        (1000, 1000, 50, 368),
    ):
        found = hashed(clients, slots, rounds, 1)
        yield within(f"{clients:,} clients, {slots:,} slots, v1", found, expected)


def within(name: str, found: float, expected: float) -> Figure:
    """2 % around what is expected; what is given as 0.00 must be below half of the last digit."""
    unit = "delivered a round"
    return Figure(name, found, unit, 0.98 * expected, 1.02 * expected if expected else 0.005)


@click.command()
@click.option("--runs", default=15, show_default=True, help="Turns of each kind; medians count.")
@click.option("--clients", default=1_000, show_default=True, help="Clients of the committee.")
@click.option("--quick", is_flag=True, help="Fewer turns, fewer clients, fewer deliveries.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(runs: int, clients: int, quick: bool, as_json: bool) -> None:
    """Measure rounds; exit 1 if a figure is out of its limit."""
    if quick:
        runs, clients = min(runs, 5), min(clients, 200)
    found = [
        *pads(runs),
        *against_research(runs),
        *aggregator(runs),
        *deliveries(quick),
        *committee(clients, 2 if quick else 3),
    ]
    sys.exit(0 if show(found, as_json) else 1)


if __name__ == "__main__":
    main()
