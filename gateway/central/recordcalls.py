"""The admin API's calls on records, and the acts on memberships."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import orjson
from aiohttp import web

from gateway.cache.records import RecordError
from gateway.central import records
from gateway.central import web as http
from gateway.central.desk import Ask, stream
from gateway.central.facts import Put
from gateway.central.faults import NotFound
from gateway.central.loading import load
from gateway.central.openapi import (
    INSTANT,
    NDJSON,
    RECORD,
    Operation,
    many,
    maybe,
    text,
    thing,
    whole,
    word,
)
from gateway.central.web import Refusal, answered
from gateway.sync import protocol
from gateway.sync.protocol import ProtocolError

_MAX_LOAD = 4 << 30
"""Bytes of one load: some twenty million records."""

_FAULT = thing(
    line=whole(),
    kind={"type": "string"},
    id={"type": "string"},
    field={"type": "string"},
    message={"type": "string"},
)
_PUT = thing(
    count=whole(description="Records that are now as they were given"),
    position=whole(description="The venue's place in its log after it"),
    bad=whole(description="How many were left out"),
    faults=many(_FAULT),
    unknown={"type": "object", "additionalProperties": whole(), "description": "Kinds that were skipped"},
)
_VENUE = thing(id=text("main"), names={"type": "boolean"}, history=text("h7"), position=whole())
_ID = text("C1", longest=records.MAX_ID)
_CODE = text("8K2MPX4T7Q")


# --- venues and their records --------------------------------------------------------------------------


async def list_venues(ask: Ask) -> web.Response:
    rows = await ask.db(ask.central.store.venues)
    return answered({"venues": [_venue(row) for row in rows]})


async def create_venue(ask: Ask) -> web.Response:
    said = await ask.body()
    id_ = protocol.text(said, "id")
    await ask.db(ask.central.store.create_venue, id_, names=protocol.flag(said, "names"))
    [row] = [row for row in await ask.db(ask.central.store.venues) if row.id == id_]
    return answered(_venue(row), 201)


def _venue(row: Any) -> dict[str, Any]:
    return {"id": row.id, "names": row.names, "history": row.history, "position": row.position}


async def export_records(ask: Ask) -> web.StreamResponse:
    lines = ask.central.store.export(ask.part("venue"))
    if ask.role != "admin":
        lines = map(_without_code, lines)
    return await stream(ask, NDJSON, (line.rstrip(b"\n") + b"\n" for line in lines))


def _without_code(line: bytes) -> bytes:
    return orjson.dumps(shown(orjson.loads(line))) if b'"code"' in line else line


def shown(record: dict[str, Any]) -> dict[str, Any]:
    """A record for somebody who is not to know working codes."""
    if record.get("kind") == "credential":
        record = {name: value for name, value in record.items() if name != "code"}
    return record


async def load_records(ask: Ask) -> web.Response:
    skip_bad = ask.request.query.get("skip_bad", "0")
    if skip_bad not in ("0", "1"):
        raise ProtocolError("skip_bad: must be 0 or 1")
    if ask.request.content_type not in (NDJSON, "application/json"):
        raise Refusal(415, "bad_request", f"send {NDJSON}, a record a line")
    with tempfile.TemporaryFile(dir=ask.central.store.directory) as file:
        await http.spooled(ask.request, file, _MAX_LOAD)
        file.seek(0)
        put = await load(
            ask.central.db, ask.central.store, file, ask.part("venue"), ask.by, skip_bad=skip_bad == "1"
        )
    return _stored(put, skip_bad=skip_bad == "1")


def _stored(put: Put, *, skip_bad: bool) -> web.Response:
    said = {
        "count": put.count,
        "position": put.position,
        "bad": put.bad,
        "faults": [
            {
                "line": each.line,
                "kind": each.kind,
                "id": each.id,
                "field": each.field,
                "message": each.message,
            }
            for each in put.faults
        ],
        "unknown": dict(put.unknown),
    }
    if not put.bad or skip_bad:
        return answered(said)
    first = "; ".join(f"line {fault}" for fault in put.faults[:3])
    more = f" and {put.bad - 3} more" if put.bad > 3 else ""
    text_ = f"nothing was loaded: {first}{more}; correct them, or load the rest with skip_bad=1"
    return answered({"error": text_, "code": "bad_records", **said}, 400)


async def get_record(ask: Ask) -> web.Response:
    venue, kind, id_ = _named(ask)
    if not await ask.db(ask.central.store.sees, venue, kind, id_):
        raise NotFound(f"the venue {venue} has no {kind} {id_}")
    record = await ask.db(ask.central.store.get, kind, id_)
    return answered(record if ask.role == "admin" else shown(record))


async def put_record(ask: Ask) -> web.Response:
    venue, kind, id_ = _named(ask)
    said = await ask.body()
    record = {"kind": kind, **said}
    if kind not in ("usage", "venue"):
        record = {"kind": kind, "id": id_, **said}
    try:
        named = records.identify(record)
    except RecordError as error:
        raise Refusal(
            400, "bad_record", f"{error.field}: {error.message}" if error.field else error.message
        ) from None
    if named != (kind, "" if kind == "venue" else id_) or record.get("deleted"):
        raise Refusal(400, "bad_record", "kind and id must be those of the path; DELETE removes a record")
    put = await ask.db(ask.central.store.put, venue, [record], ask.by)
    return _stored(put, skip_bad=False)


async def delete_record(ask: Ask) -> web.Response:
    venue, kind, id_ = _named(ask)
    await ask.db(ask.central.store.delete, venue, kind, id_, ask.by)
    return answered({"kind": kind, "id": id_, "deleted": True})


async def record_history(ask: Ask) -> web.Response:
    venue, kind, id_ = _named(ask)
    await ask.db(ask.central.store.log, venue)  # there is such a venue
    versions = await ask.db(ask.central.store.history, kind, id_)
    return answered(
        {
            "versions": [
                {
                    "at": protocol.rfc3339(each.at),
                    "by": each.by,
                    "deleted": each.deleted,
                    "record": each.body if each.body is None or ask.role == "admin" else shown(each.body),
                }
                for each in versions
            ]
        }
    )


def _named(ask: Ask) -> tuple[str, str, str]:
    """(venue, kind, id) of the path. Raises NotFound for another venue's own record."""
    venue, kind, id_ = ask.part("venue"), ask.part("kind"), ask.part("id")
    if kind == "venue" and id_ != venue:
        raise NotFound(f"the id of a venue's own record is the venue's, {venue}")
    return venue, kind, id_


# --- acts on memberships -------------------------------------------------------------------------------


async def revoke_credential(ask: Ask) -> web.Response:
    id_ = ask.part("id")
    state = (await ask.body()).get("state", "lost")
    if state not in ("lost", "revoked"):
        raise ProtocolError("state: must be lost or revoked")
    await ask.db(ask.central.store.revoke, id_, state, ask.by)
    return answered({"credential": id_, "state": state})


async def replace_credential(ask: Ask) -> web.Response:
    id_, said = ask.part("id"), await ask.body()
    new, code = protocol.text(said, "id", records.MAX_ID), protocol.text(said, "code", 512)
    await ask.db(ask.central.store.replace, id_, new, code, ask.by)
    return answered({"credential": new, "replaces": id_})


async def find_code(ask: Ask) -> web.Response:
    code = protocol.text(await ask.body(), "code", 512)
    return answered({"credential": await ask.db(ask.central.store.find_code, code)})


async def renew_entitlement(ask: Ask) -> web.Response:
    id_, said = ask.part("id"), await ask.body()
    if "valid_until" not in said:
        raise ProtocolError("valid_until: is missing; null is for ever")
    until = None if said["valid_until"] is None else protocol.text(said, "valid_until", 40)
    await ask.db(ask.central.store.renew, id_, until, ask.by)
    return answered({"entitlement": id_, "valid_until": until})


async def suspend_entitlement(ask: Ask) -> web.Response:
    return await _set(ask, ask.central.store.suspend, "entitlement", "suspended")


async def resume_entitlement(ask: Ask) -> web.Response:
    return await _set(ask, ask.central.store.resume, "entitlement", "active")


async def block_holder(ask: Ask) -> web.Response:
    return await _set(ask, ask.central.store.block, "holder", "blocked")


async def unblock_holder(ask: Ask) -> web.Response:
    return await _set(ask, ask.central.store.unblock, "holder", "active")


async def _set(ask: Ask, act: Callable[[str, str], None], kind: str, state: str) -> web.Response:
    id_ = ask.part("id")
    await ask.body()
    await ask.db(act, id_, ask.by)
    return answered({kind: id_, "state": state})


async def change_product(ask: Ask) -> web.Response:
    id_, product = ask.part("id"), protocol.text(await ask.body(), "product", records.MAX_ID)
    await ask.db(ask.central.store.change_product, id_, product, ask.by)
    return answered({"entitlement": id_, "product": product})


_RECORD_PATH = "/venues/{venue}/records/{kind}/{id}"
_STATED = thing(credential=_ID, state=word("lost", "revoked"))
_NOTHING = thing()

OPERATIONS = (
    Operation("GET", "/venues", "read", list_venues, "The venues", thing(venues=many(_VENUE))),
    Operation(
        "POST",
        "/venues",
        "admin",
        create_venue,
        "Makes a venue",
        _VENUE,
        thing(
            ["names"],
            id=text("main", longest=200),
            names={"type": "boolean", "description": "Whether holders' names are sent to its gates"},
        ),
        status=201,
        conflicts=True,
    ),
    Operation(
        "GET",
        "/venues/{venue}/records",
        "read",
        export_records,
        "Every record of a venue, one a line",
        types=(NDJSON,),
    ),
    Operation(
        "POST",
        "/venues/{venue}/records",
        "admin",
        load_records,
        "Puts records into a venue, all or none",
        _PUT,
        lines=True,
        query={"skip_bad": word("0", "1")},
    ),
    Operation("GET", _RECORD_PATH, "read", get_record, "One record", RECORD),
    Operation(
        "PUT",
        _RECORD_PATH,
        "admin",
        put_record,
        "Puts one record into a venue",
        _PUT,
        {"type": "object", "description": "A record of docs/admission.md"},
    ),
    Operation(
        "DELETE",
        _RECORD_PATH,
        "admin",
        delete_record,
        "Takes a record out of a venue; out of the last one: deletes it",
        thing(kind=text("holder"), id=_ID, deleted={"type": "boolean"}),
        conflicts=True,
    ),
    Operation(
        "GET",
        _RECORD_PATH + "/history",
        "read",
        record_history,
        "Every version of a record, the oldest first",
        thing(
            versions=many(
                thing(at=INSTANT, by=text("till"), deleted={"type": "boolean"}, record=maybe(RECORD))
            )
        ),
    ),
    Operation(
        "POST",
        "/credentials/{id}/revoke",
        "operate",
        revoke_credential,
        "A card is lost or misused: refused everywhere, its membership stays",
        _STATED,
        thing(["state"], state=word("lost", "revoked")),
        conflicts=True,
    ),
    Operation(
        "POST",
        "/credentials/{id}/replace",
        "operate",
        replace_credential,
        "A new card for an old one, which is refused from now on",
        thing(credential=_ID, replaces=_ID),
        thing(id=_ID, code=_CODE),
        conflicts=True,
    ),
    Operation(
        "POST",
        "/codes/find",
        "operate",
        find_code,
        "Whose card this is",
        thing(credential=maybe(_ID)),
        thing(code=_CODE),
    ),
    Operation(
        "POST",
        "/entitlements/{id}/renew",
        "operate",
        renew_entitlement,
        "An entitlement holds longer; null is for ever",
        thing(entitlement=_ID, valid_until=maybe(text("2027-12-31", longest=40))),
        thing(valid_until=maybe(text("2027-12-31", longest=40))),
        conflicts=True,
    ),
    *(
        Operation(
            "POST",
            f"/{kind}s/{{id}}/{path}",
            "operate",
            handler,
            summary,
            thing((), **{kind: _ID, "state": word(state)}),
            _NOTHING,
            conflicts=True,
        )
        for kind, path, handler, summary, state in (
            ("entitlement", "suspend", suspend_entitlement, "An entitlement admits nobody", "suspended"),
            ("entitlement", "resume", resume_entitlement, "It admits again", "active"),
            ("holder", "block", block_holder, "A holder is admitted by nothing", "blocked"),
            ("holder", "unblock", unblock_holder, "The holder is admitted again", "active"),
        )
    ),
    Operation(
        "POST",
        "/entitlements/{id}/product",
        "operate",
        change_product,
        "An entitlement becomes one of another product; the card stays",
        thing(entitlement=_ID, product=text("family")),
        thing(product=text("family", longest=records.MAX_ID)),
        conflicts=True,
    ),
)
