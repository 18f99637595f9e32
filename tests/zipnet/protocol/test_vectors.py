"""Vectors of others, and those of wire version 2, through the functions that make the pads.

Every vector declares what must come out. Where a standard covers more than we use, the library
that we call is tested as well.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tests.zipnet.protocol.rounds import header
from zipnet.errors import Refused
from zipnet.protocol.header import header_hash
from zipnet.protocol.instance import Instance
from zipnet.protocol.pads import (
    DH,
    MESSAGE_PAD,
    SCHEDULE_PAD,
    exchange,
    expand,
    extract,
    keystream,
    keystream_xor,
    pad_info,
    pad_key,
    pair_base,
    pair_secret,
    ratchet,
    xor_by_copy,
    xor_in_place,
)
from zipnet.protocol.roster import Member
from zipnet.protocol.shape import Shape

ROOT = Path(__file__).parents[3]
VECTORS = ROOT / "tests" / "vectors"
Vector = dict[str, Any]
# What must come of each file of Wycheproof, and so that none is passed over.
OUTCOMES = {
    "x25519_test.json": {"equal": 487, "dh-zero": 31},
    "hkdf_sha256_test.json": {"equal": 83, "refused": 3},
    "ed25519_test.json": {"accepted": 88, "refused": 62},
}
# Runs pytest where numpy can't be found; an entry None in sys.modules would mislead hypothesis.
WITHOUT_NUMPY = """
import sys
import pytest

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "numpy":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
options = ["-q", "-p", "no:cacheprovider", "-k", "not without_numpy"]
code = pytest.main([*options, *sys.argv[1:]])
assert "numpy" not in sys.modules
sys.exit(code)
"""
# Signs and verifies the body alone, so that `Instance` can be held against vectors.
BARE = cast("Instance", SimpleNamespace(statement=lambda _domain, _round, body: body))


def load(name: str) -> Vector:
    loaded: Vector = json.loads((VECTORS / "crypto" / name).read_text("utf-8"))
    return loaded


def vectors(name: str) -> pytest.MarkDecorator:
    found = load(name)["vectors"]
    return pytest.mark.parametrize("vector", found, ids=[vector["name"] for vector in found])


def wycheproof(name: str) -> Iterator[tuple[Vector, Vector]]:
    loaded = json.loads((VECTORS / "wycheproof" / name).read_text("utf-8"))
    for group in loaded["testGroups"]:
        for case in group["tests"]:
            yield (
                group,
                {
                    key: bytes.fromhex(value)
                    if key
                    in {"public", "private", "shared", "ikm", "salt", "info", "okm", "msg", "sig"}
                    else value
                    for key, value in case.items()
                },
            )


def raw(vector: Vector, *names: str) -> list[bytes]:
    return [bytes.fromhex(vector[name]) for name in names]


def secret_key(secret: bytes) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(secret)


@vectors("pads.json")
def test_key_schedule(vector: Vector) -> None:
    expect = vector["expect"]
    own, peer = (secret_key(key) for key in raw(vector, "client_sk", "server_sk"))
    binding, client_id, server_id, roster_hash, schedule_hash = raw(
        vector, "binding", "client_id", "server_id", "roster_hash", "schedule_hash"
    )
    client = Member(client_id, own.public_key().public_bytes_raw())
    server = Member(server_id, peer.public_key().public_bytes_raw())
    assert client.key.hex() == expect["client_dh_pub"]
    assert server.key.hex() == expect["server_dh_pub"]

    shared = exchange(own, server.key)
    assert shared.hex() == exchange(peer, client.key).hex() == expect["z"]
    assert extract(DH + b"\0" + binding, shared).hex() == expect["prk"]
    base = pair_base(binding, shared, client, server, vector["base_round"])
    assert base.hex() == expect["ss_base"]
    for steps, name in ((1, "ss_6"), (2, "ss_7"), (3, "ss_8")):
        assert ratchet(base, steps).hex() == expect[name]

    shape = Shape(*vector["shape"])
    hashed = header_hash(
        binding,
        vector["round"],
        vector["epoch"],
        shape,
        (server_id,),
        roster_hash,
        schedule_hash,
    )
    assert hashed.hex() == expect["header_hash"]

    bound = (binding, hashed, schedule_hash, vector["round"])
    secret = ratchet(base, vector["round"] - vector["base_round"])
    for label, name in ((MESSAGE_PAD, "message"), (SCHEDULE_PAD, "schedule")):
        info = pad_info(label, *bound) + client_id + server_id
        assert len(info) == expect[f"{name}_info_bytes"]
        key = pad_key(label, secret, *bound, client_id, server_id)
        assert key.hex() == expect[f"{name}_key"]
        pad = bytearray(len(expect[f"{name}_pad"]) // 2)
        keystream_xor()((key,), memoryview(pad))
        assert pad.hex() == expect[f"{name}_pad"]
    assert pad_info(MESSAGE_PAD, *bound).hex().startswith(expect["message_info_start"])


@vectors("pads.json")
def test_key_schedule_through_a_pair(vector: Vector) -> None:
    expect = vector["expect"]
    own, peer = (secret_key(key) for key in raw(vector, "client_sk", "server_sk"))
    client_id, server_id, client_key, server_key = (
        *raw(vector, "client_id", "server_id"),
        *raw(expect, "client_dh_pub", "server_dh_pub"),
    )
    binding, roster_hash = raw(vector, "binding", "roster_hash")
    ends = (Member(client_id, client_key), Member(server_id, server_key))
    instance = Instance(bytes(32), bytes(32))
    # The vector gives the binding itself, not the ids from which it is hashed.
    object.__setattr__(instance, "binding", binding)
    proposed = header(
        vector["round"],
        shape=Shape(*vector["shape"]),
        servers=(server_id,),
        instance=instance,
        roster_hash=roster_hash,
    )
    for secret in (own, peer):
        pair = pair_secret(binding, secret, *ends, vector["base_round"])
        pair.advance(vector["round"], [])
        payload = bytearray(proposed.shape.payload_bytes)
        pair.keys(proposed).apply(keystream_xor(), payload, proposed.shape)
        split = proposed.shape.message_bytes
        assert payload[:100].hex() == expect["message_pad"]
        assert payload[split : split + 33].hex() == expect["schedule_pad"]


@vectors("rfc5869.json")
def test_hkdf(vector: Vector) -> None:
    ikm, salt, info = raw(vector, "ikm", "salt", "info")
    prk, okm = raw(vector["expect"], "prk", "okm")
    assert extract(salt, ikm) == prk
    assert expand(prk, info) == okm[:32]
    assert HKDF(SHA256(), len(okm), salt, info).derive(ikm) == okm


@vectors("rfc4231.json")
def test_hmac(vector: Vector) -> None:
    key, data, expect = raw(vector, "key", "data", "expect")
    assert extract(key, data)[: len(expect)] == expect


@vectors("rfc7748.json")
def test_x25519(vector: Vector) -> None:
    secret, key, expect = raw(vector, "secret", "key", "expect")
    for _ in range(vector["times"]):
        secret, key = exchange(secret_key(secret), key), secret
    assert secret == expect


@vectors("rfc8032.json")
def test_ed25519(vector: Vector) -> None:
    seed, message = raw(vector, "seed", "message")
    public, signature = raw(vector["expect"], "public", "signature")
    key = Ed25519PrivateKey.from_private_bytes(seed)
    assert key.public_key().public_bytes_raw() == public
    assert Instance.sign(BARE, key, b"", 0, message) == signature
    assert Instance.has_signed(BARE, public, signature, b"", 0, message)
    assert not Instance.has_signed(BARE, public, signature, b"", 0, message + b"\0")


@vectors("sp800_38a.json")
def test_aes_ctr(vector: Vector) -> None:
    key, counter, plain, expect = raw(vector, "key", "counter", "plain", "expect")
    buffer = bytearray(plain)
    Cipher(AES(key), CTR(counter)).encryptor().update_into(buffer, buffer)
    assert buffer == expect


@pytest.mark.parametrize("xor", [xor_in_place, xor_by_copy], ids=lambda xor: xor.__name__)
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 255, 4096, 70_001])
def test_keystream_is_aes_of_the_counter(xor: Any, size: int) -> None:
    key = bytes(range(32))
    buffer = bytearray(size)
    xor((key,), memoryview(buffer))
    assert buffer == keystream(key, size)


@vectors("blake3.json")
def test_blake3(vector: Vector) -> None:
    loaded = load("blake3.json")
    data = bytes(i % 251 for i in range(vector["size"]))
    hashers = {
        "hash": blake3(data),
        "keyed_hash": blake3(data, key=loaded["key"].encode()),
        "derive_key": blake3(data, derive_key_context=loaded["context"]),
    }
    assert set(hashers) == set(vector["expect"])
    for name, hasher in hashers.items():
        expect = bytes.fromhex(vector["expect"][name])
        assert hasher.digest(len(expect)) == expect
        assert hasher.digest() == expect[:32]


def test_blake3_has_all_cases() -> None:
    assert len(load("blake3.json")["vectors"]) == 22


def test_wycheproof_x25519() -> None:
    seen: Counter[str] = Counter()
    for _, case in wycheproof("x25519_test.json"):
        own = secret_key(case["private"])
        if case["shared"] == bytes(32):
            with pytest.raises(Refused) as caught:
                exchange(own, case["public"])
            seen[caught.value.rule] += 1
        else:
            assert exchange(own, case["public"]) == case["shared"], case["tcId"]
            seen["equal"] += 1
    assert seen == OUTCOMES["x25519_test.json"]


def test_wycheproof_hkdf() -> None:
    seen: Counter[str] = Counter()
    for _, case in wycheproof("hkdf_sha256_test.json"):
        if case["result"] == "invalid":
            with pytest.raises(ValueError, match="Cannot derive keys larger"):
                HKDF(SHA256(), case["size"], case["salt"], case["info"])
            seen["refused"] += 1
            continue
        okm = case["okm"]
        first = expand(extract(case["salt"], case["ikm"]), case["info"])
        assert first[: len(okm)] == okm[:32], case["tcId"]
        whole = HKDF(SHA256(), case["size"], case["salt"], case["info"]).derive(case["ikm"])
        assert whole == okm, case["tcId"]
        seen["equal"] += 1
    assert seen == OUTCOMES["hkdf_sha256_test.json"]


def test_wycheproof_ed25519() -> None:
    seen: Counter[str] = Counter()
    for group, case in wycheproof("ed25519_test.json"):
        public = bytes.fromhex(group["publicKey"]["pk"])
        good = Instance.has_signed(BARE, public, case["sig"], b"", 0, case["msg"])
        assert good == (case["result"] == "valid"), case["tcId"]
        seen["accepted" if good else "refused"] += 1
    assert seen == OUTCOMES["ed25519_test.json"]


def test_without_numpy() -> None:
    here = Path(__file__).parent
    names = ("test_keystream.py", "test_pads.py", "test_precompute.py", "test_vectors.py")
    files = [str(here / name) for name in names]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NUMPY, *files],
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
