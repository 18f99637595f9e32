"""Every sealer passes the same suite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from attestation.seal.base import Sealer
from attestation.seal.memory import MemorySealer
from tests.attestation.seal.conformance import CASES
from tests.attestation.seal.machines import Machine, sealer


@pytest.mark.parametrize("case", CASES)
def test_memory(case: Callable[[Sealer], None]) -> None:
    case(MemorySealer())


@pytest.mark.parametrize("case", CASES)
def test_tpm2(case: Callable[[Sealer], None], machine: Machine, folder: Path) -> None:
    case(sealer(machine.device, folder))
    assert machine.loaded() == 0
