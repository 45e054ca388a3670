"""Records that go: out of a venue's view, and out of the last one for good."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, and_, bindparam, delete, insert, select, update

from gateway.central import schema
from gateway.central.log import Turn
from gateway.central.records import PRESENT, VIEWS, links, parsed, parts, seen_by

_record, _change, _history = schema.record.c, schema.change.c, schema.history.c
_code, _link = schema.code.c, schema.link.c

NEW_VERSION = insert(schema.history)
REPLACE_RECORD = (
    update(schema.record)
    .where(_record.kind == bindparam("k"), _record.id == bindparam("i"))
    .values(body=bindparam("body"), changed_at=bindparam("changed_at"), by=bindparam("by"))
)
REPLACE_CHANGE = (
    update(schema.change)
    .where(_change.venue == bindparam("v"), _change.kind == bindparam("k"), _change.id == bindparam("i"))
    .values(
        position=bindparam("position"),
        deleted=bindparam("deleted"),
        at=bindparam("at"),
        body=bindparam("body"),
    )
)
END_CODE = delete(schema.code).where(_code.code == bindparam("c"), _code.credential == bindparam("i"))
END_LINK = delete(schema.link).where(
    _link.to_kind == bindparam("k"), _link.to_id == bindparam("t"), _link.id == bindparam("i")
)


def remove(turn: Turn, venue: str, kind: str, id_: str, by: str) -> None:
    """Takes a record out of a venue's view; out of the last one: it is deleted. With a holder go the
    entitlements, and the credentials left without any."""
    conn, now = turn.conn, turn.now
    if kind == "holder":
        for entitlement in _pointing(conn, venue, "holder", id_, "entitlement"):
            remove(turn, venue, "entitlement", entitlement, by)
            for credential in _pointing(conn, venue, "entitlement", entitlement, "credential"):
                if not _any_left(conn, venue, credential):
                    remove(turn, venue, "credential", credential, by)
    place = turn.place(venue)
    conn.execute(REPLACE_CHANGE, [moved_to(venue, kind, id_, place, now, deleted=True)])
    if kind == "holder":
        conn.execute(
            update(schema.venue)
            .where(schema.venue.c.id == venue)
            .values(forget_position=place, forget_at=now)
        )
    if seen_by(conn, kind, id_):
        return
    before = conn.execute(PRESENT, {"kind": kind, "ids": [id_]}).one_or_none()
    if before is None:
        return  # a usage that came from a gateway
    old = parsed(before.body)
    conn.execute(NEW_VERSION, [version(kind, before)])
    conn.execute(REPLACE_RECORD, [{"k": kind, "i": id_, "body": None, "changed_at": now, "by": by}])
    if kind == "credential":
        conn.execute(END_CODE, [{"c": old["code"], "i": id_}])
    for to_kind, to_id in links(kind, old):
        conn.execute(END_LINK, [{"k": to_kind, "t": to_id, "i": id_}])
    if kind == "holder":  # nothing of the person stays
        conn.execute(
            update(schema.history).where(_history.kind == kind, _history.id == id_).values(body=None)
        )


def _pointing(conn: Connection, venue: str, to_kind: str, to_id: str, kind: str) -> list[str]:
    """Ids of the records of a kind that point to this one and that the venue sees."""
    return list(
        conn.execute(
            select(_link.id)
            .join(schema.change, and_(_change.kind == kind, _change.id == _link.id))
            .where(
                _link.to_kind == to_kind,
                _link.to_id == to_id,
                _change.venue == venue,
                _change.deleted.is_(False),
            )
            .order_by(_link.id)
        ).scalars()
    )


def _any_left(conn: Connection, venue: str, credential: str) -> bool:
    """Whether the venue still sees an entitlement of this credential."""
    row = conn.execute(PRESENT, {"kind": "credential", "ids": [credential]}).one()
    listed = [to for _, to in links("credential", parsed(row.body))]
    for part in parts(listed):
        rows = conn.execute(VIEWS, {"kind": "entitlement", "ids": part, "venues": [venue]})
        if any(not row.deleted for row in rows):
            return True
    return False


def version(kind: str, row: Any) -> dict[str, Any]:
    return {"kind": kind, "id": row.id, "body": row.body, "changed_at": row.changed_at, "by": row.by}


def moved_to(venue: str, kind: str, id_: str, place: int, now: int, *, deleted: bool) -> dict[str, Any]:
    return {
        "v": venue, "k": kind, "i": id_, "position": place, "deleted": deleted, "at": now, "body": None
    }  # fmt: skip
