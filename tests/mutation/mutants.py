"""Mutants of checks: each guard of a refusal switched off, and each part of a joined guard.

A check is an `if` whose body refuses: it raises, or calls a function that never returns. Its mutant
never refuses. Where a guard joins conditions by `or`, each condition also gets a mutant of its own;
where a loop goes over a table of conditions, each row gets one.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

# A check whose rule is put together at run time: any failing test will do.
UNNAMED = "(rule at run time)"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of a module's source: the text of a condition replaced by a constant."""

    file: str
    line: int
    rule: str
    condition: str
    source: str

    @property
    def name(self) -> str:
        """Stable as long as the condition is written in the same way."""
        return f"{self.file}: {self.rule}: {self.condition}"


def mutants(file: str, source: str) -> Iterator[Mutant]:
    """All mutants of a module, in the order of lines."""
    tree = ast.parse(source)
    never = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and _is_never(node.returns)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple | ast.List):
            for guard in node.body:
                if isinstance(guard, ast.If) and _rule(guard, never) is not None:
                    yield from _rows(file, source, node, guard, never)
        elif isinstance(node, ast.If):
            rule = _rule(node, never)
            joined = isinstance(node.test, ast.BoolOp) and isinstance(node.test.op, ast.Or)
            parts = (
                node.test.values if joined and isinstance(node.test, ast.BoolOp) else [node.test]
            )
            for part in parts if rule is not None else ():
                yield _mutant(file, source, part, "False", rule or "")


def _rows(
    file: str, source: str, loop: ast.For, guard: ast.If, never: set[str]
) -> Iterator[Mutant]:
    """One mutant for each row of a table, in the column that the guard looks at."""
    assert isinstance(loop.iter, ast.Tuple | ast.List)
    if not isinstance(loop.target, ast.Tuple):
        return
    columns = [column.id for column in loop.target.elts if isinstance(column, ast.Name)]
    looked = {part.id for part in ast.walk(guard.test) if isinstance(part, ast.Name)}
    deciding = [n for n, column in enumerate(columns) if column in looked]
    # The value of the column with which the guard does not refuse.
    negated = isinstance(guard.test, ast.UnaryOp) and isinstance(guard.test.op, ast.Not)
    for row in loop.iter.elts:
        if isinstance(row, ast.Tuple) and len(row.elts) == len(columns) and len(deciding) == 1:
            texts = [c.value for c in row.elts if isinstance(c, ast.Constant)]
            rule = next((str(t) for t in texts if isinstance(t, str)), _rule(guard, never) or "")
            yield _mutant(file, source, row.elts[deciding[0]], str(negated), rule)


def _mutant(file: str, source: str, part: ast.expr, value: str, rule: str) -> Mutant:
    lines = source.splitlines(keepends=True)
    # Offsets count bytes; the sources under test are ASCII where conditions stand.
    start = sum(map(len, lines[: part.lineno - 1])) + part.col_offset
    assert part.end_lineno is not None
    assert part.end_col_offset is not None
    end = sum(map(len, lines[: part.end_lineno - 1])) + part.end_col_offset
    condition = " ".join(source[start:end].split())
    return Mutant(file, part.lineno, rule, condition, source[:start] + f"({value})" + source[end:])


def _is_never(returns: ast.expr | None) -> bool:
    return isinstance(returns, ast.Name) and returns.id == "NoReturn"


def _rule(guard: ast.If, never: set[str]) -> str | None:
    """The rule that the body of a guard refuses by; None if it refuses nothing."""
    for statement in guard.body:
        call: ast.expr | None = None
        if isinstance(statement, ast.Raise):
            call = statement.exc
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            function = statement.value.func
            if isinstance(function, ast.Name) and function.id in never:
                call = statement.value
        if isinstance(call, ast.Call):
            for keyword in call.keywords:
                if keyword.arg == "rule" and isinstance(keyword.value, ast.Constant):
                    return str(keyword.value.value)
            texts = [a.value for a in call.args if isinstance(a, ast.Constant)]
            words = [t for t in texts if isinstance(t, str) and t and " " not in t]
            first = call.args[0] if call.args else None
            leads = isinstance(first, ast.Constant) and first.value in words
            return " or ".join(words) if leads else UNNAMED
    return None
