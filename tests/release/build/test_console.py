"""Steps as a person sees them."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from release.build.console import Steps


def steps(tmp_path: Path, *, terminal: bool = False, verbose: bool = False) -> Steps:
    console = Console(
        file=io.StringIO(), force_terminal=terminal, width=200, color_system=None, soft_wrap=True
    )
    return Steps(console, tmp_path / "logs", verbose)


def printed(steps: Steps) -> str:
    file = steps.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_a_step(tmp_path: Path) -> None:
    made = steps(tmp_path)
    with made.step("tools: fetch [and] unpack") as step:
        step.note("a note with [brackets]")
        assert printed(made) == f"logs in {made.logs}\n[ 1] tools: fetch [and] unpack …\n"
        step.say("at once, with [brackets]")
        assert printed(made).endswith("\n       at once, with [brackets]\n")
    lines = printed(made).splitlines()[1:]
    del lines[1]
    assert lines[1].startswith("[ 1] tools: fetch [and] unpack ")
    assert lines[1].endswith(" s")
    assert " ok " in lines[1]
    assert lines[2] == "       a note with [brackets]"
    assert step.log == tmp_path / "logs" / "01-tools--fetch--and--unpack.log"
    assert step.log.parent.is_dir()
    assert [title for title, _ in made.timings] == ["tools: fetch [and] unpack"]


def test_steps_are_numbered(tmp_path: Path) -> None:
    made = steps(tmp_path)
    logs = []
    for _ in range(3):
        with made.step("same") as step:
            logs.append(step.log.name)
    assert printed(made).count("logs in ") == 1
    assert logs == ["01-same.log", "02-same.log", "03-same.log"]
    assert all(seconds >= 0 for _, seconds in made.timings)


def fail(made: Steps, error: type[BaseException]) -> None:
    with made.step("step") as step:
        step.note("so far")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_failed_step(tmp_path: Path, error: type[BaseException], terminal: bool) -> None:
    made = steps(tmp_path, terminal=terminal)
    with pytest.raises(error):
        fail(made, error)
    assert " failed " in printed(made)
    assert " ok " not in printed(made)
    assert "so far" in printed(made)
    assert len(made.timings) == 1


def test_a_terminal_shows_where_the_log_is(tmp_path: Path) -> None:
    made = steps(tmp_path, terminal=True)
    with made.step("step [x]") as step:
        pass
    assert "step [x]" in printed(made)
    assert " ok " in printed(made)
    assert str(step.log) in printed(made).replace("\n", "")


def test_verbose_has_no_spinner(tmp_path: Path) -> None:
    made = steps(tmp_path, terminal=True, verbose=True)
    with made.step("step") as step:
        assert step.echo
    assert "\n[ 1] step …\n" in printed(made)
    assert str(step.log) not in printed(made)
