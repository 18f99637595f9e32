"""Programs: their environment, output, failures, and that nothing of them is left."""

import os
import signal
import time
from pathlib import Path

import pytest

from release.build import process
from release.build.process import environment, run, started
from release.errors import HostError, ToolFailed
from tests.release.build.support import program, refused


def ended(pid: int) -> bool:
    """Whether a process is gone, or dead and only not yet collected by its new parent."""
    limit = time.monotonic() + 5
    while time.monotonic() < limit:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
    return False


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "LD_PRELOAD", "PIP_INDEX_URL", "LC_ALL", "SOURCE_DATE_EPOCH", "TZ"):
        monkeypatch.setenv(name, "of the host")
    monkeypatch.setenv("https_proxy", "http://proxy.example")
    found = environment({"MORE": "1"})
    assert set(found) <= {*process.INHERITED, "PATH", "LANG", "TERM", "MORE"}
    assert found["https_proxy"] == "http://proxy.example"
    assert (found["PATH"], found["LANG"], found["MORE"]) == (process.PATH, "C.UTF-8", "1")
    assert environment({"PATH": "/other"})["PATH"] == "/other"


def test_lines_and_log(log: Path, tmp_path: Path) -> None:
    log.write_text("before\n")
    tool = program(tmp_path, "tool", "echo one; echo two >&2; printf 'three \\377'; pwd")
    lines = run([tool], log=log, cwd=tmp_path)
    assert lines == ["one", "two", f"three \ufffd{tmp_path}"]
    assert log.read_bytes() == b"before\none\ntwo\nthree \xff" + os.fsencode(tmp_path) + b"\n"


def test_program_sees_only_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    lines = run(["env"], env={"GIVEN": "1"})
    names = {line.partition("=")[0] for line in lines}
    assert "GIVEN" in names
    assert "SECRET" not in names


def test_no_standard_input() -> None:
    assert run(["cat"]) == []


def test_umask(tmp_path: Path) -> None:
    assert run(["sh", "-c", "umask"], umask=0o077) == ["0077"]


def test_echo(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(["echo", "seen"], echo=True)
    assert capfd.readouterr().err == "    seen\n"


def test_failure_shows_the_end_and_the_log(log: Path, tmp_path: Path) -> None:
    tool = program(tmp_path, "tool", "seq 30; echo; echo '  last  '; exit 7")
    with refused(ToolFailed, "tool ended with status 7") as caught:
        run([tool], log=log, hint="try it differently")
    error = caught[0]
    assert isinstance(error, ToolFailed)
    assert error.exit_code == 3
    assert error.tail == (*map(str, range(17, 31)), "  last")
    text = error.diagnostics()
    assert "  |   last\n" in text
    assert f"  log:  {log}\n" in text
    assert text.endswith("  next: try it differently")
    assert "\n  | 16\n" not in text


def test_failure_without_log_or_hint() -> None:
    with refused(ToolFailed, "false ended with status 1") as caught:
        run(["false"])
    assert caught[0].diagnostics() == str(caught[0])


def test_killed_by_a_signal(tmp_path: Path) -> None:
    with refused(ToolFailed, "tool ended with status -9"):
        run([program(tmp_path, "tool", "kill -9 $$")])


def test_long_lines_are_cut_in_the_message_only(tmp_path: Path) -> None:
    with refused(ToolFailed, "x" * 300) as caught:
        run([program(tmp_path, "tool", "printf '%01000d' 0 | tr 0 x; exit 1")])
    assert "x" * 301 not in caught[0].diagnostics()


@pytest.mark.parametrize("name", ["no-such-program", "/nowhere/tool"])
def test_missing_program(name: str) -> None:
    with refused(HostError, f"cannot start {name}", "is on this machine") as caught:
        run([name])
    assert caught[0].exit_code == 3
    assert "python build.py doctor" in caught[0].hint


def test_the_callers_path_is_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", "only-here", "true")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with refused(HostError, "cannot start only-here"):
        run(["only-here"])


def test_not_executable(tmp_path: Path) -> None:
    tool = program(tmp_path, "tool", "true")
    tool.chmod(0o644)
    with refused(HostError, "Permission denied"):
        run([tool])


def test_full_disk(tmp_path: Path, log: Path) -> None:
    tool = program(tmp_path, "tool", "echo 'tar: a: Cannot write: No space left on device'; exit 2")
    with refused(HostError, "the disk is full") as caught:
        run([tool], log=log)
    assert "while tool ran" in caught[0].got
    assert "free some space" in caught[0].hint


def test_words_about_the_disk_alone_are_no_failure(tmp_path: Path) -> None:
    assert run(["echo", "No space left on device"]) == ["No space left on device"]


@pytest.mark.parametrize(
    "script",
    [
        "echo $$; exec sleep 1000",
        "sleep 1000 & echo $!; wait",
        "sleep 1000 >/dev/null 2>&1 & echo $!; exit 0",
        "sh -c 'trap \"\" TERM; echo $$; exec >/dev/null 2>&1; exec sleep 1000' & wait",
    ],
    ids=["itself", "child", "child that outlives it", "child that ignores SIGTERM"],
)
def test_nothing_of_the_group_is_left(tmp_path: Path, script: str) -> None:
    with started([program(tmp_path, "tool", script)]) as child:
        assert child.stdout is not None
        pid = int(child.stdout.readline())
        if "exit 0" in script:
            child.wait(10)
    assert child.returncode is not None
    assert ended(pid)


def test_a_program_that_ignores_sigterm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "STOP_SECONDS", 0.05)
    tool = program(tmp_path, "tool", 'trap "" TERM; echo ready; while :; do sleep 1000; done')
    with started([tool]) as child:
        assert child.stdout is not None
        child.stdout.readline()
    assert child.returncode == -signal.SIGKILL


def test_interrupted(tmp_path: Path, log: Path) -> None:
    class Interrupting:
        """A log that is interrupted in the middle, as by Ctrl-C."""

        def open(self, _mode: str) -> "Interrupting":
            return self

        def write(self, raw: bytes) -> None:
            self.pid = int(raw)
            raise KeyboardInterrupt

        def close(self) -> None:
            self.closed = True

    sink = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        run([program(tmp_path, "tool", "echo $$; exec sleep 1000")], log=sink)  # type: ignore[arg-type]
    assert sink.closed
    assert ended(sink.pid)
