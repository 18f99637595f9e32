"""A machine with a TPM, and what can happen to it: pretended in this process, or a real swtpm."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from attestation.errors import SealUnavailable
from attestation.seal import tpm2_device as steps
from attestation.seal.tpm2 import Tpm2Sealer
from attestation.seal.tpm2_device import Device, Tpm, refusal
from attestation.seal.tpm2_folder import Folder
from attestation.seal.tpm2_policy import Pcrs, policy, public_start
from tests.attestation.seal.conformance import NAMES


class Machine(Protocol):
    """A machine whose firmware has started its TPM."""

    @property
    def device(self) -> Device: ...

    def restart(self) -> None:
        """Off and on again: registers start anew, what is in its memory stays."""
        ...

    def extend(self, pcr: int) -> None: ...

    def clear(self) -> None: ...

    def undefine(self, index: int) -> None: ...

    def occupy(self, index: int) -> None:
        """Define an ordinary NV index where a counter could be."""
        ...

    def saved(self) -> Callable[[], None]:
        """What the host of a vTPM can do: keep all of its state now, and put it back later."""
        ...

    def loaded(self) -> int:
        """How many transient objects and sessions are in the TPM."""
        ...


@dataclass
class FakeTpm:
    """A TPM as far as sealing goes. It answers in a TPM's return codes."""

    srk: bytes = field(default_factory=lambda: b"\0\x0b" + secrets.token_bytes(32))
    ek: bytes | None = field(default_factory=lambda: b"\0\x0b" + secrets.token_bytes(32))
    pcrs: dict[int, bytes] = field(default_factory=lambda: dict.fromkeys(range(24), bytes(32)))
    counters: dict[int, int] = field(default_factory=dict)
    highest: int = 0
    occupied: set[int] = field(default_factory=set)
    objects: dict[bytes, tuple[bytes, bytes]] = field(default_factory=dict)
    conversations: int = 0

    @property
    def srk_name(self) -> bytes:
        return self.srk

    def ek_name(self) -> bytes | None:
        return self.ek

    def pcr_digest(self, pcrs: Pcrs) -> bytes:
        return hashlib.sha256(b"".join(self.pcrs[n] for n in pcrs.numbers)).digest()

    def extend(self, pcr: int, digest: bytes) -> None:
        self.pcrs[pcr] = hashlib.sha256(self.pcrs[pcr] + digest).digest()

    def counter(self, index: int) -> int | None:
        return self.counters.get(index)

    def define_counter(self, index: int) -> int:
        if index not in self.counters:
            self.highest += 1
            self.counters[index] = self.highest
        else:
            self.increment(index)
        return self.counters[index]

    def increment(self, index: int) -> None:
        if index not in self.counters:
            raise refusal(steps.NV, 0x18B)
        self.counters[index] += 1
        self.highest = max(self.highest, self.counters[index])

    def create(self, secret: bytes, policy: bytes) -> tuple[bytes, bytes]:
        public = public_start(policy) + b"\0\x20" + secrets.token_bytes(32)
        private = secrets.token_bytes(158)
        self.objects[private] = public, secret
        return public, private

    def open(
        self,
        public: bytes,
        private: bytes,
        pcrs: Pcrs,
        pcr_digest: bytes,
        index: int,
        value: int,
        *,
        count: bool,
    ) -> bytes:
        kept, secret = self.objects.get(private, (b"", b""))
        if kept != public:
            raise refusal(steps.LOAD, 0x1DF)
        if count:
            self.increment(index)
        if pcr_digest != self.pcr_digest(pcrs):
            raise refusal(steps.POLICY_PCR, 0x1C4)
        if self.counters[index] != value:
            raise refusal(steps.POLICY_NV, 0x126)
        if not public.startswith(public_start(policy(pcrs, pcr_digest, index, value))):
            raise refusal(steps.UNSEAL, 0x99D)
        return secret


@dataclass
class FakeMachine:
    tpm: FakeTpm = field(default_factory=FakeTpm)

    @property
    def device(self) -> Device:
        return self

    @contextmanager
    def connect(self) -> Iterator[Tpm]:
        self.tpm.conversations += 1
        try:
            yield self.tpm
        finally:
            self.tpm.conversations -= 1

    def restart(self) -> None:
        self.tpm.pcrs = dict.fromkeys(range(24), bytes(32))

    def extend(self, pcr: int) -> None:
        self.tpm.extend(pcr, bytes(32))

    def clear(self) -> None:
        self.tpm = FakeTpm(ek=self.tpm.ek, pcrs=self.tpm.pcrs)

    def undefine(self, index: int) -> None:
        del self.tpm.counters[index]

    def occupy(self, index: int) -> None:
        raise NotImplementedError

    def saved(self) -> Callable[[], None]:
        kept = deepcopy(self.tpm)

        def restore() -> None:
            self.tpm = kept

        return restore

    def loaded(self) -> int:
        return self.tpm.conversations


@dataclass(frozen=True)
class Dying:
    """A device on which a process dies before one kind of command gets through."""

    device: Device
    step: str

    @contextmanager
    def connect(self) -> Iterator[Tpm]:
        with self.device.connect() as tpm:
            yield cast("Tpm", _DyingTpm(tpm, self.step))


class Died(Exception):
    """The process is gone."""


class _DyingTpm:
    def __init__(self, tpm: Tpm, step: str) -> None:
        self._tpm = tpm
        self._step = step

    def __getattr__(self, name: str) -> object:
        if name == self._step:
            raise Died
        return getattr(self._tpm, name)


@dataclass
class Listening:
    """A device that notes the keys that were sealed."""

    device: Device
    keys: list[bytes] = field(default_factory=list)

    @contextmanager
    def connect(self) -> Iterator[Tpm]:
        with self.device.connect() as tpm:
            yield cast("Tpm", _ListeningTpm(tpm, self.keys))


class _ListeningTpm:
    def __init__(self, tpm: Tpm, keys: list[bytes]) -> None:
        self._tpm = tpm
        self._keys = keys

    def create(self, secret: bytes, policy: bytes) -> tuple[bytes, bytes]:
        self._keys.append(secret)
        return self._tpm.create(secret, policy)

    def __getattr__(self, name: str) -> object:
        return getattr(self._tpm, name)


class NoDevice:
    def connect(self) -> AbstractContextManager[Tpm]:
        raise SealUnavailable("no device", rule="test")


def sealer(
    device: Device,
    folder: Path,
    *,
    pcrs: str = "sha256:7,11",
    srk_name: bytes | None = None,
    names: tuple[str, ...] = NAMES,
) -> Tpm2Sealer:
    """What a process makes when it starts."""
    return Tpm2Sealer(Folder(folder), device, names, pcrs=pcrs, srk_name=srk_name)
