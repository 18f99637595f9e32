"""A booted client over its lives: rebooted, rolled back, cloned. No pad is ever used twice."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.appliances.town import Town
from tests.e2e.appliances.vm import Image, Machine
from tests.e2e.appliances.wiretap import Wiretap
from tests.e2e.process import until
from tests.zipnet.network.nats_cluster import Cluster

# Three machines at most run at a time: here clients only, the committee being processes.
SAID = "from the appliance"


@pytest.fixture(scope="module")
def town(
    images: dict[str, Image],
    qemu: Path,
    bus: Cluster,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Town]:
    """A committee of processes with two clients, whose list accepts the client's image."""
    with Town(tmp_path_factory.mktemp("town"), bus.urls, images, qemu) as made:
        made.made.prepare()
        for name in made.made.keys:
            made.made.server(name).start()
        for node in made.made.servers:
            node.await_ready()
        until(made.made.announced, made.tails)
        made.made.push(1, *made.entries("client"), *made.made.measurements())
        made.made.aggregator().start()
        for at in range(2):
            made.made.client(f"client {at}").start()
        yield made


@pytest.fixture(scope="module")
def tap(town: Town, bus: Cluster) -> Iterator[Wiretap]:
    """From when the two clients that are processes have sealed."""
    with Wiretap(bus.urls, town.made.config.shape) as made:
        until(lambda: len(made.clients()) == 2, town.tails, 300)
        made.known = made.clients()
        yield made


def takes_part(town: Town, machine: Machine, tap: Wiretap, *more: str) -> bytes:
    """Provision a machine that waits, until it has sealed twice; its ClientId.

    A node shows nobody whose state it has, so it is told from the others on the wire.
    """
    last = max(number for _, number in tap.sealed())
    machine.provisioned(*town.as_client("alpha", town.images["client"], SAID, *more))

    def sealed() -> list[bytes]:
        """A ClientId for each round since, but for those of the processes."""
        return [one for one, at in tap.sealed() if at > last and one not in tap.known]

    machine.await_line("[1-9][0-9]* rounds sealed")
    until(lambda: len(sealed()) > 1, town.tails, 600)
    assert len(set(sealed())) == 1
    return sealed()[0]


def test_without_a_disk_a_reboot_makes_another_client(town: Town, tap: Wiretap) -> None:
    machine = town.machine("forgetful", town.images["client"])
    with machine:
        first = takes_part(town, machine.boot(), tap, "--sealing", "memory")
        machine.power_button()
        assert takes_part(town, machine.boot(), tap, "--sealing", "memory") != first
        machine.power_button()
    assert tap.reused() == 0


def test_reboot_rollback_and_clones(town: Town, tap: Wiretap) -> None:
    """The same client after a reboot; after a rollback with new keys; of two clones only one."""
    key, disk = town.instance_key("kept"), town.disk("kept")
    machine = town.machine("kept", town.images["client"], disk)
    known = takes_part(town, machine.boot(), tap, *key)
    machine.power_button()
    old = town.folder / "old.disk"
    shutil.copyfile(disk, old)

    # A reboot in the same epoch or a later one.
    assert takes_part(town, machine.boot(), tap, *key) == known
    machine.power_button()
    assert not re.search(r"seal\.|state\.", machine.said()), machine.tail()

    # The host puts an old disk back.
    shutil.copyfile(old, disk)
    assert takes_part(town, machine.boot(), tap, *key) == known
    machine.await_line(r"seal\.rollback")
    machine.power_button()

    # Two machines from one disk.
    shutil.copyfile(disk, town.folder / "clone.disk")
    clone = town.machine("clone", town.images["client"], town.folder / "clone.disk")
    machine.start()
    clone.start()
    machine.waits()
    assert takes_part(town, machine, tap, *key) == known
    clone.waits()
    assert takes_part(town, clone, tap, *key) == known
    machine.await_line("fenced")
    assert clone.running()
    assert tap.reused() == 0
