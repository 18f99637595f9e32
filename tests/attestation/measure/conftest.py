import os
from pathlib import Path

import pytest

from tests.attestation.measure import synthetic


@pytest.fixture(scope="session")
def base() -> bytes:
    """A synthetic TDX firmware that passes the audit."""
    return synthetic.Firmware().build()


@pytest.fixture(scope="session")
def uki() -> bytes:
    return synthetic.uki()


@pytest.fixture(scope="session")
def stock() -> bytes:
    """The real firmware that the golden values belong to."""
    path = os.environ.get("ZIPNET_TEST_FIRMWARE")
    if not path:
        pytest.skip("ZIPNET_TEST_FIRMWARE does not name a stock OVMF.inteltdx.ms.fd")
    return Path(path).read_bytes()
