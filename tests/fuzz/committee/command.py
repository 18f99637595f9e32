"""Fuzz target: commands, one of each kind, and the entries of a simulated log."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.zipnet.protocol.support import INSTANCE, h, tree
from zipnet.committee import bodies
from zipnet.committee.bodies import ABOUT_A_ROUND, Body
from zipnet.committee.commands import Command, kind_name
from zipnet.errors import ZipnetError
from zipnet.operators import Dismissal, Endorsement
from zipnet.protocol.roster import EpochKey

KEY = Ed25519PrivateKey.from_private_bytes(h("author"))


def seeds() -> list[bytes]:
    key = EpochKey(h("id"), 1, 2, h("key"), bytes(64))
    endorsement = Endorsement.make(INSTANCE, KEY, h("peer"), h("dh"), 3)
    dismissal = Dismissal.make(INSTANCE, KEY, h("peer"), 3)
    voucher = bodies.Voucher(h("client"), h("registration"), 7, h("platform"))
    everything: list[Body] = [
        bodies.Join(endorsement, key, h("nonce")),
        bodies.Leave(),
        bodies.Leave(dismissal),
        bodies.Suspend(),
        bodies.ResumeNode(h("node"), h("nonce"), 1, bytes(64)),
        bodies.ChangeOperators(b"{}"),
        bodies.Register(b"bundle", key),
        bodies.EpochKeys((key, key)),
        bodies.Vouch((voucher,)),
        bodies.Refuse(h("client"), "tdx.debug"),
        bodies.Retire(h("client"), h("registration"), bytes(64)),
        bodies.ProposeHeader(),
        bodies.SignHeader(h("header"), bytes(64)),
        bodies.SubmitAggregate(b"aggregate"),
        bodies.CommitPartial(h("commitment")),
        bodies.RevealPartial(b"partial"),
        bodies.SignRecord(h("record"), bytes(64)),
        bodies.TimeoutRound(2),
        bodies.RotateAllowList(b"{}"),
        bodies.Assign((tree(), tree(0, 0))),
        bodies.Tick(),
        bodies.Checkpoint(1, h("head"), h("digest"), bytes(64)),
        bodies.Recover(b"{}"),
    ]
    return [
        Command.make(
            KEY,
            INSTANCE,
            body,
            round_number=int(body.KIND in ABOUT_A_ROUND),
            seq=1,
            head=h("head"),
            clock_ms=2,
        )
        for body in everything
    ]


def fuzz_one(data: bytes) -> None:
    name = kind_name(data)
    try:
        command = Command.decode(data)
    except ZipnetError as error:
        error.diagnostics().encode()
        assert name == "unreadable"
    else:
        assert command.encode() == data
        assert name == type(command.body).__name__
