"""The operators in force, and what they sign: new operators, a recovery, servers of their own.

Documents travel in DSSE envelopes (`attestation.envelope`). Their payloads are canonical JSON:
sorted keys, two spaces of indent, ASCII, a newline at the end, at most 64 KiB; bytes are lower-case
hex digits. Any other text of the same value is refused. A digest is the SHA-256 of a payload.

    {"schema": "zipnet.operators/1",
     "deployment_id": hex, "number": one more with each document, from 1,
     "previous": digest of the document before; of the first, the deployment id,
     "operators": [{"name": text, "key": hex}, ...] sorted by name, "k": how many sign a list}

    {"schema": "zipnet.recovery/1",
     "deployment_id": hex, "old_generation": hex, "new_generation": hex,
     "counter": of the new generation, "checkpoint": hex,
     "offender": key of the operator who doesn't sign, or 64 zeros}

Statements are fixed structs, signed as `protocol.instance` says, for round 0.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation import envelope
from attestation.envelope import Signature, fields, load_json, shown
from attestation.errors import AllowListRejected, PolicyError
from zipnet.config import Config, Operator, deployment_id, sorted_operators
from zipnet.errors import ConfigRejected, DocumentRejected
from zipnet.protocol.codec import Reader
from zipnet.protocol.instance import Instance

OPERATORS_SCHEMA = "zipnet.operators/1"
OPERATORS_TYPE = "application/vnd.zipnet.operators+json"
RECOVERY_SCHEMA = "zipnet.recovery/1"
RECOVERY_TYPE = "application/vnd.zipnet.recovery+json"
MAX_BYTES = 64 << 10
NOBODY = bytes(32)
ENDORSE = b"zipnet/sig/endorse/v2"
DISMISS = b"zipnet/sig/dismiss/v2"

_MAX_NUMBER = (1 << 53) - 1  # what every JSON reader takes exactly
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class OperatorSet:
    """Operators in force: by `Config` (number 0) or by the document of this number and digest.

    Raises DocumentRejected for operators that no configuration could have.
    """

    operators: tuple[Operator, ...]
    k: int
    number: int
    digest: bytes

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "operators", sorted_operators(self.operators))
        except ConfigRejected as error:
            raise DocumentRejected(
                error.message, expected=error.expected, got=error.got, rule="operators.operators"
            ) from error
        _check_number(self.k, 1, len(self.operators), "operators.k")
        _check_number(self.number, 0, _MAX_NUMBER, "operators.number")
        if len(self.digest) != 32:
            raise _wrong("operators.digest", "32 bytes", str(len(self.digest)))

    @classmethod
    def genesis(cls, config: Config) -> "OperatorSet":
        """The first ones, whose digest is the deployment's id."""
        return cls(config.operators, config.k, 0, deployment_id(config).raw)

    @property
    def keys(self) -> tuple[bytes, ...]:
        """The public keys, in the order of the names."""
        return tuple(each.key for each in self.operators)

    def servers_needed(self, config: Config) -> int:
        """Without how many servers no round goes on, for these operators.

        A configuration that needs the servers of all its operators needs all those of later ones.
        """
        everyone = len(self.operators)
        if config.window.min_servers == len(config.operators):
            return everyone
        return min(config.window.min_servers, everyone)


@dataclass(frozen=True, slots=True)
class OperatorDocument:
    """Operators that shall follow others. Raises DocumentRejected for what breaks the schema."""

    deployment_id: bytes
    number: int
    previous: bytes
    operators: tuple[Operator, ...]
    k: int

    def __post_init__(self) -> None:
        _check_number(self.number, 1, _MAX_NUMBER, "operators.number")
        for name in ("deployment_id", "previous"):
            if len(getattr(self, name)) != 32:
                raise _wrong(f"operators.{name}", "32 bytes", str(len(getattr(self, name))))
        inner = OperatorSet(self.operators, self.k, self.number, self.previous)
        object.__setattr__(self, "operators", inner.operators)

    @classmethod
    def after(
        cls, current: OperatorSet, deployment_id: bytes, operators: Iterable[Operator], k: int
    ) -> "OperatorDocument":
        """The document that changes from the operators in force to these."""
        number = current.number + 1
        return cls(deployment_id, number, current.digest, tuple(operators), k)

    def dumps(self) -> bytes:
        """The payload, canonical."""
        return _dumps(
            {
                "schema": OPERATORS_SCHEMA,
                "deployment_id": self.deployment_id.hex(),
                "number": self.number,
                "previous": self.previous.hex(),
                "operators": [
                    {"name": each.name, "key": each.key.hex()} for each in self.operators
                ],
                "k": self.k,
            }
        )

    @classmethod
    def loads(cls, payload: bytes) -> "OperatorDocument":
        """The document in a payload, unsigned. Raises DocumentRejected."""
        with _as_document():
            names = {"schema", "deployment_id", "number", "previous", "operators", "k"}
            document = fields(_json(payload, "operators"), names, "operators")
            operators = document["operators"]
            if document["schema"] != OPERATORS_SCHEMA:
                raise _wrong("operators.schema", OPERATORS_SCHEMA, shown(document["schema"]))
            if not isinstance(operators, list):
                raise _wrong("operators.operators", "a list", shown(operators))
            result = cls(
                deployment_id=_bytes(document["deployment_id"], "operators.deployment_id"),
                number=document["number"],
                previous=_bytes(document["previous"], "operators.previous"),
                operators=tuple(map(_operator, operators)),
                k=document["k"],
            )
        if result.dumps() != payload:
            raise _wrong("operators.canonical", "canonical JSON", "another text of the same")
        return result

    def sign(self, key: Ed25519PrivateKey) -> Signature:
        """One operator's signature."""
        return envelope.sign(self.dumps(), OPERATORS_TYPE, key)

    def assemble(self, signatures: Iterable[Signature]) -> bytes:
        """The envelope, its signatures not checked. Raises DocumentRejected."""
        with _as_document():
            return envelope.assemble(self.dumps(), OPERATORS_TYPE, signatures)

    @classmethod
    def verify(cls, raw: bytes, current: OperatorSet, deployment_id: bytes) -> OperatorSet:
        """The operators in an envelope that all operators in force signed, and that follows theirs.

        Raises DocumentRejected.
        """
        with _as_document():
            signed = envelope.parse(raw, OPERATORS_TYPE)
            envelope.verify(signed, current.keys, len(current.keys))
        document = cls.loads(signed.payload)
        if document.deployment_id != deployment_id:
            raise DocumentRejected(
                "the document is for another deployment",
                expected=deployment_id.hex(),
                got=document.deployment_id.hex(),
                rule="deployment",
            )
        if document.number != current.number + 1:
            raise DocumentRejected(
                "the document is out of turn",
                expected=f"number {current.number + 1}",
                got=str(document.number),
                rule="number",
                hint="apply the documents in their order, each once",
            )
        if document.previous != current.digest:
            raise DocumentRejected(
                "the document follows another than the one in force",
                expected=current.digest.hex(),
                got=document.previous.hex(),
                rule="previous",
                hint="make it anew, from the operators in force",
            )
        digest = hashlib.sha256(signed.payload).digest()
        return OperatorSet(document.operators, document.k, document.number, digest)


def chain(config: Config, documents: Iterable[bytes]) -> tuple[OperatorSet, ...]:
    """The operators of the configuration, then those after each document. Raises DocumentRejected.

    Whoever has the configuration needs nothing else to know whose servers count, or counted.
    """
    sets = [OperatorSet.genesis(config)]
    for raw in documents:
        sets.append(OperatorDocument.verify(raw, sets[-1], sets[0].digest))
    return tuple(sets)


def follow(config: Config, documents: Iterable[bytes]) -> OperatorSet:
    """The operators in force after these documents, the first one first. Raises as `chain`."""
    return chain(config, documents)[-1]


@dataclass(frozen=True, slots=True)
class RecoveryDocument:
    """From a checkpoint on into the next generation. Raises DocumentRejected.

    `offender` is the key of the one operator who didn't sign, or NOBODY.
    """

    deployment_id: bytes
    old_generation: bytes
    new_generation: bytes
    counter: int
    checkpoint: bytes
    offender: bytes = NOBODY

    def __post_init__(self) -> None:
        _check_number(self.counter, 1, _MAX_NUMBER, "recovery.counter")
        for name in _RECOVERY_BYTES:
            if len(getattr(self, name)) != 32:
                raise _wrong(f"recovery.{name}", "32 bytes", str(len(getattr(self, name))))
        if self.old_generation == self.new_generation:
            raise _wrong("recovery.new_generation", "another than the old one", "the same")

    def dumps(self) -> bytes:
        """The payload, canonical."""
        values = {name: getattr(self, name).hex() for name in _RECOVERY_BYTES}
        return _dumps({"schema": RECOVERY_SCHEMA, "counter": self.counter, **values})

    @classmethod
    def loads(cls, payload: bytes) -> "RecoveryDocument":
        """The document in a payload, unsigned. Raises DocumentRejected."""
        with _as_document():
            names = {"schema", "counter", *_RECOVERY_BYTES}
            document = fields(_json(payload, "recovery"), names, "recovery")
            if document["schema"] != RECOVERY_SCHEMA:
                raise _wrong("recovery.schema", RECOVERY_SCHEMA, shown(document["schema"]))
            result = cls(
                counter=document["counter"],
                **{name: _bytes(document[name], f"recovery.{name}") for name in _RECOVERY_BYTES},
            )
        if result.dumps() != payload:
            raise _wrong("recovery.canonical", "canonical JSON", "another text of the same")
        return result

    def sign(self, key: Ed25519PrivateKey) -> Signature:
        """One operator's signature."""
        return envelope.sign(self.dumps(), RECOVERY_TYPE, key)

    def assemble(self, signatures: Iterable[Signature]) -> bytes:
        """The envelope, its signatures not checked. Raises DocumentRejected."""
        with _as_document():
            return envelope.assemble(self.dumps(), RECOVERY_TYPE, signatures)

    @classmethod
    def unverified(cls, raw: bytes) -> "RecoveryDocument":
        """The document in an envelope, whoever signed it. Raises DocumentRejected."""
        with _as_document():
            return cls.loads(envelope.parse(raw, RECOVERY_TYPE).payload)

    @classmethod
    def verify(cls, raw: bytes, operators: OperatorSet) -> "RecoveryDocument":
        """The document in an envelope signed by exactly the operators in force but its offender.

        Raises DocumentRejected. Whether it follows the state that is there, `check_follows` tells.
        """
        with _as_document():
            signed = envelope.parse(raw, RECOVERY_TYPE)
            # Whoever the offender is: nothing is parsed that only a few signed.
            envelope.verify(signed, operators.keys, max(1, len(operators.keys) - 1))
            result = cls.loads(signed.payload)
            if result.offender not in (NOBODY, *operators.keys):
                raise _wrong("recovery.offender", "an operator in force", result.offender.hex())
            wanted = tuple(key for key in operators.keys if key != result.offender)
            envelope.verify(signed, wanted, len(wanted))
            others = sorted(set(signed.signatures) - {key.hex() for key in wanted})
        if others:
            expected = "signatures of the operators in force but the offender"
            raise _wrong("recovery.signers", expected, f"also {', '.join(others)}")
        return result

    def check_follows(self, instance: Instance, counter: int) -> None:
        """Check that it leads on from this generation, which has this counter.

        Raises DocumentRejected.
        """
        ours = (instance.deployment_id, instance.generation, counter + 1)
        if (self.deployment_id, self.old_generation, self.counter) != ours:
            raise DocumentRejected(
                "the recovery is of another deployment or generation",
                expected=f"{ours[0].hex()}, from {ours[1].hex()} to number {ours[2]}",
                got=f"{self.deployment_id.hex()}, from {self.old_generation.hex()} to number "
                f"{self.counter}",
                rule="recovery.follows",
                hint="make it anew, from the newest checkpoint",
            )


_RECOVERY_BYTES = ("deployment_id", "old_generation", "new_generation", "checkpoint", "offender")


@dataclass(frozen=True, slots=True)
class Endorsement:
    """An operator's word that this peer, with this identity X25519 key, is his server. 168 bytes.

    Of two by one operator the one with the greater `serial` holds.
    """

    operator: bytes
    peer: bytes
    dh_pub: bytes
    serial: int
    signature: bytes

    @staticmethod
    def body(peer: bytes, dh_pub: bytes, serial: int) -> bytes:
        """What the operator signs, under the domain ENDORSE."""
        return peer + dh_pub + serial.to_bytes(8, "big")

    @classmethod
    def make(
        cls, instance: Instance, key: Ed25519PrivateKey, peer: bytes, dh_pub: bytes, serial: int
    ) -> "Endorsement":
        """Sign for a server: its Ed25519 peer key and X25519 key, 32 bytes each."""
        signature = instance.sign(key, ENDORSE, 0, cls.body(peer, dh_pub, serial))
        return cls(key.public_key().public_bytes_raw(), peer, dh_pub, serial, signature)

    def verify(self, instance: Instance) -> None:
        """Check the signature; whether `operator` is in force is for the caller. Raises Refused."""
        body = self.body(self.peer, self.dh_pub, self.serial)
        instance.verify(self.operator, self.signature, ENDORSE, 0, body)

    def encode(self) -> bytes:
        """The operator's key, the body, the signature."""
        return self.operator + self.body(self.peer, self.dh_pub, self.serial) + self.signature

    @classmethod
    def read(cls, reader: Reader) -> "Endorsement":
        """The next 168 bytes. Raises WireFormatError."""
        operator, peer, dh_pub = reader.take(32), reader.take(32), reader.take(32)
        return cls(operator, peer, dh_pub, reader.u64(), reader.take(64))


@dataclass(frozen=True, slots=True)
class Dismissal:
    """An operator's word that this peer is no longer his server. 136 bytes.

    `serial` counts with those of the endorsements.
    """

    operator: bytes
    peer: bytes
    serial: int
    signature: bytes

    @staticmethod
    def body(peer: bytes, serial: int) -> bytes:
        """What the operator signs, under the domain DISMISS."""
        return peer + serial.to_bytes(8, "big")

    @classmethod
    def make(
        cls, instance: Instance, key: Ed25519PrivateKey, peer: bytes, serial: int
    ) -> "Dismissal":
        """Sign against a server, named by its Ed25519 peer key."""
        signature = instance.sign(key, DISMISS, 0, cls.body(peer, serial))
        return cls(key.public_key().public_bytes_raw(), peer, serial, signature)

    def verify(self, instance: Instance) -> None:
        """Check the signature; whether `operator` is in force is for the caller. Raises Refused."""
        body = self.body(self.peer, self.serial)
        instance.verify(self.operator, self.signature, DISMISS, 0, body)

    def encode(self) -> bytes:
        """The operator's key, the body, the signature."""
        return self.operator + self.body(self.peer, self.serial) + self.signature

    @classmethod
    def read(cls, reader: Reader) -> "Dismissal":
        """The next 136 bytes. Raises WireFormatError."""
        return cls(reader.take(32), reader.take(32), reader.u64(), reader.take(64))


@contextmanager
def _as_document() -> Iterator[None]:
    """Errors of envelopes and JSON as DocumentRejected, by the same rules."""
    try:
        yield
    except (AllowListRejected, PolicyError) as error:
        raise DocumentRejected(
            error.message.replace("the list", "the document"),
            expected=error.expected,
            got=error.got,
            rule=error.rule,
            hint="collect the missing signatures over exactly this document"
            if error.rule == "signers"
            else "fetch the document again, and check that it is the right one",
        ) from error


def _json(payload: bytes, what: str) -> object:
    if len(payload) > MAX_BYTES:
        raise _wrong(f"{what}.size", f"at most {MAX_BYTES} bytes", str(len(payload)))
    return load_json(payload, what)


def _dumps(document: dict[str, object]) -> bytes:
    return json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"


def _operator(value: object) -> Operator:
    operator = fields(value, {"name", "key"}, "operators", "an operator")
    try:
        return Operator(operator["name"], _bytes(operator["key"], "operators.key"))
    except ConfigRejected as error:
        raise _wrong(error.rule, error.expected, error.got) from error


def _bytes(value: object, where: str) -> bytes:
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        raise _wrong(where, "64 lower-case hex digits", shown(value))
    return bytes.fromhex(value)


def _check_number(value: object, low: int, high: int, where: str) -> None:
    # Not isinstance: a bool is an int.
    if type(value) is not int or not low <= value <= high:
        raise _wrong(where, f"a whole number, {low} to {high}", shown(value))


def _wrong(rule: str, expected: str, got: str) -> DocumentRejected:
    return DocumentRejected(f"the document is wrong: {rule}", expected=expected, got=got, rule=rule)
