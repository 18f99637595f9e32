"""`python -m release.build`: `build.py` of this checkout in the environment that is running.

For who has the dependencies already and may have no network to install them again.
"""

from pathlib import Path

from release.build.cli import main

main(Path(__file__).resolve().parents[2])
