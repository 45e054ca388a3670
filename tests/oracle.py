"""A plain, slow reading of the admission rules, to test the fast one against.

Written from DESIGN.md section 4 (4.1 to 4.4) and the ``replay`` paragraph of section 5 alone. At each
scan everything is reckoned anew from the whole list of facts; nothing is kept, counted on or compiled.
One small function per sentence of the design, with the sentence (or its beginning) in the docstring.

Where the text leaves a choice, this is the one taken here:

 1. ``clock_suspect``: a line earlier than the *newest* line so far, not only earlier than the one directly
    before it (10:00, 09:00, 09:30: the second and the third are suspect). Every line moves the newest time:
    repeats, passage lines, and also passage lines that are ignored for want of a sensor.
 2. Repeats are measured in judged time (the newest time so far), like the monotonic clock would. The
    repeat check comes before everything, also for malformed codes and at exits.
 3. Ties in time: a usage counts before what this gateway did at the same instant; what was done here keeps
    the order of the lines. Usage at the same instant: feed order (which the design says does not matter).
 4. A usage at exactly ``now`` has happened. A usage whose ``passage`` is anything but ``not_taken`` is made.
 5. The person of a usage is its own ``holder``, else its ``credential``; the entitlement's record is not
    consulted. With an entitlement alone it counts for limits and again_after, and for nobody's presence.
 6. A usage naming this very point opens a guest window there, like an entry judged here.
 7. Presence began with the last movement seen (a move within, or a soft passback, renews it), and lasts by
    ``presence_hours`` of the area moved to; if that area states none, till the end of the venue day, whatever
    the areas around it state. It has ended at exactly start + hours. ``presence_hours`` may exceed the day.
 8. Heads (guests, unknown people) are counted for each area apart: plus one when they cross into it, minus
    one when they cross out. A head ends like a presence that began with the crossing movement. The oldest
    head leaves first.
 9. "A card whose holder is already outside" at an exit is read for each area apart: who comes out of an
    area without having been in it takes out one head of it. If there is none, nothing changes (only an
    unknown then lowers the count of holders).
10. The count of holders that unknown people took out is never more than the holders present; it is
    forgotten as holders leave or their presence ends. A holder thought present who enters again does not
    lower it.
11. An exit to an area (exh to hall) by a holder thought to be outside puts that holder in hall: the
    presence is where a holder was last seen.
12. At an exit the person is the first listed entitlement's holder, else the credential, even where another
    entitlement of the card let the person in.
13. Exits, too, know "the same grant again" (a known card re-scanned while its exit is pending). Unknown
    cards have no holder: each scan of one at an open exit is a grant of its own.
14. "The same answer" repeats verdict, detail, flags, holder, entitlement, product, guest and left of the
    grant; ``credential`` is the card just scanned, ``clock_suspect`` is this scan's own.
15. "The same grant again" is asked after step 5 and before step 6, and steps 1 to 4 come first: a lost
    second card of a pending holder is ``revoked``. A card with entitlements of several holders: any of
    them pending here will do, the first listed first.
16. Guest and same grant: if a guest is left, the scan is a guest, even if the area is full: ``area_full``.
17. The own entry of step 5 is the holder's latest at this point that was not given back. Its guests are all
    guests of that holder at this point since. A guest given back neither counts nor prolongs the window.
    The next guest has the number (guests that count) + 1.
18. Window and limits at their edges: exactly ``guest_window_s`` ago is still inside; exactly
    ``anti_passback_minutes`` and ``again_after_minutes`` ago is over; exactly 60 minutes ago is no longer
    within the hour; exactly at the deadline a passage is still in time.
19. Guests: rule conditions a to f at the entry's time with today's records; the periods of guest_limits
    and ``left`` at now; but ``per event`` is the event found at the time of the entry.
20. A guest's grant carries ``grace`` and ``attention`` of the entitlement asked (grace as at the entry), its
    ``left`` is what remains now of the rule's limits. A guest refused by ``area_full`` has ``guest`` 0 and
    names the entitlement. The first rule with a guest left decides; a full area does not ask the next rule.
21. ``entitlement.entries`` replaces ``max`` in ``limits`` only, not in ``guest_limits``;
    ``entitlement.guests`` only in rules that state ``guests``.
22. Summed usage (``entries`` n) is n entries on one venue day: n for ``max``, one day for ``count`` days,
    one person for presence, n heads where it is heads.
23. An item with ``count`` days is asked in its period like the others; today free if today counts already in
    that period. Its ``left`` is max less the days including today. ``left`` is never below zero.
24. On a move within the rule's areas the limits are not asked; ``left`` then says what remains, unlowered.
25. "Every area" (a rule without ``areas``) is every one but ``outside``.
26. Two exclusive events with different tags on at one place: no rule holds there.
27. An event is exclusive only while it is on, not in the early minutes of anybody's rule.
28. ``timed`` anti-passback: the last entry is the last own movement that crossed into the to-area from
    outside of it. Holder present without such a movement: not refused. "Already in" includes areas within.
29. "And a second point refuses" is meant through that point's anti-passback, as 4.4 says: with
    anti-passback off a pending holder may be granted at a second point.
30. The detail instant: facts as they are now. Pending stays pending, usage dated later stays away, a closed
    lane stays closed (then there is no instant). Steps 5, 7 and 8 are not asked.
31. Ties between rules at the same stage: verdicts without an instant (suspended, expired, no_right,
    lane_closed) tie as never working; rules of an entitlement that is not valid yet each have an instant of
    their own. A never comes after every instant.
32. ``expired`` has no detail. ``passback`` has none, ``timed`` neither.
33. ``notice`` is given whenever ``holder`` is named, also on denials. A ``holder`` or ``product`` id is
    named even if there is no such record; a missing holder record is not blocked.
34. At exits ``entitlement`` and ``product`` are null and no flag but ``clock_suspect`` stands.
35. A passage line names a point: it answers grants of that very point. ``not_taken`` without a grant is
    nothing. ``taken`` without one is a head at the line's judged time.
36. ``hours`` look at the clock alone: in a night when an hour comes twice a span holds twice, in one that
    jumps it holds for what is left of it. A span whose end is its start is the whole day.
37. A grace after an ``until`` instant: same wall-clock time so many days later, jumped: at the jump; twice:
    the first. With ``grace_days`` 0 there is no grace at all.
38. Several pending grants at a point: the oldest by the time of the scan that granted it, not by its last
    renewal.
39. ``replay`` knows no publication time, so no feed is stale, and no lane states. For tests below replay
    the Oracle takes ``published`` and lines ``{"at", "lane", "mode": "closed"|"normal"}``, which print
    nothing.
40. An unknown code that came as malformed at an exit that denies is ``unknown_credential``.
41. ``again_after_minutes`` counts every entry into the rule's areas whatever its point and rule; summed
    usage at its ``at``.
42. Events with one tag: among those on or about to begin the one with the earliest ``from`` (none: earlier
    than any), also if it is on already and another is about to begin.
43. A term without ``valid_from`` has no beginning. Entries in a grace belong to the term.
44. Several [[reader]] tables for one point: the first one's repeat delay counts.
45. A credential whose code another took keeps existing, without a code. A credential that changes its code
    sets the old code free for nobody.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

Json = dict[str, Any]
Person = tuple[str, str]
OUTSIDE = "outside"
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
STAGES = ("a", "b", "c", "d", "e", "f", "g", "h")
STAGE_VERDICT = {
    "a": "suspended",
    "b": "not_yet_valid",
    "c": "expired",
    "d": "no_right",
    "e": "not_at_this_time",
    "f": "lane_closed",
    "g": "too_soon",
    "h": "limit_reached",
}
WITH_INSTANT = ("b", "e", "g", "h")


@dataclass
class Move:
    """One fact: somebody was let through, here or elsewhere."""

    at: datetime
    from_: str
    to: str
    person: Person | None
    point: str | None = None
    entitlement: str | None = None
    guest: int = 0
    entries: int = 1
    passage: str = "taken"
    deadline: datetime | None = None
    closed: bool = False
    counts_head: bool = False
    """Nobody's own movement: a guest, an unknown, a forced passage."""
    answer: Json | None = None


@dataclass
class Candidate:
    """How far one rule of one entitlement came."""

    stage: str | None
    """None: it passes."""
    entitlement: Json
    rule: Json | None
    soonest: datetime | None = None


def instant(text: str) -> datetime:
    """An instant has an offset."""
    return datetime.fromisoformat(text).astimezone(UTC)


def minutes_of(clock: str) -> int:
    hours, minutes = clock.split(":")
    return int(hours) * 60 + int(minutes)


def language_of(tag: str | None) -> str | None:
    """Languages are BCP 47 tags, a region is ignored, ``no`` and ``nn`` read as ``nb``."""
    if tag is None:
        return None
    primary = tag.split("-")[0].split("_")[0].lower()
    return "nb" if primary in ("no", "nn") else primary


class Oracle:
    """The admission rules read slowly. ``records``: the feed; ``config``: the TOML as a dict."""

    def __init__(self, records: list[Json], config: Json, published: datetime | None = None) -> None:
        self.venue: Json = {}
        self.areas: dict[str, Json] = {}
        self.events: dict[str, Json] = {}
        self.products: dict[str, Json] = {}
        self.holders: dict[str, Json] = {}
        self.entitlements: dict[str, Json] = {}
        self.credentials: dict[str, Json] = {}
        self.code_owner: dict[str, str] = {}
        self.usages: dict[tuple[Any, ...], Json] = {}
        for record in records:
            self.load(record)
        self.config = config
        self.published = published
        self.zone = ZoneInfo(self.venue.get("timezone", "UTC"))
        self.day_starts = minutes_of(self.venue.get("day_starts", "00:00"))
        self.points = {point["name"]: point for point in config["point"]}
        self.facts: list[Move] = []
        self.now = datetime.min.replace(tzinfo=UTC)
        self.closed_lanes: set[str] = set()
        self.last_scans: dict[tuple[str, str], datetime] = {}
        self.start()

    def start(self) -> None:
        """Nothing has been scanned yet; only what the feed says has happened."""
        self.facts = [self.move_of_usage(u) for u in self.usages.values() if u.get("passage") != "not_taken"]
        self.now = datetime.min.replace(tzinfo=UTC)
        self.closed_lanes = set()
        self.last_scans = {}

    # --- records ------------------------------------------------------------------------------------

    def load(self, record: Json) -> None:
        """A later record of the same kind and id replaces the earlier one, ``"deleted":true`` removes it."""
        kind = record.get("kind")
        gone = record.get("deleted") is True
        if kind == "venue":
            self.venue = {} if gone else record
        elif kind == "usage":
            key = (
                ("id", record["id"])
                if "id" in record
                else tuple(record[k] for k in ("gateway", "epoch", "seq"))
            )
            self.usages.pop(key, None)
            if not gone:
                self.usages[key] = record
        elif kind == "credential":
            self.load_credential(record, gone)
        else:
            table = {
                "area": self.areas,
                "event": self.events,
                "product": self.products,
                "holder": self.holders,
                "entitlement": self.entitlements,
            }.get(str(kind))
            if table is None:
                return  # unknown kinds are counted and skipped
            table.pop(record["id"], None)
            if not gone:
                table[record["id"]] = record

    def load_credential(self, record: Json, gone: bool) -> None:
        """A code belongs to one credential: the later record takes it. A code that a later record took does
        not come back to the earlier one when the later goes."""
        for code, owner in list(self.code_owner.items()):
            if owner == record["id"]:
                del self.code_owner[code]
        self.credentials.pop(record["id"], None)
        if not gone:
            self.credentials[record["id"]] = record
            self.code_owner[record["code"]] = record["id"]

    def move_of_usage(self, usage: Json) -> Move:
        """An entry or exit made elsewhere or earlier. Without holder and credential it counts a head unless
        it names an entitlement."""
        person: Person | None = None
        if usage.get("holder") is not None:
            person = ("holder", usage["holder"])
        elif usage.get("credential") is not None:
            person = ("card", usage["credential"])
        guest = usage.get("guest") or 0
        nobody = person is None and usage.get("entitlement") is None
        return Move(
            at=instant(usage["at"]),
            from_=usage.get("from") or OUTSIDE,
            to=usage["to"],
            person=person,
            point=usage.get("point"),
            entitlement=usage.get("entitlement"),
            guest=guest,
            entries=usage.get("entries", 1),
            counts_head=nobody or (guest > 0 and person is not None),
        )

    def entitlements_of(self, credential: Json) -> list[Json]:
        """Those that exist, in the order listed."""
        ids = credential.get("entitlements") or []
        return [self.entitlements[i] for i in ids if i in self.entitlements]

    def person_of(self, entitlement: Json | None, credential: Json) -> Person:
        """An entitlement without a holder belongs to whoever carries the credential."""
        if entitlement is not None and entitlement.get("holder") is not None:
            return ("holder", entitlement["holder"])
        return ("card", credential["id"])

    # --- time ---------------------------------------------------------------------------------------

    def clock(self, t: datetime) -> datetime:
        """The wall clock of the venue, without its offset."""
        return t.astimezone(self.zone).replace(tzinfo=None)

    def at_local(self, wall: datetime) -> datetime:
        """A local time that the clock jumps over begins at the jump; one that comes twice at the first."""
        t = wall.replace(tzinfo=self.zone, fold=0).astimezone(UTC)
        if self.clock(t) == wall:
            return t
        t = t.replace(second=0, microsecond=0)
        while self.clock(t - timedelta(minutes=1)) > wall:
            t -= timedelta(minutes=1)
        return t

    def day_start(self, day: date) -> datetime:
        """The venue day starts at ``day_starts`` local time."""
        midnight = datetime(day.year, day.month, day.day)  # noqa: DTZ001 (a wall clock)
        return self.at_local(midnight + timedelta(minutes=self.day_starts))

    def venue_day(self, t: datetime) -> date:
        """At 04:00, 01:30 on Saturday belongs to Friday."""
        day = self.clock(t).date() + timedelta(days=1)
        while self.day_start(day) > t:
            day -= timedelta(days=1)
        return day

    def begins(self, bound: str | None) -> datetime | None:
        """``valid_from`` and ``from``: a date alone begins with its venue day."""
        if bound is None:
            return None
        return self.day_start(date.fromisoformat(bound)) if len(bound) == 10 else instant(bound)

    def ends(self, bound: str | None) -> datetime | None:
        """``valid_until`` and ``until`` run through the venue day; an instant is exclusive."""
        if bound is None:
            return None
        if len(bound) == 10:
            return self.day_start(date.fromisoformat(bound) + timedelta(days=1))
        return instant(bound)

    def between(self, t: datetime, from_: str | None, until: str | None) -> bool:
        """Either end may be missing."""
        begin, end = self.begins(from_), self.ends(until)
        return (begin is None or begin <= t) and (end is None or t < end)

    def grace_end(self, until: str, days: int) -> datetime:
        """A grace that follows an ``until`` given as an instant ends at the same local time so many days
        later."""
        if len(until) == 10:
            return self.day_start(date.fromisoformat(until) + timedelta(days=1 + days))
        if days == 0:
            return instant(until)
        return self.at_local(self.clock(instant(until)) + timedelta(days=days))

    # --- places -------------------------------------------------------------------------------------

    def is_in(self, area: str, outer: str) -> bool:
        """Who is in an area is also in every area that it lies within."""
        return outer in self.around(area)

    def around(self, area: str) -> list[str]:
        """The area, and every area that it lies within, inside first."""
        found: list[str] = []
        here: str | None = area
        while here is not None and here not in found:
            found.append(here)
            here = self.areas.get(here, {}).get("within")
        return found

    def is_exit(self, from_: str, to: str) -> bool:
        """A point that leads to ``outside``, or to an area that its from-area lies within."""
        return to == OUTSIDE or (from_ != to and self.is_in(from_, to))

    def in_areas_of(self, rule: Json, area: str) -> bool:
        """Is one of these, or lies within one of these (default: every one)."""
        if rule.get("areas") is None:
            return area != OUTSIDE
        return any(self.is_in(area, one) for one in rule["areas"])

    def is_entry_into(self, rule: Json, from_: str, to: str) -> bool:
        """A move from one of a rule's areas to another is no entry into them."""
        return self.in_areas_of(rule, to) and not self.in_areas_of(rule, from_)

    # --- facts --------------------------------------------------------------------------------------

    def moves(self, now: datetime) -> list[Move]:
        """What has happened, in the order of time. What is dated later than now has not happened yet."""
        made = [m for m in self.facts if m.passage != "not_taken" and m.at <= now]
        return sorted(made, key=lambda m: m.at)

    def counted(self, now: datetime) -> list[Move]:
        """Pending entries count at once, pending exits do not yet."""
        return [m for m in self.moves(now) if m.passage != "pending" or not self.is_exit(m.from_, m.to)]

    def presence_ends(self, area: str, began: datetime) -> datetime:
        """Until the venue day in which it began ends (or for the area's ``presence_hours``)."""
        hours = self.areas.get(area, {}).get("presence_hours")
        if hours is not None:
            return began + timedelta(hours=hours)
        return self.day_start(self.venue_day(began) + timedelta(days=1))

    def presence(self, person: Person, now: datetime) -> str:
        """The area a holder was last seen in."""
        own = [m for m in self.counted(now) if m.person == person and m.guest == 0]
        if not own or self.presence_ends(own[-1].to, own[-1].at) <= now:
            return OUTSIDE
        return own[-1].to

    def occupancy(self, area: str, now: datetime) -> int:
        """The number of holders present, plus the guests and unknown people who went in, less those who came
        out, never below zero."""
        seen: dict[Person, Move] = {}
        heads: list[Move] = []
        taken_out = 0

        def holders(t: datetime) -> int:
            return sum(1 for p in seen if present(p, t))

        def present(person: Person, t: datetime) -> bool:
            m = seen.get(person)
            return m is not None and self.is_in(m.to, area) and t < self.presence_ends(m.to, m.at)

        for move in self.counted(now):
            heads = [h for h in heads if move.at < self.presence_ends(h.to, h.at)]
            taken_out = min(taken_out, holders(move.at))
            goes_in = not self.is_in(move.from_, area) and self.is_in(move.to, area)
            comes_out = self.is_in(move.from_, area) and not self.is_in(move.to, area)
            if move.counts_head:
                for _ in range(move.entries):
                    if goes_in:
                        heads.append(move)
                    elif comes_out and heads:
                        heads.pop(0)
                    elif comes_out and taken_out < holders(move.at):
                        taken_out += 1
            elif move.person is not None and move.guest == 0:
                # A card whose holder is already outside takes out one of the guests.
                if comes_out and not present(move.person, move.at) and heads:
                    heads.pop(0)
                seen[move.person] = move
            taken_out = min(taken_out, holders(move.at))
        heads = [h for h in heads if now < self.presence_ends(h.to, h.at)]
        taken_out = min(taken_out, holders(now))
        return holders(now) + len(heads) - taken_out

    def entries(self, entitlement: Json, rule: Json, now: datetime, guests: bool = False) -> list[Move]:
        """This entitlement's own entries into the rule's areas from outside them, whatever their rule (or its
        guests')."""
        return [
            m
            for m in self.counted(now)
            if m.entitlement == entitlement["id"]
            and (m.guest > 0) == guests
            and self.is_entry_into(rule, m.from_, m.to)
        ]

    # --- rules --------------------------------------------------------------------------------------

    def is_on(self, event: Json, area: str, t: datetime) -> bool:
        """An event is on in its areas and in those that lie within them."""
        return self.event_is_at(event, area) and self.between(t, event.get("from"), event.get("until"))

    def event_is_at(self, event: Json, area: str) -> bool:
        if event.get("areas") is None:
            return True
        return any(self.is_in(area, one) for one in event["areas"])

    def event_found(self, rule: Json, area: str, t: datetime) -> Json | None:
        """An event with that tag, in that area, is on, or begins within so many minutes. Of several with one
        tag the one that begins first is the one found."""
        early = timedelta(minutes=rule.get("early_minutes", 0))
        found: list[tuple[datetime, Json]] = []
        for event in self.events.values():
            if event["tag"] != rule["during"] or not self.event_is_at(event, area):
                continue
            begin = self.begins(event.get("from"))
            about_to_begin = begin is not None and t < begin <= t + early
            if self.is_on(event, area, t) or about_to_begin:
                found.append((begin or datetime.min.replace(tzinfo=UTC), event))
        return min(found, key=lambda pair: pair[0])[1] if found else None

    def hours_hold(self, rule: Json, t: datetime) -> bool:
        """The clock time is in one of these spans: start inclusive, end exclusive, may cross midnight."""
        if rule.get("hours") is None:
            return True
        wall = self.clock(t)
        passed = timedelta(
            hours=wall.hour, minutes=wall.minute, seconds=wall.second, microseconds=wall.microsecond
        )
        for span in rule["hours"]:
            first, last = span.split("-")
            start, end = timedelta(minutes=minutes_of(first)), timedelta(minutes=minutes_of(last))
            if start < end and start <= passed < end:
                return True
            if end <= start and (passed >= start or passed < end):
                return True
        return False

    def time_holds(self, rule: Json, area: str, t: datetime) -> bool:
        """e. days, hours, dates, event, exclusive."""
        day = self.venue_day(t)
        if rule.get("days") is not None and WEEKDAYS[day.weekday()] not in rule["days"]:
            return False
        if day.isoformat() in (rule.get("except") or []):
            return False
        if not self.hours_hold(rule, t):
            return False
        if not self.between(t, rule.get("from"), rule.get("until")):
            return False
        if rule.get("during") is not None and self.event_found(rule, area, t) is None:
            return False
        return self.exclusive_holds(rule, area, t)

    def exclusive_holds(self, rule: Json, area: str, t: datetime) -> bool:
        """While an ``exclusive`` event is on in an area, only rules ``during`` its tag hold there."""
        return all(
            rule.get("during") == event["tag"]
            for event in self.events.values()
            if event.get("exclusive") and self.is_on(event, area, t)
        )

    def in_period(
        self, entry: Move, item: Json, entitlement: Json, event: Json | None, early: int, t: datetime
    ) -> bool:
        """``per`` hour (less than 60 minutes ago), day, week, month, year, event or term."""
        per = item["per"]
        day, today = self.venue_day(entry.at), self.venue_day(t)
        if per == "hour":
            return t - entry.at < timedelta(minutes=60)
        if per == "day":
            return day == today
        if per == "week":  # weeks begin on Monday
            return day - timedelta(days=day.weekday()) == today - timedelta(days=today.weekday())
        if per == "month":
            return (day.year, day.month) == (today.year, today.month)
        if per == "year":
            return day.year == today.year
        if per == "event":  # the one that ``during`` found
            begin = self.begins(event.get("from")) if event is not None else None
            return begin is None or entry.at >= begin - timedelta(minutes=early)
        assert per == "term"  # since ``valid_from``
        begin = self.begins(entitlement.get("valid_from"))
        return begin is None or entry.at >= begin

    def maximum(self, item: Json, entitlement: Json, guests: bool) -> int:
        """``entitlement.entries`` replaces the ``max`` of ``term`` items."""
        if item["per"] == "term" and not guests and entitlement.get("entries") is not None:
            return int(entitlement["entries"])
        return int(item["max"])

    def item_allows(
        self, item: Json, period: list[Move], entitlement: Json, guests: bool, t: datetime
    ) -> bool:
        """``max`` entries (or venue days with an entry), or ``minutes`` since the first entry."""
        if item.get("minutes") is not None:
            # They run out when so many have passed since the period's first entry.
            return not period or t < period[0].at + timedelta(minutes=item["minutes"])
        if item.get("count") == "days":
            # On a day that counts already, more entries are free.
            days = {self.venue_day(m.at) for m in period}
            return self.venue_day(t) in days or len(days) < self.maximum(item, entitlement, guests)
        return sum(m.entries for m in period) < self.maximum(item, entitlement, guests)

    def period_of(
        self, item: Json, entries: list[Move], entitlement: Json, rule: Json, event: Json | None, t: datetime
    ) -> list[Move]:
        early = rule.get("early_minutes", 0)
        return [m for m in entries if self.in_period(m, item, entitlement, event, early, t)]

    def event_of(self, rule: Json, point: Json, t: datetime) -> Json | None:
        return self.event_found(rule, point["to"], t) if rule.get("during") is not None else None

    def fails_at(
        self,
        entitlement: Json,
        rule: Json | None,
        point: Json,
        t: datetime,
        entries: list[Move],
        closed: bool,
        last: str,
    ) -> str | None:
        """The first of the stages a to ``last`` that this rule fails at the instant ``t``; None if it passes.
        ``entries``: the entitlement's own entries into the rule's areas so far."""
        product = self.products.get(entitlement.get("product") or "")
        # a. holder blocked; entitlement suspended, cancelled
        if self.trouble(entitlement) is not None:
            return "a"
        # b. not yet valid
        begin = self.begins(entitlement.get("valid_from"))
        if begin is not None and t < begin:
            return "b"
        # c. expired (within the product's grace_days it passes)
        if self.is_over(entitlement, t) and not self.in_grace(entitlement, t):
            return "c"
        # d. no product, or no rule for this area and point
        if product is None or rule is None or not self.in_areas_of(rule, point["to"]):
            return "d"
        if rule.get("points") is not None and point["name"] not in rule["points"]:
            return "d"
        # e. days, hours, dates, event, exclusive
        if not self.time_holds(rule, point["to"], t):
            return "e"
        # f. the lane is closed, unless bypassed
        if closed and "closed" not in (rule.get("bypass") or []):
            return "f"
        if last == "f" or not self.is_entry_into(rule, point["from"], point["to"]):
            return None
        # g. again_after_minutes have passed since this entitlement's last entry to the rule's areas
        again = rule.get("again_after_minutes")
        if again is not None and entries and t < entries[-1].at + timedelta(minutes=again):
            return "g"
        # h. limits
        event = self.event_of(rule, point, t)
        for item in rule.get("limits") or []:
            period = self.period_of(item, entries, entitlement, rule, event, t)
            if not self.item_allows(item, period, entitlement, False, t):
                return "h"
        return None

    def trouble(self, entitlement: Json) -> str | None:
        """Holder blocked: detail ``blocked``; entitlement ``suspended``, ``cancelled``."""
        holder = self.holders.get(entitlement.get("holder") or "", {})
        if holder.get("state") == "blocked":
            return "blocked"
        state = entitlement.get("state", "active")
        return None if state == "active" else str(state)

    def is_over(self, entitlement: Json, t: datetime) -> bool:
        end = self.ends(entitlement.get("valid_until"))
        return end is not None and end <= t

    def in_grace(self, entitlement: Json, t: datetime) -> bool:
        """Within the product's ``grace_days`` it passes, with flag ``grace``."""
        if not self.is_over(entitlement, t):
            return False
        product = self.products.get(entitlement.get("product") or "", {})
        return t < self.grace_end(entitlement["valid_until"], product.get("grace_days", 0))

    def left(
        self, entitlement: Json, rule: Json, point: Json, t: datetime, event: Json | None, own: bool
    ) -> int | None:
        """What remains of the tightest limit that the deciding rule states, after this entry. Minutes are
        left aside; guests take nothing."""
        remains: list[int] = []
        adds = own and self.is_entry_into(rule, point["from"], point["to"])
        entries = self.entries(entitlement, rule, t)
        for item in rule.get("limits") or []:
            if item.get("max") is None:
                continue
            period = self.period_of(item, entries, entitlement, rule, event, t)
            if item.get("count") == "days":
                days = {self.venue_day(m.at) for m in period}
                used = len(days | {self.venue_day(t)}) if adds else len(days)
            else:
                used = sum(m.entries for m in period) + (1 if adds else 0)
            remains.append(max(0, self.maximum(item, entitlement, False) - used))
        return min(remains) if remains else None

    # --- the instant from which it would work -------------------------------------------------------

    def soonest(self, entitlement: Json, rule: Json | None, point: Json, closed: bool) -> datetime | None:
        """The first after now at which the same rule would pass a to h if nothing else happens.

        What a rule says is true from an instant on (inclusive) until another (exclusive), so the first
        instant at which it passes is one of those at which one of its parts begins to hold.
        """
        if rule is None:
            return None
        entries = self.entries(entitlement, rule, self.now)
        for t in sorted(set(self.turning_points(entitlement, rule, entries))):
            if t > self.now and self.fails_at(entitlement, rule, point, t, entries, closed, "h") is None:
                return t
        return None

    def turning_points(self, entitlement: Json, rule: Json, entries: list[Move]) -> Iterator[datetime]:
        """Every instant at which the rule may begin to pass.

        Single ones: bounds, event edges, entries that fall out of the hour, the end of again_after, the first
        day of the next month and year, the day after an exception. Between two single ones a rule depends on
        the weekday and the clock alone (once this day and week are over), so that if it passes anywhere
        between them it does within three weeks, also if the clock jumps over it once: all beginnings of
        days and spans in the 23 days after each single one complete the list.
        """
        bounds = (entitlement.get("valid_from"), rule.get("from"))
        singles = [self.now, *(b for b in map(self.begins, bounds) if b is not None)]
        for event in self.events.values():
            begin, end = self.begins(event.get("from")), self.ends(event.get("until"))
            if begin is not None:
                singles += [begin, begin - timedelta(minutes=rule.get("early_minutes", 0))]
            if end is not None:
                singles.append(end)
        for entry in entries:
            singles.append(entry.at + timedelta(minutes=60))
            singles.append(entry.at + timedelta(minutes=rule.get("again_after_minutes") or 0))
        for day in rule.get("except") or []:
            singles.append(self.day_start(date.fromisoformat(day) + timedelta(days=1)))
        today = self.venue_day(self.now)
        singles.append(self.day_start(date(today.year + 1, 1, 1)))
        next_month = date(today.year, today.month, 1) + timedelta(days=32)
        singles.append(self.day_start(next_month.replace(day=1)))
        yield from singles
        days: set[date] = set()
        for single in singles:
            if single >= self.now:
                days |= {self.clock(single).date() + timedelta(days=n) for n in range(-1, 24)}
        for day in days:
            yield self.day_start(day)
            yield from self.span_starts(rule, day)

    def span_starts(self, rule: Json, day: date) -> Iterator[datetime]:
        """When a span begins on this date: by the clock, by the clock the second time, or because the clock
        jumps into it."""
        midnight = datetime(day.year, day.month, day.day)  # noqa: DTZ001 (a wall clock)
        for span in rule.get("hours") or []:
            wall = midnight + timedelta(minutes=minutes_of(span.split("-")[0]))
            yield self.at_local(wall)
            yield wall.replace(tzinfo=self.zone, fold=1).astimezone(UTC)
        # The clock may jump to and fro: look at the offset each half hour of such a day.
        begin = self.at_local(midnight)
        end = self.at_local(midnight + timedelta(days=1))
        if begin.astimezone(self.zone).utcoffset() != end.astimezone(self.zone).utcoffset():
            t = begin
            while t <= end:
                if (
                    t.astimezone(self.zone).utcoffset()
                    != (t - timedelta(minutes=30)).astimezone(self.zone).utcoffset()
                ):
                    yield t
                t += timedelta(minutes=30)

    # --- the judgement ------------------------------------------------------------------------------

    def judge(self, point: Json, code: str) -> tuple[Json, Move | None]:
        """The answer to a scan, and the movement it lets happen (None for a denial or the same grant)."""
        owner = self.code_owner.get(code)
        credential = self.credentials[owner] if owner is not None else None
        if self.is_exit(point["from"], point["to"]):
            return self.judge_exit(point, credential)
        # 1. the payload is not a possible code
        if self.is_malformed(code):
            return self.answer("malformed"), None
        # 2. no such credential
        if credential is None:
            return self.answer("unknown_credential"), None
        # 3. its state is not active
        state = credential.get("state", "active")
        if state != "active":
            return self.answer("revoked", credential, detail=state), None
        # 4. the snapshot is older than max_snapshot_age_h and on_stale is deny
        if self.is_stale():
            return self.answer("snapshot_stale", credential), None
        # 5. guest
        guest = self.judge_guest(point, credential)
        if guest is not None:
            return guest
        same = self.same_grant(point, credential)
        if same is not None:
            return same, None
        return self.judge_entitlements(point, credential)

    def is_malformed(self, code: str) -> bool:
        """Empty, over 512 bytes, control characters of Unicode's category Cc."""
        return not code or len(code.encode()) > 512 or any(unicodedata.category(c) == "Cc" for c in code)

    def is_stale(self) -> bool:
        gateway = self.config.get("gateway", {})
        limit = gateway.get("max_snapshot_age_h")
        if limit is None or self.published is None or gateway.get("on_stale", "admit") != "deny":
            return False
        return self.now - self.published > timedelta(hours=limit)

    def judge_exit(self, point: Json, credential: Json | None) -> tuple[Json, Move | None]:
        """Any known credential is ``granted`` whatever its state; an unknown one follows
        ``unknown_at_exit``."""
        if credential is None:
            if point.get("unknown_at_exit", "open") == "deny":
                return self.answer("unknown_credential"), None
            return self.answer("granted"), self.move(point, None, head=True)
        listed = self.entitlements_of(credential)
        person = self.person_of(listed[0] if listed else None, credential)
        answer = self.answer("granted", credential)
        for pending in self.facts:
            if pending.passage == "pending" and pending.point == point["name"] and pending.person == person:
                pending.deadline = self.now + self.timeout(point)
                return answer, None
        return answer, self.move(point, person)

    def judge_guest(self, point: Json, credential: Json) -> tuple[Json, Move | None] | None:
        """Step 5."""
        window = timedelta(seconds=point.get("guest_window_s", 30))
        for entitlement in self.entitlements_of(credential):
            person = self.person_of(entitlement, credential)
            entry = self.own_entry(person, point)
            if entry is None:
                continue
            guests = self.guests_with(entry, person, point)
            # Each guest beginning the window anew.
            if self.now - max([entry.at, *(g.at for g in guests)]) > window:
                continue
            for rule in self.rules_of(entitlement):
                if self.fails_at(entitlement, rule, point, entry.at, [], entry.closed, "f") is not None:
                    continue
                if self.guest_is_left(entitlement, rule, point, entry, guests):
                    return self.admit_guest(point, credential, entitlement, rule, entry, len(guests) + 1)
        return None

    def own_entry(self, person: Person, point: Json) -> Move | None:
        """This holder's own entry into this area granted at this point, not given back."""
        own = [
            m
            for m in self.counted(self.now)
            if m.person == person and m.guest == 0 and m.point == point["name"] and m.to == point["to"]
        ]
        return own[-1] if own else None

    def guests_with(self, entry: Move, person: Person, point: Json) -> list[Move]:
        return [
            m
            for m in self.counted(self.now)
            if m.person == person and m.guest > 0 and m.point == point["name"] and m.at >= entry.at
        ]

    def guest_is_left(
        self, entitlement: Json, rule: Json, point: Json, entry: Move, guests: list[Move]
    ) -> bool:
        """How many people the holder may bring in with one entry, and limits that count guests."""
        number = rule.get("guests")
        if number is not None and entitlement.get("guests") is not None:
            number = entitlement["guests"]
        if number is None or len(guests) >= number:
            return False
        event = self.event_of(rule, point, entry.at)
        entries = self.entries(entitlement, rule, self.now, guests=True)
        if not self.is_entry_into(rule, point["from"], point["to"]):
            return True
        for item in rule.get("guest_limits") or []:
            period = self.period_of(item, entries, entitlement, rule, event, self.now)
            if not self.item_allows(item, period, entitlement, True, self.now):
                return False
        return True

    def admit_guest(
        self, point: Json, credential: Json, entitlement: Json, rule: Json, entry: Move, number: int
    ) -> tuple[Json, Move | None]:
        """Nothing below is asked but capacity; for capacity a guest stands in the point's from-area."""
        if "capacity" not in (rule.get("bypass") or []) and self.is_full(point, point["from"]):
            return self.answer("area_full", credential, entitlement), None
        answer = self.answer(
            "granted",
            credential,
            entitlement,
            flags=self.grant_flags(entitlement, entry.at, False),
            guest=number,
            left=self.left(
                entitlement, rule, point, self.now, self.event_of(rule, point, entry.at), own=False
            ),
        )
        person = self.person_of(entitlement, credential)
        move = self.move(point, person, entitlement["id"], guest=number, head=True)
        move.answer = answer
        return answer, move

    def same_grant(self, point: Json, credential: Json) -> Json | None:
        """Else the same grant again: ``granted``, the passage time-out begins anew, nothing is counted
        twice."""
        for entitlement in self.entitlements_of(credential):
            person = self.person_of(entitlement, credential)
            for m in self.facts:
                if (
                    m.passage == "pending"
                    and m.point == point["name"]
                    and m.person == person
                    and m.guest == 0
                ):
                    assert m.answer is not None
                    m.deadline = self.now + self.timeout(point)
                    return {**m.answer, "credential": credential["id"]}
        return None

    def rules_of(self, entitlement: Json) -> list[Json]:
        """A product without rules admits nowhere; so does a missing one."""
        product = self.products.get(entitlement.get("product") or "", {})
        return list(product.get("rules") or [])

    def judge_entitlements(self, point: Json, credential: Json) -> tuple[Json, Move | None]:
        """Step 6: each entitlement in the order listed, each of its product's rules in the order listed."""
        candidates: list[Candidate] = []
        for entitlement in self.entitlements_of(credential):
            rules: list[Json | None] = [*self.rules_of(entitlement)]
            for rule in rules or [None]:
                candidate = self.candidate(entitlement, rule, point)
                if candidate.stage is None:
                    assert rule is not None
                    return self.pass_on(point, credential, entitlement, rule)
                candidates.append(candidate)
        if not candidates:  # a credential with no entitlement left
            return self.answer("no_right", credential), None
        return self.deny(self.furthest(candidates), credential), None

    def candidate(self, entitlement: Json, rule: Json | None, point: Json) -> Candidate:
        closed = point["lane"] in self.closed_lanes
        entries = self.entries(entitlement, rule, self.now) if rule is not None else []
        stage = self.fails_at(entitlement, rule, point, self.now, entries, closed, "h")
        found = Candidate(stage, entitlement, rule)
        if stage in WITH_INSTANT:
            found.soonest = self.soonest(entitlement, rule, point, closed)
        return found

    def furthest(self, candidates: list[Candidate]) -> Candidate:
        """The rule that came furthest in this order; on a tie the one that would work soonest, then the first
        listed."""
        best = candidates[0]
        for other in candidates[1:]:
            further = STAGES.index(other.stage or "") - STAGES.index(best.stage or "")
            if further > 0 or (further == 0 and self.is_sooner(other.soonest, best.soonest)):
                best = other
        return best

    def is_sooner(self, one: datetime | None, other: datetime | None) -> bool:
        return one is not None and (other is None or one < other)

    def deny(self, candidate: Candidate, credential: Json) -> Json:
        assert candidate.stage is not None
        detail = None
        if candidate.stage == "a":
            detail = self.trouble(candidate.entitlement)
        elif candidate.soonest is not None:
            detail = candidate.soonest.astimezone(self.zone).isoformat()
        return self.answer(STAGE_VERDICT[candidate.stage], credential, candidate.entitlement, detail=detail)

    def pass_on(
        self, point: Json, credential: Json, entitlement: Json, rule: Json
    ) -> tuple[Json, Move | None]:
        """Steps 7 to 9."""
        bypass = rule.get("bypass") or []
        person = self.person_of(entitlement, credential)
        here = self.presence(person, self.now)
        soft = False
        if "passback" not in bypass and self.is_passback(person, here, point):
            if point.get("anti_passback", "off") != "soft":
                return self.answer("passback", credential, entitlement), None
            soft = True
        if "capacity" not in bypass and self.is_full(point, here):
            return self.answer("area_full", credential, entitlement), None
        answer = self.answer(
            "granted",
            credential,
            entitlement,
            flags=self.grant_flags(entitlement, self.now, soft),
            left=self.left(
                entitlement, rule, point, self.now, self.event_of(rule, point, self.now), own=True
            ),
        )
        move = self.move(point, person, entitlement["id"])
        move.answer = answer
        return answer, move

    def is_passback(self, person: Person, here: str, point: Json) -> bool:
        """7. the holder is already in the to-area; ``timed`` is as hard for ``anti_passback_minutes``
        after the holder's last entry to that area."""
        mode = point.get("anti_passback", "off")
        if mode == "off" or not self.is_in(here, point["to"]):
            return False
        if mode != "timed":
            return True
        minutes = timedelta(minutes=point.get("anti_passback_minutes", 10))
        crossings = [
            m
            for m in self.counted(self.now)
            if m.person == person
            and m.guest == 0
            and self.is_in(m.to, point["to"])
            and not self.is_in(m.from_, point["to"])
        ]
        return bool(crossings) and self.now < crossings[-1].at + minutes

    def is_full(self, point: Json, here: str) -> bool:
        """8. capacity of the to-area and of every area it lies within, unless already in there."""
        for area in self.around(point["to"]):
            capacity = self.areas.get(area, {}).get("capacity")
            if capacity is None or self.is_in(here, area):
                continue
            if self.occupancy(area, self.now) >= capacity:
                return True
        return False

    # --- what a verdict says ------------------------------------------------------------------------

    def grant_flags(self, entitlement: Json, t: datetime, passback: bool) -> list[str]:
        """In the order clock_suspect, free, grace, passback, attention."""
        flags = ["grace"] if self.in_grace(entitlement, t) else []
        if passback:
            flags.append("passback")
        if self.products.get(entitlement.get("product") or "", {}).get("attention"):
            flags.append("attention")
        return flags

    def answer(
        self,
        verdict: str,
        credential: Json | None = None,
        entitlement: Json | None = None,
        detail: str | None = None,
        flags: list[str] | None = None,
        guest: int = 0,
        left: int | None = None,
    ) -> Json:
        """The deciding entitlement's holder; at exits and before step 6 the first entitlement's."""
        holder = None
        if entitlement is not None:
            holder = entitlement.get("holder")
        elif credential is not None and self.entitlements_of(credential):
            holder = self.entitlements_of(credential)[0].get("holder")
        return {
            "verdict": verdict,
            "detail": detail,
            "flags": flags or [],
            "credential": credential["id"] if credential is not None else None,
            "holder": holder,
            "entitlement": entitlement["id"] if entitlement is not None else None,
            "product": entitlement.get("product") if entitlement is not None else None,
            "guest": guest,
            "left": left,
            "notice": self.notice(holder),
            "message": None,
        }

    def notice(self, holder: str | None) -> str | None:
        """In the holder's language, else the venue's, else English, else any."""
        record = self.holders.get(holder or "", {})
        texts = record.get("notice")
        if not texts:
            return None
        if isinstance(texts, str):
            return texts
        for wanted in (record.get("language"), self.venue.get("language", "en"), "en"):
            for tag, text in texts.items():
                if wanted is not None and language_of(tag) == language_of(wanted):
                    return str(text)
        return str(next(iter(texts.values())))

    # --- passages -----------------------------------------------------------------------------------

    def lane_of(self, point: Json) -> Json:
        return next(lane for lane in self.config["lane"] if lane["name"] == point["lane"])

    def has_sensor(self, point: Json) -> bool:
        return point.get("passage") is not None or self.lane_of(point).get("passage") is not None

    def timeout(self, point: Json) -> timedelta:
        """The lane's ``timeout_s``, 5 by default."""
        return timedelta(seconds=(self.lane_of(point).get("passage") or {}).get("timeout_s", 5))

    def move(
        self,
        point: Json,
        person: Person | None,
        entitlement: str | None = None,
        guest: int = 0,
        head: bool = False,
    ) -> Move:
        """``pending`` where the lane has a sensor, else ``assumed``."""
        sensor = self.has_sensor(point)
        return Move(
            at=self.now,
            from_=point["from"],
            to=point["to"],
            person=person,
            point=point["name"],
            entitlement=entitlement,
            guest=guest,
            passage="pending" if sensor else "assumed",
            deadline=self.now + self.timeout(point) if sensor else None,
            closed=point["lane"] in self.closed_lanes,
            counts_head=head,
        )

    def time_out(self) -> None:
        """What is not reported within the lane's ``timeout_s`` is ``not_taken``."""
        for m in self.facts:
            if m.passage == "pending" and m.deadline is not None and m.deadline < self.now:
                m.passage = "not_taken"

    def passage(self, point: Json, outcome: str) -> None:
        """A passage answers the oldest pending grant of its lane and direction; one without a grant is
        ``forced`` and counts a head."""
        if not self.has_sensor(point):
            return
        pending = [m for m in self.facts if m.passage == "pending" and m.point == point["name"]]
        if pending:
            min(pending, key=lambda m: m.at).passage = outcome
        elif outcome == "taken":
            forced = self.move(point, None, head=True)
            forced.passage = "forced"
            self.facts.append(forced)

    # --- replay -------------------------------------------------------------------------------------

    def repeat_delay(self, point: Json) -> timedelta:
        for reader in self.config.get("reader", []):
            if reader["point"] == point["name"]:
                return timedelta(seconds=reader.get("repeat_delay_s", 1.5))
        return timedelta(seconds=1.5)

    def is_repeat(self, point: Json, code: str) -> bool:
        """A scan less than ``repeat_delay_s`` after the last scan of that code at that reader. Each repeat
        starts the delay anew."""
        last = self.last_scans.get((point["name"], code))
        self.last_scans[(point["name"], code)] = self.now
        return last is not None and self.now - last < self.repeat_delay(point)

    def scan(self, line: Json, suspect: bool) -> Json:
        point = self.points[line["point"]]
        if self.is_repeat(point, line["code"]):
            answer = dict.fromkeys(self.answer("repeat"))
            answer.update(verdict="repeat", flags=[], guest=0)
        else:
            answer, move = self.judge(point, line["code"])
            if move is not None:
                self.facts.append(move)
            if suspect:
                answer = {**answer, "flags": ["clock_suspect", *answer["flags"]]}
        return {"at": line["at"], "point": line["point"], **answer}

    def run(self, lines: list[Json]) -> list[Json]:
        """Judges the lines of SCANS from the beginning; gives one line per scan, in order."""
        self.start()
        printed: list[Json] = []
        for line in lines:
            at = instant(line["at"])
            suspect = at < self.now
            self.now = max(at, self.now)
            self.time_out()
            if "mode" in line:
                (self.closed_lanes.add if line["mode"] == "closed" else self.closed_lanes.discard)(
                    line["lane"]
                )
            elif "passage" in line:
                self.passage(self.points[line["point"]], line["passage"])
            else:
                printed.append(self.scan(line, suspect))
        return printed


def replay(records: list[Json], config: Json, lines: list[Json]) -> list[Json]:
    """What ``gateway replay`` prints, by the oracle."""
    return Oracle(records, config).run(lines)
