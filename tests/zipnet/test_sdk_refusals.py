"""What the SDK refuses, and how it says so."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

import zipnet
from attestation.errors import ProviderAbsent
from tests.zipnet.configs import CONFIG
from tests.zipnet.test_sdk import Note, OneRogue, land, run, world
from zipnet.access import Access, Network
from zipnet.config import Anchor
from zipnet.demo import CLIENT, SERVER
from zipnet.errors import (
    Attestation,
    CallRejected,
    ConfigRejected,
    ConnectTimeout,
    DatumRejected,
    NoNetwork,
    Protocol,
    Refused,
    Shutdown,
    WrongUniverse,
)
from zipnet.ids import UniqueId
from zipnet.network import base
from zipnet.network.local import LocalNetwork
from zipnet.network.places import Places
from zipnet.sdk import Zipnet
from zipnet.unsafe_programs import Program


def test_another_universe_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        theirs = UniqueId.of("another.universe")
        await (await Network.local(tmp_path)).close()
        with pytest.raises(WrongUniverse) as error:
            await Network.local(tmp_path, universe=theirs)
        assert error.value.expected == theirs.hex()
        await (await Network.local(tmp_path)).close()

    run(test())


def test_a_bus_that_is_not_there() -> None:
    async def test() -> None:
        with pytest.raises(NoNetwork) as error:
            await Network.connect("nats://127.0.0.1:9", CONFIG, connect_s=0.2)
        assert error.value.rule == "network.unreachable"
        assert "nats://127.0.0.1:9" in error.value.expected

    run(test())


def test_a_connection_serves_one_deployment(tmp_path: Path) -> None:
    async def test() -> None:
        local = await Network.local(tmp_path)
        other = UniqueId.of("another deployment")
        network = Network(local.port, local.universe, local.identity, other)
        config = replace(CONFIG, type_tag=Note.TYPE_TAG, wire_size=Note.WIRE_SIZE)
        with pytest.raises(CallRejected) as error:
            await Zipnet[Note].read(network, config)
        assert error.value.rule == "deployment"
        assert error.value.expected == other.hex()
        await local.close()

    run(test())


def test_a_changed_value_shows_both_fingerprints() -> None:
    async def test() -> None:
        async with world(clients=0) as here:
            config = here.config.with_init(bytes(32))
            access = replace(here.operators.access(), connect_s=0.3)
            network = await here.node()
            for call in (
                Zipnet[Note].submit(network, config, access),
                Zipnet[Note].read(network, config, access),
            ):
                with pytest.raises(ConnectTimeout) as error:
                    await call
                text = error.value.diagnostics()
                assert Zipnet.deployment_id(config).hex() in text
                assert Zipnet.deployment_id(here.config).hex() in text

    run(test())


def test_a_client_must_have_what_its_deployment_asks() -> None:
    async def test() -> None:
        async with world(clients=0) as here:
            access = here.operators.access()
            for given, kind, rule in (
                (replace(access, mock_root=b""), ConfigRejected, "anchor"),
                (replace(access, collateral=None), Attestation, "collateral"),
                (replace(access, waived=frozenset({"zulu"})), ConfigRejected, "waived"),
                (Access(mock_root=access.mock_root, collateral=access.collateral),
                 ProviderAbsent, "tsm.no-configfs"),
            ):  # fmt: skip
                with pytest.raises(kind) as error:
                    await Zipnet[Note].submit(await here.node(), here.config, given)
                assert error.value.rule == rule
            config = replace(here.config, anchor=Anchor.tdx())
            with pytest.raises(ConfigRejected):
                access.admission(config, here.operators.instance)

    run(test())


# Who may not take part


def test_a_server_off_the_list_is_named_by_its_operator() -> None:
    async def test() -> None:
        async with world(OneRogue, clients=0) as here:
            with pytest.raises(Attestation) as error:
                await here.submit()
            assert "charlie" in error.value.message
            assert error.value.rule == "mrtd"

    run(test())


def test_a_client_off_the_list_hears_the_servers_rule() -> None:
    async def test() -> None:
        async with world() as here:
            rogue = here.operators.access(Program("rogue", "client"))
            network = await here.node()
            tx = await Zipnet[Note].submit(network, here.config, rogue)
            with pytest.raises(Attestation) as error:
                await tx.send(Note("hi"))
            assert error.value.rule == "mrtd"
            assert any(name in error.value.message for name in here.operators.keys)
            with pytest.raises(Attestation):
                await tx.send(Note("again"))
            await network.close()

    run(test())


def test_what_was_refused_is_never_sent_later() -> None:
    async def test() -> None:
        async with world() as here:
            program = Program("client 2", "client")
            network = await here.node()
            log = await Zipnet[Note].read(network, here.config)
            access = here.operators.access(program)
            tx = await Zipnet[Note].submit(network, here.config, access)
            with pytest.raises(Attestation):
                await tx.send(Note("refused"))
            await here.instance.push(here.operators.allow_list(2, SERVER, CLIENT, program))
            while True:
                try:
                    await land(tx, "accepted")
                    break
                except Attestation:
                    await asyncio.sleep(0.05)
            assert (await anext(aiter(log))).datum == Note("accepted")
            await network.close()

    run(test())


# Limits of a submitter


def test_a_node_writes_once_and_not_after_close() -> None:
    async def test() -> None:
        async with world(clients=0) as here:
            network = await here.node()
            access = here.operators.access()
            tx = await Zipnet[Note].submit(network, here.config, access)
            with pytest.raises(CallRejected) as error:
                await Zipnet[Note].submit(network, here.config, access)
            assert error.value.rule == "submit.twice"
            waiting = asyncio.ensure_future(tx.send(Note("never")))
            await asyncio.sleep(0)
            await tx.close()
            with pytest.raises(Shutdown):
                await waiting
            with pytest.raises(Shutdown) as closed:
                await tx.send(Note("late"))
            assert closed.value.rule == "closed"
            again = await Zipnet[Note].submit(network, here.config, access)
            await tx.close()
            with pytest.raises(CallRejected):
                await Zipnet[Note].submit(network, here.config, access)
            assert len(here.instance.servers[0].state.clients) == 1
            await again.close()
            assert len(here.instance.servers[0].state.clients) == 0

    run(test())


def test_a_client_whose_network_ends_says_so() -> None:
    async def test() -> None:
        async with world(clients=0) as here:
            tx = await here.submit()
            await tx._network.port.close()
            with pytest.raises(Shutdown) as error:
                await tx.send(Note("never"))
            assert error.value.rule == "ended"
            await tx.close()

    run(test())


def test_too_many_waiting_and_wrong_sizes_are_refused() -> None:
    async def test() -> None:
        async with world(clients=0) as here:
            async with await here.submit() as tx:
                for datum, rule in ((Note("x" * 65), "datum.size"), (b"hi", "datum.type")):
                    with pytest.raises(DatumRejected) as error:
                        await tx.send(datum)  # type: ignore[arg-type]
                    assert error.value.rule == rule
                waiting = [asyncio.ensure_future(tx.send(Note(str(at)))) for at in range(64)]
                await asyncio.sleep(0)
                with pytest.raises(Refused) as full:
                    await tx.send(Note("more"))
                assert full.value.rule == "queue.full"
                # Who gives up makes room.
                waiting.pop().cancel()
                await asyncio.sleep(0)
                waiting.append(asyncio.ensure_future(tx.send(Note("more"))))
                await asyncio.sleep(0)
            done = await asyncio.gather(*waiting, return_exceptions=True)
            assert all(isinstance(one, Shutdown) for one in done)

    run(test())


def test_the_package_exports_the_sdk_and_loads_it_late() -> None:
    code = "import sys, zipnet; assert not {'zipnet.sdk', 'click'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert zipnet.Zipnet is Zipnet
    assert zipnet.Network is Network
    with pytest.raises(AttributeError):
        zipnet.nothing  # type: ignore[attr-defined]  # noqa: B018


# What is no record


def test_junk_and_gaps_in_the_broadcasts_are_reported() -> None:
    async def test() -> None:
        async with world() as here:
            node = await here.node()
            log = (await Zipnet[Note].read(node, here.config)).broadcasts()
            assert (await anext(log)).clients == 2
            places = Places.of(here.operators.instance.deployment_id)
            records = await node.port.log(places.broadcasts)
            await records.append(b"junk", key="junk")
            with pytest.raises(Protocol) as junk:
                [broadcast async for broadcast in log]
            assert "no record of this deployment" in junk.value.message

            # The deployment's log on another network, tampered with.
            good = [raw async for raw in first_records(records, 5)]
            torn = good[2][:-1] + bytes([good[2][-1] ^ 1])
            for tampered, rule in (
                ([*good[:2], good[0], good[3]], "record.gap"),
                ([*good[:2], torn, *good[2:]], "signature"),
                ([*good[:2], b"junk", *good[2:]], "signed-record.wire-version"),
            ):
                other = await LocalNetwork.open()
                for name in (places.live, places.servers):
                    await copy_table(node.port, other, name)
                theirs = await other.log(places.broadcasts)
                for at, raw in enumerate(tampered):
                    await theirs.append(raw, key=str(at))
                network = await Network.over(other)
                again = await Zipnet[Note].read(network, here.config, from_round=1)
                rest = again.broadcasts()
                numbers = [(await anext(rest)).round for _ in range(2)]
                assert numbers == sorted(set(numbers))
                with pytest.raises(Protocol) as error:
                    await anext(rest)
                assert error.value.rule == rule
                await network.close()

    run(test())


async def first_records(records: base.Log, count: int) -> AsyncIterator[bytes]:
    async for entry in records.read():
        if entry.data != b"junk":
            yield entry.data
            count -= 1
        if not count:
            return


async def copy_table(source: base.Network, target: base.Network, name: str) -> None:
    """What a table holds now."""
    theirs, ours = await target.table(name), await source.table(name)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.3):
            async for item in ours.watch():
                if item.value is not None:
                    await theirs.put(item.key, item.value)
