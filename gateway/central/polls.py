"""Gateways that wait for news, and the news that they wait for: read once, whoever asks.

At a commit two hundred gateways want the same page at the same moment. What does not depend on who asks (the
page behind a cursor) is read from the store once and kept until the venue's log moves; a gateway that waits
costs a future, and one that is woken costs no visit to the store.

Everything here runs on the loop; only the function that reads a page runs in the store's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cached_property

import msgpack  # type: ignore[import-untyped]
import orjson

_WAITING = 4
"""Polls of one gateway that may wait at a time. One is usual, more are left over from cut connections, or are
a cloned card; with too many, the oldest is answered."""
Key = tuple[str | None, str, tuple[str, ...] | None]
"""For whom (None: for all), from which cursor, and who knows which keys."""
_CURSORS = 100
"""Pages of a venue that are kept. Gateways that keep up share one; the largest take half a megabyte each."""


@dataclass(frozen=True)
class Page:
    """What stands behind a cursor in a venue's log."""

    history: str
    gone: bool = False
    next: str = ""
    position: int = 0
    more: bool = False
    forget: tuple[int, int] | None = None
    """(position, at) of the newest deletion of a holder."""
    records: tuple[bytes, ...] = ()
    """As JSON; shared by all who ask."""

    @cached_property
    def commands(self) -> bool:
        """Whether one of them is a command."""
        return any(b'"kind":"command"' in record[:40] for record in self.records)

    @cached_property
    def json(self) -> bytes:
        """The records as a JSON list."""
        return b"[" + b",".join(self.records) + b"]"

    @cached_property
    def msgpack(self) -> bytes:
        packed: bytes = msgpack.packb([orjson.loads(record) for record in self.records])
        return packed


@dataclass
class _Venue:
    moves: int = 0
    """How often its log has moved since the start, to find out that it did while something else went on."""
    history: str = ""
    pages: dict[Key, asyncio.Future[Page]] = field(default_factory=dict)
    waiting: dict[str, list[asyncio.Future[None]]] = field(default_factory=dict)


class Polls:
    """The waiting gateways of all venues."""

    def __init__(self) -> None:
        self._venues: dict[str, _Venue] = {}
        self.stopping = False

    def moves(self, venue: str) -> int:
        return self._venue(venue).moves

    def waiting(self) -> int:
        """How many gateways have a poll that waits."""
        return sum(len(venue.waiting) for venue in self._venues.values())

    async def page(self, venue: str, key: Key, read: Callable[[], Awaitable[Page]]) -> Page:
        """What ``read`` gives, or gave somebody since the log has moved last."""
        there = self._venue(venue)
        found = there.pages.get(key)
        if found is None:
            while len(there.pages) >= _CURSORS:
                del there.pages[next(iter(there.pages))]
            found = there.pages[key] = asyncio.ensure_future(read())
            found.add_done_callback(lambda done: self._read(venue, key, done))
        if found.done():
            return found.result()
        # One who leaves must not take the page from the others.
        return await asyncio.shield(found)

    def _read(self, venue: str, key: Key, done: asyncio.Future[Page]) -> None:
        there = self._venue(venue)
        if done.cancelled() or done.exception() is not None:
            if there.pages.get(key) is done:
                del there.pages[key]
            return
        history = done.result().history
        if done.result().commands and there.pages.get(key) is done:
            del there.pages[key]  # they expire while nothing moves
        if there.history and history != there.history:
            # The store has found out that it was restored: what was read before is of the other history.
            self.moved(venue)
        there.history = history

    async def wait(self, venue: str, gateway: str, moves: int, seconds: float) -> None:
        """Until the log moves for this gateway (or has, since it was at ``moves``), or the time is over."""
        there = self._venue(venue)
        if self.stopping or there.moves != moves:
            return
        mine = there.waiting.setdefault(gateway, [])
        if len(mine) >= _WAITING:
            _wake(mine[0])
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        mine.append(future)
        over = loop.call_later(seconds, _wake, future)
        try:
            await future
        finally:
            over.cancel()
            mine.remove(future)
            if not mine and there.waiting.get(gateway) is mine:
                del there.waiting[gateway]

    def moved(self, venue: str, *, only: str | None = None, but: str | None = None) -> None:
        """The log has moved: wake those whom it concerns."""
        there = self._venue(venue)
        there.moves += 1
        there.pages.clear()
        gateways = there.waiting if only is None else (only,)
        for gateway in gateways:
            if gateway != but:
                for future in there.waiting.get(gateway, ()):
                    _wake(future)

    def stop(self) -> None:
        """Answer everybody at once; nobody waits from now on."""
        self.stopping = True
        for venue in self._venues.values():
            for futures in venue.waiting.values():
                for future in futures:
                    _wake(future)

    def _venue(self, venue: str) -> _Venue:
        there = self._venues.get(venue)
        if there is None:
            there = self._venues[venue] = _Venue()
        return there


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
