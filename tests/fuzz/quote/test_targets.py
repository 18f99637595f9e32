"""The fuzz target under hypothesis: seeds with a few bytes changed, cut or longer."""

from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.quote import MAX_BYTES, Quote
from tests.attestation.quotes import DRAFTS
from tests.fuzz.quote import quote

SEEDS = quote.seeds()
thorough = settings(max_examples=1000, deadline=None)

# Where a change leads further than to another value of a free field.
STRUCTURE = sorted(
    {
        draft.offset(name) + byte
        for draft in DRAFTS.values()
        for name, part in draft.parts().items()
        if name.endswith(("_length", "_type", "_size")) or name == "version"
        for byte in range(len(part))
    }
)
TOKENS = st.binary(min_size=1, max_size=8) | st.sampled_from(
    [b"\0", b"\xff", bytes(4), b"\xff" * 4, b"\5\0", b"\6\0", b"\1\0\0\0", bytes(64)]
)


def test_seeds() -> None:
    for seed in SEEDS:
        quote.fuzz_one(seed)
        Quote.parse(seed)


@thorough
@given(data=st.binary(max_size=2 * MAX_BYTES))
def test_arbitrary_bytes(data: bytes) -> None:
    quote.fuzz_one(data)


@thorough
@given(data=st.data())
def test_changed_seeds(data: st.DataObject) -> None:
    seed = bytearray(data.draw(st.sampled_from(SEEDS)))
    place = st.sampled_from(STRUCTURE) | st.integers(0, len(seed) - 1)
    for at, token in data.draw(st.lists(st.tuples(place, TOKENS), min_size=1, max_size=4)):
        seed[at : at + len(token)] = token
    end = data.draw(st.just(len(seed)) | st.integers(0, len(seed)))
    tail = data.draw(st.sampled_from([b"", bytes(8), b"\0\1", bytes(MAX_BYTES)]))
    quote.fuzz_one(bytes(seed[:end]) + tail)
