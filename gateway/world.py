"""The venue as the judgement sees it: its records compiled for the access points of this gateway."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gateway.agenda import Agenda
from gateway.areas import Areas
from gateway.model import Area, Event, Point, Product, Venue
from gateway.rules import RuleAt
from gateway.venuetime import Calendar


@dataclass(slots=True)
class PointAt:
    """An access point with all that its scans are judged by."""

    point: Point
    exit: bool
    to_down: frozenset[str]
    capacities: tuple[tuple[str, int], ...]
    """The to-area and those it lies within that have a capacity, but for those that contain the from-area."""
    capacities_holder: tuple[tuple[str, int], ...]
    """The same with those that contain the from-area: a holder may be recorded as being elsewhere."""
    agenda: Agenda
    """What the time alone decides of all this."""


class World:
    """What the central said of the venue, compiled for the points of this gateway."""

    def __init__(
        self,
        venue: Venue,
        areas: Iterable[Area],
        events: Iterable[Event],
        products: Iterable[Product],
        points: Iterable[Point],
    ) -> None:
        self.venue = venue
        self.calendar = Calendar(venue.timezone, venue.day_starts)
        self.areas = Areas(areas)
        self.products = {p.id: p for p in products}
        events = tuple(events)
        self.points = {p.name: self._compile(p, events) for p in points}

    def _compile(self, point: Point, events: Sequence[Event]) -> PointAt:
        areas = self.areas
        to, from_ = areas[point.to], areas[point.from_]
        rules = {
            product.id: compiled
            for product in self.products.values()
            if (
                compiled := tuple(
                    RuleAt(rule, point, areas, events, self.calendar)
                    for rule in product.rules
                    if (rule.points is None or point.name in rule.points)
                    and (rule.areas is None or point.to in areas.inside(rule.areas))
                )
            )
        }
        limited = areas.capacities(point.to)
        return PointAt(
            point,
            areas.is_exit(point.from_, point.to),
            to.down,
            tuple((a, c) for a, c in limited if a not in from_.up),
            limited,
            Agenda(self.calendar, self.products, rules, areas.longest_presence),
        )

    def presence_since(self, at: int) -> int:
        """From when on a person's movements can still mean presence at ``at``."""
        start = self.calendar.day_start(self.calendar.day(at))
        return min(start, at - self.areas.longest_presence)
