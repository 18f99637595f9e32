"""What somebody between the machine and its TPM sees, and what comes of altering it.

The TPM is a real one; the tap notes every byte of both directions.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from attestation.errors import SealError
from attestation.seal.tpm2 import Tpm2Sealer
from attestation.seal.tpm2_device import Device
from tests.attestation.seal.machines import Listening, sealer
from tests.attestation.seal.swtpm import Bus, Swtpm

CREATE, UNSEAL, NV_READ, NV_INCREMENT, PCR_READ = 0x153, 0x15E, 0x14E, 0x134, 0x17E


@pytest.fixture
def bus(swtpm: Swtpm) -> Iterator[Bus]:
    with Bus(swtpm).tapped() as bus:
        yield bus


def device(bus: Bus) -> Device:
    from attestation.seal._esys import Esys  # noqa: PLC0415

    return Esys(bus.tcti)


def code(command: bytes) -> int:
    return int.from_bytes(command[6:10], "big")


def test_no_secret_is_on_the_bus(bus: Bus, folder: Path) -> None:
    listening = Listening(device(bus))
    data = secrets.token_bytes(64)
    ours = sealer(listening, folder)
    ours.seal("node", data)
    assert ours.unseal("node") == data
    seen = bus.seen
    # The capture is not empty, and it is of these two.
    codes = [code(command) for command, _ in bus.exchanges]
    assert CREATE in codes
    assert UNSEAL in codes
    assert len(listening.keys) >= 1
    for secret in (*listening.keys, data):
        for part in (secret[:8], secret[8:16], secret[-8:]):
            assert part not in seen
    # Nor on the disk.
    for path in folder.iterdir():
        for secret in (*listening.keys, data):
            assert secret[:8] not in path.read_bytes()
    print(f"{len(bus.exchanges)} exchanges, {len(seen)} bytes, no secret in them")


def test_the_same_capture_sees_what_crosses_in_clear(bus: Bus) -> None:
    """So the test above can fail."""
    import tpm2_pytss as tss  # noqa: PLC0415

    secret = secrets.token_bytes(32)
    with tss.ESAPI(bus.tcti) as context:
        parent, *_ = context.create_primary(tss.TPM2B_SENSITIVE_CREATE(), "ecc256:aes128cfb")
        sensitive = tss.TPMS_SENSITIVE_CREATE(data=tss.TPM2B_SENSITIVE_DATA(secret))
        private, public, *_ = context.create(
            parent, tss.TPM2B_SENSITIVE_CREATE(sensitive=sensitive), policy_object(tss)
        )
        # A TPM that is testing itself has the command repeated.
        sent = bus.seen.count(secret)
        assert sent >= 1
        item = context.load(parent, private, public)
        session = context.start_auth_session(
            tss.ESYS_TR.NONE, tss.ESYS_TR.NONE, tss.TPM2_SE.POLICY, None, tss.TPM2_ALG.SHA256
        )
        context.policy_pcr(session, b"", "sha256:7,11")
        assert bytes(context.unseal(item, session1=session)) == secret
        for handle in (item, session, parent):
            context.flush_context(handle)
    assert bus.seen.count(secret) > sent


def policy_object(tss: Any) -> Any:
    """A sealed object like ours, for the registers alone."""
    from attestation.seal.tpm2_policy import public_start  # noqa: PLC0415

    session_policy = pcr_policy()
    area, _ = tss.TPMT_PUBLIC.unmarshal(public_start(session_policy) + bytes(2))
    return tss.TPM2B_PUBLIC(publicArea=area)


def pcr_policy() -> bytes:
    import hashlib  # noqa: PLC0415

    selection = bytes.fromhex("00000001 000b 03 800800")
    values = hashlib.sha256(bytes(64)).digest()
    return hashlib.sha256(bytes(32) + bytes.fromhex("0000017f") + selection + values).digest()


def flipped(wanted: int, at: int) -> Callable[[bytes, bytes], bytes]:
    """Flip a bit of one command's answer; `at` counts from behind its header and sizes."""

    def alter(command: bytes, answer: bytes) -> bytes:
        if code(command) != wanted:
            return answer
        place = 10 + 4 + at
        return answer[:place] + bytes([answer[place] ^ 1]) + answer[place + 1 :]

    return alter


@pytest.mark.parametrize(
    ("wanted", "at"),
    [(NV_READ, 9), (PCR_READ, 20), (NV_INCREMENT, 10)],
    ids=["counter", "registers", "count"],
)
def test_an_altered_answer(bus: Bus, folder: Path, wanted: int, at: int) -> None:
    ours = sealer(device(bus), folder)
    ours.seal("node", b"data")
    bus.alter = flipped(wanted, at)
    with pytest.raises(SealError) as caught:
        ours.seal("node", b"newer")
    assert caught.value.rule == "seal.bus"


def test_another_tpm_on_the_bus(swtpm: Swtpm, tmp_path: Path, folder: Path) -> None:
    sealer(swtpm.device, folder).seal("node", b"data")
    with Swtpm(tmp_path / "other").powered() as other:
        ours = sealer(other.device, folder)
        for attempt in (lambda: ours.unseal("node"), lambda: ours.seal("node", b"")):
            with pytest.raises(SealError) as caught:
                attempt()
            assert caught.value.rule == "seal.srk-name"
        assert other.loaded() == 0


def test_no_tpm(folder: Path, swtpm: Swtpm) -> None:
    tcti = swtpm.tcti
    swtpm._off()
    for name in (tcti, "device:/dev/there-is-none", "no-such-tcti"):
        with pytest.raises(SealError) as caught:
            Tpm2Sealer.open(folder, ("node",), tcti=name).seal("node", b"")
        assert caught.value.rule == "seal.tpm-connection"
        assert caught.value.exit_code == 3


def test_the_policy_is_the_tpms_own(swtpm: Swtpm) -> None:
    """The digest that we compute is the one that its policy session comes to."""
    import tpm2_pytss as tss  # noqa: PLC0415

    from attestation.seal.tpm2_policy import Pcrs, counter_name, policy  # noqa: PLC0415

    swtpm.extend(7)
    pcrs, index = Pcrs.parse("sha256:0,7,11,23"), 0x01500A05
    with swtpm.device.connect() as tpm:
        value = tpm.define_counter(index)
        digest = tpm.pcr_digest(pcrs)
    with tss.ESAPI(swtpm.tcti) as context:
        counter = context.tr_from_tpmpublic(index)
        assert bytes(context.tr_get_name(counter)) == counter_name(index)
        session = context.start_auth_session(
            tss.ESYS_TR.NONE, tss.ESYS_TR.NONE, tss.TPM2_SE.TRIAL, None, tss.TPM2_ALG.SHA256
        )
        context.policy_pcr(session, b"", str(pcrs))
        operand = value.to_bytes(8, "big")
        context.policy_nv(counter, counter, session, operand, tss.TPM2_EO.EQ)
        got = bytes(context.policy_get_digest(session))
        context.flush_context(session)
    assert got == policy(pcrs, digest, index, value)


def test_owner_password(swtpm: Swtpm, folder: Path) -> None:
    import tpm2_pytss as tss  # noqa: PLC0415

    with tss.ESAPI(swtpm.tcti) as context:
        context.hierarchy_change_auth(tss.ESYS_TR.OWNER, b"password")
    with pytest.raises(SealError) as caught:
        sealer(swtpm.device, folder).seal("node", b"")
    assert caught.value.rule == "seal.owner-auth"
    assert swtpm.loaded() == 0


def test_endorsement_password(swtpm: Swtpm, folder: Path) -> None:
    import tpm2_pytss as tss  # noqa: PLC0415

    with tss.ESAPI(swtpm.tcti) as context:
        context.hierarchy_change_auth(tss.ESYS_TR.ENDORSEMENT, b"password")
    ours = sealer(swtpm.device, folder)
    ours.seal("node", b"data")
    assert ours.unseal("node") == b"data"
    assert (folder / "tpm2.pin").read_text().endswith("\nek -\n")


def test_no_room_in_the_tpm(swtpm: Swtpm, folder: Path) -> None:
    import tpm2_pytss as tss  # noqa: PLC0415

    ours = sealer(swtpm.device, folder)
    ours.seal("node", b"data")
    with tss.ESAPI(swtpm.tcti) as context:
        left = [
            context.create_primary(tss.TPM2B_SENSITIVE_CREATE(), "ecc256:aes128cfb")[0]
            for _ in range(3)
        ]
        with pytest.raises(SealError) as caught:
            ours.unseal("node")
        assert caught.value.rule == "seal.tpm-memory"
        for handle in left:
            context.flush_context(handle)
    assert ours.unseal("node") == b"data"
