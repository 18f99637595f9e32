"""What is in the seal, and what a server keeps for it: bytes there and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.bundle import Role
from attestation.errors import SealRefused, SealUnavailable
from attestation.seal.committee_member import Known
from tests.zipnet.node.sealed_nodes import ring
from tests.zipnet.protocol.support import INSTANCE, refused
from zipnet.errors import StateDamaged, WireFormatError
from zipnet.ids import client_id
from zipnet.node import sealed_root
from zipnet.node.sealed_record import MAX_RECORD, SealedPairs, SealedRecord
from zipnet.node.sealed_root import FileTable, kept_in

DRAW = Random(1).randbytes
RECORD = SealedRecord.fresh(Role.CLIENT, INSTANCE, DRAW)
ID = client_id(RECORD.identity.dh_pub)
PAIRS = SealedPairs.of(ring(RECORD.identity, 2), 4)
KNOWN = st.builds(
    Known, st.integers(0, 2**63 - 1), st.binary(min_size=32, max_size=32),
    st.integers(0, 2**63 - 1), st.booleans(),
)  # fmt: skip
TABLES = st.dictionaries(st.binary(min_size=64, max_size=64), KNOWN, max_size=4)


def test_a_record_there_and_back() -> None:
    whole = replace(RECORD, pairs=PAIRS.encode())
    assert SealedRecord.decode(RECORD.encode()) == RECORD
    assert SealedRecord.decode(whole.encode()) == whole
    assert len(whole.encode()) < MAX_RECORD
    found = SealedPairs.decode(whole.pairs)
    assert found == PAIRS
    assert found.ring(ID).export() == ring(RECORD.identity, 2).export()
    assert found.ring(ID).key(2) == PAIRS.key


def test_secrets_stay_out_of_logs() -> None:
    shown = repr((replace(RECORD, pairs=PAIRS.encode()), PAIRS))
    for secret in (RECORD.signing, RECORD.dh, RECORD.journal, *PAIRS.pairs):
        assert repr(secret)[2:-1] not in shown
        assert secret.hex() not in shown


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"epoch": 0}, "sealed-pairs.order"),
        ({"pairs": ()}, "sealed-pairs.order"),
        ({"pairs": PAIRS.pairs[::-1]}, "sealed-pairs.order"),
        ({"pairs": PAIRS.pairs[:1] * 2}, "sealed-pairs.order"),
    ],
)
def test_pairs_that_are_none(change: dict[str, object], rule: str) -> None:
    with refused(WireFormatError, rule):
        replace(PAIRS, **change)  # type: ignore[arg-type]


def test_pairs_of_another_client() -> None:
    with refused(WireFormatError, "sealed-pairs.client"):
        PAIRS.ring(bytes(32))


@given(TABLES)
def test_a_table_there_and_back(known: dict[bytes, Known]) -> None:
    root = bytes(range(32))
    assert sealed_root.decode(sealed_root.encode(root, known)) == (root, known)


@given(st.data())
def test_a_table_that_was_changed(data: st.DataObject) -> None:
    raw = bytearray(sealed_root.encode(bytes(32), {bytes(64): Known(1, bytes(32), 1)}))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with refused(StateDamaged, "sealing.damaged"):
        sealed_root.decode(bytes(raw))


def test_a_servers_file(tmp_path: Path) -> None:
    kept = kept_in(tmp_path, DRAW)
    assert (tmp_path / "sealing").stat().st_mode & 0o777 == 0o600
    key, known = bytes(64), Known(3, b"\x05" * 32, 2, anew=True)
    kept.table.put(key, known)
    again = kept_in(tmp_path, DRAW)
    assert again.root == kept.root
    assert again.table.get(key) == known
    assert again.table.get(b"\x01" * 64) is None
    assert kept.root.hex() not in repr(kept)
    (tmp_path / "sealing").chmod(0o640)
    with refused(StateDamaged, "sealing.mode"):
        kept_in(tmp_path, DRAW)


def test_a_table_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed_root, "MAX_INSTANCES", 1)
    table = FileTable(tmp_path / "sealing", bytes(32), {})
    table.put(bytes(64), Known(1))
    table.put(bytes(64), Known(2))
    with pytest.raises(SealRefused) as caught:
        table.put(b"\x01" * 64, Known(1))
    assert caught.value.rule == "seal.table-full"


def test_a_table_that_can_not_be_written(tmp_path: Path) -> None:
    table = FileTable(tmp_path / "none" / "sealing", bytes(32), {})
    with pytest.raises(SealUnavailable) as caught:
        table.put(bytes(64), Known(1))
    assert caught.value.rule == "seal.disk"
    assert table.get(bytes(64)) is None
