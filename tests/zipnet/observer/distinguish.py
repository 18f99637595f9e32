"""Guessing from what was written down whether a client had something to say, and how well.

For each family of features a rule is learnt from the first half of the rounds and tried on the
second. Every sample's label is a fair coin that was tossed apart from everything else. So if no
client acts on it, the right guesses of any rule are binomially distributed, with even chances: that
holds exactly, however features hang together, since rules never see a coin that they guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import comb

import numpy as np
import numpy.typing as npt

from tests.zipnet.observer.wire import LENGTH, Run, Seen
from zipnet.protocol.envelope import MAC_BYTES, PAYLOAD_AT, RATE_TAG_AT, TRAILER_BYTES

Array = npt.NDArray[np.float64]
# The chance that suites find something where there is nothing, in one call of `judge`.
FALSE_ALARM = 0.001
# How many features of a family a rule uses: those that differ most in the rounds it learns from.
USED = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """How many of so many guesses were right, and how probable so many or more are by chance."""

    family: str
    right: int
    of: int
    chance: float

    @property
    def accuracy(self) -> float:
        return self.right / self.of


def judge(runs: Sequence[Run]) -> list[Verdict]:
    """All families, on independent deployments taken together."""
    learn: dict[str, list[Array]] = {}
    test: dict[str, list[Array]] = {}
    learn_labels: list[bool] = []
    test_labels: list[bool] = []
    for run in runs:
        history: set[bytes] = set()
        for at, talks in enumerate(run.talks):
            block = run.rounds[at * LENGTH : (at + 1) * LENGTH]
            first = 2 * at < len(run.talks)
            for client, talk in talks.items():
                (learn_labels if first else test_labels).append(talk)
                for family, values in sample(client, block, history).items():
                    (learn if first else test).setdefault(family, []).append(values)
            history.update(e[RATE_TAG_AT:PAYLOAD_AT] for s in block for e in s.envelopes.values())
    known, hidden = np.array(learn_labels), np.array(test_labels)
    return [
        verdict(family, np.array(values), known, np.array(test[family]), hidden)
        for family, values in learn.items()
    ]


def found(verdicts: Sequence[Verdict]) -> set[str]:
    """The families that guess better than chance, at FALSE_ALARM for all together."""
    return {one.family for one in verdicts if one.chance < FALSE_ALARM / len(verdicts)}


def verdict(
    family: str,
    known: Array,
    talks: npt.NDArray[np.bool_],
    hidden: Array,
    answers: npt.NDArray[np.bool_],
) -> Verdict:
    """Each feature votes by its distance from the middle of both means, as it told them apart."""
    talking, quiet = known[talks], known[~talks]
    noise = np.sqrt(talking.var(axis=0) / len(talking) + quiet.var(axis=0) / len(quiet))
    gap = talking.mean(axis=0) - quiet.mean(axis=0)
    score = np.divide(gap, noise, out=np.zeros_like(gap), where=noise > 0)
    # A feature that never varies within either class, but differs between them, tells all.
    score[(noise == 0) & (gap != 0)] = np.copysign(1e9, gap[(noise == 0) & (gap != 0)])
    used = np.argsort(-np.abs(score), kind="stable")[:USED]
    middle = (talking.mean(axis=0) + quiet.mean(axis=0))[used] / 2
    spread = known.std(axis=0)[used] + 1e-12
    votes = ((hidden[:, used] - middle) / spread) @ score[used]
    right, of = int(((votes > 0) == answers).sum()), len(answers)
    return Verdict(family, right, of, tail(right, of))


def tail(right: int, of: int) -> float:
    """The probability of so many right guesses or more, each with even chances."""
    ways: int = sum(comb(of, k) for k in range(right, of + 1))
    return float(Fraction(ways, 2**of))


def sample(client: bytes, block: Sequence[Seen], history: set[bytes]) -> dict[str, Array]:
    """One client in one block, by family."""
    mine = [seen.envelopes[client] for seen in block if client in seen.envelopes]
    size = max(len(e) for seen in block for e in seen.envelopes.values())
    values = np.frombuffer(b"".join(e.ljust(size, b"\0") for e in mine), np.uint8)
    table = values.reshape(len(mine), size)
    end = size - TRAILER_BYTES
    parts = {
        "header": table[:, :RATE_TAG_AT],
        "rate tag": table[:, RATE_TAG_AT:PAYLOAD_AT],
        "payload": table[:, PAYLOAD_AT:end],
        "MAC": table[:, end : end + MAC_BYTES],
        "signature": table[:, end + MAC_BYTES :],
    }
    families = {f"{name}, by bit": bits(part) for name, part in parts.items()}
    families |= {f"{name}, by byte": mean(part) for name, part in parts.items()}
    free = table[:, RATE_TAG_AT:]
    families["histogram"] = np.bincount(free.reshape(-1), minlength=256) / max(free.size, 1)
    families["sizes"] = spread(list(map(len, mine)))
    families["tags again"] = again(mine, history)
    families["order"] = order(client, block)
    families["work"] = work(client, block)
    families["participation"] = participation(client, block)
    families["what is missing"] = missing(client, block)
    return families


def mean(table: npt.NDArray[np.uint8]) -> Array:
    if not len(table):
        return np.full(table.shape[1], 127.5)
    middle: Array = np.mean(table, axis=0, dtype=np.float64)
    return middle


def bits(table: npt.NDArray[np.uint8]) -> Array:
    if not len(table):
        return np.full(8 * table.shape[1], 0.5)
    share: Array = np.mean(np.unpackbits(table, axis=1), axis=0, dtype=np.float64)
    return share


def spread(values: Sequence[float]) -> Array:
    """Mean, least, greatest."""
    return np.array([np.mean(values), min(values), max(values)] if values else [0.0] * 3)


def again(mine: Sequence[bytes], history: set[bytes]) -> Array:
    tags = [envelope[RATE_TAG_AT:PAYLOAD_AT] for envelope in mine]
    known = sum(tag in history for tag in tags)
    doubled = sum(len(set(tag)) for tag in tags) / max(len(tags), 1)
    return np.array([len(tags) - len(set(tags)), known, doubled], float)


def order(client: bytes, block: Sequence[Seen]) -> Array:
    """When its envelopes arrive among the others, from the front and from the back."""
    places = [list(s.envelopes).index(client) for s in block if client in s.envelopes]
    back = [len(s.envelopes) for s in block if client in s.envelopes]
    return np.concatenate(
        [spread(places), spread([b - p for b, p in zip(back, places, strict=True)])]
    )


def work(client: bytes, block: Sequence[Seen]) -> Array:
    """Instead of time: what is drawn, written and enciphered before an envelope leaves."""
    done = [seen.work[client] for seen in block]
    return np.concatenate(
        [
            spread([len(one.drawn) for one in done]),
            spread([sum(one.drawn) for one in done]),
            spread([len(one.written) for one in done]),
            spread([sum(one.written) for one in done]),
            spread([one.pads for one in done]),
        ]
    )


def participation(client: bytes, block: Sequence[Seen]) -> Array:
    """In how many rounds it is, by envelopes and by bitmaps, and the longest absence."""
    there = [client in seen.envelopes for seen in block]
    longest = run = 0
    for here in there:
        run = 0 if here else run + 1
        longest = max(longest, run)
    counted = [present(seen) for seen in block]
    with_it = [n for n, here in zip(counted, there, strict=True) if here]
    return np.array([sum(there), longest, *spread(with_it)], float)


def missing(client: bytes, block: Sequence[Seen]) -> Array:
    """What lacks in broadcasts while it is dropped or away, against those that it is in."""

    def marks(seen: Seen, before: Seen | None) -> list[float]:
        filled = seen.ranks - len(seen.empty)
        there = present(seen)
        gone = sum(one not in seen.envelopes for one in before.envelopes) if before else 0
        return [
            len(seen.empty),
            len(seen.empty) - gone,
            filled,
            filled / max(seen.ranks, 1),
            seen.ranks,
            seen.taken,
            seen.taken / there,
        ]

    rows = [marks(seen, before) for seen, before in zip(block, [None, *block], strict=False)]
    table = np.array(rows)
    left_out = np.array([seen.dropped == client for seen in block])
    after = np.array([False, *left_out[:-1]])
    away = np.array([client not in seen.envelopes for seen in block]) & ~left_out
    usual = ~(left_out | after | away)
    base = table[usual].mean(axis=0) if usual.any() else table.mean(axis=0)
    found_in = [
        table[which].mean(axis=0) - base if which.any() else np.zeros(table.shape[1])
        for which in (left_out, after, away)
    ]
    return np.concatenate([*found_in, base])


def present(seen: Seen) -> int:
    return int.from_bytes(seen.record.participants, "big").bit_count()
