"""Counters of the roles that keep no log of their own, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

HELP = {
    "zipnet_aggregator_rounds_total": "Rounds that this node folded.",
    "zipnet_aggregator_refused_total": "Submissions that this node refused, by rule.",
    "zipnet_client_rounds_total": "Rounds that this client sealed.",
    "zipnet_client_refused": "1 if this client is not let in, or lets a server not in.",
}


def counters(
    instance: str,
    values: Mapping[str, int],
    by_rule: Mapping[str, Mapping[str, int]] | None = None,
) -> str:
    """The exposition of these values, and of those that are counted by rule."""
    lines = []
    for name, value in values.items():
        lines += [*_head(name), f'{name}{{instance="{instance}"}} {value}']
    for name, counts in (by_rule or {}).items():
        lines += _head(name)
        lines += [
            f'{name}{{instance="{instance}",rule="{rule}"}} {count}'
            for rule, count in sorted(counts.items())
        ]
    return "\n".join(lines) + "\n"


def _head(name: str) -> list[str]:
    kind = "counter" if name.endswith("_total") else "gauge"
    return [f"# HELP {name} {HELP[name]}", f"# TYPE {name} {kind}"]
