"""The movements that a batch of events makes or settles, with those that are in the database already."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, bindparam, select

from gateway.central import conflicts, schema, usage
from gateway.central.log import Turn
from gateway.sync.protocol import instant

_event, _epoch, _gateway = schema.event.c, schema.epoch.c, schema.gateway.c
_change = schema.change.c
_AT_ONCE = 500
_MADE = select(_event.seq, _event.passage, _event.kind, _event.body).where(
    _event.gateway == bindparam("gateway"),
    _event.epoch == bindparam("epoch"),
    _event.seq.in_(bindparam("seqs", expanding=True)),
)
_TOLD = select(_change.id, _change.body).where(
    _change.venue == bindparam("venue"),
    _change.kind == "usage",
    _change.id.in_(bindparam("ids", expanding=True)),
    _change.body.is_not(None),
)
HAVE = select(_epoch.epoch, _epoch.last_seq, _epoch.number).where(_epoch.gateway == bindparam("gateway"))


@dataclass(slots=True)
class Arrival:
    """An event of a batch that is in order."""

    epoch: int
    seq: int
    digest: str | None
    at: int | None
    event: dict[str, Any]
    body: str


def moved_by(
    conn: Connection, venue: str, gateway: str, fresh: list[Arrival]
) -> dict[tuple[int, int], usage.Movement]:
    """The movements that these events make or settle, as they stand after them, by (epoch, seq)."""
    here = {(each.epoch, each.seq) for each in fresh if each.digest is not None}
    asked: dict[int, set[int]] = {}
    outcomes = {}
    for each in fresh:
        if each.digest is not None and (outcome := usage.settled(each.event)) is not None:
            outcomes[each.epoch, each.seq] = outcome
            if (each.epoch, outcome[0]) not in here:
                asked.setdefault(each.epoch, set()).add(outcome[0])
    found = _stored(conn, gateway, asked) if asked else {}
    told = _told(conn, venue, gateway, fresh)
    movements: dict[tuple[int, int], usage.Movement] = {}
    for each in fresh:
        key = each.epoch, each.seq
        if each.digest is None:
            continue
        state = usage.made(each.event)
        if state is not None:
            before = told.get(key)
            movements[key] = usage.Movement(gateway, *key, each.event, before or state, before)
        outcome = outcomes.get(key)
        if outcome is None:
            continue
        of, state = outcome
        place = each.epoch, of
        if place in found:
            movement = found[place]
            if movement is not None:  # else it named an event that moved nobody
                movements[movement.epoch, movement.seq] = movement
                movement.passage = state
        elif place in movements:
            movements[place].passage = state
        elif place not in here:
            # The event that made it is not here (set aside, or damaged): this one says nearly the same.
            before = None if each.event.get("kind") == "passage" else "taken"
            movements[place] = usage.Movement(gateway, *place, each.event, state, before)
    return movements


def _told(conn: Connection, venue: str, gateway: str, fresh: list[Arrival]) -> dict[tuple[int, int], str]:
    """Of events that come after ones with higher numbers: what was told of them already, because a passage
    named them."""
    last = {row.epoch: row.last_seq for row in conn.execute(HAVE, {"gateway": gateway})}
    late = {
        f"{gateway}/{each.epoch}/{each.seq}": (each.epoch, each.seq)
        for each in fresh
        if each.seq <= last.get(each.epoch, -1)
    }
    found = {}
    ids = list(late)
    for start in range(0, len(ids), _AT_ONCE):
        for row in conn.execute(_TOLD, {"venue": venue, "ids": ids[start : start + _AT_ONCE]}):
            found[late[row.id]] = orjson.loads(row.body)["passage"]
    return found


def _stored(
    conn: Connection, gateway: str, asked: dict[int, set[int]]
) -> dict[tuple[int, int], usage.Movement | None]:
    """Of (epoch, number) asked: the movement that the stored event makes (None: it makes none), in that epoch
    or else in the newest other one that has the number."""
    found: dict[tuple[int, int], usage.Movement | None] = {}
    epochs = sorted(conn.execute(HAVE, {"gateway": gateway}), key=lambda row: -row.number)
    for epoch, seqs in asked.items():
        missing = set(seqs)
        for place in (epoch, *(row.epoch for row in epochs if row.epoch != epoch)):
            if not missing:
                break
            for row in rows_of(conn, _MADE, gateway, place, sorted(missing)):
                if row.kind is None:
                    continue  # damaged
                missing.discard(row.seq)
                found[epoch, row.seq] = (
                    None
                    if row.passage is None
                    else usage.Movement(
                        gateway, place, row.seq, orjson.loads(row.body), row.passage, row.passage, stored=True
                    )
                )
    return found


def look_for_double_entries(
    turn: Turn, venue: str, gateway: str, movements: Iterable[usage.Movement]
) -> None:
    others = select(_gateway.id).where(_gateway.venue == venue, _gateway.id != gateway).limit(1)
    if turn.conn.execute(others).first() is None:
        return
    moved: dict[str, tuple[int, int]] = {}
    for movement in movements:
        event = movement.event
        if not movement.counts or event.get("guest"):
            continue
        holder, credential = text(event, "holder"), text(event, "credential")
        person = holder or (None if credential is None else f"card:{credential}")
        if person is not None:
            at = instant(event, "at")
            first, last = moved.get(person, (at, at))
            moved[person] = min(first, at), max(last, at)
    if moved:
        conflicts.note_double_entries(turn, venue, gateway, moved)


def rows_of(conn: Connection, statement: Any, gateway: str, epoch: int, seqs: Sequence[int]) -> Iterable[Any]:
    for start in range(0, len(seqs), _AT_ONCE):
        part = seqs[start : start + _AT_ONCE]
        yield from conn.execute(statement, {"gateway": gateway, "epoch": epoch, "seqs": part})


def text(event: dict[str, Any], name: str) -> str | None:
    value = event.get(name)
    return value if isinstance(value, str) and len(value) <= 512 and "\0" not in value else None
