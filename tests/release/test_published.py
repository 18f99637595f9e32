"""The releases in this repository: signed by a pinned key, whole, and honest about a demo key."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RELEASES = sorted(path.parent for path in (ROOT / "release").glob("*/manifest.json"))


def verify(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "release", "verify", str(folder), *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_there_is_one() -> None:
    assert [folder.name for folder in RELEASES] == ["0.1.0"]


@pytest.mark.parametrize("folder", RELEASES, ids=lambda folder: folder.name)
def test_verifies(folder: Path) -> None:
    done = verify(folder, "--key", "pinned", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    steps = {step["step"]: step for step in json.loads(done.stdout)["steps"]}
    assert [steps[name]["state"] for name in ("signature", "schema", "files", "sums")] == [
        "good"
    ] * 4
    assert steps["measurements"]["state"] == "absent"
    assert "demo key: trust nothing signed by it" in json.dumps(steps["signature"])


@pytest.mark.parametrize("folder", RELEASES, ids=lambda folder: folder.name)
def test_no_other_key_verifies(folder: Path) -> None:
    done = verify(folder, "--key", "5a" * 32)
    assert done.returncode == 2
    assert "REFUSED" in done.stdout


@pytest.mark.parametrize("folder", RELEASES, ids=lambda folder: folder.name)
def test_has_no_images(folder: Path) -> None:
    assert not [path for path in folder.rglob("*") if path.suffix in {".efi", ".fd"}]
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 2 << 20
