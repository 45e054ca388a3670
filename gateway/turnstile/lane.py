"""The lane as a state machine: grants, passages and time go in, what is to be done comes out.

Theory. A grant gives one person one passage, so three things must never happen: a second pulse for one
grant (some turnstiles count every pulse as one more person), a grant that is settled twice or not at all
(presence would be wrong for the rest of the day), and a passage that vanishes. The lane therefore owns
its grants from ``grant`` to ``Settled``. It keeps two lists: *open* grants, whose window is running (the
relay was pulsed for them, or is held on), and *waiting* grants, which have their pulse still to come.
It knows no clock: every call says when (``at``, microseconds of one monotonic scale), and
``next_deadline`` says when the lane wants to be called if nothing happens before.

    mode      grant                    passage                     time
    normal    idle: Pulse, open        oldest open grant of that   past the window: NOT_TAKEN;
              else: waiting (*)        direction: TAKEN; else      then the next waiting grant
                                       Forced                      is pulsed
    closed    as normal (the caller    as normal                   as normal
              decides who may)
    free      open, no Pulse: the      as normal; Forced is an     past the window: NOT_TAKEN
              relay is held on         anonymous passage
    -> closed waiting grants are NOT_TAKEN, open ones stay
    -> free   Hold(True), waiting grants become open without a pulse
    free ->   Hold(False), open grants stay; one that never had a pulse gets it when it is asked for again

(*) The policy for a second grant: ``queue`` as above; ``extend`` pulses at once, each grant with a window
of its own; ``refuse`` shows ``busy``, and the caller refuses before it records anything.

A lane without a sensor settles each grant as ASSUMED when it is pulsed; somebody is then taken to be
walking for as long as the pulse. Two pulses are kept apart by a gap, so that the turnstile sees two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from gateway.model import LaneMode, Passage

G = TypeVar("G")

MIN_GAP = 100_000
"""Microseconds between two pulses at least: the shortest input that the turnstiles we know accept."""


@dataclass(slots=True)
class Pulse(Generic[G]):
    """Pulse the relay once, for this grant."""

    grant: G


@dataclass(slots=True)
class Hold:
    """Hold the relay on (the lane is free), or let it go."""

    on: bool


@dataclass(slots=True)
class Settled(Generic[G]):
    """What became of a grant: ``TAKEN``, ``NOT_TAKEN`` or ``ASSUMED``. Said exactly once for each grant."""

    grant: G
    passage: Passage


@dataclass(slots=True)
class Forced:
    """A passage that no grant explains; in a free lane it is an anonymous passage, to be counted as a head.

    ``direction`` is as the sensor gave it: None where the lane has one sensor for both.
    """

    direction: str | None


Action = Pulse[G] | Hold | Settled[G] | Forced


@dataclass(slots=True, eq=False)
class _Entry(Generic[G]):
    grant: G
    direction: str | None
    pulsed: bool = False
    deadline: int = 0


class Lane(Generic[G]):
    """One lane. ``G`` is the caller's grant object, which the lane only hands back; it is told apart by
    identity. All times and durations are microseconds."""

    def __init__(
        self,
        name: str,
        *,
        pulse: int,
        timeout: int,
        sensor: bool,
        second_grant: Literal["queue", "extend", "refuse"],
        max_queued: int = 8,
    ) -> None:
        self.name = name
        self.mode = LaneMode.NORMAL
        self._pulse = pulse
        self._gap = max(pulse // 2, MIN_GAP)
        self._timeout = timeout
        self._sensor = sensor
        self._policy = second_grant
        self._max_queued = max_queued
        self._open: list[_Entry[G]] = []
        self._waiting: list[_Entry[G]] = []
        self._ready_at: int | None = None
        """When the contact has been off for long enough for the next pulse; None: it has been."""

    # --- what comes in ------------------------------------------------------------------------------

    def grant(self, grant: G, direction: str | None, at: int) -> list[Action[G]]:
        """A grant that is recorded, to be opened now or when the person before has gone through.

        ``direction`` is the access point's name; None is answered by a passage in any direction. The
        caller asks ``busy`` before it records; a grant given to a busy lane all the same waits its turn.
        """
        actions = self.tick(at)
        entry = _Entry(grant, direction)
        if self.mode is LaneMode.FREE:
            self._begin(entry, at, actions)
        elif self._policy == "extend":
            self._give_pulse(entry, at, actions)
        else:
            self._waiting.append(entry)
            self._promote(at, actions)
        return actions

    def open_once(self, grant: G, direction: str | None, at: int) -> list[Action[G]]:
        """Opened by hand: one passage in any mode, in its turn like every other grant."""
        return self.grant(grant, direction, at)

    def again(self, grant: G, at: int) -> list[Action[G]]:
        """The same grant again: its window begins anew, and there is no second pulse for it.

        A waiting grant keeps its place. One that is settled already is not known here any more: nothing
        happens. One that was given while the lane was free, and was not used, gets its one pulse now.
        """
        actions = self.tick(at)
        for entry in self._open:
            if entry.grant is grant:
                if entry.pulsed or self.mode is LaneMode.FREE:
                    entry.deadline = at + self._timeout
                else:
                    self._open.remove(entry)
                    self._waiting.insert(0, entry)
                    self._promote(at, actions)
                break
        return actions

    def passed(self, direction: str | None, at: int) -> list[Action[G]]:
        """The sensor fired at ``at``: somebody went through. ``direction`` None: the lane's one sensor.

        Answers the oldest open grant of that direction, also exactly at the end of its window. A grant
        that is only now pulsed cannot be what this person used, so waiting ones come after.
        """
        actions: list[Action[G]] = []
        self._expire(at, actions)
        entry = self._oldest(direction)
        if entry is None:
            actions.append(Forced(direction))
        else:
            self._settle(entry, Passage.TAKEN, actions)
        self._promote(at, actions)
        return actions

    def not_taken(self, direction: str | None, at: int) -> list[Action[G]]:
        """Reported from outside (replay): the oldest open grant of that direction was not used."""
        actions: list[Action[G]] = []
        self._expire(at, actions)
        entry = self._oldest(direction)
        if entry is not None:
            self._settle(entry, Passage.NOT_TAKEN, actions)
        self._promote(at, actions)
        return actions

    def withdraw(self, grant: G, at: int) -> list[Action[G]]:
        """Take one grant back (its pulse failed, or it is annulled): NOT_TAKEN if it is not settled yet."""
        actions: list[Action[G]] = []
        for entries in (self._open, self._waiting):
            for entry in entries:
                if entry.grant is grant:
                    entries.remove(entry)
                    actions.append(Settled(grant, Passage.NOT_TAKEN))
                    self._promote(at, actions)
                    return actions
        return actions

    def tick(self, at: int) -> list[Action[G]]:
        """Time has come to ``at``: windows that are over are closed, the next waiting grant is pulsed.

        Windows of grants pulsed by this call begin at ``at``. Whoever runs on recorded time calls this at
        every ``next_deadline`` before the time of what comes next.
        """
        actions: list[Action[G]] = []
        self._expire(at, actions)
        self._promote(at, actions)
        return actions

    def set_mode(self, mode: LaneMode, at: int) -> list[Action[G]]:
        """Set normal, closed or free; the mode that it has already does nothing."""
        actions = self.tick(at)
        if mode is self.mode:
            return actions
        was, self.mode = self.mode, mode
        if was is LaneMode.FREE:
            actions.append(Hold(False))
            self._ready_at = at + self._gap
        if mode is LaneMode.FREE:
            actions.append(Hold(True))
            self._ready_at = None
        waiting, self._waiting = self._waiting, []
        for entry in waiting:
            if mode is LaneMode.CLOSED:
                actions.append(Settled(entry.grant, Passage.NOT_TAKEN))
            elif mode is LaneMode.FREE:
                self._begin(entry, at, actions)
            else:
                self._waiting.append(entry)
        return actions

    # --- what can be seen ---------------------------------------------------------------------------

    @property
    def next_deadline(self) -> int | None:
        """The earliest time at which ``tick`` has something to do; None: nothing until something happens."""
        if not self._open:
            return self._ready_at
        times = [entry.deadline + 1 for entry in self._open]
        if self._ready_at is not None and self._policy == "refuse":
            times.append(self._ready_at)
        return min(times)

    @property
    def busy(self) -> bool:
        """A further grant is to be refused: somebody is walking (policy refuse), or the queue is full.

        As of the last call; call ``tick`` first. A free lane is never busy.
        """
        if not self._waiting and self._policy != "refuse":
            return False
        if self.mode is LaneMode.FREE or self._policy == "extend":
            return False
        if self._policy == "refuse":
            return bool(self._open or self._waiting) or self._ready_at is not None
        return len(self._waiting) >= self._max_queued

    @property
    def ready_at(self) -> int | None:
        """When the contact will have been off for long enough after its last pulse. None, or a time that is
        past: it has been."""
        return self._ready_at

    @property
    def pending(self) -> list[G]:
        """The grants that are not settled: the open ones, then the waiting ones, each in their order."""
        return [entry.grant for entry in (*self._open, *self._waiting)]

    # --- inside -------------------------------------------------------------------------------------

    def _oldest(self, direction: str | None) -> _Entry[G] | None:
        for entry in self._open:
            if direction is None or entry.direction is None or entry.direction == direction:
                return entry
        return None

    def _settle(self, entry: _Entry[G], passage: Passage, actions: list[Action[G]]) -> None:
        self._open.remove(entry)
        actions.append(Settled(entry.grant, passage))

    def _begin(self, entry: _Entry[G], at: int, actions: list[Action[G]]) -> None:
        """The way is open for this grant: wait for the passage, or take it as made."""
        if self._sensor:
            entry.deadline = at + self._timeout
            self._open.append(entry)
        else:
            actions.append(Settled(entry.grant, Passage.ASSUMED))

    def _give_pulse(self, entry: _Entry[G], at: int, actions: list[Action[G]]) -> None:
        entry.pulsed = True
        self._ready_at = at + self._pulse + self._gap
        actions.append(Pulse(entry.grant))
        self._begin(entry, at, actions)

    def _expire(self, at: int, actions: list[Action[G]]) -> None:
        if self._ready_at is not None and at >= self._ready_at:
            self._ready_at = None
        if self._open:
            for entry in [entry for entry in self._open if at > entry.deadline]:
                self._settle(entry, Passage.NOT_TAKEN, actions)

    def _promote(self, at: int, actions: list[Action[G]]) -> None:
        """Pulse the first waiting grant once nobody is walking and the contact has been off long enough.

        With ``extend`` a grant waits only between a free lane's end and its first pulse; then it goes
        at once like every other there.
        """
        while self._waiting and (self._policy == "extend" or (not self._open and self._ready_at is None)):
            self._give_pulse(self._waiting.pop(0), at, actions)
