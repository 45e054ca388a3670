"""The records of DESIGN.md 4.1 at the central: put, deleted, read, and looked up.

A record belongs to the venues it was put through; they share its body. What a venue sees stands in its log
(``change``), so that the log is the view. A later record takes an earlier one's code: the earlier credential
is deleted then, because a credential without a code is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from sqlalchemy import Connection, and_, bindparam, delete, func, insert, select, update

from gateway.cache.records import RecordError, parse, usage_source
from gateway.cache.values import flag
from gateway.central import schema
from gateway.central.facts import Fault, Put, Version
from gateway.central.faults import NotFound, Refused
from gateway.central.log import Log, Turn
from gateway.sync.protocol import MAX_RECORD

KINDS = ("area", "credential", "entitlement", "event", "holder", "product", "usage", "venue")
MAX_ID = 512
"""Bytes of an id: both databases can have it in an index."""
FAULTS_KEPT = 20
_CHUNK = 1000
_AT_ONCE = 500
"""Ids in one question: within every database's bound on parameters."""
_GATEWAY_USAGE = re.compile(r".+/\d{1,20}/\d{1,20}", re.ASCII | re.DOTALL)

_record, _change, _history = schema.record.c, schema.change.c, schema.history.c
_code, _link = schema.code.c, schema.link.c

_PRESENT = select(_record.id, _record.body, _record.changed_at, _record.by).where(
    _record.kind == bindparam("kind"), _record.id.in_(bindparam("ids", expanding=True))
)
_VIEWS = select(_change.venue, _change.id, _change.deleted, _change.body).where(
    _change.venue.in_(bindparam("venues", expanding=True)),
    _change.kind == bindparam("kind"),
    _change.id.in_(bindparam("ids", expanding=True)),
)
_OWNERS = select(_code.code, _code.credential).where(_code.code.in_(bindparam("codes", expanding=True)))
_NEW_RECORD = insert(schema.record)
_NEW_VERSION = insert(schema.history)
_NEW_CHANGE = insert(schema.change)
_REPLACE_RECORD = (
    update(schema.record)
    .where(_record.kind == bindparam("k"), _record.id == bindparam("i"))
    .values(body=bindparam("body"), changed_at=bindparam("changed_at"), by=bindparam("by"))
)
_REPLACE_CHANGE = (
    update(schema.change)
    .where(_change.venue == bindparam("v"), _change.kind == bindparam("k"), _change.id == bindparam("i"))
    .values(
        position=bindparam("position"),
        deleted=bindparam("deleted"),
        at=bindparam("at"),
        body=bindparam("body"),
    )
)
_NEW_CODE = insert(schema.code)
_MOVE_CODE = (
    update(schema.code).where(_code.code == bindparam("c")).values(credential=bindparam("credential"))
)
_END_CODE = delete(schema.code).where(_code.code == bindparam("c"), _code.credential == bindparam("i"))
_NEW_LINK = insert(schema.link)
_END_LINK = delete(schema.link).where(
    _link.to_kind == bindparam("k"), _link.to_id == bindparam("t"), _link.id == bindparam("i")
)


@dataclass(slots=True)
class _Item:
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
    if "\0" in id_:
        raise RecordError("id", "must not have the character NUL")
    if len(id_.encode()) > MAX_ID:
        raise RecordError("id", f"must be at most {MAX_ID} bytes of UTF-8")
    return kind, id_


def _encoded(obj: Mapping[str, Any]) -> str:
    try:
        body = orjson.dumps(obj)
    except TypeError as error:  # half a surrogate pair, a number beyond 64 bits
        raise RecordError("", f"cannot be written as JSON: {error}") from None
    if len(body) > MAX_RECORD:
        raise RecordError("", f"must be at most {MAX_RECORD} bytes, is {len(body)}")
    return body.decode()


def _links(kind: str, obj: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What the record points to, as far as deleting that concerns it."""
    if obj is None:
        return []
    if kind == "credential":
        return [("entitlement", each) for each in dict.fromkeys(obj.get("entitlements") or ())]
    if kind == "entitlement" and obj.get("holder") is not None:
        return [("holder", obj["holder"])]
    return []


def _parsed(body: str | None) -> Any:
    return None if body is None else orjson.loads(body)


# --- putting -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Putting:
    """Records on their way into one venue, in chunks in which nothing comes twice."""

    turn: Turn
    venue: str
    by: str
    count: int = 0
    bad: int = 0
    faults: list[Fault] = field(default_factory=list)
    unknown: dict[str, int] = field(default_factory=dict)
    _chunk: dict[tuple[str, str], _Item] = field(default_factory=dict)
    _codes: set[str] = field(default_factory=set)

    def take(self, records: Iterable[Mapping[str, Any] | bytes], *, skip_bad: bool) -> bool:
        """All of them, in order. False: one was bad and ``skip_bad`` is not set; undo the transaction."""
        for line, given in enumerate(records, 1):
            obj: Any = given
            try:
                if isinstance(given, bytes):
                    if not given.strip():
                        continue
                    obj = orjson.loads(given)
                self._one(obj, write=skip_bad or not self.bad)
            except orjson.JSONDecodeError as error:
                self._note(Fault(line, "", "", "", f"is not JSON: {error}"))
            except RecordError as error:
                kind, id_ = (obj.get("kind"), obj.get("id")) if isinstance(obj, dict) else ("", "")
                self._note(
                    Fault(
                        line,
                        kind if isinstance(kind, str) else "",
                        id_ if isinstance(id_, str) else "",
                        error.field,
                        error.message,
                    )
                )
        if self.bad and not skip_bad:
            return False
        self.flush()
        return True

    def _note(self, fault: Fault) -> None:
        self.bad += 1
        if len(self.faults) < FAULTS_KEPT:
            self.faults.append(fault)

    def _one(self, obj: Any, *, write: bool) -> None:
        identity = identify(obj)
        if identity is None:
            self.unknown[obj["kind"]] = self.unknown.get(obj["kind"], 0) + 1
            return
        kind, id_ = identity[0], identity[1] or self.venue
        if flag(obj, "deleted"):
            if write:
                self.flush()
                if is_seen(self.turn.conn, self.venue, kind, id_):
                    remove(self.turn, self.venue, kind, id_, self.by)
                self.count += 1
            return
        item = _Item(kind, id_, obj, _encoded(obj))
        if not write:
            return
        code = obj["code"] if kind == "credential" else None
        if (kind, id_) in self._chunk or code in self._codes or len(self._chunk) >= _CHUNK:
            self.flush()
        self._chunk[kind, id_] = item
        if code is not None:
            self._codes.add(code)
        self.count += 1

    def flush(self) -> None:
        if self._chunk:
            chunk, self._chunk, self._codes = self._chunk, {}, set()
            _write(self.turn, self.venue, self.by, chunk)


def _write(turn: Turn, venue: str | None, by: str, chunk: Mapping[tuple[str, str], _Item]) -> None:
    """Records that are checked, none twice and no code twice. ``venue``: None for those who see them."""
    conn, now = turn.conn, turn.now
    present, views, made_here = _found(conn, turn, chunk)
    new_records, replaced, versions, new_changes, moved = [], [], [], [], []
    owned: list[tuple[_Item, Any]] = []
    new_links, ended_links = [], []
    for key, item in chunk.items():
        if key in made_here:
            continue  # a usage that a gateway's own event says better
        kind, id_ = key
        before = present.get(key)
        seen = views.get(key, {})
        same = before is not None and before.body == item.body
        targets = [] if same else [each for each, deleted in seen.items() if not deleted]
        if venue is not None and venue not in targets and seen.get(venue, True):
            targets.append(venue)
        if not targets:
            continue
        for each in targets:
            place = turn.place(each)
            if each in seen:
                moved.append(_moved(each, kind, id_, place, now, deleted=False))
            else:
                new_changes.append(_new_change(each, kind, id_, place, now))
        if same:
            continue
        old = None
        if before is None:
            new_records.append({"kind": kind, "id": id_, "body": item.body, "changed_at": now, "by": by})
        else:
            old = _parsed(before.body) if kind in ("credential", "entitlement") else None
            versions.append(_version(kind, before))
            replaced.append({"k": kind, "i": id_, "body": item.body, "changed_at": now, "by": by})
        if kind in ("credential", "entitlement"):
            was, will = _links(kind, old), _links(kind, item.obj)
            new_links += [{"to_kind": k, "to_id": t, "id": id_} for k, t in will if (k, t) not in was]
            ended_links += [{"k": k, "t": t, "i": id_} for k, t in was if (k, t) not in will]
            if kind == "credential":
                owned.append((item, old))
    for statement, rows in (
        (_NEW_VERSION, versions),
        (_NEW_RECORD, new_records),
        (_REPLACE_RECORD, replaced),
        (_NEW_CHANGE, new_changes),
        (_REPLACE_CHANGE, moved),
        (_END_LINK, ended_links),
        (_NEW_LINK, new_links),
    ):
        if rows:
            conn.execute(statement, rows)
    if owned:
        _take_codes(turn, by, chunk, owned)


def _found(
    conn: Connection, turn: Turn, chunk: Iterable[tuple[str, str]]
) -> tuple[dict[tuple[str, str], Any], dict[tuple[str, str], dict[str, bool]], set[tuple[str, str]]]:
    """Of each record: as it is; whether each venue that had it still sees it; whether a gateway made it."""
    by_kind: dict[str, list[str]] = {}
    for kind, id_ in chunk:
        by_kind.setdefault(kind, []).append(id_)
    present: dict[tuple[str, str], Any] = {}
    views: dict[tuple[str, str], dict[str, bool]] = {}
    made_here = set()
    venues = list(turn.positions)
    for kind, ids in by_kind.items():
        for part in _parts(ids):
            for row in conn.execute(_PRESENT, {"kind": kind, "ids": part}):
                present[kind, row.id] = row
            for row in conn.execute(_VIEWS, {"kind": kind, "ids": part, "venues": venues}):
                views.setdefault((kind, row.id), {})[row.venue] = row.deleted
                if row.body is not None:
                    made_here.add((kind, row.id))
    return present, views, made_here


def _parts(ids: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(ids), _AT_ONCE):
        yield ids[start : start + _AT_ONCE]


def _take_codes(
    turn: Turn, by: str, chunk: Mapping[tuple[str, str], _Item], owned: list[tuple[_Item, Any]]
) -> None:
    conn = turn.conn
    ended = [
        {"c": old["code"], "i": item.id}
        for item, old in owned
        if old is not None and old["code"] != item.obj["code"]
    ]
    if ended:
        conn.execute(_END_CODE, ended)
    owners = {}
    for part in _parts([item.obj["code"] for item, _ in owned]):
        owners.update({row.code: row.credential for row in conn.execute(_OWNERS, {"codes": part})})
    new, taken, losers = [], [], []
    for item, _ in owned:
        code, owner = item.obj["code"], owners.get(item.obj["code"])
        if owner is None:
            new.append({"code": code, "credential": item.id})
        elif owner != item.id:
            taken.append({"c": code, "credential": item.id})
            if ("credential", owner) not in chunk:
                losers.append(owner)
    if new:
        conn.execute(_NEW_CODE, new)
    if taken:
        conn.execute(_MOVE_CODE, taken)
    for owner in losers:
        for venue in seen_by(conn, "credential", owner):
            remove(turn, venue, "credential", owner, by)


def _version(kind: str, row: Any) -> dict[str, Any]:
    return {"kind": kind, "id": row.id, "body": row.body, "changed_at": row.changed_at, "by": row.by}


def _new_change(venue: str, kind: str, id_: str, place: int, now: int) -> dict[str, Any]:
    return {"venue": venue, "kind": kind, "id": id_, "position": place, "deleted": False, "at": now}


def _moved(venue: str, kind: str, id_: str, place: int, now: int, *, deleted: bool) -> dict[str, Any]:
    return {
        "v": venue, "k": kind, "i": id_, "position": place, "deleted": deleted, "at": now, "body": None
    }  # fmt: skip


def put(
    log: Log, venue: str, records: Iterable[Mapping[str, Any] | bytes], by: str, *, skip_bad: bool
) -> Put:
    """All of them in one transaction, or nothing unless ``skip_bad``. Raises NotFound for the venue."""
    putting = None
    try:
        with log.turn() as turn:
            if venue not in turn.positions:
                raise NotFound(f"there is no venue {venue}")
            putting = Putting(turn, venue, by)
            if not putting.take(records, skip_bad=skip_bad):
                raise _Undo
    except _Undo:
        assert putting is not None
        return Put(0, putting.turn.before[venue], putting.faults, putting.bad, putting.unknown)
    return Put(putting.count, turn.positions[venue], putting.faults, putting.bad, putting.unknown)


class _Undo(Exception):
    """Leaves the transaction without a trace."""


# --- deleting ------------------------------------------------------------------------------------------


def seen_by(conn: Connection, kind: str, id_: str) -> list[str]:
    """The venues that see a record."""
    venues = conn.execute(select(schema.venue.c.id).order_by(schema.venue.c.id)).scalars().all()
    rows = conn.execute(_VIEWS, {"kind": kind, "ids": [id_], "venues": venues})
    return sorted(row.venue for row in rows if not row.deleted)


def is_seen(conn: Connection, venue: str, kind: str, id_: str) -> bool:
    return venue in seen_by(conn, kind, id_)


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
    conn.execute(_REPLACE_CHANGE, [_moved(venue, kind, id_, place, now, deleted=True)])
    if kind == "holder":
        conn.execute(
            update(schema.venue)
            .where(schema.venue.c.id == venue)
            .values(forget_position=place, forget_at=now)
        )
    if seen_by(conn, kind, id_):
        return
    before = conn.execute(_PRESENT, {"kind": kind, "ids": [id_]}).one_or_none()
    if before is None:
        return  # a usage that came from a gateway
    old = _parsed(before.body)
    conn.execute(_NEW_VERSION, [_version(kind, before)])
    conn.execute(_REPLACE_RECORD, [{"k": kind, "i": id_, "body": None, "changed_at": now, "by": by}])
    if kind == "credential":
        conn.execute(_END_CODE, [{"c": old["code"], "i": id_}])
    for to_kind, to_id in _links(kind, old):
        conn.execute(_END_LINK, [{"k": to_kind, "t": to_id, "i": id_}])
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
    row = conn.execute(_PRESENT, {"kind": "credential", "ids": [credential]}).one()
    listed = [to for _, to in _links("credential", _parsed(row.body))]
    for part in _parts(listed):
        rows = conn.execute(_VIEWS, {"kind": "entitlement", "ids": part, "venues": [venue]})
        if any(not row.deleted for row in rows):
            return True
    return False


# --- reading -------------------------------------------------------------------------------------------


def body_of(conn: Connection, kind: str, id_: str) -> dict[str, Any]:
    """Raises NotFound."""
    row = conn.execute(_PRESENT, {"kind": kind, "ids": [id_]}).one_or_none()
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
    return [Version(row.changed_at, row.by, _parsed(row.body)) for row in (*past, *present)]


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


# --- one record changed in place -----------------------------------------------------------------------


def edit(turn: Turn, kind: str, id_: str, changes: dict[str, Any], by: str) -> None:
    """Sets fields of a record (None takes one out), for all that see it. Raises NotFound and Refused."""
    body = body_of(turn.conn, kind, id_) | changes
    write(
        turn,
        None,
        {name: value for name, value in body.items() if value is not None or name not in changes},
        by,
    )


def write(turn: Turn, venue: str | None, obj: dict[str, Any], by: str) -> None:
    """One record, checked. Raises Refused."""
    try:
        identity = identify(obj)
        if identity is None:
            raise RecordError("kind", "is unknown")
        item = _Item(*identity, obj, _encoded(obj))
    except RecordError as error:
        raise Refused(str(error)) from error
    _write(turn, venue, by, {(item.kind, item.id): item})


def replace(turn: Turn, credential: str, new_id: str, new_code: str, by: str) -> None:
    """Another card for the same entitlements, for all that see the old one. Raises NotFound and Refused."""
    old = body_of(turn.conn, "credential", credential)
    if seen_by(turn.conn, "credential", new_id):
        raise Refused(f"there is a credential {new_id} already; choose another id")
    if credential_of(turn.conn, new_code) is not None:
        raise Refused("the new code belongs to a credential already; choose another code")
    venues = seen_by(turn.conn, "credential", credential)
    edit(turn, "credential", credential, {"state": "replaced"}, by)
    new = {"kind": "credential", "id": new_id, "code": new_code, "state": "active"}
    if old.get("entitlements"):
        new["entitlements"] = old["entitlements"]
    for venue in venues:
        write(turn, venue, new, by)
