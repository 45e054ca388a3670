"""The rows of the ledger: access events and movements as tuples for SQLite, and as JSON for programs.

Pure. The digest of an event is BLAKE2b (8 bytes) over its columns, seq first, as one compact JSON array in
UTF-8: any language can compute it again. It does not cover the epoch, because an event that is sent again
under a new epoch is still the same event.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from hashlib import blake2b
from typing import Any

import orjson

from gateway.model import AccessEvent, Movement, Passage

EVENT_COLUMNS = (
    "seq", "at", "kind", "point", "lane", "reader", "verdict", "detail", "flags", "credential", "holder",
    "entitlement", "product", "guest", "left", "from_area", "to_area", "passage", "by", "of_seq",
)  # fmt: skip
MOVEMENT_COLUMNS = (
    "seq", "at", "from_area", "to_area", "person", "point", "holder", "credential", "entitlement", "guest",
    "entries", "passage", "closed",
)  # fmt: skip

EventRow = tuple[Any, ...]
"""The columns of an event without ``seq`` and ``of_seq``, which are known only when it is written."""
MovementRow = tuple[Any, ...]
"""The columns of a movement without ``seq``."""

_PASSAGES: dict[object, Passage] = {passage.value: passage for passage in Passage}
_START = datetime(1970, 1, 1, tzinfo=UTC)


class DamagedRow(sqlite3.DatabaseError):
    """A row holds what was never written there."""


_text = str.__str__
"""The exact ``str`` of an enum's value: sqlite3 binds those without looking for an adapter."""


def event_row(event: AccessEvent) -> EventRow:
    """The event as it is now, so that what happens to it later is not written early."""
    verdict, passage = event.verdict, event.passage
    return (
        event.at,
        _text(event.kind),
        event.point,
        event.lane,
        event.reader,
        None if verdict is None else _text(verdict),
        event.detail,
        ",".join(event.flags) if event.flags else None,
        event.credential,
        event.holder,
        event.entitlement,
        event.product,
        event.guest,
        event.left,
        event.from_,
        event.to,
        None if passage is None else _text(passage),
        event.by,
    )


def event_digest(columns: Sequence[Any]) -> bytes:
    """8 bytes over the values of ``EVENT_COLUMNS``. TypeError if they cannot be those of an event."""
    return blake2b(orjson.dumps(columns), digest_size=8).digest()


def event_dict(columns: Sequence[Any], digest: Any, epoch: int | None) -> dict[str, Any]:
    """A row as read, by column name, with ``digest`` (hex) and ``epoch``.

    Where the digest does not fit, ``{"seq", "epoch", "damaged": True}``: what it says is not passed on.
    """
    try:
        whole = event_digest(columns) == digest
    except TypeError:  # a float, a blob or a broken text: nothing that was ever written
        whole = False
    if not whole:
        return {"seq": columns[0], "epoch": epoch, "damaged": True}
    row = dict(zip(EVENT_COLUMNS, columns, strict=True))
    row["digest"] = digest.hex()
    row["epoch"] = epoch
    return row


def event_json(row: dict[str, Any], gateway: str, epoch: int | None, zone: tzinfo = UTC) -> dict[str, Any]:
    """One line of ``gateway ledger``: takes a row of ``Ledger.events``; leaves out what is null.

    ``at`` is RFC 3339 in ``zone``. A damaged row keeps its identity and says ``"damaged": true``.
    """
    line: dict[str, Any] = {"gateway": gateway, "epoch": epoch, "seq": row["seq"]}
    if row.get("damaged"):
        return line | {"damaged": True}
    line["at"] = (_START + timedelta(microseconds=row["at"])).astimezone(zone).isoformat()
    names = {"from_area": "from", "to_area": "to", "of_seq": "of"}
    for column in EVENT_COLUMNS[2:]:
        value = row[column]
        if value is not None:
            line[names.get(column, column)] = value.split(",") if column == "flags" else value
    return line


def movement_row(movement: Movement) -> MovementRow:
    """The movement as it is now."""
    return (
        movement.at,
        movement.from_,
        movement.to,
        movement.person,
        movement.point,
        movement.holder,
        movement.credential,
        movement.entitlement,
        movement.guest,
        movement.entries,
        _text(movement.passage),
        1 if movement.closed else 0,
    )


def movement_of(row: Sequence[Any]) -> Movement:
    """The movement in a row of ``MOVEMENT_COLUMNS``; DamagedRow where a value has the wrong type.

    A flipped byte in the head of a row changes the types of its values, and the judgement must never meet a
    time that is a text.
    """
    seq, at, from_, to, person, point, holder, credential, entitlement, guest, entries, passage, closed = row
    state = _PASSAGES.get(passage)
    if (
        state is None
        or type(at) is not int
        or type(from_) is not str
        or type(to) is not str
        or type(guest) is not int
        or type(entries) is not int
        or not (person is None or type(person) is str)
        or not (point is None or type(point) is str)
        or not (holder is None or type(holder) is str)
        or not (credential is None or type(credential) is str)
        or not (entitlement is None or type(entitlement) is str)
    ):
        raise DamagedRow(f"movement {seq} is damaged")
    return Movement(
        at,
        from_,
        to,
        person,
        point,
        holder,
        credential,
        entitlement,
        guest,
        entries,
        state,
        bool(closed),
        seq,
    )
