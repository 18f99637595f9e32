"""How mkosi is started, what it may say, and what it must leave; a program of ours plays it."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from release.build import mkosi as mkosi_module
from release.build.mkosi import Mkosi, prune, remove
from release.build.settings import DISTRIBUTIONS, Role
from release.build.tools import Tree
from release.errors import BuildRefused, HostError, ToolFailed
from tests.release.build.support import refused

PACKAGE = "usr/lib/python3/dist-packages/mkosi"
# Writes its arguments and environment, then does what $STAGE/behaviour says.
PLAYED = """
import json, os, sys
from pathlib import Path
arguments = sys.argv[1:]
value = lambda name: arguments[arguments.index(name) + 1]
stage = Path(value("--directory"))
(stage / "seen.json").write_text(json.dumps({"argv": arguments, "env": dict(os.environ)}))
out = Path(value("--output-directory")) if "build" in arguments else None
exec((stage / "behaviour").read_text())
"""
GOOD = """
for end in ("efi", "vmlinuz", "manifest"):
    (out / f"zipnet-{value('--profile')}.{end}").write_text(end)
"""


@pytest.fixture
def tools(tmp_path: Path) -> Tree:
    (tmp_path / "tools").mkdir()
    return Tree(tmp_path / "tools")


@pytest.fixture
def mkosi(tmp_path: Path, tools: Tree) -> Mkosi:
    folder = tmp_path / "mkosi" / PACKAGE
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "__main__.py").write_text(PLAYED)
    return Mkosi(Tree(tmp_path / "mkosi"), tools, DISTRIBUTIONS["debian"], 1735689600, 3)


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    stage = tmp_path / "stage"
    stage.mkdir()
    (stage / "behaviour").write_text(GOOD)
    return stage


@pytest.fixture
def work(tmp_path: Path) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    return work


def behave(stage: Path, text: str) -> None:
    (stage / "behaviour").write_text(text)


def seen(stage: Path) -> Any:
    return json.loads((stage / "seen.json").read_text())


def options(argv: list[str]) -> dict[str, str]:
    return {a: b for a, b in pairwise(argv) if a.startswith("--")}


def test_build(mkosi: Mkosi, stage: Path, work: Path, log: Path, tmp_path: Path) -> None:
    made = mkosi.build(stage, Role.SERVER, pool=tmp_path / "pool", work=work, log=log)
    assert [p.read_text() for p in (made.uki, made.kernel, made.manifest)] == [
        "efi",
        "vmlinuz",
        "manifest",
    ]
    argv = seen(stage)["argv"]
    given = options(argv)
    assert argv[-1] == "build"
    assert given["--profile"] == "server"
    assert (given["--distribution"], given["--release"]) == ("debian", "trixie")
    assert given["--source-date-epoch"] == "1735689600"
    assert given["--package-directory"] == str(tmp_path / "pool")
    assert given["--tools-tree"] == str(tmp_path / "tools")
    assert given["--extra-tree"] == "runtime:/usr/lib/zipnet"
    assert given["--compress-level"] == "3"
    assert not {"--cache-directory", "--incremental=yes", "--environment"} & {*argv}
    # The pool is the only source of packages.
    (sources,) = Path(given["--sandbox-tree"]).rglob("*.sources")
    assert sources.name == "mkosi.sources"
    assert "URIs" not in sources.read_text()


def test_options(mkosi: Mkosi, stage: Path, work: Path, log: Path, tmp_path: Path) -> None:
    mkosi.build(
        stage,
        Role.CLIENT,
        pool=tmp_path / "pool",
        work=work,
        log=log,
        cache=tmp_path / "cache" / "client",
    )
    argv = seen(stage)["argv"]
    assert options(argv)["--cache-directory"] == str(tmp_path / "cache" / "client")
    assert (tmp_path / "cache" / "client").is_dir()


def test_vary_shifts_the_clock(
    mkosi: Mkosi, stage: Path, work: Path, log: Path, tmp_path: Path, tools: Tree
) -> None:
    arguments: dict[str, Any] = {"pool": tmp_path / "pool", "log": log, "vary": True}
    with refused(HostError, "libfaketime.so.1"):
        mkosi.build(stage, Role.SERVER, work=work, **arguments)
    library = tools.folder / "usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
    library.parent.mkdir(parents=True)
    library.touch()
    (tmp_path / "work2").mkdir()
    mkosi.build(stage, Role.SERVER, work=tmp_path / "work2", **arguments)
    assert f"FAKETIME={mkosi_module.FAKE_CLOCK}" in seen(stage)["argv"]


def test_environment(
    mkosi: Mkosi,
    stage: Path,
    work: Path,
    log: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("PYTHONPATH", "SOURCE_DATE_EPOCH", "MKOSI_DEBUG", "LC_ALL"):
        monkeypatch.setenv(name, "/of/the/host")
    mkosi.build(stage, Role.SERVER, pool=tmp_path, work=work, log=log)
    environment = seen(stage)["env"]
    assert environment["PYTHONPATH"] == str(tmp_path / "mkosi/usr/lib/python3/dist-packages")
    assert environment["TMPDIR"].startswith(str(work))
    assert environment["PATH"] == "/usr/sbin:/usr/bin:/sbin:/bin"
    assert not {"SOURCE_DATE_EPOCH", "MKOSI_DEBUG"} & set(environment)


@pytest.mark.parametrize(
    "line",
    [
        "‣ Unknown setting Pakages",
        "‣ Unknown section Contents",
        "‣ Setting Packages= should be configured in [Content], not [Output].",
        "‣ The BuildSources= setting has been deprecated",
        "‣ CompressLevel is deprecated",
    ],
)
def test_warnings_are_errors(
    mkosi: Mkosi, stage: Path, work: Path, log: Path, tmp_path: Path, line: str
) -> None:
    behave(stage, f"{GOOD}\nprint({line!r}, file=sys.stderr)")
    with refused(BuildRefused, line, "a setting that mkosi only warns about is an error") as caught:
        mkosi.build(stage, Role.SERVER, pool=tmp_path, work=work, log=log)
    assert str(log) in caught[0].hint
    assert line in log.read_text()


def test_an_image_that_was_not_made(
    mkosi: Mkosi, stage: Path, work: Path, log: Path, tmp_path: Path
) -> None:
    # What mkosi does with a profile that no drop-in knows: an image of another name.
    behave(stage, "(out / 'image.efi').touch()")
    with refused(BuildRefused, "mkosi made no zipnet-server.efi", "a role has a drop-in"):
        mkosi.build(stage, Role.SERVER, pool=tmp_path, work=work, log=log)


@pytest.mark.parametrize(
    ("words", "kind", "hint"),
    [
        ("Unable to locate package x", ToolFailed, ""),
        ("tar: write error: No space left on device", HostError, "ZIPNET_CACHE"),
        ("unshare: unshare failed: Operation not permitted", ToolFailed, "user namespaces"),
        ("newuidmap: write to uid_map failed", ToolFailed, "python build.py doctor"),
    ],
)
def test_failures(
    mkosi: Mkosi,
    stage: Path,
    work: Path,
    log: Path,
    tmp_path: Path,
    words: str,
    kind: type[HostError],
    hint: str,
) -> None:
    behave(stage, f"print({words!r}); sys.exit(1)")
    with refused(kind, words.rpartition(": ")[2]) as caught:
        mkosi.build(stage, Role.SERVER, pool=tmp_path, work=work, log=log)
    assert hint in caught[0].hint
    assert caught[0].exit_code == 3
    if kind is ToolFailed:
        assert f"  | {words}" in caught[0].diagnostics()
        assert f"  log:  {log}" in caught[0].diagnostics()


def test_a_tree_without_mkosi(
    tools: Tree, stage: Path, work: Path, log: Path, tmp_path: Path
) -> None:
    empty = Mkosi(tools, tools, DISTRIBUTIONS["debian"], 1, 19)
    with refused(HostError, "has no usr/lib/python3/dist-packages/mkosi/__main__.py"):
        empty.build(stage, Role.SERVER, pool=tmp_path, work=work, log=log)


def test_packages(mkosi: Mkosi, stage: Path, work: Path, log: Path) -> None:
    summary = {"Images": [{"Packages": ["tools-tree"]}, {"Packages": ["systemd", "python3"]}]}
    behave(stage, f"print('‣ a remark'); print({json.dumps(summary, indent=2)!r})")
    assert mkosi.packages(stage, Role.SERVER, work=work, log=log) == ("python3", "systemd")
    assert seen(stage)["argv"][-2:] == ["--json", "summary"]


@pytest.mark.parametrize(
    "text", ["", "no json", "{", '{"Images": []}', '{"Images": [{}]}', '{"Images": 3}', "{} more"]
)
def test_a_summary_of_another_form(
    mkosi: Mkosi, stage: Path, work: Path, log: Path, text: str
) -> None:
    behave(stage, f"print({text!r})")
    with refused(BuildRefused, "mkosi's summary has another form"):
        mkosi.packages(stage, Role.SERVER, work=work, log=log)


def test_an_image_without_packages(mkosi: Mkosi, stage: Path, work: Path, log: Path) -> None:
    behave(stage, """print('{"Images": [{"Packages": []}]}')""")
    with refused(BuildRefused, "an image without packages"):
        mkosi.packages(stage, Role.SERVER, work=work, log=log)


def test_summary(mkosi: Mkosi, stage: Path, work: Path, log: Path) -> None:
    behave(stage, "print('one'); print('two')")
    assert mkosi.summary(stage, Role.SERVER, work=work, log=log) == "one\ntwo\n"


def test_prune(tmp_path: Path) -> None:
    for name in ("server-1", "server-2", "client-1"):
        (tmp_path / name / "deep").mkdir(parents=True)
    prune(tmp_path, Role.SERVER, tmp_path / "server-2")
    assert {p.name for p in tmp_path.iterdir()} == {"server-2", "client-1"}
    prune(tmp_path / "missing", Role.SERVER, tmp_path / "missing" / "server-2")


def test_remove(tmp_path: Path) -> None:
    (tmp_path / "work" / "deep").mkdir(parents=True)
    remove(tmp_path / "work")
    assert list(tmp_path.iterdir()) == []
    remove(tmp_path / "work")


def test_remove_as_an_ordinary_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Files of the user's other ids can only be removed from inside a namespace.
    commands: list[list[object]] = []
    monkeypatch.setattr(mkosi_module, "run", commands.append)
    monkeypatch.setattr("release.build.mkosi.shutil.rmtree", lambda *_, **__: None)
    monkeypatch.setattr("release.build.mkosi.os.geteuid", lambda: 1000)
    (tmp_path / "work").mkdir()
    remove(tmp_path / "work")
    assert [str(word) for word in commands[0]][-2:] == ["--", str(tmp_path / "work")]
    assert commands[0][0] == "unshare"
