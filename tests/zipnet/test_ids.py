"""Ids, against values that were computed with the blake3 package alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipnet.errors import ConfigRejected
from zipnet.ids import UNIVERSE, InstanceIds, UniqueId, client_id, server_id

DIGITS = "00112233445566778899aabbccddeeff" * 2
OF_EMPTY = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
OF_UNIVERSE = "b82b6f3b4a1e53d2d56523f5a7b1974e3842ac37a068cc302286065a8853cf43"
OF_SUBMIT = "99702eda88494429be8358948c5bc82e06c0c606677ccc1b951c1619e267a354"
# BLAKE3(32 zero bytes ‖ name).
PARTS = {
    "committee": "46e064b731d1e8fbd828093130958f92ecfb85e46321a5b78901232e4371c386",
    "submit": "99702eda88494429be8358948c5bc82e06c0c606677ccc1b951c1619e267a354",
    "register": "21f5e8e46d3e018285997bb988ed7b72c9bcae5503b61621ca3c1830abcbe376",
    "broadcasts": "a9c0c47a8926a7c6484cf97dc3a0e7e9b874598271f341eb23ce2a5d85adc7a4",
    "live_round": "f2166cefb64b26ed49e6a6aea4116246f4a05f223baffbb13a0f961c3efe6566",
    "client_registry": "75a5aa097d7905a2a0cbfc575968d9802dbe6f195a067488bad1d701192e654e",
    "server_registry": "0130e2acd5a286b336c8bd8155c58a11c092fccc155c23d685bbc08f471fa7fa",
    "receipts": "d1222bb22a9ad76bba95387480d3bb4054375d6ec794d6fb30ef04b4e4e0dc3d",
}
CLIENT_7 = "13a20a6cde3a2ca523dcc453075e2c7df8d850a186575d1bc70b5be9048849a4"
SERVER_7 = "8e161fec84b492747ca901e152c79709f1f303e81946c98d426d3aa61ac19ce8"


@pytest.mark.parametrize("text", [DIGITS, DIGITS.upper(), DIGITS[:32] + DIGITS[32:].upper()])
def test_hex_digits_are_the_bytes(text: str) -> None:
    assert UniqueId.of(text).raw == bytes.fromhex(DIGITS)


@pytest.mark.parametrize(
    "text",
    [DIGITS[:-1], DIGITS + "0", DIGITS + "\n", " " + DIGITS[1:], "0x" + DIGITS[2:], "\uff11" * 64],
)
def test_other_texts_are_hashed(text: str) -> None:
    assert UniqueId.of(text).hex() not in {text, DIGITS}


def test_values() -> None:
    assert UniqueId.of("").hex() == OF_EMPTY
    assert UNIVERSE.hex() == OF_UNIVERSE
    assert bytes(UNIVERSE) == UNIVERSE.raw == bytes.fromhex(OF_UNIVERSE)
    zero = UniqueId(bytes(32))
    assert zero.derive("submit").hex() == zero.derive(b"submit").hex() == OF_SUBMIT
    assert client_id(b"\7" * 32).hex() == CLIENT_7
    assert server_id(b"\7" * 32).hex() == SERVER_7


def test_ids_of_an_instance() -> None:
    ids = InstanceIds.of(UniqueId(bytes(32)))
    assert {name: getattr(ids, name).hex() for name in InstanceIds.__slots__} == PARTS
    assert len(set(PARTS.values())) == len(PARTS)


def test_derivation_is_of_utf8() -> None:
    assert UNIVERSE.derive("é") == UNIVERSE.derive("é".encode()) != UNIVERSE.derive("e")


@pytest.mark.parametrize("size", [0, 31, 33])
def test_other_sizes(size: int) -> None:
    with pytest.raises(ConfigRejected) as caught:
        UniqueId(bytes(size))
    assert caught.value.rule == "id-size"


def test_texts_that_are_none() -> None:
    for call in (UniqueId.of, UNIVERSE.derive):
        with pytest.raises(ConfigRejected) as caught:
            call("\ud800")
        assert caught.value.rule == "id-text"
        caught.value.diagnostics().encode()


@given(st.text(st.characters(exclude_categories=["Cs"])), st.binary())
def test_derived_ids_are_ids(text: str, info: bytes) -> None:
    derived = UniqueId.of(text).derive(info)
    assert UniqueId.of(derived.hex()) == derived
