"""How long a usage can still matter to a limit, ``again_after_minutes`` or presence (DESIGN.md 4.1)."""

from __future__ import annotations

from typing import Any

import orjson
from sqlalchemy import Connection, and_, func, select

from gateway.central import schema
from gateway.model import MINUTE, SECOND
from gateway.sync.protocol import ProtocolError, instant

DAY = 86_400 * SECOND
PRESENCE = 2 * DAY
USUAL = 40 * DAY
"""Covers a day, a week and a month."""
YEAR = 400 * DAY
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


def old_usage(conn: Connection, venue: str, now: int) -> list[str]:
    """Ids of the usage in a venue's log that nothing can need any more."""
    horizons = {row.id: horizon(orjson.loads(row.body)) for row in _seen(conn, venue, "product") if row.body}
    products: dict[str, str | None] = {}
    candidates: list[tuple[str, str, int]] = []
    old = []
    for row in _seen(conn, venue, "usage"):
        usage = orjson.loads(row.body)
        try:
            age = now - instant(usage, "at")
        except ProtocolError:
            continue
        entitlement = usage.get("entitlement")
        if age > PRESENCE and (entitlement is None or usage.get("passage") == "not_taken"):
            old.append(row.id)
        elif age > USUAL:
            candidates.append((row.id, entitlement, age))
            products[entitlement] = None
    ids = list(products)
    for start in range(0, len(ids), 500):
        for row in conn.execute(
            select(_record.id, _record.body).where(
                _record.kind == "entitlement", _record.id.in_(ids[start : start + 500])
            )
        ):
            products[row.id] = None if row.body is None else orjson.loads(row.body).get("product")
    for id_, entitlement, age in candidates:
        product = products[entitlement]
        # An entitlement that is gone needs nothing; one without a product judged here is kept as usual.
        keep = USUAL if product is None else horizons.get(product, USUAL)
        if keep is not None and age > keep:
            old.append(id_)
    return old


def _seen(conn: Connection, venue: str, kind: str) -> Any:
    return conn.execute(
        select(_change.id, func.coalesce(_change.body, _record.body).label("body"))
        .outerjoin(schema.record, and_(_record.kind == _change.kind, _record.id == _change.id))
        .where(_change.venue == venue, _change.kind == kind, _change.deleted.is_(False))
        .execution_options(yield_per=2000)
    )
