"""Showing tickets, and hearing why one is refused."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from zipnet.errors import Denied, EngineError, Refused, Unavailable
from zipnet.network.public import Answer, Ask, Request, server_topic
from zipnet.roles.committee_view import CommitteeView
from zipnet.roles.presenting import AGAIN_MS, RETRY_MS, Presenter

ONE, OTHER = b"\1" * 32, b"\2" * 32
BUNDLE = b"a bundle"


class Bus:
    """A network that answers as it is told, and servers that do."""

    def __init__(self, *, error: EngineError | None = None, **answers: Any) -> None:
        self.error = error
        self.answers = {
            server_topic(ONE): answers.get("one"),
            server_topic(OTHER): answers.get("other"),
        }
        self.shown: list[bytes] = []
        self.asked: list[str] = []
        self.now = 1000

    async def present(self, bundle: bytes) -> None:
        self.shown.append(bundle)
        if self.error is not None:
            raise self.error

    async def ask(self, topic: str, data: bytes) -> bytes:
        self.asked.append(topic)
        assert Request.decode(data) == Request(Ask.ADMISSION, BUNDLE)
        answer = self.answers[topic]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, bytes) else (answer or Answer()).encode()


VIEW = SimpleNamespace(servers={ONE: b"", OTHER: b""}, names={ONE: "alpha", OTHER: "bravo"})
VIEW.turned_away = lambda *given: CommitteeView.turned_away(cast("Any", VIEW), *given)
NO = Answer.refusal(Refused("no such program", rule="mrtd"))


def show(bus: Bus) -> tuple[Any, Presenter]:
    presenter = Presenter(cast("Any", bus), lambda: bus.now)
    assert presenter.due
    return asyncio.run(presenter.show(BUNDLE, cast("Any", bus), cast("Any", VIEW))), presenter


def test_who_is_let_in_asks_nobody_and_comes_again_in_time() -> None:
    bus = Bus()
    error, presenter = show(bus)
    assert (error, bus.asked, bus.shown) == (None, [], [BUNDLE])
    bus.now += AGAIN_MS - 1
    assert not presenter.due
    bus.now += 1
    assert presenter.due


def test_the_first_server_that_refuses_says_why() -> None:
    bus = Bus(error=Denied("no"), other=NO)
    error, presenter = show(bus)
    assert (error.rule, bus.asked) == ("mrtd", [server_topic(ONE), server_topic(OTHER)])
    assert "bravo" in error.message
    assert "no such program" in error.got
    bus.now += RETRY_MS - 1
    assert not presenter.due
    bus.now += 1
    assert presenter.due


@pytest.mark.parametrize("silent", [Unavailable("nobody"), b"garbage", Denied("no")])
def test_servers_that_say_nothing_are_passed_over(silent: object) -> None:
    error, _ = show(Bus(error=Denied("no"), one=silent, other=NO))
    assert error.rule == "mrtd"
    # The bus may know more than those who answer.
    error, _ = show(Bus(error=Denied("no", rule="admission"), one=silent))
    assert error.rule == "admission"


def test_a_bus_that_does_not_answer_is_no_refusal() -> None:
    bus = Bus(error=Unavailable("later"))
    error, presenter = show(bus)
    assert (error, bus.asked) == (None, [])
    bus.now += RETRY_MS
    assert presenter.due


def test_who_may_not_submit_shows_a_ticket_soon() -> None:
    bus = Bus()
    _, presenter = show(bus)
    presenter.lost()
    assert not presenter.due
    bus.now += RETRY_MS - 1
    presenter.lost()
    bus.now += 1
    assert presenter.due
