"""`release make`: from the builder's outputs to a signed folder, whole or not at all."""

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from release import bundle, exports, notes, provenance, signing, sums, verify_files
from release.build import wheels
from release.build.console import Step, Steps
from release.build.deb import Store
from release.build.lock import Lock
from release.build.process import run
from release.build.settings import COMPRESS_LEVEL, DISTRIBUTIONS, Paths, Role
from release.collect import Collected, collect, locked, tools
from release.errors import NotReleasable
from release.keys import Key
from release.manifest import NAME, SIGNATURE, SUMS, VERSION, File, Manifest, Previous
from release.verify_files import Opened

RETIREMENT_DAYS = 30


@dataclass(frozen=True, slots=True)
class Request:
    """What to release.

    `out` is the builder's folder, `to` gets a folder named after the version. `signer` is the
    public half of `key`, as it will be known; `trusted` are keys that the previous release may be
    signed by.
    """

    version: str
    out: Path
    to: Path
    key: Ed25519PrivateKey = field(repr=False)
    signer: Key
    trusted: tuple[Key, ...] = ()
    roles: tuple[Role, ...] = tuple(Role)
    compress_level: int = COMPRESS_LEVEL
    previous: Path | None = None
    retirement_days: int = RETIREMENT_DAYS
    bundle: Path | None = None


def make(paths: Paths, request: Request, steps: Steps) -> Opened:
    """Make, sign and check a release of the builds in `request.out`.

    Raises NotReleasable by the rule that a build or the tree breaks, any other ReleaseError and
    AttestationError of what it reads. Then nothing is left behind.
    """
    with steps.step("checkout") as step:
        commit = _check_tree(paths, request, step.log)
        previous = _previous(request)
        step.note(f"version {request.version}, commit {commit}")
    built = []
    for role in request.roles:
        with steps.step(f"{role}: check the build") as step:
            built.append(collect(request.out / role, role, request.compress_level))
    with steps.step("locks"):
        manifest = _manifest(paths, request, commit, built, previous)
    with _new(request.to, request.version) as folder:
        with steps.step("write and sign") as step:
            _write(folder, manifest, request, built, previous)
            verify_files.opened(folder, (request.signer,))
            step.note(f"signed by {request.signer.hex}")
        if request.bundle is not None:
            with steps.step("bundle") as step:
                _write_bundle(paths, manifest, request.bundle, step)
    return verify_files.opened(request.to / request.version, (request.signer,))


def _check_tree(paths: Paths, request: Request, log: Path) -> str:
    """The commit. Raises NotReleasable, ToolFailed."""
    if not re.fullmatch(VERSION, request.version):
        _refuse("version", VERSION, ascii(request.version)[:80])
    if paths.version() != request.version:
        _refuse("version", f"{request.version}, the version in zipnet/__init__.py", paths.version())
    target = request.to / request.version
    if target.exists() or target.is_symlink():
        _refuse("exists", "a version that was never released", str(target))
    git = ("git", "-C", paths.root)
    changed = run([*git, "status", "--porcelain", "--untracked-files=all"], log=log)
    if changed:
        _refuse("clean", "a tree whose every file is committed", "; ".join(changed[:5]))
    (commit,) = run([*git, "rev-parse", "--verify", "HEAD^{commit}"], log=log)
    return commit


def _previous(request: Request) -> Opened | None:
    if request.previous is None:
        return None
    found = verify_files.opened(request.previous, (request.signer, *request.trusted))
    if ordered(found.manifest.version) >= ordered(request.version):
        _refuse("previous", f"a version before {request.version}", found.manifest.version)
    return found


def ordered(version: str) -> tuple[int, ...]:
    """A key that sorts versions; a candidate comes before its release."""
    final, _, candidate = version.partition("rc")
    return (*map(int, final.split(".")), int(candidate) if candidate else 1 << 32)


def _manifest(
    paths: Paths,
    request: Request,
    commit: str,
    built: Sequence[Collected],
    previous: Opened | None,
) -> Manifest:
    locks = locked(paths, built)
    first = built[0].packages
    for one in built:
        if tools(one.packages) != tools(first):
            _refuse("tools", f"the tools of {first.role}", f"others for {one.packages.role}")
    return Manifest(
        version=request.version,
        commit=commit,
        source_date_epoch=first.source_date_epoch,
        distribution=(first.distribution, first.release),
        locks=locks,
        tools=tools(first),
        compress_level=request.compress_level,
        roles=tuple(sorted((one.entry for one in built), key=lambda entry: entry.role)),
        previous=None
        if previous is None
        else Previous(
            previous.manifest.version, hashlib.sha256(previous.signed.payload).hexdigest()
        ),
        retirement_days=request.retirement_days,
    )


def _write(
    folder: Path,
    manifest: Manifest,
    request: Request,
    built: Sequence[Collected],
    previous: Opened | None,
) -> None:
    """Fill the folder: files, sums over them, the manifest over all, its signature last."""
    for one in built:
        (folder / one.entry.role).mkdir()
        for name, data in one.files:
            (folder / one.entry.role / name).write_bytes(data)
    exports.write(manifest, folder)
    packages = verify_files.load_packages(folder, manifest)
    before: Mapping[str, object] = {}
    if previous is not None:
        before = verify_files.load_packages(previous.folder, previous.manifest)
    markdown, page = notes.render(
        manifest,
        None if previous is None else previous.manifest,
        packages,
        before,
        request.signer,
    )
    (folder / "notes.md").write_text(markdown, "utf-8")
    (folder / "notes.html").write_text(page, "utf-8")
    (folder / provenance.NAME).write_bytes(provenance.sign(manifest, request.key))
    digests = {file.path: file.sha256 for file in _files(folder)}
    (folder / SUMS).write_bytes(sums.dumps(digests))
    raw = replace(manifest, files=_files(folder)).dumps()
    (folder / NAME).write_bytes(raw)
    (folder / SIGNATURE).write_bytes(signing.sign_manifest(raw, request.key))
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _files(folder: Path) -> tuple[File, ...]:
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            name = path.relative_to(folder).as_posix()
            found.append(File(name, len(data), hashlib.sha256(data).hexdigest()))
    return tuple(sorted(found))


@contextmanager
def _new(to: Path, version: str) -> Iterator[Path]:
    """Yield a fresh folder that becomes `to/VERSION` if the body ends well."""
    to.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=to, prefix=f".{version}-"))
    try:
        folder = scratch / version
        folder.mkdir(mode=0o755)
        yield folder
        folder.rename(to / version)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_bundle(paths: Paths, manifest: Manifest, folder: Path, step: Step) -> None:
    distribution = DISTRIBUTIONS[manifest.distribution[0]]
    files = (manifest.locks.images, manifest.locks.tools)
    locks = [Lock.load(paths.locks / one.file) for one in files]
    runtime = wheels.install(paths.python_lock, distribution, paths.cache / "runtimes", step.log)
    size = bundle.write(folder, locks, Store(paths.cache / "debs"), runtime.files())
    step.note(f"{size / 1e6:.0f} MB in {folder}")


_HINTS = {
    "version": "set the version in zipnet/__init__.py, commit, and build again",
    "exists": "a release is never replaced: raise the version",
    "clean": "commit it, or remove what should not be in the tree",
    "previous": "name the release that this one follows",
}


def _refuse(rule: str, expected: str, got: str) -> NoReturn:
    raise NotReleasable(
        f"this can't be released: {rule}",
        expected=expected,
        got=got,
        rule=f"make.{rule}",
        hint=_HINTS.get(rule, "build all roles again from one tree"),
    )
