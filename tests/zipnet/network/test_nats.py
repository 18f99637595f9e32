"""The engine on NATS: conformance with one server and with three, and what only it has."""

from collections.abc import Iterator

import pytest

from tests.zipnet.network import conformance
from tests.zipnet.network.conformance import Case
from tests.zipnet.network.nats_cluster import Cluster
from tests.zipnet.network.nats_harness import NatsHarness, cluster
from tests.zipnet.network.suites import CASES


@pytest.fixture(
    scope="module", params=[1, pytest.param(3, marks=pytest.mark.slow)], ids=["R1", "R3"]
)
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("nats"), request.param) as running:
        yield running


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conformance(case: Case, shared: Cluster) -> None:
    conformance.run(case, NatsHarness(shared))
