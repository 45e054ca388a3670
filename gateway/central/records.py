"""The records of DESIGN.md 4.1 at the central: checked, read, and looked up.

A record belongs to the venues it was put through; they share its body. What a venue sees stands in its log
(``change``), so that the log is the view.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, and_, bindparam, func, select

from gateway.cache.records import RecordError, parse, usage_source
from gateway.central import schema
from gateway.central.facts import Version
from gateway.central.faults import NotFound
from gateway.sync.protocol import MAX_RECORD

KINDS = ("area", "credential", "entitlement", "event", "holder", "product", "usage", "venue")
MAX_ID = 512
"""Bytes of an id: both databases can have it in an index."""
AT_ONCE = 500
"""Ids in one question: within every database's bound on parameters."""
_GATEWAY_USAGE = re.compile(r".+/\d{1,20}/\d{1,20}", re.ASCII | re.DOTALL)

_record, _change, _history, _code = schema.record.c, schema.change.c, schema.history.c, schema.code.c

PRESENT = select(_record.id, _record.body, _record.changed_at, _record.by).where(
    _record.kind == bindparam("kind"), _record.id.in_(bindparam("ids", expanding=True))
)
VIEWS = select(_change.venue, _change.id, _change.deleted, _change.body).where(
    _change.venue.in_(bindparam("venues", expanding=True)),
    _change.kind == bindparam("kind"),
    _change.id.in_(bindparam("ids", expanding=True)),
)


@dataclass(slots=True)
class Item:
    """A record on its way in."""

    kind: str
    id: str
    obj: Mapping[str, Any]
    body: str


def identify(obj: Any) -> tuple[str, str] | None:
    """Checks a record and gives its kind and id (of a venue: an empty one); None: the kind is unknown.

    Raises RecordError.
    """
    record = parse(obj)
    kind: str = obj["kind"]
    if record is None:
        if kind in ("key", "command"):
            raise RecordError("kind", f"a {kind} is not put by hand")
        return None
    if kind == "venue":
        return kind, ""
    if kind == "usage":
        source = usage_source(obj)
        id_ = source.removeprefix("id/") if obj.get("gateway") is None else source
        if obj.get("gateway") is None and _GATEWAY_USAGE.fullmatch(id_):
            raise RecordError("id", "reads like a gateway's number; choose another")
    else:
        id_ = obj["id"]
    _check_id("id", id_)
    for to_kind, to_id in () if obj.get("deleted") else links(kind, obj):
        _check_id("entitlements" if to_kind == "entitlement" else to_kind, to_id)
    return kind, id_


def _check_id(field: str, id_: str) -> None:
    if "\0" in id_:
        raise RecordError(field, "an id must not have the character NUL")
    if len(id_.encode()) > MAX_ID:
        raise RecordError(field, f"an id must be at most {MAX_ID} bytes of UTF-8")


def encoded(obj: Any) -> str:
    """A record as it is kept. Raises RecordError."""
    try:
        body = orjson.dumps(obj)
    except TypeError as error:  # half a surrogate pair, a number beyond 64 bits
        raise RecordError("", f"cannot be written as JSON: {error}") from None
    if len(body) > MAX_RECORD:
        raise RecordError("", f"must be at most {MAX_RECORD} bytes, is {len(body)}")
    return body.decode()


def links(kind: str, obj: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What the record points to, as far as deleting that concerns it."""
    if obj is None:
        return []
    if kind == "credential":
        return [("entitlement", each) for each in dict.fromkeys(obj.get("entitlements") or ())]
    if kind == "entitlement" and obj.get("holder") is not None:
        return [("holder", obj["holder"])]
    return []


def parsed(body: str | None) -> Any:
    return None if body is None else orjson.loads(body)


# --- reading -------------------------------------------------------------------------------------------


def parts(ids: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(ids), AT_ONCE):
        yield ids[start : start + AT_ONCE]


def seen_by(conn: Connection, kind: str, id_: str) -> list[str]:
    """The venues that see a record."""
    venues = conn.execute(select(schema.venue.c.id).order_by(schema.venue.c.id)).scalars().all()
    rows = conn.execute(VIEWS, {"kind": kind, "ids": [id_], "venues": venues})
    return sorted(row.venue for row in rows if not row.deleted)


def is_seen(conn: Connection, venue: str, kind: str, id_: str) -> bool:
    return venue in seen_by(conn, kind, id_)


def body_of(conn: Connection, kind: str, id_: str) -> dict[str, Any]:
    """Raises NotFound."""
    row = conn.execute(PRESENT, {"kind": kind, "ids": [id_]}).one_or_none()
    if row is None or row.body is None:
        raise NotFound(f"there is no {kind} {id_}")
    body: dict[str, Any] = orjson.loads(row.body)
    return body


def versions(conn: Connection, kind: str, id_: str) -> list[Version]:
    """Every version, the oldest first. Raises NotFound where there never was one."""
    past = conn.execute(
        select(_history.changed_at, _history.by, _history.body)
        .where(_history.kind == kind, _history.id == id_)
        .order_by(_history.number)
    ).all()
    present = conn.execute(
        select(_record.changed_at, _record.by, _record.body).where(_record.kind == kind, _record.id == id_)
    ).all()
    if not past and not present:
        raise NotFound(f"there never was a {kind} {id_}")
    return [Version(row.changed_at, row.by, parsed(row.body)) for row in (*past, *present)]


def export(conn: Connection, venue: str, *, names: bool) -> Iterator[bytes]:
    """Every record that the venue sees, as JSON, by kind and id; reads as it goes."""
    rows = conn.execute(
        select(_change.kind, func.coalesce(_change.body, _record.body))
        .outerjoin(schema.record, and_(_record.kind == _change.kind, _record.id == _change.id))
        .where(_change.venue == venue, _change.kind.in_(KINDS), _change.deleted.is_(False))
        .order_by(_change.kind, _change.id)
        .execution_options(yield_per=2000)
    )
    for kind, body in rows:
        yield without_name(body) if kind == "holder" and not names else body.encode()


def without_name(body: str) -> bytes:
    """A holder as a venue's gates see it where names are not sent."""
    holder = orjson.loads(body)
    holder.pop("name", None)
    return orjson.dumps(holder)


def credential_of(conn: Connection, code: str) -> str | None:
    found: str | None = conn.execute(select(_code.credential).where(_code.code == code)).scalar()
    return found
