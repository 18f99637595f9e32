"""Configurations for tests: one that holds, and random ones."""

from hypothesis import strategies as st

from zipnet.config import Anchor, Clients, Config, Operator, ShuffleWindow

LABELS = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,8}[a-z0-9])?", fullmatch=True)
KEYS = st.binary(min_size=32, max_size=32).filter(any)
OPERATORS = tuple(Operator(name, bytes([seed]) * 32) for seed, name in enumerate("abc", 1))
CONFIG = Config(
    name="acme.mainnet",
    type_tag="acme.note",
    wire_size=240,
    window=ShuffleWindow.interactive(),
    operators=OPERATORS,
    init=b"\x09" * 32,
)


@st.composite
def windows(draw: st.DrawFn) -> ShuffleWindow:
    slots = draw(st.integers(1, 64))
    fold = draw(st.integers(50, 10_000))
    least = draw(st.integers(1, 50))
    rounds = draw(st.integers(1, 10_000))
    return ShuffleWindow(
        num_slots=slots,
        num_sched_slots=draw(st.integers(slots, 512)),
        round_period_ms=draw(st.integers(100, 100_000)),
        round_deadline_ms=draw(st.integers(max(100, fold + 1), 100_000)),
        fold_deadline_ms=fold,
        min_participants=least,
        min_servers=draw(st.integers(0, 1)),
        max_clients=draw(st.integers(least, 1 << 20)),
        max_clients_per_platform=draw(st.integers(0, 8)),
        epoch_rounds=rounds,
        messages_per_epoch=draw(st.integers(1, rounds)),
        byte_quota=draw(st.just(0) | st.integers(1 << 25, 1 << 30)),
    )


@st.composite
def configs(draw: st.DrawFn) -> Config:
    names = draw(st.lists(LABELS, min_size=1, max_size=4, unique=True))
    keys = draw(st.lists(KEYS, min_size=len(names), max_size=len(names), unique=True))
    root = draw(st.none() | st.binary(min_size=32, max_size=32))
    return Config(
        name=draw(LABELS),
        type_tag=draw(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1)),
        wire_size=draw(st.integers(1, 4096)),
        window=draw(windows()),
        operators=tuple(map(Operator, names, keys)),
        init=draw(st.binary(min_size=32, max_size=32)),
        k=draw(st.integers(0, len(names))),
        clients=draw(st.sampled_from(Clients)),
        anchor=Anchor.tdx() if root is None else Anchor.mock(root),
    )
