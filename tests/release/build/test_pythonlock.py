"""`requirements.lock`: its groups and pins, and the file of this version."""

import re
import tomllib
from pathlib import Path

import pytest

from release.build import pythonlock
from tests.release.build.support import ROOT

ONE, TWO = "1" * 64, "2" * 64
TEXT = f"""\
# A comment.
# group: runtime
click==8.1.8 \\
    --hash=sha256:{ONE} \\
    --hash=sha256:{TWO}
# group: build
cyclonedx-python-lib[json-validation]==11.0.0 ; python_version >= "3.11" \\
    --hash=sha256:{TWO}
    # via something
# group: dev
tox==4.30.0+local.1 \\
    --hash=sha256:{ONE}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "requirements.lock"
    path.write_text(TEXT)
    return path


def test_groups(path: Path) -> None:
    groups = pythonlock.read(path)
    assert tuple(groups) == pythonlock.GROUPS
    assert list(pythonlock.pins(groups["build"])) == ["cyclonedx-python-lib"]
    assert "#" not in "".join(groups.values())


def test_upto(path: Path) -> None:
    names = [list(pythonlock.pins(pythonlock.upto(path, g))) for g in pythonlock.GROUPS]
    assert names == [["click"], ["click", "cyclonedx-python-lib"], ["click", *names[1][1:], "tox"]]


def test_pins() -> None:
    assert pythonlock.pins("\n\n") == {}
    text = "".join(line for line in TEXT.splitlines(True) if "#" not in line)
    assert pythonlock.pins(text) == {
        "click": ("8.1.8", frozenset({ONE, TWO})),
        "cyclonedx-python-lib": ("11.0.0", frozenset({TWO})),
        "tox": ("4.30.0+local.1", frozenset({ONE})),
    }


@pytest.mark.parametrize(
    "entry",
    [
        "click",
        "click==8.1.8",
        f"click>=8.1 --hash=sha256:{ONE}",
        f"click==8.1.8 --hash=sha256:{ONE[1:]}",
        "click==8.1.8 --hash=md5:" + "1" * 32,
        f"Click==8.1.8 --hash=sha256:{ONE}",
        f"click @ https://example.org/click.whl --hash=sha256:{ONE}",
        f"-e . --hash=sha256:{ONE}",
        "--index-url https://example.org/simple",
        "-r other.txt",
    ],
)
def test_entries_without_pin_or_hash(entry: str) -> None:
    with pytest.raises(ValueError, match="not a pinned and hashed requirement"):
        pythonlock.pins(f"{entry}\n")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# group: dev", "# group: extra"),
        ("# group: dev\n", ""),
        ("# group: runtime", "# group: dev"),
    ],
)
def test_wrong_groups(path: Path, old: str, new: str) -> None:
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(ValueError, match=r"requirements\.lock has the groups"):
        pythonlock.read(path)


def test_a_requirement_outside_of_groups(path: Path) -> None:
    path.write_text(f"stray==1.0 --hash=sha256:{ONE}\n{TEXT}")
    with pytest.raises(ValueError, match="outside of the groups"):
        pythonlock.read(path)


def test_not_ascii(path: Path) -> None:
    path.write_text(TEXT.replace("comment", "cömment"))
    with pytest.raises(ValueError, match="ascii"):
        pythonlock.read(path)


def test_key() -> None:
    keys = {
        pythonlock.key("a"),
        pythonlock.key("b"),
        pythonlock.key("a", "b"),
        pythonlock.key("b", "a"),
    }
    assert len(keys) == 4
    assert all(re.fullmatch("[0-9a-f]{16}", key) for key in keys)
    assert pythonlock.key("a", "b") == pythonlock.key("a", "b")


# The file that images and environments are installed from.

LOCK = ROOT / "requirements.lock"
TPM_LOCK = ROOT / "requirements-tpm.lock"


def canonical(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def test_every_requirement_of_the_lock_is_pinned_and_hashed() -> None:
    groups = pythonlock.read(LOCK)
    pins = {name: pythonlock.pins(text) for name, text in groups.items()}
    assert all(pins.values())
    names = [name for group in pins.values() for name in group]
    assert len(names) == len(set(names))
    for group, text in groups.items():
        entries = [entry for entry in re.split(r"(?<!\\)\n", text) if entry.strip()]
        found = {entry.partition("==")[0] for entry in entries}
        assert {name.partition("[")[0] for name in found} == set(pins[group])
        # In images there is one version of each; elsewhere a marker may choose between two.
        twice = len(entries) - len(found)
        assert twice == 0 if group == "runtime" else twice <= text.count(" ; python_full_version")


@pytest.mark.parametrize("lock", [LOCK, TPM_LOCK], ids=lambda lock: lock.name)
def test_the_lock_names_no_place(lock: Path) -> None:
    text = lock.read_text("ascii")
    assert "://" not in text
    assert "index-url" not in text
    assert " @ " not in text


def test_what_is_built_from_source_is_in_no_group() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [x for x in TPM_LOCK.read_text("ascii").splitlines(True) if not x.startswith("#")]
    pins = pythonlock.pins("".join(lines))
    assert {canonical(r) for r in wanted["optional-dependencies"]["tpm"]} <= pins.keys()
    everywhere = pythonlock.pins(pythonlock.upto(LOCK, "dev"))
    assert not pins.keys() & everywhere.keys()
    # With them it is built without a network.
    assert {"cffi", "packaging", "pkgconfig", "pycparser", "setuptools", "setuptools-scm"} <= (
        everywhere.keys()
    )


def test_the_lock_covers_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {
        "runtime": project["dependencies"],
        "build": project["optional-dependencies"]["build"],
        "dev": project["optional-dependencies"]["dev"],
    }
    for group, requirements in wanted.items():
        pins = pythonlock.pins(pythonlock.upto(LOCK, group))
        names = {canonical(r) for r in requirements} - {canonical(project["name"])}
        assert names <= pins.keys(), group
