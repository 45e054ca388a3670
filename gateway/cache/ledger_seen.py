"""Who may have moved lately: a Bloom filter of fixed size; a look-up of anybody else costs no query."""

from __future__ import annotations

from collections.abc import Iterable

CELLS = 1 << 20
"""Bytes of one filter. With 100,000 keys one look-up in 300 is answered "perhaps" for nothing."""
_LAST = CELLS - 1

_MASKS = tuple(1 << a | 1 << b for a in range(8) for b in range(a))
_MASKS += _MASKS[:4]  # 28 pairs of bits, filled up to 32
_NEVER = 1 << 62


class Seen:
    """Two filters, each complete from an instant on. Keys go into both; ``watch`` drops the older one.

    A key is two bits within one byte: one index operation each way. Not shared between threads.
    """

    __slots__ = ("_cells", "_next", "_next_since", "newest", "since", "wanted")

    def __init__(self, recent_from: int) -> None:
        self.wanted = recent_from
        self.since = _NEVER
        """All keys with a movement from this instant on are in the filter. Never, until ``fill``."""
        self.newest = -_NEVER
        """The latest movement that ever went in."""
        self._cells = bytearray(CELLS)
        self._next = bytearray(CELLS)
        self._next_since = _NEVER

    def add(self, person: str | None, entitlement: str | None, at: int) -> None:
        if person is not None:
            spread = hash(person)
            cell, mask = spread & CELLS - 1, _MASKS[spread >> 20 & 31]
            self._cells[cell] |= mask
            self._next[cell] |= mask
        if entitlement is not None:
            spread = hash(entitlement)
            cell, mask = spread & CELLS - 1, _MASKS[spread >> 20 & 31]
            self._cells[cell] |= mask
            self._next[cell] |= mask
        if at > self.newest:
            self.newest = at

    def maybe(self, key: str) -> bool:
        """False: certainly no movement of this person or entitlement from ``since`` on."""
        spread = hash(key)
        mask = _MASKS[spread >> 20 & 31]
        return self._cells[spread & CELLS - 1] & mask == mask

    def quiet(self, person: str, entitlement: str, since: int) -> bool:
        """Whether certainly neither has a movement from this instant on; never a query."""
        if since < self.since:
            return False
        cells = self._cells
        spread = hash(person)
        mask = _MASKS[spread >> 20 & 31]
        if cells[spread & _LAST] & mask == mask:
            return False
        spread = hash(entitlement)
        mask = _MASKS[spread >> 20 & 31]
        return cells[spread & _LAST] & mask != mask

    def fill(self, keys: Iterable[tuple[str | None, str | None]], newest: int) -> None:
        """Takes the persons and entitlements that moved from ``wanted`` on, before this run."""
        for person, entitlement in keys:
            self.add(person, entitlement, newest)
        self.newest = max(self.newest, newest)
        self.since = self._next_since = self.wanted

    def watch(self, recent_from: int) -> None:
        """Begins a filter of movements from this instant on, and drops the older of the two.

        The new one is asked from the next call on. Were the clock set back, it would have missed some: so it
        counts as complete only from the latest movement on that there was before it.
        """
        self.wanted = recent_from
        if self.since == _NEVER:
            return
        self._cells, self.since = self._next, self._next_since
        self._next, self._next_since = bytearray(CELLS), max(recent_from, self.newest + 1)
