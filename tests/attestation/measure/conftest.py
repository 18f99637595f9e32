import hashlib
import os
from pathlib import Path

import pytest

from release.build.settings import Paths
from release.build.tools import FIRMWARE
from tests.attestation.measure import synthetic
from tests.attestation.measure.support import vectors


@pytest.fixture(scope="session")
def base() -> bytes:
    """A synthetic TDX firmware that passes the audit."""
    return synthetic.Firmware().build()


@pytest.fixture(scope="session")
def uki() -> bytes:
    return synthetic.uki()


@pytest.fixture(scope="session")
def stock() -> bytes:
    """The real firmware that the golden values belong to.

    It lies in the builder's cache once anything was built; the tox environment `image` builds, and
    sets ZIPNET_STRICT so that these tests can't be skipped there for want of it.
    """
    trees = Paths.of(Path()).cache / "trees"
    found = [p.read_bytes() for p in sorted(trees.glob(f"firmware-*/{FIRMWARE}"))]
    for firmware in found:
        if hashlib.sha256(firmware).hexdigest() == vectors("firmware.json")["sha256"]:
            return firmware
    if found:
        pytest.skip(
            "the mirror has another firmware by now: boot proof and TPM comparison cover it"
        )
    if "ZIPNET_STRICT" in os.environ:
        pytest.fail(f"no firmware below {trees}: build an image first")
    return pytest.skip("no image was built on this machine yet: `python build.py --role server`")
