"""`release verify`: from a tag to "this live node runs exactly that", one step after the other.

    signature      a key that is not from the release signed the manifest
    schema         the manifest is one that this version reads
    files          every published file is the one in the manifest, and there is no other
    sums           sha256sums.txt says the same
    measurements   computed again from the firmwares and images
    rebuild        built again from the commit and its locks, byte for byte
    quote          a quote or a running node is of this release

The first four build on each other: one that is refused is the last. The others stand alone.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from attestation.errors import Explained
from attestation.files import read_file
from attestation.measure.record import BootProof, measure_image
from release import keys, rebuild, verify_files
from release.errors import ReleaseRejected
from release.manifest import Manifest, Output, RoleEntry
from release.verify_quote import Anchor, check_node, check_quote

# What can be computed: RTMR0 is the host's shape.
REGISTERS = ("mr_td", "rtmr1", "rtmr2")
_Found = TypeVar("_Found")


class State(StrEnum):
    """How a step ended. `failed` is for what this machine or its network kept from being done."""

    GOOD = "good"
    ABSENT = "absent"
    REFUSED = "REFUSED"
    FAILED = "failed"
    NOT_ASKED = "not asked"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One line of a verification; `asked` steps must be good."""

    step: str
    state: State
    detail: str
    asked: bool = True
    rule: str = ""
    hint: str = ""

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        names = ("step", "state", "detail", "asked", "rule", "hint")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class Request:
    """What to verify, against what. `key` is as `keys.trusted` takes it; `roles` empty means all.

    `artifacts` holds images, as ROLE/NAME or NAME; `checkout` is a repository with the commit.
    """

    folder: Path
    key: str
    now: datetime
    roles: tuple[str, ...] = ()
    artifacts: Path | None = None
    checkout: Path | None = None
    bundle: Path | None = None
    quote: Path | None = None
    node: str | None = None
    anchor: Anchor = field(default_factory=Anchor)


class _AbsentError(Exception):
    """What a step would look at is not here."""


def verify(request: Request, said: Callable[[str], None]) -> Iterator[Outcome]:
    """The outcomes, each as soon as it is known; `said` takes lines of progress.

    What is wrong with the release is an outcome. Raises nothing but click.UsageError, where a mock
    root is given and there is no mock.
    """
    outcome, read = _tried("signature", lambda: _signature(request))
    yield outcome
    if read is None:
        return
    trusted, payload = read
    outcome, manifest = _tried("schema", lambda: _schema(payload, request.roles))
    yield outcome
    if manifest is None:
        return
    yield from _of_manifest(request, manifest, trusted, said)


def _signature(request: Request) -> tuple[str, tuple[tuple[keys.Key, ...], bytes]]:
    trusted = keys.trusted(request.key, request.now)
    signed = verify_files.check_signature(request.folder, trusted)
    return _signers(signed.signers), (trusted, signed.payload)


def _schema(payload: bytes, roles: Sequence[str]) -> tuple[str, Manifest]:
    manifest = Manifest.loads(payload)
    _restricted(manifest, roles)
    return f"release {manifest.version} of commit {manifest.commit}", manifest


def _of_manifest(
    request: Request,
    whole: Manifest,
    trusted: Sequence[keys.Key],
    said: Callable[[str], None],
) -> Iterator[Outcome]:
    for step, work in (
        ("files", lambda: verify_files.check_files(request.folder, whole, trusted)),
        ("sums", lambda: verify_files.check_sums(request.folder, whole)),
    ):
        outcome = _outcome(step, work)
        yield outcome
        if outcome.state is not State.GOOD:
            return
    manifest = _restricted(whole, request.roles)
    yield _outcome(
        "measurements",
        lambda: check_measurements(manifest, request.artifacts),
        asked=request.artifacts is not None,
    )
    checkout = request.checkout
    if checkout is None:
        yield Outcome("rebuild", State.NOT_ASKED, "--rebuild builds it again", asked=False)
    else:
        yield _outcome("rebuild", lambda: _check_rebuild(request, manifest, checkout, said))
    if request.quote is not None:
        path = request.quote
        yield _outcome("quote", lambda: check_quote(path, manifest, request.anchor, request.now))
    elif request.node is not None:
        url = request.node
        yield _outcome("quote", lambda: check_node(url, manifest, request.anchor, request.now))
    else:
        yield Outcome("quote", State.NOT_ASKED, "--node or --quote checks one", asked=False)


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """0 if every step that was asked for is good, 2 if one was refused, 3 otherwise."""
    asked = [one.state for one in outcomes if one.asked]
    if State.REFUSED in asked:
        return 2
    return 0 if asked and all(state is State.GOOD for state in asked) else 3


def check_measurements(manifest: Manifest, artifacts: Path | None) -> str:
    """Compute the registers of every image in `artifacts` again. Raises ReleaseRejected."""
    if artifacts is None:
        raise _AbsentError("no images here: --artifacts DIR says where they are")
    missing = []
    for entry in manifest.roles:
        places = [artifacts / entry.role, artifacts]
        folder = next((p for p in places if (p / entry.image.name).is_file()), None)
        if folder is None or not (folder / entry.firmware.name).is_file():
            missing.append(f"{entry.image.name} with {entry.firmware.name}")
            continue
        _check_image(entry, folder)
    if missing:
        raise _AbsentError(f"not in {artifacts}: {', '.join(missing)}")
    return f"{', '.join(entry.role for entry in manifest.roles)}: computed again, the same"


def _check_image(entry: RoleEntry, folder: Path) -> None:
    data = {}
    # A folder of one role may hold the rest of its build, which people run and read, too.
    rest = entry.outputs if folder.name == entry.role else ()
    for output in sorted({entry.image, entry.firmware, *rest}):
        if (folder / output.name).exists():
            data[output.name] = _artifact(entry, output, folder / output.name)
    image, firmware = data[entry.image.name], data[entry.firmware.name]
    computed = measure_image(entry.role, firmware, image, is_dev=False, boot_proof=BootProof.PASSED)
    known = {(one.host_profile, one.boot_path): one for one in computed.entries}
    for one in entry.measurements.entries:
        other = known[one.host_profile, one.boot_path]
        for name in REGISTERS:
            if getattr(one, name) != getattr(other, name):
                raise ReleaseRejected(
                    f"{entry.role}: {name} for {one.host_profile}, {one.boot_path} is not that of"
                    " its firmware and image",
                    expected=getattr(other, name).hex(),
                    got=getattr(one, name).hex(),
                    rule="verify.measurements",
                    hint="do not use this release; tell its publisher",
                )


def _artifact(entry: RoleEntry, output: Output, path: Path) -> bytes:
    raw = read_file(path, output.size)
    got = hashlib.sha256(raw).hexdigest()
    if got != output.sha256:
        raise ReleaseRejected(
            f"{entry.role}: {path} is not the file of the release",
            expected=output.sha256,
            got=got,
            rule="verify.artifact",
            hint="fetch it again",
        )
    return raw


def _check_rebuild(
    request: Request, manifest: Manifest, checkout: Path, said: Callable[[str], None]
) -> str:
    with tempfile.TemporaryDirectory(prefix="zipnet-rebuilt-") as scratch:
        built = rebuild.rebuild(manifest, checkout, Path(scratch) / "out", request.bundle, said)
        rebuild.require_identical(
            rebuild.compare(
                manifest, built, request.artifacts, published=request.folder, sources=checkout
            )
        )
    names = ", ".join(entry.role for entry in manifest.roles)
    return f"{names}: identical, built from {manifest.commit[:12]} and its locks"


def _restricted(manifest: Manifest, roles: Sequence[str]) -> Manifest:
    wanted = {manifest.role(role).role for role in roles}
    kept = tuple(entry for entry in manifest.roles if not wanted or entry.role in wanted)
    return replace(manifest, roles=kept)


def _signers(signers: Sequence[keys.Key]) -> str:
    told = ", ".join(f"{key.name} ({key.hex})" for key in signers)
    # A demonstration key beside a real one takes nothing away from it.
    if all(key.demo for key in signers):
        return f"{told}; demo key: trust nothing signed by it"
    return told


def _tried(step: str, work: Callable[[], tuple[str, _Found]]) -> tuple[Outcome, _Found | None]:
    """Run a step that others build on: its outcome, and what they need, None if it is not good."""
    results: list[_Found] = []

    def told() -> str:
        text, found = work()
        results.append(found)
        return text

    outcome = _outcome(step, told)
    return outcome, results[0] if results else None


def _outcome(step: str, work: Callable[[], str], *, asked: bool = True) -> Outcome:
    try:
        return Outcome(step, State.GOOD, work(), asked)
    except _AbsentError as error:
        return Outcome(step, State.ABSENT, str(error), asked)
    except Explained as error:
        state = State.REFUSED if error.exit_code == 2 else State.FAILED
        return Outcome(step, state, str(error), asked, error.rule, error.hint)
    except OSError as error:
        return Outcome(step, State.FAILED, str(error), asked, "verify.system")
