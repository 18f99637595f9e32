"""What tests of attacks share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from tests.simulator.nodes import User
from tests.simulator.world import World
from zipnet.config import Config
from zipnet.errors import ZipnetError
from zipnet.protocol import speaker
from zipnet.protocol.record import SignedRecord
from zipnet.protocol.slots import Kind, read_slots

SECRET = b"meet at midnight"


@contextmanager
def refused(kind: type[ZipnetError], rule: str) -> Iterator[None]:
    """The block must raise exactly this kind of error, by this rule."""
    with pytest.raises(ZipnetError) as caught:
        yield
    assert (type(caught.value), caught.value.rule) == (kind, rule)


def about_to_speak(world: World, user: User, datum: bytes = SECRET) -> None:
    """Rounds go on until this client owns a slot in the next one, with the datum to put into it."""
    user.core.submit(datum)
    for _ in range(40):
        world.open()
        if speaks_now(world, user):
            return
        world.seal()
        assert not world.submit(world.fold()).rule
        world.settle()
    raise AssertionError("the client never gets a slot")


def speaks_now(world: World, user: User) -> bool:
    """Whether the client will put a message into the live round: tried on a copy of its mind."""
    core = user.core
    state = world.random.getstate()
    current = world.current
    _, turn = speaker.turn(
        core.speaker,
        current.header,
        core._last,
        crowd=len(current.sheet.clients),
        participation=1.0,
        rate_key=bytes(32),
        draw=world.draw,
    )
    world.random.setstate(state)
    return turn is not None and turn.spoke


def messages(record: SignedRecord) -> list[bytes]:
    """The messages of a broadcast, by slot."""
    slots = read_slots(record.record.payload, record.record.header)
    return [slot.datum for slot in slots if slot.kind is Kind.MESSAGE]


def kinds(record: SignedRecord) -> list[Kind]:
    return [slot.kind for slot in read_slots(record.record.payload, record.record.header)]


def no_check(*args: Any, **kwargs: Any) -> None:
    """What stands in for a check that an attack is shown without."""


def needing(least: int) -> Callable[[Config], Config]:
    """A configuration whose rounds go on with so many servers."""

    def change(config: Config) -> Config:
        return replace(config, window=replace(config.window, min_servers=least))

    return change
