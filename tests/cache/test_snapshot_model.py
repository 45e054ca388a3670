"""Replacement, deletion and the owner of a code, held against a plain model: for imports and for changes."""

from __future__ import annotations

import json
import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.cache.build import build
from gateway.cache.records import CredentialRecord, Deleted, RecordError, parse
from gateway.cache.snapshot import Snapshot
from gateway.model import Credential, Entitlement, Holder, Movement, Passage, Venue

CREDENTIALS = ("C1", "C2", "C3")
CODES = ("X", "Y", "Z")
ENTITLEMENTS = ("E1", "E2")
HOLDERS = ("H1", "H2")
PRODUCTS = ("p1", "p2")
USAGES = ("u1", "u2", "u3")
TIMES = ("2026-01-01T10:00:00Z", "2026-01-01T11:00:00Z", "2025-12-31T23:00:00-05:00")


@dataclass
class Model:
    """The rules of DESIGN.md 4.1 and 4.4, one record after the other, in dictionaries."""

    credentials: dict[str, CredentialRecord] = field(default_factory=dict)
    owners: dict[bytes, str] = field(default_factory=dict)
    entitlements: dict[str, Entitlement] = field(default_factory=dict)
    holders: dict[str, Holder] = field(default_factory=dict)
    others: dict[tuple[str, str], Any] = field(default_factory=dict)
    usages: dict[str, Movement] = field(default_factory=dict)

    def add(self, obj: dict[str, Any]) -> None:
        try:
            record = parse(obj)
        except RecordError:
            old, bad = self.credentials.get(obj["id"]), obj["kind"]
            if bad == "credential" and old is not None and old.state == 0:
                self.credentials[old.id] = CredentialRecord(old.id, old.code, 2, old.entitlements)
            if bad == "entitlement" and obj["id"] in self.entitlements:
                self.entitlements[obj["id"]].state = self.entitlements[obj["id"]].state or 1
            return
        if isinstance(record, Deleted):
            self._delete(record)
        elif isinstance(record, CredentialRecord):
            self._delete(Deleted("credential", record.id))
            self.credentials[record.id] = record
            self.owners[record.code] = record.id
        elif isinstance(record, Entitlement):
            self.entitlements[record.id] = record
        elif isinstance(record, Holder):
            self.holders[record.id] = record
        elif isinstance(record, Movement):
            assert record.source is not None
            self.usages.pop(record.source, None)
            if record.passage is not Passage.NOT_TAKEN:
                self.usages[record.source] = record
        elif record is not None:
            self.others[obj["kind"], obj.get("id", "")] = record

    def _delete(self, gone: Deleted) -> None:
        if gone.kind == "credential":
            old = self.credentials.pop(gone.id, None)
            if old is not None and self.owners.get(old.code) == gone.id:
                del self.owners[old.code]
        elif gone.kind == "entitlement":
            self.entitlements.pop(gone.id, None)
        elif gone.kind == "holder":
            self.holders.pop(gone.id, None)
        elif gone.kind == "usage":
            self.usages.pop(gone.id, None)
        else:
            self.others.pop((gone.kind, gone.id), None)

    def find(self, code: str) -> Credential | None:
        owner = self.owners.get(code.encode())
        if owner is None:
            return None
        record = self.credentials[owner]
        found = []
        for id_ in record.entitlements:
            if id_ in self.entitlements:
                e = self.entitlements[id_]
                holder = self.holders.get(e.holder or "")
                blocked = holder is not None and holder.blocked
                found.append(
                    Entitlement(
                        e.id,
                        e.product,
                        e.holder,
                        e.valid_from,
                        e.valid_until,
                        e.state,
                        e.guests,
                        e.entries,
                        blocked,
                    )
                )
        return Credential(record.id, record.state, tuple(found))

    def seen(self) -> list[Any]:
        moves = sorted(self.usages.values(), key=order)
        return [
            [self.find(code) for code in CODES],
            [self.holders.get(id_) for id_ in HOLDERS],
            self.others.get(("venue", ""), Venue()),
            [self.others[key] for key in sorted(self.others) if key[0] == "product"],
            moves,
            [[m for m in moves if m.person == person] for person in (*HOLDERS, "card:C1")],
            [[m for m in moves if m.entitlement == id_] for id_ in ENTITLEMENTS],
            (len(self.owners), len(self.entitlements), len(self.holders), len(self.usages)),
        ]


def order(move: Movement) -> tuple[int, str]:
    return move.at, move.source or ""


def seen(snapshot: Snapshot) -> list[Any]:
    tables = snapshot.records()
    counts = snapshot.counts()
    return [
        [snapshot.find(code.encode()) for code in CODES],
        [snapshot.holder(id_) for id_ in HOLDERS],
        tables.venue,
        list(tables.products),
        sorted(snapshot.movements_since(-(10**15)), key=order),
        [sorted(snapshot.movements_of_person(p, 0), key=order) for p in (*HOLDERS, "card:C1")],
        [sorted(snapshot.movements_of_entitlement(e, 0), key=order) for e in ENTITLEMENTS],
        (counts.credentials, counts.entitlements, counts.holders, counts.usages),
    ]


def record(
    kind: str, ids: tuple[str, ...], **fields: st.SearchStrategy[Any]
) -> st.SearchStrategy[dict[str, Any]]:
    base = {"kind": st.just(kind), "id": st.sampled_from(ids)}
    whole = st.fixed_dictionaries(base, optional=fields)
    return st.one_of(whole, whole, st.fixed_dictionaries({**base, "deleted": st.just(True)}))


RECORDS = st.one_of(
    st.fixed_dictionaries(
        {
            "kind": st.just("credential"),
            "id": st.sampled_from(CREDENTIALS),
            "code": st.sampled_from((*CODES, "")),
        },
        optional={
            "state": st.sampled_from(("active", "lost", "nonsense")),
            "entitlements": st.lists(st.sampled_from((*ENTITLEMENTS, "E9")), max_size=3),
        },
    ),
    record("credential", CREDENTIALS, code=st.sampled_from(CODES)),
    record(
        "entitlement",
        ENTITLEMENTS,
        product=st.sampled_from(PRODUCTS),
        holder=st.sampled_from(HOLDERS),
        guests=st.integers(-1, 2),
        valid_from=st.just("2026-01-01"),
        state=st.sampled_from(("active", "cancelled")),
    ),
    record("holder", HOLDERS, state=st.sampled_from(("active", "blocked")), name=st.text(max_size=3)),
    record("product", PRODUCTS, grace_days=st.integers(0, 3)),
    record(
        "usage",
        USAGES,
        at=st.sampled_from(TIMES),
        to=st.just("hall"),
        holder=st.sampled_from(HOLDERS),
        credential=st.just("C1"),
        entitlement=st.sampled_from(ENTITLEMENTS),
        passage=st.sampled_from(("taken", "not_taken")),
    ),
    st.fixed_dictionaries({"kind": st.just("venue"), "language": st.sampled_from(("de", "sv"))}),
)
FEEDS = st.lists(RECORDS, max_size=25)


def built(folder: str, feed: list[dict[str, Any]]) -> Snapshot:
    lines = (json.dumps(obj).encode() for obj in feed)
    build(Path(folder), lines, source="feed", skip_bad=True, pace=0)
    snapshot = Snapshot.open(Path(folder))
    assert snapshot is not None
    return snapshot


def cred(id_: str, code: str | None) -> dict[str, Any]:
    if code is None:
        return {"kind": "credential", "id": id_, "deleted": True}
    return {"kind": "credential", "id": id_, "code": code}


@settings(max_examples=80, deadline=None)
@given(FEEDS, st.integers(0, 25))
@example([cred("C1", "X"), cred("C2", "X"), cred("C2", None)], 2)
@example([cred("C1", "X"), cred("C2", "X"), cred("C2", "Y")], 1)
@example([cred("C1", "X"), cred("C2", "X"), cred("C1", "X")], 0)
@example([cred("C1", "X"), cred("C2", "X"), cred("C1", "")], 2)
@example([cred("C1", "X"), cred("C1", "Y"), cred("C2", "X"), cred("C1", "Z")], 3)
def test_import_and_changes_agree_with_the_model(feed: list[dict[str, Any]], split: int) -> None:
    """An import of all, and an import of the first part with the rest applied as changes, in one batch or one
    by one, all hold what the plain model holds."""
    model = Model()
    for obj in feed:
        model.add(obj)
    expected = model.seen()
    with tempfile.TemporaryDirectory() as folder:
        snapshot = built(folder, feed)
        assert seen(snapshot) == expected
        snapshot.close()
        snapshot = built(folder, feed[:split])
        if split % 2:
            snapshot.apply(feed[split:], "c")
        else:
            for obj in feed[split:]:
                snapshot.apply([obj])
        assert seen(snapshot) == expected
        snapshot.close()
        again = Snapshot.open(Path(folder))
        assert again is not None
        assert seen(again) == expected
        again.close()


@settings(max_examples=30, deadline=None)
@given(FEEDS, st.randoms(use_true_random=False))
def test_order_does_not_matter(feed: list[dict[str, Any]], rng: random.Random) -> None:
    """Records that do not replace each other give the same snapshot in any order: a reference may come
    before what it names."""
    distinct: dict[tuple[Any, ...], dict[str, Any]] = {}
    codes = set()
    for obj in feed:
        if obj["kind"] == "credential" and (obj.get("code") in codes or codes.add(obj.get("code"))):
            continue
        distinct.setdefault((obj["kind"], obj.get("id")), obj)
    shuffled = list(distinct.values())
    rng.shuffle(shuffled)
    with tempfile.TemporaryDirectory() as folder:
        first = built(folder, list(distinct.values()))
        state = seen(first)
        first.close()
        second = built(folder, shuffled)
        assert seen(second) == state
        second.close()
