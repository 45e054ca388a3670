"""What the time alone decides at one access point, kept for as long as it stays the same. Pure.

Which rules hold, which venue day it is and how far back judging must look do not change from one scan to the
next: hours are stated in minutes, and all else changes at known instants. So it is asked once a minute and
not at each scan, where it was two thirds of the work.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.model import MINUTE, Entitlement, Product
from gateway.rules import RuleAt
from gateway.venuetime import DAY, Calendar

_EVER = -(1 << 62)
_ANY = Entitlement("", None)
"""Stands for the entitlement where it makes no difference."""


@dataclass(slots=True)
class Plan:
    """A product's rules at the point, as they stand from ``Agenda.start`` until ``Agenda.end``."""

    product: Product
    rules: Sequence[RuleAt]
    """In the order listed."""
    on_time: Sequence[RuleAt]
    """Those of them that hold at this time (step e)."""
    first: RuleAt | None
    """The first that passes steps e to h where nothing has been used and the lane is open, where known."""
    hosts: bool
    """One of them lets guests in."""
    since: int
    """From when on any movement of a person or of an entitlement matters."""
    reach: int
    """From when on the movements of an entitlement are needed, where nothing is counted by term."""
    by_term: Sequence[RuleAt]
    """The rules that count by term: how far back depends on the entitlement."""

    def reaches(self, entitlement: Entitlement, now: int) -> int:
        """From when on this entitlement's movements are needed to judge at ``now``."""
        reach = self.reach
        for rule in self.by_term:
            reach = min(reach, rule.reach(entitlement, now, guests=False))
        return reach


class Agenda(dict[str | None, Plan | None]):
    """By product its plan; None where it has no rules here, or where there is no such product.

    ``turn`` to an instant before reading; good from ``start`` until ``end``, a minute at most."""

    __slots__ = (
        "_calendar",
        "_edges",
        "_longest",
        "_products",
        "_rules",
        "day",
        "end",
        "since",
        "start",
    )

    def __init__(
        self,
        calendar: Calendar,
        products: Mapping[str, Product],
        rules: Mapping[str, Sequence[RuleAt]],
        longest_presence: int,
    ) -> None:
        super().__init__()
        self._calendar = calendar
        self._products = products
        self._rules = rules
        self._longest = longest_presence
        self._edges = sorted({edge for listed in rules.values() for rule in listed for edge in rule.edges()})
        self.start = self.end = 0
        self.day = 0
        """The venue day."""
        self.since = 0
        """From when on a person's movements can mean that they are here, or have been let in with guests."""

    def turn(self, now: int) -> None:
        """Go to the stretch of time in which this instant lies."""
        calendar, edges = self._calendar, self._edges
        minute = now - (now + calendar.offset(now)) % MINUTE
        self.day = day = calendar.day(now)
        began = calendar.day_start(day)
        # An offset is good for a minute of UTC, which need not be one of local time.
        start = max(minute, now - now % MINUTE, began)
        end = min(minute, now - now % MINUTE) + MINUTE
        end = min(end, calendar.day_start(day + 1))
        place = bisect_right(edges, now)
        self.start = max(start, edges[place - 1]) if place else start
        self.end = min(end, edges[place]) if place < len(edges) else end
        self.since = min(began, self.start - DAY, self.start - self._longest)
        self.clear()

    def __missing__(self, product: str | None) -> Plan | None:
        plan = None
        if product is not None and product in self._rules:
            plan = self._plan(self._products[product], self._rules[product])
        self[product] = plan
        return plan

    def _plan(self, product: Product, rules: Sequence[RuleAt]) -> Plan:
        at = self.start
        counting = [rule for rule in rules if rule.counted]
        by_term = [rule for rule in counting if rule.by_term]
        reach = min((rule.reach(_ANY, at, guests=False) for rule in counting if not rule.by_term), default=at)
        on_time = [rule for rule in rules if rule.on_time(at)]
        return Plan(
            product,
            rules,
            on_time=on_time,
            first=None if by_term else next((rule for rule in on_time if not rule.never), None),
            hosts=any(rule.guests is not None for rule in rules),
            since=_EVER if by_term else min(self.since, reach),
            reach=reach,
            by_term=by_term,
        )
