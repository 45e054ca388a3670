"""What the store's tests say again and again."""

from __future__ import annotations

import json
from typing import Any

from gateway.central.store import Store
from gateway.sync.protocol import rfc3339

MACHINE, OTHER_MACHINE = "a" * 64, "b" * 64


def holder(id_: str = "H1", **fields: Any) -> dict[str, Any]:
    return {"kind": "holder", "id": id_, "name": f"Name of {id_}"} | fields


def entitlement(id_: str = "E1", of: str | None = "H1", **fields: Any) -> dict[str, Any]:
    return {"kind": "entitlement", "id": id_, "product": "family", "holder": of} | fields


def credential(id_: str = "C1", code: str | None = None, *to: str, **fields: Any) -> dict[str, Any]:
    return {
        "kind": "credential", "id": id_, "code": code or f"CODE-{id_}", "entitlements": list(to or ("E1",))
    } | fields  # fmt: skip


def put(store: Store, *records: dict[str, Any], venue: str = "main") -> int:
    done = store.put(venue, records, "test")
    assert done.faults == []
    return done.position


def told(
    store: Store, position: int = 0, *, venue: str = "main", gateway: str = "north"
) -> list[dict[str, Any]]:
    """Everything that a gateway is told after a position."""
    found = []
    while True:
        page = store.changes(venue, gateway, position)
        found += [json.loads(record) for record in page.records]
        position = page.next_position
        if not page.more:
            return found


def exported(store: Store, venue: str = "main") -> list[dict[str, Any]]:
    return [json.loads(line) for line in store.export(venue)]


def enrol(store: Store, gateway: str = "north", *, venue: str = "main", machine: str = MACHINE) -> str:
    """Joins a gateway, and gives its token."""
    code = store.enrolment_code(gateway, venue, ttl_s=600, by="test")
    return store.enrol(code, machine, f"{gateway}-pc", "0.1.0").token


def event(
    seq: int, kind: str = "scan", *, gateway: str = "north", epoch: int = 7, **fields: Any
) -> dict[str, Any]:
    """An event as a gate uploads it, at the second ``seq`` of the test's day."""
    at = fields.pop("at", 1_795_000_000_000_000 + seq * 1_000_000)
    return {
        "gateway": gateway, "epoch": epoch, "seq": seq, "digest": f"{gateway}-{epoch}-{seq}",
        "at": rfc3339(at), "kind": kind,
    } | {name.rstrip("_"): value for name, value in fields.items()}  # fmt: skip


def entry(seq: int, passage: str | None = "assumed", **fields: Any) -> dict[str, Any]:
    """A scan that was granted at an entry."""
    said: dict[str, Any] = {
        "point": "in", "verdict": "granted", "credential": "C1", "holder": "H1", "entitlement": "E1",
        "guest": 0, "from_": "outside", "to": "hall", "passage": passage,
    } | fields  # fmt: skip
    return event(seq, **said)


def passage(seq: int, of: int | None, outcome: str, **fields: Any) -> dict[str, Any]:
    said: dict[str, Any] = {
        "point": "in", "guest": 0, "from_": "outside", "to": "hall", "passage": outcome
    } | fields  # fmt: skip
    if of is not None:
        said["of"] = of
    return event(seq, "passage", **said)


def usages(store: Store, position: int = 0) -> dict[str, str]:
    """What the log says of usage: source to passage."""
    return {
        f"{u['gateway']}/{u['epoch']}/{u['seq']}": u["passage"]
        for u in told(store, position)
        if u["kind"] == "usage"
    }
