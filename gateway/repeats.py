"""What a reader remembers of the codes that it was shown lately. Pure: time comes in as an argument."""

from __future__ import annotations

_RECENT = 256
"""Codes remembered per reader for repeats; the oldest is forgotten beyond."""


class Repeats:
    """A phone held still is one scan, however long it is held (DESIGN.md 4.2, "Repeats")."""

    __slots__ = ("_delay", "_last")

    def __init__(self, delay: int) -> None:
        self._delay = delay
        self._last: dict[bytes, int] = {}

    def seen(self, payload: bytes, at: int) -> bool:
        """Whether this scan repeats the last one of its code; either way the delay begins anew."""
        last = self._last.pop(payload, None)
        self._last[payload] = at
        if len(self._last) > _RECENT:
            del self._last[next(iter(self._last))]
        return last is not None and at - last < self._delay


class Tries:
    """Unknown codes at one reader: more than so many a minute is somebody trying codes."""

    __slots__ = ("_at", "_left", "_rate")

    def __init__(self, per_minute: int) -> None:
        self._rate = per_minute
        self._left = float(per_minute)
        self._at = 0

    def excess(self, at: int) -> bool:
        """Note an unknown code; whether it is one too many."""
        self._left = min(self._rate, self._left + (at - self._at) * self._rate / 60e6)
        self._at = at
        if self._left < 1:
            return True
        self._left -= 1
        return False
