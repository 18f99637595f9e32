"""Commands that the frame, the position in the log or the author's standing refuses."""

from __future__ import annotations

from dataclasses import replace

from tests.simulator.world import World
from tests.zipnet.committee.support import (
    case,
    command,
    forged,
    recover_command,
    recovery,
    reopened,
    spare,
    started,
    state_of,
    suspend,
)
from zipnet.committee import bodies
from zipnet.committee.commands import Command
from zipnet.committee.state import LOG_WINDOW
from zipnet.protocol.instance import Instance

HEAD = 155  # bytes of a frame before its body


def tick(world: World) -> bytes:
    return command(world, world.sites[0], bodies.Tick())


def overwritten(raw: bytes, at: int, part: bytes) -> bytes:
    return raw[:at] + part + raw[at + len(part) :]


def resigned(world: World, raw: bytes) -> bytes:
    """The same with a good signature, whatever it says."""
    at = state_of(world).instance
    part = raw[:-64]
    number = int.from_bytes(raw[99:107], "big")
    return part + at.sign(world.sites[0].identity.signing, b"zipnet/sig/command/v2", number, part)


@case("command.truncated")
def empty(world: World) -> bytes:
    return b""


@case("command.truncated")
def cut(world: World) -> bytes:
    return tick(world)[:-1]


@case("command.trailing")
def longer(world: World) -> bytes:
    return tick(world) + b"\0"


@case("command.size")
def enormous(world: World) -> bytes:
    return tick(world) + bytes(bodies.MAX_COMMAND)


@case("command.wire-version")
def another_version(world: World) -> bytes:
    return resigned(world, overwritten(tick(world), 0, b"\0\3"))


@case("command.kind")
def kind_zero(world: World) -> bytes:
    return resigned(world, overwritten(tick(world), 2, b"\0"))


@case("command.kind")
def kind_beyond(world: World) -> bytes:
    return resigned(world, overwritten(tick(world), 2, b"\x18"))


@case("command.round")
def about_a_round_where_there_is_none(world: World) -> bytes:
    return command(world, world.sites[0], bodies.Tick(), 1)


@case("command.round")
def about_no_round(world: World) -> bytes:
    return command(world, world.sites[0], bodies.ProposeHeader(), 0)


@case("command.number")
def seq_beyond_63_bits(world: World) -> bytes:
    return resigned(world, overwritten(tick(world), 107, b"\xff" * 8))


@case("command.flag")
def flag_of_two(world: World) -> bytes:
    raw = command(world, world.sites[0], bodies.Leave())
    return resigned(world, overwritten(raw, HEAD, b"\2"))


@case("command.count")
def too_many_vouchers(world: World) -> bytes:
    raw = command(world, world.sites[0], bodies.Vouch(()))
    return resigned(world, overwritten(raw, HEAD, b"\1\1"))


@case("command.length")
def bundle_too_long(world: World) -> bytes:
    key = world.users[0].core.epoch_key(9, 1)
    raw = command(world, world.sites[0], bodies.Register(b"", key))
    return resigned(world, overwritten(raw, HEAD, b"\xff\xff"))


@case("command.text")
def reason_with_a_newline(world: World) -> bytes:
    raw = command(world, world.sites[0], bodies.Refuse(bytes(32), "a"))
    return resigned(world, overwritten(raw, HEAD + 33, b"\n"))


@case("command.deployment")
def of_another_deployment(world: World) -> bytes:
    other = Instance(bytes(32), world.instance.generation)
    return forged(world, world.sites[0].identity.signing, bodies.Tick(), instance=other)


@case("command.generation")
def of_another_generation(world: World) -> bytes:
    other = Instance(world.instance.deployment_id, bytes(32))
    return forged(world, world.sites[0].identity.signing, bodies.Tick(), instance=other)


@case("command.recover")
def recovery_in_the_middle(world: World) -> bytes:
    return command(world, world.sites[0], bodies.Recover(b"{}"))


@case("command.recover", world=lambda: reopened(started()))
def a_new_generation_without_recovery(world: World) -> bytes:
    return command(world, world.sites[0], bodies.Tick())


@case("command.position")
def of_a_wrong_head(world: World) -> bytes:
    raw = tick(world)
    decoded = Command.decode(raw)
    other = replace(decoded, head=bytes([decoded.head[0] ^ 1]) + decoded.head[1:])
    return resigned(world, other.encode())


@case("command.position")
def of_the_future(world: World) -> bytes:
    decoded = replace(Command.decode(tick(world)), seq=state_of(world).seq + 1)
    return resigned(world, decoded.encode())


@case("command.position")
def tied_to_itself_and_nothing(world: World) -> bytes:
    decoded = replace(Command.decode(tick(world)), seq=0)
    return resigned(world, decoded.encode())


def junk(world: World, entries: int) -> World:
    for at in range(entries):
        raw = b"junk %d" % at
        world.log.append(raw)
        for site in world.sites:
            site.core.machine.apply(len(world.log), raw)
    return world


@case("command.position", world=lambda: junk(started(), LOG_WINDOW))
def of_long_ago(world: World) -> bytes:
    # The oldest that counts is LOG_WINDOW - 1 entries before the command itself.
    return forged(world, world.sites[0].identity.signing, bodies.Tick(), back=LOG_WINDOW - 1)


@case("command.position", world=lambda: junk(started(), LOG_WINDOW))
def tied_to_the_beginning_of_a_long_log(world: World) -> bytes:
    decoded = replace(Command.decode(tick(world)), seq=0, head=bytes(32))
    return resigned(world, decoded.encode())


@case("signature")
def with_another_signature(world: World) -> bytes:
    return tick(world)[:-64] + bytes(64)


@case("signature")
def by_another_key(world: World) -> bytes:
    raw = tick(world)
    decoded = replace(Command.decode(raw), author=world.sites[1].identity.peer)
    return resigned(world, decoded.encode())


@case("command.author")
def of_a_stranger(world: World) -> bytes:
    return forged(world, spare(world).identity.signing, bodies.Tick())


@case("command.author")
def of_a_client(world: World) -> bytes:
    return forged(world, world.users[0].identity.signing, bodies.Tick())


@case("command.suspended")
def of_a_server_that_rests(world: World) -> bytes:
    suspend(world)
    return command(world, world.sites[2], bodies.Assign((world.tree,)))


@case("command.clock")
def of_a_clock_ahead(world: World) -> bytes:
    world.sites[0].skew_ms = 30_001
    return command(world, world.sites[0], bodies.Assign((world.tree,)))


def just_opened() -> World:
    return reopened(started())


@case("command.truncated", world=just_opened)
def damaged_before_a_recovery(world: World) -> bytes:
    return recover_command(world, recovery(world))[:-1]
