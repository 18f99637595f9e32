"""Selections and digests, without a TPM. That a TPM comes to the same: test_tpm2_bus.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import SealRefused
from attestation.seal.tpm2_policy import (
    MAX_PCRS,
    PUBLIC_SIZE,
    Pcrs,
    counter_name,
    policy,
    public_start,
)

numbers = st.sets(st.integers(0, 23), min_size=1, max_size=MAX_PCRS)


@given(numbers)
def test_selections(wanted: set[int]) -> None:
    text = f"sha256:{','.join(map(str, sorted(wanted)))}"
    pcrs = Pcrs.parse(text)
    assert (pcrs.numbers, str(pcrs)) == (tuple(sorted(wanted)), text)
    assert len(pcrs.select) == 3


def test_bits_are_where_a_tpm_looks_for_them() -> None:
    assert Pcrs.parse("sha256:7,11").select == bytes.fromhex("800800")
    assert Pcrs.parse("sha256:11,7,7") == Pcrs.parse("sha256:7,11")


@pytest.mark.parametrize(
    "text",
    [
        *("", "sha256:", "sha1:7", "sha256:24", "sha256:-1", "sha256:7,", "7", "sha256:7 "),
        *("sha256:٣", "sha256:0,1,2,3,4,5,6,7,8", "sha256:7+sha1:7", "sha256:100"),
    ],
)
def test_no_selections(text: str) -> None:
    with pytest.raises(SealRefused) as caught:
        Pcrs.parse(text)
    assert caught.value.rule == "seal.pcr-selection"
    assert caught.value.got.isascii()


def test_everything_is_in_the_policy() -> None:
    pcrs, other = Pcrs.parse("sha256:7,11"), Pcrs.parse("sha256:7")
    digests = {
        policy(pcrs, bytes(32), 1, 1),
        policy(other, bytes(32), 1, 1),
        policy(pcrs, b"\1" * 32, 1, 1),
        policy(pcrs, bytes(32), 2, 1),
        policy(pcrs, bytes(32), 1, 2),
    }
    assert len(digests) == 5
    assert counter_name(1) != counter_name(1, written=False)


def test_object_is_opened_by_its_policy_alone() -> None:
    start = public_start(b"\xaa" * 32)
    assert len(start) + 2 + 32 == PUBLIC_SIZE
    attributes = int.from_bytes(start[4:8], "big")
    userwithauth, adminwithpolicy = 1 << 6, 1 << 7
    assert not attributes & (userwithauth | adminwithpolicy)
