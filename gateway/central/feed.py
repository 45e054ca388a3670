"""What gates are told: pages of a venue's log, commands, and how long the log keeps what is over."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Mapping
from typing import Any

import orjson
from sqlalchemy import Connection, and_, bindparam, delete, func, insert, or_, select, update

from gateway.central import records, retention, schema
from gateway.central.database import write_many
from gateway.central.facts import Page
from gateway.central.faults import Refused
from gateway.central.log import Log, Turn
from gateway.model import SECOND
from gateway.sync.protocol import ACTS, rfc3339

TOMBSTONES_KEPT = 30 * 86_400 * SECOND
LONGEST_COMMAND = 3600
"""Seconds that a command may be worth something."""

_change, _record, _venue = schema.change.c, schema.record.c, schema.venue.c
_FOLLOWING = (
    select(
        _change.position,
        _change.kind,
        _change.id,
        _change.deleted,
        func.coalesce(_change.body, _record.body).label("body"),
    )
    .outerjoin(schema.record, and_(_record.kind == _change.kind, _record.id == _change.id))
    .where(
        _change.venue == bindparam("venue"),
        _change.position > bindparam("position"),
        or_(_change.gateway.is_(None), _change.gateway == bindparam("gateway")),
        or_(_change.until.is_(None), _change.until > bindparam("now")),
    )
    .order_by(_change.position)
    .limit(bindparam("limit"))
)
_AT = select(_venue.position, _venue.names).where(_venue.id == bindparam("venue"))
_KEYS = select(schema.key.c.id, schema.key.c.public, schema.key.c.state).order_by(schema.key.c.number)
_USAGE_ID = re.compile(r"(.+)/(\d{1,20})/(\d{1,20})", re.ASCII | re.DOTALL)


def changes(
    conn: Connection,
    now: int,
    venue: str,
    gateway: str,
    position: int,
    *,
    limit: int,
    size: int,
    known: Collection[str] | None,
) -> Page:
    """What the venue's log has after a position: each record once, at its newest place.

    ``known``: the keys that the gateway names; it is told first where they are not those of the central,
    because a gateway that came by a snapshot may have missed a key's announcement.
    """
    at = conn.execute(_AT, {"venue": venue}).one()
    keys = [] if known is None else _about_keys(conn, known)
    found = list(keys)
    space = size - sum(map(len, found))
    asked = max(limit - len(found), 1)
    rows = conn.execute(
        _FOLLOWING,
        {"venue": venue, "position": position, "gateway": gateway, "now": now, "limit": asked + 1},
    ).all()
    last = position
    for place, row in enumerate(rows):
        record = _told(row.kind, row.id, row.deleted, row.body, names=at.names)
        space -= len(record) + 1
        if place == asked or (space < 0 and place):
            return Page(found, last, more=True)
        if row.kind != "key" or record not in keys:  # once, also where its own place comes by
            found.append(record)
        last = row.position
    return Page(found, max(last, at.position), more=False)


def _about_keys(conn: Connection, known: Collection[str]) -> list[bytes]:
    told = []
    for row in conn.execute(_KEYS):
        if row.state == "retired" and row.id in known:
            told.append(orjson.dumps(_tombstone("key", row.id)))
        elif row.state != "retired" and row.id not in known:
            told.append(orjson.dumps({"kind": "key", "id": row.id, "public": row.public}))
    return told


def _told(kind: str, id_: str, deleted: bool, body: str | None, *, names: bool) -> bytes:
    if deleted or body is None:
        return orjson.dumps(_tombstone(kind, id_))
    if kind == "holder" and not names:
        return records.without_name(body)
    return body.encode()


def _tombstone(kind: str, id_: str) -> dict[str, Any]:
    number = _USAGE_ID.fullmatch(id_) if kind == "usage" else None
    if number is None:
        return {"kind": kind, "id": id_, "deleted": True}
    gateway, epoch, seq = number.groups()
    return {"kind": kind, "gateway": gateway, "epoch": int(epoch), "seq": int(seq), "deleted": True}


def own_rows(turn: Turn, venue: str, rows: Mapping[tuple[str, str], dict[str, Any]]) -> None:
    """Puts into a venue's log what is no record of its own (usage, commands, keys): (kind, id) to the columns
    ``body``, ``deleted``, ``gateway`` and ``until`` as far as they differ from nothing."""
    ids: dict[str, list[str]] = {}
    for kind, id_ in rows:
        ids.setdefault(kind, []).append(id_)
    there: set[tuple[str, str]] = set()
    for kind, each in ids.items():
        for start in range(0, len(each), 500):
            found = turn.conn.execute(
                select(_change.id).where(
                    _change.venue == venue, _change.kind == kind, _change.id.in_(each[start : start + 500])
                )
            )
            there.update((kind, id_) for id_ in found.scalars())
    new, again = [], []
    for (kind, id_), columns in rows.items():
        row = {"deleted": False, "body": None, "gateway": None, "until": None} | columns
        row |= {"position": turn.place(venue, row["gateway"]), "at": turn.now}
        if (kind, id_) in there:
            again.append(row | {"v": venue, "k": kind, "i": id_})
        else:
            new.append(row | {"venue": venue, "kind": kind, "id": id_})
    if new:
        write_many(turn.conn, _NEW, new)
    if again:
        write_many(turn.conn, _AGAIN, again)


_NEW = insert(schema.change)
_AGAIN = (
    update(schema.change)
    .where(_change.venue == bindparam("v"), _change.kind == bindparam("k"), _change.id == bindparam("i"))
    .values({name: bindparam(name) for name in ("position", "deleted", "at", "body", "gateway", "until")})
)


def command(
    turn: Turn,
    venue: str,
    gateway: str,
    do: str,
    *,
    lane: str | None,
    area: str | None,
    seq: int | None,
    ttl_s: int,
    by: str,
) -> str:
    """Puts a command into the log for one gateway, and into the history with who gave it. Raises Refused."""
    if do not in ACTS:
        raise Refused(f"do: must be one of {', '.join(ACTS)}")
    name = "area" if do == "clear" else "seq" if do == "annul" else "lane"
    given = {
        each: value for each, value in (("lane", lane), ("area", area), ("seq", seq)) if value is not None
    }
    if set(given) != {name}:
        raise Refused(f"{name}: {do} needs it, and nothing else")
    if name == "seq" and not (type(seq) is int and 0 < seq < 1 << 63):
        raise Refused("seq: must be the number of an event")
    if name != "seq" and not 0 < len(str(given[name])) <= 200:
        raise Refused(f"{name}: must be a name of 1 to 200 characters")
    if not 0 < ttl_s <= LONGEST_COMMAND:
        raise Refused(f"ttl_s: must be 1 to {LONGEST_COMMAND} seconds")
    id_ = secrets.token_hex(12)
    obj = {
        "kind": "command", "id": id_, "gateway": gateway, "do": do, **given,
        "at": rfc3339(turn.now), "ttl_s": ttl_s,
    }  # fmt: skip
    body = orjson.dumps(obj).decode()
    own_rows(
        turn,
        venue,
        {("command", id_): {"body": body, "gateway": gateway, "until": turn.now + ttl_s * SECOND}},
    )
    turn.conn.execute(
        insert(schema.history),
        [{"kind": "command", "id": id_, "body": body, "changed_at": turn.now, "by": by}],
    )
    return id_


def compact(log: Log) -> None:
    """Removes deletions older than 30 days, commands that have expired, and usage that nothing can need.

    What is to go is looked for without a lock, and removed in short transactions.
    """
    with log.db.read() as conn:
        venues = list(conn.execute(select(_venue.id)).scalars())
    for venue in venues:
        with log.db.read() as conn:
            found = _over(conn, venue, log.clock())
        for start in range(0, len(found), 1000):
            part = found[start : start + 1000]
            with log.turn() as turn:
                turn.conn.execute(_DROP, part)
                # A command or a usage that has had its time is nothing that a cursor could miss.
                deletions = [row["p"] for row in part if row["d"]]
                if deletions:
                    turn.conn.execute(_MISSED, {"v": venue, "oldest": max(deletions)})


def _over(conn: Connection, venue: str, now: int) -> list[dict[str, Any]]:
    """What can go of a venue's log, in order."""
    rows = conn.execute(
        select(_change.kind, _change.id, _change.position, _change.deleted).where(
            _change.venue == venue,
            or_(
                and_(_change.deleted.is_(True), _change.at < now - TOMBSTONES_KEPT),
                _change.until <= now,
            ),
        )
    )
    over = [{"v": venue, "k": row.kind, "i": row.id, "p": row.position, "d": row.deleted} for row in rows]
    for id_, position in retention.old_usage(conn, venue, now):
        over.append({"v": venue, "k": "usage", "i": id_, "p": position, "d": False})
    return sorted(over, key=lambda row: int(row["p"]))


# With the position: what has changed since it was looked for stays.
_DROP = delete(schema.change).where(
    _change.venue == bindparam("v"),
    _change.kind == bindparam("k"),
    _change.id == bindparam("i"),
    _change.position == bindparam("p"),
)
_MISSED = (
    update(schema.venue)
    .where(_venue.id == bindparam("v"), _venue.oldest < bindparam("oldest"))
    .values(oldest=bindparam("oldest"))
)
