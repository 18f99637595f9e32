"""The fuzz targets under hypothesis: arbitrary bytes, and seeds with a few bytes changed."""

from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.allowlist import envelope, payload

TARGETS = [envelope, payload]
SEEDS = {target: target.seeds() for target in TARGETS}
for_each_target = pytest.mark.parametrize(
    "target", TARGETS, ids=[target.__name__.rpartition(".")[2] for target in TARGETS]
)
thorough = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
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


# What a JSON reader and our own react to.
TOKENS = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.sampled_from([b'"', b"{", b"[", b",", b"null", b"true", b"1e9", b"-1", b"\\ud800", b"="]),
)


@for_each_target
@thorough
@given(data=st.data())
def test_changed_seeds(target: ModuleType, data: st.DataObject) -> None:
    seed = bytearray(data.draw(st.sampled_from(SEEDS[target])))
    place = st.integers(0, len(seed) - 1)
    for at, token in data.draw(st.lists(st.tuples(place, TOKENS), min_size=1, max_size=4)):
        start = at % len(seed)
        seed[start : start + len(token)] = token
    end = data.draw(st.just(len(seed)) | st.integers(0, len(seed)))
    target.fuzz_one(bytes(seed[:end]))
