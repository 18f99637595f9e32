"""A mock platform, a moment at which all of it is valid, and the three shapes of quotes."""

from datetime import UTC, datetime
from typing import Any

from attestation.providers.mock import MockTee, MockVerifier

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TEE = MockTee(b"matrix")
OTHER = MockTee(b"somebody else")
COLLATERAL = TEE.collateral()
VERIFIER = MockVerifier(TEE.root_der)
SHAPES: dict[str, dict[str, Any]] = {
    "v4": {"version": 4},
    "v5 td1.0": {"version": 5},
    "v5 td1.5": {"version": 5, "td15": True},
}
REPORT_DATA = bytes(range(64))
