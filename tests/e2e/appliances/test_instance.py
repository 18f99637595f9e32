"""A committee with a booted server, a booted aggregator and a booted client among its members."""

from __future__ import annotations

import json
from pathlib import Path

from attestation.bundle import Role
from tests.e2e.appliances.town import Town, id_of
from tests.e2e.appliances.vm import Image, Machine
from tests.e2e.appliances.wiretap import Wiretap
from tests.e2e.process import until
from tests.zipnet.network.nats_cluster import Cluster
from zipnet.ids import server_id
from zipnet.protocol.record import SignedRecord

MESSAGES = 20
SAID = "from the appliance"
# Told to end, a node ends within 5 s; then the system below it stops, emulated.
OFF_S = 20.0


def test_boot_an_appliance(
    images: dict[str, Image], qemu: Path, bus: Cluster, tmp_path: Path
) -> None:
    """20 messages; the machine's partial in the records; off, and on again as another server."""
    with Town(tmp_path, bus.urls, images, qemu) as town:
        made = town.made
        alpha, aggregator, client = committee(town)
        with Wiretap(bus.urls, made.config.shape) as tap:
            for at in range(3):
                made.client(f"client {at}").start()
            town.await_landed(client, 2)
            until(lambda: made.landed().total() + town.landed(client) >= MESSAGES, town.tails, 900)
            shown = alpha.evidence()
            assert shown.ticket.role is Role.SERVER
            check_partial(town, server_id(shown.ticket.dh_pub))
            heard = made.read()
            assert heard.total() >= MESSAGES
            assert set(heard.values()) == {1}
            names = {text for text, _ in heard}
            # Who registered after the first epoch had begun speaks from the next one on.
            assert {SAID} < names <= {SAID, "client 0", "client 1", "client 2"}
            assert id_of(client) in tap.clients()
            assert tap.reused() == 0
        check_console(alpha, "server")
        check_console(aggregator, "aggregator")
        check_console(client, "client")
        goes_off_and_on(town, alpha)


def committee(town: Town) -> tuple[Machine, Machine, Machine]:
    """Two servers as processes, one as an appliance; the aggregator and one client likewise."""
    made, images = town.made, town.images
    secret = ["--secret-file", str(town.secret_of("aggregator"))]
    made.tree = made.identity("aggregator", "--state", str(town.folder / "agg"), *secret)
    made.prepare("bravo", "charlie")
    alpha = town.machine("alpha", images["server"])
    aggregator = town.machine("aggregator", images["aggregator"])
    alpha.start()
    aggregator.start()
    for name in ("bravo", "charlie"):
        made.server(name).start()
    alpha.waits()
    said = alpha.provisioned(*town.as_server("alpha", images["server"]))
    assert (images["server"].folder / "mrtd.hex").read_text() in said
    aggregator.waits()
    words = [*town.common, *town.signed_by("alpha"), *town.accepting(images["aggregator"])]
    aggregator.provisioned(*words, *secret)
    for name in ("bravo", "charlie"):
        made.nodes[name].await_ready()
    alpha.await_line("joined the committee")
    until(made.announced, town.tails)
    made.push(1, *town.entries("server", "client"), *made.measurements())
    client = town.machine("client", images["client"]).boot()
    client.provisioned(*town.as_client("bravo", images["client"], SAID))
    client.await_line("registered")
    return alpha, aggregator, client


def check_partial(town: Town, alpha: bytes) -> None:
    """The newest record has the machine among its servers, with its commitment and signature."""
    made = town.made
    number = json.loads(made.zipnet("status", "--json", *made.bus))["last_final_round"]
    out = town.folder / "record"
    made.zipnet("archive", "get", str(number), *made.bus, "-o", str(out))
    signed = SignedRecord.decode(out.read_bytes())
    at = signed.record.header.servers.index(alpha)
    assert len(signed.record.commitments) == len(signed.signatures) == 3
    assert any(signed.record.commitments[at])
    assert any(signed.signatures[at])


def check_console(machine: Machine, role: str) -> None:
    """Who it is, what it measures as, and what it does, in lines of its console."""
    mr_td = (machine.image.folder / "mrtd.hex").read_text()
    machine.await_line(rf"^zipnet {role} \d+\.\d+\.\d+ .*MR_TD {mr_td[:8]}")


def goes_off_and_on(town: Town, alpha: Machine) -> None:
    """Without it rounds stop, which the others say; it comes back as another server."""
    made, bravo = town.made, town.made.nodes["bravo"]
    before, heard = alpha.evidence().ticket.peer_id, len(bravo.text())
    assert alpha.power_button() < OFF_S
    assert "still not done" not in alpha.said()
    bravo.await_line(r"round \d+ ended .*missing|suspended", after=heard)
    bravo.await_line(r"server [0-9a-f]{16} suspended", after=heard)
    last = made.rounds()
    alpha.boot()
    assert made.rounds() == last
    alpha.provisioned(*town.as_server("alpha", town.images["server"]))
    alpha.await_line("joined the committee")
    until(lambda: made.rounds() > last + 1, town.tails, 600)
    assert alpha.evidence().ticket.peer_id != before
