import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

from tests.zipnet.network.conformance import PUBLIC_LOG
from zipnet.network.base import Network
from zipnet.network.local import Action, LocalNetwork

MAX_MESSAGE = 2 * 1000 * 1000 - 4096


class LocalHarness:
    """The engine within the process, in a folder."""

    lacks = {"cut": "within a process no connection can break"}  # noqa: RUF012

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._handles: list[LocalNetwork] = []

    async def connect(self) -> Network:
        if self._handles:
            handle = await self._handles[0].connect()
        else:
            # The first one stays for the harness, so that a case may close all of its own.
            self._handles.append(await LocalNetwork.open(self._folder, max_message=MAX_MESSAGE))
            return await self.connect()
        self._handles.append(handle)
        return handle

    async def guest(self) -> Network:
        allowed = {(Action.CONNECT, "")}
        allowed |= {(Action.READ, f"{kind}/{PUBLIC_LOG}") for kind in ("log", "table", "blobs")}
        handle = await self._handles[0].connect(lambda action, name: (action, name) in allowed)
        self._handles.append(handle)
        return handle

    async def stranger(self) -> Network:
        return await self._handles[0].connect(lambda action, _: action is not Action.CONNECT)

    async def kill(self) -> None:
        await self.close()

    async def revive(self) -> None: ...

    async def delete_log(self, name: str) -> None:
        def delete() -> None:
            with closing(sqlite3.connect(self._folder / "engine.sqlite")) as db, db:
                for table, column in (("entry", "log"), ("taken", "log"), ("log", "name")):
                    db.execute(f"delete from {table} where {column} = ?", (name,))  # noqa: S608

        await asyncio.to_thread(delete)

    async def alter_blob(self, archive: str, digest: bytes) -> None:
        path = self._folder / "blobs" / archive / digest.hex()
        path.write_bytes(path.read_bytes() + b"\0")

    async def cut(self, network: Network) -> None:
        raise AssertionError(f"{network}: {self.lacks}")

    async def close(self) -> None:
        handles, self._handles = self._handles, []
        for handle in handles:
            await handle.close()
