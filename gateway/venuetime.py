"""The venue's calendar: venue days, clock time and local instants, daylight saving included.

A venue day begins at ``day_starts`` local time. A local time that the clock jumps over begins at the
jump; one that comes twice begins at the first (DESIGN.md 4.1, 4.4). All instants are microseconds.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from gateway.model import HOUR, MINUTE, SECOND

DAY = 24 * HOUR
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_MICROSECOND = timedelta(microseconds=1)
_FIRST = -62135596800 * SECOND + 2 * DAY
_LAST = 253402300799 * SECOND - 2 * DAY
"""What ``datetime`` can express, less two days for offsets."""
_MAX_CACHED_DAYS = 4096


def instant(moment: datetime) -> int:
    """The instant of an aware datetime."""
    return (moment - _EPOCH) // _MICROSECOND


def utc(at: int) -> datetime:
    """The instant as an aware datetime in UTC."""
    return _EPOCH + timedelta(microseconds=at)


class Calendar:
    """Conversions for one time zone and one start of the day (minutes after midnight)."""

    __slots__ = ("_day", "_day_from", "_day_to", "_from", "_offset", "_starts", "_to", "day_starts", "zone")

    def __init__(self, timezone: str = "UTC", day_starts: int = 0) -> None:
        self.zone = ZoneInfo(timezone)
        self.day_starts = day_starts * MINUTE
        # The offset is cached for the minute and the venue day for its length: a scan asks for both,
        # and zoneinfo costs more than everything else that judging does.
        self._from = self._to = self._offset = 0
        self._day_from = self._day_to = self._day = 0
        self._starts: dict[int, int] = {}

    def offset(self, at: int) -> int:
        """Local time minus UTC at an instant, microseconds."""
        if self._from <= at < self._to:
            return self._offset
        minute = at - at % MINUTE
        offset = _clamped(minute).astimezone(self.zone).utcoffset()
        assert offset is not None
        self._from, self._to, self._offset = minute, minute + MINUTE, offset // _MICROSECOND
        return self._offset

    def clock(self, at: int) -> int:
        """Microseconds since local midnight, as a clock on the wall shows."""
        return (at + self.offset(at)) % DAY

    def local_date(self, at: int) -> int:
        """The ordinal of the calendar date (not the venue day)."""
        return (at + self.offset(at)) // DAY + _EPOCH_ORDINAL

    def day(self, at: int) -> int:
        """The venue day in which the instant lies."""
        if self._day_from <= at < self._day_to:
            return self._day
        day = (at + self.offset(at) - self.day_starts) // DAY + _EPOCH_ORDINAL
        while at < self.day_start(day):
            day -= 1
        while at >= self.day_start(day + 1):
            day += 1
        self._day_from, self._day_to, self._day = self.day_start(day), self.day_start(day + 1), day
        return day

    def day_start(self, day: int) -> int:
        """The instant at which a venue day begins."""
        start = self._starts.get(day)
        if start is None:
            start = self.resolve(day, self.day_starts)
            if len(self._starts) >= _MAX_CACHED_DAYS:
                self._starts.clear()
            self._starts[day] = start
        return start

    def resolve(self, day: int, clock: int, fold: int = 0) -> int:
        """The instant of a local date and clock time; ``fold`` 1 is the second time where it comes twice."""
        naive = (day - _EPOCH_ORDINAL) * DAY + clock
        if not _FIRST < naive < _LAST:
            return naive
        local = datetime(1970, 1, 1) + timedelta(microseconds=naive)  # noqa: DTZ001 - local by intent
        first, second = (
            naive - (local.replace(tzinfo=self.zone, fold=f).utcoffset() or timedelta()) // _MICROSECOND
            for f in (0, 1)
        )
        if first > second:  # the clock jumps over it, somewhere in (second, first]
            return self._jump(second, first)
        return second if fold else first

    def _jump(self, before: int, after: int) -> int:
        """The instant in (before, after] at which the offset changes."""
        old = self.offset(before)
        while after - before > SECOND:
            middle = (before + after) // 2
            middle -= middle % SECOND
            if middle <= before:
                break
            if self.offset_exact(middle) == old:
                before = middle
            else:
                after = middle
        return after

    def offset_exact(self, at: int) -> int:
        """As ``offset``, without the minute's cache (a transition may fall inside a minute)."""
        offset = _clamped(at).astimezone(self.zone).utcoffset()
        assert offset is not None
        return offset // _MICROSECOND

    def transition(self, after: int, until: int) -> int | None:
        """The first change of the offset in (after, until], or None; for spans of a day or two."""
        if self.offset_exact(after) == self.offset_exact(until):
            return None
        return self._jump(after, until)

    def weekday(self, day: int) -> int:
        """Monday is 0."""
        return (day + 6) % 7

    def week(self, day: int) -> int:
        """The Monday of a day's week."""
        return day - (day + 6) % 7

    def month(self, day: int) -> int:
        """The first day of a day's month."""
        return date.fromordinal(day).replace(day=1).toordinal()

    def year(self, day: int) -> int:
        """The first day of a day's year."""
        return date.fromordinal(day).replace(month=1, day=1).toordinal()

    def starts(self, bound: int) -> int:
        """The instant at which a bound (see model) begins: a date with its venue day."""
        return bound >> 1 if bound & 1 else self.day_start(bound >> 1)

    def ends(self, bound: int) -> int:
        """The instant before which a bound holds: a date runs through its venue day."""
        return bound >> 1 if bound & 1 else self.day_start((bound >> 1) + 1)

    def grace_ends(self, bound: int, days: int) -> int:
        """As ``ends``, so many days later, at the same local time."""
        if not bound & 1:
            return self.day_start((bound >> 1) + 1 + days)
        at = bound >> 1
        return self.resolve(self.local_date(at) + days, self.clock(at))

    def local(self, at: int) -> datetime:
        """The instant as an aware datetime of the venue."""
        return _clamped(at).astimezone(self.zone)

    def rfc3339(self, at: int) -> str:
        """The instant in words for programs, with the venue's offset."""
        return self.local(at).isoformat()


def _clamped(at: int) -> datetime:
    return utc(min(max(at, _FIRST), _LAST))
