"""`zipnet admin`, what needs no network: documents that operators sign, and erasing a state."""

from __future__ import annotations

import fcntl
import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from tests.zipnet.configs import CONFIG
from zipnet import config_file
from zipnet.cli import main
from zipnet.committee import snapshot
from zipnet.committee.machine import Machine
from zipnet.committee.state import Rules
from zipnet.config import Operator, deployment_id
from zipnet.ids import InstanceIds
from zipnet.operators import (
    NOBODY,
    Dismissal,
    Endorsement,
    OperatorDocument,
    OperatorSet,
    RecoveryDocument,
)
from zipnet.protocol.codec import Reader
from zipnet.protocol.instance import Instance, generation

SECRET = b"sixteen bytes and more"
KEYS = {
    name: Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
    for seed, name in enumerate("abc", 1)
}
ACME = replace(
    CONFIG,
    operators=tuple(
        Operator(name, key.public_key().public_bytes_raw()) for name, key in KEYS.items()
    ),
)
DEPLOYMENT = deployment_id(ACME)
COMMITTEE = InstanceIds.of(DEPLOYMENT).committee.raw
INSTANCE = Instance(DEPLOYMENT.raw, generation(COMMITTEE, SECRET, 0))
PEER, DH = b"\x21" * 32, b"\x22" * 32


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "acme.toml").write_text(config_file.dumps(ACME))
    (tmp_path / "secret").write_bytes(SECRET + b"\n")
    for name, key in KEYS.items():
        (tmp_path / f"{name}.key").write_text(key.private_bytes_raw().hex() + "\n")
    snap = Machine.genesis(Rules.of(ACME), INSTANCE).snapshot()
    (tmp_path / "checkpoint").write_bytes(snap)
    return tmp_path


def run(home: Path, *words: str, key: str = "a", out: str = "out", secret: bool = True) -> Result:
    arguments = ["--config", "acme.toml", "--key", f"{key}.key", "--out", out]
    if secret:
        arguments += ["--committee-secret-file", "secret"]
    at = [str(home / one) if (home / one).exists() or one == out else one for one in arguments]
    return CliRunner().invoke(main, ["admin", *words, *at])


def named(*words: str) -> list[str]:
    return [*words, "--peer", PEER.hex(), "--dh", DH.hex()]


def endorsement(home: Path) -> Endorsement:
    reader = Reader((home / "out").read_bytes(), "endorsement", at_most=168)
    made = Endorsement.read(reader)
    reader.done()
    return made


def test_add(home: Path) -> None:
    result = run(home, *named("server", "add", "--serial", "7"))
    assert (result.exit_code, result.stderr) == (0, "")
    made = endorsement(home)
    made.verify(INSTANCE)
    assert (made.operator, made.peer, made.dh_pub) == (ACME.operators[0].key, PEER, DH)
    assert made.serial == 7
    assert KEYS["a"].private_bytes_raw().hex() not in result.output
    # What is there is not replaced.
    again = run(home, *named("server", "add"))
    assert (again.exit_code, again.stdout) == (3, "")
    assert "rule: file.write" in again.stderr
    assert endorsement(home) == made


def test_add_with_pem_and_a_generation(home: Path) -> None:
    pem = KEYS["b"].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (home / "pem.key").write_bytes(pem)
    words = named("server", "add", "--generation", "55" * 32)
    result = run(home, *words, key="pem", secret=False)
    assert result.exit_code == 0
    endorsement(home).verify(Instance(DEPLOYMENT.raw, b"\x55" * 32))
    # Milliseconds, which grow.
    assert endorsement(home).serial > 1_700_000_000_000


def test_remove(home: Path) -> None:
    words = ["server", "remove", "--peer", PEER.hex(), "--serial", "9"]
    assert run(home, *words).exit_code == 0
    reader = Reader((home / "out").read_bytes(), "dismissal", at_most=136)
    made = Dismissal.read(reader)
    reader.done()
    made.verify(INSTANCE)
    assert (made.peer, made.serial) == (PEER, 9)


def test_wipe(home: Path) -> None:
    state = home / "state"
    state.write_bytes(b"secret" * 1000)
    # Another name for the same bytes shows what becomes of them.
    (home / "other").hardlink_to(state)
    words = ["server", "remove", "--peer", PEER.hex(), "--wipe", "--state", str(state)]
    with state.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        result = run(home, *words)
    assert result.exit_code == 2
    assert "rule: state.in-use" in result.stderr
    assert state.read_bytes() == b"secret" * 1000
    result = run(home, *words, out="out2")
    assert result.exit_code == 0
    assert not state.exists()
    assert (home / "other").read_bytes() == bytes(6000)
    result = run(home, *words, out="out3")
    assert result.exit_code == 3


def test_wipe_needs_a_state(home: Path) -> None:
    for words in (["--wipe"], ["--state", "x"]):
        result = run(home, "server", "remove", "--peer", PEER.hex(), *words)
        assert result.exit_code == 1
        assert "belong together" in result.stderr
        assert not (home / "out").exists()


@pytest.mark.parametrize(
    ("content", "code", "rule"),
    [
        (b"77" * 32, 2, "key.operator"),
        (b"7" * 63, 2, "key.format"),
        (b"\xff" * 100, 2, "key.format"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", 2, "key.format"),
        (b"0" * 5000, 2, ""),
        (None, 3, "file.read"),
    ],
)
def test_keys(home: Path, content: bytes | None, code: int, rule: str) -> None:
    (home / "bad.key").unlink(missing_ok=True)
    if content is not None:
        (home / "bad.key").write_bytes(content)
    result = run(home, *named("server", "add"), key="bad")
    assert (result.exit_code, result.stdout) == (code, "")
    assert f"rule: {rule}" in result.stderr
    assert content is None or content.decode("ascii", "replace") not in result.stderr
    assert not (home / "out").exists()


def test_no_secret(home: Path) -> None:
    result = run(home, *named("server", "add"), secret=False)
    assert result.exit_code == 2
    assert "rule: committee-secret" in result.stderr


def test_no_deployment(home: Path) -> None:
    words = ["admin", *named("server", "add"), "--key", str(home / "a.key"), "-o", str(home / "o")]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert "rule: config.missing" in result.stderr


def test_operators_that_have_changed(home: Path) -> None:
    """A new operator's key counts with the document that all operators before signed."""
    new = Ed25519PrivateKey.from_private_bytes(b"\x44" * 32)
    (home / "d.key").write_text(new.private_bytes_raw().hex())
    words = named("server", "add")
    assert "rule: key.operator" in run(home, *words, key="d").stderr
    genesis = OperatorSet.genesis(ACME)
    everyone = (*ACME.operators, Operator("d", new.public_key().public_bytes_raw()))
    document = OperatorDocument.after(genesis, DEPLOYMENT.raw, everyone, 3)
    (home / "change").write_bytes(document.assemble([document.sign(k) for k in KEYS.values()]))
    result = run(home, *words, "--document", str(home / "change"), key="d")
    assert result.exit_code == 0
    endorsement(home).verify(INSTANCE)


def recover(home: Path, name: str, *more: str) -> Result:
    joined = [word for one in more for word in ("--join", str(home / one))]
    words = ["recover", str(home / "checkpoint"), *joined]
    return run(home, *words, key=name, out=f"signed-{name}")


def test_recover(home: Path) -> None:
    first, second = recover(home, "a"), recover(home, "b", "signed-a")
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert "signatures   1 of 3\nmissing      b, c\n" in first.stdout
    assert "missing      c\n" in second.stdout
    third = recover(home, "c", "signed-b")
    assert third.exit_code == 0
    assert third.stdout.endswith("signatures   3 of 3\n")
    raw = (home / "signed-c").read_bytes()
    document = RecoveryDocument.verify(raw, OperatorSet.genesis(ACME))
    document.check_follows(INSTANCE, 0)
    assert document.checkpoint == snapshot.digest((home / "checkpoint").read_bytes())
    assert document.new_generation == generation(COMMITTEE, SECRET, 1)
    assert document.offender == NOBODY


def test_recover_without_the_offender(home: Path) -> None:
    words = ["recover", str(home / "checkpoint"), "--offender", "c"]
    assert run(home, *words, out="one").exit_code == 0
    result = run(home, *words, "--join", str(home / "one"), key="b", out="two")
    assert (result.exit_code, "2 of 2" in result.stdout) == (0, True)
    raw = (home / "two").read_bytes()
    document = RecoveryDocument.verify(raw, OperatorSet.genesis(ACME))
    assert document.offender == ACME.operators[2].key
    # The offender's own signature has no place there.
    result = run(home, *words, "--join", str(home / "two"), key="c", out="three")
    assert result.exit_code == 2
    assert "rule: recovery.signers" in result.stderr
    assert not (home / "three").exists()
    result = run(home, "recover", str(home / "checkpoint"), "--offender", "x", out="four")
    assert "rule: operator.unknown" in result.stderr


def test_recover_refuses(home: Path) -> None:
    assert recover(home, "a").exit_code == 0
    other = Machine.genesis(Rules.of(ACME), Instance(DEPLOYMENT.raw, bytes(32))).snapshot()
    (home / "checkpoint").write_bytes(other)
    result = recover(home, "b", "signed-a")
    assert result.exit_code == 2
    assert "rule: recovery.other" in result.stderr
    (home / "signed-a").write_text(json.dumps({}))
    result = recover(home, "b", "signed-a")
    assert result.exit_code == 2
    assert "rule: envelope.fields" in result.stderr
    foreign = Machine.genesis(Rules.of(ACME), Instance(bytes(32), bytes(32))).snapshot()
    (home / "checkpoint").write_bytes(foreign)
    result = recover(home, "b")
    assert result.exit_code == 2
    assert "rule: deployment" in result.stderr or "rule: snapshot" in result.stderr
    (home / "checkpoint").write_bytes(b"snapshot")
    result = recover(home, "b")
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr
