"""What a server looks at before a client's request costs it a log entry."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attestation.bundle import Bundle
from tests.simulator.world import World
from zipnet.committee import bodies
from zipnet.errors import ZipnetError
from zipnet.roles.desk import check_request

WORLD = World(1).start()
USER, OTHER = WORLD.users[:2]


def rule(body: bodies.Body) -> str:
    """The rule by which it is refused, empty if it is not."""
    before = WORLD.sites[0].core.machine.snapshot()
    try:
        check_request(WORLD.state, body)
    except ZipnetError as error:
        return error.rule
    finally:
        assert WORLD.sites[0].core.machine.snapshot() == before
    return ""


def test_registrations() -> None:
    new = WORLD.user()
    key = new.core.epoch_key(WORLD.state.next_epoch(), WORLD.now_ms)
    assert rule(bodies.Register(new.bundle, key)) == ""
    assert rule(bodies.Register(new.bundle, replace(key, serial=key.serial + 1))) == "signature"
    assert rule(bodies.Register(OTHER.bundle, key)) == "epoch-key.member"
    bundle = Bundle.decode(new.bundle)
    forged = replace(bundle, signature=bytes(64)).encode()
    assert rule(bodies.Register(forged, key)) == "register.pop"
    late = new.core.epoch_key(WORLD.state.next_epoch() + 1, WORLD.now_ms)
    assert rule(bodies.Register(new.bundle, late)) == "epoch-key.epoch"


def test_keys() -> None:
    key = USER.core.epoch_key(WORLD.state.next_epoch(), WORLD.now_ms + 1)
    assert rule(bodies.EpochKeys((key,))) == ""
    assert rule(bodies.EpochKeys((replace(key, signature=bytes(64)),))) == "signature"
    assert rule(bodies.EpochKeys((replace(key, member=bytes(32)),))) == "epoch-key.unknown"


def test_resumes_and_retirements() -> None:
    nonce, serial, signature = USER.core.resume(WORLD.now_ms)
    resume = bodies.ResumeNode(USER.core.id, nonce, serial, signature)
    assert rule(resume) == ""
    assert rule(replace(resume, node=OTHER.core.id)) == "signature"
    assert rule(replace(resume, node=bytes(32))) == "resume.unknown"
    registration = WORLD.state.clients[USER.core.id].registration
    statement = USER.core.id + registration
    signed = WORLD.instance.sign(USER.identity.signing, bodies.RETIRE, 0, statement)
    retire = bodies.Retire(USER.core.id, registration, signed)
    assert rule(retire) == ""
    assert rule(replace(retire, signature=bytes(64))) == "signature"
    assert rule(replace(retire, client=bytes(32))) == "client.unknown"


@pytest.mark.parametrize("body", [bodies.Tick(), bodies.RotateAllowList(b"")])
def test_what_clients_do_not_ask_is_left_to_the_log(body: bodies.Body) -> None:
    assert rule(body) == ""
