"""The admin API's calls on gateways, keys and tokens, and on what the gateways have sent."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

import orjson
from aiohttp import web

from gateway.central.desk import Ask, stream
from gateway.central.facts import Conflict, GatewayRow, StoredEvent
from gateway.central.openapi import (
    CSV,
    INSTANT,
    JSON,
    Operation,
    Schema,
    many,
    maybe,
    text,
    thing,
    whole,
    word,
)
from gateway.central.store import Store
from gateway.central.web import answered
from gateway.sync import protocol
from gateway.sync.protocol import ProtocolError

_DAY = 86_400
_PAGE = 1000

COLUMNS = (
    *("number", "received", "gateway", "epoch", "seq", "at", "kind", "point", "lane", "verdict", "detail"),
    *(
        "flags",
        "credential",
        "holder",
        "entitlement",
        "product",
        "guest",
        "from",
        "to",
        "passage",
        "of",
        "by",
    ),
)
"""The header of the CSV. New columns come at the end."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


# --- gateways ------------------------------------------------------------------------------------------


async def enrolment_code(ask: Ask) -> web.Response:
    venue, said = ask.part("venue"), await ask.body()
    gateway, ttl_s = protocol.text(said, "gateway"), _seconds(said, _DAY, 30 * _DAY)
    code = await ask.db(ask.central.store.enrolment_code, gateway, venue, ttl_s=ttl_s, by=ask.by)
    return answered({"code": code, "gateway": gateway, "venue": venue, "ttl_s": ttl_s}, 201)


def _seconds(said: dict[str, Any], default: int, most: int) -> int:
    value = _plain(said.get("ttl_s", default))
    if type(value) is not int or not 1 <= value <= most:
        raise ProtocolError(f"ttl_s: must be a whole number from 1 to {most}")
    return value


def _plain(value: object) -> object:
    """A number like 30.0 is whole, too: JSON has one kind of numbers, and some languages write all so."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


async def list_gateways(ask: Ask) -> web.Response:
    rows = await ask.db(ask.central.store.gateways)
    return answered({"gateways": [_gateway(row) for row in rows]})


def _gateway(row: GatewayRow) -> dict[str, Any]:
    return {
        "gateway": row.id,
        "venue": row.venue,
        "machine": row.machine,
        "hostname": row.hostname,
        "version": row.version,
        "enrolled": _instant(row.enrolled_at),
        "seen": _instant(row.seen_at),
        "revoked": row.revoked,
        "condition": row.condition,
    }


def _instant(at: int | None) -> str | None:
    return None if at is None else protocol.rfc3339(at)


async def rotate_gateway_token(ask: Ask) -> web.Response:
    gateway = ask.part("gateway")
    if not protocol.flag(await ask.body(), "at_once"):
        await ask.db(ask.central.store.hasten_renewal, gateway)
        return answered({"gateway": gateway})
    token = await ask.db(ask.central.store.rotate_token, gateway)
    return answered({"gateway": gateway, "token": token})


async def revoke_gateway(ask: Ask) -> web.Response:
    gateway = ask.part("gateway")
    await ask.body()
    await ask.db(ask.central.store.revoke_gateway, gateway)
    return answered({"gateway": gateway, "revoked": True})


async def command_gateway(ask: Ask) -> web.Response:
    gateway, said = ask.part("gateway"), await ask.body()
    do, ttl_s = said.get("do"), _seconds(said, 30, 3600)
    what: dict[str, Any] = {}
    if do in ("open", "close", "free", "normal"):
        what["lane"] = protocol.text(said, "lane")
    elif do == "clear":
        what["area"] = protocol.text(said, "area")
    elif do == "annul":
        what["seq"] = protocol.whole({"seq": _plain(said.get("seq"))}, "seq")
    else:
        raise ProtocolError("do: must be one of " + ", ".join(protocol.ACTS))
    id_ = await ask.db(ask.central.store.command, gateway, do, **what, ttl_s=ttl_s, by=ask.by)
    return answered({"id": id_, "gateway": gateway, "do": do, **what, "ttl_s": ttl_s}, 201)


# --- keys and tokens -----------------------------------------------------------------------------------


async def list_keys(ask: Ask) -> web.Response:
    rows = ask.central.store.keys.all()
    return answered({"keys": [_key(row) for row in rows]})


def _key(row: Any) -> dict[str, Any]:
    return {
        "id": row.id,
        "public": row.public,
        "state": row.state,
        "created": protocol.rfc3339(row.created_at),
    }


async def announce_key(ask: Ask) -> web.Response:
    await ask.body()
    return await _changed(ask, await ask.db(ask.central.store.announce_key), 201)


async def use_key(ask: Ask) -> web.Response:
    await ask.body()
    await ask.db(ask.central.store.use_key, ask.part("key"))
    return await _changed(ask, ask.part("key"))


async def retire_key(ask: Ask) -> web.Response:
    await ask.body()
    await ask.db(ask.central.store.retire_key, ask.part("key"))
    return await _changed(ask, ask.part("key"))


async def _changed(ask: Ask, id_: str, status: int = 200) -> web.Response:
    [row] = [row for row in ask.central.store.keys.all() if row.id == id_]
    return answered(_key(row), status)


async def list_tokens(ask: Ask) -> web.Response:
    rows = await ask.db(ask.central.store.tokens)
    return answered(
        {
            "tokens": [
                {"name": row.name, "role": row.role, "created": protocol.rfc3339(row.created_at)}
                for row in rows
            ]
        }
    )


async def create_token(ask: Ask) -> web.Response:
    said = await ask.body()
    name, role = protocol.text(said, "name"), said.get("role")
    if role not in ("read", "operate", "admin"):
        raise ProtocolError("role: must be read, operate or admin")
    token = await ask.db(ask.central.store.create_token, name, role)
    return answered({"name": name, "role": role, "token": token}, 201)


async def revoke_token(ask: Ask) -> web.Response:
    await ask.db(ask.central.store.revoke_token, ask.part("name"))
    return answered({"name": ask.part("name"), "revoked": True})


# --- what the gateways have sent -----------------------------------------------------------------------


async def list_events(ask: Ask) -> web.StreamResponse:
    filters = {
        **{name: ask.query(name) for name in ("gateway", "kind", "verdict", "point", "credential", "holder")},
        **{name: ask.instant(name) for name in ("after", "before")},
    }
    since = ask.number("since", 0, (1 << 63) - 1) or 0
    if CSV in ask.request.headers.get("Accept", ""):
        limit = ask.number("limit", None, (1 << 63) - 1)
        return await stream(
            ask, CSV + "; charset=utf-8; header=present", _csv(ask.central.store, since, filters, limit)
        )
    limit = ask.number("limit", 100, _PAGE) or 0
    rows = await ask.db(ask.central.store.events, since=since, limit=limit, **filters)
    return answered(
        {"events": [_event(row) for row in rows], "next": str(rows[-1].number if rows else since)}
    )


def _event(row: StoredEvent) -> dict[str, Any]:
    said: dict[str, Any] = orjson.loads(row.body)
    return {**said, "number": row.number, "received": protocol.rfc3339(row.received_at)}


def _csv(store: Store, since: int, filters: dict[str, Any], limit: int | None) -> Iterator[bytes]:
    """Every event there is, or so many, page by page."""
    yield _row(COLUMNS)
    left = limit
    while left is None or left > 0:
        rows = store.events(since=since, limit=_PAGE if left is None else min(_PAGE, left), **filters)
        for row in rows:
            event = _event(row)
            yield _row([event.get(column) for column in COLUMNS])
        if not rows:
            return
        since = rows[-1].number
        left = None if left is None else left - len(rows)


def _row(cells: Any) -> bytes:
    out = io.StringIO()
    csv.writer(out).writerow([_cell(cell) for cell in cells])
    return out.getvalue().encode(errors="replace")


def _cell(value: Any) -> str:
    """A cell that no spreadsheet takes for a formula: what gateways send is other people's text."""
    if value is None:
        return ""
    if isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value):
        value = " ".join(value)
    cell = value if isinstance(value, str) else orjson.dumps(value).decode()
    return "'" + cell if cell.startswith(_FORMULA) and not isinstance(value, (int, float)) else cell


async def list_conflicts(ask: Ask) -> web.Response:
    since = ask.number("since", 0, (1 << 63) - 1) or 0
    limit = ask.number("limit", 100, _PAGE) or 0
    rows: list[Conflict] = await ask.db(ask.central.store.conflicts, since=since, limit=limit)
    return answered(
        {
            "conflicts": [
                {
                    "number": row.number,
                    "kind": row.kind,
                    "at": protocol.rfc3339(row.at),
                    "venue": row.venue,
                    "gateways": row.gateways,
                    "detail": row.detail,
                    "noted": protocol.rfc3339(row.noted_at),
                }
                for row in rows
            ],
            "next": str(rows[-1].number if rows else since),
        }
    )


_WHO = text("north", longest=200)
_NUMBER = whole(description="In the order of arrival")
_TTL: Schema = {"type": "integer", "minimum": 1, "maximum": 30 * _DAY}
_NEXT = text("4711", description="Give it as since to go on from here")
_PAGED = {"since": whole(description="Only what came after it"), "limit": whole(0, _PAGE)}
_KEY = thing(
    id=text("k1", longest=32),
    public=text("BASE64 of 32 bytes"),
    state=word("announced", "present", "old", "retired"),
    created=INSTANT,
)
_NOTHING = thing()

OPERATIONS = (
    Operation(
        "POST",
        "/venues/{venue}/enrolment-codes",
        "operate",
        enrolment_code,
        "A one-time code with which a gateway joins a venue",
        thing(code=text("K7QM-2XPD-94HV"), gateway=_WHO, venue=text("main"), ttl_s=_TTL),
        thing(["ttl_s"], gateway=_WHO, ttl_s=_TTL),
        status=201,
        conflicts=True,
    ),
    Operation(
        "GET",
        "/gateways",
        "read",
        list_gateways,
        "The gateways, each with what it last said of itself",
        thing(
            gateways=many(
                thing(
                    gateway=_WHO,
                    venue=text("main"),
                    machine=maybe(text("64 hex digits")),
                    hostname={"type": "string"},
                    version={"type": "string"},
                    enrolled=maybe(INSTANT),
                    seen=maybe(INSTANT),
                    revoked={"type": "boolean"},
                    condition=maybe({"type": "object"}),
                )
            )
        ),
    ),
    Operation(
        "POST",
        "/gateways/{gateway}/token",
        "admin",
        rotate_gateway_token,
        "A new token for a gateway, with its next answer; at_once: for its file, and those before are void",
        thing(["token"], gateway=_WHO, token=text("…")),
        thing(["at_once"], at_once={"type": "boolean"}),
        conflicts=True,
    ),
    Operation(
        "POST",
        "/gateways/{gateway}/revoke",
        "admin",
        revoke_gateway,
        "A gateway is refused from now on, and wipes its cards",
        thing(gateway=_WHO, revoked={"type": "boolean"}),
        _NOTHING,
        conflicts=True,
    ),
    Operation(
        "POST",
        "/gateways/{gateway}/commands",
        "operate",
        command_gateway,
        "Has a gateway do something: lane for open, close, free, normal; area for clear; seq for annul",
        thing(
            ["lane", "area", "seq"],
            id=text("c1"),
            gateway=_WHO,
            do=word(*protocol.ACTS),
            lane={"type": "string"},
            area={"type": "string"},
            seq=whole(),
            ttl_s=_TTL,
        ),
        {
            "oneOf": [
                thing(["ttl_s"], do=word(*acts), **{what: schema}, ttl_s={**_TTL, "maximum": 3600})
                for acts, what, schema in (
                    (("open", "close", "free", "normal"), "lane", text("north", longest=200)),
                    (("clear",), "area", text("hall", longest=200)),
                    (("annul",), "seq", whole()),
                )
            ],
            "required": ["do"],
        },
        status=201,
        conflicts=True,
    ),
    Operation("GET", "/keys", "admin", list_keys, "The keys that sign", thing(keys=many(_KEY))),
    Operation(
        "POST",
        "/keys",
        "admin",
        announce_key,
        "Draws a key and announces it",
        _KEY,
        _NOTHING,
        status=201,
        conflicts=True,
    ),
    Operation(
        "POST",
        "/keys/{key}/use",
        "admin",
        use_key,
        "Signs with a key that was announced",
        _KEY,
        _NOTHING,
        conflicts=True,
    ),
    Operation(
        "POST",
        "/keys/{key}/retire",
        "admin",
        retire_key,
        "Ends a key: no gateway believes it any more",
        _KEY,
        _NOTHING,
        conflicts=True,
    ),
    Operation(
        "GET",
        "/tokens",
        "admin",
        list_tokens,
        "The admin tokens by name",
        thing(tokens=many(thing(name=text("till"), role=word("read", "operate", "admin"), created=INSTANT))),
    ),
    Operation(
        "POST",
        "/tokens",
        "admin",
        create_token,
        "Makes an admin token; it is shown this once",
        thing(name=text("till"), role=word("read", "operate", "admin"), token=text("…")),
        thing(name=text("till", longest=200), role=word("read", "operate", "admin")),
        status=201,
        conflicts=True,
    ),
    Operation(
        "DELETE",
        "/tokens/{name}",
        "admin",
        revoke_token,
        "Ends an admin token",
        thing(name=text("till"), revoked={"type": "boolean"}),
        conflicts=True,
    ),
    Operation(
        "GET",
        "/events",
        "read",
        list_events,
        "The access events in the order of their arrival; as CSV where Accept names text/csv",
        thing(events=many({"type": "object"}), next=_NEXT),
        query={
            **_PAGED,
            **{
                name: text(example)
                for name, example in (
                    ("gateway", "north"),
                    ("kind", "scan"),
                    ("verdict", "granted"),
                    ("point", "north-in"),
                    ("credential", "C1"),
                    ("holder", "H1"),
                )
            },
            "after": INSTANT,
            "before": INSTANT,
        },
        types=(JSON, CSV),
    ),
    Operation(
        "GET",
        "/conflicts",
        "read",
        list_conflicts,
        "What contradicts itself and somebody should look at",
        thing(
            conflicts=many(
                thing(
                    number=_NUMBER,
                    kind=word("passback", "instance", "epoch"),
                    at=INSTANT,
                    venue=text("main"),
                    gateways=many(_WHO),
                    detail={"type": "object"},
                    noted=INSTANT,
                )
            ),
            next=_NEXT,
        ),
        query=_PAGED,
    ),
)
