"""What the tests of pads share: members, pairs and headers."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from zipnet.errors import ZipnetError
from zipnet.protocol.header import NO_HASH, Header
from zipnet.protocol.instance import Instance
from zipnet.protocol.pads import Pair, pair_secret
from zipnet.protocol.roster import Member
from zipnet.protocol.shape import Shape


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


INSTANCE = Instance(digest("deployment"), digest("generation"))
SHAPE = Shape(4, 40, 9)
BASE = 5


@contextmanager
def refused(kind: type[ZipnetError], rule: str) -> Iterator[None]:
    """The block must raise exactly this kind of error, by this rule."""
    with pytest.raises(ZipnetError) as caught:
        yield
    assert (type(caught.value), caught.value.rule) == (kind, rule)


def epoch_secret(name: str) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(digest(f"epoch key of {name}"))


def member(name: str) -> Member:
    return Member(digest(f"id of {name}"), epoch_secret(name).public_key().public_bytes_raw())


SERVER = member("server")


def both_ends(client: str = "client", server: str = "server") -> tuple[Pair, Pair]:
    """A pair as its client holds it, and as its server does, at round BASE."""
    ends = (member(client), member(server))
    mine, theirs = (
        pair_secret(INSTANCE.binding, epoch_secret(name), *ends, BASE) for name in (client, server)
    )
    return mine, theirs


def header(
    round_number: int = BASE,
    *,
    shape: Shape = SHAPE,
    servers: tuple[bytes, ...] = (SERVER.id,),
    instance: Instance = INSTANCE,
    roster_hash: bytes = NO_HASH,
    schedule_hash: bytes = NO_HASH,
    epoch: int = 0,
) -> Header:
    return Header(
        instance=instance,
        round=round_number,
        epoch=epoch,
        shape=shape,
        servers=servers,
        roster_hash=roster_hash,
        schedule_hash=schedule_hash,
        previous_record=NO_HASH,
        log_seq=1,
        log_head=digest("head"),
        list_number=1,
        list_hash=digest("list"),
        tree_hash=digest("tree"),
        base_round=min(BASE, round_number),
        resumes_hash=digest("resumes"),
        time_ms=0,
    )
