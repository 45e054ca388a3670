"""How long a usage can still matter to a limit, ``again_after_minutes`` or presence (DESIGN.md 4.1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import orjson
from sqlalchemy import Connection, and_, func, select

from gateway.cache.values import instant
from gateway.central import schema
from gateway.model import MINUTE, SECOND

DAY = 86_400 * SECOND
PRESENCE = 2 * DAY
USUAL = 40 * DAY
"""Covers a day, a week and a month."""
YEAR = 400 * DAY
_AT_ONCE = 500
_EVER = (1 << 63) - 1
_change, _record = schema.change.c, schema.record.c


def horizon(product: Any) -> int | None:
    """Microseconds for which an entry with an entitlement of this product can matter; None: for ever."""
    longest = USUAL
    for rule in product.get("rules") or ():
        longest = max(longest, (rule.get("again_after_minutes") or 0) * MINUTE + DAY)
        for limit in (*(rule.get("limits") or ()), *(rule.get("guest_limits") or ())):
            per = limit.get("per")
            if per in ("term", "event"):  # an event may be as long as it likes
                return None
            if per == "year":
                longest = max(longest, YEAR)
    return longest


def old_usage(conn: Connection, venue: str, now: int) -> Iterator[tuple[str, int]]:
    """Id and position of the usage in a venue's log that nothing can need any more; reads as it goes."""
    horizons = {}
    for row in _after(conn, venue, "product", "", _EVER, None):
        horizons[row.id] = horizon(orjson.loads(row.body))
    last = ""
    # What came lately stays, however old its entry is: a gate that was offline sends a million at once.
    while rows := _after(conn, venue, "usage", last, now - PRESENCE, _AT_ONCE):
        last = rows[-1].id
        usages = [(row, orjson.loads(row.body)) for row in rows]
        products = _products(conn, [u["entitlement"] for _, u in usages if u.get("entitlement") is not None])
        for row, usage in usages:
            entitlement = usage.get("entitlement")
            if entitlement is None or usage.get("passage") == "not_taken":
                keep: int | None = PRESENCE
            else:
                keep = horizons.get(products.get(entitlement), USUAL)
            if keep is not None and now - instant(usage["at"], "at") > keep:
                yield row.id, row.position


def _products(conn: Connection, entitlements: list[str]) -> dict[str, str | None]:
    """The product of each entitlement that is there."""
    rows = conn.execute(
        select(_record.id, _record.body).where(
            _record.kind == "entitlement", _record.id.in_(entitlements), _record.body.is_not(None)
        )
    )
    return {row.id: orjson.loads(row.body).get("product") for row in rows}


def _after(
    conn: Connection, venue: str, kind: str, last: str, before: int, limit: int | None
) -> Sequence[Any]:
    """What a venue sees of a kind after this id, in order, and has seen since before an instant."""
    return conn.execute(
        select(_change.id, _change.position, func.coalesce(_change.body, _record.body).label("body"))
        .outerjoin(schema.record, and_(_record.kind == _change.kind, _record.id == _change.id))
        .where(
            _change.venue == venue,
            _change.kind == kind,
            _change.id > last,
            _change.at <= before,
            _change.deleted.is_(False),
        )
        .order_by(_change.id)
        .limit(limit)
    ).all()
