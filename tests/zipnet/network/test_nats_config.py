"""The configuration of nats-server: that servers take it, and what it is made from."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.zipnet.network.guarded import NAMES, Site, fresh_identity, now
from tests.zipnet.network.nats_cluster import Cluster, program
from zipnet.errors import ConfigRejected, ZipnetError
from zipnet.network.nats_config import MAX_PAYLOAD, Node, Peer, Routes, Tls, render
from zipnet.network.nkeys import Kind, public_text
from zipnet.network.tls import self_signed
from zipnet.protocol.shape import MAX_PAYLOAD as MAX_SHAPE

PIN = "0" * 64


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("nodes"))


@pytest.fixture(scope="module")
def node(site: Site) -> Node:
    return site.node(site.cluster(3).nodes[0])


def check(text: str, folder: Path) -> str:
    """What nats-server says against a configuration; empty if it takes it."""
    path = folder / "checked.conf"
    path.write_text(text)
    done = subprocess.run(
        [program(), "-t", "-c", str(path)], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else done.stderr


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("aggregators", [0, 1, 3])
def test_servers_take_it(site: Site, tmp_path: Path, nodes: int, aggregators: int) -> None:
    keys = tuple(fresh_identity().peer for _ in range(aggregators))
    for one in site.cluster(nodes).nodes:
        made = replace(site.node(one), aggregators=keys)
        text = render(site.operators.config, made)
        assert check(text, tmp_path) == ""
        assert ("cluster {" in text) == (nodes > 1)
        assert text.isascii()


def test_every_key_that_is_named_needs_no_ticket(site: Site, node: Node) -> None:
    text = render(site.operators.config, node)
    listed = text[text.index("auth_users") :]
    named = [public_text(Kind.USER, key) for key in (*node.servers, *node.aggregators)]
    for key in (*named, node.responder, node.system):
        assert text.count(key) == 2
        assert key in listed


@pytest.mark.slow
def test_three_nodes_find_each_other_and_nobody_else(tmp_path: Path) -> None:
    """Routes are TLS with pins: a fourth node that knows everything but a key stays outside."""
    site = Site(tmp_path)
    with site.cluster(3) as cluster:
        for number in range(3):
            routes = cluster.ask(number, "/routez")["routes"]
            assert {one["remote_name"] for one in routes} == set(NAMES) - {NAMES[number]}
        known = cluster.nodes[2]
        cluster.stop(2)
        # Its certificate is new, and even if all named it as good, no pin does.
        certificate = self_signed("charlie", ["127.0.0.1"], now(), 1)
        (tmp_path / "charlie.route.crt").write_bytes(certificate.pem)
        (tmp_path / "charlie.route.key").write_bytes(certificate.key)
        before = len(cluster.log_text(0))
        cluster.revive(2, wait=False)
        for _ in cluster._poll("nobody refuses it"):
            if "unknown authority" in cluster.log_text(0)[before:]:
                break
        for number in range(2):
            routes = cluster.ask(number, "/routez")["routes"]
            assert known.name not in {one["remote_name"] for one in routes}
            assert "charlie" not in {one["remote_name"] for one in routes}


def test_a_certificate_that_is_trusted_but_not_pinned(tmp_path: Path) -> None:
    site = Site(tmp_path)

    def text(node: object) -> str:
        made = site.node(node)  # type: ignore[arg-type]
        assert made.routes is not None
        wrong = replace(made.routes.peers[0], pin="1" * 64)
        routes = replace(made.routes, peers=(wrong,))
        return render(site.operators.config, replace(made, routes=routes))

    cluster = Cluster(tmp_path, 2, text)
    try:
        for one in cluster.nodes:
            cluster._spawn(one)
        for _ in cluster._poll("the pin is not looked at"):
            if "certificate not pinned" in cluster.log_text(0) + cluster.log_text(1):
                break
    finally:
        cluster.close()


REFUSED: dict[str, Callable[[Node], Node]] = {
    "node.name": lambda node: replace(node, name="a b"),
    "node.names": lambda node: replace(node, name="bravo"),
    "node.address": lambda node: replace(node, listen='1.2.3.4:1" }'),
    "node.port": lambda node: replace(node, monitor="127.0.0.1:65536"),
    "node.path": lambda node: replace(node, store="relative/path"),
    "node.servers": lambda node: replace(node, servers=()),
    "node.keys": lambda node: replace(node, aggregators=node.servers[:1]),
    "nkey.kind": lambda node: replace(node, issuer=node.responder),
    "nkey.text": lambda node: replace(node, system="U"),
    "node.peers": lambda node: replace(node, routes=replace(_routes(node), peers=())),
    "node.pin": lambda node: replace(node, routes=replace(_routes(node), peers=(_pinned("x"),))),
}


def _routes(node: Node) -> Routes:
    assert node.routes is not None
    return node.routes


def _pinned(pin: str) -> Peer:
    return Peer("bravo", "127.0.0.1:1", pin)


@pytest.mark.parametrize("rule", REFUSED)
def test_rules(node: Node, rule: str) -> None:
    with pytest.raises(ZipnetError) as caught:
        REFUSED[rule](node)
    assert caught.value.rule == rule


@pytest.mark.parametrize("value", ['/a"b', "/a\nb", "/a$b", "", "/a b", "/" + "a" * 300])
def test_nothing_gets_out_of_a_quoted_path(value: str) -> None:
    with pytest.raises(ConfigRejected) as caught:
        Tls("/good", value)
    assert caught.value.rule == "node.path"


@pytest.mark.parametrize("value", ["a:0", "a:1:2", "a", ":1", "a b:1", "[::1]:65536"])
def test_addresses(value: str) -> None:
    with pytest.raises(ConfigRejected) as caught:
        Peer("bravo", value, PIN)
    assert caught.value.rule in {"node.address", "node.port"}
    assert Peer("bravo", "[::1]:4222", PIN)


def test_every_envelope_fits_a_message(site: Site, node: Node) -> None:
    room = MAX_PAYLOAD - MAX_SHAPE
    assert room > 1 << 20
    assert f"max_payload: {MAX_PAYLOAD}" in render(site.operators.config, node)
