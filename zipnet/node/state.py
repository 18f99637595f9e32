r"""What a node keeps between its boots, in one record: who it is, and what it must not do again.

    "zipnet node state 1\n" (20) ‖ role (u8) ‖ binding of the instance (32) ‖ Ed25519 seed (32) ‖
    X25519 secret (32) ‖ boot epoch (u64) ‖ seq (u64) and head (32) of the log's tip ‖ u16 length ‖
    guard

It has no pair secrets: a node that comes back draws new epoch keys.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from attestation.bundle import Role
from zipnet.errors import GuardRefused, StateDamaged, WireFormatError
from zipnet.network.group import Tip
from zipnet.node.slots import HEAD, TwoSlots
from zipnet.protocol.codec import Reader, sized
from zipnet.protocol.guards import ClientGuard, ServerGuard, check_binding
from zipnet.protocol.instance import Instance
from zipnet.roles.identity import Draw, Identity

VERSION = b"zipnet node state 1\n"
MAX_GUARD = 1024
MAX_RECORD = len(VERSION) + 1 + 3 * 32 + 8 + 40 + 2 + MAX_GUARD
SLOT_BYTES = 4096
assert HEAD + MAX_RECORD <= SLOT_BYTES


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node's record. `guard` is an encoded guard of its role, empty before the first one.

    Secrets are the keys' 32 raw bytes. `boot` counts the boots, from 1. Raises WireFormatError for
    a guard that is none, or for another instance than `binding`.
    """

    role: Role
    binding: bytes
    signing: bytes = field(repr=False)
    dh: bytes = field(repr=False)
    boot: int
    tip: Tip = field(default_factory=Tip)
    guard: bytes = b""

    def __post_init__(self) -> None:
        if not self.guard:
            return
        try:
            match self.role:
                case Role.SERVER:
                    check_binding(ServerGuard.decode(self.guard), self.binding)
                case Role.CLIENT:
                    check_binding(ClientGuard.decode(self.guard), self.binding)
                case _:
                    raise WireFormatError(
                        "a node of this role has no guard",
                        expected="none",
                        got=f"{len(self.guard)} bytes",
                        rule="node-state.guard",
                    )
        except GuardRefused as error:
            raise WireFormatError(error.message, rule="node-state.guard") from error

    def encode(self) -> bytes:
        """As at the top of this module."""
        return b"".join(
            (
                VERSION,
                bytes([self.role]),
                self.binding,
                self.signing,
                self.dh,
                self.boot.to_bytes(8, "big"),
                self.tip.seq.to_bytes(8, "big"),
                self.tip.head,
                sized(self.guard, 2),
            )
        )

    @classmethod
    def decode(cls, raw: bytes) -> NodeRecord:
        """The record in `raw`, all of it. Raises WireFormatError."""
        reader = Reader(raw, "node-state", at_most=MAX_RECORD)
        reader.expect("version", VERSION)
        role = reader.u8()
        if role not in set(Role):
            raise reader.wrong("role", f"1 to {max(Role)}", str(role))
        result = cls(
            Role(role),
            reader.take(32),
            reader.take(32),
            reader.take(32),
            reader.u64(),
            Tip(reader.u64(), reader.take(32)),
            reader.sized(2, MAX_GUARD),
        )
        reader.done()
        return result


class UnsafePlainState:
    """The record of a node in a file that its host can read, alter and put back: nothing is sealed.

    For software TEEs and for one's own machine. It is the node's `Store` of guards: with each guard
    the tip of that moment is written, so that before a partial leaves it is known which log it was
    made from. One process at a time; `close` lets the next one in.
    """

    __slots__ = ("_record", "_slots", "_tip")

    def __init__(self, slots: TwoSlots, record: NodeRecord) -> None:
        self._slots = slots
        self._record = record
        self._tip = record.tip

    @classmethod
    def open(
        cls,
        path: Path,
        role: Role,
        instance: Instance,
        draw: Draw,
        sync: Callable[[int], None] = os.fsync,
    ) -> UnsafePlainState:
        """The state at `path`, made with a fresh identity if there is none; this boot is counted.

        Raises StateDamaged, with the rules `state.*` for a file that is in use, open to others, of
        another role or instance, or of another version; OSError if the disk fails.
        """
        slots = _own_file(path, sync)
        try:
            raw = slots.read()
            if raw is None:
                record = NodeRecord(role, instance.binding, draw(32), draw(32), 1)
            else:
                record = _known(raw, path, role, instance)
                record = replace(record, boot=record.boot + 1)
            slots.write(record.encode())
            _sync_folder(path.parent, sync)
        except BaseException:
            slots.close()
            raise
        return cls(slots, record)

    @classmethod
    def next_generation(
        cls,
        path: Path,
        role: Role,
        old: Instance,
        new: Instance,
        sync: Callable[[int], None] = os.fsync,
    ) -> UnsafePlainState:
        """The state at `path`, taken from generation `old` into `new`; this boot is counted.

        The keys stay. Guard and tip begin anew, as the log and all epoch keys do. A state that is
        in `new` already is opened as it is. Raises as `open`, but makes no state.
        """
        slots = _own_file(path, sync)
        try:
            raw = slots.read() or b""
            try:
                record = _known(raw, path, role, new)
            except StateDamaged as error:
                if error.rule != "state.instance" or old.deployment_id != new.deployment_id:
                    raise
                record = _known(raw, path, role, old)
                record = replace(record, binding=new.binding, tip=Tip(), guard=b"")
            record = replace(record, boot=record.boot + 1)
            slots.write(record.encode())
        except BaseException:
            slots.close()
            raise
        return cls(slots, record)

    @property
    def identity(self) -> Identity:
        """The keys that name this node."""
        return Identity(
            Ed25519PrivateKey.from_private_bytes(self._record.signing),
            X25519PrivateKey.from_private_bytes(self._record.dh),
        )

    @property
    def boot_epoch(self) -> int:
        """How often this node has booted with this state, this time included."""
        return self._record.boot

    @property
    def tip(self) -> Tip:
        """The newest entry of the log that this node knows; what is on disk may be older."""
        return self._tip

    @property
    def server_guard(self) -> ServerGuard | None:
        """The last one that was written. Raises WireFormatError if this is no server's."""
        return ServerGuard.decode(self._record.guard) if self._record.guard else None

    @property
    def client_guard(self) -> ClientGuard | None:
        """The last one that was written. Raises WireFormatError if this is no client's."""
        return ClientGuard.decode(self._record.guard) if self._record.guard else None

    def seen(self, tip: Tip) -> None:
        """An entry was applied. Kept with the next guard; one from before the tip is no news."""
        if tip.seq > self._tip.seq:
            self._tip = tip

    def write(self, record: bytes) -> None:
        """As `Store.write`: `record` is the guard. Raises OSError, and WireFormatError for none."""
        after = replace(self._record, guard=record, tip=self._tip)
        self._slots.write(after.encode())
        self._record = after

    def close(self) -> None:
        """Close the file, and let another process have it."""
        self._slots.close()


def _own_file(path: Path, sync: Callable[[int], None]) -> TwoSlots:
    """The file, locked, if nobody else can read it."""
    try:
        slots = TwoSlots(path, SLOT_BYTES, sync)
    except OSError as error:
        raise StateDamaged(
            "the state of this node cannot be opened",
            expected=f"a file {path}, or a folder to make it in",
            got=error.strerror or str(error),
            rule="state.open",
            hint="a link is not followed: name the file itself",
        ) from error
    try:
        _check_file(path, slots.fileno())
    except BaseException:
        slots.close()
        raise
    return slots


def _check_file(path: Path, descriptor: int) -> None:
    found = os.fstat(descriptor)
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or mode & 0o077:
        raise StateDamaged(
            "others may read or change the state of this node",
            expected=f"a file of user {os.geteuid()} with mode 600",
            got=f"user {found.st_uid}, {stat.filemode(found.st_mode)}",
            rule="state.mode",
            hint=f"its keys may be known: remove {path}, and start with new ones",
        )
    try:
        # Of the open file, not of the process: a second opening in this process meets it too.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise StateDamaged(
            "the state of this node is in use",
            expected="one process at a time",
            got=str(path),
            rule="state.in-use",
            hint="stop the other process; two nodes with one identity fence each other",
        ) from error


def _known(raw: bytes, path: Path, role: Role, instance: Instance) -> NodeRecord:
    try:
        record = NodeRecord.decode(raw)
    except WireFormatError as error:
        raise StateDamaged(
            "this is no state of a node that this version reads",
            expected=error.expected,
            got=error.got,
            rule="state.version",
            hint=f"start the version that wrote {path}, or start anew with new keys",
        ) from error
    for rule, expected, got in (
        ("role", role.name.lower(), record.role.name.lower()),
        ("instance", instance.binding.hex(), record.binding.hex()),
    ):
        if expected != got:
            raise StateDamaged(
                f"the state is that of another {rule}",
                expected=expected,
                got=got,
                rule=f"state.{rule}",
                hint=f"name another file than {path}",
            )
    return record


def _sync_folder(folder: Path, sync: Callable[[int], None]) -> None:
    """Make the file's name durable too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)
