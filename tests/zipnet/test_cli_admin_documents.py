"""`zipnet admin allow-list new | sign` and `zipnet admin operators`: what all operators sign."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.allowlist import AllowList, TcbPolicy
from attestation.measure.record import Measurements
from attestation.verify import TcbStatus
from tests.zipnet.configs import CONFIG
from tests.zipnet.test_cli_network import live
from zipnet import config_file
from zipnet.access import Access
from zipnet.cli import main
from zipnet.commands.admin_documents import send_operators
from zipnet.commands.network import committee
from zipnet.commands.settings import Deployment
from zipnet.config import Operator, deployment_id
from zipnet.demo import DemoInstance
from zipnet.errors import DocumentRejected
from zipnet.operators import OperatorDocument, OperatorSet, follow
from zipnet.unsafe_programs import Program

KEYS = {
    name: Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
    for seed, name in enumerate("abcd", 1)
}
PUBLIC = {name: key.public_key().public_bytes_raw() for name, key in KEYS.items()}
ACME = replace(CONFIG, operators=tuple(Operator(name, PUBLIC[name]) for name in "abc"), k=2)
DEPLOYMENT = deployment_id(ACME).raw
OPERATORS = OperatorSet.genesis(ACME)
OLD, NEW = Program("server", "server").measurement, Program("server 2", "server").measurement


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("acme.toml").write_text(config_file.dumps(ACME))
    Path("other.toml").write_text(config_file.dumps(replace(ACME, name="other.test")))
    for name, key in KEYS.items():
        Path(f"{name}.key").write_text(key.private_bytes_raw().hex())
    Path("old.json").write_bytes(Measurements((OLD,)).dumps())
    Path("new.json").write_bytes(Measurements((NEW,)).dumps())
    return tmp_path


def run(*words: str, config: str = "acme.toml") -> Result:
    return CliRunner().invoke(main, ["admin", *words, "--config", config])


def rule(result: Result) -> tuple[int, str]:
    found = re.search(r"^  rule: (\S+)$", result.stderr, re.MULTILINE)
    assert found, result.output
    return result.exit_code, found[1]


def made(*words: str) -> str:
    result = run(*words)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def signed(verb: str, file: str, name: str, *more: str) -> Result:
    return run(verb, "sign", file, "--key", f"{name}.key", "-o", f"{file}.{name}", *more)


def test_the_first_list_and_the_next(home: Path) -> None:
    assert made("allow-list", "new", "old.json", "-o", "1").startswith("list 1 of 1 entries, ")
    first = AllowList.loads(Path("1").read_bytes())
    assert (first.deployment_id, first.number) == (DEPLOYMENT, 1)
    policy = TcbPolicy(frozenset({TcbStatus("UpToDate"), TcbStatus("SWHardeningNeeded")}))
    Path("1").write_bytes(replace(first, tcb=policy).dumps())
    made("allow-list", "new", "new.json", "--after", "1", "-o", "2")
    second = AllowList.loads(Path("2").read_bytes())
    assert [one.measurement for one in second.entries] == [OLD, NEW]
    assert (second.number, second.tcb) == (2, policy)
    assert second.issued_at >= first.issued_at
    made("allow-list", "new", "--after", "2", "--drop", "old.json", "-o", "3")
    third = AllowList.loads(Path("3").read_bytes())
    assert [one.measurement for one in third.entries] == [NEW]
    words = ("allow-list", "new", "--after", "3", "--drop", "old.json", "-o", "4")
    assert rule(run(*words)) == (2, "list.drop")
    assert rule(run("allow-list", "new", "-o", "4")) == (2, "list.empty")
    other = run("allow-list", "new", "--after", "3", "-o", "4", config="other.toml")
    assert rule(other) == (2, "deployment")
    assert not Path("4").exists()


def test_a_list_is_signed_in_turn(home: Path) -> None:
    made("allow-list", "new", "old.json", "-o", "list")
    first = signed("allow-list", "list", "a")
    assert first.stdout == "signatures   1, needed 2\nmissing      b, c\n"
    second = signed("allow-list", "list", "b", "--join", "list.a")
    assert second.stdout == "signatures   2, needed 2\nmissing      c\n"
    keys = OPERATORS.keys
    found = AllowList.verify(Path("list.b").read_bytes(), keys, 2, None, deployment_id=DEPLOYMENT)
    assert found.number == 1
    assert rule(signed("allow-list", "list", "d")) == (2, "key.operator")
    # Seconds later the same list is another one.
    Path("again").write_bytes(replace(found, issued_at=found.issued_at + 1).dumps())
    assert rule(signed("allow-list", "again", "c", "--join", "list.a")) == (2, "document.other")
    assert rule(signed("allow-list", "list", "c", "--join", "again")) == (2, "envelope.fields")
    words = ("allow-list", "sign", "list", "--key", "c.key", "-o", "out")
    assert rule(run(*words, config="other.toml")) == (2, "deployment")


def test_operators_change(home: Path) -> None:
    added = f"d={PUBLIC['d'].hex()}"
    said = made("operators", "new", "--add", added, "--drop", "b", "-o", "change")
    assert said == "document 1: a, c, d\n"
    made_ = OperatorDocument.loads(Path("change").read_bytes())
    assert (made_.number, made_.previous, made_.k) == (1, DEPLOYMENT, 2)
    signed("operators", "change", "a")
    signed("operators", "change", "b", "--join", "change.a")
    last = signed("operators", "change", "c", "--join", "change.b")
    assert last.stdout == "signatures   3, needed 3\n"
    after = follow(ACME, [Path("change.c").read_bytes()])
    assert [one.name for one in after.operators] == ["a", "c", "d"]
    # The next one follows that.
    more = ("--document", "change.c", "--drop", "a", "--drop", "c", "-o", "next")
    assert made("operators", "new", *more) == "document 2: d\n"
    assert OperatorDocument.loads(Path("next").read_bytes()).k == 1
    assert signed("operators", "next", "d", "--document", "change.c").exit_code == 0
    assert rule(signed("operators", "next", "d")) == (2, "key.operator")
    out = ("operators", "new", "--drop", "nobody", "-o", "never")
    assert rule(run(*out)) == (2, "operator.unknown")
    again = ("operators", "new", "--add", f"a={PUBLIC['d'].hex()}", "-o", "never")
    assert rule(run(*again)) == (2, "operators.operators")
    words = ("operators", "sign", "change", "--key", "c.key", "-o", "never")
    assert rule(run(*words, config="other.toml")) == (2, "deployment")
    assert not Path("never").exists()


def test_nobody_to_hand_it_to(home: Path) -> None:
    Path("change").write_text(json.dumps({}))
    result = run("operators", "push", "change")
    assert rule(result) == (3, "network.absent")


def test_the_list_in_force_must_stay_good() -> None:
    """Operators under whom it would lack signatures are not handed over; others are."""

    async def play(instance: DemoInstance, deployment: Deployment, access: Access) -> None:
        network, keys = instance.network, instance.operators.keys
        async with asyncio.timeout(10):
            while not any((await committee(network, deployment)).notices["alpha"].accepted):
                await asyncio.sleep(0.02)
        known = (await committee(network, deployment)).operators
        new = Operator("delta", PUBLIC["d"])

        def after(k: int) -> bytes:
            everyone = (*known.operators, new)
            document = OperatorDocument.after(known, deployment.id.raw, everyone, k)
            return document.assemble([document.sign(key) for key in keys.values()])

        with pytest.raises(DocumentRejected) as caught:
            await send_operators(network, deployment, after(4))
        assert caught.value.rule == "operators.list"
        assert instance.servers[0].state.operators == known
        found = await send_operators(network, deployment, after(3))
        assert instance.servers[0].state.operators == found
        assert (found.number, len(found.operators)) == (1, 4)

    live(play)
