"""What an operator should look at: one person in at two gates, one identity on two computers, one number
for two events. Never with a code; people by id alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, and_, bindparam, insert, or_, select, update

from gateway.cache.records import parse
from gateway.central import schema
from gateway.central.facts import Conflict
from gateway.central.log import Log, Turn
from gateway.model import OUTSIDE, SECOND, Area, Venue
from gateway.sync.protocol import rfc3339
from gateway.venuetime import Calendar

NOTED_AGAIN_AFTER = 60 * SECOND
COUNTED = ("taken", "assumed", "forced")
_conflict, _event, _record = schema.conflict.c, schema.event.c, schema.record.c
_change, _counter = schema.change.c, schema.counter.c
_NOTED = select(_conflict.subject).where(_conflict.subject.in_(bindparam("subjects", expanding=True)))


def numbers(turn: Turn, name: str, count: int) -> int:
    """The first of so many new numbers of a counter, whose row stays locked until the commit: numbers
    become visible in order."""
    where = _counter.name == name
    turn.conn.execute(update(schema.counter).where(where).values(value=_counter.value + count))
    last: int = turn.conn.execute(select(_counter.value).where(where)).scalar_one()
    return last - count + 1


@dataclass(slots=True, frozen=True)
class Noted:
    """A conflict to be written down, once for each ``subject``."""

    kind: str
    subject: str
    at: int
    gateways: list[str]
    detail: Mapping[str, Any]


def note(turn: Turn, venue: str, found: Iterable[Noted]) -> None:
    """Writes down those that are new."""
    new = {each.subject: each for each in found}
    subjects = list(new)
    for start in range(0, len(subjects), 500):
        part = subjects[start : start + 500]
        for subject in turn.conn.execute(_NOTED, {"subjects": part}).scalars():
            del new[subject]
    if not new:
        return
    first = numbers(turn, "conflict", len(new))
    turn.conn.execute(
        insert(schema.conflict),
        [
            {
                "number": number,
                "kind": each.kind,
                "subject": each.subject,
                "at": each.at,
                "venue": venue,
                "gateways": orjson.dumps(each.gateways).decode(),
                "detail": orjson.dumps(each.detail).decode(),
                "noted_at": turn.now,
            }
            for number, each in enumerate(new.values(), first)
        ],
    )


def note_instance(log: Log, venue: str, gateway: str, machine: str, why: str) -> None:
    """Another computer has this gateway's identity; written at most once a minute, for it calls often."""
    subject = f"instance {gateway} {machine}"
    with log.db.read() as conn:
        last = conn.execute(select(_conflict.at).where(_conflict.subject == subject)).scalar()
    if last is not None and log.clock() - last < NOTED_AGAIN_AFTER:
        return
    with log.turn() as turn:
        if last is not None:
            turn.conn.execute(update(schema.conflict).where(_conflict.subject == subject).values(at=turn.now))
        else:
            detail = {"why": why, "machine": machine[:12]}
            note(turn, venue, [Noted("instance", subject, turn.now, [gateway], detail)])


def listed(conn: Connection, since: int, limit: int) -> list[Conflict]:
    rows = conn.execute(
        select(schema.conflict).where(_conflict.number > since).order_by(_conflict.number).limit(limit)
    )
    return [
        Conflict(
            row.number,
            row.kind,
            row.at,
            row.venue,
            orjson.loads(row.gateways),
            orjson.loads(row.detail),
            row.noted_at,
        )
        for row in rows
    ]


# --- the same person in at two gates ---------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class Move:
    """A passage that counts, or (without a person) an area that was declared empty."""

    at: int
    gateway: str
    epoch: int
    seq: int
    from_area: str
    to_area: str


def double_entries(
    moves: Iterable[Move], within: Mapping[str, str | None], calendar: Calendar
) -> list[tuple[str, Move, Move]]:
    """(area, first, second): entered at one gate, and entered again at another with no exit between. Pure.

    ``moves``: one person's, and the clearings, of one or more days; ``within``: what each area lies within.
    """
    found = []
    day = None
    inside: dict[str, Move] = {}
    for move in sorted(moves, key=lambda m: (m.at, m.gateway, m.seq)):
        if (today := calendar.day(move.at)) != day:
            day, inside = today, {}
        into, out_of = _chain(move.to_area, within), _chain(move.from_area, within)
        now_inside: dict[str, Move] = {}
        for area in into:
            before = inside.get(area)
            if before is not None and area not in out_of and before.gateway != move.gateway:
                found.append((area, before, move))
            now_inside[area] = move if before is None or area not in out_of else before
        inside = now_inside
    return found


def _chain(area: str, within: Mapping[str, str | None]) -> list[str]:
    """An area and all that it lies within; of the street, nothing."""
    chain: list[str] = []
    each: str | None = area
    while each is not None and each != OUTSIDE and each not in chain:
        chain.append(each)
        each = within.get(each)
    return chain


def note_double_entries(turn: Turn, venue: str, gateway: str, moved: Mapping[str, tuple[int, int]]) -> None:
    """``moved``: persons whom events of this gateway have just moved, with the first and last time."""
    persons = list(moved)
    calendar: Calendar | None = None
    within: dict[str, str | None] = {}
    for start in range(0, len(persons), 500):
        part = persons[start : start + 500]
        first = min(moved[person][0] for person in part)
        last = max(moved[person][1] for person in part)
        if calendar is None:
            calendar, within = _venue(turn.conn, venue)
        since = calendar.day_start(calendar.day(first))
        until = calendar.day_start(calendar.day(last) + 1)
        counts = and_(
            _event.person.in_(part),
            _event.at >= since,
            _event.at < until,
            _event.venue == venue,
            _event.passage.in_(COUNTED),
            _event.guest == 0,
        )
        elsewhere = turn.conn.execute(
            select(_event.person).where(counts, _event.gateway != gateway).distinct()
        )
        both = list(elsewhere.scalars())
        if both:
            _note_of(turn, venue, both, since, until, within, calendar)


def _note_of(
    turn: Turn,
    venue: str,
    persons: list[str],
    since: int,
    until: int,
    within: Mapping[str, str | None],
    calendar: Calendar,
) -> None:
    of_person: dict[str, list[Move]] = {person: [] for person in persons}
    cleared = []
    columns = (_event.at, _event.gateway, _event.epoch, _event.seq, _event.from_area, _event.to_area)
    for row in turn.conn.execute(
        select(*columns, _event.person, _event.kind).where(
            _event.at >= since,
            _event.at < until,
            _event.venue == venue,
            or_(
                and_(_event.person.in_(persons), _event.passage.in_(COUNTED), _event.guest == 0),
                _event.kind == "clear",
            ),
        )
    ):
        if row.kind == "clear":
            cleared.append((row.at, row.from_area))
        else:
            of_person[row.person].append(Move(*row[:4], row.from_area or OUTSIDE, row.to_area))
    found = []
    for person, moves in of_person.items():
        for area, first, second in double_entries(moves, within, calendar):
            if any(first.at < at <= second.at and empty in _chain(area, within) for at, empty in cleared):
                continue
            places = [(each.gateway, each.epoch, each.seq) for each in (first, second)]
            subject = "passback " + orjson.dumps([area, *places]).decode()
            who = "credential" if person.startswith("card:") else "holder"
            detail = {
                "area": area,
                who: person.removeprefix("card:"),
                "events": [
                    {"gateway": each.gateway, "epoch": each.epoch, "seq": each.seq, "at": rfc3339(each.at)}
                    for each in (first, second)
                ],
            }
            gateways = [first.gateway, second.gateway]
            found.append(Noted("passback", subject, second.at, gateways, detail))
    note(turn, venue, found)


def _venue(conn: Connection, venue: str) -> tuple[Calendar, dict[str, str | None]]:
    """The venue's calendar, and what each of its areas lies within."""
    body = conn.execute(select(_record.body).where(_record.kind == "venue", _record.id == venue)).scalar()
    record = Venue() if body is None else parse(orjson.loads(body))
    assert isinstance(record, Venue)
    areas = conn.execute(
        select(_record.body)
        .join(schema.change, and_(_change.kind == _record.kind, _change.id == _record.id))
        .where(_change.venue == venue, _record.kind == "area", _change.deleted.is_(False))
    )
    within = {
        area.id: area.within
        for body in areas.scalars()
        if isinstance(area := parse(orjson.loads(body)), Area)
    }
    return Calendar(record.timezone, record.day_starts), within
