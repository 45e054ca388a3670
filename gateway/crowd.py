"""Who is where, as it comes about: keeps occupancy in step with movements, pending entries and clears.

Movements come in three ways: as this gate settles its grants, late (usage of another gate, told after the
fact), and early (dated later than now, kept until their time comes). Each takes its place by its time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from gateway.decide import History
from gateway.model import Movement, Passage
from gateway.presence import NOWHERE, Occupancy, Stay, arrive, ends, stay
from gateway.rules import World


@dataclass(slots=True, eq=False)
class Pending:
    """An entry that waits for its passage. ``person`` is None for a guest or an unknown."""

    person: str | None
    from_: str
    to: str
    until: int = 0
    """When the presence that it leads to would end."""
    areas: tuple[str, ...] = ()
    """Those in which it counts as one more."""


class Crowd:
    """Occupancy of all areas, and presence of one person on demand."""

    def __init__(self, world: World, past: History, cleared: dict[str, int]) -> None:
        """``cleared``: when an area was last declared empty; shared with the judgement."""
        self._past = past
        self._cleared = cleared
        self._later: list[tuple[int, int, Movement]] = []
        self._order = count()
        self._pending: dict[str | None, list[Pending]] = {}
        self._world = world
        self._occupancy = Occupancy(world)

    def use(self, world: World) -> None:
        """Areas or calendar are others now; to be followed by ``rebuild``."""
        self._world = world

    def count(self, area: str, now: int) -> int:
        """Occupancy for capacity: those inside and those whose entry is pending."""
        return self._occupancy.count(area, now)

    def present(self, area: str, now: int) -> int:
        """Occupancy without pending entries."""
        return self._occupancy.present(area, now)

    # --- from all that happened ------------------------------------------------------------------

    def rebuild(self, movements: Iterable[Movement], now: int) -> None:
        """Reckon anew from all movements that can still mean presence, in the order of time."""
        occupancy = self._occupancy = Occupancy(self._world)
        self._later = []
        here: dict[str, Stay] = {}
        clears = sorted((at, area) for area, at in self._cleared.items() if at <= now)
        for m in movements:
            if m.at > now:
                heappush(self._later, (m.at, next(self._order), m))
                continue
            while clears and clears[0][0] <= m.at:
                self._clear(here, *clears.pop(0))
            if _made(m):
                self._pass(here, m)
        for at, area in clears:
            self._clear(here, at, area)
        for waiting in self._pending.values():
            for pending in waiting:
                occupancy.pend(pending.areas, pending.until, 1, now)

    def _pass(self, here: dict[str, Stay], m: Movement) -> None:
        """Count a movement at its own time; ``here`` says where people are and is kept up to date."""
        if m.person is None or m.guest:
            if _is_head(m):
                self._occupancy.head(m.from_, m.to, m.at, m.at, m.entries)
            return
        before, after = here.get(m.person, NOWHERE), arrive(self._world, m)
        self._occupancy.leave(before, m.from_, m.to, m.at, m.at)
        self._occupancy.move(before, after, m.at)
        here[m.person] = after

    def _clear(self, here: dict[str, Stay], at: int, area: str) -> None:
        self._occupancy.clear(area, at)
        for person in [p for p, s in here.items() if s.area in self._world.areas[area].down]:
            here[person] = NOWHERE

    # --- as it happens -------------------------------------------------------------------------------

    def happened(self, m: Movement, now: int) -> None:
        """Usage that has just become known takes its place by its time."""
        if m.at > now:
            heappush(self._later, (m.at, next(self._order), m))
        elif _made(m):
            self.apply(m, now)

    def catch_up(self, now: int) -> None:
        """Movements that were dated later than now and have come about: one instant after the other."""
        while self._later and self._later[0][0] <= now:
            at = self._later[0][0]
            here: dict[str, Stay] = {}
            while self._later and self._later[0][0] == at:
                m = heappop(self._later)[2]
                if not _made(m):
                    continue
                if m.person is not None and m.person not in here:
                    earlier = self._past.person(m.person, self._world.presence_since(at))
                    here[m.person] = self._stay([e for e in earlier if e.at < at], at)
                self._pass(here, m)

    def apply(self, m: Movement, now: int) -> None:
        """A movement that was made changes who is where, also one that is told of late."""
        world, occupancy = self._world, self._occupancy
        since = world.presence_since(now)
        if m.at < since:
            return
        if m.person is None or m.guest:
            if _is_head(m):
                occupancy.head(m.from_, m.to, m.at, now, m.entries)
            return
        others = [o for o in self._past.person(m.person, since) if not _same(o, m)]
        if not others:
            occupancy.leave(NOWHERE, m.from_, m.to, m.at, now)
            occupancy.move(NOWHERE, self._stay([m], now), now)
            return
        then = self._stay([o for o in others if o.at <= m.at], m.at)
        occupancy.leave(then, m.from_, m.to, m.at, now)
        before = self._stay(others, now)
        after = self._stay(sorted((*others, m), key=_at), now)
        occupancy.move(before, after, now)

    def undo(self, m: Movement, now: int) -> None:
        """A movement that was counted turns out not to have been made; to be called before it says so."""
        if m.person is None or m.guest:
            self._occupancy.unhead(m.from_, m.to, m.at, now)
            return
        movements = self._past.person(m.person, self._world.presence_since(now))
        others = [o for o in movements if not _same(o, m)]
        self._occupancy.move(self._stay(movements, now), self._stay(others, now), now)

    def clear(self, area: str, now: int, at: int) -> None:
        """Everybody in that area is outside; ``at`` is what is recorded as the time of it."""
        self._cleared[area] = at
        self._occupancy.clear(area, now)

    # --- pending entries -------------------------------------------------------------------------------

    def wait(self, pending: Pending, now: int) -> None:
        """An entry waits for its passage and counts like one that was made."""
        pending.until = ends(self._world, pending.to, now)
        self._pending.setdefault(pending.person, []).append(pending)
        self._recount(pending.person, now)

    def done(self, pending: Pending, now: int) -> None:
        """It waits no longer, whatever became of it; after ``apply`` where it was made."""
        waiting = self._pending[pending.person]
        waiting.remove(pending)
        self._set(pending, (), now)
        if waiting:
            self._recount(pending.person, now)
        else:
            del self._pending[pending.person]

    def _recount(self, person: str | None, now: int) -> None:
        """A person counts once in an area, however many of their entries into it are pending."""
        areas = self._world.areas
        if person is None:
            pending = self._pending[None][-1]
            outer = areas[pending.from_].up
            if not pending.areas:
                self._set(pending, [a for a in areas[pending.to].up if a not in outer], now)
            return
        movements = self._past.person(person, self._world.presence_since(now))
        counted = set(areas[self._stay(movements, now).area].up)
        for pending in self._pending[person]:
            into = [a for a in areas[pending.to].up if a not in counted]
            self._set(pending, into, now)
            counted.update(into)

    def _set(self, pending: Pending, areas: Sequence[str], now: int) -> None:
        self._occupancy.pend(pending.areas, pending.until, -1, now)
        self._occupancy.pend(areas, pending.until, 1, now)
        pending.areas = tuple(areas)

    def _stay(self, movements: Sequence[Movement], now: int) -> Stay:
        if not movements:
            return NOWHERE
        return stay(self._world, movements, self._cleared, now, pending=False)


def _at(movement: Movement) -> int:
    return movement.at


def _made(m: Movement) -> bool:
    """Whether somebody went through, as far as is known."""
    return m.passage is not Passage.NOT_TAKEN and m.passage is not Passage.PENDING


def _is_head(m: Movement) -> bool:
    """Whether a movement without a presence of its own counts a head: not where it names an entitlement
    alone, which says what was used and not who came (DESIGN.md 4.4)."""
    return m.person is not None or m.entitlement is None


def _same(a: Movement, b: Movement) -> bool:
    """Whether two values tell of one movement."""
    if a is b:
        return True
    if a.seq is not None or b.seq is not None:
        return a.seq == b.seq and a.source == b.source
    return a.source is not None and a.source == b.source
