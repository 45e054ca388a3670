"""What can be asked of a running gate through its sockets, and by whom (docs/control.md)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from gateway import __version__
from gateway.acts import Acts, listed, text, whole
from gateway.cache.codekey import CodeKeyError
from gateway.cache.generations import SnapshotError
from gateway.cache.ledger import event_json
from gateway.control import Call, CallError, Later
from gateway.gate import Gate
from gateway.model import Movement
from gateway.news import COMPILED, NOT_ENROLLED, News, kinds_of
from gateway.operators import Operators
from gateway.replay import output
from gateway.running import Running
from gateway.venuetime import instant

_STEP = 64
"""Events read and written out in one step: a third of a millisecond."""
MAX_EVENTS = 1000
OPERATE = ("login", "open", "lane")
"""What an operator may do; ``login`` asks only whose token it is."""
_POLL = 0.01


class Calls:
    """The calls of both roles, on one gate process."""

    def __init__(self, daemon: Running, news: News, operators: Operators) -> None:
        self._daemon = daemon
        self._news = news
        self._operators = operators

    def both(self) -> dict[str, Call]:
        return {
            "status": self.status,
            "metrics": self.metrics,
            "events": self.events,
            "refused": self.refused,
        }

    def admin(self) -> dict[str, Call]:
        """Somebody on this machine who may do everything that a hand at the gate may."""
        acts = Acts(self._daemon, "admin")
        return {
            **self.both(),
            "check": self.check,
            "open": acts.open,
            "lane": acts.lane,
            "clear": acts.clear,
            "annul": acts.annul,
            "generation": self.generation,
            "apply": self.apply,
            "enrolled": self._news.enrolled_call,
        }

    def sync(self) -> dict[str, Call]:
        """The courier. What it brings must be signed by the central."""
        news = self._news
        return {
            **self.both(),
            "poll": news.poll,
            "answer": news.answer,
            "generation": news.generation,
            "outbox": news.outbox,
            "uploaded": news.uploaded,
            "refuse": self.refuse,
            "operate": self.operate,
        }

    def operate(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """An act by hand of somebody who is not on this machine: their token is what counts."""
        act, token = text(arguments, "act"), text(arguments, "token")
        if act not in OPERATE:
            raise CallError("bad_request", f"act must be one of {listed(OPERATE)}")
        try:
            name = self._operators.name_of(token, time.monotonic())
        except CallError as error:
            self._daemon.metrics.operators_refused.labels(error.code).inc()
            raise
        acts = Acts(self._daemon, f"operator:{name}")
        done = acts.open(arguments) if act == "open" else acts.lane(arguments) if act == "lane" else {}
        return {"operator": name, **done}

    # --- reading ---------------------------------------------------------------------------------------

    def status(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """How the gate is: for people, doctor and the status page."""
        d = self._daemon
        gate, now = d.gate, time.time_ns() // 1000
        snapshot = d.snapshot
        return {
            "gateway": d.config.gateway.id,
            "version": __version__,
            "clock": {
                "suspect": gate.clock.suspect,
                "synchronised": d.synchronised,
                "now": gate.world.calendar.rfc3339(gate.clock.peek(now, time.monotonic_ns() // 1000)),
            },
            "venue": {"language": gate.world.venue.language, "timezone": gate.world.venue.timezone},
            "lanes": [at.now() for at in gate.lanes.values()],
            "readers": [
                {"reader": r.name, "point": r.point, "device": r.device, "up": d.up[r.name]}
                for r in d.config.readers
            ],
            "inputs": [{"input": name, "fault": fault} for name, fault in d.input_faults.items()],
            "areas": {area: gate.crowd.count(area, now) for area in sorted(gate.world.areas.known())},
            "snapshot": None
            if snapshot is None
            else {
                "generation": snapshot.generation,
                "cursor": snapshot.cursor,
                "position": snapshot.position,
                "age_s": (d.snapshot_age(now) or 0) // 1_000_000,
                "counts": asdict(snapshot.counts()),
                "stale": gate.stale,
                "set_aside": d.set_aside,
            },
            "ledger": {
                "epoch": d.ledger.epoch,
                "last_seq": d.ledger.last_seq,
                "acknowledged": d.ledger.acknowledged,
                "pending": d.ledger.pending,
                "lost": d.ledger.lost,
                "fault": d.ledger.failed,
                "set_aside": None if d.ledger.set_aside is None else str(d.ledger.set_aside),
            },
            "central": self._news.status(),
        }

    def metrics(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """The exposition text, made now."""
        return {"text": self._daemon.scrape().decode()}

    def events(self, arguments: Mapping[str, Any]) -> Iterator[Any]:
        """Committed events after ``since``, at most ``limit``."""
        since = whole(arguments, "since", 0)
        limit = min(whole(arguments, "limit", MAX_EVENTS), MAX_EVENTS)
        return self._events(since, limit)

    def _events(self, since: int, limit: int) -> Iterator[Any]:
        d = self._daemon
        zone = d.gate.world.calendar.zone
        found: list[dict[str, Any]] = []
        last = since
        while len(found) < limit:
            rows = d.ledger.events(last, min(_STEP, limit - len(found)))
            if not rows:
                break
            found += [event_json(row, d.config.gateway.id, row["epoch"], zone) for row in rows]
            last = rows[-1]["seq"]
            yield Later()
        yield {"events": found, "last": last, "last_seq": d.ledger.last_seq, "epoch": d.ledger.epoch}

    def refused(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """The events that the central refused, with its reasons; the newest thousand."""
        d = self._daemon
        zone = d.gate.world.calendar.zone
        return {
            "events": [
                event_json(row, d.config.gateway.id, row.get("epoch"), zone) | {"reason": row["reason"]}
                for row in d.ledger.refused()[-MAX_EVENTS:]
            ]
        }

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The verdict on a code, changing nothing."""
        return check(self._daemon.gate, self._daemon.movements, arguments)

    # --- snapshot and changes --------------------------------------------------------------------------

    def generation(self, _: Mapping[str, Any]) -> Iterator[Any]:
        """A new generation lies in the data_dir: take it."""
        return self._generation()

    def _generation(self) -> Iterator[Any]:
        d = self._daemon
        future = d.take_generation()
        while not future.done():
            yield Later(_POLL)
        try:
            snapshot = future.result()
        except (CodeKeyError, SnapshotError) as error:
            raise CallError("no_snapshot", str(error)) from error
        if snapshot is not None:
            d.switch(snapshot)
        elif d.snapshot is None:
            raise CallError("no_snapshot", "no generation in the data_dir can be used; import one")
        yield {"generation": d.generation}

    def apply(self, arguments: Mapping[str, Any]) -> Iterator[Any]:
        """Changes of single records into the generation in use, in one transaction."""
        records = arguments.get("records")
        if not isinstance(records, list) or len(records) > MAX_EVENTS:
            raise CallError("bad_request", f"records must be a list of at most {MAX_EVENTS}")
        if self._daemon.snapshot is None:
            raise CallError("no_snapshot", "there is no generation to apply changes to; import one first")
        cursor = arguments.get("cursor")
        return self._apply(records, cursor if isinstance(cursor, str) else None)

    def _apply(self, records: list[dict[str, Any]], cursor: str | None) -> Iterator[Any]:
        d = self._daemon
        future = d.apply(records, cursor)
        while not future.done():
            yield Later(_POLL)
        try:
            applied = future.result()
        except SnapshotError as error:
            raise CallError("not_applied", str(error)) from error
        d.metrics.changes.labels("applied").inc(len(applied.changed))
        d.metrics.changes.labels("set_aside").inc(len(applied.bad))
        kinds = kinds_of(records)
        if not kinds.isdisjoint((*COMPILED, "usage")):
            d.recompile(usage="usage" in kinds)
        yield {
            "changed": len(applied.changed),
            "set_aside": [bad._asdict() for bad in applied.bad],
            "cursor": d.snapshot.cursor if d.snapshot is not None else None,
        }

    def refuse(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The central refused this event: it is set aside and shown, never deleted."""
        seq, reason = whole(arguments, "seq", None), text(arguments, "reason")
        ledger = self._daemon.ledger
        if not self._news.enrolled:
            raise CallError("not_enrolled", NOT_ENROLLED)
        if not ledger.acknowledged < seq <= ledger.last_seq:
            raise CallError("bad_request", f"no event {seq} waits to be sent")
        ledger.refuse(seq, reason[:500])
        return {"refused": seq}


def check(
    gate: Gate, movements: Callable[[int], Iterable[Movement]], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """The verdict on ``code`` at ``point``, now or ``at`` another time. ``movements``: all that can mean
    presence at an instant."""
    code, point = text(arguments, "code"), text(arguments, "point")
    at = gate.world.points.get(point)
    if at is None:
        raise CallError(
            "bad_request", f"point {point!r} is not configured; there are {listed(gate.world.points)}"
        )
    asked = arguments.get("at")
    now = gate.clock.peek(time.time_ns() // 1000, time.monotonic_ns() // 1000)
    if asked is None:
        decision = gate.judge(at, code.encode(), now, suspect=gate.clock.suspect)
    else:
        now = _instant(asked)
        # Reckoning who was where takes long on a full day: only where a capacity may depend on it.
        with gate.as_of(movements(now) if at.capacities_holder else (), now):
            decision = gate.judge(at, code.encode(), now)
    return output(gate.world.calendar.rfc3339(now), point, gate.tell(at, decision, now))


def _instant(value: object) -> int:
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise CallError("bad_request", "at: not an instant with an offset, like 2026-11-21T10:00:00+01:00")
    return instant(moment)
