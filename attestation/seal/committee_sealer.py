"""One blob on a disk, opened by a committee; the order of steps is here.

    open()                data of the newest blob: read, ask, check; commit if it was not
    create(data, list)    a new key for it: at a first start, when the old one can't be had, and
                          after a new list, so that images off the list have no key of what follows
    update(data)          the next version: write (durable), commit (every member), return
    unsafe_open_older()   data of a blob after `seal.rollback` or `seal.fork`; `update` follows

Each asks all members twice: for a nonce, and with one request under one quote. Nothing is used, and
`update` returns nothing good, before every member has confirmed. What failed half-way is finished
by the next call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from attestation.errors import SealRefused, SealUnavailable
from attestation.seal import committee as steps
from attestation.seal.base import absent
from attestation.seal.committee import Asking, Committee, Opened
from attestation.seal.committee_format import AEAD_NONCE, ID, NONCE_ASK, Blob, Op, Released, Request


class Members(Protocol):
    """The way to the members."""

    async def ask(self, member: bytes, raw: bytes) -> bytes:
        """The answer of one member (its id) to NONCE_ASK or a request.

        Raises SealUnavailable if none comes in time.
        """
        ...


class Disk(Protocol):
    """A place for one blob."""

    def read(self) -> bytes | None:
        """What was written last; None if nothing ever was. Raises SealError."""
        ...

    def write(self, raw: bytes) -> None:
        """Replace it; durable when it returns, and never there by half. Raises SealError."""
        ...


# A bundle, encoded, for a challenge (32 bytes) and an X25519 public key: role SEALER, and the
# instance key as peer. Raises ProviderError.
Ticketing = Callable[[bytes, bytes], Awaitable[bytes]]


class CommitteeSealer:
    """Sealed data of one instance; `draw(n)` gives n random bytes. One call at a time runs.

    All methods raise SealError and ProviderError; `attestation.seal.committee` has the rules.
    """

    __slots__ = ("_committee", "_disk", "_draw", "_lock", "_members", "_opened", "_ticketing")

    def __init__(
        self,
        committee: Committee,
        members: Members,
        disk: Disk,
        ticketing: Ticketing,
        draw: Callable[[int], bytes],
    ) -> None:
        self._committee = committee
        self._members = members
        self._disk = disk
        self._ticketing = ticketing
        self._draw = draw
        self._opened: Opened | None = None
        self._lock = asyncio.Lock()

    @property
    def version(self) -> int:
        """The newest version that this object has opened or made; 0 before."""
        return 0 if self._opened is None else self._opened.version

    async def open(self) -> bytes:
        """The data, if it is the newest; all members know it when this returns.

        Raises SealRefused, rule `seal.absent`, if the disk is empty.
        """
        async with self._lock:
            blob = self._blob()
            request = steps.open_request(self._committee, blob, await self._nonces())
            self._opened = steps.open_blob(self._committee, blob, await self._ask(request))
            await self._commit()
            return self._opened.data

    async def unsafe_open_older(self) -> bytes:
        """The data of the disk's blob, however old: see `committee.unsafe_open_older`.

        For what may be used twice (an identity), after `open` has failed by `seal.rollback` or
        `seal.fork`; `update` then makes the version after the newest.
        """
        async with self._lock:
            blob = self._blob()
            steps.check_blob(self._committee, blob)
            header, nonces = blob.header, await self._nonces()
            request = steps.create_request(
                self._committee, header.key_id, header.list_number, nonces
            )
            self._opened = steps.unsafe_open_older(self._committee, blob, await self._ask(request))
            return self._opened.data

    async def create(self, data: bytes, list_number: int) -> None:
        """Seal data under a new key; what the disk held is gone. `list_number`: that in force."""
        async with self._lock:
            request = steps.create_request(
                self._committee, self._draw(ID), list_number, await self._nonces()
            )
            released = await self._ask(request)
            await self._put(steps.create_blob(request, released, data, self._draw(AEAD_NONCE)))

    async def update(self, data: bytes) -> None:
        """Replace the data. Use nothing of it before this returns."""
        async with self._lock:
            if self._opened is None:
                raise SealRefused(
                    "no key is open to seal with",
                    expected="open or create before update",
                    rule="seal.closed",
                )
            await self._commit()
            await self._put(steps.reseal(self._opened, data, self._draw(AEAD_NONCE)))

    def _blob(self) -> Blob:
        raw = self._disk.read()
        if raw is None:
            raise absent("committee")
        return Blob.parse(raw)

    async def _put(self, sealed: Opened) -> None:
        self._disk.write(sealed.raw)
        # From here on it is the newest, whoever of the members learns of it.
        self._opened = sealed
        await self._commit()

    async def _commit(self) -> None:
        """Tell the members of the newest blob, if some may not know it."""
        if self._opened is not None and self._opened.behind:
            request = steps.commit_request(self._committee, self._opened, await self._nonces())
            self._opened = steps.committed(self._opened, await self._ask(request))

    async def _nonces(self) -> dict[bytes, bytes | None]:
        return await self._all(NONCE_ASK)

    async def _ask(self, request: Request) -> dict[bytes, Released]:
        if request.op is not Op.COMMIT:
            # Whoever answers counts a boot, whatever comes of it: what was open is fenced.
            self._opened = None
        ephemeral = X25519PrivateKey.from_private_bytes(self._draw(32))
        bundle = await self._ticketing(request.challenge, ephemeral.public_key().public_bytes_raw())
        asking = Asking(request, request.encode() + bundle, ephemeral)
        return steps.read(self._committee, asking, await self._all(asking.raw))

    async def _all(self, raw: bytes) -> dict[bytes, bytes | None]:
        ids = self._committee.ids
        return dict(zip(ids, await asyncio.gather(*(self._one(m, raw) for m in ids)), strict=True))

    async def _one(self, member: bytes, raw: bytes) -> bytes | None:
        try:
            return await self._members.ask(member, raw)
        except SealUnavailable:
            return None
