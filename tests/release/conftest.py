import pytest

from release.verify_files import Opened
from tests.release.small import World


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A checkout with builds of all roles; not to be changed."""
    return World.create(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def released(small_world: World) -> Opened:
    """A release of these builds; not to be changed."""
    return small_world.make()
