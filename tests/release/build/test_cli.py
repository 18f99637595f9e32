"""`build.py`: options, exit codes, what goes to which stream; whole builds in small."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import NoReturn

import pytest
from click.testing import CliRunner, Result

from release.build import bootstrap, cli, doctor
from release.build.pipeline import Builder, Request
from release.build.settings import Role, host_distribution
from tests.release.build.support import ROOT, program, tree
from tests.release.build.world import World

Usage = namedtuple("Usage", "total used free")  # noqa: PYI024 - what shutil returns


def run(world: World, *arguments: str) -> Result:
    return CliRunner().invoke(cli.cli, list(arguments), obj=world.paths, prog_name="build.py")


def build(world: World, *more: str) -> Result:
    known = ["--role", "server", "--distribution", "debian", "--out", str(world.out), *world.apt]
    return run(world, *known, *more)


def table(result: Result) -> list[str]:
    assert (result.exit_code, result.exception) == (0, None) or result.exit_code == 0, result.stderr
    return result.stdout.split()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--role", "gateway"], "'gateway' is not one of 'server', 'aggregator', 'client', 'all'"),
        (["--role", "Server"], "'Server' is not one of"),
        (["--role", ""], "is not one of"),
        (["--role"], "Option '--role' requires an argument"),
        ([], "say what to build: --role server, aggregator, client or all"),
        (["--locked"], "say what to build"),
        (["--role", "server", "--distribution", "fedora"], "not one of 'debian', 'ubuntu'"),
        (["--role", "server", "--flavor", "vanilla"], "not one of 'production', 'mock'"),
        (["--role", "server", "--compress-level", "0"], "0 is not in the range 1<=x<=19"),
        (["--role", "server", "--compress-level", "20"], "20 is not in the range 1<=x<=19"),
        (["--role", "server", "--compress-level", "fast"], "is not a valid int"),
        (["--roll", "server"], "No such option"),
        (["server"], "No such command 'server'"),
        (["doctor", "--role", "server"], "No such option"),
        (["lock", "more"], "unexpected extra argument"),
    ],
)
def test_usage_errors(small: World, arguments: list[str], words: str) -> None:
    result = run(small, *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert words in result.stderr
    assert not small.out.exists()
    assert list(small.paths.cache.iterdir()) == []


def test_help(small: World) -> None:
    result = run(small, "--help")
    assert result.exit_code == 0
    for word in ("--role", "--locked", "--check-reproducible", "lock", "doctor", "0 good"):
        assert word in result.stdout
    for hidden in ("--vary", "--locks"):
        assert hidden not in result.stdout


def test_build(ready: World) -> None:
    result = build(ready, "--locked")
    words = table(result)
    mr_td = (ready.out / "server" / "mrtd.hex").read_text()
    # A pipe has no width: the measurement is whole, on the line of its role.
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("server")]
    assert line.split()[-1] == mr_td
    assert "passed" in words
    assert "[ 1] tools: lock" in result.stderr
    assert "[ 1]" not in result.stdout


def test_json(ready: World) -> None:
    result = build(ready, "--locked", "--json", "--role", "client", "--role", "server")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert [image["role"] for image in found["images"]] == ["server", "client"]


def test_all_and_the_other_archive_name(ready: World) -> None:
    result = build(ready, "--locked", "--role", "all", "--json")
    assert [i["role"] for i in json.loads(result.stdout)["images"]] == [str(r) for r in Role]


def test_from_the_mirror(small: World) -> None:
    result = build(small)
    assert result.exit_code == 0, result.stderr
    assert "tools: package indices" in result.stderr
    assert (small.out / "server" / "zipnet-server.efi").is_file()


def test_print_config(ready: World) -> None:
    result = build(ready, "--locked", "--print-config")
    assert (result.exit_code, result.stdout) == (0, "a line of mkosi\nsummary of server\n")
    assert not ready.out.exists()


def test_skipped_proof_is_loud(ready: World) -> None:
    result = build(ready, "--locked", "--skip-boot-proof")
    assert "skipped" in table(result)
    assert "WARNING" in result.stderr


def test_locks_can_lie_elsewhere(ready: World, tmp_path: Path) -> None:
    ready.paths.locks.rename(tmp_path / "locks")
    assert build(ready, "--locked").exit_code == 2
    assert build(ready, "--locked", "--locks", str(tmp_path / "locks")).exit_code == 0


def test_lock(small: World) -> None:
    result = run(small, "lock", "--distribution", "debian", *small.apt)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "images/locks/tools.lock\nimages/locks/debian-trixie.lock\n"
    assert build(small, "--locked").exit_code == 0


def test_lock_python(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "relock", lambda *_: 42)
    result = run(small, "lock", "--python", "--distribution", "debian")
    assert result.exit_code == 0
    assert "42 packages in requirements.lock" in result.stderr
    assert result.stdout == ""


def test_check_reproducible(ready: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr("release.build.again.check", lambda *arguments: seen.extend(arguments))
    assert build(ready, "--locked", "--check-reproducible").exit_code == 0
    assert len(seen) == 3


# What goes wrong.


def failed(result: Result, code: int, *words: str) -> None:
    assert (result.exit_code, result.stdout) == (code, "")
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.stderr


def test_bad_mirror(small: World) -> None:
    arguments = ["--role", "server", "--distribution", "debian", "--out", str(small.out)]
    syntax = run(small, *arguments, "--mirror", "ftp://mirror.example/debian")
    failed(syntax, 3, "error: a mirror's address can't be used", "next: give the part before")
    unknown = run(small, *arguments, "--mirror", "fedora=https://mirror.example")
    failed(unknown, 3, "error: --mirror names an unknown archive")
    empty = run(small, *arguments, "--mirror", (small.paths.root / "nothing").as_uri())
    failed(empty, 3, "the package indices can't be had", "next: check the network and the address")
    none = run(small, *arguments)
    failed(none, 3, "no mirror of the archive 'debian' is known", "next: pass --mirror debian=URL")
    assert not small.out.exists()
    assert small.left() == []


def test_no_network(small: World, programs: Path) -> None:
    # Nothing listens on port 1 of this machine.
    mirror = ["--mirror", "http://127.0.0.1:1/debian", "--distribution", "debian"]
    program(programs, "apt-config", "echo 'Acquire::http::Proxy::127.0.0.1 \"DIRECT\";'")
    result = run(small, "--role", "server", "--out", str(small.out), *mirror)
    failed(result, 3, "the package indices can't be had", "Could not connect", "check the network")
    assert not small.out.exists()


def test_no_network_with_a_lock(ready: World, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(ready.paths.cache / "debs")
    shutil.rmtree(ready.paths.cache / "trees")
    nowhere = ["--mirror", (ready.paths.root / "nothing").as_uri(), "--locked"]
    result = run(ready, "--role=server", "--distribution=debian", "--out", str(ready.out), *nowhere)
    failed(result, 3, "1 packages can't be had: mkosi 27.1-1", "--snapshot URL")
    assert not ready.out.exists()


def test_missing_tool(ready: World, programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("release.build.process.PATH", str(programs))
    shutil.rmtree(ready.paths.cache / "trees")
    result = build(ready, "--locked")
    failed(result, 3, "error: cannot start dpkg-deb", "python build.py doctor")
    assert not ready.out.exists()
    (programs / "apt-get").unlink()
    failed(build(ready, "--locked"), 3, "error: cannot start apt-get")


def test_full_disk(ready: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, 0, 1 << 20))
    failed(build(ready, "--locked"), 3, "the disk is too full for a build", "got 1 MiB")
    assert not ready.out.exists()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "error: the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "error: the operating system refused"),
    ],
)
def test_errors_of_the_operating_system(
    ready: World, monkeypatch: pytest.MonkeyPatch, error: OSError, words: str
) -> None:
    def fail(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr("release.build.outputs.write", fail)
    failed(build(ready, "--locked"), 3, words, "next: ")
    assert not ready.out.exists()
    assert ready.left() == []


@pytest.mark.parametrize("what", ["file", "foreign file", "link"])
def test_an_out_that_is_not_ours(ready: World, what: str, tmp_path: Path) -> None:
    if what == "file":
        ready.out.write_text("mine")
    elif what == "link":
        ready.out.mkdir()
        (ready.out / "server").symlink_to(tmp_path)
    else:
        (ready.out / "server").mkdir(parents=True)
        (ready.out / "server" / "thesis.txt").write_text("mine")
    before = tree(ready.out.parent / "out") if ready.out.is_dir() else ready.out.read_text()
    result = build(ready, "--locked")
    failed(result, 2, "next: move it away, or choose another folder with --out")
    after = tree(ready.out) if ready.out.is_dir() else ready.out.read_text()
    assert before == after


def test_interrupted(ready: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("release.build.proof.prove", interrupt)
    result = build(ready, "--locked")
    failed(result, 1, "aborted", "server: boot proof")
    assert not ready.out.exists()
    assert ready.left() == []


KILLED = """
import sys
from pathlib import Path
from release.build import cli, outputs
from release.build.pipeline import Builder, Request
from release.build.settings import Role, host_distribution

def build(self, request):
    with outputs.replacing(request.out, Role.SERVER) as folder:
        (folder / "mrtd.hex").write_text("half")
        print("ready", flush=True)
        sys.stdin.read()

Builder.build = build
cli.main(Path(sys.argv.pop(1)))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("before", [False, True])
def test_killed(tmp_path: Path, number: signal.Signals, before: bool) -> None:
    out = tmp_path / "out"
    if before:
        (out / "server").mkdir(parents=True)
        (out / "server" / "mrtd.hex").write_text("old")
    content = tree(tmp_path)
    arguments = [str(tmp_path), "--role=server", f"--out={out}", "--distribution=debian"]
    arguments += ["--mirror=file:///nowhere/debian"]
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, *arguments],
        cwd=ROOT,
        env=dict(os.environ) | {"ZIPNET_CACHE": str(tmp_path / "cache")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n", child.communicate()[1]
        child.send_signal(number)
        _, errors = child.communicate(timeout=30)
    assert (child.returncode, errors.strip()) == (1, "aborted")
    assert tree(tmp_path) == content


MAIN = "import sys; from pathlib import Path; from release.build import cli; cli.main(Path('x'))"


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--role", "gateway"], 1), (["--help"], 0), ([], 1)]
)
def test_exit_code_of_the_process(arguments: list[str], code: int) -> None:
    command = [sys.executable, "-c", MAIN, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert ("Usage: build.py" in done.stdout) is (code == 0)
    assert "Traceback" not in done.stderr


UMASK = """
import os, sys
from pathlib import Path
from release.build import cli
cli.cli = lambda **_: sys.exit(oct(os.umask(0)))
cli.main(Path("x"))
"""


def test_umask_of_the_caller_does_not_count() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UMASK],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        umask=0o077,
    )
    assert done.stderr == "0o22\n"


# The other verbs.


def test_doctor(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor,
        "examine",
        lambda *_: iter([doctor.Finding("disk", doctor.Status.OK, "plenty")]),
    )
    result = run(small, "doctor", "--distribution", "debian")
    assert (result.exit_code, result.stdout) == (0, "disk  ok    plenty\n")


def test_doctor_finds_something(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = doctor.Finding("disk", doctor.Status.BAD, "1 GiB", "free some space")
    note = doctor.Finding("tdx host", doctor.Status.NOTE, "no")
    monkeypatch.setattr(doctor, "examine", lambda *_: iter([bad, note]))
    result = run(small, "doctor", "--distribution", "debian")
    assert result.exit_code == 3
    assert result.stdout.splitlines() == [
        "disk      bad   1 GiB",
        "                next: free some space",
        "tdx host  note  no",
    ]
    result = run(small, "doctor", "--distribution", "debian", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout) == {
        "schema": "zipnet.doctor/1",
        "findings": [
            {"check": "disk", "status": "bad", "detail": "1 GiB", "hint": "free some space"},
            {"check": "tdx host", "status": "note", "detail": "no", "hint": ""},
        ],
    }


@pytest.mark.parametrize(
    "arguments", [[], ["-e", "unit"], ["-e", "unit", "--", "-k", "quote"], ["--", "-x"], ["-vv"]]
)
def test_test_hands_everything_to_tox(
    small: World, monkeypatch: pytest.MonkeyPatch, arguments: list[str], tmp_path: Path
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(bootstrap, "ensure", lambda *a: tmp_path / "dev" if a[2] == "dev" else None)
    monkeypatch.setattr(os, "chdir", lambda _: None)
    monkeypatch.setattr(os, "execv", lambda _, words: started.append(words))
    result = run(small, "test", *arguments)
    assert result.exit_code == 0, result.output
    assert started == [[str(tmp_path / "dev/bin/python"), "-m", "tox", *arguments]]


def test_unknown_host(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real = host_distribution
    monkeypatch.setattr(cli, "host_distribution", lambda: real(small.paths.root / "nothing"))
    result = run(small, "--role", "server")
    failed(result, 3, "cannot tell this host's distribution", "next: pass --distribution debian")


def test_the_hosts_distribution_is_taken(ready: World, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(cli, "host_distribution", lambda: ready.distribution)

    def print_config(_: Builder, request: Request) -> str:
        chosen.append(request.distribution.name)
        return ""

    monkeypatch.setattr(Builder, "print_config", print_config)
    assert run(ready, "--role", "server", "--print-config", *ready.apt).exit_code == 0
    assert chosen == ["debian"]
