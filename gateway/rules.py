"""Admission rules compiled for judging: what a product's rules ask at one access point, and when.

Compiling answers once what does not change from scan to scan: which rules of a product concern a
point (areas within areas), which events a rule waits for, bounds as instants. What is left to ask at a
scan are the steps e to h of DESIGN.md 4.2. ``RuleAt.opens`` finds the first later instant at which a
rule would pass: each condition that fails names the earliest instant at which it could hold again,
and the search goes to the latest of these until nothing fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gateway.areas import Areas
from gateway.model import (
    HOUR,
    MINUTE,
    OUTSIDE,
    AntiPassback,
    Bypass,
    Entitlement,
    Event,
    Limit,
    Movement,
    Passage,
    Per,
    Point,
    Rule,
)
from gateway.venuetime import DAY, Calendar

ALWAYS = -(1 << 62)
NEVER = 1 << 62
_MAX_STEPS = 2000
"""A rule that has not passed after so many jumps (years, for any sensible rule) is taken never to."""


@dataclass(slots=True, frozen=True)
class Span:
    """When an event is on."""

    tag: str
    start: int
    end: int


class RuleAt:
    """One rule as it stands at one access point that it concerns."""

    __slots__ = (
        "_calendar",
        "_exclusive",
        "_inside",
        "_plain",
        "_spans",
        "again",
        "asks_presence",
        "by_term",
        "bypass_capacity",
        "bypass_closed",
        "capacities",
        "counted",
        "days",
        "during",
        "early",
        "end",
        "except_",
        "first_left",
        "guest_limits",
        "guests",
        "hours",
        "limits",
        "move",
        "never",
        "start",
    )

    def __init__(
        self, rule: Rule, point: Point, areas: Areas, events: Sequence[Event], calendar: Calendar
    ) -> None:
        self._calendar = calendar
        self._inside = None if rule.areas is None else areas.inside(rule.areas)
        self.move = self._is_inside(point.from_)
        self.days = rule.days
        self.except_ = rule.except_
        self.hours = _hours(rule.hours)
        self.start = ALWAYS if rule.from_ is None else calendar.starts(rule.from_)
        self.end = NEVER if rule.until is None else calendar.ends(rule.until)
        self.during = rule.during
        self.early = rule.early_minutes * MINUTE
        here = [
            (Span(event.tag, _start(event, calendar), _end(event, calendar)), event.exclusive)
            for event in events
            if event.areas is None or not areas.inside(event.areas).isdisjoint((point.to,))
        ]
        # Sorted: of several with one tag the one that begins first is the one found.
        self._spans = tuple(sorted((s for s, _ in here if s.tag == rule.during), key=lambda s: s.start))
        self._exclusive = tuple(s for s, exclusive in here if exclusive and s.tag != rule.during)
        self.again = None if rule.again_after_minutes is None else rule.again_after_minutes * MINUTE
        self.limits = rule.limits
        self.counted = self.again is not None or bool(self.limits)
        self.by_term = any(limit.per is Per.TERM for limit in rule.limits)
        most = min((limit.max or 0 for limit in rule.limits if limit.minutes is None), default=None)
        self.never = most is not None and most <= 0 and not self.move
        self.first_left = None if most is None else max(most - (not self.move), 0)
        self.guests = rule.guests
        self.guest_limits = rule.guest_limits
        self.asks_presence = (
            point.anti_passback is not AntiPassback.OFF and Bypass.PASSBACK not in rule.bypass
        )
        self.bypass_capacity = Bypass.CAPACITY in rule.bypass
        self.capacities = () if self.bypass_capacity else areas.capacities(point.to)
        self.bypass_closed = Bypass.CLOSED in rule.bypass
        self._plain = (
            self.days is None
            and not self.except_
            and self.hours is None
            and rule.from_ is None
            and rule.until is None
            and self.during is None
            and not self._exclusive
        )

    def _is_inside(self, area: str) -> bool:
        return area != OUTSIDE if self._inside is None else area in self._inside

    # counted: judging needs the entitlement's movements.
    # by_term: one of the limits is by term, so that the entitlement may state its own number of entries.
    # never, first_left: what a limit says (step h, and ``left``) where nothing has been used, but by term.

    # --- e: the time ---------------------------------------------------------------------------

    def on_time(self, at: int) -> bool:
        """Step e: days, hours, dates, event, exclusive."""
        if self._plain:
            return True
        calendar = self._calendar
        if not self.start <= at < self.end:
            return False
        if self.days is not None or self.except_:
            day = calendar.day(at)
            if day in self.except_ or (self.days is not None and calendar.weekday(day) not in self.days):
                return False
        if self.hours is not None:
            clock = calendar.clock(at)
            if not any(start <= clock < end for start, end in self.hours):
                return False
        if self.during is not None and self.found(at) is None:
            return False
        return not any(s.start <= at < s.end for s in self._exclusive)

    def edges(self) -> set[int]:
        """The instants at which the answer may change, besides those of clock and calendar."""
        edges = {self.start, self.end}
        for span in self._spans:
            edges |= {span.start - self.early, span.start, span.end}
        for span in self._exclusive:
            edges |= {span.start, span.end}
        return edges

    def found(self, at: int) -> Span | None:
        """The event that ``during`` finds: on, or beginning within the early minutes."""
        return next((s for s in self._spans if s.start - self.early <= at < s.end), None)

    # --- g and h: what this entitlement has used -------------------------------------------------

    @property
    def counts(self) -> bool:
        """Whether judging needs the entitlement's movements."""
        return not self.move and (self.again is not None or bool(self.limits))

    def entries(self, movements: Iterable[Movement], at: int, *, guests: bool) -> list[Movement]:
        """The entries into the rule's areas from outside them that count by now."""
        return [
            m
            for m in movements
            if m.at <= at
            and m.passage is not Passage.NOT_TAKEN
            and (m.guest > 0) is guests
            and self._is_inside(m.to)
            and not self._is_inside(m.from_)
        ]

    def soon(self, entries: Sequence[Movement], at: int) -> int | None:
        """Step g: None where it passes, else the instant from which it would."""
        if self.again is None or not entries:
            return None
        free = max(m.at for m in entries) + self.again
        return free if at < free else None

    def since(self, limit: Limit, entitlement: Entitlement, at: int, entered: int | None = None) -> int:
        """The first instant of the limit's period in which ``at`` lies. ``entered``: for a guest, when the
        host came, for it is the host's event that counts."""
        calendar = self._calendar
        match limit.per:
            case Per.HOUR:
                return at - HOUR + 1
            case Per.DAY:
                return calendar.day_start(calendar.day(at))
            case Per.WEEK:
                return calendar.day_start(calendar.week(calendar.day(at)))
            case Per.MONTH:
                return calendar.day_start(calendar.month(calendar.day(at)))
            case Per.YEAR:
                return calendar.day_start(calendar.year(calendar.day(at)))
            case Per.EVENT:
                found = self.found(at if entered is None else entered)
                # An entry in the early minutes is already one of this event.
                return ALWAYS if found is None else found.start - self.early
            case Per.TERM:
                return ALWAYS if entitlement.valid_from is None else calendar.starts(entitlement.valid_from)

    def reach(self, entitlement: Entitlement, at: int, *, guests: bool) -> int:
        """From when on the entitlement's movements are needed to judge at ``at``; with ``guests`` also a
        guest."""
        reach = at if self.again is None else at - self.again
        for limit in (*self.limits, *self.guest_limits) if guests else self.limits:
            reach = min(reach, self.since(limit, entitlement, at))
        return reach

    def remaining(
        self,
        limit: Limit,
        entitlement: Entitlement,
        entries: Sequence[Movement],
        at: int,
        *,
        guests: bool,
        entered: int | None = None,
    ) -> int | None:
        """How many entries the limit still allows (days: 1 counts today); minutes: 1 or 0.

        None where a limit by days costs nothing more today.
        """
        since = self.since(limit, entitlement, at, entered)
        counted = [m for m in entries if m.at >= since]
        if limit.minutes is not None:
            return 1 if not counted or at - min(m.at for m in counted) < limit.minutes * MINUTE else 0
        allowed = limit.max or 0
        if limit.per is Per.TERM and not guests and entitlement.entries is not None:
            allowed = entitlement.entries
        if not limit.count_days:
            return allowed - sum(m.entries for m in counted)
        days = {self._calendar.day(m.at) for m in counted}
        if self._calendar.day(at) in days:
            return None
        return allowed - len(days)

    def exhausted(
        self,
        limits: Sequence[Limit],
        entitlement: Entitlement,
        entries: Sequence[Movement],
        at: int,
        *,
        guests: bool,
        entered: int | None = None,
    ) -> bool:
        """Step h: whether any of these limits allows nothing more."""
        for limit in limits:
            left = self.remaining(limit, entitlement, entries, at, guests=guests, entered=entered)
            if left is not None and left <= 0:
                return True
        return False

    def left(
        self,
        entitlement: Entitlement,
        entries: Sequence[Movement],
        at: int,
        *,
        spend: bool,
        entered: int | None = None,
    ) -> int | None:
        """What remains of the tightest ``max`` after this entry (``spend``), None without one."""
        tightest: int | None = None
        for limit in self.limits:
            if limit.max is None:
                continue
            left = self.remaining(limit, entitlement, entries, at, guests=False, entered=entered)
            if left is None:
                since = self.since(limit, entitlement, at, entered)
                days = {self._calendar.day(m.at) for m in entries if m.at >= since}
                allowed = limit.max
                if limit.per is Per.TERM and entitlement.entries is not None:
                    allowed = entitlement.entries
                left = allowed - len(days)
            elif spend:
                left -= 1
            tightest = left if tightest is None else min(tightest, left)
        return None if tightest is None else max(tightest, 0)

    # --- when it would pass ------------------------------------------------------------------------

    def opens(
        self,
        entitlement: Entitlement,
        grace_days: int,
        entries: Sequence[Movement],
        now: int,
        *,
        closed: bool,
    ) -> int | None:
        """The first instant after ``now`` at which this rule would pass steps a to h if nothing else
        happens, or None. ``entries`` are those that count now."""
        if entitlement.blocked or entitlement.state or (closed and not self.bypass_closed):
            return None
        calendar = self._calendar
        begins = ALWAYS if entitlement.valid_from is None else calendar.starts(entitlement.valid_from)
        ends = (
            NEVER
            if entitlement.valid_until is None
            else calendar.grace_ends(entitlement.valid_until, grace_days)
        )
        at = max(now + 1, begins, self.start)
        for _ in range(_MAX_STEPS):
            if at >= ends or at >= self.end:
                return None
            later = self._not_before(entitlement, entries, at)
            if later <= at:
                return at
            if later >= NEVER:
                return None
            at = later
        return None

    def _not_before(self, entitlement: Entitlement, entries: Sequence[Movement], at: int) -> int:
        """``at`` where steps e, g and h hold there, else an instant before which they surely do not."""
        calendar = self._calendar
        later = at
        if self.days is not None or self.except_:
            later = max(later, self._day_not_before(at))
        if self.hours is not None and not any(s <= calendar.clock(at) < e for s, e in self.hours):
            later = max(later, self._hour_not_before(at))
        if self.during is not None and self.found(at) is None:
            later = max(
                later,
                min((s.start - self.early for s in self._spans if s.start - self.early > at), default=NEVER),
            )
        for span in self._exclusive:
            if span.start <= at < span.end:
                later = max(later, span.end)
        if self.move or later >= NEVER:
            return later
        if (free := self.soon(entries, at)) is not None:
            later = max(later, free)
        for limit in self.limits:
            left = self.remaining(limit, entitlement, entries, at, guests=False)
            if left is not None and left <= 0:
                later = max(later, self._limit_not_before(limit, entries, at))
        return later

    def _day_not_before(self, at: int) -> int:
        calendar = self._calendar
        if self.days is not None and not self.days:
            return NEVER
        first = day = calendar.day(at)
        while day in self.except_ or (self.days is not None and calendar.weekday(day) not in self.days):
            day += 1
        return at if day == first else calendar.day_start(day)

    def _hour_not_before(self, at: int) -> int:
        calendar = self._calendar
        assert self.hours is not None
        if not self.hours:
            return NEVER
        today = calendar.local_date(at)
        candidates = [
            calendar.resolve(date, start, fold)
            for date in (today, today + 1, today + 2)
            for start, _ in self.hours
            for fold in (0, 1)
        ]
        # When the clock is put back it can land in the middle of a span.
        if (change := calendar.transition(at, at + 2 * DAY)) is not None:
            candidates.append(change)
        return min(c for c in candidates if c > at)

    def _limit_not_before(self, limit: Limit, entries: Sequence[Movement], at: int) -> int:
        """The earliest instant after ``at`` at which another period, or another hour, may allow more."""
        calendar = self._calendar
        day = calendar.day(at)
        match limit.per:
            case Per.HOUR:
                return min((m.at + HOUR for m in entries if m.at + HOUR > at), default=NEVER)
            case Per.DAY:
                return calendar.day_start(day + 1)
            case Per.WEEK:
                return calendar.day_start(calendar.week(day) + 7)
            case Per.MONTH:
                return calendar.day_start(calendar.month(calendar.month(day) + 31))
            case Per.YEAR:
                return calendar.day_start(calendar.year(calendar.year(day) + 366))
            case Per.EVENT:
                found = self.found(at)
                return at if found is None else found.end
            case Per.TERM:
                return NEVER


def _hours(spans: tuple[tuple[int, int], ...] | None) -> tuple[tuple[int, int], ...] | None:
    """Clock spans in microseconds, those over midnight cut in two."""
    if spans is None:
        return None
    out: list[tuple[int, int]] = []
    for start, end in spans:
        if start < end:
            out.append((start * MINUTE, end * MINUTE))
        else:
            out.append((start * MINUTE, DAY))
            if end:
                out.append((0, end * MINUTE))
    return tuple(out)


def _start(event: Event, calendar: Calendar) -> int:
    return ALWAYS if event.from_ is None else calendar.starts(event.from_)


def _end(event: Event, calendar: Calendar) -> int:
    return NEVER if event.until is None else calendar.ends(event.until)
