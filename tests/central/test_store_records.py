"""The central's records: put, replaced, deleted, shared by venues, and their history."""

from __future__ import annotations

import pytest

from gateway.central.faults import NotFound, Refused
from gateway.central.store import Store
from tests.central.storerig import credential, entitlement, exported, holder, put, told


def ids(store: Store, venue: str = "main") -> set[str]:
    return {record.get("id", "venue") for record in exported(store, venue)}


def test_put_and_get(store: Store) -> None:
    """What is put is there as it was given, unknown fields included, and goes to the gates."""
    card = credential(colour="blue")
    position = put(store, {"kind": "venue", "timezone": "Europe/Berlin"}, card)
    assert position == 2
    assert store.get("credential", "C1") == card
    assert store.get("venue", "main") == {"kind": "venue", "timezone": "Europe/Berlin"}
    assert told(store) == [{"kind": "venue", "timezone": "Europe/Berlin"}, card]
    assert store.find_code("CODE-C1") == "C1"
    assert store.find_code("code-c1") is None


def test_history_says_who_and_when(store: Store) -> None:
    """Every version is kept, with the time and the name, deletions too."""
    store.put("main", [holder(language="de")], "anna")
    store.put("main", [holder(language="en")], "bert")
    store.block("H1", "carl")
    versions = store.history("holder", "H1")
    assert [v.by for v in versions] == ["anna", "bert", "carl"]
    assert [v.body and v.body["language"] for v in versions] == ["de", "en", "en"]
    assert [v.at for v in versions] == sorted({v.at for v in versions})
    put(store, entitlement(of=None))
    store.delete("main", "entitlement", "E1", "dora")
    assert [(v.by, v.deleted) for v in store.history("entitlement", "E1")] == [
        ("test", False),
        ("dora", True),
    ]
    with pytest.raises(NotFound):
        store.history("holder", "nobody")


def test_bad_record_stops_everything(store: Store) -> None:
    """One bad record and nothing of the lot is there; the fault has line, field and reason."""
    good, bad = holder("H1"), credential("C1", state="stolen")
    done = store.put("main", [good, bad, b"{", credential("C2", "x\x00y")], "test")
    assert (done.count, done.position, done.bad) == (0, 0, 3)
    assert [(f.line, f.kind, f.id, f.field) for f in done.faults] == [
        (2, "credential", "C1", "state"),
        (3, "", "", ""),
        (4, "credential", "C2", "code"),
    ]
    assert exported(store) == []
    assert store.log("main")[1] == 0


def test_skip_bad(store: Store) -> None:
    """With skip_bad the good ones are put; unknown kinds are counted, not faults."""
    done = store.put(
        "main",
        [
            holder("H1"),
            {"kind": "holder"},
            b"",
            b'{"kind":"area","id":"hall"}',
            {"kind": "locker", "id": "1"},
        ],
        "test",
        skip_bad=True,
    )
    assert (done.count, done.bad, done.unknown) == (2, 1, {"locker": 1})
    assert ids(store) == {"H1", "hall"}


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ({"kind": "key", "id": "k9", "public": "x"}, "kind"),
        ({"kind": "command", "id": "c"}, "kind"),
        ({"kind": "venue", "deleted": True}, "deleted"),
        ({"kind": "holder", "id": "H\0"}, "id"),
        ({"kind": "holder", "id": "H" * 513}, "id"),
        (entitlement(of="H" * 513), "holder"),
        (credential("C1", None, "E\0"), "entitlements"),
        (credential("C1", "\ud800"), ""),
        (holder(notice="x" * 65_536), ""),
        ({"kind": "usage", "id": "north/1/2", "at": "2026-01-01T00:00:00Z", "to": "hall"}, "id"),
        (["holder"], ""),
    ],
)
def test_what_is_not_taken(store: Store, record: object, field: str) -> None:
    """Keys and commands, ids and texts that a database or JSON cannot hold, records over the limit."""
    done = store.put("main", [record], "test")  # type: ignore[list-item]
    assert [fault.field for fault in done.faults] == [field]
    assert exported(store) == []


def test_a_fault_shows_no_code(store: Store) -> None:
    """Neither a code nor a name is in a fault."""
    done = store.put("main", [credential("C1", "SECRET\x07CODE"), holder(name=["Secret Name"])], "test")
    assert len(done.faults) == 2
    assert "SECRET" not in str(done.faults).upper()


def test_history_from_before_the_gateways(store: Store) -> None:
    """Usage with an id is put, replaced and deleted by hand."""
    usage = {"kind": "usage", "id": "old-1", "at": "2026-01-01T10:00:00Z", "to": "hall", "entries": 9}
    put(store, usage)
    assert exported(store) == [usage]
    store.delete("main", "usage", "old-1", "test")
    assert told(store) == [{"kind": "usage", "id": "old-1", "deleted": True}]


def test_the_same_again_changes_nothing(store: Store) -> None:
    """A feed put twice makes no change: the gates are not told again, and the history does not grow."""
    feed = [holder(), entitlement(), credential()]
    position = put(store, *feed)
    assert put(store, *feed) == position
    assert len(store.history("holder", "H1")) == 1
    assert put(store, *feed, holder("H2")) == position + 1


def test_each_record_once_at_its_newest_place(store: Store) -> None:
    """A record that changed twice is told once, as it is now, after what changed before it."""
    put(store, holder("H1"), holder("H2"))
    put(store, holder("H1", language="sv"))
    assert [(r["id"], r.get("language")) for r in told(store)] == [("H2", None), ("H1", "sv")]


def test_twice_in_one_put(store: Store) -> None:
    """The later of two versions in one feed counts, and both are in the history."""
    put(store, holder(language="de"), holder(language="sv"))
    assert store.get("holder", "H1")["language"] == "sv"
    assert len(store.history("holder", "H1")) == 2


def test_deleted_lines(store: Store) -> None:
    """A line with deleted takes the record out; one of what never was there does no harm."""
    put(store, holder("H1"), {"kind": "holder", "id": "H1", "deleted": True})
    put(store, {"kind": "credential", "id": "C9", "deleted": True})
    assert exported(store) == []
    assert told(store) == [{"kind": "holder", "id": "H1", "deleted": True}]


def test_code_is_taken_by_the_later(store: Store) -> None:
    """A code belongs to the later record; the earlier credential is gone, and does not come back with it."""
    put(store, credential("C1", "X"))
    put(store, credential("C2", "X"))
    assert store.find_code("X") == "C2"
    assert ids(store) == {"C2"}
    assert {r["id"]: r.get("deleted", False) for r in told(store)} == {"C1": True, "C2": False}
    store.delete("main", "credential", "C2", "test")
    assert store.find_code("X") is None
    assert ids(store) == set()


def test_codes_that_change_hands_in_one_put(store: Store) -> None:
    """Two credentials that swap their codes in one feed both stay."""
    put(store, credential("C1", "X"), credential("C2", "Y"))
    put(store, credential("C1", "Z"), credential("C2", "X"), credential("C1", "Y"))
    assert (store.find_code("X"), store.find_code("Y"), store.find_code("Z")) == ("C2", "C1", None)
    assert ids(store) == {"C1", "C2"}


def test_codes_compare_byte_for_byte(store: Store) -> None:
    """No case, no normal form: what differs in bytes is another code."""
    put(store, credential("C1", "stra\u00dfe"), credential("C2", "STRASSE"), credential("C3", "stras\u0073e"))
    put(store, credential("C4", "e\u0301"), credential("C5", "\u00e9"))
    assert len(ids(store)) == 5


def test_holder_goes_with_everything(store: Store) -> None:
    """With a holder go the entitlements, and the credentials that have none left; others stay."""
    put(
        store, holder("H1"), holder("H2"), entitlement("E1"), entitlement("E2"), entitlement("E3", "H2"),
        credential("C1", None, "E1", "E2"), credential("C2", None, "E2", "E3"), credential("C3", None, "E3"),
    )  # fmt: skip
    position = store.log("main")[1]
    store.delete("main", "holder", "H1", "test")
    assert ids(store) == {"H2", "E3", "C2", "C3"}
    gone = {r["id"] for r in told(store, position)}
    assert gone == {"H1", "E1", "E2", "C1"}
    assert all(r["deleted"] for r in told(store, position))
    assert store.find_code("CODE-C1") is None


def test_nothing_of_the_person_stays(store: Store) -> None:
    """After a holder's deletion no version in the history has a body, and the gates are to forget."""
    put(store, holder(name="Maria Very-Rare-Name"))
    put(store, holder(name="Maria Very-Rare-Name", language="de"))
    assert store.forget("main") is None
    store.delete("main", "holder", "H1", "test")
    assert [v.body for v in store.history("holder", "H1")] == [None, None, None]
    forget = store.forget("main")
    assert forget is not None
    assert forget[0] == store.log("main")[1]
    files = [path for path in store.directory.iterdir() if path.name.startswith("central.db")]
    store.close()
    assert not any(b"Very-Rare" in path.read_bytes() for path in files if path.exists())


def test_records_shared_by_venues(store: Store) -> None:
    """A record is seen where it was put; a change goes to all who see it; the last one out deletes it."""
    store.create_venue("annexe")
    put(store, holder(), entitlement(of=None))
    put(store, entitlement(of=None), venue="annexe")
    assert [r["id"] for r in told(store, venue="annexe")] == ["E1"]
    heard: list[tuple[str, str | None]] = []
    store.on_change = lambda venue, gateway: heard.append((venue, gateway))
    store.renew("E1", "2030-12-31", "test")
    assert heard == [("annexe", None), ("main", None)]
    assert told(store, venue="annexe")[0]["valid_until"] == "2030-12-31"
    store.delete("main", "entitlement", "E1", "test")
    assert (ids(store), ids(store, "annexe")) == ({"H1"}, {"E1"})
    assert store.sees("annexe", "entitlement", "E1")
    assert not store.sees("main", "entitlement", "E1")
    store.delete("annexe", "entitlement", "E1", "test")
    with pytest.raises(NotFound):
        store.get("entitlement", "E1")


def test_the_venue_record_is_each_venues_own(store: Store) -> None:
    """Two venues have a record of the kind venue each."""
    store.create_venue("annexe")
    put(store, {"kind": "venue", "timezone": "Europe/Berlin"})
    put(store, {"kind": "venue", "timezone": "Europe/Oslo"}, venue="annexe")
    assert [store.get("venue", v)["timezone"] for v in ("main", "annexe")] == ["Europe/Berlin", "Europe/Oslo"]
    with pytest.raises(Refused):
        store.delete("main", "venue", "main", "test")


def test_names_stay_here(store: Store) -> None:
    """Holders' names go to gates only where the venue says so; the export has them."""
    store.create_venue("open", names=True)
    put(store, holder())
    put(store, holder(), venue="open")
    assert "name" not in told(store)[0]
    assert told(store, venue="open")[0]["name"] == "Name of H1"
    assert exported(store)[0]["name"] == "Name of H1"


def test_acts(store: Store) -> None:
    """Revoke, renew, suspend, resume, block, unblock and change of product change one field each."""
    put(store, holder(), entitlement(), credential(), {"kind": "product", "id": "gold"})
    store.revoke("C1", "lost", "test")
    store.renew("E1", "2027-12-31", "test")
    store.suspend("E1", "test")
    store.block("H1", "test")
    store.change_product("E1", "gold", "test")
    assert store.get("credential", "C1") == credential(state="lost")
    assert store.get("entitlement", "E1") == entitlement(
        valid_until="2027-12-31", state="suspended", product="gold"
    )
    assert store.get("holder", "H1")["state"] == "blocked"
    store.renew("E1", None, "test")
    store.resume("E1", "test")
    store.unblock("H1", "test")
    store.revoke("C1", "active", "test")
    assert "valid_until" not in store.get("entitlement", "E1")
    assert store.get("entitlement", "E1")["state"] == "active"
    assert store.get("holder", "H1")["state"] == "active"
    assert store.find_code("CODE-C1") == "C1"


def test_acts_that_cannot_be(store: Store) -> None:
    """What is not there is not found, and what breaks a rule is refused; nothing is changed then."""
    put(store, entitlement(), credential())
    position = store.log("main")[1]
    with pytest.raises(NotFound):
        store.revoke("C9", "lost", "test")
    with pytest.raises(Refused, match="state"):
        store.revoke("C1", "stolen", "test")
    with pytest.raises(Refused, match="valid_until"):
        store.renew("E1", "soon", "test")
    with pytest.raises(NotFound, match="product"):
        store.change_product("E1", "platinum", "test")
    with pytest.raises(NotFound):
        store.delete("main", "holder", "H9", "test")
    with pytest.raises(NotFound):
        store.delete("main", "command", "x", "test")
    with pytest.raises(NotFound):
        store.put("nowhere", [holder()], "test")
    assert store.log("main")[1] == position


def test_replace(store: Store) -> None:
    """A new card has the old one's entitlements; the old one is refused, and the entitlement is untouched."""
    put(store, entitlement(), credential("C1", "OLD", "E1"), credential("C3", "TAKEN"))
    store.replace("C1", "C2", "NEW", "test")
    assert store.get("credential", "C1")["state"] == "replaced"
    assert store.get("credential", "C2") == {
        "kind": "credential", "id": "C2", "code": "NEW", "state": "active", "entitlements": ["E1"]
    }  # fmt: skip
    assert (store.find_code("OLD"), store.find_code("NEW")) == ("C1", "C2")
    assert len(store.history("entitlement", "E1")) == 1
    with pytest.raises(Refused, match="id"):
        store.replace("C1", "C3", "NEWER", "test")
    with pytest.raises(Refused, match="code"):
        store.replace("C1", "C4", "TAKEN", "test")


def test_many(store: Store) -> None:
    """More records than one chunk, and more than one page."""
    put(store, *(credential(f"C{n}", f"X{n % 2100}") for n in range(2500)))
    assert ids(store) == {f"C{n}" for n in range(400, 2500)}
    assert len(told(store)) == 2500
    assert sum(not r.get("deleted") for r in told(store)) == 2100
