"""The fuzz target under hypothesis: arbitrary bytes, and files with a few bytes changed."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.collateral import collateral

SEEDS = collateral.seeds()
thorough = settings(max_examples=300, deadline=None)

TOKENS = st.binary(min_size=1, max_size=4) | st.sampled_from(
    [b'"', b"\\", b"{", b"}", b",", b"00", b"ff", b"\\n", b"\\u0000", b"-----", b"=", b"9" * 20]
)


def test_seeds() -> None:
    for seed in SEEDS:
        collateral.fuzz_one(seed)


@thorough
@given(data=st.binary(max_size=4096))
def test_arbitrary_bytes(data: bytes) -> None:
    collateral.fuzz_one(data)


@thorough
@given(data=st.data())
def test_changed_seeds(data: st.DataObject) -> None:
    seed = bytearray(data.draw(st.sampled_from(SEEDS)))
    place = st.integers(0, len(seed) - 1)
    for at, token in data.draw(st.lists(st.tuples(place, TOKENS), min_size=1, max_size=4)):
        seed[at : at + len(token)] = token
    end = data.draw(st.just(len(seed)) | st.integers(0, len(seed)))
    collateral.fuzz_one(bytes(seed[:end]))
