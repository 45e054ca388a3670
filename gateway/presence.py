"""Where people are, and how many: presence of one person, occupancy of the areas.

Presence is read off a person's movements in the order of their time, so that an event that arrives
late takes its place. Occupancy is kept by increments, because counting a full stadium at every scan is
not an option: holders by the instant at which their presence ends, and heads (guests and unknown
people) likewise. Pure: time and movements are arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

from gateway.model import OUTSIDE, Movement, Passage
from gateway.world import World


class Stay(NamedTuple):
    """In which area somebody is, and until when if nothing else happens."""

    area: str
    until: int


_NEVER = 1 << 62
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


class _Tally:
    """How many there are, by the instant at which they lapse. ``total`` is kept, for every scan asks it."""

    __slots__ = ("_by_until", "_order", "total")

    def __init__(self) -> None:
        self.total = 0
        self._by_until: dict[int, int] = {}
        self._order: list[int] = []
        """The instants as a heap. One of which nobody is left stays until its turn: none is in it twice."""

    def add(self, until: int, n: int) -> None:
        """``n`` more or fewer who lapse then, never fewer than none."""
        there = self._by_until.get(until)
        if there is None:
            there = 0
            heappush(self._order, until)
        n = max(n, -there)
        self._by_until[until] = there + n
        self.total += n

    def lapse(self, now: int) -> None:
        order = self._order
        while order and order[0] <= now:
            self.total -= self._by_until.pop(heappop(order))

    def has(self, until: int) -> bool:
        """Whether anybody lapses then."""
        return self._by_until.get(until, 0) > 0

    def next(self) -> int:
        """The earliest instant at which something lapses."""
        return self._order[0] if self._order else _NEVER

    def take(self) -> int | None:
        """Take out the one that would lapse first; when it would have, None where there is none."""
        while self.total:
            first = self._order[0]
            if self._by_until[first]:
                self.add(first, -1)
                return first
            del self._by_until[heappop(self._order)]
        return None

    def take_all(self, gone: _Tally) -> None:
        """Take out as many as are in the other."""
        for until, n in gone._by_until.items():
            self.add(until, -n)

    def clear(self) -> None:
        self.total = 0
        self._by_until.clear()
        self._order.clear()


class _Heads:
    """Who is in one area."""

    __slots__ = ("heads", "holders", "lapses", "missing")

    def __init__(self) -> None:
        self.holders = _Tally()
        self.heads = _Tally()
        self.missing = 0
        """Holders whom an unknown at the exit took out of the count: never more than are there."""
        self.lapses = _NEVER
        """The earliest instant at which something lapses."""

    def add(self, which: _Tally, until: int, n: int) -> None:
        which.add(until, n)
        if self.missing > self.holders.total:
            self.missing = self.holders.total
        if until < self.lapses:
            self.lapses = until

    def advance(self, now: int) -> None:
        self.holders.lapse(now)
        self.heads.lapse(now)
        self.missing = min(self.missing, self.holders.total)
        self.lapses = min(self.holders.next(), self.heads.next())


Taken = list[tuple[str, int | None]]
"""Whom a way out took from the counts of areas: a head, with when it would have lapsed, or (None) a
holder."""


class Occupancy:
    """How many people are in each area."""

    def __init__(self, world: World) -> None:
        self._areas: dict[str, _Heads] = {}
        self.reset(world)

    def reset(self, world: World) -> None:
        """Nobody is anywhere, in this world."""
        self._world = world
        self._areas.clear()

    def use(self, world: World) -> None:
        """The rules are others, areas and calendar are the same: everybody stays."""
        self._world = world

    def _at(self, area: str, now: int) -> _Heads:
        found = self._areas.get(area)
        if found is None:
            found = self._areas[area] = _Heads()
        if now >= found.lapses:
            found.advance(now)
        return found

    def full(self, capacities: Iterable[tuple[str, int]], now: int) -> bool:
        """Whether one of these areas holds as many as it may."""
        for area, capacity in capacities:
            here = self._areas.get(area) or self._at(area, now)
            if now >= here.lapses:
                here.advance(now)
            if here.holders.total + here.heads.total - here.missing >= capacity:
                return True
        return False

    def count(self, area: str, now: int) -> int:
        """How many are in the area, those whose entry is pending included."""
        here = self._at(area, now)
        return here.holders.total + here.heads.total - here.missing

    def move(self, before: Stay, after: Stay, now: int) -> None:
        """A holder's presence changes."""
        if before == after:
            return
        # First in, then out: who is seen again does not settle who it was that left unseen.
        if after.until > now:
            self._add(after, 1, now)
        if before.until > now:
            self._add(before, -1, now)

    def _add(self, here: Stay, n: int, now: int) -> None:
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
                if (lapses := here.heads.take()) is not None:
                    taken.append((area, lapses))
                elif here.missing < here.holders.total:
                    here.missing += 1
                    taken.append((area, None))
        for area in up_to:
            if area not in up_from and until > now:
                here = self._at(area, now)
                here.add(here.heads, until, heads)
        return taken

    def unhead(self, from_: str, to: str, at: int, now: int, taken: Taken) -> Taken:
        """The heads of ``head`` did not go through after all; ``taken`` is what it returned. Returns those
        that are not there any more, because somebody took them out meanwhile."""
        up_from = self._world.areas[from_].up
        until = ends(self._world, to, at) if to != OUTSIDE else 0
        gone: Taken = []
        for area in self._world.areas[to].up:
            here = self._at(area, now)
            if area not in up_from and until > now:
                if here.heads.has(until):
                    here.add(here.heads, until, -1)
                else:
                    gone.append((area, until))
        self.give_back(taken, now)
        return gone

    def leave(
        self, before: Stay, from_: str, to: str, at: int, now: int, thought: Stay | None = None
    ) -> Taken:
        """A holder comes out of areas that the holder was not in: out of each of them goes a guest.

        ``thought``: where the holder was taken to be until now; only what is news changes anything.
        """
        if from_ == OUTSIDE:
            return []
        world = self._world
        return [
            (area, lapses)
            for area in world.areas[from_].up
            if area not in world.areas[to].up
            and not is_in(world, before, area, at)
            and (thought is None or is_in(world, thought, area, at))
            and (lapses := self._at(area, now).heads.take()) is not None
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
            here.holders.take_all(gone.holders)
            here.heads.take_all(gone.heads)
            here.missing = max(0, min(here.missing - gone.missing, here.holders.total))
        for inner in self._world.areas[area].down:
            emptied = self._at(inner, now)
            emptied.holders.clear()
            emptied.heads.clear()
            emptied.missing = 0
