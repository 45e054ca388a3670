"""The gate at work: look up, decide, record, open; and what becomes of a grant.

One straight way from a scan to the ledger, without a queue, a task or an await:

    scanned -> snapshot.find -> decide -> ledger.record -> (durable) -> lane -> relay pulse
                       passage sensor or time-out -> settled -> ledger.record

The gate owns no device and no store. It is given them, and the time with every call, so the same class
serves the daemon, ``gateway replay`` and the tests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from time import perf_counter
from typing import Protocol

from gateway.clock import TrustedClock
from gateway.config import Config, LaneConfig, SecondGrant
from gateway.crowd import Crowd
from gateway.decide import Facts, decide, guests_left, is_code
from gateway.messages import message, pick
from gateway.metrics import Metrics
from gateway.model import (
    EMERGENCY,
    OUTSIDE,
    AccessEvent,
    Decision,
    EventKind,
    LaneMode,
    Movement,
    Passage,
    Scan,
    Verdict,
)
from gateway.past import Ledger, Past, Snapshot
from gateway.repeats import Repeats, Tries
from gateway.turnstile.lane import Action, Hold, Lane, Pulse, Settled
from gateway.world import PointAt, World

LEDGER = "ledger"
"""Detail of ``lane_closed`` while the ledger cannot be written and ``on_ledger_failure`` is deny."""


class Relay(Protocol):
    """The contact that opens a lane."""

    def pulse(self, duration: int) -> None: ...

    def hold(self, on: bool) -> None: ...


@dataclass(slots=True, eq=False)
class GrantAt:
    """A grant on its way: from the verdict to what became of it."""

    decision: Decision
    event: AccessEvent
    movement: Movement | None
    direction: str
    scanned: int
    """Monotonic; 0 for a lane opened by hand."""
    at_once: bool = False
    """The lane opens for it without waiting for the person before."""


@dataclass(slots=True)
class LaneAt:
    """A lane with its relay and the points at its sides."""

    config: LaneConfig
    lane: Lane[GrantAt]
    relay: Relay
    points: list[PointAt]
    sensor: bool
    fault: str | None = None
    asked: deque[GrantAt] = field(default_factory=lambda: deque(maxlen=64))
    """Grants whose pulse the relay was asked for, in order, until it says what became of it."""
    emergency: LaneMode | None = None
    """While the emergency input is active: the state that the lane had before."""
    chosen: bool = False
    """Its state was set since the start, so what it was before does not count."""

    def now(self) -> dict[str, object]:
        """How it is, as docs/control.md has it."""
        return {
            "lane": self.config.name,
            "state": self.lane.mode,
            "fault": self.fault,
            "sensor": self.sensor,
            "pending": len(self.lane.pending),
            "points": [p.point.name for p in self.points],
        }

    @property
    def way_in(self) -> PointAt:
        """The point that a passage without a direction is counted at."""
        return next((p for p in self.points if not p.exit), self.points[0])


@dataclass(slots=True)
class ReaderAt:
    """A reader as its point sees it."""

    name: str
    point: str
    repeats: Repeats
    tries: Tries


@dataclass(slots=True, frozen=True)
class Told:
    """A decision with the words that are said to the visitor."""

    decision: Decision
    notice: str | None
    message: str
    languages: Sequence[str]
    """Tags in order of preference: the holder's, the venue's, English."""


class Gate:
    """All access points of one gateway."""

    def __init__(
        self,
        config: Config,
        world: World,
        ledger: Ledger,
        clock: TrustedClock,
        metrics: Metrics,
        *,
        relay: Callable[[LaneConfig], Relay],
        holds: Callable[[int, int], bool] | None = None,
        second_grant: SecondGrant | None = None,
    ) -> None:
        """``relay`` makes the contact of a lane; ``holds`` see ``Past``; ``second_grant`` overrides the
        lanes' own policy."""
        self.config = config
        self.metrics = metrics
        self.clock = clock
        self.ledger = ledger
        self.past = Past(ledger, config.gateway.id, holds)
        self._pending: dict[tuple[str, str], GrantAt] = {}
        self._cleared: dict[str, int] = {}
        self.crowd = Crowd(world, self.past, self._cleared)
        self.facts = Facts(
            world, self.past, self.past.quiet, self.crowd.occupancy, self._cleared, self._pending
        )
        self._snapshot: Snapshot | None = None
        self.stale = False
        self.shut = False
        """The ledger cannot be written and ``on_ledger_failure`` is deny."""
        self.synchronised = True
        # What the daemon listens to; the defaults are deaf.
        self.on_verdict: Callable[[Scan, PointAt, Decision, int], None] = _deaf
        self.on_slow: Callable[[str], None] = _deaf
        self.on_deadline: Callable[[int], None] = _deaf
        self.on_lane: Callable[[LaneAt], None] = _deaf
        sensors = {p.point.lane for p in config.points if p.passage is not None}
        self.lanes = {
            lane.name: LaneAt(
                lane,
                Lane(
                    lane.name,
                    pulse=lane.pulse,
                    timeout=lane.timeout,
                    sensor=lane.passage is not None or lane.name in sensors,
                    second_grant=second_grant or lane.second_grant,
                ),
                relay(lane),
                [world.points[p.point.name] for p in config.points if p.point.lane == lane.name],
                lane.passage is not None or lane.name in sensors,
            )
            for lane in config.lanes
        }
        self.readers = {
            r.name: ReaderAt(
                r.name, r.point, Repeats(r.repeat_delay), Tries(config.gateway.unknown_codes_per_minute)
            )
            for r in config.readers
        }
        self._scans = metrics.scans.counts
        self._scans.update({(p, v): 0 for p in world.points for v in Verdict})
        self._repeats = {r: metrics.repeats.labels(r) for r in self.readers}
        self._passages = metrics.passages.counts
        outcomes = (Passage.TAKEN, Passage.ASSUMED, Passage.NOT_TAKEN, Passage.FORCED)
        self._passages.update({(lane, p): 0 for lane in self.lanes for p in outcomes})
        for lane in self.lanes.values():
            self._show(lane)

    # --- the snapshot ----------------------------------------------------------------------------

    @property
    def world(self) -> World:
        return self.facts.world

    def use(self, snapshot: Snapshot | None, world: World) -> None:
        """Judge by this snapshot from now on; also where its areas, events, products or usage are others.
        Pending grants and lanes go on as they are."""
        self._snapshot = self.past.snapshot = snapshot
        self.facts.world, self.facts.quiet = world, self.past.quiet
        self.crowd.use(world)
        for lane in self.lanes.values():
            lane.points = [world.points[p.point.name] for p in lane.points]

    def rebuild(
        self, movements: Iterable[Movement], now: int, cleared: Mapping[str, int] | None = None
    ) -> None:
        """Reckon occupancy anew from all movements that can still mean presence, in the order of time.

        ``cleared``: areas declared empty, with the time, that were not known before.
        """
        self._cleared.update(cleared or {})
        self.crowd.rebuild(movements, now)

    def happened(self, movements: Iterable[Movement], now: int) -> None:
        """Usage that has just become known (from other gates)."""
        self.crowd.happened([m for m in movements if not self.past.is_own(m)], now)

    # --- scans -----------------------------------------------------------------------------------

    def scanned(self, scan: Scan) -> Decision | None:
        """Judge a scan, record it and, once that is on disk, open. None: a repeat, no verdict."""
        reader = self.readers[scan.reader]
        if reader.repeats.seen(scan.payload, scan.monotonic):
            self._repeats[scan.reader].inc()
            return None
        at = self.facts.world.points[reader.point]
        now = self.clock.read(scan.at, scan.monotonic, synchronised=self.synchronised)
        self.crowd.catch_up(now)
        started = perf_counter()
        decision = self.judge(at, scan.payload, now, suspect=self.clock.suspect)
        self.metrics.decision.observe(perf_counter() - started)
        self._scans[at.point.name, decision.verdict] += 1
        if decision.verdict is Verdict.GRANTED:
            self._grant(scan, at, decision, now)
        else:
            self.ledger.record(self._event(scan, at, decision, now))
            if decision.verdict is Verdict.UNKNOWN_CREDENTIAL and reader.tries.excess(scan.monotonic):
                self.metrics.reader_slowed.labels(scan.reader).inc()
                self.on_slow(scan.reader)
        self.on_verdict(scan, at, decision, now)
        return decision

    def judge(self, at: PointAt, payload: bytes, now: int, *, suspect: bool = False) -> Decision:
        """The decision, changing nothing."""
        snapshot, lane = self._snapshot, self.lanes[at.point.lane].lane
        credential = None if snapshot is None else snapshot.find(payload)
        # What the snapshot has was found to be a code when it came, so only what it has not is looked at.
        ok = credential is not None or is_code(payload)
        decision = decide(self.facts, at, now, ok, credential, lane.mode, lane.busy, self.stale, suspect)
        if (
            self.shut
            and decision.verdict is Verdict.GRANTED
            and not at.exit
            and lane.mode is not LaneMode.FREE
        ):
            decision = replace(decision, verdict=Verdict.LANE_CLOSED, detail=LEDGER, flags=(), left=None)
        return decision

    def _event(self, scan: Scan, at: PointAt, decision: Decision, now: int) -> AccessEvent:
        return AccessEvent(
            EventKind.SCAN,
            now,
            point=at.point.name,
            lane=at.point.lane,
            reader=scan.reader,
            verdict=decision.verdict,
            detail=decision.detail,
            flags=decision.flags,
            credential=decision.credential,
            holder=decision.holder,
            entitlement=decision.entitlement,
            product=decision.product,
            guest=decision.guest,
            left=decision.left,
            from_=at.point.from_,
            to=at.point.to,
            trusted=self.synchronised and not self.clock.suspect,
        )

    def _grant(self, scan: Scan, at: PointAt, decision: Decision, now: int) -> None:
        lane = self.lanes[at.point.lane]
        if decision.again:
            earlier = self._pending[at.point.name, str(decision.person)]
            self._perform(lane, lane.lane.again(earlier, scan.monotonic), now)
            return
        point = at.point
        movement = Movement(
            now,
            point.from_,
            point.to,
            decision.person,
            point.name,
            decision.holder,
            decision.credential,
            decision.entitlement,
            decision.guest,
            passage=Passage.PENDING if lane.sensor else Passage.ASSUMED,
            closed=lane.lane.mode is LaneMode.CLOSED,
        )
        event = self._event(scan, at, decision, now)
        event.movement, event.passage = movement, movement.passage
        grant = GrantAt(decision, event, movement, point.name, scan.monotonic)
        if lane.sensor:
            person = None if decision.guest else decision.person
            if person is not None:
                self._pending[point.name, person] = grant
        # Before the ledger has it: for somebody who was not here lately it need not ask the disk.
        if not (lane.sensor and at.exit):
            self.crowd.apply(movement, now)
        self.ledger.record(event, partial(self._open, lane, grant))

    # --- what becomes of a grant ---------------------------------------------------------------------

    def _open(self, lane: LaneAt, grant: GrantAt, ok: bool) -> None:
        """The event is on disk (or the deadline passed): open. Not ok: the ledger failed and says deny,
        which locks nobody in."""
        monotonic = max(grant.scanned, self.monotonic())
        if ok or self.world.points[grant.direction].exit:
            actions = lane.lane.grant(grant, grant.direction, monotonic)
            grant.at_once = any(isinstance(each, Pulse) and each.grant is grant for each in actions)
            self._perform(lane, actions, grant.event.at)
        else:
            self._settle(lane, grant, Passage.NOT_TAKEN, grant.event.at)

    monotonic: Callable[[], int] = staticmethod(lambda: 0)
    """The monotonic clock; the daemon sets it, a replay stays with the scans' own times."""

    def _perform(self, lane: LaneAt, actions: Sequence[Action[GrantAt]], now: int) -> None:
        for action in actions:
            if isinstance(action, Pulse):
                lane.asked.append(action.grant)
                lane.relay.pulse(lane.config.pulse)
            elif isinstance(action, Settled):
                self._settle(lane, action.grant, action.passage, now)
            elif isinstance(action, Hold):
                lane.relay.hold(action.on)
            else:
                self._forced(lane, action.direction, now)
        due = lane.lane.next_deadline
        if due is not None:
            self.on_deadline(due)

    def _settle(self, lane: LaneAt, grant: GrantAt, passage: Passage, now: int) -> None:
        if grant.event.passage != Passage.PENDING and passage is Passage.ASSUMED:
            self._count_passage(lane, passage)
            return  # a lane without a sensor: recorded as assumed with the grant itself
        event = grant.event
        person = grant.decision.person
        if person is not None and self._pending.get((grant.direction, person)) is grant:
            del self._pending[grant.direction, person]
        self._count_passage(lane, passage)
        movement = grant.movement
        if movement is not None:
            if movement.passage is Passage.PENDING:
                self.crowd.settle(movement, passage, now)
            elif passage is Passage.NOT_TAKEN:
                self.crowd.undo(movement, now)
                movement.passage = passage
        self.ledger.record(
            AccessEvent(
                EventKind.PASSAGE,
                max(now, event.at),
                point=event.point,
                lane=event.lane,
                credential=event.credential,
                holder=event.holder,
                entitlement=event.entitlement,
                guest=event.guest,
                from_=event.from_,
                to=event.to,
                passage=passage,
                of=event,
                movement=movement,
            )
        )

    def _forced(self, lane: LaneAt, direction: str | None, now: int) -> None:
        """Somebody went through without a grant. On a free lane that is as it should be."""
        at = lane.way_in if direction is None else self.world.points[direction]
        passage = Passage.TAKEN if lane.lane.mode is LaneMode.FREE else Passage.FORCED
        movement = Movement(now, at.point.from_, at.point.to, None, at.point.name, passage=passage)
        self._count_passage(lane, passage)
        self.ledger.record(
            AccessEvent(
                EventKind.PASSAGE,
                now,
                point=at.point.name,
                lane=lane.config.name,
                flags=("free",) if passage is Passage.TAKEN else (),
                from_=at.point.from_,
                to=at.point.to,
                passage=passage,
                movement=movement,
            )
        )
        self.crowd.apply(movement, now)

    def _count_passage(self, lane: LaneAt, passage: Passage) -> None:
        self._passages[lane.config.name, passage] += 1

    # --- the lanes ---------------------------------------------------------------------------------

    def passed(self, lane: str, direction: str | None, wall: int, monotonic: int) -> None:
        """The passage sensor fired; ``direction`` is the point where the sensor knows it."""
        at = self.lanes[lane]
        now = self.clock.read(wall, monotonic, synchronised=self.synchronised)
        self.crowd.catch_up(now)
        self._perform(at, at.lane.passed(direction, monotonic), now)

    def turned_back(self, lane: str, direction: str, wall: int, monotonic: int) -> None:
        """Reported from outside (a replay): the person did not go through."""
        at = self.lanes[lane]
        now = self.clock.read(wall, monotonic, synchronised=self.synchronised)
        self._perform(at, at.lane.not_taken(direction, monotonic), now)

    @property
    def next_deadline(self) -> int | None:
        """Monotonic time at which ``tick`` has something to do."""
        return min(
            (d for lane in self.lanes.values() if (d := lane.lane.next_deadline) is not None), default=None
        )

    def tick(self, wall: int, monotonic: int) -> None:
        """Passage time-outs, queued grants and movements whose time has come."""
        now = self.clock.read(wall, monotonic, synchronised=self.synchronised)
        self.crowd.catch_up(now)
        for lane in self.lanes.values():
            self._perform(lane, lane.lane.tick(monotonic), now)

    def open_once(self, lane: str, by: str, wall: int, monotonic: int) -> None:
        """Open a lane by hand, once. Whoever goes through counts as a head where there is a sensor."""
        at = self.lanes[lane]
        way = at.way_in
        now = self.clock.read(wall, monotonic, synchronised=self.synchronised)
        movement = (
            Movement(now, way.point.from_, way.point.to, None, way.point.name, passage=Passage.PENDING)
            if at.sensor
            else None
        )
        event = AccessEvent(
            EventKind.OPEN,
            now,
            point=way.point.name,
            lane=lane,
            from_=way.point.from_,
            to=way.point.to,
            passage=Passage.PENDING if at.sensor else Passage.ASSUMED,
            by=by,
            movement=movement,
        )
        grant = GrantAt(Decision(Verdict.GRANTED), event, movement, way.point.name, 0)
        self.ledger.record(event, partial(self._open, at, grant))

    def set_mode(self, lane: str, mode: LaneMode, by: str, wall: int, monotonic: int) -> None:
        """Set a lane's state; recorded, and kept over a restart."""
        at = self.lanes[lane]
        now = self.clock.read(wall, monotonic, synchronised=self.synchronised)
        self.ledger.record(AccessEvent(EventKind.LANE, now, lane=lane, detail=mode, by=by))
        at.chosen = at.chosen or by != EMERGENCY
        self._perform(at, at.lane.set_mode(mode, monotonic), now)
        self._show(at)

    def restore_mode(self, lane: str, mode: LaneMode, monotonic: int) -> None:
        """Put a lane in the state that it had before a restart, which is on record already. That may become
        known late, when the ledger could not be opened at the start."""
        at = self.lanes[lane]
        if at.chosen:
            return
        if at.emergency is not None:
            at.emergency = mode
            return
        self._perform(at, at.lane.set_mode(mode, monotonic), 0)
        self._show(at)

    def emergency(self, lane: str, active: bool, wall: int, monotonic: int) -> None:
        """The emergency input: free while it is active; when it ends the lane is as it was before, and its
        areas are empty."""
        at = self.lanes[lane]
        if (at.emergency is not None) == active:
            return
        if active:
            at.emergency = at.lane.mode
            self.set_mode(lane, LaneMode.FREE, EMERGENCY, wall, monotonic)
            return
        before, at.emergency = at.emergency, None
        self.set_mode(lane, before or LaneMode.NORMAL, EMERGENCY, wall, monotonic)
        areas = {a for p in at.points for a in (p.point.from_, p.point.to) if a != OUTSIDE}
        for area in sorted(areas):
            self.clear(area, EMERGENCY, wall, monotonic)

    def clear(self, area: str, by: str, wall: int, monotonic: int) -> None:
        """Everybody in that area is outside."""
        now = self.clock.read(wall, monotonic, synchronised=self.synchronised)
        # One past now: a movement of this very microsecond is cleared as well.
        at = now + 1
        self.crowd.clear(area, now, at)
        self.ledger.record(AccessEvent(EventKind.CLEAR, at, from_=area, to=OUTSIDE, by=by))

    def annul(self, seq: int, movement: Movement, by: str, wall: int, monotonic: int) -> None:
        """The person of that event did not go through after all."""
        now = self.clock.read(wall, monotonic, synchronised=self.synchronised)
        if movement.passage in (Passage.TAKEN, Passage.ASSUMED, Passage.FORCED):
            self.crowd.undo(movement, now)
        movement.passage = Passage.NOT_TAKEN
        self.ledger.record(
            AccessEvent(
                EventKind.ANNUL,
                now,
                point=movement.point,
                credential=movement.credential,
                holder=movement.holder,
                entitlement=movement.entitlement,
                guest=movement.guest,
                from_=movement.from_,
                to=movement.to,
                passage=Passage.NOT_TAKEN,
                of_seq=seq,
                by=by,
                movement=movement,
            )
        )

    def pending_of(self, seq: int) -> tuple[str, GrantAt] | None:
        """The grant of an event, and its lane, if it still waits for its passage."""
        for name, lane in self.lanes.items():
            for grant in lane.lane.pending:
                if grant.event.seq == seq:
                    return name, grant
        return None

    def withdraw(self, lane: str, grant: GrantAt, by: str, wall: int, monotonic: int) -> None:
        """Annul a grant before its passage; the annulment is recorded beside the outcome."""
        now = self.clock.read(wall, monotonic, synchronised=self.synchronised)
        event = grant.event
        self.ledger.record(AccessEvent(EventKind.ANNUL, now, point=event.point, lane=lane, of=event, by=by))
        at = self.lanes[lane]
        self._perform(at, at.lane.withdraw(grant, monotonic), now)

    @contextmanager
    def as_of(self, movements: Iterable[Movement], now: int) -> Iterator[None]:
        """Occupancy as it was (or would be) at another time, for as long as the block lasts."""
        facts, crowd = self.facts, Crowd(self.world, self.past, dict(self.facts.cleared))
        crowd.rebuild(movements, now)
        self.facts = replace(facts, occupancy=crowd.occupancy, pending={})
        try:
            yield
        finally:
            self.facts = facts

    def relay_state(self, lane: str, reason: str | None, wall: int, monotonic: int) -> None:
        """The lane's relay is lost (a reason) or back (None)."""
        at = self.lanes[lane]
        if (at.fault is None) == (reason is None):
            return
        at.fault = reason
        if reason is None:
            at.asked.clear()  # whatever it was asked for before is answered, or lost with it
        now = self.clock.read(wall, monotonic, synchronised=self.synchronised)
        detail = "relay back" if reason is None else reason
        self.ledger.record(AccessEvent(EventKind.FAULT, now, lane=lane, detail=detail))
        self._show(at)

    def pulsed(self, lane: str, monotonic: int) -> None:
        """The relay has given the oldest pulse that it was asked for."""
        asked = self.lanes[lane].asked
        if asked:
            grant = asked.popleft()
            if grant.scanned and grant.at_once:  # how long somebody walks says nothing about the gate
                self.metrics.scan_to_pulse.observe((monotonic - grant.scanned) / 1e6)

    def not_pulsed(self, lane: str, reason: str, wall: int, monotonic: int) -> None:
        """The relay did not give the pulse: the grant is taken back, and the ledger says why."""
        at = self.lanes[lane]
        if not at.asked:
            return
        grant = at.asked.popleft()
        now = self.clock.read(wall, monotonic, synchronised=self.synchronised)
        self.ledger.record(
            AccessEvent(EventKind.FAULT, now, point=grant.direction, lane=lane, detail=reason, of=grant.event)
        )
        if at.sensor:
            self._perform(at, at.lane.withdraw(grant, monotonic), now)
        else:
            self._settle(at, grant, Passage.NOT_TAKEN, now)

    def _show(self, at: LaneAt) -> None:
        name, state = at.config.name, "fault" if at.fault is not None else at.lane.mode.value
        for each in (*LaneMode, "fault"):
            self.metrics.lane_state.labels(name, each).set(each == state)
        self.on_lane(at)

    # --- words ---------------------------------------------------------------------------------------

    def tell(self, at: PointAt, decision: Decision, now: int) -> Told:
        """What is said to the visitor: notice and message, in the holder's language."""
        holder = (
            self._snapshot.holder(decision.holder)
            if self._snapshot is not None and decision.holder is not None
            else None
        )
        languages = [self.world.venue.language, "en"]
        if holder is not None and holder.language:
            languages.insert(0, holder.language)
        notice = pick(holder.notice, languages) if holder is not None and holder.notice else None
        works = _works_at(decision)
        calendar = self.world.calendar
        text = message(
            decision,
            languages,
            self.config.messages,
            leaving=at.exit,
            now=calendar.local(now),
            works_at=works,
        )
        return Told(decision, notice, text, languages)

    def guests_left(self, scan: Scan, at: PointAt, decision: Decision, now: int) -> int:
        """How many guests may follow whoever this scan let in."""
        credential = None if self._snapshot is None else self._snapshot.find(scan.payload)
        if credential is None:
            return 0
        closed = self.lanes[at.point.lane].lane.mode is LaneMode.CLOSED
        return guests_left(self.facts, at, now, credential, decision, closed)


def _works_at(decision: Decision) -> datetime | None:
    if decision.detail is None or "T" not in decision.detail:
        return None
    return datetime.fromisoformat(decision.detail)


def _deaf(*_: object) -> None:
    """Nobody listens."""
