"""What opens again and what never does: on a pretended TPM, and the same on a real one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from attestation.errors import SealFormatError
from attestation.seal.tpm2 import NV_INDEX, Tpm2Sealer
from attestation.seal.tpm2_blob import Blob
from attestation.seal.tpm2_folder import PIN
from attestation.seal.tpm2_policy import policy, public_start
from tests.attestation.seal.conformance import refused
from tests.attestation.seal.machines import (
    Died,
    Dying,
    FakeMachine,
    FakeTpm,
    Machine,
    NoDevice,
    sealer,
)


def file(folder: Path, name: str = "node") -> Path:
    return folder / f"{name}.sealed"


def value(folder: Path) -> int:
    return Blob.parse(file(folder).read_bytes()).header.counter


def test_survives_a_restart_of_the_tpm(machine: Machine, folder: Path) -> None:
    sealer(machine.device, folder).seal("node", b"kept")
    machine.restart()
    again = sealer(machine.device, folder)
    assert again.unseal("node") == b"kept"
    again.seal("node", b"newer")
    again.close()
    machine.restart()
    assert sealer(machine.device, folder).unseal("node") == b"newer"


@pytest.mark.parametrize("pcr", [7, 11])
def test_another_state_of_the_machine(machine: Machine, folder: Path, pcr: int) -> None:
    ours = sealer(machine.device, folder)
    ours.seal("node", b"for that state")
    machine.extend(pcr)
    with refused("seal.pcr"):
        ours.unseal("node")
    machine.restart()
    assert ours.unseal("node") == b"for that state"


def test_a_new_image_can_seal_anew(machine: Machine, folder: Path) -> None:
    sealer(machine.device, folder).seal("node", b"of the old image")
    machine.extend(11)
    new = sealer(machine.device, folder)
    new.seal("node", b"of the new image")
    assert new.unseal("node") == b"of the new image"
    new.close()
    machine.restart()
    with refused("seal.pcr"):
        sealer(machine.device, folder).unseal("node")


def test_other_registers_are_nobodys_business(machine: Machine, folder: Path) -> None:
    ours = sealer(machine.device, folder)
    ours.seal("node", b"data")
    machine.extend(12)
    assert ours.unseal("node") == b"data"


def test_an_old_file_after_a_newer_one(machine: Machine, folder: Path) -> None:
    ours = sealer(machine.device, folder)
    ours.seal("node", b"old")
    old = file(folder).read_bytes()
    ours.seal("node", b"new")
    new = file(folder).read_bytes()
    file(folder).write_bytes(old)
    for who in (ours, sealer(machine.device, folder)):
        with refused("seal.rollback"):
            who.unseal("node")
        who.close()
    file(folder).write_bytes(new)
    assert ours.unseal("node") == b"new"


def test_an_old_file_that_claims_to_be_new(machine: Machine, folder: Path) -> None:
    ours = sealer(machine.device, folder)
    ours.seal("node", b"old")
    old = file(folder).read_bytes()
    first = value(folder)
    ours.seal("node", b"new")
    at = old.index(first.to_bytes(8, "big"))
    file(folder).write_bytes(old[:at] + value(folder).to_bytes(8, "big") + old[at + 8 :])
    with refused("seal.policy", SealFormatError):
        ours.unseal("node")


def test_sealing_under_one_name_leaves_the_others(machine: Machine, folder: Path) -> None:
    ours = sealer(machine.device, folder)
    ours.seal("node", b"node")
    for _ in range(3):
        ours.seal("a", b"a")
    assert ours.unseal("node") == b"node"


# A process that dies at any moment.
def test_dies_between_file_and_counter(machine: Machine, folder: Path) -> None:
    sealer(machine.device, folder).seal("node", b"old")
    before = value(folder)
    with pytest.raises(Died):
        sealer(Dying(machine.device, "increment"), folder).seal("node", b"new")
    assert value(folder) == before + 1
    # The count is finished before the data is given out: now the old file is old.
    assert sealer(machine.device, folder).unseal("node") == b"new"
    assert sealer(machine.device, folder).unseal("node") == b"new"


def test_who_only_writes_files_cannot_make_it_count(machine: Machine, folder: Path) -> None:
    """A file that claims the next value, all in order but for what only the TPM can make."""
    ours = sealer(machine.device, folder)
    ours.seal("node", b"data")
    good = file(folder).read_bytes()
    blob = Blob.parse(good)
    header = blob.header
    following = policy(header.pcrs, header.pcr_digest, header.index, header.counter + 1)
    public = public_start(following) + header.public[-34:]
    forged = replace(header, counter=header.counter + 1, public=public)
    file(folder).write_bytes(replace(blob, header=forged).encode())
    with refused("seal.integrity", SealFormatError):
        ours.unseal("node")
    file(folder).write_bytes(good)
    assert ours.unseal("node") == b"data"


@pytest.mark.parametrize("step", ["counter", "pcr_digest", "create"])
def test_dies_before_the_file(machine: Machine, folder: Path, step: str) -> None:
    sealer(machine.device, folder).seal("node", b"old")
    with pytest.raises(Died):
        sealer(Dying(machine.device, step), folder).seal("node", b"new")
    assert sealer(machine.device, folder).unseal("node") == b"old"


def test_dies_while_it_writes(machine: Machine, folder: Path) -> None:
    sealer(machine.device, folder).seal("node", b"old")
    (folder / ".node.sealed.new").write_bytes(b"half")
    ours = sealer(machine.device, folder)
    assert ours.unseal("node") == b"old"
    ours.seal("node", b"new")
    assert ours.unseal("node") == b"new"
    assert sorted(p.name for p in folder.iterdir()) == ["node.sealed", PIN]


@pytest.mark.parametrize("same_process", [False, True])
def test_a_file_from_a_dead_process_is_no_second_truth(
    machine: Machine, folder: Path, same_process: bool
) -> None:
    """Somebody keeps a file whose sealing never finished, and shows it after the next sealing."""
    sealer(machine.device, folder).seal("node", b"first")
    first = file(folder).read_bytes()
    dying = sealer(Dying(machine.device, "increment"), folder)
    with pytest.raises(Died):
        dying.seal("node", b"never finished")
    hidden = file(folder).read_bytes()
    file(folder).write_bytes(first)
    if same_process:
        # The sealer that failed goes on.
        after = dying
        dying._device = machine.device
    else:
        dying.close()
        after = sealer(machine.device, folder)
    assert after.unseal("node") == b"first"
    after.seal("node", b"second")
    second = file(folder).read_bytes()
    file(folder).write_bytes(hidden)
    with refused("seal.rollback"):
        after.unseal("node")
    file(folder).write_bytes(second)
    assert after.unseal("node") == b"second"


def test_counts_once_per_sealing(machine: Machine, folder: Path) -> None:
    ours = sealer(machine.device, folder)
    values = []
    for _ in range(3):
        ours.seal("node", b"")
        values.append(value(folder))
        ours.unseal("node")
    assert values == list(range(values[0], values[0] + 3))
    ours.close()
    # Not sure of what was before, a new process counts twice at first.
    again = sealer(machine.device, folder)
    again.seal("node", b"")
    assert value(folder) == values[2] + 2
    again.seal("node", b"")
    assert value(folder) == values[2] + 3


# What can happen to the counter.
def test_counter_gone(machine: Machine, folder: Path) -> None:
    ours = sealer(machine.device, folder)
    ours.seal("node", b"old")
    machine.undefine(NV_INDEX)
    with refused("seal.counter-missing"):
        ours.unseal("node")


def test_counter_made_again_goes_on_above(machine: Machine, folder: Path) -> None:
    """The data is lost; new data is safe from the old file."""
    ours = sealer(machine.device, folder)
    ours.seal("node", b"old")
    old, before = file(folder).read_bytes(), value(folder)
    machine.undefine(NV_INDEX)
    ours.seal("node", b"new")
    assert value(folder) > before
    assert ours.unseal("node") == b"new"
    file(folder).write_bytes(old)
    with refused("seal.rollback"):
        ours.unseal("node")


def test_something_else_at_the_counters_place(folder: Path, swtpm: Machine) -> None:
    swtpm.occupy(NV_INDEX)
    ours = sealer(swtpm.device, folder)
    with refused("seal.counter-foreign"):
        ours.seal("node", b"data")
    ours.seal("a", b"has a place of its own")
    assert swtpm.loaded() == 0


# Another TPM.
def test_tpm_cleared(machine: Machine, folder: Path) -> None:
    ours = sealer(machine.device, folder)
    ours.seal("node", b"old")
    machine.clear()
    with refused("seal.tpm-cleared"):
        ours.unseal("node")
    with refused("seal.tpm-cleared"):
        ours.seal("node", b"new")
    ours.close()
    shutil.rmtree(folder)
    ours.seal("node", b"new")
    assert ours.unseal("node") == b"new"


def test_another_tpm(folder: Path) -> None:
    machine = FakeMachine()
    ours = sealer(machine, folder)
    ours.seal("node", b"data")
    machine.tpm = FakeTpm()
    for attempt in (lambda: ours.unseal("node"), lambda: ours.seal("node", b"")):
        with refused("seal.srk-name"):
            attempt()


def test_a_locked_endorsement_hierarchy_only_costs_the_better_diagnosis(folder: Path) -> None:
    machine = FakeMachine(FakeTpm(ek=None))
    ours = sealer(machine, folder)
    ours.seal("node", b"data")
    assert ours.unseal("node") == b"data"
    machine.clear()
    with refused("seal.srk-name"):
        ours.unseal("node")


def test_srk_named_by_the_operator(machine: Machine, folder: Path) -> None:
    with machine.device.connect() as tpm:
        name = tpm.srk_name
    sealer(machine.device, folder, srk_name=name).seal("node", b"data")
    (folder / PIN).unlink()
    assert sealer(machine.device, folder, srk_name=name).unseal("node") == b"data"
    for first in (folder, folder.with_name("new")):
        with refused("seal.srk-name"):
            sealer(machine.device, first, srk_name=b"\0\x0b" + bytes(32)).seal("node", b"")


def test_a_removed_record_is_not_made_again_over_data(machine: Machine, folder: Path) -> None:
    sealer(machine.device, folder).seal("node", b"data")
    (folder / PIN).unlink()
    ours = sealer(machine.device, folder)
    for attempt in (lambda: ours.unseal("node"), lambda: ours.seal("node", b"")):
        with refused("seal.pin-missing"):
            attempt()


def test_reading_records_nothing(machine: Machine, folder: Path) -> None:
    with refused("seal.absent"):
        sealer(machine.device, folder).unseal("node")
    assert list(folder.iterdir()) == []


# A host that owns the TPM.
def test_a_host_that_puts_the_tpm_back(machine: Machine, folder: Path) -> None:
    ours = sealer(machine.device, folder)
    ours.seal("node", b"old")
    restore = machine.saved()
    ours.seal("node", b"newer")
    ours.seal("node", b"newest")
    restore()
    with refused("seal.tpm-rolled-back"):
        ours.unseal("node")


def test_a_host_that_puts_everything_back_is_not_noticed(machine: Machine, folder: Path) -> None:
    """Why a vTPM of the host protects nothing from it; this is a limit, not a promise."""
    ours = sealer(machine.device, folder)
    ours.seal("node", b"old")
    restore, old = machine.saved(), file(folder).read_bytes()
    ours.seal("node", b"new")
    restore()
    file(folder).write_bytes(old)
    assert ours.unseal("node") == b"old"


# The gate.
def test_gate(machine: Machine, folder: Path) -> None:
    ours = sealer(machine.device, folder)
    ours.seal("node", b"one")
    ours.close_gate()
    with refused("seal.pcr"):
        ours.unseal("node")
    ours.close_gate()
    ours.seal("node", b"two")
    ours.close()
    again = sealer(machine.device, folder)
    with refused("seal.pcr"):
        again.unseal("node")
    machine.restart()
    assert again.unseal("node") == b"two"


# Files.
def test_damage_by_its_place(machine: Machine, folder: Path) -> None:
    ours = sealer(machine.device, folder)
    ours.seal("node", b"data")
    good = file(folder).read_bytes()
    header = Blob.parse(good).header
    size = len(header.encode())
    places = {
        0: "seal.version",
        good.index(header.pcr_digest): "seal.policy",
        good.index(header.public) + 9: "seal.policy",
        good.index(header.public) + len(header.public) - 1: "seal.integrity",
        good.index(header.private) + 40: "seal.integrity",
        size: "seal.tag",
        size + 16: "seal.tag",
        len(good) - 1: "seal.tag",
    }
    for at, rule in places.items():
        file(folder).write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with refused(rule, SealFormatError):
            ours.unseal("node")
    file(folder).write_bytes(good[:-1])
    with refused("seal.cut", SealFormatError):
        ours.unseal("node")
    file(folder).write_bytes(good)
    assert ours.unseal("node") == b"data"
    assert machine.loaded() == 0


def test_a_file_under_another_name(machine: Machine, folder: Path) -> None:
    ours = sealer(machine.device, folder)
    ours.seal("node", b"data")
    shutil.copy(file(folder), file(folder, "a"))
    with refused("seal.other-name"):
        ours.unseal("a")


def test_other_settings_than_it_was_sealed_with(machine: Machine, folder: Path) -> None:
    sealer(machine.device, folder).seal("node", b"data")
    others = (
        ("seal.other-pcrs", sealer(machine.device, folder, pcrs="sha256:7")),
        ("seal.other-counter", sealer(machine.device, folder, names=("a", "node"))),
    )
    for rule, who in others:
        with refused(rule):
            who.unseal("node")
        who.close()


def test_one_sealer_at_a_time(folder: Path) -> None:
    """What it knows of the counters is true only while nobody else seals."""
    machine = FakeMachine()
    ours, other = sealer(machine, folder), sealer(machine, folder)
    ours.seal("node", b"data")
    with refused("seal.in-use"):
        other.unseal("node")
    ours.close()
    ours.close()
    assert other.unseal("node") == b"data"
    with refused("seal.in-use"):
        ours.unseal("node")


# Settings.
@pytest.mark.parametrize("names", [(), ("a", "a"), tuple("abcdefghi")])
def test_names(folder: Path, names: tuple[str, ...]) -> None:
    with refused("seal.names"):
        sealer(NoDevice(), folder, names=names)


def test_names_are_names(folder: Path) -> None:
    with refused("seal.name"):
        sealer(NoDevice(), folder, names=("A",))
    with refused("seal.name"):
        sealer(NoDevice(), folder).unseal("unknown")


def test_twenty_sealings_leave_nothing_in_the_tpm(swtpm: Machine, folder: Path) -> None:
    ours = sealer(swtpm.device, folder)
    for number in range(20):
        ours.seal("node", b"%d" % number)
        assert ours.unseal("node") == b"%d" % number
    assert swtpm.loaded() == 0


def test_shows_no_secret(folder: Path) -> None:
    machine = FakeMachine()
    ours = sealer(machine, folder)
    ours.seal("node", b"hunter2")
    blob = Blob.parse(file(folder).read_bytes())
    assert isinstance(ours, Tpm2Sealer)
    assert blob.header.private.hex() not in repr(blob)
    assert repr(blob.header.private) not in repr(blob)
