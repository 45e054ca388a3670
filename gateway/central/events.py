"""Access events as gateways upload them: taken once, in whole transactions, and never changed.

A batch costs a fixed number of statements, not some for each event: a week of a gateway's events comes at
once when it has been offline.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Connection, bindparam, delete, insert, select, update

from gateway.cache.records import RecordError, parse
from gateway.central import conflicts, feed, schema, usage
from gateway.central.database import write_many
from gateway.central.facts import StoredEvent, Taken
from gateway.central.faults import NotFound
from gateway.central.log import Turn
from gateway.central.movements import HAVE, Arrival, look_for_double_entries, moved_by, rows_of, text
from gateway.sync.protocol import MAX_RECORD, ProtocolError, instant

_event, _epoch, _gateway = schema.event.c, schema.epoch.c, schema.gateway.c
_EPOCHS = 500
_NEW = insert(schema.event)
_KNOWN = select(_event.seq, _event.digest).where(
    _event.gateway == bindparam("gateway"),
    _event.epoch == bindparam("epoch"),
    _event.seq.in_(bindparam("seqs", expanding=True)),
)
_SETTLE = (
    update(schema.event)
    .where(_event.gateway == bindparam("g"), _event.epoch == bindparam("e"), _event.seq == bindparam("s"))
    .values(passage=bindparam("passage"))
)
_MEND = delete(schema.event).where(
    _event.gateway == bindparam("g"), _event.epoch == bindparam("e"), _event.seq == bindparam("s")
)


class _Bad(Exception):
    """Why an event is refused."""


def take(turn: Turn, gateway: str, events: Sequence[Any]) -> Taken:
    """Stores what is new of a batch; see docs/protocol.md, POST /v1/events. Raises NotFound."""
    conn = turn.conn
    venue = conn.execute(select(_gateway.venue).where(_gateway.id == gateway)).scalar()
    if venue is None:
        raise NotFound(f"there is no gateway {gateway}")
    arrivals, refused = _read(gateway, events)
    known = _known(conn, gateway, arrivals)
    acknowledged: list[tuple[int, int, int]] = []
    fresh: dict[tuple[int, int], Arrival] = {}
    mended = []
    conflict = None
    for each in arrivals:
        key = each.epoch, each.seq
        if key in known:
            digest = known[key]
            if each.digest is not None and digest is None:
                if key not in fresh:  # stored as damaged, and here it is whole
                    mended.append({"g": gateway, "e": each.epoch, "s": each.seq})
                fresh[key] = each
                known[key] = each.digest
            elif each.digest is not None and each.digest != digest:
                conflict = key
                break
        else:
            fresh[key] = each
            known[key] = each.digest
        _acknowledge(acknowledged, each)
    if mended:
        conn.execute(_MEND, mended)
    if fresh:
        _store(turn, venue, gateway, list(fresh.values()))
    if conflict is not None:
        subject = f"epoch {gateway} {conflict[0]} {conflict[1]}"
        detail = {"epoch": conflict[0], "seq": conflict[1]}
        conflicts.note(turn, venue, [conflicts.Noted("epoch", subject, turn.now, [gateway], detail)])
    return Taken(acknowledged, refused, conflict)


def _read(gateway: str, events: Sequence[Any]) -> tuple[list[Arrival], list[tuple[int, int, str]]]:
    arrivals, refused = [], []
    for event in events:
        try:
            arrivals.append(_arrival(gateway, event))
        except _Bad as bad:
            epoch, seq = (event.get("epoch"), event.get("seq")) if isinstance(event, dict) else (0, 0)
            refused.append((_number(epoch) or 0, _number(seq) or 0, str(bad)))
    return arrivals, refused


def _number(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 63 else None


def _arrival(gateway: str, event: Any) -> Arrival:
    """An event that can be kept. Raises _Bad."""
    if not isinstance(event, dict):
        raise _Bad("is not an object")
    if event.get("gateway") != gateway:
        raise _Bad("gateway: is not the one that sends it")
    epoch, seq = _number(event.get("epoch")), _number(event.get("seq"))
    if epoch is None:
        raise _Bad("epoch: must be a whole number of at most 63 bits")
    if seq is None:
        raise _Bad("seq: must be a whole number of at most 63 bits")
    try:
        body = orjson.dumps(event)
    except TypeError:
        raise _Bad("cannot be written as JSON") from None
    if len(body) > MAX_RECORD:
        raise _Bad(f"must be at most {MAX_RECORD} bytes, is {len(body)}")
    digest = event.get("digest")
    if digest is None and event.get("damaged") is True:
        return Arrival(epoch, seq, None, None, event, body.decode())
    if not isinstance(digest, str) or not 0 < len(digest) <= 128 or "\0" in digest:
        raise _Bad("digest: must be a text of 1 to 128 characters, or null with damaged")
    try:
        at = instant(event, "at")
    except ProtocolError as error:
        raise _Bad(str(error)) from None
    return Arrival(epoch, seq, digest, at, event, body.decode())


def _known(conn: Connection, gateway: str, arrivals: Iterable[Arrival]) -> dict[tuple[int, int], str | None]:
    """Digests of those that are stored already."""
    seqs: dict[int, list[int]] = {}
    for each in arrivals:
        seqs.setdefault(each.epoch, []).append(each.seq)
    return {
        (epoch, row.seq): row.digest
        for epoch, wanted in seqs.items()
        for row in rows_of(conn, _KNOWN, gateway, epoch, wanted)
    }


def _acknowledge(ranges: list[tuple[int, int, int]], each: Arrival) -> None:
    if ranges:
        epoch, first, last = ranges[-1]
        if epoch == each.epoch and each.seq in (last, last + 1):
            ranges[-1] = epoch, first, each.seq
            return
    ranges.append((each.epoch, each.seq, each.seq))


# --- storing ---------------------------------------------------------------------------------------------


def _store(turn: Turn, venue: str, gateway: str, fresh: list[Arrival]) -> None:
    conn = turn.conn
    movements = moved_by(conn, venue, gateway, fresh)
    number = conflicts.numbers(turn, "event", len(fresh))
    rows = []
    for place, each in enumerate(fresh):
        movement = movements.get((each.epoch, each.seq))
        rows.append(_row(turn, venue, gateway, number + place, each, movement))
    write_many(conn, _NEW, rows)
    _note_epochs(conn, gateway, rows)
    told, settled = {}, []
    for movement in movements.values():
        if movement.stored and movement.passage != movement.before:
            settled.append(
                {"g": gateway, "e": movement.epoch, "s": movement.seq, "passage": movement.passage}
            )
        record = movement.usage()
        if record is not None and _is_usage(record):
            id_ = f"{gateway}/{movement.epoch}/{movement.seq}"
            told["usage", id_] = {"body": orjson.dumps(record).decode()}
    if settled:
        write_many(conn, _SETTLE, settled)
    if told:
        feed.own_rows(turn, venue, told)
        look_for_double_entries(turn, venue, gateway, movements.values())


def _is_usage(record: dict[str, Any]) -> bool:
    """Whether gates can take it: a foreign gateway's event may have anything in its fields."""
    try:
        return parse(record) is not None
    except RecordError:
        return False


def _row(
    turn: Turn, venue: str, gateway: str, number: int, each: Arrival, movement: usage.Movement | None
) -> dict[str, Any]:
    event = each.event if each.digest is not None else {}
    holder, credential = text(event, "holder"), text(event, "credential")
    guest = event.get("guest")
    return {
        "gateway": gateway,
        "epoch": each.epoch,
        "seq": each.seq,
        "digest": each.digest,
        "number": number,
        "venue": venue,
        "at": each.at,
        "kind": text(event, "kind"),
        "verdict": text(event, "verdict"),
        "point": text(event, "point"),
        "credential": credential,
        "person": holder or (None if credential is None else f"card:{credential}"),
        "passage": None if movement is None else movement.passage,
        "from_area": text(event, "from"),
        "to_area": text(event, "to"),
        "guest": guest if type(guest) is int and 0 <= guest < 1 << 31 else 0,
        "received_at": turn.now,
        "body": each.body,
    }


def _note_epochs(conn: Connection, gateway: str, rows: Sequence[dict[str, Any]]) -> None:
    last: dict[int, int] = {}
    first: dict[int, int] = {}
    for row in rows:
        last[row["epoch"]] = max(last.get(row["epoch"], 0), row["seq"])
        first.setdefault(row["epoch"], row["number"])
    there = {row.epoch: row.last_seq for row in conn.execute(HAVE, {"gateway": gateway})}
    for epoch, seq in last.items():
        if epoch not in there:
            new = {"gateway": gateway, "epoch": epoch, "last_seq": seq, "number": first[epoch]}
            conn.execute(insert(schema.epoch), [new])
        elif seq > there[epoch]:
            conn.execute(
                update(schema.epoch)
                .where(_epoch.gateway == gateway, _epoch.epoch == epoch)
                .values(last_seq=seq)
            )


# --- reading ---------------------------------------------------------------------------------------------


def have(conn: Connection, gateway: str) -> dict[int, int]:
    """The highest number of each epoch, of the newest if there are very many: an answer has a bound."""
    newest = sorted(conn.execute(HAVE, {"gateway": gateway}), key=lambda row: -row.number)[:_EPOCHS]
    return {row.epoch: row.last_seq for row in newest}


def listed(
    conn: Connection,
    *,
    since: int,
    gateway: str | None,
    kind: str | None,
    verdict: str | None,
    point: str | None,
    credential: str | None,
    holder: str | None,
    after: int | None,
    before: int | None,
    limit: int,
) -> list[StoredEvent]:
    wanted: list[ColumnElement[bool]] = [_event.number > since]
    for column, value in (
        (_event.gateway, gateway),
        (_event.kind, kind),
        (_event.verdict, verdict),
        (_event.point, point),
        (_event.credential, credential),
        (_event.person, holder),
    ):
        if value is not None:
            wanted.append(column == value)
    if after is not None:
        wanted.append(_event.at >= after)
    if before is not None:
        wanted.append(_event.at < before)
    rows = conn.execute(
        select(_event.number, _event.received_at, _event.body)
        .where(*wanted)
        .order_by(_event.number)
        .limit(limit)
    )
    return [StoredEvent(row.number, row.received_at, row.body.encode()) for row in rows]
