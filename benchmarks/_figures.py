"""Figures with limits, and how they are measured and shown."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import inf, isfinite
from statistics import median

import click
from rich.console import Console
from rich.table import Table


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
        if self.least and isfinite(self.most):
            return f"{self.least:.4g} to {self.most:.4g}"
        if self.least:
            return f"≥ {self.least:.4g}"
        return f"≤ {self.most:.4g}" if isfinite(self.most) else ""


def seconds(action: Callable[[], object]) -> float:
    """What one call takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def in_turns(runs: int, *actions: Callable[[], float]) -> list[list[float]]:
    """What each of them returned in each run; a slow moment of the machine hits them all."""
    for action in actions:
        action()
    rows = [[action() for action in actions] for _ in range(runs)]
    return [list(column) for column in zip(*rows, strict=True)]


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the ratios within each run."""
    return median(a / b for a, b in zip(above, below, strict=True))


def show(found: Sequence[Figure], as_json: bool) -> bool:
    """Print all on stdout; whether all are good."""
    if as_json:
        rows = [{**asdict(f), "most": f.most if isfinite(f.most) else None} for f in found]
        click.echo(json.dumps({"schema": "zipnet.benchmark/1", "figures": rows}, indent=2))
    else:
        table = Table("figure", "value", "unit", "limit", "", box=None)
        for f in found:
            table.add_row(f.name, f"{f.value:.4g}", f.unit, f.limit, "ok" if f.good else "OVER")
        Console().print(table)
    return all(f.good for f in found)
