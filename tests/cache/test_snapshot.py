"""The snapshot in use: guard, choice of the generation, look-ups, changes, switch."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import lmdb
import pytest

from gateway.cache import codekey, generations, rows
from gateway.cache.build import build
from gateway.cache.snapshot import Snapshot, SnapshotError, guard, prune, switch
from gateway.model import Area, CredentialState, EntitlementState, Event, Holder, Venue
from tests.cache.starting import refusal

ROOT = Path(__file__).resolve().parents[2]
AT = "2026-01-01T10:00:0{}Z"
FEED: list[dict[str, Any]] = [
    {"kind": "venue", "timezone": "Europe/Berlin", "day_starts": "04:00"},
    {"kind": "product", "id": "p2", "rules": [{"areas": ["hall"]}]},
    {"kind": "product", "id": "p1"},
    {"kind": "area", "id": "hall"},
    {"kind": "event", "id": "v", "tag": "t"},
    {"kind": "credential", "id": "C1", "code": "ONE", "entitlements": ["E2", "gone", "E1"]},
    {"kind": "credential", "id": "C2", "code": "TWO", "state": "lost"},
    {"kind": "entitlement", "id": "E1", "product": "p1", "holder": "H1", "guests": 2},
    {"kind": "entitlement", "id": "E2", "product": "p2", "valid_from": "2026-01-01"},
    {"kind": "holder", "id": "H1", "language": "sv", "notice": {"sv": "hej"}, "state": "blocked"},
    {"kind": "holder", "id": "H2" * 200, "state": "blocked"},
]


def make(data_dir: Path, *objs: dict[str, Any], **more: Any) -> Path:
    feed = (json.dumps(obj).encode() for obj in objs)
    return build(data_dir, feed, source="feed", pace=0, **more).path


def opened(data_dir: Path) -> Snapshot:
    snapshot = Snapshot.open(data_dir)
    assert snapshot is not None
    return snapshot


def test_finding_a_credential(tmp_path: Path) -> None:
    """A code gives its credential with the entitlements that exist, in the order listed, and who is
    blocked."""
    make(tmp_path, *FEED, {"kind": "entitlement", "id": "E3", "holder": "H2" * 200})
    snapshot = opened(tmp_path)
    first = snapshot.find(b"ONE")
    assert first is not None
    assert [(e.id, e.product, e.holder, e.blocked, e.guests) for e in first.entitlements] == [
        ("E2", "p2", None, False, None),
        ("E1", "p1", "H1", True, 2),
    ]
    second = snapshot.find(b"TWO")
    assert second is not None
    assert (second.id, second.state, second.entitlements) == ("C2", CredentialState.LOST, ())
    for code in (b"one", b"ONE ", b"", b"\xff", b"x" * 600):
        assert snapshot.find(code) is None
    snapshot.apply([{"kind": "credential", "id": "C3", "code": "LONG", "entitlements": ["E3"]}])
    third = snapshot.find(b"LONG")
    assert third is not None
    assert third.entitlements[0].blocked


def test_holders_tables_and_counts(tmp_path: Path) -> None:
    """Holders are read by id; venue, areas, events and products come as records, sorted by id."""
    make(tmp_path, *FEED, cursor="c7", published=1_000_000)
    snapshot = opened(tmp_path)
    assert snapshot.holder("H1") == Holder("H1", None, "sv", {"sv": "hej"}, True)
    assert snapshot.holder("H9") is None
    tables = snapshot.records()
    assert tables.venue == Venue("Europe/Berlin", 240)
    assert tables.areas == (Area("hall"),)
    assert tables.events == (Event("v", "t"),)
    assert [product.id for product in tables.products] == ["p1", "p2"]
    counts = snapshot.counts()
    assert (counts.credentials, counts.entitlements, counts.holders, counts.blocked) == (2, 2, 2, 2)
    assert (snapshot.generation, snapshot.cursor, snapshot.published) == (1, "c7", 1_000_000)
    assert snapshot.age(5_000_000) == 4_000_000


def test_an_imported_file_ages_from_its_import(tmp_path: Path) -> None:
    """Without a signed time the age counts from the building, and an empty feed has the default venue."""
    make(tmp_path)
    snapshot = opened(tmp_path)
    assert snapshot.published is None
    assert snapshot.records().venue == Venue()
    assert snapshot.age(10**18) > 0


def usage(source: str, at: int, **fields: Any) -> dict[str, Any]:
    return {"kind": "usage", "id": source, "at": AT.format(at), "to": "hall", **fields}


def test_usage_by_person_entitlement_and_time(tmp_path: Path) -> None:
    """Usages are found by whom they concern from a time on; not_taken annuls, the same again replaces."""
    make(
        tmp_path,
        usage("c", 3, holder="H1", entitlement="E1"),
        usage("a", 1, holder="H1", credential="C1"),
        usage("b", 2, credential="C1", entitlement="E1"),
        usage("d", 4),
        usage("e", 5, holder="H1"),
        usage("e", 5, holder="H1", passage="not_taken"),
        usage("a", 6, holder="H1", credential="C1"),
    )
    snapshot = opened(tmp_path)
    first = snapshot.movements_of_person("H1", 0)
    assert [move.source for move in first] == ["id/c", "id/a"]
    assert [m.source for m in snapshot.movements_of_person("H1", first[1].at)] == ["id/a"]
    assert [m.source for m in snapshot.movements_of_person("card:C1", 0)] == ["id/b"]
    assert [m.source for m in snapshot.movements_of_entitlement("E1", 0)] == ["id/b", "id/c"]
    assert [m.source for m in snapshot.movements_since(first[0].at)] == ["id/c", "id/d", "id/a"]
    snapshot.apply([usage("c", 7, holder="H2"), usage("d", 4, passage="not_taken")])
    assert [m.source for m in snapshot.movements_since(0)] == ["id/b", "id/a", "id/c"]
    assert [m.source for m in snapshot.movements_of_person("H1", 0)] == ["id/a"]
    assert [m.source for m in snapshot.movements_of_person("H2", 0)] == ["id/c"]
    assert [m.source for m in snapshot.movements_of_entitlement("E1", 0)] == ["id/b"]
    snapshot.apply([{"kind": "usage", "id": name, "deleted": True} for name in "abc"])
    assert snapshot.counts().usages == 0
    assert list(snapshot.movements_since(0)) == []


def test_changes_in_one_transaction(tmp_path: Path) -> None:
    """Changes, cursor and time are there together after a reopening; bad ones are set aside with a reason."""
    make(tmp_path, *FEED, cursor="c1")
    snapshot = opened(tmp_path)
    applied = snapshot.apply(
        [
            {"kind": "credential", "id": "C2", "code": "NEW", "entitlements": ["E2"]},
            {"kind": "entitlement", "id": "E1", "guests": "many"},
            {"kind": "holder", "id": "H1"},
            {"kind": "credential", "id": "C1", "code": "\x00"},
            {"kind": "locker"},
            {"kind": "product", "id": "p1", "deleted": True},
            {"kind": "holder", "id": "\ud800"},
            17,  # type: ignore[list-item]
        ],
        "c2",
        42,
    )
    assert [(bad.position, bad.kind, bad.id, bad.field) for bad in applied.bad] == [
        (1, "entitlement", "E1", "guests"),
        (3, "credential", "C1", "code"),
        (6, "holder", "\ud800", ""),
        (7, None, None, ""),
    ]
    assert applied.unknown_kinds == {"locker": 1}
    assert len(applied.changed) == 3
    snapshot.close()
    snapshot = opened(tmp_path)
    assert (snapshot.cursor, snapshot.published) == ("c2", 42)
    assert snapshot.find(b"TWO") is None
    new, first = snapshot.find(b"NEW"), snapshot.find(b"ONE")
    assert new is not None
    assert first is not None
    assert (new.id, new.state) == ("C2", CredentialState.ACTIVE)
    assert first.state == CredentialState.REVOKED
    assert [(e.id, e.state, e.blocked) for e in first.entitlements] == [
        ("E2", EntitlementState.ACTIVE, False),
        ("E1", EntitlementState.SUSPENDED, False),
    ]
    assert [product.id for product in snapshot.records().products] == ["p2"]


def test_what_the_central_signed_about_it(tmp_path: Path) -> None:
    """History, position and the position when it was built are kept; changes move the position alone, and a
    newer publication time is stored by itself, an older one not. All of it is on disk."""
    make(tmp_path, *FEED, cursor="c1", published=100, history="h7", position=40)
    snapshot = opened(tmp_path)
    snapshot.apply([], "c2", 200, position=45)
    snapshot.apply([])
    for published in (150, 300, 250):
        snapshot.touch(published)
    for _ in range(2):
        said = (snapshot.history, snapshot.position, snapshot.base, snapshot.cursor, snapshot.published)
        assert said == ("h7", 45, 40, "c2", 300)
        snapshot.close()
        snapshot = opened(tmp_path)
    snapshot.close()
    make(tmp_path, *FEED)
    imported = opened(tmp_path)
    assert (imported.history, imported.position, imported.base) == (None, None, None)
    imported.touch(7)
    assert imported.published == 7
    imported.close()


def test_meta_of_other_versions() -> None:
    """A generation of before has no history, position or base; what only a newer program knows is passed
    over."""
    fields = {
        "generation": 3, "key_check": b"k", "cursor": "c", "published": 1, "built": 2, "source": "s",
        "format": 1,
    }  # fmt: skip
    meta = rows.meta_of(rows.pack(fields))
    assert (meta.generation, meta.history, meta.position, meta.base) == (3, None, None, None)
    newer = fields | {"history": "h", "position": 4, "base": 3, "colour": "green"}
    assert rows.meta_of(rows.pack(newer)) == rows.Meta(3, b"k", "c", 1, 2, "s", 1, "h", 4, 3)
    del fields["source"]
    with pytest.raises(TypeError):
        rows.meta_of(rows.pack(fields))


def test_a_generation_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    """No older one takes its place, which may know a card that was revoked since; the gate does not start,
    says what to do, and leaves all files as they are."""
    make(tmp_path, *FEED)
    newer = make(tmp_path, *FEED)
    with lmdb.open(str(newer), subdir=False, max_dbs=len(rows.TABLES)) as env:
        meta = env.open_db(b"meta")
        with env.begin(write=True, db=meta) as txn:
            fields = rows.unpack(txn.get(rows.META_KEY))
            txn.put(rows.META_KEY, rows.pack(fields | {"format": rows.FORMAT + 1}))
    before = {path: path.read_bytes() for path in tmp_path.glob("*.mdb")}
    with pytest.raises(SnapshotError, match="install the newer version again"):
        Snapshot.open(tmp_path)
    said = refusal(tmp_path)
    assert f"{newer} has format 2, this program knows 1: install the newer version again" in said
    assert {path: path.read_bytes() for path in tmp_path.glob("*.mdb")} == before


def test_what_a_batch_did_to_usage(tmp_path: Path) -> None:
    """New usages are told one by one; one that replaces, annuls or deletes what was there is told as such;
    the same again, or the annulling of one that was never there, is neither."""
    make(tmp_path, *FEED)
    snapshot = opened(tmp_path)

    def applied(*batch: dict[str, Any]) -> tuple[list[str | None], bool]:
        found = snapshot.apply(batch)
        return [move.source for move in found.new_usage], found.replaced_usage

    first, second = usage("u1", 1, holder="H1"), usage("u2", 2, holder="H1")
    sources = ["id/u1", "id/u2"]
    assert applied(first, second) == (sources, False)
    assert applied(first, second) == ([], False)
    assert len(snapshot.movements_of_person("H1", 0)) == 2
    assert applied(first | {"holder": "H2"}) == ([], True)
    assert applied(second | {"passage": "not_taken"}) == ([], True)
    assert applied(second | {"passage": "not_taken"}) == ([], False)
    assert applied({"kind": "usage", "id": "u1", "deleted": True}) == ([], True)
    assert applied({"kind": "usage", "id": "u1", "deleted": True}) == ([], False)
    assert applied(first, first | {"holder": "H2"}) == (["id/u1"], True)
    assert applied({"kind": "holder", "id": "H9"}) == ([], False)
    snapshot.close()


def test_blocking_and_unblocking(tmp_path: Path) -> None:
    """The first blocked holder is noticed by the next scan, and so is the unblocking."""
    make(tmp_path, *FEED[:-2])
    snapshot = opened(tmp_path)

    def blocked() -> list[bool]:
        found = snapshot.find(b"ONE")
        assert found is not None
        return [entitlement.blocked for entitlement in found.entitlements]

    assert blocked() == [False, False]
    snapshot.apply([{"kind": "holder", "id": "H1", "state": "blocked"}])
    assert blocked() == [False, True]
    snapshot.apply([{"kind": "holder", "id": "H1", "deleted": True}])
    assert blocked() == [False, False]


def test_reading_while_changes_are_applied(tmp_path: Path) -> None:
    """Scans go on in one thread while another applies changes; each sees a whole state."""
    codes = [f"K{i}" for i in range(300)]
    make(tmp_path, *({"kind": "credential", "id": k, "code": k, "entitlements": [k]} for k in codes))
    snapshot = opened(tmp_path)
    done = threading.Event()

    def apply() -> None:
        for turn in range(40):
            snapshot.apply([{"kind": "entitlement", "id": k, "guests": turn} for k in codes], str(turn))
        done.set()

    thread = threading.Thread(target=apply)
    thread.start()
    last = dict.fromkeys(codes, -1)
    while not done.is_set():
        for code in codes:
            found = snapshot.find(code.encode())
            assert found is not None
            for entitlement in found.entitlements:
                assert entitlement.guests is not None
                assert entitlement.guests >= last[code]
                last[code] = entitlement.guests
    thread.join()
    assert snapshot.cursor == "39"


def test_many_changes_keep_the_file_whole(tmp_path: Path) -> None:
    """After batches that grow and shrink the tables the guard still passes and the file stays small."""
    path = make(tmp_path, *FEED)
    snapshot = opened(tmp_path)
    for turn in range(30):
        gone = {"deleted": True} if turn % 2 else {"name": "x" * 500}
        snapshot.apply([{"kind": "holder", "id": f"X{i}", **gone} for i in range(200)])
        guard(path)
    assert path.stat().st_blocks * 512 < 2_000_000
    assert snapshot.counts().holders == 2


# --- cut files ------------------------------------------------------------------------------------------

WALK = """
import json, sys
from pathlib import Path
from gateway.cache.snapshot import Snapshot
data_dir, whole = Path(sys.argv[1]), sys.argv[2]
raw = Path(whole).read_bytes()
target = data_dir / "snapshot-00000002.mdb"
for cut in json.loads(sys.stdin.read()):
    target.write_bytes(raw[:cut])
    aside = []
    snapshot = Snapshot.open(data_dir, lambda path, reason: aside.append((path.name, reason)))
    found = [snapshot.find(b"K%d" % i) for i in range(400)]
    holders = [snapshot.holder("H%d" % i) for i in range(400)]
    snapshot.records(), list(snapshot.movements_since(0)), snapshot.counts()
    print(json.dumps([cut, snapshot.generation, sum(f is not None for f in found), aside]), flush=True)
    snapshot.close()
"""


def test_a_snapshot_cut_at_any_length(tmp_path: Path) -> None:
    """Whatever the length a file is cut to, no SIGBUS: the generation before serves, and it is said why."""
    cards = [
        obj
        for i in range(400)
        for obj in (
            {"kind": "credential", "id": f"C{i}", "code": f"K{i}", "entitlements": [f"E{i}"]},
            {"kind": "entitlement", "id": f"E{i}", "holder": f"H{i}"},
            {"kind": "holder", "id": f"H{i}"},
        )
    ]
    make(tmp_path, *FEED)
    second = make(tmp_path, *cards)
    whole = tmp_path / "whole"
    shutil.move(second, whole)
    size = whole.stat().st_size
    rng = random.Random(5)
    cuts = {page + d for page in range(0, size + 1, 4096) for d in (-1, 0, 1)}
    cuts |= {rng.randrange(size) for _ in range(100)} | set(range(0, 200, 7))
    cuts = {cut for cut in cuts if 0 <= cut <= size}
    ran = subprocess.run(
        [sys.executable, "-c", WALK, str(tmp_path), str(whole)],
        input=json.dumps(sorted(cuts)),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    results = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [result[0] for result in results] == sorted(cuts)
    for cut, generation, found, aside in results:
        if cut == size:
            assert (generation, found, aside) == (2, 400, [])
        else:
            assert (generation, found) == (1, 0)
            assert aside[0][0] == "snapshot-00000002.mdb"
            assert "is cut" in aside[0][1]


def test_the_guard_knows_other_files(tmp_path: Path) -> None:
    """Garbage, an empty file, a folder, a missing file and another LMDB version are refused, by name."""
    path = make(tmp_path, *FEED)
    raw = path.read_bytes()
    other = tmp_path / "snapshot-00000009.mdb"
    for content, says in [
        (b"", "is cut"),
        (b"x" * 20_000, "is no LMDB data file"),
        (raw[:20] + b"\x02" + raw[21:], "of LMDB data version 2"),
        (raw[:40] + b"\x07" + raw[41:], "pages of 4103 bytes"),
        (raw[:4096] + bytes(4096) + raw[8192:], "is no LMDB data file"),
    ]:
        other.write_bytes(content)
        with pytest.raises(SnapshotError, match=says):
            guard(other)
    other.unlink()
    with pytest.raises(SnapshotError, match="cannot be opened"):
        guard(other)
    other.mkdir()
    with pytest.raises(SnapshotError, match=r"cannot be read|cannot be opened"):
        guard(other)
    other.rmdir()
    guard(path)


def test_an_lmdb_file_that_is_no_snapshot(tmp_path: Path) -> None:
    """A whole LMDB file with other tables, or of a format that never was, is set aside; one before serves."""
    make(tmp_path, *FEED)
    foreign = lmdb.open(str(generations.path_of(tmp_path, 5)), subdir=False, lock=False, max_dbs=2)
    with foreign.begin(write=True) as txn:
        txn.put(b"a", b"b")
    foreign.close()
    other = generations.path_of(tmp_path, 6)
    shutil.copy(generations.path_of(tmp_path, 1), other)
    env = lmdb.open(str(other), subdir=False, lock=False, max_dbs=16, map_size=1 << 30)
    with env.begin(write=True) as txn:
        row = txn.get(b"meta", db=env.open_db(b"meta", txn=txn))
        assert row is not None
        txn.put(b"meta", bytes(row).replace(b"format\x01", b"format\x00"), db=env.open_db(b"meta", txn=txn))
    env.close()
    aside: list[tuple[str, str]] = []
    snapshot = Snapshot.open(tmp_path, lambda path, reason: aside.append((path.name, reason)))
    assert snapshot is not None
    assert snapshot.generation == 1
    assert [name for name, _ in aside] == ["snapshot-00000006.mdb", "snapshot-00000005.mdb"]
    assert "format 0 instead of 1" in aside[0][1]


def test_another_code_key_is_noticed(tmp_path: Path) -> None:
    """With a wrong key no generation is used, since every card would be unknown; a missing key is an
    error."""
    make(tmp_path, *FEED)
    key = tmp_path / codekey.KEY_FILE
    right = key.read_bytes()
    key.write_bytes(os.urandom(32))
    aside: list[str] = []
    assert Snapshot.open(tmp_path, lambda path, reason: aside.append(reason)) is None
    assert "another code.key" in aside[0]
    key.unlink()
    with pytest.raises(codekey.CodeKeyError, match=r"code\.key cannot be read"):
        Snapshot.open(tmp_path)
    key.write_bytes(right)
    assert opened(tmp_path).find(b"ONE") is not None


def test_no_snapshot_at_all(tmp_path: Path) -> None:
    """An empty or missing folder has no snapshot, which is no error."""
    assert Snapshot.open(tmp_path) is None
    assert Snapshot.open(tmp_path / "missing") is None


def test_switching_keeps_the_one_before(tmp_path: Path) -> None:
    """After a switch the new generation and the whole one before it are there; older and cut ones
    are gone."""
    for _ in range(3):
        make(tmp_path, *FEED)
    snapshot = opened(tmp_path)
    third = generations.path_of(tmp_path, 3)
    make(tmp_path, *FEED)
    os.truncate(generations.path_of(tmp_path, 2), 9000)
    newer = switch(tmp_path, 4)
    assert newer.generation == 4
    assert snapshot.find(b"ONE") is not None  # until it is closed
    snapshot.close()
    snapshot.close()
    assert generations.numbers(tmp_path) == [4, 3]
    assert not generations.lock_path(generations.path_of(tmp_path, 1)).exists()

    make(tmp_path, *FEED)
    os.truncate(generations.path_of(tmp_path, 5), 9000)
    with pytest.raises(SnapshotError, match="is cut"):
        switch(tmp_path, 5)
    assert generations.numbers(tmp_path) == [5, 4, 3]
    assert newer.find(b"ONE") is not None
    os.truncate(third, 100)
    assert prune(tmp_path, 4) == [3]
    newer.close()
    make(tmp_path, *FEED)
    switch(tmp_path, 6).close()
    assert generations.numbers(tmp_path) == [6, 4]
    switch(tmp_path, 6, keep_before=False).close()
    assert generations.numbers(tmp_path) == [6]


def test_a_read_only_folder_serves() -> None:
    """Where no lock file can be made the snapshot serves and says that it takes no changes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = make(folder, *FEED)
        path.chmod(0o444)
        (folder / codekey.KEY_FILE).chmod(0o444)
        folder.chmod(0o555)
        pid = os.fork()
        if pid == 0:
            try:
                if os.getuid() == 0:  # for root nothing is read-only
                    os.setgid(65534)
                    os.setuid(65534)
                snapshot = opened(folder)
                found = snapshot.find(b"ONE")
                with pytest.raises(SnapshotError, match="takes no changes"):
                    snapshot.apply([])
                os._exit(0 if found is not None and found.id == "C1" else 3)
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        assert not generations.lock_path(path).exists()
        folder.chmod(0o755)


def test_a_damaged_row_is_an_unknown_card_and_is_told(tmp_path: Path) -> None:
    """A row that cannot be read ends no gate: its card is not found, and the snapshot says why."""
    lines = [b'{"kind":"credential","id":"C1","code":"A"}', b'{"kind":"credential","id":"C2","code":"B"}']
    build(tmp_path, lines, source="feed", pace=0)
    [path] = tmp_path.glob("snapshot-*.mdb")
    content = path.read_bytes()
    row = content.index(b"\x93\xa2C1")
    path.write_bytes(content[:row] + b"\xc1" + content[row + 1 :])  # 0xc1 begins nothing in msgpack
    snapshot = Snapshot.open(tmp_path)
    assert snapshot is not None
    assert snapshot.find(b"B") is not None
    assert snapshot.damaged is None
    assert snapshot.find(b"A") is None
    assert "cannot be read" in str(snapshot.damaged)
    snapshot.close()
