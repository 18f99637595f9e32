"""Rules of this repository that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What each package may import of the others: arrows go one way.
ARROWS = {"attestation": set[str](), "zipnet": {"attestation"}, "release": {"attestation"}}
MODULE_LINES = 500
HOSTS = re.compile(
    r"deb\.debian|pypi\.org|pythonhosted|archive\.ubuntu|snapshot\.debian|npmjs|/[r]oot/|/[w]ork/"
)

pytestmark = pytest.mark.lint


def tracked(*patterns: str) -> list[Path]:
    """Files that git has, or would take; those of a plain copy without git otherwise."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *patterns]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    names = [raw.decode() for raw in done.stdout.split(b"\0") if raw]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("package", ARROWS)
def test_imports_go_one_way(package: str) -> None:
    forbidden = {*ARROWS, "tests", "build", "benchmarks"} - ARROWS[package] - {package}
    files = tracked(f"{package}/*.py")
    assert files
    for path in files:
        assert not imports(path) & forbidden, path


def test_modules_are_short() -> None:
    for path in tracked("*.py"):
        assert len(path.read_text("utf-8").splitlines()) <= MODULE_LINES, path


def test_nothing_names_a_registry_or_a_machine() -> None:
    for path in tracked():
        if path == Path(__file__):
            continue
        match = HOSTS.search(path.read_text("utf-8", "replace"))
        assert match is None, f"{path}: {match and match[0]}"


def test_links_in_documents_lead_somewhere() -> None:
    for path in tracked("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text("utf-8")):
            assert (path.parent / target).exists(), f"{path}: {target}"


def test_every_dependency_has_a_reason() -> None:
    reasons = (ROOT / "docs/decisions/0002-dependencies.md").read_text("utf-8")
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    names = re.findall(r'"([a-z][a-z0-9-]*)(?:\[[a-z-]+\])?>=', project)
    assert "click" in names
    for name in names:
        assert re.search(rf"\b{name}\b", reasons), name


def test_decisions_are_numbered() -> None:
    names = sorted(p.name for p in (ROOT / "docs/decisions").glob("*.md"))
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
