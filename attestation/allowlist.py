"""Lists of accepted measurements: numbered, with windows and a TCB policy, signed by operators.

The payload is canonical JSON: sorted keys, two spaces of indent, ASCII, a newline at the end, at
most 1 MiB; any other text of the same value is refused.

    {"schema": "zipnet.allow-list/1",
     "number": 1 or more, one more with each list,
     "deployment_id": 64 lower-case hex digits,
     "issued_at": Unix seconds,
     "entries": [{"measurement": as in `attestation.measure.record`,
                  "not_before": Unix seconds,
                  "retire_after": Unix seconds, or null for no end}, ...],
     "tcb": {"accepted": [TCB states, sorted],
             "grace": {TCB state: Unix seconds until which it is accepted, ...},
             "min_evaluation_number": 0 or more}}

An entry holds from `not_before` until just before `retire_after`. The payload travels in a DSSE
envelope (`attestation.envelope`) of type PAYLOAD_TYPE.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation import envelope
from attestation.envelope import Signature, fields, load_json, shown
from attestation.errors import AllowListRejected, MeasurementFormatError, PolicyError
from attestation.measure.record import Measurement
from attestation.moments import LAST_SECOND
from attestation.verify import TcbStatus

SCHEMA = "zipnet.allow-list/1"
PAYLOAD_TYPE = "application/vnd.zipnet.allow-list+json"
MAX_BYTES = 1 << 20

_MAX_NUMBER = (1 << 53) - 1  # what every JSON reader takes exactly
_DEPLOYMENT = re.compile(r"[0-9a-f]{64}")


class Window(StrEnum):
    """Where a moment lies, seen from an entry."""

    EARLY = "early"
    OPEN = "open"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class Entry:
    """A measurement that is accepted from `not_before` until `retire_after` (Unix seconds).

    Raises AllowListRejected for a window that is never open.
    """

    measurement: Measurement
    not_before: int = 0
    retire_after: int | None = None

    def __post_init__(self) -> None:
        _integer(self.not_before, 0, LAST_SECOND, "not_before")
        if self.retire_after is None:
            return
        _integer(self.retire_after, 0, LAST_SECOND, "retire_after")
        if self.retire_after <= self.not_before:
            raise AllowListRejected(
                "an entry retires before it begins",
                expected=f"retire_after later than {self.not_before}",
                got=str(self.retire_after),
                rule="list.window",
            )

    def window(self, now: int) -> Window:
        """Whether the entry holds at `now` (Unix seconds)."""
        if now < self.not_before:
            return Window.EARLY
        if self.retire_after is not None and now >= self.retire_after:
            return Window.RETIRED
        return Window.OPEN


@dataclass(frozen=True, slots=True)
class TcbPolicy:
    """Which TCB states pass, which only until a date, and how new their data must be.

    `grace` pairs states with Unix seconds. Raises PolicyError for a policy that accepts nothing, or
    what was revoked.
    """

    accepted: frozenset[TcbStatus] = frozenset({TcbStatus("UpToDate")})
    grace: tuple[tuple[TcbStatus, int], ...] = ()
    min_evaluation_number: int = 0

    def __post_init__(self) -> None:
        graced = [status for status, _ in self.grace]
        if not self.accepted:
            raise _wrong_tcb("one state or more that is accepted without a date", "none", "empty")
        if TcbStatus("Revoked") in {*self.accepted, *graced}:
            raise _wrong_tcb("states of platforms that can be trusted", "Revoked", "revoked")
        if len({*self.accepted, *graced}) != len(self.accepted) + len(graced):
            raise _wrong_tcb("each state once", ", ".join(sorted(graced)), "state-twice")

    def end(self, status: TcbStatus, now: int) -> int | None:
        """Until when `status` passes, in Unix seconds; LAST_SECOND for ever, None for refused."""
        if status in self.accepted:
            return LAST_SECOND
        until = dict(self.grace).get(status)
        return until if until is not None and now < until else None


@dataclass(frozen=True, slots=True)
class AllowList:
    """One list; whoever holds it has checked its signatures, or made it. Fields as in the format.

    Raises AllowListRejected for values that break the schema.
    """

    number: int
    deployment_id: bytes
    issued_at: int
    entries: tuple[Entry, ...]
    tcb: TcbPolicy

    def __post_init__(self) -> None:
        _integer(self.number, 1, _MAX_NUMBER, "number")
        _integer(self.issued_at, 0, LAST_SECOND, "issued_at")
        _integer(self.tcb.min_evaluation_number, 0, _MAX_NUMBER, "min_evaluation_number")
        for _, until in self.tcb.grace:
            _integer(until, 0, LAST_SECOND, "grace")
        if len(self.deployment_id) != 32:
            raise _malformed("deployment_id", "32 bytes", str(len(self.deployment_id)), "value")
        if not self.entries:
            raise _malformed("entries", "one or more", "none", "empty")
        if len({entry.measurement for entry in self.entries}) != len(self.entries):
            raise _malformed("entries", "each measurement once", "a repetition", "duplicate")

    @property
    def digest(self) -> bytes:
        """SHA-256 of the payload."""
        return hashlib.sha256(self.dumps()).digest()

    def dumps(self) -> bytes:
        """The payload, canonical."""
        document = {
            "schema": SCHEMA,
            "number": self.number,
            "deployment_id": self.deployment_id.hex(),
            "issued_at": self.issued_at,
            "entries": [
                {
                    "measurement": entry.measurement.to_json(),
                    "not_before": entry.not_before,
                    "retire_after": entry.retire_after,
                }
                for entry in self.entries
            ],
            "tcb": {
                "accepted": sorted(self.tcb.accepted),
                "grace": dict(self.tcb.grace),
                "min_evaluation_number": self.tcb.min_evaluation_number,
            },
        }
        return json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"

    @classmethod
    def loads(cls, payload: bytes) -> "AllowList":
        """The list in a payload, unsigned. Raises AllowListRejected."""
        if len(payload) > MAX_BYTES:
            raise _malformed("payload", f"at most {MAX_BYTES} bytes", str(len(payload)), "size")
        document = fields(load_json(payload, "list"), _FIELDS, "list")
        if document["schema"] != SCHEMA:
            raise _malformed("schema", SCHEMA, shown(document["schema"]), "schema")
        deployment_id = document["deployment_id"]
        if not isinstance(deployment_id, str) or not _DEPLOYMENT.fullmatch(deployment_id):
            raise _malformed(
                "deployment_id", "64 lower-case hex digits", shown(deployment_id), "value"
            )
        result = cls(
            number=document["number"],
            deployment_id=bytes.fromhex(deployment_id),
            issued_at=document["issued_at"],
            entries=tuple(map(_entry, _list(document["entries"], "entries"))),
            tcb=_tcb(document["tcb"]),
        )
        if result.dumps() != payload:
            raise _malformed("payload", "canonical JSON", "another text of the same", "canonical")
        return result

    @classmethod
    def verify(
        cls,
        raw: bytes,
        keys: Sequence[bytes],
        k: int,
        previous_number: int | None,
        *,
        deployment_id: bytes,
        previous_digest: bytes | None = None,
    ) -> "AllowList":
        """The list in an envelope that `k` of the operators with these public keys signed.

        Its number must be above that of the list in force (None: there is none yet), or be the
        same list, which only `previous_digest` shows. Raises AllowListRejected, and PolicyError
        for keys or a `k` that make no sense.
        """
        signed = envelope.parse(raw, PAYLOAD_TYPE)
        envelope.verify(signed, keys, k)
        result = cls.loads(signed.payload)
        if result.deployment_id != deployment_id:
            raise AllowListRejected(
                "the list is for another deployment",
                expected=deployment_id.hex(),
                got=result.deployment_id.hex(),
                rule="deployment",
                hint="fetch the list of this deployment",
            )
        if previous_number is None or result.number > previous_number:
            return result
        if result.number < previous_number:
            raise AllowListRejected(
                "the list is older than the one in force",
                expected=f"a number above {previous_number}",
                got=str(result.number),
                rule="number",
                hint="fetch the newest list; to go back to old entries, sign them as a new list",
            )
        if result.digest != previous_digest:
            raise AllowListRejected(
                "the list has the number of the one in force, but is another",
                expected="no known digest" if previous_digest is None else previous_digest.hex(),
                got=result.digest.hex(),
                rule="number-reused",
                hint="sign the change under the next number",
            )
        return result


_FIELDS = {"schema", "number", "deployment_id", "issued_at", "entries", "tcb"}


def sign(payload: bytes, private_key: Ed25519PrivateKey) -> Signature:
    """One operator's signature. Raises AllowListRejected: nobody should sign what nobody takes."""
    AllowList.loads(payload)
    return envelope.sign(payload, PAYLOAD_TYPE, private_key)


def assemble(payload: bytes, signatures: Iterable[Signature]) -> bytes:
    """The envelope with the operators' signatures, which are not checked here.

    Raises AllowListRejected.
    """
    AllowList.loads(payload)
    return envelope.assemble(payload, PAYLOAD_TYPE, signatures)


def tcb_status(name: object) -> TcbStatus:
    """The state of this name. Raises PolicyError."""
    if not isinstance(name, str) or name not in set(TcbStatus):
        raise _wrong_tcb(", ".join(TcbStatus), shown(name), "unknown-state")
    return TcbStatus(name)


def _entry(value: object) -> Entry:
    entry = fields(value, {"measurement", "not_before", "retire_after"}, "list", "an entry")
    try:
        measurement = Measurement.from_json(entry["measurement"])
    except MeasurementFormatError as error:
        raise _malformed(error.message, error.expected, error.got, "measurement") from error
    return Entry(measurement, entry["not_before"], entry["retire_after"])


def _tcb(value: object) -> TcbPolicy:
    tcb = fields(value, {"accepted", "grace", "min_evaluation_number"}, "list", "tcb")
    if not isinstance(tcb["grace"], dict):
        raise _malformed("grace", "an object", shown(tcb["grace"]), "value")
    try:
        return TcbPolicy(
            accepted=frozenset(map(tcb_status, _list(tcb["accepted"], "accepted"))),
            grace=tuple((tcb_status(name), tcb["grace"][name]) for name in sorted(tcb["grace"])),
            min_evaluation_number=tcb["min_evaluation_number"],
        )
    except PolicyError as error:
        raise _malformed("tcb", error.expected, error.got, error.rule) from error


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise _malformed(where, "a list", shown(value), "value")
    return value


def _integer(value: object, low: int, high: int, where: str) -> None:
    # Not isinstance: a bool is an int.
    if type(value) is not int or not low <= value <= high:
        raise _malformed(where, f"a whole number, {low} to {high}", shown(value), "value")


def _malformed(where: str, expected: str, got: str, rule: str) -> AllowListRejected:
    return AllowListRejected(
        f"the list is malformed: {where}",
        expected=expected,
        got=got,
        rule=f"list.{rule}",
        hint="write lists with AllowList(...).dumps()",
    )


def _wrong_tcb(expected: str, got: str, rule: str) -> PolicyError:
    return PolicyError("the TCB policy is wrong", expected=expected, got=got, rule=f"tcb-{rule}")
