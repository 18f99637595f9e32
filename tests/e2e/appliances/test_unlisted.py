"""An image that differs in one byte of one file: measured as another, and turned away twice."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.appliances.conftest import build
from tests.e2e.appliances.town import Town, entry
from tests.e2e.appliances.vm import Image
from tests.e2e.process import until
from tests.image.conftest import checkout
from tests.zipnet.network.nats_cluster import Cluster

CHANGED = "zipnet/preflight.py"


def test_unlisted(images: dict[str, Image], qemu: Path, bus: Cluster, tmp_path: Path) -> None:
    """Refused by the operator's tool and, where an operator would have it, by the committee."""
    changed = altered(tmp_path)
    assert entry(changed).mr_td != entry(images["client"]).mr_td
    with Town(tmp_path, bus.urls, images, qemu) as town:
        town.made.start(2)
        town.made.push(2, *town.entries("client"), *town.made.measurements())
        machine = town.machine("changed", changed).boot()
        machine.await_line(rf"MR_TD {entry(changed).mr_td.hex()[:8]}")

        done = machine.provision(*town.as_client("alpha", images["client"], "never"))
        assert done.returncode == 2
        assert "rule: mrtd" in done.stderr
        assert entry(changed).mr_td.hex() in done.stdout + done.stderr

        # One operator would take it. The list of all of them does not have it.
        machine.provisioned(*town.as_client("alpha", changed, "never"))
        machine.await_line(r"by rule mrtd|rule: mrtd")
        town.made.await_landed(2)
        until(lambda: town.made.rounds() > 3, town.tails, 300)
        assert town.landed(machine) == 0
        assert {text for text, _ in town.made.read()} == {"client 0", "client 1"}


def altered(folder: Path) -> Image:
    """The client's image, built from a checkout in which one letter of a comment differs."""
    root = checkout(folder / "changed")
    path = root / CHANGED
    before = path.read_text("utf-8")
    after = before.replace("What an appliance can see", "What an appliance cam see", 1)
    assert len(before) == len(after)
    assert before != after
    path.write_text(after, "utf-8")
    return build("client", folder / "changed-out", root)["client"]
