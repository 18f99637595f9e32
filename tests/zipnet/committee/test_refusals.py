"""Every rule of the machine: which command breaks it, and that nothing comes of that command."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import zipnet.committee
from tests.zipnet.committee import (
    cases_clients,
    cases_frame,
    cases_membership,
    cases_policy,
    cases_rounds,
)
from tests.zipnet.committee.support import CASES, Case, check_refused
from zipnet.committee import machine

# Importing them enters their cases.
MODULES = (cases_clients, cases_frame, cases_membership, cases_policy, cases_rounds)
FOLDER = Path(zipnet.committee.__path__[0])
# Tested on its own: it is the one that changes something, the author's status.
ELSEWHERE = {"command.quota"}
# What checks of the protocol and of documents say, here reached by a command.
FROM_CHECKS = {
    "signature", "dh-zero", "signers", "deployment", "number", "previous", "number-reused",
    "aggregate.instance", "aggregate.round", "aggregate.header", "aggregate.roster",
    "aggregate.root", "aggregate.min-participants", "aggregate.truncated", "aggregate.trailing",
    "bitmap", "reveal.size", "reveal.commitment", "bundle.size", "envelope.json", "tree.parent",
    "recovery.offender", "recovery.signers",
    *(f"command.{rule}" for rule in (
        "truncated", "trailing", "size", "wire-version", "kind", "round", "number", "flag",
        "count", "length", "text",
    )),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_command_is_refused_and_nothing_changes(case: Case) -> None:
    world, raw = case.make()
    check_refused(world, raw, case.rule)


def test_every_rule_has_a_case() -> None:
    rules = written_rules() - ELSEWHERE
    assert len(rules) > 60
    assert rules | FROM_CHECKS <= {case.rule for case in CASES}
    assert len({case.name for case in CASES}) == len(CASES)


def written_rules() -> set[str]:
    """All rules in the source of the machine, those put together from parts too."""
    trees = [ast.parse(path.read_text()) for path in sorted(FOLDER.glob("*.py"))]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    steps = {
        call.args[-1].value
        for call in calls
        if name_of(call) in ("_in_phase", "_current") and isinstance(call.args[-1], ast.Constant)
    }
    assert "timeout" in steps
    assert len(steps) == 6
    rules = set()
    for call in calls:
        if name_of(call) != "refused":
            continue
        rule = call.args[0]
        if isinstance(rule, ast.Constant):
            rules.add(str(rule.value))
            continue
        if isinstance(rule, ast.Name):
            rules.add(getattr(machine, rule.id))
            continue
        assert isinstance(rule, ast.JoinedStr)
        text = "".join(
            part.value if isinstance(part, ast.Constant) else "*"  # type: ignore[misc]
            for part in rule.values
        )
        if text == "recover.*":
            names = ("deployment", "old-generation", "counter", "checkpoint", "new-generation")
            rules |= {f"recover.{name}" for name in names}
        else:
            assert text in ("*.round", "*.phase", "*.server", "*.resumed")
            # A vote to give up is for all servers, whatever their part in the round.
            able = steps if text in ("*.round", "*.phase") else steps - {"timeout"}
            rules |= {text.replace("*", str(step)) for step in able}
    return rules


def name_of(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""
