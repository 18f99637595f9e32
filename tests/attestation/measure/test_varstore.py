"""The variable store: every check that edk2 makes before it trusts one, and our writer."""

import hashlib
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import AttestationError, FirmwareFormatError, FirmwareRejected
from attestation.measure import firmware, policy, varstore
from attestation.measure.varstore import Variable
from tests.attestation.measure import synthetic
from tests.attestation.measure.support import patched, refused

VENDOR = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
TWO = (Variable("Boot0001", VENDOR, 7, b"x"), Variable("Lang", VENDOR, 7, b"eng"))
VALID = synthetic.store(TWO)
AREA = 0x48 + 28
END = synthetic.PAGE
DIGEST = hashlib.sha256(b"image").digest()


def resummed(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """The change, with the header checksum made right again."""

    def both(data: bytes) -> bytes:
        changed = change(data)
        return synthetic.sum16_fixed(changed[:0x48], 50) + changed[0x48:]

    return both


def test_reads_what_is_there() -> None:
    parsed = varstore.parse(VALID)
    assert parsed.variables == TWO
    assert (parsed.start, parsed.end) == (AREA, END)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda v: v[:50], "store.truncated"),
        (patched(0, b"\1"), "store.zero-vector"),
        (patched(16, bytes(16)), "store.file-system"),
        (patched(40, b"_FVX"), "store.volume-signature"),
        (patched(44, struct.pack("<I", 0x4FEFE)), "store.attributes"),
        (patched(55, b"\1"), "store.revision"),
        (patched(32, struct.pack("<Q", synthetic.STORE_SIZE + 1)), "store.volume-length"),
        (lambda v: v + b"\xff", "store.volume-length"),
        (patched(48, b"\x49\0"), "store.header-length"),
        (resummed(patched(48, b"\x4a\0")), "store.header-length"),
        (patched(50, b"\0\0"), "store.volume-checksum"),
        (patched(0x48, bytes(16)), "store.signature"),
        (patched(0x48 + 16, struct.pack("<I", synthetic.STORE_SIZE)), "store.size"),
        (patched(0x48 + 16, struct.pack("<I", 27)), "store.size"),
        (patched(0x48 + 16, struct.pack("<I", synthetic.PAGE - 0x48 - 4)), "store.size"),
        (patched(0x48 + 20, b"\0"), "store.format"),
        (patched(0x48 + 21, b"\xff"), "store.state"),
        (patched(AREA, b"\0\0"), "store.padding"),
        (patched(AREA + 2, b"\x40"), "store.variable-state"),
        (patched(AREA + 36, b"\xff\xff\xff\xff"), "store.variable-range"),
        (patched(AREA + 40, b"\xff\xff\xff\xff"), "store.variable-range"),
        (patched(AREA + 60 + 18 + 1, b"\0"), "store.variable-padding"),
        (patched(AREA + 60 + 16, b"x\0"), "store.variable-name"),
        (patched(AREA + 60, b"\0\xd8"), "store.variable-name"),
        (patched(AREA + 60, b"\0\0"), "store.variable-name"),
        (patched(END - 1, b"\0"), "store.padding"),
    ],
)
def test_a_store_that_a_td_would_drop(change: Callable[[bytes], bytes], rule: str) -> None:
    with refused(FirmwareFormatError, rule):
        varstore.parse(change(VALID))


def test_variable_header_at_the_very_end() -> None:
    filler = Variable("F", VENDOR, 7, bytes(END - AREA - 60 - 4 - 8))
    store = patched(END - 8, b"\xaa\x55\x3f")(synthetic.store([filler]))
    with refused(FirmwareFormatError, "store.variable-range"):
        varstore.parse(store)


@pytest.mark.parametrize(
    ("state", "live"), [(0x3F, True), (0x3E, True), (0x7F, False), (0x3D, False), (0x3C, False)]
)
def test_only_live_variables_are_variables(state: int, live: bool) -> None:
    parsed = varstore.parse(patched(AREA + 2, bytes([state]))(VALID))
    assert parsed.variables == (TWO if live else TWO[1:])


def test_write_replaces_all_and_keeps_the_rest() -> None:
    new = (Variable("b", VENDOR, 7, b"123"), Variable("Z", VENDOR, 3, b"", bytes(range(16))))
    tail = patched(-5, b"work")(VALID)
    written = varstore.write(tail, new)
    assert varstore.parse(written).variables == (new[1], new[0])
    assert written[:AREA] == VALID[:AREA]
    assert written[-5:] == b"work\xff"
    assert written == varstore.write(written, new[::-1])


def test_store_too_small() -> None:
    many = [bytes([index]) * 32 for index in range(100)]
    with refused(FirmwareRejected, "store-too-small"):
        firmware.write_policy(VALID, many)


def test_signature_lists() -> None:
    first = varstore.signature_list(VENDOR, policy.OWNER, [b"ab", b"cd"])
    second = varstore.signature_list(policy.OWNER, VENDOR, [b"x"])
    assert len(first) == 28 + 2 * 18
    assert varstore.signatures(first + second) == (
        (VENDOR, policy.OWNER, b"ab"),
        (VENDOR, policy.OWNER, b"cd"),
        (policy.OWNER, VENDOR, b"x"),
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s[:20],
        lambda s: s[:-1],
        patched(16, struct.pack("<I", 27)),
        patched(16, struct.pack("<I", 28)),
        patched(20, struct.pack("<I", 1)),
        patched(24, struct.pack("<I", 16)),
        patched(24, struct.pack("<I", 17)),
        patched(24, bytes(4)),
    ],
)
def test_broken_signature_lists(change: Callable[[bytes], bytes]) -> None:
    with refused(FirmwareFormatError, "siglist.sizes"):
        varstore.signatures(change(varstore.signature_list(VENDOR, VENDOR, [b"ab", b"cd"])))


def test_policy_sizes_are_the_documented_ones() -> None:
    sizes = {v.name: len(v.data) for v in policy.variables([DIGEST])}
    assert sizes == {"PK": 45, "KEK": 45, "db": 76, "dbx": 76, "SecureBootEnable": 1}


def test_policy_round_trip() -> None:
    other = bytes(32)
    store = firmware.write_policy(VALID, [DIGEST, other, DIGEST])
    assert policy.read(store) == (other, DIGEST)
    assert len(store) == len(VALID)
    assert store == firmware.write_policy(store, [other, DIGEST])


@pytest.mark.parametrize(
    ("digests", "rule"), [([], "empty-policy"), ([b"short"], "digest-size"), ([b""], "digest-size")]
)
def test_policies_that_make_no_sense(digests: list[bytes], rule: str) -> None:
    with refused(FirmwareRejected, rule):
        firmware.write_policy(VALID, digests)


def _with(**changes: Variable | None) -> bytes:
    chosen = {v.name: v for v in policy.variables([DIGEST])} | changes
    return varstore.write(VALID, [v for v in chosen.values() if v is not None])


DB = next(v for v in policy.variables([DIGEST]) if v.name == "db")


@pytest.mark.parametrize(
    "store",
    [
        VALID,
        _with(PK=None),
        _with(SecureBootEnable=None),
        _with(db=None),
        _with(dbx=None),
        _with(extra=Variable("CustomMode", VENDOR, 3, b"\1")),
        _with(db=Variable("db", DB.vendor, DB.attributes, b"junk", DB.time)),
        _with(db=Variable("db", DB.vendor, DB.attributes, DB.data, bytes(16))),
        _with(db=Variable("db", DB.vendor, 7, DB.data, DB.time)),
        _with(db=Variable("db", VENDOR, DB.attributes, DB.data, DB.time)),
        _with(
            db=Variable(
                "db",
                DB.vendor,
                DB.attributes,
                varstore.signature_list(UUID(bytes_le=DB.data[:16]), VENDOR, [DIGEST]),
                DB.time,
            )
        ),
        _with(again=DB),
    ],
)
def test_anything_else_is_not_our_policy(store: bytes) -> None:
    with refused(FirmwareRejected, "not-bound"):
        policy.read(store)


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=8))
def test_policy_round_trip_for_any_digests(digests: list[bytes]) -> None:
    assert policy.read(firmware.write_policy(VALID, digests)) == tuple(sorted(set(digests)))


@given(st.integers(AREA, AREA + 600), st.integers(1, 255))
def test_a_changed_byte_never_reads_as_the_same_policy(at: int, bits: int) -> None:
    bound = firmware.write_policy(VALID, [DIGEST])
    changed = patched(at, bytes([bound[at] ^ bits]))(bound)
    with suppress(AttestationError):
        assert policy.read(changed) != (DIGEST,)


def test_virt_firmware_writes_the_same_bytes(tmp_path: Path) -> None:
    """A peer: the library that the table of variables was first made with."""
    efivar, guids, siglist, edk2 = (
        pytest.importorskip(f"virt.firmware.{name}", reason="virt-firmware is not installed")
        for name in ("efi.efivar", "efi.guids", "efi.siglist", "varstore.edk2")
    )
    chosen = efivar.EfiVarList()
    for variable in policy.variables([DIGEST, bytes(32)]):
        peer = efivar.EfiVar(variable.name, guid=guids.parse_str(str(variable.vendor)))
        peer.attr, peer.data = variable.attributes, variable.data
        peer.parse_time(variable.time, 0)
        chosen[variable.name] = peer
        if variable.name == "db":
            lists = siglist.EfiSigList(guid=guids.parse_str(guids.EfiCertSha256))
            for digest in (bytes(32), DIGEST):
                lists.add_sig(guids.parse_str(str(policy.OWNER)), digest)
            assert bytes(lists) == variable.data
    file = tmp_path / "vars.fd"
    file.write_bytes(VALID)
    peer_store = edk2.Edk2VarStore(str(file))
    assert peer_store.bytes_varstore(chosen) == policy.write(VALID, [DIGEST, bytes(32)])
    file.write_bytes(policy.write(VALID, [DIGEST]))
    read = edk2.Edk2VarStore(str(file)).get_varlist()
    assert {name: v.data for name, v in read.items()} == {
        v.name: v.data for v in policy.variables([DIGEST])
    }
