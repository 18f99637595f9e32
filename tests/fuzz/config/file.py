"""Fuzz target: a deployment's configuration file."""

from dataclasses import replace

from tests.zipnet.configs import CONFIG
from zipnet.config import Anchor, ShuffleWindow, deployment_id
from zipnet.config_file import dumps, loads
from zipnet.errors import ConfigRejected


def seeds() -> list[bytes]:
    mock = replace(CONFIG, anchor=Anchor.mock(b"\x0b" * 32), window=ShuffleWindow.bulk(), k=1)
    return [dumps(CONFIG).encode(), dumps(mock).encode()]


def fuzz_one(data: bytes) -> None:
    try:
        found = loads(data)
    except ConfigRejected as error:
        error.diagnostics().encode()
        return
    # Texts differ in notes and order; values and the id don't.
    text = dumps(found)
    assert loads(text) == found
    assert dumps(loads(text)) == text
    assert deployment_id(loads(text)) == deployment_id(found)
