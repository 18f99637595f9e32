"""A deployment's configuration: what it refuses, and that every value of it is in the id."""

import dataclasses
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tests.zipnet.configs import CONFIG, OPERATORS, configs
from tests.zipnet.test_datum import Note, variant
from zipnet import config as module
from zipnet.config import Anchor, Clients, Config, Operator, ShuffleWindow, deployment_id
from zipnet.errors import ConfigRejected, DatumRejected

WINDOW = CONFIG.window
KEY = OPERATORS[0].key


def rule(call: Any, *arguments: Any, **named: Any) -> str:
    with pytest.raises(ConfigRejected) as caught:
        call(*arguments, **named)
    caught.value.diagnostics().encode()
    return caught.value.rule


# The id.


def test_id_is_the_derived_key_of_the_encoding() -> None:
    found = deployment_id(CONFIG)
    assert found.raw == blake3(CONFIG.encode(), derive_key_context="zipnet/deployment/v2").digest()
    assert found.hex() == "8a56b8bc98da5e8b4558460ccef41db713f96e3a8270620738876e6e177fbdb2"


def parsed(raw: bytes) -> list[bytes]:
    """The fields of an encoding, read by the description alone."""
    result = []
    while raw:
        end = 4 + int.from_bytes(raw[:4], "big")
        assert end <= len(raw)
        result.append(raw[4:end])
        raw = raw[end:]
    return result


@given(configs())
def test_encoding_holds_everything(config: Config) -> None:
    raw = config.encode()
    assert raw[0] == 1
    name, tag, size, window, suite, wire, init, operators, k, clients, anchor = parsed(raw[1:])
    numbers = [int.from_bytes(window[at : at + 8], "big") for at in range(0, len(window), 8)]
    assert len(window) == 8 * 12
    kind, root = parsed(anchor)
    assert kind == (b"mock" if root else b"tdx")
    rebuilt = Config(
        name=name.decode(),
        type_tag=tag.decode(),
        wire_size=int.from_bytes(size, "big"),
        window=ShuffleWindow(*numbers),
        operators=tuple(
            Operator(label.decode(), key) for label, key in map(parsed, parsed(operators))
        ),
        init=init,
        k=int.from_bytes(k, "big"),
        clients=Clients(clients.decode()),
        anchor=Anchor.mock(root) if root else Anchor.tdx(),
        suite=suite.decode(),
        wire_version=int.from_bytes(wire, "big"),
    )
    assert rebuilt == config
    assert rebuilt.encode() == raw


@given(configs(), configs())
def test_encoding_is_injective(one: Config, other: Config) -> None:
    assert (one.encode() == other.encode()) == (one == other)


@given(configs(), st.randoms(use_true_random=False))
def test_order_of_operators_is_irrelevant(config: Config, random: Any) -> None:
    shuffled = list(config.operators)
    random.shuffle(shuffled)
    again = replace(config, operators=tuple(shuffled))
    assert again == config
    assert deployment_id(again) == deployment_id(config)


def values(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All values below a dataclass, by their paths."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from values(getattr(value, field.name), f"{path}.{field.name}".lstrip("."))
    elif isinstance(value, tuple):
        for at, each in enumerate(value):
            yield from values(each, f"{path}.{at}")
    else:
        yield path, value


def changed(value: Any, path: list[str], new: Any) -> Any:
    """A copy of `value` with `new` at a path."""
    if not path:
        return new
    head, *rest = path
    if isinstance(value, tuple):
        at = int(head)
        return (*value[:at], changed(value[at], rest, new), *value[at + 1 :])
    return replace(value, **{head: changed(getattr(value, head), rest, new)})


BASE = replace(CONFIG, anchor=Anchor.mock(b"\x05" * 32))
OTHERS: dict[str, Any] = {
    "name": "acme.testnet",
    "type_tag": "acme.note2",
    "init": b"\x0a" * 32,
    "k": 2,
    "clients": Clients.UNATTESTED,
    "anchor.root": b"\x06" * 32,
    "window.min_servers": 2,
    "window.max_clients_per_platform": 3,
}
# Only one value of each exists; another one stands in for that of a later version.
FIXED = {"suite": ("SUITE", "x25519-other"), "wire_version": ("WIRE_VERSION", 3)}


def other(path: str, value: Any) -> Any:
    if path in OTHERS:
        return OTHERS[path]
    if path.startswith("operators."):
        return "z" if path.endswith(".name") else b"\x77" * 32
    if path.startswith("window.") or path == "wire_size":
        return value + 1
    raise AssertionError(f"this test does not know {path}: is it in the encoding?")


@pytest.mark.parametrize("path", [path for path, _ in values(BASE)])
def test_every_value_is_in_the_id(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if path == "anchor.kind":
        assert deployment_id(replace(BASE, anchor=Anchor.tdx())) != deployment_id(BASE)
        return
    before = deployment_id(BASE)
    if path in FIXED:
        constant, new = FIXED[path]
        monkeypatch.setattr(module, constant, new)
    else:
        new = other(path, dict(values(BASE))[path])
    assert deployment_id(changed(BASE, path.split("."), new)) != before


def test_an_operator_less_or_more_is_in_the_id() -> None:
    one = replace(CONFIG, k=2, window=ShuffleWindow.interactive())
    less = replace(one, operators=OPERATORS[:2], window=ShuffleWindow.interactive())
    assert deployment_id(less) != deployment_id(one)


def test_the_datum_must_be_the_one_of_the_deployment() -> None:
    config = Config.new("acme", Note, operators=OPERATORS)
    assert deployment_id(config, Note) == deployment_id(config)
    assert rule(deployment_id, config, variant(TYPE_TAG="test.other")) == "datum"
    assert rule(deployment_id, config, variant(WIRE_SIZE=5)) == "datum"
    assert rule(deployment_id, config, variant(WIRE_SIZE=True)) == "datum"


# Construction.


def test_new() -> None:
    config = Config.new("acme.mainnet", Note, operators=list(reversed(OPERATORS)))
    assert (config.type_tag, config.wire_size) == ("test.note", 4)
    assert (config.operators, config.k, config.window.min_servers) == (OPERATORS, 3, 3)
    assert (config.clients, str(config.anchor)) == (Clients.ATTESTED, "tdx")
    bulk = config.with_window(ShuffleWindow.bulk()).with_init(b"\1" * 32)
    assert (bulk.window.num_slots, bulk.init) == (1024, b"\1" * 32)
    with pytest.raises(DatumRejected):
        Config.new("acme", variant(WIRE_SIZE=0), operators=OPERATORS)


def test_zeros_are_replaced() -> None:
    config = CONFIG
    assert 1 << 20 < 4 * config.shape.payload_bytes + (1 << 20) <= 2 << 20
    assert (config.window.min_servers, config.window.byte_quota, config.k) == (3, 16 << 20, 3)
    window = replace(ShuffleWindow.interactive(), min_servers=3, byte_quota=16 << 20)
    assert replace(config, k=3, window=window) == config


@pytest.mark.parametrize(
    "window", [ShuffleWindow.interactive(), ShuffleWindow.standard(), ShuffleWindow.bulk()]
)
def test_presets(window: ShuffleWindow) -> None:
    assert window.num_sched_slots == 4 * window.num_slots
    # What the message bus needs at least.
    assert window.round_deadline_ms >= 25_000
    assert window.fold_deadline_ms < window.round_period_ms
    assert window.epoch_rounds == 64
    config = CONFIG.with_window(window)
    assert config.shape.slot_bytes == 240 + 16
    assert config.shape.datum_bytes == config.wire_size


# What is refused.


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"name": ""}, "name"),
        ({"name": "Acme"}, "name"),
        ({"name": "-acme"}, "name"),
        ({"name": "acme."}, "name"),
        ({"name": "a" * 65}, "name"),
        ({"name": "acme\n"}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": 7}, "name"),
        ({"type_tag": ""}, "datum.type_tag"),
        ({"type_tag": "é"}, "datum.type_tag"),
        ({"type_tag": "x" * 65}, "datum.type_tag"),
        ({"wire_size": 0}, "datum.wire_size"),
        ({"wire_size": True}, "datum.wire_size"),
        ({"wire_size": (1 << 20) + 1}, "datum.wire_size"),
        ({"wire_size": 1 << 20}, "shape"),
        ({"init": bytes(31)}, "init"),
        ({"init": "00" * 32}, "init"),
        ({"suite": "none"}, "suite"),
        ({"wire_version": 1}, "wire_version"),
        ({"wire_version": 2.0}, "wire_version"),
        ({"clients": "maybe"}, "clients"),
        ({"clients": None}, "clients"),
        ({"clients": []}, "clients"),
        ({"anchor": "tdx"}, "type"),
        ({"window": None}, "type"),
        ({"operators": ()}, "operators"),
        ({"operators": (OPERATORS[0], Operator("a", b"\x08" * 32))}, "operators"),
        ({"operators": (OPERATORS[0], Operator("d", KEY))}, "operators"),
        ({"operators": ("a",)}, "operators"),
        ({"k": 4}, "k"),
        ({"k": -1}, "k"),
        ({"k": True}, "k"),
        ({"k": 10**5000}, "k"),
    ],
)
def test_refused(changes: dict[str, Any], where: str) -> None:
    assert rule(replace, CONFIG, **changes) == where


def test_operators_at_most() -> None:
    many = tuple(Operator(f"op{at}", bytes([at + 1]) * 32) for at in range(65))
    whole = ShuffleWindow.interactive()
    assert replace(CONFIG, operators=many[:64], k=0, window=whole).k == 64
    assert rule(replace, CONFIG, operators=many, k=0, window=whole) == "operators"


@pytest.mark.parametrize(
    ("name", "key", "where"),
    [
        ("", KEY, "operators.name"),
        ("A", KEY, "operators.name"),
        (None, KEY, "operators.name"),
        ("a", KEY[:31], "operators.key"),
        ("a", bytes(32), "operators.key"),
        ("a", KEY.hex(), "operators.key"),
        ("a", None, "operators.key"),
    ],
)
def test_operators_refused(name: Any, key: Any, where: str) -> None:
    assert rule(Operator, name, key) == where


@pytest.mark.parametrize(
    ("kind", "root"),
    [
        ("tdx", bytes(32)),
        ("mock", b""),
        ("mock", bytes(31)),
        ("sgx", b""),
        ("", b""),
        (None, b""),
        ("mock", "00" * 32),
    ],
)
def test_anchors_refused(kind: Any, root: Any) -> None:
    assert rule(Anchor, kind, root) == "anchor"


@pytest.mark.parametrize(
    "text", ["", "TDX", "tdx ", "mock", "mock=", "mock=" + "0" * 63, "mock=" + "A" * 64, "tdx=00"]
)
def test_anchor_texts_refused(text: str) -> None:
    assert rule(Anchor.parse, text) == "anchor"


def test_anchor_texts() -> None:
    for anchor in (Anchor.tdx(), Anchor.mock(b"\x1f" * 32)):
        assert Anchor.parse(str(anchor)) == anchor


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        *(({name: low - 1}, name) for name, (low, _) in module._RANGES.items()),
        *(({name: high + 1}, name) for name, (_, high) in module._RANGES.items()),
        *(({name: True}, name) for name in module._RANGES),
        ({"num_slots": 2.0}, "num_slots"),
        ({"num_slots": 257}, "num_sched_slots"),
        ({"fold_deadline_ms": 30_000}, "round_deadline_ms"),
        ({"min_participants": 1025}, "min_participants"),
        ({"messages_per_epoch": 65}, "messages_per_epoch"),
    ],
)
def test_windows_refused(changes: dict[str, Any], where: str) -> None:
    assert rule(replace, WINDOW, **changes) == f"window.{where}"


def test_every_number_of_the_window_has_a_range() -> None:
    assert list(module._RANGES) == [field.name for field in dataclasses.fields(ShuffleWindow)]


def test_windows_that_do_not_fit_the_rest() -> None:
    assert rule(CONFIG.with_window, replace(WINDOW, min_servers=4)) == "window.min_servers"
    least = 4 * CONFIG.shape.payload_bytes + (1 << 20)
    CONFIG.with_window(replace(WINDOW, byte_quota=least))
    assert rule(CONFIG.with_window, replace(WINDOW, byte_quota=least - 1)) == "window.byte_quota"
    large = replace(WINDOW, num_slots=1 << 15, num_sched_slots=1 << 15)
    assert rule(CONFIG.with_window, large) == "shape"
