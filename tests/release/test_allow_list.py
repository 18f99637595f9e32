"""`python -m release allow-list`: made, signed one after the other, taken by the committee."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation import envelope
from attestation.allowlist import PAYLOAD_TYPE, AllowList, assemble, sign
from attestation.errors import AllowListRejected
from release import keys
from release.cli import cli
from release.verify_files import Opened
from tests.release.small import SIGNER
from tests.zipnet.configs import CONFIG
from zipnet import config_file
from zipnet.cli import main as zipnet
from zipnet.committee import bodies
from zipnet.config import Operator, deployment_id
from zipnet.protocol.codec import Reader

OPERATORS = {
    name: Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
    for seed, name in enumerate("abcd", 1)
}
PUBLIC = {name: key.public_key().public_bytes_raw() for name, key in OPERATORS.items()}
ACME = replace(CONFIG, operators=tuple(Operator(name, PUBLIC[name]) for name in "abc"), k=2)
DEPLOYMENT = deployment_id(ACME).raw
ALL = [word for name in "abc" for word in ("--operator", PUBLIC[name].hex())]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, key in OPERATORS.items():
        path = Path(f"{name}.key")
        path.touch(mode=0o600)
        path.write_text(key.private_bytes_raw().hex())
    return tmp_path


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, ["allow-list", *map(str, words)])


def rule(result: Result) -> tuple[int, str]:
    found = re.search(r"^  rule: (\S+)$", result.stderr, re.MULTILINE)
    assert found is not None, result.output
    return result.exit_code, found[1]


def first(released: Opened, *more: str) -> Result:
    """Write list 1, of the release."""
    words = ("--release", str(released.folder), "--key", SIGNER.hex, *more)
    return run(*words, "--deployment", DEPLOYMENT.hex(), "-o", "list.json")


def add(name: str, file: str, out: str, *more: str) -> Result:
    return run("sign", file, "--key-file", f"{name}.key", *(more or (*ALL, "--k", "2")), "-o", out)


def test_a_first_list(home: Path, released: Opened) -> None:
    result = first(released)
    assert result.exit_code == 0, result.output
    made = AllowList.loads(Path("list.json").read_bytes())
    assert (made.number, made.deployment_id) == (1, DEPLOYMENT)
    wanted = {one for entry in released.manifest.roles for one in entry.measurements.entries}
    assert {entry.measurement for entry in made.entries} == wanted
    assert abs(made.issued_at - datetime.now(UTC).timestamp()) < 60
    lines = result.stdout.splitlines()
    assert lines[0] == "number      1"
    assert sum(line.startswith("server ") for line in lines) == 4


def test_one_operator_after_the_other(home: Path, released: Opened) -> None:
    first(released)
    one = add("a", "list.json", "one")
    assert one.exit_code == 0, one.output
    assert "signatures  1, needed 2" in one.stdout
    assert f"missing     {PUBLIC['b'].hex()}, {PUBLIC['c'].hex()}" in one.stdout
    with pytest.raises(AllowListRejected):
        AllowList.verify(
            Path("one").read_bytes(), list(PUBLIC.values())[:3], 2, None, deployment_id=DEPLOYMENT
        )
    two = add("c", "one", "two")
    assert "next        zipnet admin allow-list push two" in two.stdout
    # What the committee does with what is pushed.
    made = AllowList.verify(
        Path("two").read_bytes(), list(PUBLIC.values())[:3], 2, None, deployment_id=DEPLOYMENT
    )
    assert made.dumps() == Path("list.json").read_bytes()
    command = bodies.RotateAllowList(Path("two").read_bytes())
    reader = Reader(command.encode(), "command", at_most=bodies.MAX_DOCUMENT + 4)
    assert bodies.RotateAllowList.read(reader) == command
    shown = run("show", "two")
    assert shown.stdout.count("signed by ") == 2
    assert "BAD" not in shown.stdout
    assert run("show", "two", "--json").stdout_bytes == Path("list.json").read_bytes()


def test_zipnet_signs_and_takes_the_same_files(home: Path, released: Opened) -> None:
    first(released)
    Path("acme.toml").write_text(config_file.dumps(ACME))
    add("a", "list.json", "one")
    words = ["admin", "allow-list", "sign", "list.json", "--key", "b.key", "--join", "one"]
    result = CliRunner().invoke(zipnet, [*words, "-o", "two", "--config", "acme.toml"])
    assert result.exit_code == 0, result.output
    assert "signatures   2, needed 2" in result.stdout
    assert add("c", "two", "three").exit_code == 0
    after = ["admin", "allow-list", "new", "--after", "list.json", "-o", "next.json"]
    result = CliRunner().invoke(zipnet, [*after, "--config", "acme.toml"])
    assert result.exit_code == 0, result.output


def test_the_list_after_it(home: Path, released: Opened) -> None:
    first(released)
    add("a", "list.json", "one")
    words = ("--release", released.folder, "--key", SIGNER.hex)
    for previous, out in (("list.json", "two"), ("one", "two-too")):
        result = run("--previous", previous, *words, "-o", out)
        assert result.exit_code == 0, result.output
    made = AllowList.loads(Path("two").read_bytes())
    assert made.number == 2
    assert made.entries == AllowList.loads(Path("list.json").read_bytes()).entries


def test_no_image_is_left(home: Path, released: Opened) -> None:
    first(released)
    words = ("--previous", "list.json", "--release", released.folder, "--key", SIGNER.hex)
    assert rule(run(*words, "--revoke", "1.2.3", "-o", "x")) == (2, "allow-list.empty")
    assert rule(run(*words, "--retire", "1.2.3=2999-01-01", "-o", "x")) == (
        2,
        "allow-list.retires-live",
    )
    assert rule(run(*words, "--number", "1", "-o", "x")) == (2, "allow-list.number")
    assert not Path("x").exists()


def test_who_signed_the_release(
    home: Path, released: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--release", released.folder, "--deployment", DEPLOYMENT.hex(), "-o", "list.json")
    result = run(*words, "--key", "0" * 64)
    assert result.exit_code == 2
    assert not Path("list.json").exists()
    show = (keys.Key("show", SIGNER.public, demo=True),)
    monkeypatch.setattr(keys, "pinned", lambda *_: show)
    assert rule(run(*words)) == (2, "allow-list.demo")
    assert not Path("list.json").exists()
    assert run(*words, "--unsafe-demo-key").exit_code == 0


def test_signatures_that_nobody_counts(home: Path, released: Opened) -> None:
    first(released)
    assert rule(add("d", "list.json", "x")) == (2, "allow-list.signer")
    payload = Path("list.json").read_bytes()
    bad = envelope.Signature(PUBLIC["b"].hex(), "00" * 64)
    Path("bad").write_bytes(assemble(payload, [bad]))
    assert rule(add("a", "bad", "x")) == (2, "allow-list.signer")
    assert "BAD SIGNATURE" in run("show", "bad").stdout
    other = sign(payload, OPERATORS["d"])
    Path("foreign").write_bytes(assemble(payload, [other]))
    assert rule(add("a", "foreign", "x")) == (2, "allow-list.signer")
    assert not Path("x").exists()


def test_operators_that_make_no_sense(home: Path, released: Opened) -> None:
    first(released)
    for words in ((*ALL[:2], "--k", "2"), (*ALL[:2], *ALL[:2])):
        result = add("a", "list.json", "x", *words)
        assert result.exit_code == 1
        assert "each --operator once" in result.stderr


def test_a_changed_list(home: Path, released: Opened) -> None:
    first(released)
    add("a", "list.json", "one")
    signed = envelope.parse(Path("one").read_bytes(), PAYLOAD_TYPE)
    changed = replace(AllowList.loads(signed.payload), number=7).dumps()
    Path("other").write_bytes(assemble(changed, signed.signatures.values()))
    assert rule(add("b", "other", "x")) == (2, "allow-list.signer")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--deployment", "00"), "64 hex digits"),
        (("--retire", "1.2.3=tomorrow"), "YYYY-MM-DD"),
        (("--retire", "1.2.3=2999-01-01", "--retire", "1.2.3=2999-01-02", "-o", "x"), "twice"),
        (("--number", "0"), "0"),
        (("--revoke", "1.2.3"), "-o FILE"),
        (("sign", "list.json"), "--key-file"),
        (("--number", "3", "show", "list.json"), "before show"),
    ],
)
def test_usage(home: Path, words: tuple[str, ...], message: str) -> None:
    result = run(*words)
    assert result.exit_code == 1
    assert message in result.stderr


def test_files(home: Path, released: Opened) -> None:
    assert rule(run("show", "none"))[0] == 3
    Path("junk").write_text("{}")
    assert rule(run("show", "junk"))[0] == 2
    first(released)
    assert rule(first(released)) == (3, "file.write")
    Path("a.key").chmod(0o644)
    assert rule(add("a", "list.json", "x")) == (2, "key.mode")
