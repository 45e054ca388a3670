"""Records that are put: checked, in chunks, each with its place in the log of every venue that sees it.

A later record takes an earlier one's code: the earlier credential is deleted then, because a credential
without a code is none. A record that is already as it is given changes nothing, so that a whole feed can be
put every night.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from sqlalchemy import Connection, bindparam, insert, select, update

from gateway.cache.records import RecordError
from gateway.cache.values import flag
from gateway.central import schema
from gateway.central.facts import Fault, Put
from gateway.central.faults import NotFound, Refused
from gateway.central.log import Log, Turn
from gateway.central.records import (
    PRESENT,
    VIEWS,
    Item,
    body_of,
    credential_of,
    encoded,
    identify,
    is_seen,
    links,
    parsed,
    parts,
    seen_by,
)
from gateway.central.removal import (
    END_CODE,
    END_LINK,
    NEW_VERSION,
    REPLACE_CHANGE,
    REPLACE_RECORD,
    moved_to,
    remove,
    version,
)

FAULTS_KEPT = 20
_CHUNK = 1000

_code = schema.code.c
_OWNERS = select(_code.code, _code.credential).where(_code.code.in_(bindparam("codes", expanding=True)))
_NEW_RECORD = insert(schema.record)
_NEW_CHANGE = insert(schema.change)
_NEW_CODE = insert(schema.code)
_MOVE_CODE = (
    update(schema.code).where(_code.code == bindparam("c")).values(credential=bindparam("credential"))
)
_NEW_LINK = insert(schema.link)


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
    _chunk: dict[tuple[str, str], Item] = field(default_factory=dict)
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
        body = encoded(obj)  # first: what follows may then count on valid Unicode
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
        item = Item(kind, id_, obj, body)
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


def _write(turn: Turn, venue: str | None, by: str, chunk: Mapping[tuple[str, str], Item]) -> None:
    """Records that are checked, none twice and no code twice. ``venue``: None for those who see them."""
    conn, now = turn.conn, turn.now
    present, views, made_here = _found(conn, turn, chunk)
    new_records, replaced, versions, new_changes, moved = [], [], [], [], []
    owned: list[tuple[Item, Any]] = []
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
                moved.append(moved_to(each, kind, id_, place, now, deleted=False))
            else:
                new_changes.append(_new_change(each, kind, id_, place, now))
        if same:
            continue
        old = None
        if before is None:
            new_records.append({"kind": kind, "id": id_, "body": item.body, "changed_at": now, "by": by})
        else:
            old = parsed(before.body) if kind in ("credential", "entitlement") else None
            versions.append(version(kind, before))
            replaced.append({"k": kind, "i": id_, "body": item.body, "changed_at": now, "by": by})
        if kind in ("credential", "entitlement"):
            was, will = links(kind, old), links(kind, item.obj)
            new_links += [{"to_kind": k, "to_id": t, "id": id_} for k, t in will if (k, t) not in was]
            ended_links += [{"k": k, "t": t, "i": id_} for k, t in was if (k, t) not in will]
            if kind == "credential":
                owned.append((item, old))
    for statement, rows in (
        (NEW_VERSION, versions),
        (_NEW_RECORD, new_records),
        (REPLACE_RECORD, replaced),
        (_NEW_CHANGE, new_changes),
        (REPLACE_CHANGE, moved),
        (END_LINK, ended_links),
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
        for part in parts(ids):
            for row in conn.execute(PRESENT, {"kind": kind, "ids": part}):
                present[kind, row.id] = row
            for row in conn.execute(VIEWS, {"kind": kind, "ids": part, "venues": venues}):
                views.setdefault((kind, row.id), {})[row.venue] = row.deleted
                if row.body is not None:
                    made_here.add((kind, row.id))
    return present, views, made_here


def _take_codes(
    turn: Turn, by: str, chunk: Mapping[tuple[str, str], Item], owned: list[tuple[Item, Any]]
) -> None:
    conn = turn.conn
    ended = [
        {"c": old["code"], "i": item.id}
        for item, old in owned
        if old is not None and old["code"] != item.obj["code"]
    ]
    if ended:
        conn.execute(END_CODE, ended)
    owners = {}
    for part in parts([item.obj["code"] for item, _ in owned]):
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


def _new_change(venue: str, kind: str, id_: str, place: int, now: int) -> dict[str, Any]:
    return {"venue": venue, "kind": kind, "id": id_, "position": place, "deleted": False, "at": now}


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
        body = encoded(obj)
        identity = identify(obj)
        if identity is None:
            raise RecordError("kind", "is unknown")
        item = Item(*identity, obj, body)
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
