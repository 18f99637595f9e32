"""What a person sees of a build: numbered steps with progress and time, and where the logs are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape


@dataclass(slots=True)
class Step:
    """One step: the file that its programs log to, and what it has to say when it ends."""

    title: str
    log: Path
    echo: bool
    console: Console
    notes: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Print a line at once: what the step is about to do."""
        self.console.print(f"       {text}", markup=False, highlight=False)

    def note(self, text: str) -> None:
        """Add a line that is printed below the step."""
        self.notes.append(text)


@dataclass(slots=True)
class Steps:
    """Prints steps to standard error; standard output belongs to results.

    On a terminal the running step shows a spinner; elsewhere a line when it begins and one when
    it ends. `timings` keeps (title, seconds) for benchmarks and `--json`.
    """

    console: Console
    logs: Path
    verbose: bool = False
    count: int = 0
    timings: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Run the body as one step; an error that leaves it marks the step as failed."""
        if not self.count:
            self.console.print(f"logs in {self.logs}", markup=False, highlight=False)
        self.count += 1
        self.logs.mkdir(parents=True, exist_ok=True)
        name = "".join(c if c.isalnum() else "-" for c in title.lower())
        log = self.logs / f"{self.count:02}-{name}.log"
        step = Step(title, log, self.verbose, self.console)
        label = f"[{self.count:>2}] {title}"
        begin = time.monotonic()
        outcome = "failed"
        try:
            if self.console.is_terminal and not self.verbose:
                with self.console.status(f"{escape(label)} [dim](log: {escape(str(step.log))})"):
                    yield step
            else:
                self.console.print(f"{label} …", markup=False, highlight=False)
                yield step
            outcome = "ok"
        finally:
            seconds = time.monotonic() - begin
            self.timings.append((title, seconds))
            self.console.print(
                f"{label:<58} {outcome:>6} {seconds:7.1f} s", markup=False, highlight=False
            )
            for note in step.notes:
                self.console.print(f"       {note}", markup=False, highlight=False)
