"""Counters as they are scraped."""

from __future__ import annotations

from zipnet.node.service_metrics import counters


def test_counters() -> None:
    values = {"zipnet_aggregator_rounds_total": 7, "zipnet_client_refused": 1}
    refused = {"zipnet_aggregator_refused_total": {"late": 2, "double-seal": 1}}
    text = counters("acme", values, refused)
    assert text.splitlines() == [
        "# HELP zipnet_aggregator_rounds_total Rounds that this node folded.",
        "# TYPE zipnet_aggregator_rounds_total counter",
        'zipnet_aggregator_rounds_total{instance="acme"} 7',
        "# HELP zipnet_client_refused 1 if this client is not let in, or lets a server not in.",
        "# TYPE zipnet_client_refused gauge",
        'zipnet_client_refused{instance="acme"} 1',
        "# HELP zipnet_aggregator_refused_total Submissions that this node refused, by rule.",
        "# TYPE zipnet_aggregator_refused_total counter",
        'zipnet_aggregator_refused_total{instance="acme",rule="double-seal"} 1',
        'zipnet_aggregator_refused_total{instance="acme",rule="late"} 2',
    ]
