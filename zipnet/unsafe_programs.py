"""Programs on a host as a software TEE measures them: by the name that they give themselves.

Nothing here proves anything to anyone who doesn't trust the holder of the TEE's seed. Production
images don't hold this module.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from attestation.measure.firmware import Model
from attestation.measure.record import Binding, BootProof, Measurement
from attestation.measure.rtmr import BootPath
from attestation.measure.tdvf import HostProfile
from attestation.providers.mock import MockTee


@dataclass(frozen=True, slots=True)
class Program:
    """A program as a software TEE measures it: three registers from its name."""

    name: str
    role: str

    @property
    def measurement(self) -> Measurement:
        """The entry of a list that accepts it."""
        return Measurement(
            role=self.role,
            binding=Binding.PROCESS,
            host_profile=HostProfile.UPSTREAM,
            boot_path=BootPath.KERNEL,
            mr_td=self._register("mr_td"),
            rtmr1=self._register("rtmr1"),
            rtmr2=self._register("rtmr2"),
            is_dev=True,
            boot_proof=BootProof.SKIPPED,
            model=Model.UNCONFIRMED,
            firmware_sha256=bytes(32),
            uki_sha256=bytes(32),
        )

    def _register(self, which: str) -> bytes:
        return hashlib.sha384(f"zipnet program {self.name} {which}".encode()).digest()


@dataclass(frozen=True, slots=True)
class ProgramQuotes:
    """The quoting service of a software TEE, for one program under one configuration."""

    tee: MockTee
    program: Program
    mr_config_id: bytes

    def quote(self, report_data: bytes) -> bytes:
        """A quote of the program. Raises ProviderFailed unless given 64 bytes."""
        measured = self.program.measurement
        registers: dict[str, bytes | int] = {
            "mr_td": measured.mr_td,
            "rtmr1": measured.rtmr1,
            "rtmr2": measured.rtmr2,
            "mr_config_id": self.mr_config_id,
        }
        return self.tee.quote(report_data, body=registers)


def default_program(role: str) -> Program:
    """The program that a role is where it is given no other name."""
    return Program(f"zipnet {role}", role)
