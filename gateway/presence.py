"""Where people are, and how many: presence of one person, occupancy of the areas.

Presence is read off a person's movements in the order of their time, so that an event that arrives
late takes its place. Occupancy is kept by increments, because counting a full stadium at every scan is
not an option: holders by the instant at which their presence ends, and heads (guests and unknown
people) likewise. Pure: time and movements are arguments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gateway.model import OUTSIDE, Movement, Passage
from gateway.rules import World


class Stay(NamedTuple):
    """In which area somebody is, and until when if nothing else happens."""

    area: str
    until: int


NOWHERE = Stay(OUTSIDE, 0)


def ends(world: World, area: str, at: int) -> int:
    """When a presence that began at ``at`` ends by itself."""
    lasting = world.areas[area].presence
    if lasting is not None:
        return at + lasting
    return world.calendar.day_start(world.calendar.day(at) + 1)


def stay(
    world: World,
    movements: Sequence[Movement],
    cleared: Mapping[str, int],
    now: int,
) -> Stay:
    """Where a person is at ``now``: the area last seen in, or ``NOWHERE``.

    ``movements`` are the person's, in the order of their time. An entry that waits for its passage counts
    as made, an exit not yet. ``cleared`` says when an area was last declared empty.
    """
    here = NOWHERE
    for m in movements:
        if m.at > now or m.guest or m.passage is Passage.NOT_TAKEN:
            continue
        if m.passage is Passage.PENDING and world.areas.is_exit(m.from_, m.to):
            continue
        here = arrive(world, m)
        if cleared and any(m.at < cleared.get(a, m.at) <= now for a in world.areas[m.to].up):
            here = NOWHERE
    return here if here.until > now else NOWHERE


def arrive(world: World, m: Movement) -> Stay:
    """Where a person's own movement leads: presence is the area last seen in, wherever they were before."""
    return Stay(m.to, ends(world, m.to, m.at)) if m.to != OUTSIDE else NOWHERE


def is_in(world: World, here: Stay, area: str, at: int) -> bool:
    """Whether somebody who stays there is in an area (or in one within it) at an instant."""
    return here.until > at and here.area in world.areas[area].down


@dataclass(slots=True)
class _Heads:
    """Counts of one area by the instant at which they lapse."""

    holders: Counter[int]
    heads: Counter[int]
    missing: int = 0
    """Holders whom an unknown at the exit took out of the count: never more than are there."""
    lapses: int = 1 << 62
    """The earliest instant at which something lapses."""

    def add(self, which: Counter[int], until: int, n: int) -> None:
        which[until] += n
        if which[until] <= 0:
            del which[until]
        if self.missing:
            self.missing = min(self.missing, self.holders.total())
        if until < self.lapses:
            self.lapses = until

    def advance(self, now: int) -> None:
        if now < self.lapses:
            return
        counters = (self.holders, self.heads)
        for which in counters:
            for until in [u for u in which if u <= now]:
                del which[until]
        self.missing = min(self.missing, self.holders.total())
        self.lapses = min((until for which in counters for until in which), default=1 << 62)

    def count(self) -> int:
        return sum(self.holders.values()) + sum(self.heads.values()) - self.missing


def _take_one(which: Counter[int]) -> int | None:
    """Take out the one that would lapse first; when it would have, None where there is none."""
    if not which:
        return None
    first = min(which)
    which[first] -= 1
    if not which[first]:
        del which[first]
    return first


Taken = list[tuple[str, int | None]]
"""Whom a way out took from the counts of areas: a head, with when it would have lapsed, or (None) a
holder."""


class Occupancy:
    """How many people are in each area."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._areas: dict[str, _Heads] = {}

    def _at(self, area: str, now: int) -> _Heads:
        found = self._areas.get(area)
        if found is None:
            found = self._areas[area] = _Heads(Counter(), Counter())
        found.advance(now)
        return found

    def count(self, area: str, now: int) -> int:
        """How many are in the area, those whose entry is pending included."""
        return self._at(area, now).count()

    def move(self, before: Stay, after: Stay, now: int) -> None:
        """A holder's presence changes."""
        if before == after:
            return
        # First in, then out: who is seen again does not settle who it was that left unseen.
        for here, n in ((after, 1), (before, -1)):
            if here.until <= now:
                continue
            for area in self._world.areas[here.area].up:
                heads = self._at(area, now)
                heads.add(heads.holders, here.until, n)

    def head(self, from_: str, to: str, at: int, now: int, heads: int = 1) -> Taken:
        """Guests or unknown people go through: out of the areas left, into those entered.

        Leaving takes out a head if there is one, else one of the holders present from the count.
        """
        world = self._world
        up_from, up_to = world.areas[from_].up, world.areas[to].up
        until = ends(world, to, at) if to != OUTSIDE else 0
        taken: Taken = []
        for area in up_from:
            if area in up_to:
                continue
            here = self._at(area, now)
            for _ in range(heads):
                if (lapses := _take_one(here.heads)) is not None:
                    taken.append((area, lapses))
                elif here.missing < here.holders.total():
                    here.missing += 1
                    taken.append((area, None))
        for area in up_to:
            if area not in up_from and until > now:
                here = self._at(area, now)
                here.add(here.heads, until, heads)
        return taken

    def unhead(self, from_: str, to: str, at: int, now: int, taken: Taken) -> None:
        """The heads of ``head`` did not go through after all; ``taken`` is what it returned."""
        up_from = self._world.areas[from_].up
        until = ends(self._world, to, at) if to != OUTSIDE else 0
        for area in self._world.areas[to].up:
            here = self._at(area, now)
            if area not in up_from and here.heads[until] > 0:
                here.add(here.heads, until, -1)
        self.give_back(taken, now)

    def leave(self, before: Stay, from_: str, to: str, at: int, now: int) -> Taken:
        """A holder comes out of areas that the holder was not in: out of each of them goes a guest."""
        if from_ == OUTSIDE:
            return []
        world = self._world
        return [
            (area, lapses)
            for area in world.areas[from_].up
            if area not in world.areas[to].up
            and not is_in(world, before, area, at)
            and (lapses := _take_one(self._at(area, now).heads)) is not None
        ]

    def give_back(self, taken: Taken, now: int) -> None:
        """Whom somebody took out on a way that was not gone after all."""
        for area, lapses in taken:
            here = self._at(area, now)
            if lapses is None:
                here.missing = max(0, here.missing - 1)
            elif lapses > now:
                here.add(here.heads, lapses, 1)

    def clear(self, area: str, now: int) -> None:
        """Everybody in that area is outside, also of the areas that it lies within."""
        gone = self._at(area, now)
        for around in self._world.areas[area].up[1:]:
            here = self._at(around, now)
            here.holders -= gone.holders
            here.heads -= gone.heads
            here.missing = max(0, min(here.missing - gone.missing, here.holders.total()))
        for inner in self._world.areas[area].down:
            emptied = self._at(inner, now)
            emptied.holders.clear()
            emptied.heads.clear()
            emptied.missing = 0
