"""A sealer on a TPM 2.0: data opens on this TPM, in this state, and only while it is the newest.

Each name has a file and an NV counter. To seal at value v + 1 of a counter at v: a fresh key goes
into a TPM object whose policy is "these PCRs, and the counter is v + 1", the data under that key
into the file, and then the counter moves. So from one step to the next either the old file opens
or the new one does, and a file from before never does again.

For bare hosts, and for TPMs of a paravisor whose quote was checked. **A vTPM that the host runs
protects nothing from that host**, inside TDX as elsewhere: with its state folder the host restores
every counter and reads every key.

After an image change the PCRs differ and the data is gone, by design: its owner draws new keys.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from attestation.errors import SealFormatError, SealRefused
from attestation.seal.base import absent, check_data, check_name
from attestation.seal.tpm2_blob import KEY, Blob, Header
from attestation.seal.tpm2_device import NV, NV_UNINITIALIZED, Device, Tpm, refusal
from attestation.seal.tpm2_folder import PIN, Folder, Pin
from attestation.seal.tpm2_policy import DIGEST, Pcrs, policy, public_start

# PCR 7 holds the Secure Boot policy, 11 the unified kernel image (systemd-stub).
PCRS = "sha256:7,11"
NV_INDEX = 0x01500A01
MAX_NAMES = 8
DEVICE = "device:/dev/tpmrm0"
_GATE = hashlib.sha256(b"attestation seal gate 1").digest()


class Tpm2Sealer:
    """Sealed files in `folder`, which is this object's from its first use until `close`.

    Not for two threads at once. No secret is kept in this object.

    `names` are all names that this sealer takes, at most MAX_NAMES: the n-th has its counter at
    `nv_index` + n, so their order must never change. `pcrs` is as `sha256:7,11`. `srk_name` is the
    Name (34 bytes) that the TPM's storage root key must have; without it the first use records it
    in the folder, which helps only as long as nobody else can remove files there.

    Raises SealRefused, rules `seal.name`, `seal.names` and `seal.pcr-selection`.
    """

    __slots__ = (
        *("_counted", "_device", "_folder", "_gate", "_held", "_indices", "_lock", "_pcrs"),
        *("_srk_name",),
    )

    def __init__(
        self,
        folder: Folder,
        device: Device,
        names: tuple[str, ...],
        *,
        pcrs: str = PCRS,
        srk_name: bytes | None = None,
        nv_index: int = NV_INDEX,
    ) -> None:
        for name in names:
            check_name(name)
        if not 0 < len(set(names)) == len(names) <= MAX_NAMES:
            raise SealRefused(
                "a sealer has a few names, each once",
                expected=f"1 to {MAX_NAMES} different names",
                got=", ".join(names) or "none",
                rule="seal.names",
            )
        self._folder = folder
        self._device = device
        self._indices = {name: nv_index + n for n, name in enumerate(names)}
        self._pcrs = Pcrs.parse(pcrs)
        self._srk_name = srk_name
        # The values to which this object has itself moved the counters.
        self._counted: dict[str, int] = {}
        self._gate: bytes | None = None
        self._lock = ExitStack()
        self._held = False

    def close(self) -> None:
        """Let another sealer have the folder; twice is once."""
        self._held = False
        self._counted.clear()
        self._lock.close()

    @classmethod
    def open(
        cls,
        folder: Path,
        names: tuple[str, ...],
        *,
        tcti: str = DEVICE,
        pcrs: str = PCRS,
        srk_name: bytes | None = None,
        nv_index: int = NV_INDEX,
    ) -> Self:
        """A sealer on the TPM that a TCTI names, as `device:/dev/tpmrm0` (see tss2-tctildr).

        Raises SealUnavailable, rule `seal.tpm2-library`, without the extra `tpm`.
        """
        from attestation.seal._esys import Esys  # noqa: PLC0415 - needs a library that few have

        device = Esys(tcti)
        return cls(Folder(folder), device, names, pcrs=pcrs, srk_name=srk_name, nv_index=nv_index)

    def seal(self, name: str, data: bytes) -> None:
        """As `Sealer.seal`: on disk and counted when this returns.

        Tens of milliseconds and one count of the TPM (twice that at the first time for each name);
        counters wear, so seal per epoch, not per message.
        """
        check_data(data)
        index = self._index(name)
        with self._talking(first=True) as tpm:
            counter = tpm.counter(index)
            if counter is None:
                counter = self._counted[name] = tpm.define_counter(index)
            # A process that died between file and counter may have left a file for the next value
            # that somebody kept. That value is passed over, as only who moved the counter here
            # knows that no such file exists.
            passes = 1 if self._counted.pop(name, None) == counter else 2
            pcr_digest = self._gate or tpm.pcr_digest(self._pcrs)
            for value in range(counter + 1, counter + 1 + passes):
                blob = self._encrypted(tpm, name, value, pcr_digest, data)
                self._folder.write_blob(name, blob.encode())
                tpm.increment(index)
            self._counted[name] = counter + passes

    def unseal(self, name: str) -> bytes:
        """As `Sealer.unseal`.

        Raises SealRefused, by rule: `seal.pcr` (another state of the machine), `seal.rollback` (an
        old file), `seal.tpm-rolled-back` (an old TPM), `seal.srk-name` (another TPM, or something
        on the bus), `seal.tpm-cleared`, `seal.counter-missing`, `seal.bus`, `seal.absent`;
        SealFormatError for a damaged file; SealUnavailable.
        """
        index = self._index(name)
        with self._talking(first=False) as tpm:
            raw = self._folder.blob(name)
            if raw is None:
                raise absent(name)
            blob = Blob.parse(raw)
            header = blob.header
            self._check_header(header, name, index)
            counter = tpm.counter(index)
            _check_counter(header, counter)
            count = header.counter != counter
            key = tpm.open(
                *(header.public, header.private, header.pcrs, header.pcr_digest),
                *(index, header.counter),
                count=count,
            )
            if count:
                self._counted[name] = header.counter
            return blob.decrypt(key)

    def close_gate(self) -> None:
        """Extend the last of the PCRs: nothing opens again before the next boot; sealing goes on.

        For use once everything is unsealed; what comes into the machine later finds it shut. That
        goes for this program too: started again in the same boot it can't unseal, and what it
        seals then opens in no boot.
        """
        with self._talking(first=True) as tpm:
            # What is sealed from now on is for the state that the next boot comes to.
            before = self._gate or tpm.pcr_digest(self._pcrs)
            tpm.extend(self._pcrs.numbers[-1], _GATE)
            self._gate = before

    def _encrypted(self, tpm: Tpm, name: str, value: int, pcr_digest: bytes, data: bytes) -> Blob:
        key, index = secrets.token_bytes(KEY), self._indices[name]
        public, private = tpm.create(key, policy(self._pcrs, pcr_digest, index, value))
        header = Header(name, index, value, self._pcrs, pcr_digest, public, private)
        return Blob.encrypt(header, key, data)

    def _index(self, name: str) -> int:
        check_name(name)
        index = self._indices.get(name)
        if index is None:
            raise SealRefused(
                "this sealer has no counter for that name",
                expected=", ".join(self._indices),
                got=name,
                rule="seal.name",
            )
        return index

    @contextmanager
    def _talking(self, *, first: bool) -> Iterator[Tpm]:
        """The folder for this sealer alone, and its TPM: that one and no other."""
        if not self._held:
            # Until `close`: `_counted` is true only of a folder that nobody else writes to.
            self._lock.enter_context(self._folder.locked())
            self._held = True
        with self._device.connect() as tpm:
            pin = self._folder.pin()
            expected = self._srk_name or (pin.srk if pin else None)
            if expected is None and self._folder.has_blobs():
                raise SealRefused(
                    "which TPM the data was sealed with is not known",
                    expected=f"the file {PIN} beside it",
                    rule="seal.pin-missing",
                    hint="restore the file, or pass the SRK's Name yourself",
                )
            _check_srk(tpm, expected, pin)
            if pin is None and first:
                self._folder.write_pin(Pin(tpm.srk_name, tpm.ek_name()))
            yield tpm

    def _check_header(self, header: Header, name: str, index: int) -> None:
        for rule, expected, got in (
            ("seal.other-name", name, header.name),
            ("seal.other-counter", f"{index:#x}", f"{header.index:#x}"),
            ("seal.other-pcrs", str(self._pcrs), str(header.pcrs)),
        ):
            if expected != got:
                raise SealRefused(
                    "the data was sealed for another purpose",
                    expected=expected,
                    got=got,
                    rule=rule,
                    hint="use the settings that it was sealed with, or seal anew",
                )
        start = public_start(policy(header.pcrs, header.pcr_digest, index, header.counter))
        unique = DIGEST.to_bytes(2, "big")
        if header.public[:-DIGEST] != start + unique:
            raise SealFormatError(
                "the sealed key has another policy than the file claims",
                expected=start.hex(),
                got=header.public[: len(start)].hex(),
                rule="seal.policy",
                hint="the file was changed: restore it, or seal anew",
            )


def _check_srk(tpm: Tpm, expected: bytes | None, pin: Pin | None) -> None:
    got = tpm.srk_name
    if expected is None or got == expected:
        return
    if pin is not None and pin.srk == expected and pin.ek is not None and pin.ek == tpm.ek_name():
        raise SealRefused(
            "the TPM was cleared since the data was sealed",
            expected=expected.hex(),
            got=got.hex(),
            rule="seal.tpm-cleared",
            hint=f"the data can't be had back: remove the folder with {PIN}, and draw new keys",
        )
    raise SealRefused(
        "this is not the TPM that the data was sealed with",
        expected=expected.hex(),
        got=got.hex(),
        rule="seal.srk-name",
        hint="another machine or mainboard, or something sits between this machine and its TPM",
    )


def _check_counter(header: Header, counter: int | None) -> None:
    """The counter is where the file needs it, or one before: then the process that sealed died."""
    if counter is None:
        raise refusal(NV, NV_UNINITIALIZED)
    if header.counter < counter:
        raise SealRefused(
            "the file is older than what was sealed last",
            expected=f"counter {counter}",
            got=f"counter {header.counter}",
            rule="seal.rollback",
            hint="restore the newest file, or seal anew; see who put back an old one",
        )
    if header.counter > counter + 1:
        raise SealRefused(
            "the TPM is older than the file: its counter went back",
            expected=f"counter {header.counter} or one before",
            got=f"counter {counter}",
            rule="seal.tpm-rolled-back",
            hint="a vTPM whose host restored its state protects nothing: don't use it",
        )
