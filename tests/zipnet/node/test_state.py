"""A node's own record: what it says before it acts, and who may read it."""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.bundle import Role
from tests.zipnet.protocol.support import INSTANCE, OTHER_INSTANCE, h, refused
from zipnet.errors import GuardRefused, StateDamaged, WireFormatError
from zipnet.network.group import Tip
from zipnet.node.slots import TwoSlots
from zipnet.node.state import MAX_RECORD, SLOT_BYTES, VERSION, NodeRecord, UnsafePlainState
from zipnet.protocol.guards import ClientGuard, ServerGuard, seal_once, sign_header_once
from zipnet.protocol.instance import Instance

ROOT = Path(__file__).resolve().parents[3]
KILLS = 8
hashes = st.binary(min_size=32, max_size=32)
numbers = st.integers(0, (1 << 63) - 1)
RECORD = NodeRecord(Role.SERVER, INSTANCE.binding, h("signing"), h("dh"), 3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


def opened(path: Path, role: Role = Role.SERVER, instance: Instance = INSTANCE) -> UnsafePlainState:
    return UnsafePlainState.open(path, role, instance, secrets.token_bytes)


@pytest.fixture
def state(path: Path) -> Iterator[UnsafePlainState]:
    made = opened(path)
    yield made
    made.close()


@given(st.sampled_from(Role), hashes, hashes, hashes, numbers, numbers, hashes, st.booleans())
def test_records_round_trip(
    role: Role,
    binding: bytes,
    signing: bytes,
    dh: bytes,
    boot: int,
    seq: int,
    head: bytes,
    guarded: bool,
) -> None:
    guards = {
        Role.SERVER: ServerGuard(binding, 3).encode(),
        Role.CLIENT: ClientGuard(binding, 3).encode(),
    }
    guard = guards.get(role, b"") if guarded else b""
    record = NodeRecord(role, binding, signing, dh, boot, Tip(seq, head), guard)
    raw = record.encode()
    assert NodeRecord.decode(raw) == record
    assert len(raw) <= MAX_RECORD
    assert raw.startswith(VERSION + bytes([role]) + binding + signing + dh)
    with refused(WireFormatError, "node-state.trailing"):
        NodeRecord.decode(raw + b"\0")
    with refused(WireFormatError, "node-state.truncated"):
        NodeRecord.decode(raw[:-1])


def test_secrets_are_not_shown() -> None:
    assert h("signing").hex() not in repr(RECORD)
    assert repr(h("dh")) not in repr(RECORD)


@pytest.mark.parametrize(
    ("role", "guard"),
    [
        (Role.SERVER, ServerGuard(OTHER_INSTANCE.binding).encode()),
        (Role.CLIENT, ClientGuard(OTHER_INSTANCE.binding).encode()),
        (Role.AGGREGATOR, ClientGuard(INSTANCE.binding).encode()),
    ],
)
def test_guards_of_another_kind(role: Role, guard: bytes) -> None:
    with pytest.raises(WireFormatError) as caught:
        replace(RECORD, role=role, guard=guard)
    assert caught.value.rule == "node-state.guard"


def test_a_guard_of_another_role() -> None:
    with refused(WireFormatError, "server-guard.version"):
        replace(RECORD, guard=ClientGuard(INSTANCE.binding).encode())


def test_an_identity_lasts(path: Path) -> None:
    first = opened(path)
    peer, dh_pub = first.identity.peer, first.identity.dh_pub
    assert (first.boot_epoch, first.tip, first.server_guard) == (1, Tip(), None)
    first.close()
    for boot in (2, 3):
        again = opened(path)
        assert (again.boot_epoch, again.identity.peer) == (boot, peer)
        assert again.identity.dh_pub == dh_pub
        again.close()


def test_an_identity_goes_into_the_next_generation(path: Path) -> None:
    new = Instance(INSTANCE.deployment_id, h("next"))

    def moved(old: Instance = INSTANCE, into: Instance = new) -> UnsafePlainState:
        return UnsafePlainState.next_generation(path, Role.SERVER, old, into)

    first = opened(path)
    first.seen(Tip(5, h("head 5")))
    sign_header_once(ServerGuard(INSTANCE.binding), 1, h("header"), first)
    peer = first.identity.peer
    first.close()
    with refused(StateDamaged, "state.instance"):
        moved(OTHER_INSTANCE)
    with refused(StateDamaged, "state.instance"):
        moved(INSTANCE, Instance(h("another"), new.generation))
    # Also by who does not know that it was done.
    for boot in (2, 3):
        after = moved()
        assert (after.identity.peer, after.boot_epoch) == (peer, boot)
        if boot == 2:
            assert (after.tip, after.server_guard) == (Tip(), None)
        guard, _ = sign_header_once(ServerGuard(new.binding), boot, h("header"), after)
        after.close()
    again = opened(path, instance=new)
    assert again.server_guard == guard
    again.close()
    with refused(StateDamaged, "state.instance"):
        opened(path)


def test_a_guard_brings_the_tip_of_its_moment(path: Path) -> None:
    state = opened(path)
    state.seen(Tip(5, h("head 5")))
    guard, _ = sign_header_once(ServerGuard(INSTANCE.binding), 1, h("header"), state)
    state.seen(Tip(9, h("head 9")))
    state.close()
    again = opened(path)
    assert (again.tip, again.server_guard) == (Tip(5, h("head 5")), guard)
    # A replay from the log's start is no news, also where a guard is written in it.
    again.seen(Tip(2, h("head 2")))
    sign_header_once(guard, 2, h("header 2"), again)
    again.close()
    last = opened(path)
    assert last.tip == Tip(5, h("head 5"))
    last.close()


def test_a_client_does_not_seal_twice_over_a_restart(path: Path) -> None:
    state = opened(path, Role.CLIENT)
    assert state.client_guard is None
    seal_once(ClientGuard(INSTANCE.binding), 4, h("header"), b"envelope", state)
    state.close()
    again = opened(path, Role.CLIENT)
    guard = again.client_guard
    assert guard is not None
    with refused(GuardRefused, "sealed"):
        seal_once(guard, 4, h("header"), b"another", again)
    assert seal_once(guard, 4, h("header"), b"envelope", again)[1] == b"envelope"
    again.close()


def test_the_file_is_for_its_owner(path: Path, state: UnsafePlainState) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o666])
def test_a_file_that_others_may_touch(path: Path, mode: int) -> None:
    opened(path).close()
    path.chmod(mode)
    with refused(StateDamaged, "state.mode"):
        opened(path)
    path.chmod(0o600)
    opened(path).close()


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    opened(elsewhere).close()
    path.symlink_to(elsewhere)
    with refused(StateDamaged, "state.open"):
        opened(path)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with refused(StateDamaged, "state.open"):
        opened(tmp_path / "nowhere" / "state")


@pytest.mark.parametrize(
    ("role", "instance", "rule"),
    [(Role.CLIENT, INSTANCE, "state.role"), (Role.SERVER, OTHER_INSTANCE, "state.instance")],
)
def test_the_state_of_another(path: Path, role: Role, instance: Instance, rule: str) -> None:
    opened(path).close()
    before = path.read_bytes()
    with refused(StateDamaged, rule):
        opened(path, role, instance)
    assert path.read_bytes() == before


def test_a_record_of_another_version(path: Path) -> None:
    slots = TwoSlots(path, SLOT_BYTES)
    slots.read()
    slots.write(b"zipnet node state 2\n" + RECORD.encode()[len(VERSION) :])
    slots.close()
    with refused(StateDamaged, "state.version"):
        opened(path)


def test_a_damaged_record(path: Path) -> None:
    opened(path).close()
    opened(path).close()
    path.write_bytes(b"zipnet slot" + path.read_bytes()[11:].replace(b"node state", b"node-state"))
    with refused(StateDamaged, "slots.damaged"):
        opened(path)


def test_one_at_a_time_in_a_process(path: Path, state: UnsafePlainState) -> None:
    with refused(StateDamaged, "state.in-use"):
        opened(path)
    # The attempt has not let go of the lock of the first, as closing does with locks of a process.
    with refused(StateDamaged, "state.in-use"):
        opened(path)


def test_what_is_not_durable_is_not_said(path: Path) -> None:
    broken = False

    def sync(descriptor: int) -> None:
        if broken:
            raise OSError(5, "Input/output error")
        os.fsync(descriptor)

    state = UnsafePlainState.open(path, Role.SERVER, INSTANCE, secrets.token_bytes, sync)
    guard, _ = sign_header_once(ServerGuard(INSTANCE.binding), 1, h("header 1"), state)
    broken = True
    with pytest.raises(OSError, match="Input/output"):
        sign_header_once(guard, 2, h("header 2"), state)
    assert state.server_guard == guard
    broken = False
    # The same question again: the guard in memory still lets it, and now it is written.
    guard, _ = sign_header_once(guard, 2, h("header 2"), state)
    state.close()
    again = opened(path)
    assert again.server_guard == guard
    again.close()


def test_a_process_that_is_killed_loses_nothing_that_it_said(path: Path) -> None:
    """Eight kills at random moments; the file is locked meanwhile, and free right after."""
    chance = random.Random(5)
    acknowledged, peers = 0, set[str]()
    for boot in range(1, KILLS + 1):
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.zipnet.node.state_child", str(path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        first = child.stdout.readline().split()
        assert first[:2] == [b"boot", b"%d" % boot]
        peers.add(first[2].decode())
        with refused(StateDamaged, "state.in-use"):
            opened(path)
        time.sleep(chance.uniform(0, 0.05))
        child.send_signal(signal.SIGKILL)
        said = child.stdout.read().splitlines(keepends=True)
        assert child.wait() == -signal.SIGKILL
        child.stdout.close()
        rounds = [int(line.split()[1]) for line in said if line.endswith(b"\n")]
        # What the last boot may have written without saying so is the next one's past.
        assert rounds == list(range(rounds[0], rounds[0] + len(rounds))) if rounds else True
        assert not rounds or rounds[0] in (acknowledged + 1, acknowledged + 2)
        acknowledged = rounds[-1] if rounds else acknowledged
        slots = TwoSlots(path, SLOT_BYTES)
        raw = slots.read()
        slots.close()
        assert raw is not None
        record = NodeRecord.decode(raw)
        assert record.boot == boot
        if not record.guard:
            assert acknowledged == 0
            continue
        kept = ServerGuard.decode(record.guard)
        assert kept.round in (acknowledged, acknowledged + 1)
        assert record.tip == Tip(kept.round * 10, h(f"head {kept.round}"))
        acknowledged = kept.round
    assert acknowledged > KILLS
    assert len(peers) == 1
