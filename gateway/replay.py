"""``gateway replay``: a file of scans judged against a file of records, through the same code as the gate.

The records are imported as they are at a gate, into a temporary folder; the ledger is a list. The
clock is each line's own ``at`` and is trusted; a line earlier than the one before it is judged at the
newest time so far and marked ``clock_suspect`` (DESIGN.md 5).
"""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Protocol

import orjson

from gateway.clock import TrustedClock
from gateway.config import Config, LaneConfig, ReaderConfig
from gateway.gate import Gate, Told
from gateway.metrics import Metrics
from gateway.model import (
    NO_MOVEMENTS,
    AccessEvent,
    Area,
    Event,
    Movement,
    Passage,
    Product,
    Scan,
    Venue,
)
from gateway.past import Snapshot
from gateway.venuetime import instant
from gateway.world import PointAt, World

DEFAULT_REPEAT_DELAY = 1_500_000


class ScansError(Exception):
    """A line of the scans file that cannot be judged; names file, line, key and remedy."""


class ListLedger:
    """A ledger in memory: durable at once, as far as a replay is concerned."""

    def __init__(self) -> None:
        self.events: list[AccessEvent] = []
        self._person: dict[str, list[Movement]] = defaultdict(list)
        self._entitlement: dict[str, list[Movement]] = defaultdict(list)

    def record(self, event: AccessEvent, then: Callable[[bool], None] | None = None) -> None:
        self.events.append(event)
        event.seq = len(self.events)
        m = event.movement
        if m is not None and m.seq is None:
            m.seq = event.seq
            if m.person is not None:
                insort(self._person[m.person], m, key=_at)
            if m.entitlement is not None:
                insort(self._entitlement[m.entitlement], m, key=_at)
        if then is not None:
            then(True)

    def person(self, person: str, since: int) -> Sequence[Movement]:
        return _since(self._person.get(person), since)

    def entitlement(self, entitlement: str, since: int) -> Sequence[Movement]:
        return _since(self._entitlement.get(entitlement), since)

    def quiet(self, person: str, entitlement: str, since: int) -> bool:
        return person not in self._person and entitlement not in self._entitlement


def _at(movement: Movement) -> int:
    return movement.at


def _since(movements: list[Movement] | None, since: int) -> Sequence[Movement]:
    return NO_MOVEMENTS if not movements else [m for m in movements if m.at >= since]


class NoRelay:
    """A lane that goes nowhere."""

    def pulse(self, duration: int) -> None:
        """Nothing is attached."""

    def hold(self, on: bool) -> None:
        """Nothing is attached."""


class Tables(Protocol):
    """The records that are compiled in memory."""

    @property
    def venue(self) -> Venue: ...
    @property
    def areas(self) -> Sequence[Area]: ...
    @property
    def events(self) -> Sequence[Event]: ...
    @property
    def products(self) -> Sequence[Product]: ...


class Feed(Snapshot, Protocol):
    """A snapshot with all that a world is compiled from."""

    def records(self) -> Tables: ...

    def movements_since(self, at: int) -> Iterable[Movement]: ...


def world_of(snapshot: Feed | None, config: Config) -> World:
    """The rules as the configuration's points see them."""
    points = [p.point for p in config.points]
    if snapshot is None:
        return World(Venue(), (), (), (), points)
    tables = snapshot.records()
    return World(tables.venue, tables.areas, tables.events, tables.products, points)


class Replay:
    """A gate on recorded time. Every point has one reader of its own name."""

    def __init__(self, config: Config, snapshot: Feed) -> None:
        delays = {r.point: r.repeat_delay for r in reversed(config.readers)}  # of several the first counts
        readers = tuple(
            ReaderConfig(
                p.point.name, p.point.name, "stdin", "-", delays.get(p.point.name, DEFAULT_REPEAT_DELAY)
            )
            for p in config.points
        )
        self.world = world_of(snapshot, config)
        self.now = 0
        # Each grant has its own window from its own scan: what is not reported within it is not taken.
        self.gate = Gate(
            replace(config, readers=readers),
            self.world,
            ListLedger(),
            TrustedClock(None, 0),
            Metrics(),
            relay=no_relay,
            second_grant="extend",
        )
        self.gate.use(snapshot, self.world)
        self.gate.rebuild(snapshot.movements_since(-(1 << 62)), -(1 << 61))

    def judge(self, at: int, point: str, code: str) -> Told | None:
        """One scan; None for a repeat."""
        self._advance(at)
        decision = self.gate.scanned(Scan(point, code.encode(), at, self.now))
        if decision is None:
            return None
        return self.gate.tell(self.world.points[point], decision, self.now)

    def passage(self, at: int, point: str, passage: str) -> None:
        """What the sensor of the point's lane reported."""
        self._advance(at)
        lane = self.world.points[point].point.lane
        if not self.gate.lanes[lane].sensor:
            self.gate.clock.read(at, self.now, synchronised=True)  # its time is known all the same
            return
        if passage == Passage.TAKEN:
            self.gate.passed(lane, point, at, self.now)
        else:
            self.gate.turned_back(lane, point, at, self.now)

    def _advance(self, at: int) -> None:
        if at > self.now:
            while (deadline := self.gate.next_deadline) is not None and deadline <= at:
                self.gate.tick(deadline, deadline)
            self.now = at


def no_relay(_: LaneConfig) -> NoRelay:
    """For a gate that opens nothing."""
    return NoRelay()


def output(at: str, point: str, told: Told | None) -> dict[str, Any]:
    """One line of the answer (DESIGN.md 5)."""
    d = told.decision if told is not None else None
    return {
        "at": at,
        "point": point,
        "verdict": "repeat" if d is None else d.verdict,
        "detail": None if d is None else d.detail,
        "flags": [] if d is None else list(d.flags),
        "credential": None if d is None else d.credential,
        "holder": None if d is None else d.holder,
        "entitlement": None if d is None else d.entitlement,
        "product": None if d is None else d.product,
        "guest": 0 if d is None else d.guest,
        "left": None if d is None else d.left,
        "notice": None if told is None else told.notice,
        "message": None if told is None else told.message,
    }


def run(config: Config, snapshot: Feed, lines: Iterable[bytes], source: str) -> Iterator[dict[str, Any]]:
    """Judge each line in order.

    Raises:
        ScansError: a line is not as it should be; the lines before it have been judged.
    """
    replay = Replay(config, snapshot)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        at, text, point, code, passage = _parse(line, f"{source}, line {number}", replay.world.points)
        if passage is not None:
            replay.passage(at, point, passage)
        else:
            yield output(text, point, replay.judge(at, point, str(code)))


def _parse(
    line: bytes, where: str, points: dict[str, PointAt]
) -> tuple[int, str, str, str | None, str | None]:
    try:
        obj = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ScansError(f"{where}: not a JSON object: {error}; write one scan a line") from None
    if not isinstance(obj, dict):
        raise ScansError(f'{where}: not a JSON object; write {{"at":…,"point":…,"code":…}}')
    text, point, code, passage = (obj.get(k) for k in ("at", "point", "code", "passage"))
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None or not isinstance(text, str):
        raise ScansError(f"{where}: at: not an instant with an offset, like 2026-11-21T10:00:00+01:00")
    if not isinstance(point, str) or point not in points:
        raise ScansError(
            f"{where}: point: {point!r} is no [[point]] of the configuration; it has {', '.join(points)}"
        )
    if passage is not None:
        if passage not in (Passage.TAKEN, Passage.NOT_TAKEN):
            raise ScansError(f'{where}: passage: must be "taken" or "not_taken"')
    elif not isinstance(code, str):
        raise ScansError(f'{where}: code: missing; a scan has a "code", a passage line a "passage"')
    return instant(moment), text, point, code, passage
