"""Random bodies of commands, each well-formed."""

from __future__ import annotations

from hypothesis import strategies as st

from zipnet.committee import bodies
from zipnet.committee.bodies import Body
from zipnet.operators import Dismissal, Endorsement
from zipnet.protocol.roster import EpochKey
from zipnet.protocol.tree import Aggregator, AggregatorTree

IDS = st.binary(min_size=32, max_size=32)
SIGNATURES = st.binary(min_size=64, max_size=64)
NUMBERS = st.integers(0, 2**63 - 1)
TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=bodies.MAX_RULE)
BLOBS = st.binary(max_size=300)
ENDORSEMENTS = st.builds(Endorsement, IDS, IDS, IDS, NUMBERS, SIGNATURES)
DISMISSALS = st.builds(Dismissal, IDS, IDS, NUMBERS, SIGNATURES)
EPOCH_KEYS = st.builds(EpochKey, IDS, NUMBERS, NUMBERS, IDS, SIGNATURES)
VOUCHERS = st.builds(bodies.Voucher, IDS, IDS, NUMBERS, IDS)


@st.composite
def trees(draw: st.DrawFn) -> AggregatorTree:
    peers = draw(st.lists(IDS, min_size=1, max_size=5, unique=True))
    return AggregatorTree(
        tuple(
            Aggregator(peer, draw(IDS), draw(st.integers(0, max(at - 1, 0))))
            for at, peer in enumerate(peers)
        )
    )


def up_to(count: int, of: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(of, max_size=count).map(tuple)


KINDS: dict[type, st.SearchStrategy[Body]] = {
    bodies.Join: st.builds(bodies.Join, ENDORSEMENTS, EPOCH_KEYS, IDS),
    bodies.Leave: st.builds(bodies.Leave, st.none() | DISMISSALS),
    bodies.Suspend: st.builds(bodies.Suspend),
    bodies.ResumeNode: st.builds(bodies.ResumeNode, IDS, IDS, NUMBERS, SIGNATURES),
    bodies.ChangeOperators: st.builds(bodies.ChangeOperators, BLOBS),
    bodies.Register: st.builds(bodies.Register, BLOBS, EPOCH_KEYS),
    bodies.Renew: st.builds(bodies.Renew, BLOBS),
    bodies.EpochKeys: st.builds(bodies.EpochKeys, up_to(4, EPOCH_KEYS)),
    bodies.Vouch: st.builds(bodies.Vouch, up_to(4, VOUCHERS)),
    bodies.Refuse: st.builds(bodies.Refuse, IDS, TEXTS),
    bodies.Retire: st.builds(bodies.Retire, IDS, IDS, SIGNATURES),
    bodies.ProposeHeader: st.builds(bodies.ProposeHeader),
    bodies.SignHeader: st.builds(bodies.SignHeader, IDS, SIGNATURES),
    bodies.SubmitAggregate: st.builds(bodies.SubmitAggregate, BLOBS),
    bodies.CommitPartial: st.builds(bodies.CommitPartial, IDS),
    bodies.RevealPartial: st.builds(bodies.RevealPartial, BLOBS),
    bodies.SignRecord: st.builds(bodies.SignRecord, IDS, SIGNATURES),
    bodies.TimeoutRound: st.builds(bodies.TimeoutRound, st.integers(0, 255)),
    bodies.RotateAllowList: st.builds(bodies.RotateAllowList, BLOBS),
    bodies.Assign: st.builds(bodies.Assign, up_to(bodies.MAX_TREES, trees())),
    bodies.Tick: st.builds(bodies.Tick),
    bodies.Checkpoint: st.builds(bodies.Checkpoint, NUMBERS, IDS, IDS, SIGNATURES),
    bodies.Recover: st.builds(bodies.Recover, BLOBS),
}
BODIES = st.one_of(*KINDS.values())
