"""Run one target under atheris: `python -m tests.fuzz quote.quote [libFuzzer options]`.

A target is a module below this package with `seeds()` and `fuzz_one(data)`, which may raise nothing
but errors of our trees. pytest runs the same targets through hypothesis.
"""

import importlib
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Fuzz until the options say stop; the seeds are the corpus."""
    atheris = importlib.import_module("atheris")  # not on every platform of the lock
    with atheris.instrument_imports(include=["attestation", "release", "zipnet"]):
        target = importlib.import_module(f"tests.fuzz.{sys.argv[1]}")
    with tempfile.TemporaryDirectory() as corpus:
        for index, seed in enumerate(target.seeds()):
            (Path(corpus) / str(index)).write_bytes(seed)
        atheris.Setup([sys.argv[0], *sys.argv[2:], corpus], target.fuzz_one)
        atheris.Fuzz()


main()
