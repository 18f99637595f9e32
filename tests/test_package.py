"""The wheel that `pip install .` makes."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import zipnet

ROOT = Path(__file__).resolve().parents[1]


def test_wheel_holds_the_packages_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"zipnet-{zipnet.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        scripts = next(n for n in names if n.endswith("entry_points.txt"))
        assert "attestation = attestation.cli:main" in archive.read(scripts).decode()
    tops = {name.split("/")[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"attestation", "release", "zipnet"}
    assert {"attestation/py.typed", "zipnet/py.typed", "release/py.typed"} <= set(names)
    assert "release/build/templates/run-qemu.j2" in names
