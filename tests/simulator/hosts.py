"""What a host does to the nodes it runs: restart them, roll them back, run them twice.

And what operators do when a log is lost. `Backup` is what a node has sealed to disk at one moment;
without one it comes back with its identity alone, as from a provisioned secret.
"""

from __future__ import annotations

from tests.simulator.nodes import Backup, Disk, Site, User
from tests.simulator.world import World
from zipnet.committee import bodies
from zipnet.committee.commands import Command
from zipnet.committee.machine import Machine
from zipnet.committee.snapshot import digest
from zipnet.operators import NOBODY, RecoveryDocument
from zipnet.protocol.guards import ClientGuard, ServerGuard
from zipnet.roles.client_core import ClientCore
from zipnet.roles.server_core import ServerCore

# A boot takes time: serials of keys and Resumes follow the clock.
BOOT_MS = 500


def _server(world: World, site: Site, backup: Backup | None, boot: int) -> ServerCore:
    machine = Machine.genesis(world.rules, world.instance)
    if world.reopened:
        machine = Machine.reopen(world.rules, world.reopened)
    arguments = (machine, site.identity, site.disk, site.ledger, boot)
    if backup is None:
        return world.server_core(*arguments)
    return world.server_core(
        *arguments,
        guard=None if backup.guard is None else ServerGuard.decode(backup.guard),
        keyring=backup.ring(site.id),
        restarted=True,
    )


def restart(world: World, site: Site, backup: Backup | None) -> None:
    """A new boot of a server, with sealed pairs or without, which reads the log from its start."""
    world.now_ms += BOOT_MS
    site.boot += 1
    site.core = _server(world, site, backup, site.boot)
    site.down = False
    world.deliver(site)


def clone(world: World, site: Site, backup: Backup | None) -> Site:
    """The same server a second time, beside the first."""
    world.now_ms += BOOT_MS
    boot = site.boot + 100
    core = _server(world, site, backup, boot)
    twin = Site(site.name, site.operator, site.identity, core, Disk(), site.ledger)
    twin.boot, twin.serial = boot, site.serial
    world.sites.append(twin)
    world.deliver(twin)
    return twin


def _client(world: World, user: User, backup: Backup | None) -> ClientCore:
    if backup is None:
        return world.client_core(user.identity, user.disk)
    return world.client_core(
        user.identity,
        user.disk,
        guard=None if backup.guard is None else ClientGuard.decode(backup.guard),
        keyring=backup.ring(user.id),
        restarted=True,
    )


def restart_user(world: World, user: User, backup: Backup | None) -> None:
    """A new boot of a client, with sealed pairs or without."""
    world.now_ms += BOOT_MS
    user.reborn(_client(world, user, backup))


def clone_user(world: World, user: User, backup: Backup | None) -> User:
    """The same client a second time. It is not among the world's users: a test moves it."""
    return User(user.identity, _client(world, user, backup), Disk(), user.bundle)


def resume_user(world: World, user: User) -> str:
    """The client's Resume, carried by the first server; the rule that refused it, if one did."""
    nonce, serial, signature = user.core.resume(world.now_ms)
    return world.say(world.up()[0], bodies.ResumeNode(user.id, nonce, serial, signature)).rule


def recover(world: World) -> None:
    """The log is lost: the operators open the next generation on the last signed checkpoint.

    Every node keeps its identity and nothing else of the old generation's keys.
    """
    assert world.checkpoint is not None
    raw, old = world.checkpoint.snapshot, world.instance
    counter = world.state.counter + 1
    new = world.generation(counter)
    document = RecoveryDocument(
        deployment_id=old.deployment_id,
        old_generation=old.generation,
        new_generation=new.generation,
        counter=counter,
        checkpoint=digest(raw),
        offender=NOBODY,
    )
    signed = document.assemble([document.sign(key) for key in world.operators])
    world.instance, world.reopened = new, raw
    world.log.clear()
    world.bus.under_way.clear()
    for site in world.sites:
        site.boot += 1
        site.disk = Disk()
        machine = Machine.reopen(world.rules, raw)
        core = world.server_core(machine, site.identity, site.disk, site.ledger, site.boot)
        site.core = core
    first = world.sites[0]
    applied = world.append(
        Command.make(
            first.identity.signing,
            new,
            bodies.Recover(signed),
            round_number=0,
            seq=0,
            head=bytes(32),
            clock_ms=world.clock(first),
        )
    )
    assert not applied.rule, applied
    for site in world.sites:
        world.join(site)
    for user in world.users:
        user.disk = Disk()
        user.reborn(_client(world, user, None))
        if not user.gone:
            world.admit(user)
