"""Lists, trees, checkpoints and recoveries that are refused."""

from __future__ import annotations

from dataclasses import replace

from attestation.allowlist import PAYLOAD_TYPE, AllowList, assemble, sign
from attestation.envelope import parse
from tests.simulator.world import World
from tests.zipnet.committee.support import (
    case,
    command,
    forged,
    good,
    recover_command,
    recovery,
    reopened,
    replace_server,
    started,
    state_of,
)
from zipnet.committee import bodies
from zipnet.committee.state import CHECKPOINT_ROUNDS, PENDING_LISTS, SignedCheckpoint
from zipnet.protocol.instance import Instance


def rotates(world: World, raw: bytes) -> bytes:
    return command(world, world.sites[0], bodies.RotateAllowList(raw))


def relisted(world: World, **changes: object) -> bytes:
    """The world's list with something changed, signed by all operators."""
    plain = AllowList.loads(parse(world.allow_list(2), PAYLOAD_TYPE).payload)
    payload = replace(plain, **changes).dumps()  # type: ignore[arg-type]
    return assemble(payload, [sign(payload, key) for key in world.operators])


@case("signers")
def list_without_enough_signatures(world: World) -> bytes:
    return rotates(world, world.allow_list(2, [0, 1]))


@case("deployment")
def list_of_another_deployment(world: World) -> bytes:
    return rotates(world, relisted(world, deployment_id=bytes(32)))


@case("number")
def list_that_is_older(world: World) -> bytes:
    good(world.say(world.sites[0], bodies.RotateAllowList(world.allow_list(3))))
    return rotates(world, world.allow_list(2))


@case("number-reused")
def list_with_a_number_in_use(world: World) -> bytes:
    return rotates(world, relisted(world, number=1))


@case("list.known")
def list_that_is_in_force(world: World) -> bytes:
    world.now_ms += 1
    return rotates(world, world.allow_list())


@case("list.known")
def list_that_is_pending(world: World) -> bytes:
    good(world.say(world.sites[0], bodies.RotateAllowList(world.allow_list(2))))
    return rotates(world, world.allow_list(2))


@case("list.pending")
def too_many_lists_at_once(world: World) -> bytes:
    for number in range(2, 2 + PENDING_LISTS):
        good(world.say(world.sites[0], bodies.RotateAllowList(world.allow_list(number))))
    return rotates(world, world.allow_list(9))


@case("envelope.json")
def list_that_is_no_envelope(world: World) -> bytes:
    return rotates(world, b"{")


@case("assign.empty")
def vote_for_nothing(world: World) -> bytes:
    return command(world, world.sites[0], bodies.Assign(()))


@case("tree.parent")
def vote_for_what_is_no_tree(world: World) -> bytes:
    raw = bytearray(command(world, world.sites[0], bodies.Assign((world.tree,))))
    raw[-64 - 1] = 9  # the root's parent
    at = world.instance
    signed = bytes(raw[:-64])
    return signed + at.sign(world.sites[0].identity.signing, b"zipnet/sig/command/v2", 0, signed)


def checkpointed() -> World:
    """A checkpoint is due, and nobody has signed it."""
    world = started()
    digest = bytes(32)
    for site in world.sites:
        state = site.core.machine.state
        ids = tuple(server.id for server in state.active())
        state.pending_checkpoint = SignedCheckpoint(state.seq, state.head, digest, ids, ())
    assert CHECKPOINT_ROUNDS
    return world


def signs(world: World, at: int = 0, by: int | None = None, **changes: object) -> bytes:
    pending = state_of(world).pending_checkpoint
    seq, head, digest = (
        (pending.seq, pending.head, pending.digest) if pending else (1, bytes(32), bytes(32))
    )
    values = {"seq": seq, "head": head, "digest": digest, **changes}
    statement = bodies.Checkpoint.body(**values)  # type: ignore[arg-type]
    signer = world.sites[at if by is None else by].identity.signing
    signature = world.instance.sign(signer, bodies.SIGN_CHECKPOINT, 0, statement)
    body = bodies.Checkpoint(**values, signature=signature)  # type: ignore[arg-type]
    return command(world, world.sites[at], body)


@case("checkpoint.seq")
def checkpoint_where_none_is_due(world: World) -> bytes:
    return signs(world)


@case("checkpoint.seq", world=checkpointed)
def checkpoint_of_another_entry(world: World) -> bytes:
    return signs(world, seq=1)


@case("checkpoint.digest", world=checkpointed)
def checkpoint_of_another_state(world: World) -> bytes:
    return signs(world, digest=b"\1" * 32)


@case("checkpoint.digest", world=checkpointed)
def checkpoint_of_another_log(world: World) -> bytes:
    return signs(world, head=b"\1" * 32)


@case("checkpoint.server", world=checkpointed)
def checkpoint_of_a_later_server(world: World) -> bytes:
    replace_server(world).core.machine.state.pending_checkpoint = state_of(world).pending_checkpoint
    return signs(world, 2)


@case("checkpoint.twice", world=checkpointed)
def checkpoint_signed_twice(world: World) -> bytes:
    good(world.append(signs(world)))
    return signs(world)


@case("signature", world=checkpointed)
def checkpoint_signed_by_another(world: World) -> bytes:
    return signs(world, 0, by=1)


def new_log() -> World:
    return reopened(started())


def enter(rule: str, **changes: object) -> None:
    @case(f"recover.{rule}", world=new_log)
    def about_something_else(world: World) -> bytes:
        return recover_command(world, recovery(world, **changes))


enter("deployment", deployment_id=bytes(32))
enter("old-generation", old_generation=b"\1" * 32)
enter("counter", counter=2)
enter("checkpoint", checkpoint=bytes(32))


@case("recover.new-generation", world=new_log)
def recovery_into_another_generation(world: World) -> bytes:
    return forged(
        world,
        world.sites[0].identity.signing,
        bodies.Recover(recovery(world)),
        instance=Instance(world.instance.deployment_id, b"\x66" * 32),
    )


@case("signers", world=new_log)
def recovery_without_all_signatures(world: World) -> bytes:
    return recover_command(world, recovery(world, signers=[0, 1]))


@case("recovery.offender", world=new_log)
def recovery_against_a_stranger(world: World) -> bytes:
    return recover_command(world, recovery(world, offender=b"\1" * 32, signers=[0, 1, 2]))


@case("recovery.signers", world=new_log)
def recovery_that_its_offender_signed(world: World) -> bytes:
    offender = world.operators[0].public_key().public_bytes_raw()
    return recover_command(world, recovery(world, offender=offender))
