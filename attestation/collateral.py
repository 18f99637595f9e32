"""Collateral at hand when a quote comes: fetched early, kept on disk, never replaced by worse.

What is handed out is signed below the verifier's root, for the platform asked, valid now, and
nothing in it is older than what this cache held for that platform. A service that is broken or
hostile can withhold, no more.

Times: a platform is asked for again a day after its last fetch, and in any case three days before
the first part of its collateral expires; what fails is tried again after a minute, then two, four,
up to an hour, or when the service says. What is held serves until it expires.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol

from attestation.collateral_cache import FMSPC_BYTES, Bundle, Ca, DiskCache, Platform
from attestation.collateral_format import Collateral
from attestation.collateral_source import Source, SourceBusy
from attestation.errors import (
    AttestationError,
    CollateralRejected,
    CollateralUnavailable,
    FileError,
    FileUnreadable,
    PolicyError,
)
from attestation.moments import utc

REFRESH_EVERY = timedelta(days=1)
REFRESH_BEFORE = timedelta(days=3)
FIRST_RETRY = timedelta(minutes=1)
LAST_RETRY = timedelta(hours=1)
# The refresh loop looks at the clock as often as this: clocks are set, and machines sleep.
TICK_SECONDS = 60.0

_DAY = timedelta(days=1)
_BEGINNING = datetime.min.replace(tzinfo=UTC)
# The service has said that asking again is no use.
_FINAL = frozenset({"source.retired"})


class CollateralVerifier(Protocol):
    """What both `verify.Verifier` and `providers.mock.MockVerifier` can do without a quote."""

    def check_collateral(self, collateral: Collateral, now: datetime) -> None:
        """Check that it is genuine and valid at `now`. Raises CollateralRejected."""
        ...


@dataclass(frozen=True, slots=True)
class State:
    """What is held for a platform. Dates are aware, and None where there is nothing to date.

    `seconds_left` is 0 where nothing is held, and negative after expiry. `failure` is the rule by
    which the last attempt to refresh failed, None if it did not.
    """

    platform: Platform
    valid_until: datetime | None
    seconds_left: float
    fetched_at: datetime | None
    evaluation_number: int | None
    failure: str | None


@dataclass(frozen=True, slots=True)
class _Failure:
    """What is kept of an error: without the frames that its traceback holds."""

    rule: str
    text: str
    hint: str


@dataclass(slots=True)
class _Entry:
    """`bundle` is genuine, but may have expired: then it is kept for what must not be older."""

    bundle: Bundle | None = None
    fetched_at: datetime | None = None
    failure: _Failure | None = None
    failures: int = 0
    due: datetime = _BEGINNING
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def current(self, now: datetime) -> Collateral | None:
        held = self.bundle
        return held.collateral if held is not None and held.is_valid(now) else None


class CollateralService:
    """Collateral for the platforms of some models, for the tasks of one event loop.

    `fmspcs` (6 bytes each) bounds what a stranger's quote can make this fetch and keep: two
    platforms a model. Without `cache` nothing survives a restart. `clock` gives aware times.

    Raises PolicyError for `fmspcs` that are none (`fmspcs`) or of another size (`fmspc-size`).
    """

    def __init__(
        self,
        source: Source,
        verifier: CollateralVerifier,
        cache: DiskCache | None,
        fmspcs: Iterable[bytes],
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        log: logging.Logger | None = None,
    ) -> None:
        self._source = source
        self._verifier = verifier
        self._cache = cache
        self._fmspcs = frozenset(fmspcs)
        self._clock = clock
        self._sleep = sleep
        self._log = log or logging.getLogger(__name__)
        self._entries: dict[Platform, _Entry] = {}
        if not self._fmspcs:
            raise PolicyError(
                "no model of platform is allowed",
                expected="the FMSPC of each model, 6 bytes",
                got="none",
                rule="fmspcs",
                hint="see what `attestation verify` prints for a quote of each platform",
            )
        for fmspc in sorted(self._fmspcs):
            if len(fmspc) != FMSPC_BYTES:
                raise PolicyError(
                    "a model of platform has another size",
                    expected=f"{FMSPC_BYTES} bytes",
                    got=f"{len(fmspc)} bytes",
                    rule="fmspc-size",
                    hint="see what `attestation verify` prints for a quote of each platform",
                )
            for ca in Ca:
                self._restore(Platform(fmspc, ca))

    async def get(self, quote: bytes) -> Collateral:
        """Collateral for the platform of a quote; fetched if none is held that is valid now.

        While one task fetches, the others that want the same wait for its result. Raises
        QuoteFormatError, QuoteRejected, CollateralRejected (rule `fmspc` for a model that is not
        allowed), CollateralUnavailable, CollateralFormatError.
        """
        platform, entry = self._entry(quote)
        if held := entry.current(self._now()):
            return held
        async with entry.lock:
            now = self._now()
            if held := entry.current(now):
                return held
            if entry.failure is not None and now < entry.due:
                raise self._not_fetched(platform, entry)
            return (await self._refresh(platform, entry)).collateral

    def current(self, quote: bytes) -> Collateral:
        """What is held for the platform of a quote, without waiting; `run` will fetch it if not.

        Raises as `get`, and CollateralUnavailable (`collateral.not-fetched`).
        """
        platform, entry = self._entry(quote)
        if held := entry.current(self._now()):
            return held
        raise self._not_fetched(platform, entry)

    async def run(self) -> None:
        """Refresh what is held or was asked for, until cancelled."""
        while True:
            for platform, entry in list(self._entries.items()):
                if entry.due <= self._now():
                    await self._refresh_quietly(platform, entry)
            await self._sleep(TICK_SECONDS)

    def states(self) -> tuple[State, ...]:
        """What is held, or was asked for."""
        now = self._now()
        return tuple(
            State(
                platform,
                None if entry.bundle is None else entry.bundle.valid_until,
                0.0 if entry.bundle is None else _seconds_left(entry.bundle, now),
                entry.fetched_at,
                None if entry.bundle is None else entry.bundle.evaluation_number,
                None if entry.failure is None else entry.failure.rule,
            )
            for platform, entry in self._entries.items()
        )

    def _now(self) -> datetime:
        return utc(self._clock())

    def _entry(self, quote: bytes) -> tuple[Platform, _Entry]:
        platform = Platform.of_quote(quote)
        if platform.fmspc not in self._fmspcs:
            raise CollateralRejected(
                "quote is of a model of platform that is not allowed",
                expected="one of " + ", ".join(sorted(f.hex() for f in self._fmspcs)),
                got=platform.fmspc.hex(),
                rule="fmspc",
                hint="allow the model if it is one of yours",
            )
        return platform, self._entries.setdefault(platform, _Entry())

    def _restore(self, platform: Platform) -> None:
        """What the disk holds for a platform, if it is genuine."""
        if self._cache is None:
            return
        try:
            bundle = self._cache.load(platform)
            if bundle is None:
                return
            # Expired collateral still says what is too old: genuine at its own time is enough.
            self._verifier.check_collateral(bundle.collateral, bundle.valid_from)
        except FileUnreadable as error:
            self._log.warning("collateral for %s can't be read: %s", platform, error)
        except AttestationError as error:
            self._log.warning("collateral for %s is damaged: %s", platform, error)
            self._set_aside(platform, self._cache)
        else:
            self._entries[platform] = _Entry(bundle)

    def _set_aside(self, platform: Platform, cache: DiskCache) -> None:
        try:
            self._log.warning("set aside as %s", cache.set_aside(platform))
        except FileError as error:
            self._log.warning("and can't be set aside: %s", error)

    async def _refresh_quietly(self, platform: Platform, entry: _Entry) -> None:
        async with entry.lock:
            if entry.due <= self._now():
                try:
                    await self._refresh(platform, entry)
                except AttestationError:
                    return  # logged, and to be tried again

    async def _refresh(self, platform: Platform, entry: _Entry) -> Bundle:
        """Fetch, check and keep. Raises what failed; then what was held is still there."""
        try:
            collateral = await self._source.fetch(platform)
            now = self._now()
            bundle = Bundle(platform, collateral)
            self._verifier.check_collateral(collateral, now)
            if entry.bundle is not None:
                bundle.check_follows(entry.bundle)
        except AttestationError as error:
            self._failed(platform, entry, error)
            raise
        entry.bundle, entry.fetched_at = bundle, now
        entry.failure, entry.failures = None, 0
        # A service may have nothing better than what expires within three days.
        next_time = min(now + REFRESH_EVERY, bundle.valid_until - REFRESH_BEFORE)
        entry.due = max(now + LAST_RETRY, next_time)
        self._log.info("collateral for %s: refreshed, %s", platform, _left(bundle, now))
        self._announce(platform, bundle, now)
        await self._store(platform, bundle)
        return bundle

    def _failed(self, platform: Platform, entry: _Entry, error: AttestationError) -> None:
        now = self._now()
        entry.failure = _Failure(error.rule, str(error), error.hint)
        wait = min(FIRST_RETRY * 2 ** min(entry.failures, 16), LAST_RETRY)
        if isinstance(error, SourceBusy):
            wait = max(wait, timedelta(seconds=error.retry_after))
        if error.rule in _FINAL:
            wait = REFRESH_EVERY
        entry.failures += 1
        entry.due = now + wait
        held = "none held" if entry.bundle is None else _left(entry.bundle, now)
        self._log.warning(
            "collateral for %s: refresh failed by rule %s, %s: %s",
            platform,
            error.rule,
            held,
            error,
        )
        if entry.bundle is not None:
            self._announce(platform, entry.bundle, now)

    def _announce(self, platform: Platform, bundle: Bundle, now: datetime) -> None:
        if now >= bundle.valid_until:
            self._log.error("collateral for %s expired at %s", platform, bundle.valid_until)
        elif bundle.valid_until - now <= REFRESH_BEFORE:
            days = (bundle.valid_until - now) / _DAY
            self._log.warning("collateral for %s expires in %.1f days", platform, days)

    async def _store(self, platform: Platform, bundle: Bundle) -> None:
        if self._cache is None:
            return
        try:
            await asyncio.to_thread(self._cache.store, bundle)
        except FileError as error:
            self._log.warning("collateral for %s is not on disk: %s", platform, error)

    def _not_fetched(self, platform: Platform, entry: _Entry) -> CollateralUnavailable:
        failure = entry.failure
        return CollateralUnavailable(
            f"no collateral for {platform} is at hand that is valid now",
            got="none yet" if failure is None else f"{failure.text} (rule {failure.rule})",
            rule="collateral.not-fetched",
            hint="try again later" if failure is None else failure.hint,
        )


def exposition(states: Iterable[State], **labels: str) -> str:
    """The states as gauges in the text format of Prometheus, each with these labels."""
    lines = []
    held = list(states)
    for name, text, values in (
        (
            "attestation_collateral_seconds_left",
            "Until the collateral of a platform expires; negative afterwards, 0 if there is none.",
            [(state.platform, f"{state.seconds_left:.0f}") for state in held],
        ),
        (
            "attestation_collateral_evaluation_number",
            "tcbEvaluationDataNumber of the collateral that is held.",
            [
                (state.platform, f"{state.evaluation_number}")
                for state in held
                if state.evaluation_number is not None
            ],
        ),
    ):
        lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge"]
        for platform, value in values:
            named = {**labels, "fmspc": platform.fmspc.hex(), "ca": str(platform.ca)}
            coded = ",".join(f'{label}="{_escaped(content)}"' for label, content in named.items())
            lines.append(f"{name}{{{coded}}} {value}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _seconds_left(bundle: Bundle, now: datetime) -> float:
    return (bundle.valid_until - now).total_seconds()


def _left(bundle: Bundle, now: datetime) -> str:
    return f"{(bundle.valid_until - now) / _DAY:.1f} days left"
