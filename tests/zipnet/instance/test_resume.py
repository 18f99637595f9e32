"""Sealed clients that restart: who they are, when they speak again, which pads they use."""

from __future__ import annotations

import logging
import secrets
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.zipnet.instance.sealed import Machine, rule_of
from tests.zipnet.instance.support import Town, run, town
from tests.zipnet.instance.test_faults import stop, tasks_of
from tests.zipnet.instance.test_restarts import again
from zipnet.demo import CLIENT, SERVER
from zipnet.node.sealed_root import kept_in
from zipnet.unsafe_programs import Program

Body = Callable[[Town, Machine], Awaitable[None]]
Play = Callable[[Body], None]
NEXT = Program("client 2", "client")


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Play:
    caplog.set_level(logging.WARNING, "zipnet.sealing")

    def settings(name: str) -> dict[str, object]:
        folder = tmp_path / name
        folder.mkdir(mode=0o700, exist_ok=True)
        return {"sealing": kept_in(folder, secrets.token_bytes)}

    async def whole(body: Body) -> None:
        window: dict[str, Any] = {
            "epoch_rounds": 24,
            "messages_per_epoch": 8,
            "round_period_ms": 100,
            "fold_deadline_ms": 300,
        }
        async with town(clients=2, settings=settings, listed=(SERVER, CLIENT, NEXT), **window) as m:
            await m.rounds(1)
            await body(m, Machine(m, tmp_path / "disk", monkeypatch))
            assert not m.errors
            await m.check()

    return lambda body: run(whole(body))


def test_a_reboot_within_the_epoch(play: Play) -> None:
    async def body(made: Town, machine: Machine) -> None:
        task, first = await machine.up()
        await machine.sealed(2, task)
        await made.say_until_landed(first, "before")
        epoch, tags = made.state.epoch.number, [first._core.speaker.budget]
        for boot in ("second", "third"):
            await machine.kill(task)
            task, role = await machine.up()
            assert role._core.id == first._core.id
            tags.append(role._core.speaker.budget)
            await made.say_until_landed(role, boot)
            assert role._core.keyring.epoch == epoch == made.state.epoch.number, "it had to wait"
            assert made.state.epoch.resumes[-1].node == role._core.id
        # No boot uses the rate-limit tags of another.
        assert [(one.epoch, one.limit) for one in tags] == [(epoch, 4), (epoch, 6), (epoch, 7)]
        assert [one.used for one in tags[1:]] == [4, 6]
        await machine.kill(task)

    play(body)


def test_a_reboot_in_a_later_epoch(play: Play) -> None:
    async def body(made: Town, machine: Machine) -> None:
        task, first = await machine.up()
        await machine.sealed(2, task)
        epoch = made.state.epoch.number
        await machine.kill(task)
        await made.until(lambda: made.state.epoch.number > epoch)
        task, second = await machine.up()
        assert second._core.id == first._core.id
        assert second._core.keyring.epoch > epoch
        await made.say_until_landed(second, "later")
        await machine.kill(task)

    play(body)


def test_an_old_copy_of_the_disk(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    async def body(made: Town, machine: Machine) -> None:
        task, first = await machine.up()
        await machine.sealed(2, task)
        await machine.kill(task)
        old = machine.disk.read_bytes()
        task, _ = await machine.up()
        await machine.sealed(3, task)
        epoch = made.state.epoch.number
        await machine.kill(task)
        machine.disk.write_bytes(old)
        task, third = await machine.up()
        assert third._core.id == first._core.id
        assert third._core.keyring.epoch > epoch
        assert "rule seal.rollback; the client goes on with the same identity" in caplog.text
        await made.say_until_landed(third, "with new keys")
        await machine.kill(task)

    play(body)


def test_two_clones(play: Play) -> None:
    async def body(made: Town, machine: Machine) -> None:
        task, first = await machine.up()
        await machine.sealed(2, task)
        copy = machine.disk.with_name("copy")
        shutil.copy(machine.disk, copy)
        twin, second = await machine.up(copy)
        assert second._core.id == first._core.id
        await made.until(task.done)
        assert rule_of(task) == "fenced"
        await made.say_until_landed(second, "the later one")
        await machine.kill(twin)

    play(body)


def test_two_clones_of_a_disk_at_rest(play: Play) -> None:
    """The one that boots first renews the seal, so the later one has an older copy."""

    async def body(made: Town, machine: Machine) -> None:
        task, _ = await machine.up()
        await machine.sealed(2, task)
        await machine.kill(task)
        copy = machine.disk.with_name("copy")
        shutil.copy(machine.disk, copy)
        task, first = await machine.up()
        twin = machine.boot(copy)
        await made.until(task.done)
        assert rule_of(task) == "fenced"
        second = machine.roles[-1]
        assert second._core.id == first._core.id
        await made.say_until_landed(second, "with new keys")
        await machine.kill(twin)

    play(body)


def test_a_server_that_does_not_answer(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    async def body(made: Town, machine: Machine) -> None:
        task, _ = await machine.up()
        await machine.sealed(2, task)
        await machine.kill(task)
        name = made.id_of("bravo").hex()[:16]
        await stop(tasks_of(made)["bravo"])
        task = machine.boot()
        await machine.until(lambda: len(machine.roles) == 2, task)
        assert f"member {name} does not answer" in caplog.text
        assert "rule seal.members; the client goes on with a new identity" in caplog.text
        new = machine.settings[-1].identity
        assert new.peer != machine.settings[0].identity.peer
        await machine.kill(task)

    play(body)


def test_a_server_that_restarts_over_its_file(play: Play) -> None:
    async def body(made: Town, machine: Machine) -> None:
        task, first = await machine.up()
        await machine.sealed(2, task)
        identity = made.servers[1]._set.ticketing.identity
        await stop(tasks_of(made)["bravo"])
        await again(made, "bravo", made.server_role("bravo", identity=identity))
        await machine.kill(task)
        task, second = await machine.up()
        assert second._core.id == first._core.id
        await machine.kill(task)

    play(body)


def test_a_server_that_has_forgotten_its_root(
    play: Play, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(made: Town, machine: Machine) -> None:
        task, first = await machine.up()
        await machine.sealed(2, task)
        name = made.id_of("bravo").hex()[:16]
        identity = made.servers[1]._set.ticketing.identity
        await stop(tasks_of(made)["bravo"])
        (tmp_path / "bravo" / "sealing").unlink()
        await again(made, "bravo", made.server_role("bravo", identity=identity))
        await machine.kill(task)
        key = machine.blob()
        task, second = await machine.up()
        assert second._core.id != first._core.id
        assert f"member {name} gives another contribution" in caplog.text
        assert "rule seal.equivocation; the client goes on with a new identity" in caplog.text
        await machine.sealed(2, task)
        after = machine.blob()
        assert key is not None
        assert after is not None
        assert after.header.key_id != key.header.key_id
        await machine.kill(task)

    play(body)


def test_images_of_a_new_list(play: Play) -> None:
    """An upgraded image opens what the old one sealed; one off the list asks in vain."""

    async def body(made: Town, machine: Machine) -> None:
        task, first = await machine.up()
        await machine.sealed(2, task)
        old = machine.blob()
        await machine.kill(task)
        await made.push(made.operators.allow_list(2, SERVER, NEXT, CLIENT))
        await made.until(lambda: made.state.allow_list.number == 2)  # type: ignore[union-attr]
        machine.program = NEXT
        task, second = await machine.up()
        assert second._core.id == first._core.id
        after = machine.blob()
        assert old is not None
        assert after is not None
        assert (old.header.list_number, after.header.list_number) == (1, 2)
        assert old.header.key_id != after.header.key_id
        await machine.kill(task)
        machine.program = Program("client 0", "client")
        task = machine.boot()
        await made.until(task.done)
        assert rule_of(task) == "mrtd"
        assert machine.blob() == after

    play(body)
