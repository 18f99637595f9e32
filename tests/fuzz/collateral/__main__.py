"""Run the target under atheris: `python -m tests.fuzz.collateral [libFuzzer options]`."""

import importlib
import sys
import tempfile
from pathlib import Path

from tests.fuzz.collateral import collateral


def main() -> None:
    atheris = importlib.import_module("atheris")  # optional: pytest runs the target without it
    with tempfile.TemporaryDirectory() as corpus:
        for index, seed in enumerate(collateral.seeds()):
            (Path(corpus) / str(index)).write_bytes(seed)
        atheris.instrument_all()
        atheris.Setup([*sys.argv, corpus], collateral.fuzz_one)
        atheris.Fuzz()


main()
