#!/usr/bin/env python3
"""Builds measured zipnet appliances: `python build.py --role server`, `python build.py --help`.

On a fresh machine the first call sets up what it needs (Python dependencies in a private
environment, then mkosi, firmware and tools); see README.md.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))
sys.dont_write_bytecode = True

from release.build import bootstrap  # noqa: E402 - the checkout must be on the path first
from release.build.settings import Paths  # noqa: E402

if __name__ == "__main__":
    bootstrap.enter(Path(__file__).resolve(), Paths.of(ROOT).cache)
    from release.build.cli import main

    main(ROOT)
