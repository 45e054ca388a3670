"""The venue's log: places, cursors, pages, what is kept how long, and a restored backup."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.central.faults import NotFound, Refused
from gateway.central.store import Store
from tests.central.conftest import Clock
from tests.central.storerig import credential, enrol, entitlement, exported, holder, put, told


def test_pages(store: Store) -> None:
    """Pages have at most so many records and bytes, at least one record, and join without a gap."""
    put(store, *(holder(f"H{n}") for n in range(10)))
    position, sizes = 0, []
    while True:
        page = store.changes("main", "north", position, limit=4)
        sizes.append(len(page.records))
        position = page.next_position
        if not page.more:
            break
    assert (sizes, position) == ([4, 4, 2], 10)
    page = store.changes("main", "north", 0, size=len(page.records[0]) * 3)
    assert (len(page.records), page.more, page.next_position) == (2, True, 2)
    assert len(store.changes("main", "north", 0, size=1).records) == 1
    end = store.changes("main", "north", 10)
    assert (end.records, end.more, end.next_position) == ([], False, 10)


def test_cursor_comes_back(store: Store) -> None:
    """A cursor is short and printable, and names its position, also after a restart."""
    put(store, *(holder(f"H{n}") for n in range(3)))
    for position in range(4):
        cursor = store.cursor("main", position)
        assert len(cursor) <= 128
        assert cursor.isascii()
        assert store.position_of("main", cursor) == position


def test_cursor_over_restarts(open_store: Callable[..., Store]) -> None:
    """Cursors from each run of the central hold in every later one."""
    cursors = {}
    for run in range(3):
        store = open_store()
        put(store, holder(f"H{run}"), holder(f"G{run}"))
        cursors |= {position: store.cursor("main", position) for position in range(2 * run, 2 * run + 3)}
        history = store.log("main")[0]
        store.close()
    store = open_store()
    assert {p: store.position_of("main", c) for p, c in cursors.items()} == {p: p for p in range(7)}
    assert store.log("main")[0] == history


def test_cursors_that_are_none(store: Store) -> None:
    """Made up, changed, another venue's: None, and the history stays."""
    store.create_venue("annexe")
    put(store, holder())
    cursor = store.cursor("main", 1)
    history, run, position, mac = cursor.split(".")
    before = store.log("main")[0]
    for wrong in (
        "", "x", "....", "\u00e9", cursor + "x", f"{history}.{run}.2.{mac}", f"{history}.-.0.{mac}",
        f"{history}.{run}.{position}.{mac[::-1]}", store.cursor("annexe", 0), cursor.upper(),
    ):  # fmt: skip
        assert store.position_of("main", wrong) is None
    assert store.position_of("nowhere", cursor) is None
    assert store.log("main")[0] == before
    assert store.position_of("main", cursor) == 1


def test_restored_from_a_backup(open_store: Callable[..., Store], tmp_path: Path, own_file: None) -> None:
    """A cursor from the time that a restored backup lost begins a new history, also when the log has grown
    past its position since; one from before the backup would have held until then."""
    store = open_store()
    put(store, holder("H1"))
    early = store.cursor("main", 1)
    store.close()
    shutil.copytree(tmp_path / "central", tmp_path / "restored")
    store = open_store()
    put(store, holder("H2"), holder("H3"))
    lost = store.cursor("main", 2)
    history = store.log("main")[0]
    store.close()

    store = open_store("restored")
    put(store, *(holder(f"N{n}") for n in range(10)))
    assert store.log("main") == (history, 11)
    heard: list[tuple[str, str | None]] = []
    store.on_change = lambda venue, gateway: heard.append((venue, gateway))
    assert store.position_of("main", early) == 1
    assert store.position_of("main", lost) is None
    assert heard == [("main", None)]
    assert store.log("main")[0] != history
    assert store.position_of("main", early) is None
    assert store.position_of("main", store.cursor("main", 3)) == 3


def test_restored_in_the_middle_of_a_run(
    open_store: Callable[..., Store], tmp_path: Path, own_file: None
) -> None:
    """The same where the backup was taken while the central was running and nothing was written since."""
    store = open_store()
    put(store, holder("H1"))
    backup(store, tmp_path / "restored")
    put(store, holder("H2"))
    lost = store.cursor("main", 2)
    restored = open_store("restored")
    assert restored.log("main")[1] == 1
    assert restored.position_of("main", lost) is None
    assert restored.log("main")[0] != store.log("main")[0]


def backup(store: Store, to: Path) -> None:
    """As ``sqlite3 central.db .backup`` does, with the other files."""
    shutil.copytree(store.directory, to, ignore=lambda _d, names: [n for n in names if "central.db" in n])
    source, target = sqlite3.connect(store.directory / "central.db"), sqlite3.connect(to / "central.db")
    source.backup(target)
    source.close()
    target.close()


def test_deletions_are_kept_for_thirty_days(store: Store, clock: Clock) -> None:
    """Then they are compacted, and a cursor from before them is gone; others hold."""
    put(store, holder("H1"), holder("H2"))
    before = store.cursor("main", 2)
    store.delete("main", "holder", "H1", "test")
    clock.wait(29)
    store.compact()
    assert store.position_of("main", before) == 2
    assert told(store, 2) == [{"kind": "holder", "id": "H1", "deleted": True}]
    clock.wait(2)
    store.compact()
    assert store.position_of("main", before) is None
    assert store.position_of("main", store.cursor("main", 3)) == 3
    assert [r["id"] for r in told(store)] == ["H2"]


def test_what_came_back_is_no_deletion(store: Store, clock: Clock) -> None:
    """A record that was deleted and put again is kept like any other."""
    put(store, holder())
    store.delete("main", "holder", "H1", "test")
    put(store, holder())
    clock.wait(40)
    store.compact()
    assert [r["id"] for r in exported(store)] == ["H1"]
    assert store.position_of("main", store.cursor("main", 1)) == 1


def test_commands(store: Store, clock: Clock) -> None:
    """A command goes to its gateway alone, until it expires; others' cursors pass it."""
    enrol(store, "north")
    put(store, holder())
    heard: list[tuple[str, str | None]] = []
    store.on_change = lambda venue, gateway: heard.append((venue, gateway))
    id_ = store.command("north", "open", lane="north", ttl_s=30, by="anna")
    assert heard == [("main", "north")]
    [command] = told(store, 1, gateway="north")
    assert {name: command[name] for name in ("kind", "id", "gateway", "do", "lane", "ttl_s")} == {
        "kind": "command", "id": id_, "gateway": "north", "do": "open", "lane": "north", "ttl_s": 30
    }  # fmt: skip
    assert told(store, 1, gateway="south") == []
    assert store.changes("main", "south", 1).next_position == 2
    assert "command" not in {r["kind"] for r in exported(store)}
    assert [v.by for v in store.history("command", id_)] == ["anna"]
    clock.wait(31 / 86_400)
    assert told(store, 1, gateway="north") == []
    store.compact()
    assert store.position_of("main", store.cursor("main", 1)) == 1


@pytest.mark.parametrize(
    ("do", "what"),
    [
        ("explode", {"lane": "x"}), ("open", {}), ("open", {"area": "hall"}), ("clear", {"lane": "x"}),
        ("annul", {"seq": 0}), ("annul", {"seq": True}), ("open", {"lane": ""}),
        ("open", {"lane": "x", "seq": 1}),
        ("open", {"lane": "x", "ttl_s": 0}), ("open", {"lane": "x", "ttl_s": 100_000}),
    ],
)  # fmt: skip
def test_commands_that_are_refused(store: Store, do: str, what: dict[str, Any]) -> None:
    """A command has exactly what its act needs, and a time to live in bounds."""
    enrol(store)
    position = store.log("main")[1]
    with pytest.raises(Refused):
        store.command("north", do, **what, by="test")
    with pytest.raises(NotFound):
        store.command("nowhere", "open", lane="x", by="test")
    assert store.log("main")[1] == position


def test_nothing_becomes_visible_behind_a_cursor(open_store: Callable[..., Store]) -> None:
    """A reader that follows while two writers write misses nothing: two connections, each in its thread."""
    store, other = open_store(), open_store()
    faults: list[BaseException] = []

    def write(into: Store, name: str) -> None:
        try:
            for n in range(60):
                put(into, holder(f"{name}{n}"), entitlement(f"{name}{n}", None))
                if n % 3 == 0:
                    into.delete("main", "holder", f"{name}{n}", "test")
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=write, args=each) for each in ((store, "A"), (other, "B"))]
    reader = open_store()
    for thread in threads:
        thread.start()
    seen: dict[tuple[str, str], dict[str, Any]] = {}
    position = 0
    while True:
        ended = not any(thread.is_alive() for thread in threads)
        page = reader.changes("main", "north", position, limit=3)
        apply(seen, [json.loads(record) for record in page.records])
        position = page.next_position
        if ended and not page.more:
            break
    for thread in threads:
        thread.join()
    assert faults == []
    assert {key[1] for key in seen} == {r["id"] for r in exported(reader)}
    assert len(seen) == 200


def apply(seen: dict[tuple[str, str], dict[str, Any]], records: list[dict[str, Any]]) -> None:
    """What a gate does with a page."""
    for record in records:
        key = record["kind"], record.get("id", "")
        if record.get("deleted"):
            seen.pop(key, None)
        else:
            seen[key] = record


IDS = st.sampled_from("abcd")
CODES = st.sampled_from("XYZ")
STEP = st.one_of(
    st.tuples(st.just("holder"), IDS, st.sampled_from(["de", "en"])),
    st.tuples(st.just("entitlement"), IDS, st.one_of(st.none(), IDS)),
    st.tuples(st.just("credential"), IDS, CODES, st.lists(IDS, max_size=2)),
    st.tuples(st.just("delete"), st.sampled_from(["holder", "entitlement", "credential"]), IDS),
    st.tuples(st.just("read"), st.integers(0, 2), st.integers(1, 5)),
    st.tuples(st.just("wait"), st.sampled_from([10, 35])),
)
RUNS = iter(range(10**6))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Clock]:
    clock = Clock()
    return Store.open(tmp_path_factory.mktemp("central") / "c", clock=clock), clock


@settings(max_examples=25)
@given(steps=st.lists(STEP, max_size=30))
def test_every_reader_reaches_the_export(shared: tuple[Store, Clock], steps: list[tuple[Any, ...]]) -> None:
    """Whatever is put and deleted, and wherever a reader stops: with pages (or anew where its cursor is gone)
    it reaches what the export has, and that is what a plain model has."""
    store, clock = shared
    run = next(RUNS)
    venue = f"v{run}"
    store.create_venue(venue, names=True)
    model: dict[tuple[str, str], dict[str, Any]] = {}
    readers: list[tuple[str, dict[tuple[str, str], dict[str, Any]]]] = [(store.cursor(venue, 0), {})] * 3

    def read(number: int, limit: int) -> bool:
        cursor, seen = readers[number]
        position = store.position_of(venue, cursor)
        seen = dict(seen)
        if position is None:
            seen, position, more = {}, store.log(venue)[1], False
            apply(seen, exported(store, venue))
        else:
            page = store.changes(venue, "g", position, limit)
            apply(seen, [json.loads(record) for record in page.records])
            position, more = page.next_position, page.more
        readers[number] = store.cursor(venue, position), seen
        return more

    for step in steps:
        word, args = step[0], step[1:]
        if word == "read":
            read(*args)
        elif word == "wait":
            clock.wait(args[0])
            store.compact()
        elif word == "delete":
            kind, id_ = args[0], f"{run}{args[1]}"
            if (kind, id_) in model:
                store.delete(venue, kind, id_, "test")
                remove(model, kind, id_)
            else:
                with pytest.raises(NotFound):
                    store.delete(venue, kind, id_, "test")
        else:
            record = made(run, word, args)
            put(store, record, venue=venue)
            if word == "credential":
                for key, other in list(model.items()):
                    if other.get("code") == record["code"] and key != (word, record["id"]):
                        del model[key]
            model[word, record["id"]] = record
    want = dict(model)
    got: dict[tuple[str, str], dict[str, Any]] = {}
    apply(got, exported(store, venue))
    assert got == want
    for number in range(3):
        while read(number, 2):
            pass
        assert readers[number][1] == want


def made(run: int, word: str, args: tuple[Any, ...]) -> dict[str, Any]:
    id_ = f"{run}{args[0]}"
    if word == "holder":
        return holder(id_, language=args[1])
    if word == "entitlement":
        return entitlement(id_, args[1] and f"{run}{args[1]}")
    return credential(id_, f"{run}{args[1]}", state="active") | {
        "entitlements": [f"{run}{e}" for e in args[2]]
    }


def remove(model: dict[tuple[str, str], dict[str, Any]], kind: str, id_: str) -> None:
    del model[kind, id_]
    if kind != "holder":
        return
    for entitlement_ in [k[1] for k, r in model.items() if k[0] == "entitlement" and r["holder"] == id_]:
        del model["entitlement", entitlement_]
        for key, card in list(model.items()):
            listed = card.get("entitlements", ())
            if entitlement_ in listed and not any(("entitlement", each) in model for each in listed):
                del model[key]
