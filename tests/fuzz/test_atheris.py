"""Every target for a fixed number of executions under atheris, which looks for new code paths."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import FOLDER, NAMES

RUNS = 10_000


def test_all_targets_are_found() -> None:
    assert {"quote.quote", "collateral.collateral", "ticket.bundle", "allowlist.payload"} <= set(
        NAMES
    )


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="no atheris here")
@pytest.mark.parametrize("target", NAMES)
def test_target(target: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz", target, f"-runs={RUNS}", "-seed=1"]
    command += [f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(
        command, cwd=FOLDER.parents[1], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"Done {RUNS} runs" in done.stderr
