"""What a door answers, and whom it remembers; without a bus."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
from blake3 import blake3

from attestation.bundle import Bundle
from tests.zipnet.network.callouts import SERVER, SERVER_ID, USER, claims, credentials
from tests.zipnet.network.guarded import BEACON, Site, fresh_identity
from zipnet.demo import SERVER as SERVER_PROGRAM
from zipnet.network.admission import LIFE_S, MAX_CONNECTIONS
from zipnet.network.bus_keys import BusKeys
from zipnet.network.nkeys import Kind, public_of, sign_token, verify_token
from zipnet.roles.identity import Identity


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("door"))


def asked(site: Site, name: str, options: dict[str, str], cid: int = 7) -> bytes:
    """A request that a server makes of this operator's door."""
    stated = claims(options)
    stated["sub"] = site.keys(name).public["issuer"]
    stated["nats"]["client_info"]["id"] = cid
    return sign_token(stated, Kind.SERVER, SERVER).encode()


def test_requests_of_other_servers_are_left_unanswered(site: Site) -> None:
    door = site.door("alpha", site.state())
    raw = asked(site, "alpha", {})
    assert door.decide(raw, SERVER_ID) is not None
    # One that another server has signed: it might replay what was shown to it.
    assert door.decide(raw, public_of(Kind.SERVER, site.keys("bravo").issuer)) is None
    assert door.decide(asked(site, "bravo", {}), SERVER_ID) is None
    assert door.decide(b"garbage", SERVER_ID) is None


def said(site: Site, answer: bytes | None) -> dict[str, object]:
    assert answer is not None
    issuer = site.keys("alpha").public["issuer"]
    content = verify_token(answer, Kind.ACCOUNT, issuer)["nats"]
    if "jwt" in content:
        found = verify_token(content["jwt"].encode(), Kind.ACCOUNT, issuer)
        assert found["sub"] == USER
        return found
    assert isinstance(content, dict)
    return content


def test_admissions_end_with_the_ticket_and_soon(site: Site) -> None:
    door, identity = site.door("alpha", site.state()), fresh_identity()
    now = int(time.time())
    for life, limit in ((3600, LIFE_S), (120, 120)):
        token = site.bundle(identity, issued=now, life=life)
        raw = asked(site, "alpha", credentials(identity.signing, token))
        end = said(site, door.decide(raw, SERVER_ID))["exp"]
        assert isinstance(end, int)
        assert limit - 5 <= end - now <= limit + 5
        assert life > 120 or end == now + life
    assert "exp" not in said(site, door.decide(asked(site, "alpha", {}), SERVER_ID))


def test_the_door_is_full(site: Site) -> None:
    door = site.door("alpha", site.state(), capacity=1)
    one, other = fresh_identity(), fresh_identity()

    def decide(identity: Identity, **times: int) -> dict[str, object]:
        token = site.bundle(identity, **times)  # type: ignore[arg-type]
        raw = asked(site, "alpha", credentials(identity.signing, token))
        return said(site, door.decide(raw, SERVER_ID))

    past = int(time.time()) - 58
    assert "exp" in decide(one)
    assert "exp" in decide(one), "its place is its own"
    assert str(decide(other)["error"]).startswith("door.full")
    assert door.refused == {"door.full": 1}
    # Places of those whose ticket has ended are free.
    short = site.door("alpha", site.state(), capacity=1)
    door = short
    assert "exp" in decide(one, issued=past, life=60)
    time_left = past + 60 - time.time()
    time.sleep(max(0.0, time_left) + 0.1)
    assert "exp" in decide(other)


def test_only_the_last_connections_of_a_peer_are_remembered(site: Site) -> None:
    state = site.state()
    door, identity = site.door("alpha", state), fresh_identity()
    shown = credentials(identity.signing, site.bundle(identity))
    for cid in range(1, MAX_CONNECTIONS + 4):
        door.decide(asked(site, "alpha", shown, cid), SERVER_ID)
    assert asyncio.run(door.stale()) == []
    site.enforce(state, 2, SERVER_PROGRAM)
    (gone,) = asyncio.run(door.stale())
    assert gone.connections == list(range(4, MAX_CONNECTIONS + 4))
    assert asyncio.run(door.stale()) == []


def test_many_are_judged_again(site: Site) -> None:
    state = site.state()
    door = site.door("alpha", state, capacity=200)
    for _ in range(70):
        identity = fresh_identity()
        shown = credentials(identity.signing, site.bundle(identity))
        door.decide(asked(site, "alpha", shown), SERVER_ID)
    site.enforce(state, 2, SERVER_PROGRAM)
    assert len(asyncio.run(door.stale())) == 70


def test_a_beacon_of_then_is_good_for_the_same_ticket_only(site: Site) -> None:
    state, identity = site.state(), fresh_identity()
    door = site.door("alpha", state)
    first, second = site.bundle(identity), site.bundle(identity, life=3000)

    def decide(token: bytes) -> dict[str, object]:
        raw = asked(site, "alpha", credentials(identity.signing, token))
        return said(site, door.decide(raw, SERVER_ID))

    assert "exp" in decide(first)
    state.beacons.remove(BEACON)
    state.beacons.append(bytes(32))
    assert "exp" in decide(first)
    assert str(decide(second)["error"]).startswith("beacon")
    changed = replace(Bundle.decode(second), signature=bytes(64)).encode()
    assert "error" in decide(changed)


def test_keys_for_the_bus_derive_from_the_signing_key() -> None:
    identity = fresh_identity()
    keys, seed = BusKeys.of(identity), identity.signing.private_bytes_raw()
    for name, key in (
        ("issuer", keys.issuer),
        ("responder", keys.responder),
        ("system", keys.system),
    ):
        context = f"zipnet/nats/{name}/v1"
        assert key.private_bytes_raw() == blake3(seed, derive_key_context=context).digest()
    assert keys.user == public_of(Kind.USER, identity.signing)
    assert len({*keys.public.values()}) == 4
    assert seed.hex() not in repr(keys)
