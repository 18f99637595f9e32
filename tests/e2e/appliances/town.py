"""A deployment of which some members are appliances, each provisioned by its operator's tool."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from attestation.measure.record import Measurement, Measurements
from attestation.measure.rtmr import BootPath
from attestation.measure.tdvf import HostProfile
from tests.e2e.appliances.vm import Image, Machine, VirtualTdx
from tests.e2e.deployment import NAMES, Deployment
from tests.e2e.process import until
from zipnet.ids import client_id
from zipnet.roles.admission import config_digest

# Where a guest finds 127.0.0.1 of its host (QEMU's user network).
HOST = "10.0.2.2"
# An emulated machine takes seconds for what a processor does in milliseconds.
WINDOW = {
    "round_period_ms": 5_000,
    "round_deadline_ms": 40_000,
    "fold_deadline_ms": 8_000,
    "min_participants": 2,
}


def entry(image: Image) -> Measurement:
    """What a list accepts of an image: host profile upstream, boot path kernel."""
    for one in Measurements.load(image.measurements).entries:
        if one.host_profile is HostProfile.UPSTREAM and one.boot_path is BootPath.KERNEL:
            return one
    raise AssertionError(image.measurements)


class Town:
    """`made` are the processes of a deployment, `machines` its appliances."""

    def __init__(
        self, folder: Path, urls: Sequence[str], images: dict[str, Image], qemu: Path
    ) -> None:
        self.made = Deployment(folder, urls, NAMES, **WINDOW)
        self.folder = folder
        self.images = images
        self._qemu = qemu
        self._stack = contextlib.ExitStack()
        self.machines: dict[str, Machine] = {}

    def __enter__(self) -> Self:
        self._stack.enter_context(self.made)
        self._tdx = self._stack.enter_context(VirtualTdx(self.made.tee, self.folder))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def machine(self, name: str, image: Image, disk: Path | None = None) -> Machine:
        """One more appliance, powered off."""
        made = Machine(
            name,
            image,
            self.folder,
            qemu=self._qemu,
            tdx=self._tdx,
            mr_config_id=config_digest(self.made.config).hex() + "00" * 16,
            disk=disk,
        )
        self._stack.enter_context(made)
        self.machines[name] = made
        return made

    def disk(self, name: str) -> Path:
        """A new, empty one."""
        path = self.folder / f"{name}.disk"
        with path.open("wb") as file:
            file.truncate(1 << 20)
        return path

    @property
    def common(self) -> list[str]:
        """What every guest is told."""
        urls = ",".join(url.replace("127.0.0.1", HOST) for url in self.made.urls)
        return [
            *("--config", str(self.made.file), "--bootstrap", urls),
            *("--replicas", str(len(self.made.urls)), "--mock-root", str(self.made.tee)),
        ]

    def signed_by(self, name: str) -> list[str]:
        """The operator whose tool it is."""
        file = self.folder / f"{name}.key"
        file.write_text(self.made.keys[name].private_bytes_raw().hex())
        return ["--key", str(file)]

    def entries(self, *roles: str) -> list[Measurement]:
        """What a list accepts of the images of these roles."""
        return [entry(self.images[role]) for role in roles]

    def accepting(self, *images: Image) -> list[str]:
        """The measurements that an operator provisions."""
        return [word for image in images for word in ("--measurements", str(image.measurements))]

    def as_server(self, name: str, image: Image) -> list[str]:
        secret = ["--committee-secret-file", str(self.made.secret)]
        tree = ["--tree", self.made.tree]
        return [*self.common, *self.signed_by(name), *self.accepting(image), *secret, *tree]

    def as_client(self, operator: str, image: Image, message: str, *more: str) -> list[str]:
        said = ["--message", message, "--cadence", "1s"]
        return [*self.common, *self.signed_by(operator), *self.accepting(image), *said, *more]

    def instance_key(self, name: str) -> list[str]:
        """The options of a client whose identity shall survive; its owner keeps the key."""
        return ["--sealing", "committee", "--instance-key", str(self.folder / f"{name}.instance")]

    def secret_of(self, name: str) -> Path:
        """The text that an aggregator's identity derives from."""
        path = self.folder / f"{name}.secret"
        if not path.exists():
            path.write_text(secrets.token_hex(16))
        return path

    def tails(self) -> str:
        consoles = [machine.tail() for machine in self.machines.values()]
        return "\n".join([self.made.tails(), *consoles])

    def landed(self, machine: Machine) -> int:
        """How many messages a client's machine was told that landed, in this boot."""
        return len(re.findall(r"message landed in round \d+", machine.said()))

    def await_landed(self, machine: Machine, number: int, seconds: float = 600.0) -> float:
        """Until so many messages of its own have landed, in this boot."""
        return until(lambda: self.landed(machine) >= number, self.tails, seconds)


def id_of(machine: Machine) -> bytes:
    """The ClientId that a running machine's own evidence shows."""
    return client_id(machine.evidence().ticket.dh_pub)
