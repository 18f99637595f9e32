"""What operators do to a deployment that runs: the steps of docs/runbooks, by the real commands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.bundle import Role
from tests.e2e.deployment import Deployment, Said
from tests.e2e.process import Node, until
from zipnet.cli import main
from zipnet.node.service_identity import kept
from zipnet.protocol.instance import Instance

# Of one step: a few rounds, each of which may end at its deadline on a busy machine.
STEP_S = 150.0


class Operations:
    """`documents` are the changes of operators so far, `options` what servers are started with."""

    def __init__(self, made: Deployment) -> None:
        self.made = made
        self.folder = made.folder
        self.documents: list[Path] = []
        self.options: list[str] = []
        self._numbered = 0

    # What is looked at

    def status(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.made.zipnet("status", "--json", *self.made.bus))
        return found

    def servers(self) -> dict[str, str]:
        """The peer key of each operator's server."""
        found = self.status()["servers"]
        assert isinstance(found, dict)
        return found

    def await_list(self, number: int) -> None:
        until(lambda: self.status()["list"] == number, self.made.tails, STEP_S)

    def await_rounds(self, number: int = 2) -> None:
        """Until so many rounds more are final."""

        def last() -> int:
            found = self.status()["last_final_round"]
            return found if isinstance(found, int) else 0

        wanted = last() + number
        until(lambda: last() >= wanted, self.made.tails, STEP_S)

    # Nodes

    def start_server(self, name: str) -> Node:
        """Start the server of an operator; when this returns, rounds go on with it."""
        node = self.made.server(name, *self.options)
        node.start()
        node.await_ready()
        self.await_rounds()
        return node

    def stop(self, node: Node) -> None:
        code, seconds = node.stop()
        assert (code, seconds < 15) == (0, True), node.tail()

    def restart(self, name: str) -> None:
        self.stop(self.made.nodes[name])
        self.start_server(name)

    # What operators sign

    def file(self, name: str) -> Path:
        """Where a new file goes."""
        self._numbered += 1
        return self.folder / f"{self._numbered}-{name}"

    def key(self, name: str) -> list[str]:
        file = self.folder / f"{name}.key"
        file.write_text(self.made.keys[name].private_bytes_raw().hex())
        return ["--key", str(file)]

    @property
    def secret(self) -> list[str]:
        return ["--committee-secret-file", str(self.made.secret)]

    @property
    def changes(self) -> list[str]:
        """The options with the changes of operators so far."""
        return _documents(self.documents)

    def identity(self, name: str) -> dict[str, str]:
        state = ["--state", str(self.folder / name)]
        recovery = self.options if "--recovery" in self.options else []
        found: dict[str, str] = json.loads(
            self.made.zipnet("server", "identity", *state, *self.secret, *recovery, "--json")
        )
        return found

    def endorse(self, name: str, *more: str) -> str:
        """Sign for the keys that a server has, in place of any earlier endorsement; its peer."""
        facts, out = self.identity(name), self.folder / f"{name}.endorsement"
        out.unlink(missing_ok=True)
        words = ["--peer", facts["peer"], "--dh", facts["dh"], "-o", str(out), *more]
        who = [*self.key(name), *self.changes, *self.secret]
        self.made.zipnet("admin", "server", "add", *who, *words)
        return facts["peer"]

    def sign(self, verb: str, payload: Path, signers: Iterable[str] = ()) -> Path:
        """All operators sign a document in turn; each joins what the one before made."""
        joined: list[str] = []
        out, said = payload, "missing"
        for name in signers or self.made.keys:
            out = self.file(f"{payload.name}-{name}")
            words = [str(payload), *self.key(name), *self.changes, *joined, "-o", str(out)]
            said = self.made.zipnet("admin", verb, "sign", *words)
            joined = ["--join", str(out)]
        assert "missing" not in said
        return out

    def program(self, name: str = "") -> Path:
        """The measurements of a server's program, as its builder publishes them."""
        file = self.file("measurements.json")
        words = ["--name", name] if name else []
        file.write_text(self.made.call(main, "config", "program", "server", *words))
        return file

    def rotate_list(self, *words: str) -> None:
        """The list in force, changed by these words, signed by all and pushed; until in force."""
        shown, payload = self.file("list.json"), self.file("next.json")
        bus = self.made.bus
        shown.write_text(self.made.zipnet("admin", "allow-list", "show", "--json", *bus))
        number = json.loads(shown.read_text())["number"] + 1
        after = ["--after", str(shown), "-o", str(payload), *words]
        said = self.made.zipnet("admin", "allow-list", "new", *after)
        assert said.startswith(f"list {number} ")
        signed = self.sign("allow-list", payload)
        said = self.made.zipnet("admin", "allow-list", "push", str(signed), *bus)
        assert said.startswith(f"list {number} is in the log")
        self.await_list(number)

    def change_operators(self, *words: str, signers: Iterable[str] = ()) -> Path:
        """Operators after those in force, signed by these; not pushed."""
        payload = self.file("operators.json")
        self.made.zipnet("admin", "operators", "new", *self.changes, *words, "-o", str(payload))
        return self.sign("operators", payload, signers)

    def push_operators(self, signed: Path) -> None:
        said = self.made.zipnet("admin", "operators", "push", str(signed), *self.made.bus)
        assert "is in the log" in said

    def new_operator(self, name: str) -> str:
        """NAME=HEXKEY of somebody who shall be one."""
        self.made.keys[name] = key = Ed25519PrivateKey.generate()
        return f"{name}={key.public_key().public_bytes_raw().hex()}"

    # What a server must not leave behind

    def dh_secret(self, name: str, instance: Instance) -> bytes:
        """The X25519 secret in the state of a server that has stopped."""
        with kept(self.folder / name, Role.SERVER, instance, config=self.made.config) as state:
            return state.identity.dh.private_bytes_raw()

    def wipe(
        self, name: str, peer: str, *more: str, documents: Iterable[Path] | None = None
    ) -> None:
        """Dismiss a server that has stopped, and erase its state: the keys are nowhere then."""
        state = self.folder / name / "server.state"
        secret = self.dh_secret(name, self.made.instance)
        assert secret in state.read_bytes()
        # Another name for the same bytes shows what becomes of them.
        (again := self.file("again")).hardlink_to(state)
        words = ["--peer", peer, "--wipe", "--state", str(state), "-o", str(self.file("dismissal"))]
        changes = self.changes if documents is None else _documents(documents)
        who = [*self.key(name), *self.secret, *changes]
        said = self.made.zipnet("admin", "server", "remove", *who, *words, *more)
        assert f"erased {state}" in said
        assert not state.exists()
        assert not any(again.read_bytes())
        for file in (self.folder / name).rglob("*"):
            assert secret not in file.read_bytes(), file

    # What came of it

    def refused(self, *words: str) -> tuple[int, str]:
        """The exit code of a command that must fail, and the rule that it names."""
        result = CliRunner().invoke(main, list(words))
        rules = re.findall(r"^  rule: (\S+)$", result.stderr, re.MULTILINE)
        assert rules, result.output
        return result.exit_code, rules[-1]

    def check_heard(self, read: Said) -> int:
        """All that clients were told has landed was read; how many messages that were."""
        told = self.made.landed()
        assert not told - read, f"accepted and lost: {told - read}"
        return told.total()


def _documents(files: Iterable[Path]) -> list[str]:
    return [word for file in files for word in ("--document", str(file))]
