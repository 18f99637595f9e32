"""What a network says of itself: its universe, and who has used a deployment's name.

Nothing in here is signed. The universe guards against a mix-up, and the ids beside a name are for
the texts of errors only: names are looked up in files, never here.
"""

from __future__ import annotations

from zipnet.errors import Conflict, WrongUniverse
from zipnet.ids import UniqueId
from zipnet.network.base import Network, Table

TABLE = "zipnet-index"
UNIVERSE_KEY = "universe"
MAX_IDS = 16


async def check_universe(network: Network, universe: UniqueId) -> None:
    """Note the universe at a network's first use, and compare it from then on.

    Raises WrongUniverse, EngineError.
    """
    table = await network.table(TABLE)
    found = await _get(table, UNIVERSE_KEY)
    if not found:
        try:
            await table.put(UNIVERSE_KEY, universe.raw, expect=0)
        except Conflict:
            found = await _get(table, UNIVERSE_KEY)
    if found and found != universe.raw:
        raise WrongUniverse(
            "this network belongs to another universe",
            expected=universe.hex(),
            got=found.hex(),
            rule="universe",
            hint="connect to the network of your universe, or give both the same ZIPNET_UNIVERSE",
        )


async def announce(network: Network, name: str, deployment_id: bytes) -> None:
    """Note that servers of this deployment are here, the newest first. Raises EngineError."""
    table = await network.table(TABLE)
    key = _key(name)
    for _ in range(8):
        item = await table.get(key)
        known = _ids(item.value or b"") if item else ()
        if known[:1] == (deployment_id,):
            return
        ids = (deployment_id, *(one for one in known if one != deployment_id))
        try:
            await table.put(key, b"".join(ids[:MAX_IDS]), expect=item.rev if item else 0)
        except Conflict:
            continue  # another server of the committee says the same
        return


async def deployments(network: Network, name: str) -> tuple[bytes, ...]:
    """The ids that deployments of this name have here, the newest first. Raises EngineError."""
    return _ids(await _get(await network.table(TABLE), _key(name)))


def _key(name: str) -> str:
    # A name may hold dots where a key may not.
    return f"name/{UniqueId.of(name).hex()}"


def _ids(raw: bytes) -> tuple[bytes, ...]:
    whole = len(raw) // 32 * 32
    return tuple(raw[at : at + 32] for at in range(0, min(whole, 32 * MAX_IDS), 32))


async def _get(table: Table, key: str) -> bytes:
    item = await table.get(key)
    return b"" if item is None or item.value is None else item.value
