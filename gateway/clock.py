"""Which time to judge by when the clock may be wrong (DESIGN.md 4.2, "The clock"). Pure.

A Raspberry Pi before the fifth has no clock of its own and wakes up in the past. The newest time that
this gateway has reason to trust is a floor: it goes on with the monotonic clock, and a wall clock behind
it is not believed.
"""

from __future__ import annotations

from gateway.venuetime import DAY


class TrustedClock:
    """The floor under the wall clock. All times in microseconds."""

    __slots__ = ("_floor", "_learned", "_slack", "suspect")

    def __init__(self, floor: int | None, monotonic: int, *, slack: int = 0) -> None:
        """``floor``: the newest trusted instant known at start, ``slack``: how far the wall clock may be
        stepped back by its synchronisation without being called suspect."""
        self._floor = floor
        self._learned = monotonic
        self._slack = slack
        self.suspect = False

    def peek(self, wall: int, monotonic: int) -> int:
        """The instant to judge by now, learning nothing."""
        return wall if self._floor is None else max(wall, self._floor + (monotonic - self._learned))

    def read(self, wall: int, monotonic: int, *, synchronised: bool) -> int:
        """The instant to judge by; ``suspect`` then says whether the clock was to be believed."""
        floor = None if self._floor is None else self._floor + (monotonic - self._learned)
        if floor is not None and wall < floor:
            self.suspect = floor - wall > self._slack
            return floor
        self.suspect = floor is not None and wall > floor + DAY and not synchronised
        if synchronised:
            self._floor, self._learned = wall, monotonic
        return wall

    def trust(self, at: int, monotonic: int) -> None:
        """A time that somebody trusted has signed: it replaces the floor, also by an earlier one."""
        self._floor, self._learned = at, monotonic
