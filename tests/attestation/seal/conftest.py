"""Machines for the tests of sealing; ZIPNET_STRICT forbids to do without the real TPM."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.attestation.seal.machines import FakeMachine, Machine
from tests.attestation.seal.swtpm import Swtpm, missing


def need_swtpm() -> None:
    reason = missing()
    if reason is not None and "ZIPNET_STRICT" in os.environ:
        pytest.fail(reason)
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def swtpm(tmp_path: Path) -> Iterator[Swtpm]:
    need_swtpm()
    with Swtpm(tmp_path / "tpm").powered() as machine:
        yield machine


@pytest.fixture(params=["fake", "swtpm"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    with ExitStack() as stack:
        if request.param == "fake":
            yield FakeMachine()
        else:
            need_swtpm()
            yield stack.enter_context(Swtpm(tmp_path / "tpm").powered())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sealed"
