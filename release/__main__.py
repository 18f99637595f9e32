"""`python -m release`: make releases, and check them.

Where its dependencies are not installed, it runs in the private environment of `build.py`, which
is made at first use.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from release.build import bootstrap
from release.build.settings import Paths

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("cyclonedx", "dcap_qvl", "httpx", "jinja2", "rich", "securesystemslib")


def _enter() -> None:
    """Return if this process has the dependencies; else replace it by one that does."""
    if all(find_spec(name) is not None for name in NEEDED):
        return
    environment = bootstrap.ensure(ROOT, Paths.of(ROOT).cache, "build")
    if Path(sys.prefix).resolve() != environment.resolve():
        python = str(environment / "bin" / "python")
        os.execv(python, [python, "-m", "release", *sys.argv[1:]])


if __name__ == "__main__":
    _enter()
    from release.cli import main

    main()
