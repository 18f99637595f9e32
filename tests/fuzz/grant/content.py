"""Fuzz target: what the box of a grant holds."""

from tests.zipnet.node.grants import ALL
from zipnet.errors import ZipnetError
from zipnet.node.grant import Grant


def seeds() -> list[bytes]:
    return [grant.dumps() for grant in ALL]


def fuzz_one(data: bytes) -> None:
    try:
        grant = Grant.loads(data)
    except ZipnetError as error:
        error.diagnostics().encode()
        return
    assert grant.dumps() == data
    assert repr(grant)
