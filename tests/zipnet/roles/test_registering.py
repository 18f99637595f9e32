"""How a client with sealed pairs enters: it resumes where it can, and registers elsewhere."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.zipnet.protocol.support import INSTANCE, h
from zipnet.demo import Operators, demo_window
from zipnet.errors import Protocol
from zipnet.network.base import Network
from zipnet.network.public import Ask, ClientStatus
from zipnet.protocol.keyring import KeyRing
from zipnet.roles import registering
from zipnet.roles.client_core import ClientCore
from zipnet.roles.client_settings import ClientSettings
from zipnet.roles.committee_view import CommitteeView, Lookout
from zipnet.roles.registering import Place

CONFIG = Operators.new("sealed.test", demo_window()).config


class Committee:
    """What servers say: a status, and for each Resume the rule that refuses it or nothing."""

    def __init__(self, epoch: int, resumes: list[str], *, member: bool = True) -> None:
        self.status = ClientStatus(True, member, 1, ())
        self.resumes = resumes
        self.asked: list[Ask] = []
        core = SimpleNamespace(
            keyring=KeyRing(h("me")),
            id=h("me"),
            resume=lambda _clock: (h("nonce"), 1, bytes(64)),
            epoch_key=lambda _epoch, _clock: SimpleNamespace(encode=lambda: b"key"),
        )
        core.keyring.epoch = 4
        view = SimpleNamespace(
            instance=INSTANCE, next_epoch=epoch + 1, servers={}, operators=None, beacons=[h("b")]
        )
        told = SimpleNamespace(config=CONFIG, clock=lambda: 1_000, draw=bytes)
        lookout = SimpleNamespace(places=SimpleNamespace(register="register"))
        network = SimpleNamespace(channel=lambda _name: None)
        self.place = Place(
            cast("Network", network),
            cast("Lookout", lookout),
            cast("ClientSettings", told),
            cast("ClientCore", core),
            cast("CommitteeView", view),
            lambda _error: None,
        )

    async def ask(self, ask: Ask, _body: bytes) -> bytes:
        self.asked.append(ask)
        if ask is Ask.STATUS:
            return self.status.encode()
        if ask is Ask.RESUME and (rule := self.resumes.pop(0)):
            raise Protocol("no", rule=rule)
        return b""


def entered(committee: Committee, patch: pytest.MonkeyPatch) -> list[Ask]:
    """What a client asks for that enters."""

    async def nothing(*_: Any) -> bytes:
        return b""

    async def registers() -> None:
        committee.asked.append(Ask.REGISTER)

    patch.setattr(committee.place, "_ask_any", committee.ask)
    patch.setattr(committee.place, "_register", registers)
    for name in ("check_generation", "_bundle", "_present"):
        patch.setattr(committee.place, name, nothing)
    asyncio.run(committee.place.enter())
    return committee.asked


@pytest.mark.parametrize(
    ("committee", "asked"),
    [
        (Committee(4, [""]), [Ask.STATUS, Ask.RESUME, Ask.EPOCH_KEY]),
        # An answer was lost, and the log has the Resume: once more, under the next serial.
        (
            Committee(4, ["resume.serial", ""]),
            [Ask.STATUS, Ask.RESUME, Ask.RESUME, Ask.EPOCH_KEY],
        ),
        # The clock has gone back, or another copy is ahead.
        (
            Committee(4, ["resume.serial", "resume.serial"]),
            [Ask.STATUS, Ask.RESUME, Ask.RESUME, Ask.REGISTER],
        ),
        (Committee(4, ["resume.quota"]), [Ask.STATUS, Ask.RESUME, Ask.REGISTER]),
        (Committee(4, [], member=False), [Ask.STATUS, Ask.REGISTER]),
        (Committee(5, []), [Ask.REGISTER]),
    ],
)
def test_how_a_client_enters(
    committee: Committee, asked: list[Ask], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert entered(committee, monkeypatch) == asked
    if Ask.REGISTER not in asked:
        # The ticket in the log is that of the boot before.
        period = committee.place._set.config.window.round_period_ms
        assert committee.place.renew_ms == 1_000 + registering.RENEW_ROUNDS * period
