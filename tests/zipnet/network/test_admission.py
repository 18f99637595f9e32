"""The door of the bus: real servers, real quotes, and everybody who must stay outside."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nats.js.api import StreamConfig

from attestation.bundle import Bundle
from attestation.providers.mock import MockTee
from tests.zipnet.network.guarded import Site, fresh_identity
from tests.zipnet.network.nats_cluster import Cluster, free_ports
from tests.zipnet.network.visitors import (
    ERRORS,
    OTHER_CLIENT,
    PATIENCE,
    Visitor,
    client,
    guest,
    member,
    opened,
    refused,
    run,
)
from zipnet.demo import SERVER as SERVER_PROGRAM
from zipnet.errors import Denied
from zipnet.network.public import server_topic, submit_topic
from zipnet.network.rights import inbox
from zipnet.roles.identity import Identity
from zipnet.unsafe_programs import Program


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("door"))


@pytest.fixture(scope="module")
def bus(site: Site) -> Iterator[Cluster]:
    with site.cluster() as cluster:
        yield cluster


# Who may do what


async def rights_table(who: Visitor, site: Site, other: Identity, peer: bytes) -> dict[str, bool]:
    """What a connection may do, of all that somebody might want to."""
    names, places = site.names, site.names.places
    token = names.token
    leaf = site.aggregators[0].peer
    submit, register = f"{token}.ch.{places.submit}", f"{token}.ch.{places.register}"
    stream = f"{token}_L_{places.broadcasts}"
    publishes = {
        "submit as oneself": f"{submit}.{submit_topic(leaf, peer)}",
        "submit to another leaf": f"{submit}.{submit_topic(bytes(32), peer)}",
        "submit as another": f"{submit}.{submit_topic(leaf, other.peer)}",
        "submit to nobody": f"{submit}.node",
        "ask a server": f"{register}.{server_topic(bytes(32))}",
        "ask all servers": f"{register}.server",
        "read the last record": f"$JS.API.DIRECT.GET.{stream}.{token}.log.{places.broadcasts}",
        "read a record": f"$JS.API.DIRECT.GET.{stream}",
        "read the committee's log": f"$JS.API.DIRECT.GET.{token}_L_{'0' * 32}",
        "append a record": f"{token}.log.{places.broadcasts}",
        "append to a log": f"{token}.log.{'0' * 32}",
        "put the live round": f"$KV.{token}_T_{places.live}.live",
        "put receipts": f"$KV.{token}_T_{places.receipts}.1/0",
        "put a blob": f"{token}.blob.{places.blobs}.00.0",
        "pretend a record": f"{token}.pub.log.{places.broadcasts}",
        "look at a stream": f"$JS.API.STREAM.INFO.{stream}",
        "make a stream": "$JS.API.STREAM.CREATE.mine",
        "delete a stream": f"$JS.API.STREAM.DELETE.{stream}",
        "make a consumer": f"$JS.API.CONSUMER.CREATE.{stream}",
        "read a message of a leader": f"$JS.API.STREAM.MSG.GET.{stream}",
        "kick": f"$SYS.REQ.SERVER.{'N' * 56}.KICK",
        "ask for admission": "$SYS.REQ.USER.AUTH",
        "answer somebody": "_INBOX.guest.x",
        "answer another client": inbox(other.peer).replace(">", "x"),
    }
    subscriptions = {
        "hear what is public": f"{token}.pub.>",
        "hear its own answers": "_INBOX.guest.>" if not peer else inbox(peer),
        "hear all answers": "_INBOX.>",
        "hear another's answers": inbox(other.peer),
        "hear submissions": f"{submit}.>",
        "hear questions": f"{register}.>",
        "hear everything": ">",
        "hear the log": f"{token}.log.>",
        "hear admissions": "$SYS.REQ.USER.AUTH",
        "hear the system": "$SYS.>",
    }
    found = {what: await who.may_publish(subject) for what, subject in publishes.items()}
    for what, subject in subscriptions.items():
        found[what] = await who.may_subscribe(subject)
    return found


READS = {
    "ask a server",
    "read the last record",
    "read a record",
    "hear what is public",
    "hear its own answers",
}


def test_a_guest_reads_and_asks_and_nothing_else(site: Site, bus: Cluster) -> None:
    async def body() -> None:
        async with opened(site, bus, site.state()) as door:
            who = await guest(site, bus.urls[0])
            table = await rights_table(who, site, fresh_identity(), b"")
            assert {what for what, allowed in table.items() if allowed} == READS
            assert (door.admitted, door.refused) == (1, {})
            await who.bus.close()

    run(body())


def test_a_client_submits_as_itself_and_nothing_else(site: Site, bus: Cluster) -> None:
    async def body() -> None:
        async with opened(site, bus, site.state()):
            identity = fresh_identity()
            token = site.bundle(identity)
            assert len(base64.b64encode(token)) > 4096, "what the default setting refuses"
            who = await client(site, bus.urls[0], identity, token)
            table = await rights_table(who, site, fresh_identity(), identity.peer)
            own = {"submit as oneself", "submit to another leaf"}
            assert {what for what, allowed in table.items() if allowed} == READS | own
            await who.bus.close()

    run(body())


def test_an_aggregator_takes_submissions_and_leaves_receipts(site: Site, bus: Cluster) -> None:
    async def body() -> None:
        leaf, names = site.aggregators[0], site.names
        who = await member(site, bus.urls[0], leaf)
        table = await rights_table(who, site, fresh_identity(), leaf.peer)
        own = {"submit as oneself", "submit to another leaf", "put receipts"}
        assert {what for what, allowed in table.items() if allowed} == READS | own
        channel = f"{names.token}.ch.{names.places.submit}"
        assert await who.may_subscribe(f"{channel}.node.{leaf.peer.hex()[:16]}.*")
        assert not await who.may_subscribe(f"{channel}.node.*.*")
        await who.bus.close()

    run(body())


def test_what_is_public_comes_across_and_answers_come_back(site: Site, bus: Cluster) -> None:
    """Through the exports: a read of a stream, a question to a server, a submission to a leaf."""

    async def body() -> None:
        names, url = site.names, bus.urls[0]
        async with opened(site, bus, site.state()):
            server = await member(site, url, site.servers["alpha"])
            leaf = await Visitor().enter(
                site,
                url,
                site.aggregators[0].signing,
                prefix=inbox(site.aggregators[0].peer).removesuffix(".>"),
            )
            js = server.bus.jetstream()
            name = names.places.broadcasts
            await js.add_stream(
                StreamConfig(
                    f"{names.token}_L_{name}",
                    subjects=[f"{names.token}.log.{name}"],
                    allow_direct=True,
                )
            )
            for text in (b"one", b"two", b"three"):
                await js.publish(f"{names.token}.log.{name}", text)
            register = f"{names.token}.ch.{names.places.register}"
            submit = f"{names.token}.ch.{names.places.submit}"
            topic = submit_topic(site.aggregators[0].peer, b"\7" * 32).rpartition(".")[0]

            async def answer(message: object) -> None:
                await message.respond(b"yes")  # type: ignore[attr-defined]

            await server.bus.subscribe(f"{register}.{server_topic(bytes(32))}", cb=answer)
            await leaf.bus.subscribe(f"{submit}.{topic}.*", cb=answer)
            await server.bus.flush()
            await leaf.bus.flush()

            identity = fresh_identity()
            visitor = await client(site, url, identity, site.bundle(identity))
            where = f"{submit}.{submit_topic(site.aggregators[0].peer, identity.peer)}"
            assert (await visitor.bus.request(where, b"envelope")).data == b"yes"
            reader = await guest(site, url)
            for who in (reader, visitor, leaf):
                asked = f"{register}.{server_topic(bytes(32))}"
                assert (await who.bus.request(asked, b"?")).data == b"yes"
                # A batch comes as several messages, through the import as well.
                heard = await who.bus.subscribe(who.bus.new_inbox())
                get = f"$JS.API.DIRECT.GET.{names.token}_L_{name}"
                query = json.dumps({"seq": 1, "batch": 3}).encode()
                await who.bus.publish(get, query, reply=heard.subject)
                assert [(await heard.next_msg(5)).data for _ in range(4)] == [
                    b"one",
                    b"two",
                    b"three",
                    b"",
                ]
            for who in (server, leaf, visitor, reader):
                await who.bus.close()

    run(body())


# Who stays outside


def test_who_is_refused_and_by_which_rule(site: Site, bus: Cluster) -> None:
    async def body() -> None:
        async with opened(site, bus, site.state()) as door:
            identity, other, url = fresh_identity(), fresh_identity(), bus.urls[0]
            good = Bundle.decode(site.bundle(identity))
            stranger = MockTee(b"\x66" * 32)
            forged = stranger.quote(good.ticket.report_data())
            forgery = Bundle.sign(good.ticket, forged, identity.signing).encode()
            past = int(time.time()) - 600
            flipped = bytearray(good.encode())
            flipped[-1] ^= 1
            for token, key, rule in (
                (b"garbage", identity.signing, "bundle.size"),
                (good.encode(), None, "credentials.incomplete"),
                (b"", identity.signing, "credentials.incomplete"),
                # Another's ticket, with one's own key.
                (site.bundle(other), identity.signing, "credentials.peer"),
                (site.bundle(identity, issued=past, life=300), identity.signing, "expired"),
                (site.bundle(identity, beacon=b"\1" * 32), identity.signing, "beacon"),
                (site.bundle(identity, OTHER_CLIENT), identity.signing, "mrtd"),
                (bytes(flipped), identity.signing, "pop"),
                (forgery, identity.signing, "root-mismatch"),
            ):
                assert await refused(site, door, url, token, key) == rule
            assert door.admitted == 0
            assert len(bus.log_text(0)) > 0
            for rule in ("mrtd", "expired", "credentials.peer"):
                assert f"{rule}: " in bus.log_text(0), "the operator reads why"
            # A refused one is no guest either, and who shows nothing still is.
            await (await guest(site, url)).bus.close()

    run(body())


def test_a_stolen_ticket_without_its_key(site: Site, bus: Cluster) -> None:
    async def body() -> None:
        async with opened(site, bus, site.state()) as door:
            victim = fresh_identity()
            token = site.bundle(victim)
            await (await client(site, bus.urls[0], victim, token)).bus.close()
            # He names the victim's key, and signs with his own.
            own = Ed25519PrivateKey.generate()
            with pytest.raises(ERRORS, match=r"(?i)authorization"):
                await Visitor().enter(site, bus.urls[0], own, token, named=victim.signing)
            assert door.refused == {"credentials.possession": 1}

    run(body())


def test_no_list_and_no_door_let_nobody_in(site: Site, bus: Cluster) -> None:
    async def body() -> None:
        state, identity = site.state(), fresh_identity()
        state.allow_list = None
        async with opened(site, bus, state) as door:
            token = site.bundle(identity)
            assert await refused(site, door, bus.urls[0], token, identity.signing) == "list.none"
        with pytest.raises(ERRORS):
            await guest(site, bus.urls[0])
        # Members are in the configuration.
        await (await member(site, bus.urls[0], site.servers["bravo"])).bus.close()

    run(body())


def test_a_door_whose_keys_the_node_does_not_know(site: Site, bus: Cluster) -> None:
    async def body() -> None:
        door = site.door("bravo", site.state())
        # Somebody answers for the node, so that a stranger is refused at once.
        async with opened(site, bus, site.state()):
            with pytest.raises(Denied) as caught:
                await door.run(bus.urls[0], site.tls())
            assert caught.value.rule == "door.denied"

    run(body())


def test_a_door_waits_for_its_node(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        door = site.door("alpha", site.state())
        url = f"nats://127.0.0.1:{free_ports(1)[0]}"
        task = asyncio.create_task(door.run(url, site.tls()))
        with caplog.at_level(logging.WARNING, "zipnet.door"):
            while caplog.text.count("can't be opened") < 2:
                assert not task.done()
                await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(body())


def test_a_door_opens_again_after_a_restart_of_its_node(site: Site, bus: Cluster) -> None:
    async def body() -> None:
        async with opened(site, bus, site.state()) as door:
            await asyncio.to_thread(bus.kill, 0)
            while door.open.is_set():
                await asyncio.sleep(0.02)
            await asyncio.to_thread(bus.revive, 0)
            await asyncio.wait_for(door.open.wait(), PATIENCE)
            # The node has another key now, by which it signs what it asks.
            identity = fresh_identity()
            who = await client(site, bus.urls[0], identity, site.bundle(identity))
            await who.bus.close()

    run(body())


# Who has to go


def test_a_client_is_cut_off_when_its_ticket_ends(site: Site, bus: Cluster) -> None:
    async def body() -> None:
        async with opened(site, bus, site.state()) as door:
            identity = fresh_identity()
            end = int(time.time()) + 3
            token = site.bundle(identity, issued=end - 60, life=60)
            who = await client(site, bus.urls[0], identity, token)
            await asyncio.wait_for(who.gone.wait(), PATIENCE)
            assert end - 0.5 <= time.time() < end + PATIENCE / 2
            assert await refused(site, door, bus.urls[0], token, identity.signing) == "expired"

    run(body())


def test_a_new_list_drops_whom_it_no_longer_accepts(site: Site, bus: Cluster) -> None:
    async def body() -> None:
        state = site.state(SERVER_PROGRAM, OTHER_CLIENT, Program("client 1", "client"))
        async with opened(site, bus, state) as door:
            url = bus.urls[0]
            goes, stays = fresh_identity(), fresh_identity()
            old, new = site.bundle(goes), site.bundle(stays, OTHER_CLIENT)
            first = await client(site, url, goes, old)
            again = await client(site, url, goes, old)
            other = await client(site, url, stays, new)
            reader = await guest(site, url)
            site.enforce(state, 2, SERVER_PROGRAM, OTHER_CLIENT)
            for gone in (first, again):
                await asyncio.wait_for(gone.gone.wait(), PATIENCE)
            assert await refused(site, door, url, old, goes.signing) == "mrtd"
            for who in (other, reader):
                await who.bus.flush()
                assert who.bus.is_connected
            # Who was in comes back with its ticket, although the beacon is no longer recent.
            state.beacons.clear()
            state.beacons.append(b"\1" * 32)
            await (await client(site, url, stays, new)).bus.close()
            late = fresh_identity()
            token = site.bundle(late, OTHER_CLIENT)
            assert await refused(site, door, url, token, late.signing) == "beacon"
            for who in (other, reader):
                await who.bus.close()

    run(body())


# Several operators


@pytest.mark.slow
def test_each_operators_node_admits_by_its_own_verdict(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async def body(site: Site, bus: Cluster) -> None:
        strict = site.state(SERVER_PROGRAM, OTHER_CLIENT)
        async with (
            opened(site, bus, site.state(), 0) as first,
            opened(site, bus, site.state(), 1) as second,
            opened(site, bus, strict, 2) as third,
        ):
            for _ in range(6):
                for url in bus.urls[:2]:
                    identity = fresh_identity()
                    who = await client(site, url, identity, site.bundle(identity))
                    await who.bus.close()
            identity = fresh_identity()
            token = site.bundle(identity)
            assert await refused(site, third, bus.urls[2], token, identity.signing) == "mrtd"
            # Nobody heard of what others were asked.
            assert [door.admitted for door in (first, second, third)] == [6, 6, 0]
            assert [door.refused for door in (first, second, third)] == [{}, {}, {"mrtd": 1}]

    async def rogue(site: Site, bus: Cluster) -> None:
        """The third operator answers whatever he hears, with yes."""
        keys = site.keys("charlie")
        evil = await Visitor().enter(site, bus.urls[2], keys.responder, prefix="_INBOX")
        heard: list[bytes] = []

        async def yes(message: object) -> None:
            heard.append(message.data)  # type: ignore[attr-defined]

        await evil.bus.subscribe("$SYS.REQ.USER.AUTH", cb=yes)
        await evil.bus.flush()
        async with opened(site, bus, site.state(), 0) as door:
            identity = fresh_identity()
            wrong = site.bundle(identity, OTHER_CLIENT)
            assert await refused(site, door, bus.urls[0], wrong, identity.signing) == "mrtd"
            await (await client(site, bus.urls[0], identity, site.bundle(identity))).bus.close()
        assert heard == []
        await evil.bus.close()

    site = Site(tmp_path_factory.mktemp("doors"))
    with site.cluster(3) as cluster:
        run(body(site, cluster))
        run(rogue(site, cluster))
