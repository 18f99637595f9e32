"""Moments: aware datetimes for people and interfaces, whole Unix seconds in formats."""

from datetime import UTC, datetime, timedelta

from attestation.errors import PolicyError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The last second that a datetime can hold.
LAST_SECOND = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(seconds=1)


def utc(when: datetime) -> datetime:
    """The same moment in UTC. Raises PolicyError for a naive one, which has no meaning here."""
    if when.utcoffset() is None:
        raise PolicyError(
            "a moment without a time zone",
            expected="an aware datetime",
            got=str(when),
            rule="naive-time",
            hint="datetime(2027, 1, 1, tzinfo=UTC)",
        )
    return when.astimezone(UTC)


def unix(when: datetime) -> int:
    """Whole Unix seconds of an aware moment, rounded down."""
    return (when - _EPOCH) // timedelta(seconds=1)


def moment(seconds: int) -> datetime:
    """The moment of Unix seconds; the last one that a datetime can hold, if it is later."""
    return _EPOCH + timedelta(seconds=min(seconds, LAST_SECOND))
