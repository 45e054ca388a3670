"""What the central keeps in its directory: the schema, keys, and snapshot files."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import shutil
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hypothesis import given
from hypothesis import strategies as st

from gateway.central import retention, schema
from gateway.central.faults import NotFound, Refused, StoreUnusable
from gateway.central.store import Store
from gateway.sync import protocol
from tests.central.conftest import Clock
from tests.central.storerig import credential, enrol, entry, exported, holder, put, told

# --- the schema ------------------------------------------------------------------------------------------


def test_the_migrations_make_the_schema(store: Store) -> None:
    """What the migrations made from nothing is what the code works with."""
    with store.db.read() as conn:
        context = MigrationContext.configure(conn, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []


def test_already_there(open_store: Callable[..., Store]) -> None:
    """Opening again changes nothing and finds everything."""
    store = open_store()
    put(store, holder())
    before = store.log("main"), store.keys.public()
    store.close()
    again = open_store()
    assert (again.log("main"), again.keys.public()) == before
    assert [v.id for v in again.venues()] == ["main"]


def test_newer_schema(open_store: Callable[..., Store], own_file: None) -> None:
    """A database of a newer version is refused with what to do, and left as it is."""
    store = open_store()
    path = store.directory / "central.db"
    store.close()
    with sqlite3.connect(path) as conn:
        conn.execute("UPDATE alembic_version SET version_num = '9999'")
    conn.close()
    before = path.read_bytes()
    with pytest.raises(StoreUnusable, match=r"central\.db was written by a newer version.*9999"):
        open_store()
    assert path.read_bytes() == before


@pytest.mark.parametrize("spoil", ["database", "directory", "url", "port", "secret", "driver"])
def test_unusable(tmp_path: Path, spoil: str) -> None:
    """What cannot be opened is named, with the remedy."""
    directory, url = tmp_path / "c", None
    directory.mkdir()
    if spoil == "database":
        (directory / "central.db").write_bytes(b"not a database" * 100)
    elif spoil == "directory":
        directory = tmp_path / "c" / "file"
        directory.write_text("")
    elif spoil == "secret":
        (directory / "secret").write_bytes(b"short")
    else:
        url = {
            "url": "nonsense", "driver": "oracle+nothing://x", "port": "postgresql://u:tulip@fern@h:x/y"
        }[spoil]  # fmt: skip
    with pytest.raises(StoreUnusable) as caught:
        Store.open(directory, url)
    word = {"database": "central.db", "directory": "file", "secret": "secret"}.get(spoil, "database URL")
    assert word in str(caught.value)
    assert "tulip" not in str(caught.value)


# --- keys ------------------------------------------------------------------------------------------------


def state(store: Store) -> list[str]:
    return [key.state for key in store.keys.all()]


def test_first_key(store: Store) -> None:
    """One key from the start; it signs, and the private half is for the owner alone."""
    [public] = store.keys.public()
    assert protocol.KEY_ID.fullmatch(public["id"])
    known = {public["id"]: base64.b64decode(public["public"])}
    header = protocol.sign(store.keys.signing([public["id"]]), protocol.CHANGES, b"body")
    assert protocol.verify(known, protocol.CHANGES, b"body", header) == public["id"]
    path = store.directory / "keys" / f"{public['id']}.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_rotation(open_store: Callable[..., Store]) -> None:
    """Announced to every venue, used, and the old one retired; each gateway gets what it can verify."""
    store = open_store()
    store.create_venue("annexe")
    [first] = [key.id for key in store.keys.all()]
    second = store.announce_key()
    assert state(store) == ["present", "announced"]
    public = store.keys.public()[1]["public"]
    for venue in ("main", "annexe"):
        assert told(store, venue=venue) == [{"kind": "key", "id": second, "public": public}]
    assert list(store.keys.signing([first, second])) == [first]
    store.use_key(second)
    assert state(store) == ["old", "present"]
    assert list(store.keys.signing([first, second])) == [second]
    assert list(store.keys.signing([first])) == [first]
    assert list(store.keys.signing([])) == list(store.keys.signing(["k9"])) == [second]
    with pytest.raises(Refused, match="present"):
        store.retire_key(second)
    store.retire_key(first)
    store.retire_key(first)
    assert state(store) == ["retired", "present"]
    assert list(store.keys.signing([first])) == [second]
    assert {r["id"]: r.get("deleted", False) for r in told(store)} == {second: False, first: True}
    assert not (store.directory / "keys" / f"{first}.pem").exists()
    assert [key["id"] for key in store.keys.public()] == [second]
    with pytest.raises(Refused, match="retired"):
        store.use_key(first)
    with pytest.raises(NotFound):
        store.use_key("k9")
    with pytest.raises(NotFound):
        store.retire_key("k9")
    store.close()
    assert state(open_store()) == ["retired", "present"]


def test_no_more_keys_than_a_gateway_takes(store: Store) -> None:
    """A gateway pins a few keys at most; one more is not drawn before an old one has ended."""
    [first] = [key.id for key in store.keys.all()]
    for _ in range(protocol.MAX_KEYS - 1):
        last = store.announce_key()
    with pytest.raises(Refused, match="retire"):
        store.announce_key()
    store.use_key(last)
    store.retire_key(first)
    store.announce_key()
    assert len(store.keys.public()) == protocol.MAX_KEYS


def test_who_missed_an_announcement(store: Store) -> None:
    """A gateway that came by a snapshot is told of keys that it does not name, and of those that ended."""
    [first] = [key.id for key in store.keys.all()]
    second = store.announce_key()
    store.use_key(second)
    store.retire_key(first)
    end = store.log("main")[1]

    def about(known: list[str]) -> dict[str, bool]:
        records = [json.loads(r) for r in store.changes("main", "north", end, known=known).records]
        return {r["id"]: r.get("deleted", False) for r in records}

    assert about([first]) == {second: False, first: True}
    assert about([second]) == {}
    assert about(["k9", second]) == {}
    put(store, *(holder(f"H{n}") for n in range(5)))
    page = store.changes("main", "north", end, limit=3, known=[first])
    assert (len(page.records), page.next_position, page.more) == (3, end + 1, True)


@pytest.mark.parametrize("spoil", ["gone", "torn", "other"])
def test_a_key_that_is_not_there(open_store: Callable[..., Store], spoil: str) -> None:
    """A lost, torn or exchanged private key is named, and nothing is drawn in its place."""
    store = open_store()
    second = store.announce_key()
    store.close()
    paths = {key.id: store.directory / "keys" / f"{key.id}.pem" for key in store.keys.all()}
    if spoil == "gone":
        paths[second].unlink()
    elif spoil == "torn":
        paths[second].write_bytes(paths[second].read_bytes()[:40])
    else:
        shutil.copy(next(path for id_, path in paths.items() if id_ != second), paths[second])
    with pytest.raises(StoreUnusable, match=second):
        open_store()


# --- snapshot files --------------------------------------------------------------------------------------


def lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path) as file:
        return [json.loads(line) for line in file]


def test_snapshot(store: Store) -> None:
    """The file has every record of the venue but commands and keys, without names; the manifest fits it."""
    store.create_venue("annexe")
    enrol(store)
    put(store, {"kind": "venue"}, holder(), credential(), *(holder(f"G{n}") for n in range(2500)))
    put(store, holder("X"), venue="annexe")
    store.take("north", [entry(1)])
    store.command("north", "open", lane="a", by="test")
    store.announce_key()
    assert store.snapshot("main") is None
    built = store.build_snapshot("main")
    assert store.snapshot("main") == built
    packed = built.path.read_bytes()
    manifest = protocol.manifest_of(json.loads(built.manifest))
    assert (manifest.size, manifest.sha256) == (len(packed), hashlib.sha256(packed).hexdigest())
    text = gzip.decompress(packed)
    assert (manifest.bytes, manifest.count) == (len(text), text.count(b"\n"))
    assert (manifest.venue, manifest.history, manifest.position) == ("main", *store.log("main"))
    assert store.position_of("main", manifest.cursor) == manifest.position
    want = [{n: v for n, v in r.items() if (r["kind"], n) != ("holder", "name")} for r in exported(store)]
    assert lines(built.path) == want
    assert len(want) == 2504
    assert stat.S_IMODE(built.path.parent.stat().st_mode) == 0o700


def test_at_least(store: Store) -> None:
    """A file satisfies positions up to its own; the newest is given, the newest two are kept."""
    paths = []
    for n in range(3):
        position = put(store, holder(f"H{n}"))
        paths.append(store.build_snapshot("main").path)
        assert store.snapshot("main", position) is not None
        assert store.snapshot("main", position + 1) is None
    assert [path.exists() for path in paths] == [False, True, True]
    assert len(list(paths[0].parent.iterdir())) == 4
    paths[2].unlink()
    older = store.snapshot("main")
    assert older is not None
    assert older.path == paths[1]


def test_forgotten_people_are_in_no_file(store: Store) -> None:
    """A file from before a holder's deletion is not given any more."""
    put(store, holder())
    store.build_snapshot("main")
    store.delete("main", "holder", "H1", "test")
    assert store.snapshot("main") is None
    assert lines(store.build_snapshot("main").path) == []


def test_a_file_open_while_it_is_removed(store: Store) -> None:
    """A file that is being served can be read to its end after newer ones took its place."""
    put(store, holder())
    with store.build_snapshot("main").path.open("rb") as file:
        for n in range(3):
            put(store, holder(f"N{n}"))
            store.build_snapshot("main")
        assert gzip.decompress(file.read()).count(b"\n") == 1


def test_a_file_of_the_time_that_was_lost(open_store: Callable[..., Store], own_file: None) -> None:
    """A file that is newer than the restored database is not given, and begins a new history."""
    store = open_store()
    put(store, holder())
    store.close()
    path = store.directory / "central.db"
    backup = path.read_bytes()
    store = open_store()
    put(store, holder("H2"))
    store.build_snapshot("main")
    history = store.log("main")[0]
    store.close()
    path.write_bytes(backup)
    restored = open_store()
    assert restored.snapshot("main") is None
    assert restored.log("main")[0] != history
    restored.build_snapshot("main")
    assert restored.snapshot("main") is not None


def test_too_old_a_file(store: Store, clock: Clock) -> None:
    """A file from before a deletion that is no longer kept could not be followed, and is not given."""
    put(store, credential())
    store.build_snapshot("main")
    store.delete("main", "credential", "C1", "test")
    assert store.snapshot("main") is not None
    clock.wait(31)
    store.compact()
    assert store.snapshot("main") is None


def test_left_by_a_crash(store: Store) -> None:
    """What a killed build left is removed by the next, and counts as nothing before that."""
    put(store, holder())
    first = store.build_snapshot("main").path
    torn = first.with_name(first.name.split("-")[0] + "-0123.part")
    torn.write_bytes(b"half")
    unsaid = first.with_name(first.name.replace("-1.gz", "-9.gz"))
    unsaid.write_bytes(b"without a manifest")
    found = store.snapshot("main")
    assert found is not None
    assert found.path == first
    store.build_snapshot("main")
    assert not torn.exists()
    assert not unsaid.exists()


def test_from_another_process(open_store: Callable[..., Store], clock: Clock) -> None:
    """A second store that only builds makes the file that the first one gives."""
    store = open_store()
    put(store, holder())
    builder = Store.open(store.directory, store.db.url.render_as_string(False), clock=clock, serve=False)
    built = builder.build_snapshot("main")
    builder.close()
    assert store.snapshot("main") == built
    with pytest.raises(NotFound):
        store.build_snapshot("nowhere")


# --- how long usage is needed ----------------------------------------------------------------------------

DAY = 86_400_000_000


@pytest.mark.parametrize(
    ("rules", "days"),
    [
        ([], 40), ([{}], 40), ([{"limits": [{"max": 1, "per": "month"}]}], 40),
        ([{"limits": [{"max": 1, "per": "day"}]}, {"guest_limits": [{"max": 1, "per": "year"}]}], 400),
        ([{"limits": [{"max": 1, "per": "year"}, {"max": 1, "per": "term"}]}], None),
        ([{"during": "x", "limits": [{"max": 1, "per": "event"}]}], None),
        ([{"again_after_minutes": 100 * 1440}], 101), ([{"again_after_minutes": 5, "limits": None}], 40),
    ],
)  # fmt: skip
def test_horizon(rules: list[dict[str, Any]], days: int | None) -> None:
    """A year's limit asks back 13 months, a term's or an event's for ever, the others 40 days."""
    assert retention.horizon({"rules": rules}) == (None if days is None else days * DAY)


@given(st.integers(0, 10**6))
def test_horizon_covers_the_wait(minutes: int) -> None:
    """Whatever a rule makes people wait, the entry that it asks for is still there."""
    kept = retention.horizon({"rules": [{"again_after_minutes": minutes}]})
    assert kept is not None
    assert kept > minutes * 60_000_000
