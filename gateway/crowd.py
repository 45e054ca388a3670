"""Who is where, as it comes about: keeps occupancy in step with movements and clears.

Movements come in three ways: as this gate grants and settles, late (usage of another gate, told after the
fact), and early (dated later than now, kept until their time comes). Each takes its place by its time. A
pending entry counts like one that was made, and is undone if it was not; a pending exit does not count yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from itertools import count

from gateway.decide import History
from gateway.model import Movement, Passage
from gateway.presence import NOWHERE, Occupancy, Stay, Taken, arrive, stay
from gateway.world import World


class Crowd:
    """Occupancy of all areas, and presence of one person on demand."""

    def __init__(self, world: World, past: History, cleared: dict[str, int]) -> None:
        """``cleared``: when an area was last declared empty; shared with the judgement."""
        self._past = past
        self._cleared = cleared
        self._later: list[tuple[int, int, Movement]] = []
        self._order = count()
        self._taken: dict[int, Taken] = {}
        """What pending movements took from the counts, by identity, until they are settled."""
        self._unheard: set[str | None] = set()
        """Usage that is being counted, and whose turn has not come."""
        self._world = world
        self.occupancy = Occupancy(world)
        """How many people are where: those inside, and those whose entry is pending."""

    def use(self, world: World) -> None:
        """Judge by this world; if areas or calendar are others, or usage is, ``rebuild`` must follow."""
        self._world = world
        self.occupancy.use(world)

    def count(self, area: str, now: int) -> int:
        """Occupancy: those inside, and those whose entry is pending."""
        return self.occupancy.count(area, now)

    # --- from all that happened ------------------------------------------------------------------

    def rebuild(self, movements: Iterable[Movement], now: int) -> None:
        """Reckon anew from all movements that can still mean presence, in the order of time."""
        self.occupancy.reset(self._world)
        self._later = []
        here: dict[str, Stay] = {}
        clears = sorted((at, area) for area, at in self._cleared.items() if at <= now)
        for m in movements:
            if m.at > now:
                heappush(self._later, (m.at, next(self._order), m))
                continue
            while clears and clears[0][0] <= m.at:
                self._clear(here, *clears.pop(0))
            if self._counts(m):
                self._pass(here, m)
        for at, area in clears:
            self._clear(here, at, area)

    def _pass(self, here: dict[str, Stay], m: Movement) -> None:
        """Count a movement at its own time; ``here`` says where people are and is kept up to date."""
        if m.person is None or m.guest:
            if _is_head(m):
                self.occupancy.head(m.from_, m.to, m.at, m.at, m.entries)
            return
        before, after = here.get(m.person, NOWHERE), arrive(self._world, m)
        self.occupancy.leave(before, m.from_, m.to, m.at, m.at)
        self.occupancy.move(before, after, m.at)
        here[m.person] = after

    def _clear(self, here: dict[str, Stay], at: int, area: str) -> None:
        self.occupancy.clear(area, at)
        for person in [p for p, s in here.items() if s.area in self._world.areas[area].down]:
            here[person] = NOWHERE

    # --- as it happens -------------------------------------------------------------------------------

    def happened(self, movements: Sequence[Movement], now: int) -> None:
        """Usage that has just become known takes its place by its time. All of it is in the past already, but
        is counted one after the other: what is still to come has not happened for those before."""
        self._unheard = {m.source for m in movements}
        for m in sorted(movements, key=_at):
            self._unheard.discard(m.source)
            if m.at > now:
                heappush(self._later, (m.at, next(self._order), m))
            elif self._counts(m):
                self.apply(m, now)

    def catch_up(self, now: int) -> None:
        """Movements that were dated later than now and have come about: one instant after the other."""
        while self._later and self._later[0][0] <= now:
            at = self._later[0][0]
            here: dict[str, Stay] = {}
            while self._later and self._later[0][0] == at:
                m = heappop(self._later)[2]
                if not self._counts(m):
                    continue
                if m.person is not None and m.person not in here:
                    earlier = self._past.person(m.person, self._world.presence_since(at))
                    here[m.person] = self._stay([e for e in earlier if e.at < at], at)
                self._pass(here, m)

    def apply(self, m: Movement, now: int) -> None:
        """A movement changes who is where, also one that is told of late. Pending ones must be given to
        ``settle`` later."""
        taken = self._apply(m, now)
        if m.passage is Passage.PENDING:
            self._taken[id(m)] = taken

    def _apply(self, m: Movement, now: int) -> Taken:
        occupancy = self.occupancy
        since = self._world.presence_since(now)
        if m.at < since:
            return []
        if m.person is None or m.guest:
            return occupancy.head(m.from_, m.to, m.at, now, m.entries) if _is_head(m) else []
        movements = self._past.person(m.person, since)
        others = [o for o in movements if not _same(o, m)] if movements else movements
        if self._unheard:
            others = [o for o in others if o.source is None or o.source not in self._unheard]
        if not others:
            taken = occupancy.leave(NOWHERE, m.from_, m.to, m.at, now)
            occupancy.move(NOWHERE, self._stay((m,), now), now)
            return taken
        then = self._stay([o for o in others if o.at <= m.at], m.at)
        taken = occupancy.leave(then, m.from_, m.to, m.at, now)
        before = self._stay(others, now)
        after = self._stay(sorted((*others, m), key=_at), now)
        occupancy.move(before, after, now)
        return taken

    def settle(self, m: Movement, passage: Passage, now: int) -> None:
        """What became of a pending movement: it says so from now on, and counts accordingly."""
        taken = self._taken.pop(id(m), None)
        if passage is Passage.NOT_TAKEN:
            if taken is not None:
                self.undo(m, now, taken)
            m.passage = passage
        else:
            m.passage = passage
            if taken is None:  # an exit, or a lane opened by hand: it did not count while it was pending
                self.apply(m, now)

    def undo(self, m: Movement, now: int, taken: Taken | None = None) -> None:
        """A movement that was counted was not made; to be called before it says so. ``taken``: whom it took
        out of the counts, where that is still known."""
        if m.person is None or m.guest:
            if _is_head(m):
                for gone in self.occupancy.unhead(m.from_, m.to, m.at, now, taken or []):
                    self._forget(gone)
            return
        movements = self._past.person(m.person, self._world.presence_since(now))
        others = [o for o in movements if not _same(o, m)]
        self.occupancy.move(self._stay(movements, now), self._stay(others, now), now)
        self.occupancy.give_back(taken or [], now)
        for e in others:
            if m.at <= e.at <= now and not e.guest and self._counts(e):
                # Whoever left later was perhaps let out as the one who, it turns out, never came in.
                thought = self._stay([o for o in movements if o.at <= e.at and o is not e], e.at)
                was = self._stay([o for o in others if o.at <= e.at and o is not e], e.at)
                self.occupancy.leave(was, e.from_, e.to, e.at, now, thought)

    def _forget(self, gone: tuple[str, int | None]) -> None:
        """A head that was not there after all is not given back by the pending way out that took it."""
        for taken in self._taken.values():
            if gone in taken:
                taken.remove(gone)
                return

    def clear(self, area: str, now: int, at: int) -> None:
        """Everybody in that area is outside; ``at`` is what is recorded as the time of it."""
        self._cleared[area] = at
        self.occupancy.clear(area, now)

    def _counts(self, m: Movement) -> bool:
        """Whether a movement counts, as far as is known."""
        if m.passage is Passage.PENDING:
            return not self._world.areas.is_exit(m.from_, m.to)
        return m.passage is not Passage.NOT_TAKEN

    def _stay(self, movements: Sequence[Movement], now: int) -> Stay:
        if not movements:
            return NOWHERE
        return stay(self._world, movements, self._cleared, now)


def _at(movement: Movement) -> int:
    return movement.at


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
