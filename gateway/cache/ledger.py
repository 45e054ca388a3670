"""What happened here: access events and movements, recorded durably before a lane opens.

How it works. The loop hands an event over with ``record`` and never waits. One thread writes: it takes
whatever has gathered, commits it as one transaction (one flush of the disk), and calls the loop back.
Until then a movement lies in an overlay, so that a second scan a millisecond later sees it. Look-ups go to
a second connection that can only read, but for somebody who was not here lately a filter of fixed size
answers without a query; memory does not grow with the number of cards.

A slow disk holds up nobody: past the commit deadline the caller is told to go on, and that is counted. A
disk that cannot be written at all is a fault: events wait in memory, in order and up to a bound, and
``on_failure`` says what the caller is told meanwhile. A damaged file is set aside and a new one begun, also
while the gate runs.

Everything here but ``outbox_json`` is called on the loop's thread; the callbacks come there too.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections import deque
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from gateway.cache.ledger_overlay import Overlay, by_time, merge
from gateway.cache.ledger_read import Reader, read_events, read_refused
from gateway.cache.ledger_repair import SQL_ERRORS, LedgerTooNew, is_damage
from gateway.cache.ledger_rows import event_json, event_row, movement_row
from gateway.cache.ledger_seen import Seen
from gateway.cache.ledger_store import (
    BY_ENTITLEMENT,
    BY_PERSON,
    BY_SEQ,
    FILE,
    KEYS_SINCE,
    LANE_KEY,
    PENDING,
    RETAIN_MOVEMENTS,
    SINCE,
    TRUSTED_KEY,
    Act,
    Entry,
    Store,
    draw_epoch,
    epoch_of,
    one_epoch,
)
from gateway.cache.ledger_writer import Fault, Word, Writer, explain
from gateway.model import NO_MOVEMENTS, SECOND, AccessEvent, EventKind, LaneMode, Movement, Passage

__all__ = ["Ledger", "LedgerTooNew", "event_json", "read_events", "read_refused"]

T = TypeVar("T")


class Ledger:
    """See the head of this file. Made by ``Ledger.open``."""

    def __init__(
        self,
        path: Path,
        gateway_id: str,
        *,
        loop: asyncio.AbstractEventLoop,
        commit_deadline: int,
        memory_events: int,
        on_failure: Literal["admit", "deny"],
        on_late: Callable[[int], None],
        on_commit: Callable[[float, int], None],
        on_fault: Callable[[str | None], None],
        recent_from: int,
    ) -> None:
        self.pending = 0
        """Events that are not on disk yet."""
        self.lost = 0
        """Events beyond the bound of memory; no other trace of them is left."""
        self.failed: str | None = None
        """Why the ledger cannot be written, while that lasts."""
        self.read_faults = 0
        """Look-ups that the disk did not answer; only what was in memory was taken into account."""
        self._loop = loop
        self._deadline = commit_deadline / SECOND
        self._memory_events = memory_events
        self._admit = on_failure == "admit"
        self._on_late, self._on_commit, self._on_fault = on_late, on_commit, on_fault
        self._told: deque[Word] = deque()
        self._waiting: deque[tuple[float, Entry]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._overlay = Overlay()
        self._seen = Seen(recent_from)
        self.quiet = self._seen.quiet
        """See there; what is not on disk yet is in the filter too."""
        self._filled = False
        self._cleared: dict[str, int] = {}
        self._writer = Writer(path, gateway_id, self._tell)

    @classmethod
    def open(
        cls,
        data_dir: Path,
        gateway_id: str,
        *,
        loop: asyncio.AbstractEventLoop,
        commit_deadline: int,
        memory_events: int,
        on_failure: Literal["admit", "deny"],
        on_late: Callable[[int], None],
        on_commit: Callable[[float, int], None],
        on_fault: Callable[[str | None], None],
        recent_from: int,
    ) -> Ledger:
        """Opens the ledger in ``data_dir``, or begins one, and starts its writer.

        ``commit_deadline`` is in microseconds; ``recent_from`` is the instant from which look-ups of
        somebody without a movement should cost nothing (the start of the day before, say). ``on_late`` is
        told how many events were late, ``on_commit`` how many seconds a commit took and how many events it
        had, ``on_fault`` a reason when a fault begins and None when it ends.

        A ledger that is damaged is set aside (see ``set_aside``); one that cannot be opened counts as a
        fault from the beginning and is tried again. Raises LedgerTooNew, and nothing else.
        """
        ledger = cls(
            data_dir / FILE,
            gateway_id,
            loop=loop,
            commit_deadline=commit_deadline,
            memory_events=memory_events,
            on_failure=on_failure,
            on_late=on_late,
            on_commit=on_commit,
            on_fault=on_fault,
            recent_from=recent_from,
        )
        try:
            ledger._writer.open()
        except (OSError, *SQL_ERRORS) as error:
            ledger._begin_fault(explain(error, data_dir / FILE))
        ledger._fill()
        ledger._writer.start()
        return ledger

    def close(self, timeout: float = 5.0) -> bool:
        """Writes what is pending, for at most so many seconds; whether all of it is on disk.

        Every ``then`` that is still open is answered, the last ones from the loop if it goes on running.
        """
        self._closed = True
        self._writer.stop(timeout)
        self._drain()
        self._answer_waiting()
        return self.pending == 0

    # --- recording ---

    def record(self, event: AccessEvent, then: Callable[[bool], None] | None = None) -> None:
        """Hands the event to the writer; never waits. Its texts must be valid Unicode.

        ``then`` is called once, later, on the loop. ``then(True)``: the event is on disk, or the commit
        deadline has passed and it was counted as late. While the ledger cannot be written:
        ``then(on_failure == "admit")``.
        An event that gives the outcome of a movement carries that very object, changed, and the event that
        made it (``of``) or its number. A clear names its area in ``from_``.
        Beyond ``memory_events`` that are not on disk, events are counted in ``lost`` and forgotten.
        """
        movement = event.movement
        if movement is not None:  # also of what is lost, so that nobody is quiet whose grant is pending
            self._seen.add(movement.person, movement.entitlement, movement.at)
        if self.pending >= self._memory_events or self._closed:
            self.lost += 1
            if then is not None:
                self._loop.call_soon(then, self._admit)
            return
        entry = Entry(event, event_row(event))
        if movement is not None:
            entry.movement = movement
            entry.movement_row = movement_row(movement)
            of = event.of
            entry.settles = movement.seq is not None or (of is not None and of.movement is movement)
            self._overlay.cover(movement)
        if event.kind is EventKind.CLEAR and event.from_ is not None:
            self._cleared[event.from_] = max(event.at, self._cleared.get(event.from_, event.at))
        self.pending += 1
        if then is not None:
            if self.failed is not None:
                self._loop.call_soon(then, self._admit)
            else:
                entry.then = then
                due = self._loop.time() + self._deadline
                self._waiting.append((due, entry))
                if self._timer is None:
                    self._timer = self._loop.call_at(due, self._overdue)
        self._writer.queue.put(entry)

    def _overdue(self) -> None:
        """One timer serves all: it is set for the oldest event that waits."""
        self._timer = None
        now, late = self._loop.time(), 0
        while self._waiting and (self._waiting[0][0] <= now or self._waiting[0][1].then is None):
            entry = self._waiting.popleft()[1]
            if entry.then is not None:
                self._loop.call_soon(entry.then, True)
                entry.then = None
                late += 1
        if self._waiting:
            self._timer = self._loop.call_at(self._waiting[0][0], self._overdue)
        if late:
            self._on_late(late)

    def _tell(self, words: Sequence[Word]) -> None:
        """The writer's thread hands over what it has to say: one wake of the loop for a batch."""
        self._told.extend(words)
        with contextlib.suppress(RuntimeError):  # the loop is closed; close() listens to the rest
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        told, waiting = self._told, self._waiting
        try:
            while told:
                word = told.popleft()
                if isinstance(word, Entry):
                    self.pending -= 1
                    movement, then = word.movement, word.then
                    if movement is not None:
                        self._overlay.uncover(movement)
                    if then is not None:
                        word.then = None
                        then(True)
                elif isinstance(word, Act):
                    if word.then is not None:
                        word.then()
                elif isinstance(word, tuple):
                    self._on_commit(*word)
                elif isinstance(word, Fault):
                    self._begin_fault(word)
                else:
                    self._end_fault()
        finally:
            while waiting and waiting[0][1].then is None:
                waiting.popleft()
            if told:  # a callback failed: the others are not to suffer
                self._loop.call_soon(self._drain)

    def _begin_fault(self, reason: Fault) -> None:
        first = self.failed is None
        self.failed = str(reason)
        self._answer_waiting()
        if first:
            self._on_fault(self.failed)

    def _end_fault(self) -> None:
        self.failed = None
        self._fill()
        self._on_fault(None)

    def _answer_waiting(self) -> None:
        """The ledger does not answer them: ``on_failure`` does."""
        for _, entry in self._waiting:
            if entry.then is not None:
                self._loop.call_soon(entry.then, self._admit)
                entry.then = None
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- presence, limits ---

    def person(self, person: str, since: int) -> Sequence[Movement]:
        """Their movements from this instant on, by time; also those that are only being written."""
        waiting = self._overlay.persons.get(person)
        if waiting is None and since >= self._seen.since and not self._seen.maybe(person):
            return NO_MOVEMENTS
        found = self._query(BY_PERSON, (person, since))
        return found if waiting is None else merge(found, waiting, since)

    def entitlement(self, entitlement: str, since: int) -> Sequence[Movement]:
        """The same for an entitlement."""
        waiting = self._overlay.entitlements.get(entitlement)
        if waiting is None and since >= self._seen.since and not self._seen.maybe(entitlement):
            return NO_MOVEMENTS
        found = self._query(BY_ENTITLEMENT, (entitlement, since))
        return found if waiting is None else merge(found, waiting, since)

    def movement(self, seq: int) -> Movement | None:
        """The movement that the event of this number made."""
        for movement in self._overlay.all():
            if movement.seq == seq:
                return movement
        found = self._query(BY_SEQ, (seq,))
        return found[0] if found else None

    def movements_since(self, at: int) -> Iterator[Movement]:
        """All movements from this instant on, in the order of time; one at a time, so that presence can be
        rebuilt without holding them all. To be used up before the loop goes on."""
        with self._writer.reading:
            reader = self._writer.reader
        try:
            rows = reader.stream(SINCE, (at,)) if reader is not None else iter(())
            overlay = [movement for movement in self._overlay.all() if movement.at >= at]
            hidden = {movement.seq for movement in overlay}
            yield from heapq.merge(
                (movement for movement in rows if movement.seq not in hidden),
                sorted(overlay, key=by_time),
                key=by_time,
            )
        except SQL_ERRORS as error:
            self._unreadable(error)

    def cleared(self) -> dict[str, int]:
        """Areas that were cleared, each with the latest time."""
        return dict(self._cleared)

    def trusted_time(self) -> int | None:
        """About the newest time at which an event was recorded under a clock that could be trusted."""
        rows = self._rows("SELECT value FROM meta WHERE key = ?", (TRUSTED_KEY,))
        return rows[0][0] if rows and type(rows[0][0]) is int else None

    def lane_modes(self) -> dict[str, str]:
        """The state that each lane was last set to; lanes that were never set are missing."""
        rows = self._rows("SELECT key, value FROM meta WHERE key GLOB ?", (f"{LANE_KEY}*",))
        modes = {mode.value for mode in LaneMode}
        return {key.removeprefix(LANE_KEY): value for key, value in rows if value in modes}

    def watch(self, recent_from: int) -> None:
        """To be called once a venue day with its start. The filter of who was here lately then reaches back
        to the call before; look-ups further back are queries."""
        self._seen.watch(recent_from)

    def close_open_grants(
        self,
        sensed: Container[str] | Callable[[str | None, str | None], bool],
        at: int,
        before: int | None = None,
    ) -> list[Movement]:
        """Closes what a power cut left open, at the start: each grant without an outcome is recorded as
        ``not_taken`` where there is a sensor, as ``assumed`` where not. Returns their movements.

        ``sensed``: the names of the lanes with a sensor, or a function of lane and point. ``before``: only
        grants given before this instant, where the gate has been admitting meanwhile.
        """
        closed = []
        for movement in self._query(PENDING, ()):
            if movement.seq is None or (before is not None and movement.at >= before):
                continue
            grant = self.event(movement.seq) or {}
            lane = grant.get("lane")
            has_sensor = sensed(lane, movement.point) if callable(sensed) else lane in sensed
            movement.passage = Passage.NOT_TAKEN if has_sensor else Passage.ASSUMED
            closed.append(movement)
            self.record(
                AccessEvent(
                    EventKind.PASSAGE,
                    at,
                    point=movement.point,
                    lane=lane,
                    credential=movement.credential,
                    holder=movement.holder,
                    entitlement=movement.entitlement,
                    product=grant.get("product"),
                    guest=movement.guest,
                    from_=movement.from_,
                    to=movement.to,
                    passage=movement.passage,
                    of_seq=movement.seq,
                    by="start",
                    movement=movement,
                )
            )
        return closed

    # --- the central ---

    @property
    def last_seq(self) -> int:
        """The highest number on disk."""
        return self._writer.last_seq

    @property
    def acknowledged(self) -> int:
        """The central holds everything up to this number; kept on disk."""
        return self._writer.acknowledged

    @property
    def epoch(self) -> int | None:
        """The epoch that new events are of; None as long as the ledger could not be opened."""
        epochs = self._writer.epochs
        return epochs[-1][1] if epochs else None

    @property
    def epochs(self) -> tuple[tuple[int, int], ...]:
        """(first number, epoch), in order; an epoch ends where the next begins."""
        return self._writer.epochs

    def first_of(self, epoch: int) -> int | None:
        """The first number that is of this epoch; None where none is."""
        return next((first for first, known in self._writer.epochs if known == epoch), None)

    @property
    def unacknowledged(self) -> int:
        """How many numbers follow the last acknowledged one; those set aside among them are counted too."""
        return max(0, self.last_seq - self.acknowledged)

    @property
    def set_aside(self) -> Path | None:
        """Where the last damaged ledger was put, if there was one since the start."""
        return self._writer.set_aside

    @property
    def set_aside_reason(self) -> str | None:
        return self._writer.set_aside_reason

    def events(self, since: int, limit: int) -> list[dict[str, Any]]:
        """Events on disk with a higher number, in order: the columns by name, with ``epoch`` and ``digest``.

        A row that does not fit its digest is ``{"seq", "epoch", "damaged": True}``.
        """
        return self._ask(lambda reader: reader.events(since, limit, self._writer.epochs), [])

    def event(self, seq: int) -> dict[str, Any] | None:
        """The event of this number, if it is on disk and not pruned."""
        rows = self.events(seq - 1, 1)
        return rows[0] if rows and rows[0]["seq"] == seq else None

    def acknowledge(self, epoch: int, seq: int, at: int = 0) -> bool:
        """The central holds all up to this event, as it said at ``at`` (microseconds; 0: long ago). False,
        and nothing done, if the epoch is not its own."""
        if not 0 < seq <= self.last_seq or self.epoch_of(seq) != epoch:
            return False
        self._writer.queue.put(Act(lambda store: store.acknowledge(max(seq, store.acknowledged), at)))
        return True

    def outbox(self, limit: int, since: int | None = None) -> list[tuple[Any, ...]]:
        """Events on disk that the central does not have yet, in order, at most so many: all with a higher
        number than ``since`` (None: than ``acknowledged``), without those set aside.

        Each as (epoch, digest, the values of ``EVENT_COLUMNS``). Where a row does not fit its digest, digest
        and values but seq are None.
        """
        after = self.acknowledged if since is None else since
        return self._ask(lambda reader: reader.outbox(after, limit, self._writer.epochs), [])

    def outbox_json(self, limit: int, since: int) -> list[tuple[int, bytes]]:
        """The same, each as its number and the JSON text ``[epoch, digest in hex, values ...]``.

        A million go out after a week offline: SQLite writes the text in a third of the time that it takes to
        make values for Python, and the digest is over that very text. May be called in another thread.
        """
        return self._ask(lambda reader: reader.outbox_json(since, limit, self._writer.epochs), [])

    def settle(self, epoch: int, first: int, last: int, at: int = 0) -> bool:
        """The central has these numbers, as it said at ``at``: ``acknowledged`` moves up to ``last`` in the
        writer's turn, unless an event before ``first`` is still to be sent: then nothing happens, for nothing
        may be left out.
        It also passes over what was set aside and directly follows.

        False, and nothing done, where they are not all of this epoch, or not all here.
        """
        if not 0 < first <= last <= self.last_seq or not one_epoch(self.epochs, epoch, first, last):
            return False

        def do(store: Store) -> None:
            store.settle(epoch, first, last, at)

        self._writer.queue.put(Act(do))
        return True

    def lower(self, mark: int) -> None:
        """The central was restored and has only what it had: everything after this number is sent again, as
        far as it is still here. Never moves ``acknowledged`` up."""
        self._writer.queue.put(Act(lambda store: store.acknowledge(max(0, min(mark, store.acknowledged)))))

    def flushed(self, then: Callable[[], None]) -> None:
        """``then`` is called on the loop when all that was asked for up to now is on disk. While the ledger
        cannot be written, it waits."""
        self._writer.queue.put(Act(lambda _: None, then))

    def have(self, answer: Mapping[int, int]) -> None:
        """What the central says it has, per epoch: sets ``acknowledged`` so, also back, as after the central
        was restored. What is still held here above it is then sent again."""
        epochs, last = self._writer.epochs, self.last_seq
        ends = [first - 1 for first, _ in epochs[1:]] + [last]
        mark = last
        for (first, epoch), end in zip(epochs, ends, strict=True):
            has = answer.get(epoch, first - 1)
            if has < end:
                mark = max(has, first - 1)
                break
        self._writer.queue.put(Act(lambda store: store.acknowledge(mark)))

    def refuse(self, seq: int, reason: str) -> None:
        """The central will not have this event: it is kept for ever, shown, and not sent again."""
        self._writer.queue.put(Act(lambda store: store.refuse(seq, reason)))

    def refused(self) -> list[dict[str, Any]]:
        """The events refused, each with its ``reason``."""
        rows = self._rows("SELECT seq, reason FROM refused ORDER BY seq")
        return [
            (self.event(seq) or {"seq": seq, "epoch": self.epoch_of(seq), "damaged": True})
            | {"reason": reason}
            for seq, reason in rows
        ]

    def new_epoch(
        self, reason: str, then: Callable[[], None] | None = None, *, after: int | None = None
    ) -> None:
        """Draws a new epoch for all that is not acknowledged and all that follows; with ``after`` only for
        what follows that number, and never for what is acknowledged.

        It is in use, and ``then`` called, when it is on disk: no number is ever sent under an epoch that a
        power cut could forget.
        """
        epoch = draw_epoch()
        self._writer.queue.put(Act(lambda store: store.new_epoch(epoch, reason, after), then))

    def held(self, numbers: Collection[tuple[int, int]]) -> set[tuple[int, int]]:
        """Those (epoch, seq) of this gateway whose movement is here: a ``usage`` of it is no news. At most 50
        at a time, for which it takes little longer than for one."""
        here = {
            seq: epoch for epoch, seq in numbers if 0 < seq <= self.last_seq and self.epoch_of(seq) == epoch
        }
        places = ", ".join("?" * len(here))
        rows = self._rows(f"SELECT seq FROM movement WHERE seq IN ({places})", (*here,)) if here else []
        return {(here[seq], seq) for (seq,) in rows}

    def holds(self, epoch: int, seq: int) -> bool:
        """The same of one."""
        return bool(self.held([(epoch, seq)]))

    def prune(self, now: int, retain: int, keep_movements: int = RETAIN_MOVEMENTS) -> None:
        """Deletes events that happened and were acknowledged longer than ``retain`` ago, and movements older
        than ``keep_movements`` (microseconds), in small portions between the others' writing."""
        more = False

        def do(store: Store) -> None:
            nonlocal more
            more = store.prune(now - retain, now - keep_movements)

        def then() -> None:
            if more and not self._closed:
                self.prune(now, retain, keep_movements)

        self._writer.queue.put(Act(do, then))

    def epoch_of(self, seq: int) -> int | None:
        """The epoch that a number is of; None from before the first that is known."""
        return epoch_of(self._writer.epochs, seq)

    # --- reading ---

    def _ask(self, question: Callable[[Reader], T], otherwise: T) -> T:
        """Never raises on the way of a scan: what the disk does not answer is counted, damage is reported."""
        writer = self._writer
        with writer.reading:
            reader = writer.reader
            if reader is None:
                return otherwise
            try:
                return question(reader)
            except SQL_ERRORS as error:
                self._unreadable(error)
                return otherwise

    def _query(self, sql: str, arguments: tuple[Any, ...]) -> list[Movement]:
        return self._ask(lambda reader: reader.movements(sql, arguments), [])

    def _rows(self, sql: str, arguments: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        return self._ask(lambda reader: reader.rows(sql, arguments), [])

    def _unreadable(self, error: Exception) -> None:
        self.read_faults += 1
        if is_damage(error):
            self._writer.report_damage(str(error))

    def _fill(self) -> None:
        """What is kept in memory, from the file: once, when it is first open."""
        if self._filled or self._writer.reader is None:
            return
        faults = self.read_faults
        keys = self._rows(KEYS_SINCE, (self._seen.wanted,))
        newest = self._rows("SELECT max(at) FROM movement WHERE typeof(at) = 'integer'")
        for area, at in self._rows("SELECT area, at FROM clear WHERE typeof(at) = 'integer'"):
            self._cleared[area] = max(at, self._cleared.get(area, at))
        if self.read_faults == faults:
            self._filled = True
            self._seen.fill(((person, entitlement) for person, entitlement in keys), newest[0][0] or 0)
