"""Which collateral options go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attestation.errors import PolicyError
from zipnet.access import Access
from zipnet.errors import ConfigRejected
from zipnet.node.service_collateral import Fetching, attesting, fetching

MODEL = bytes.fromhex("00906ed50000")
FILE = Path("collateral.json")


def test_no_option() -> None:
    assert fetching(None, (), None, None) is None
    assert fetching(None, (), FILE, None) is None
    access = Access()
    plain = attesting(access, None)
    assert plain.access is access
    assert plain.service is None

    def text() -> str:
        return "a 1\n"

    assert plain.metrics("x", text) is text


@pytest.mark.parametrize(
    "options", [("intel", (), None), (None, (MODEL,), None), ("intel", (MODEL,), FILE)]
)
def test_options_that_contradict(options: tuple[Any, Any, Any]) -> None:
    with pytest.raises(ConfigRejected) as caught:
        fetching(*options, None)
    assert caught.value.rule == "collateral.options"


def test_a_service(tmp_path: Path) -> None:
    found = fetching("intel", (MODEL,), None, tmp_path)
    assert found == Fetching("intel", (MODEL,), tmp_path)
    made = attesting(Access(), found)
    assert made.service is not None
    assert made.access.fetch == made.service.get
    assert made.access.collateral == made.service.current
    assert (tmp_path / "collateral").is_dir()
    text = made.metrics("acme", lambda: "a 1\n")()
    assert text.startswith("a 1\n# HELP attestation_collateral_seconds_left")


def test_a_service_in_the_clear(tmp_path: Path) -> None:
    with pytest.raises(PolicyError) as caught:
        attesting(Access(), Fetching("http://pccs.example", (MODEL,)))
    assert caught.value.rule == "source.plain-http"
