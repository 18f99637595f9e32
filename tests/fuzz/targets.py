"""The fuzz targets: every module below this package with `seeds()` and `fuzz_one(data)`."""

from pathlib import Path

FOLDER = Path(__file__).parent
# As `python -m tests.fuzz` takes them.
NAMES = sorted(
    f"{path.parent.name}.{path.stem}"
    for path in FOLDER.glob("*/*.py")
    if not path.name.startswith(("_", "test_"))
)
