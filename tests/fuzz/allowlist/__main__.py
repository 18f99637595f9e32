"""Run one target under atheris: `python -m tests.fuzz.allowlist firmware [libFuzzer options]`."""

import importlib
import sys
import tempfile
from pathlib import Path


def main() -> None:
    atheris = importlib.import_module("atheris")  # optional: pytest runs the targets without it
    target = importlib.import_module(f"tests.fuzz.allowlist.{sys.argv[1]}")
    with tempfile.TemporaryDirectory() as corpus:
        for index, seed in enumerate(target.seeds()):
            (Path(corpus) / str(index)).write_bytes(seed)
        atheris.instrument_all()
        atheris.Setup([sys.argv[0], *sys.argv[2:], corpus], target.fuzz_one)
        atheris.Fuzz()


main()
