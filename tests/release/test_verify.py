"""`release verify`: its steps in their order, and that no byte of a release can change."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from release import keys, rebuild, signing, verify
from release.build.deb import digest as sha256
from release.build.settings import Role
from release.errors import HostError, ReleaseRejected
from release.manifest import NAME, SIGNATURE, SUMS, Manifest
from release.rebuild import Difference
from release.verify import Outcome, Request, State, exit_code
from release.verify_files import Opened
from tests.release import small
from tests.release.small import KEY, NOW, OTHER_KEY, SIGNER, World

STEPS = ["signature", "schema", "files", "sums", "measurements", "rebuild", "quote"]


def run(folder: Path, key: str = SIGNER.hex, **more: Any) -> list[Outcome]:
    return list(verify.verify(Request(folder, key, NOW, **more), lambda _: None))


def last(outcomes: list[Outcome]) -> tuple[str, State, str]:
    return outcomes[-1].step, outcomes[-1].state, outcomes[-1].rule


def of(outcomes: list[Outcome], step: str) -> Outcome:
    return next(outcome for outcome in outcomes if outcome.step == step)


@pytest.fixture
def copy(released: Opened, tmp_path: Path) -> Path:
    """The release, to be changed."""
    return shutil.copytree(released.folder, tmp_path / "copy")


def signed_again(folder: Path, raw: bytes) -> None:
    """A manifest that its publisher signed, whatever is in it."""
    (folder / NAME).write_bytes(raw)
    (folder / SIGNATURE).write_bytes(signing.sign(raw, signing.PAYLOAD_TYPE, KEY))


def changed_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    signed_again(folder, small.altered((folder / NAME).read_bytes(), change))


def test_a_good_release(released: Opened) -> None:
    outcomes = run(released.folder)
    assert [outcome.step for outcome in outcomes] == STEPS
    good, rest = outcomes[:4], outcomes[4:]
    assert all(outcome.state is State.GOOD for outcome in good)
    assert [outcome.state for outcome in rest] == [State.ABSENT, State.NOT_ASKED, State.NOT_ASKED]
    assert exit_code(outcomes) == 0
    assert SIGNER.hex in good[0].detail
    assert released.manifest.commit in good[1].detail
    assert small.VERSION in good[1].detail


def test_another_key(released: Opened) -> None:
    outcomes = run(released.folder, OTHER_KEY.public_key().public_bytes_raw().hex())
    assert last(outcomes) == ("signature", State.REFUSED, "signature.key")
    assert exit_code(outcomes) == 2
    # That the key is no key is seen before anything is read.
    assert last(run(released.folder / "nowhere", "key"))[2] == "key.format"


def test_a_demonstration_key_is_said_to_be_one(
    released: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = keys.Key("show", SIGNER.public, demo=True)
    real = keys.Key("real", SIGNER.public)
    for known, told in ((demo, True), (real, False)):
        monkeypatch.setattr(keys, "pinned", lambda *_, known=known: (known,))
        for text in ("pinned", SIGNER.hex):
            detail = run(released.folder, text)[0].detail
            assert ("demo key: trust nothing signed by it" in detail) is told


def test_no_release(tmp_path: Path) -> None:
    outcomes = run(tmp_path)
    assert last(outcomes) == ("signature", State.FAILED, "file.read")
    assert exit_code(outcomes) == 3


def test_a_manifest_beside_another_signature(copy: Path, released: Opened) -> None:
    raw = released.signed.payload.replace(b'"retirement_days": 30', b'"retirement_days": 31')
    (copy / NAME).write_bytes(raw)
    assert last(run(copy)) == ("signature", State.REFUSED, "release.payload")


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda d: d.update(schema="zipnet.release/2"), "manifest.schema"),
        (lambda d: d.update(more=1), "manifest.fields"),
        (
            lambda d: d["roles"]["client"]["measurements"][0].update(is_dev=True),
            "manifest.is-dev",
        ),
        (
            lambda d: d["roles"]["client"]["measurements"][0].update(boot_proof="skipped"),
            "manifest.boot-proof",
        ),
    ],
)
def test_a_signed_manifest_that_is_none(
    copy: Path, change: Callable[[dict[str, Any]], object], rule: str
) -> None:
    changed_manifest(copy, change)
    assert last(run(copy)) == ("schema", State.REFUSED, rule)


def _extra(folder: Path) -> None:
    (folder / "more.txt").write_text("")


def _inside(folder: Path) -> None:
    (folder / "client" / "zipnet-client.efi").write_text("")


def _deep(folder: Path) -> None:
    (folder / "client" / "more").mkdir()


def _gone(folder: Path) -> None:
    (folder / "client" / "mrtd.hex").unlink()


def _link(folder: Path) -> None:
    notes = folder / "notes.md"
    notes.rename(folder.parent / "notes.md")
    notes.symlink_to(folder.parent / "notes.md")


def _changed(folder: Path) -> None:
    path = folder / "client" / "mrtd.hex"
    path.write_bytes(path.read_bytes()[::-1])


def _longer(folder: Path) -> None:
    with (folder / "notes.md").open("a") as file:
        file.write("\n")


def _shorter(folder: Path) -> None:
    path = folder / "notes.html"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("spoil", "rule", "word"),
    [
        (_extra, "release.unlisted", "more.txt"),
        (_inside, "release.unlisted", "client/zipnet-client.efi"),
        (_deep, "release.kind", "client/more"),
        (_gone, "release.missing", "client/mrtd.hex"),
        (_link, "release.kind", "notes.md"),
        (_changed, "release.file", "client/mrtd.hex"),
        (_longer, "file.size", "notes.md"),
        (_shorter, "release.file", "notes.html"),
    ],
)
def test_other_files(copy: Path, spoil: Callable[[Path], None], rule: str, word: str) -> None:
    spoil(copy)
    outcomes = run(copy)
    assert last(outcomes) == ("files", State.REFUSED, rule)
    assert word in outcomes[-1].detail
    assert exit_code(outcomes) == 2


def _drop(path: str) -> Callable[[Path], None]:
    """The publisher signs a release without this file."""

    def change(folder: Path) -> None:
        (folder / path).unlink()
        changed_manifest(
            folder,
            lambda d: d.update(files=[file for file in d["files"] if file["path"] != path]),
        )

    return change


def _replace(path: str, data: bytes) -> Callable[[Path], None]:
    """The publisher signs a release with other bytes in this file."""

    def change(folder: Path) -> None:
        (folder / path).write_bytes(data)
        digest = sha256(folder / path)

        def update(document: dict[str, Any]) -> None:
            for file in document["files"]:
                if file["path"] == path:
                    file.update(size=len(data), sha256=digest)

        changed_manifest(folder, update)

    return change


@pytest.mark.parametrize(
    ("spoil", "step", "rule"),
    [
        (_drop(SUMS), "files", "release.missing"),
        (_drop("provenance.intoto.json"), "files", "release.missing"),
        (_drop("client/mrtd.hex"), "files", "release.missing"),
        (_drop("client/measurements.json"), "files", "release.missing"),
        (_drop("notes.md"), "sums", "release.sums"),
        (_replace("notes.md", b"# other\n"), "sums", "release.sums"),
        (_replace(SUMS, b"no sums\n"), "sums", "sums.format"),
        (_replace("client/mrtd.hex", b"0" * 96), "schema", "manifest.stale"),
        (_replace("provenance.intoto.json", b"{}"), "files", "envelope.fields"),
    ],
)
def test_a_stale_manifest(copy: Path, spoil: Callable[[Path], None], step: str, rule: str) -> None:
    spoil(copy)
    assert last(run(copy)) == (step, State.REFUSED, rule)


def _published(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.fixture(scope="module")
def scratch(released: Opened, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(released.folder, tmp_path_factory.mktemp("bytes") / "copy")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_other_byte_of_any_file_is_refused(scratch: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(list(_published(scratch))))
    good = path.read_bytes()
    raw = bytearray(good)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    try:
        outcomes = run(scratch)
    finally:
        path.write_bytes(good)
    assert outcomes[-1].state is State.REFUSED
    assert outcomes[-1].rule
    assert exit_code(outcomes) == 2
    outcomes[-1].detail.encode()


def test_every_file_counts(scratch: Path) -> None:
    for path in _published(scratch):
        good = path.read_bytes()
        for bad in (good + b"\0", good[:-1], bytes([good[0] ^ 1]) + good[1:], b""):
            path.write_bytes(bad)
            outcomes = run(scratch)
            assert exit_code(outcomes) == 2, path
            assert outcomes[-1].state is State.REFUSED
        path.unlink()
        assert exit_code(run(scratch)) != 0, path
        path.write_bytes(good)
    assert exit_code(run(scratch)) == 0


def test_measurements(released: Opened, small_world: World) -> None:
    outcomes = run(released.folder, artifacts=small_world.out)
    assert of(outcomes, "measurements").state is State.GOOD
    assert exit_code(outcomes) == 0


def test_images_in_one_folder(released: Opened, small_world: World, tmp_path: Path) -> None:
    for role in Role:
        for end in ("efi", "fd"):
            name = f"zipnet-{role}.{end}"
            shutil.copy(small_world.out / role / name, tmp_path / name)
    assert exit_code(run(released.folder, artifacts=tmp_path)) == 0


def test_absent_images(released: Opened, small_world: World, tmp_path: Path) -> None:
    shutil.copytree(small_world.out / "client", tmp_path / "client")
    outcomes = run(released.folder, artifacts=tmp_path)
    assert of(outcomes, "measurements").state is State.ABSENT
    assert "zipnet-server.efi" in of(outcomes, "measurements").detail
    # The others are all the same looked at.
    assert [outcome.step for outcome in outcomes] == STEPS
    assert exit_code(outcomes) == 3
    assert exit_code(run(released.folder, artifacts=tmp_path, roles=("client",))) == 0
    (tmp_path / "client/zipnet-client.fd").unlink()
    assert exit_code(run(released.folder, artifacts=tmp_path, roles=("client",))) == 3


@pytest.mark.parametrize("name", ["zipnet-client.efi", "zipnet-client.fd", "run-qemu"])
def test_another_image(released: Opened, small_world: World, tmp_path: Path, name: str) -> None:
    out = shutil.copytree(small_world.out, tmp_path / "out")
    path = out / "client" / name
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    outcomes = run(released.folder, artifacts=out)
    assert of(outcomes, "measurements").rule == "verify.artifact"
    assert name in of(outcomes, "measurements").detail
    assert exit_code(outcomes) == 2


@pytest.mark.parametrize("register", ["mr_td", "rtmr1", "rtmr2"])
def test_registers_that_are_not_the_image_s(
    released: Opened, small_world: World, register: str
) -> None:
    raw = small.altered(
        released.signed.payload,
        lambda d: d["roles"]["client"]["measurements"][1].update({register: "0" * 96}),
    )
    # The published copy in the manifest's list is another matter: only the step counts here.
    with small.refused(ReleaseRejected, "verify.measurements", register, "client"):
        verify.check_measurements(Manifest.loads(raw), small_world.out)


def test_a_role_that_there_is_not(released: Opened) -> None:
    assert last(run(released.folder, roles=("king",))) == (
        "schema",
        State.REFUSED,
        "release.role",
    )


def test_rebuild(
    released: Opened, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_world: World
) -> None:
    asked: list[tuple[Any, ...]] = []

    def fake(manifest: Manifest, checkout: Path, out: Path, *more: Any) -> Path:
        asked.append(([entry.role for entry in manifest.roles], checkout, more[0]))
        for entry in manifest.roles:
            shutil.copytree(small_world.out / entry.role, out / entry.role)
        return out

    monkeypatch.setattr(rebuild, "rebuild", fake)
    outcomes = run(released.folder, checkout=tmp_path, roles=("client",), bundle=tmp_path / "b")
    assert of(outcomes, "rebuild").state is State.GOOD
    assert exit_code(outcomes) == 0
    assert asked == [(["client"], tmp_path, tmp_path / "b")]


def test_a_rebuild_that_differs(
    released: Opened, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    difference = Difference("client", "zipnet-client.efi", "usr/lib/x.so", "libx 1-1", "content")
    monkeypatch.setattr(rebuild, "rebuild", lambda *_: tmp_path)
    monkeypatch.setattr(rebuild, "compare", lambda *_, **__: [difference])
    outcomes = run(released.folder, checkout=tmp_path)
    assert of(outcomes, "rebuild").state is State.REFUSED
    assert "usr/lib/x.so" in of(outcomes, "rebuild").detail
    assert "libx 1-1" in of(outcomes, "rebuild").detail
    assert exit_code(outcomes) == 2


def test_a_rebuild_that_can_t_be(
    released: Opened, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(*_: object) -> Path:
        raise HostError("no mirror", rule="test")

    monkeypatch.setattr(rebuild, "rebuild", fails)
    outcomes = run(released.folder, checkout=tmp_path)
    assert of(outcomes, "rebuild").state is State.FAILED
    assert outcomes[-1].step == "quote"
    assert exit_code(outcomes) == 3


def test_without_any_step_nothing_is_good() -> None:
    assert exit_code([]) == 3
