"""Who a node is, and how it proves its code."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.bundle import Role
from attestation.cli import main as attestation
from attestation.errors import FileError, FileUnreadable, ProviderAbsent
from attestation.quote import Quote
from tests.zipnet.configs import CONFIG
from zipnet.config import Anchor, Config, deployment_id
from zipnet.errors import ConfigRejected, StateDamaged
from zipnet.node.service_identity import (
    access_of,
    aggregator_instance,
    fresh_or_of_secret,
    kept,
    of_secret,
)
from zipnet.protocol.instance import Instance
from zipnet.roles.admission import config_digest
from zipnet.roles.identity import Identity
from zipnet.unsafe_programs import Program, default_program

KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
MOCKED = replace(CONFIG, anchor=Anchor.mock(b"\x0b" * 32))
INSTANCE = Instance(deployment_id(MOCKED).raw, b"\x05" * 32)


@pytest.fixture(scope="module")
def tee(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tee")
    result = CliRunner().invoke(attestation, ["mock-pki", str(folder), "--seed", "ab" * 32])
    assert result.exit_code == 0, result.output
    return folder


def mocked(tee: Path) -> Config:
    root = hashlib.sha256((tee / "root.der").read_bytes()).digest()
    return replace(CONFIG, anchor=Anchor.mock(root))


def names(identity: Identity) -> tuple[bytes, bytes]:
    return identity.peer, identity.dh_pub


def test_keys_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    found = set()
    for boot in (1, 2):
        with kept(folder, Role.SERVER, INSTANCE, config=MOCKED) as state:
            assert state.boot_epoch == boot
            found.add(names(state.identity))
    assert len(found) == 1
    assert folder.stat().st_mode & 0o077 == 0
    with kept(folder, Role.CLIENT, INSTANCE, config=MOCKED) as state:
        assert names(state.identity) not in found


def test_a_state_has_one_user(tmp_path: Path) -> None:
    with (
        kept(tmp_path, Role.SERVER, INSTANCE, config=MOCKED),
        pytest.raises(StateDamaged) as caught,
        kept(tmp_path, Role.SERVER, INSTANCE, config=MOCKED),
    ):
        pass
    assert caught.value.rule == "state.in-use"


def test_keys_of_a_secret(tmp_path: Path) -> None:
    with kept(tmp_path, Role.SERVER, INSTANCE, config=MOCKED, signing=KEY) as state:
        assert names(state.identity) == names(of_secret(KEY)) == names(fresh_or_of_secret(KEY))
    with kept(tmp_path, Role.SERVER, INSTANCE, config=MOCKED) as state:
        assert names(state.identity) == names(of_secret(KEY))
    other = Ed25519PrivateKey.from_private_bytes(b"\x08" * 32)
    with (
        pytest.raises(ConfigRejected) as caught,
        kept(tmp_path, Role.SERVER, INSTANCE, config=MOCKED, signing=other),
    ):
        pass
    assert caught.value.rule == "secret.state"
    assert names(of_secret(other)) != names(of_secret(KEY))
    assert names(fresh_or_of_secret(None)) != names(fresh_or_of_secret(None))
    # It was let go of.
    with kept(tmp_path, Role.SERVER, INSTANCE, config=MOCKED):
        pass


@pytest.mark.parametrize("role", [Role.SERVER, Role.CLIENT])
def test_no_state_under_tdx(tmp_path: Path, role: Role) -> None:
    with (
        pytest.raises(ConfigRejected) as caught,
        kept(tmp_path, role, INSTANCE, config=CONFIG),
    ):
        pass
    assert caught.value.rule == "state.tdx"
    assert list(tmp_path.iterdir()) == []


def test_an_aggregator_keeps_its_keys_in_all_generations(tmp_path: Path) -> None:
    instance = aggregator_instance(deployment_id(CONFIG))
    with kept(tmp_path, Role.AGGREGATOR, instance, config=CONFIG) as state:
        assert state.identity.peer
    assert instance.generation == bytes(32)


def test_a_folder_that_can_not_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(FileUnreadable) as caught,
        kept(tmp_path / "file" / "below", Role.SERVER, INSTANCE, config=MOCKED),
    ):
        pass
    assert caught.value.rule == "state.folder"


def test_the_quotes_of_a_program(tee: Path) -> None:
    config = mocked(tee)
    for role, name, program in (
        (Role.SERVER, "", default_program("server")),
        (Role.CLIENT, "patched", Program("patched", "client")),
    ):
        access = access_of(config, role, tee, name, None)
        quote = Quote.parse(access.provider.quote(bytes(64)))
        assert quote.body.mr_td == program.measurement.mr_td
        assert quote.body.mr_config_id == config_digest(config) + bytes(16)
        assert access.mock_root == (tee / "root.der").read_bytes()
        assert access.admission(config, INSTANCE).mock_root == access.mock_root
        assert access.collateral is not None
        assert access.collateral(b"") == access.collateral(b"x")


def refused(config: Config, tee: Path | None, collateral: Path | None = None) -> str:
    with pytest.raises((ConfigRejected, FileError)) as caught:
        access_of(config, Role.SERVER, tee, "", collateral)
    return caught.value.rule


def test_anchor_and_options_that_do_not_fit(tee: Path, tmp_path: Path) -> None:
    assert refused(MOCKED, None) == "mock-tee.missing"
    assert refused(CONFIG, tee) == "mock-tee.anchor"
    assert refused(MOCKED, tee) == "anchor"
    for name in ("seed.hex", "root.der", "collateral.json"):
        (tmp_path / name).write_bytes((tee / name).read_bytes())
    (tmp_path / "root.der").write_bytes(b"another")
    assert refused(mocked(tee), tmp_path) == "mock-tee.root"
    for seed in (b"", b"none", b"\xff\n"):
        (tmp_path / "seed.hex").write_bytes(seed)
        assert refused(mocked(tee), tmp_path) == "mock-tee.seed"


def test_intels_collateral(tmp_path: Path, tee: Path) -> None:
    access = access_of(CONFIG, Role.CLIENT, None, "", tee / "collateral.json")
    assert access.collateral is not None
    assert access.collateral(b"").dumps() == (tee / "collateral.json").read_bytes()
    with pytest.raises(FileUnreadable):
        access_of(CONFIG, Role.CLIENT, None, "", tmp_path / "absent")


def test_without_mock_code(tee: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zipnet.unsafe_programs", None)
    with pytest.raises(ProviderAbsent) as caught:
        access_of(mocked(tee), Role.SERVER, tee, "", None)
    assert caught.value.rule == "mock-tee.absent"
