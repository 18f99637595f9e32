"""Every fuzz target under hypothesis: its seeds, arbitrary bytes, and seeds with bytes changed."""

import importlib
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import NAMES

TARGETS = [importlib.import_module(f"tests.fuzz.{name}") for name in NAMES]
SEEDS = {target: target.seeds() for target in TARGETS}
for_each_target = pytest.mark.parametrize("target", TARGETS, ids=NAMES)
thorough = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# What sizes, counts and offsets react to, and what readers of JSON, hex and PEM react to.
TOKENS = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.sampled_from([b"\0", b"\xff", b"\0" * 4, b"\xff" * 4, b"\1\0\0\0", b"\xff" * 8]),
    st.sampled_from([b'"', b"{", b"}", b"[", b",", b"\\", b"null", b"true", b"1e9", b"-1", b"="]),
    st.sampled_from([b"00", b"ff", b"\\n", b"\\u0000", b"\\ud800", b"-----", b"9" * 20]),
)


@for_each_target
def test_seeds(target: ModuleType) -> None:
    for seed in SEEDS[target]:
        target.fuzz_one(seed)


@for_each_target
@thorough
@given(data=st.binary(max_size=4096))
def test_arbitrary_bytes(target: ModuleType, data: bytes) -> None:
    target.fuzz_one(data)


@for_each_target
@thorough
@given(data=st.data())
def test_changed_seeds(target: ModuleType, data: st.DataObject) -> None:
    seed = bytearray(data.draw(st.sampled_from(SEEDS[target])))
    # Headers are at one end or the other; hypothesis likes small numbers.
    place = st.integers(0, len(seed) - 1) | st.integers(0, 700) | st.integers(-400, -1)
    for at, token in data.draw(st.lists(st.tuples(place, TOKENS), min_size=1, max_size=4)):
        start = at % len(seed)
        seed[start : start + len(token)] = token
    end = data.draw(st.just(len(seed)) | st.integers(0, len(seed)))
    target.fuzz_one(bytes(seed[:end]))
