"""The importer: whole or not at all, whatever is wrong with the data, the disk or the power."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from gateway.cache import codekey, generations
from gateway.cache.build import BuildReport, DataError, build
from gateway.cache.generations import BusyError, SnapshotError
from gateway.cache.snapshot import Snapshot
from gateway.model import EntitlementState

FEED: list[dict[str, Any]] = [
    {"kind": "venue", "timezone": "Europe/Berlin"},
    {"kind": "area", "id": "hall"},
    {"kind": "product", "id": "family", "rules": [{"areas": ["hall"]}]},
    {"kind": "credential", "id": "C1", "code": "CODE-ONE", "entitlements": ["E1"]},
    {"kind": "entitlement", "id": "E1", "product": "family", "holder": "H1"},
    {"kind": "holder", "id": "H1", "language": "en"},
    {"kind": "credential", "id": "C2", "code": "CODE-TWO", "entitlements": ["E1"]},
    {"kind": "credential", "id": "C2", "code": "CODE-TWO", "entitlements": ["E1"], "state": "lost"},
    {"kind": "usage", "id": "u1", "at": "2026-01-01T10:00:00Z", "to": "hall", "holder": "H1"},
]
OLD = {"kind": "credential", "id": "OLD", "code": "OLD-CODE"}


def lines(*objs: dict[str, Any]) -> list[bytes]:
    return [json.dumps(obj).encode() + b"\n" for obj in objs]


def make(data_dir: Path, feed: Iterable[bytes], **more: Any) -> BuildReport:
    return build(data_dir, feed, source="feed.ndjson", pace=0, **more)


def opened(data_dir: Path) -> Snapshot:
    snapshot = Snapshot.open(data_dir)
    assert snapshot is not None
    return snapshot


def names(data_dir: Path) -> set[str]:
    return {name for name in os.listdir(data_dir) if not name.endswith("-lock")}


def in_child(act: Callable[[], object]) -> int:
    """Runs it in a fork; the wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1]


def test_what_the_report_counts(tmp_path: Path) -> None:
    """Records read, unknown kinds and what the generation holds are counted."""
    report = make(tmp_path, [*lines(*FEED, {"kind": "locker"}, {"kind": "locker"}), b"\n", b"  "])
    assert report.path == generations.path_of(tmp_path, 1)
    assert (report.generation, report.lines, report.records) == (1, 13, 9)
    assert report.unknown_kinds == {"locker": 2}
    assert (report.credentials, report.entitlements, report.holders, report.usages) == (2, 1, 1, 1)
    assert report.tables == {"venue": 1, "area": 1, "product": 1}
    assert names(tmp_path) == {"code.key", ".build.lock", "snapshot-00000001.mdb"}
    counts = opened(tmp_path).counts()
    assert (counts.credentials, counts.entitlements, counts.holders, counts.usages) == (2, 1, 1, 1)


def test_an_empty_feed_and_a_byte_order_mark(tmp_path: Path) -> None:
    """Nothing is a feed too, and a byte order mark before the first line does not spoil it."""
    make(tmp_path, [])
    assert opened(tmp_path).find(b"OLD-CODE") is None
    make(tmp_path, [b"\xef\xbb\xbf" + lines(OLD)[0]])
    found = opened(tmp_path).find(b"OLD-CODE")
    assert found is not None
    assert found.id == "OLD"


def test_bad_records_are_all_named(tmp_path: Path) -> None:
    """Each bad record is given with file, line and field; nothing is imported and nothing left behind."""
    make(tmp_path, lines(OLD))
    before = names(tmp_path)
    bad = [
        *lines(FEED[0], {"kind": "holder", "id": 7}),
        b"{not json\n",
        b"[1]\n",
        b"\xff\xfe\n",
        *lines({"kind": "product", "id": "p", "rules": [{"hours": ["x"]}]}),
    ]
    with pytest.raises(DataError) as caught:
        make(tmp_path, bad)
    text = str(caught.value)
    assert "feed.ndjson:2: id: must be a string" in text
    assert "feed.ndjson:3: is not JSON" in text
    assert "feed.ndjson:4: must be an object" in text
    assert "feed.ndjson:5: is not JSON" in text
    assert "feed.ndjson:6: rules[0].hours[0]: 'x' is not a span" in text
    assert "--skip-bad" in text
    assert caught.value.count == 5
    assert names(tmp_path) == before
    assert opened(tmp_path).find(b"OLD-CODE") is not None


def test_twenty_faults_and_the_number_of_the_others(tmp_path: Path) -> None:
    """A feed that is bad throughout gives twenty faults and says how many more there are."""
    with pytest.raises(DataError, match="and 15 more") as caught:
        make(tmp_path, lines(*({"kind": "area"} for _ in range(35))))
    assert len(caught.value.faults) == 20
    assert Snapshot.open(tmp_path) is None


def test_skip_bad_loads_the_rest(tmp_path: Path) -> None:
    """With skip_bad the good records are there and the bad ones reported."""
    report = make(tmp_path, lines(*FEED, {"kind": "area"}, OLD), skip_bad=True)
    assert report.skipped_bad == 1
    assert str(report.faults[0]) == "10: id: is missing"
    assert opened(tmp_path).find(b"OLD-CODE") is not None


def test_a_bad_newer_version_makes_the_old_one_inactive(tmp_path: Path) -> None:
    """A credential or entitlement whose newer version is bad admits nobody; a later good one mends it."""
    bad = [
        {"kind": "credential", "id": "C1", "code": 5},
        {"kind": "entitlement", "id": "E1", "guests": -1},
        {"kind": "credential", "id": "C2", "code": ""},
    ]
    make(tmp_path, lines(*FEED, *bad, FEED[6]), skip_bad=True)
    snapshot = opened(tmp_path)
    first, second = snapshot.find(b"CODE-ONE"), snapshot.find(b"CODE-TWO")
    assert first is not None
    assert second is not None
    assert (first.state, second.state) == (2, 0)
    assert [e.state for e in second.entitlements] == [EntitlementState.SUSPENDED]


def test_progress_is_told(tmp_path: Path) -> None:
    """The callback hears of records and bytes on the way and at the end."""
    heard: list[tuple[int, int]] = []
    feed = lines(*({"kind": "holder", "id": f"H{i}"} for i in range(10_000)))
    make(tmp_path, feed, progress=lambda records, size: heard.append((records, size)))
    assert heard[-1] == (10_000, sum(map(len, feed)))
    assert len(heard) == 3
    assert heard == sorted(heard)


def test_no_room(tmp_path: Path) -> None:
    """A build is refused where less than 2.5 times the present size is free; it says what it asks for."""
    make(tmp_path, lines(*FEED))
    size = generations.path_of(tmp_path, 1).stat().st_blocks * 512
    with pytest.raises(SnapshotError, match=r"MB free, and a new generation asks for .* Free some space"):
        make(tmp_path, lines(*FEED), free=int(size * 2.4))
    assert generations.numbers(tmp_path) == [1]
    make(tmp_path, lines(*FEED), free=int(size * 2.6))
    assert generations.numbers(tmp_path) == [2, 1]


def test_a_second_import_at_the_same_time_is_refused(tmp_path: Path) -> None:
    """Two imports cannot spoil each other's files."""

    def feed() -> Iterator[bytes]:
        yield from lines(*FEED)
        with pytest.raises(BusyError, match="another import"):
            make(tmp_path, lines(OLD))
        generations.clean_leftovers(tmp_path)  # the gate starts meanwhile: leaves the running build alone

    make(tmp_path, feed())
    assert generations.numbers(tmp_path) == [1]


def test_a_reader_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """An error of whoever gives the lines goes through, and takes the build with it."""

    def feed() -> Iterator[bytes]:
        yield from lines(*FEED)
        raise EOFError("the download ended early")

    make(tmp_path, lines(OLD))
    before = names(tmp_path)
    with pytest.raises(EOFError):
        make(tmp_path, feed())
    assert names(tmp_path) == before


def test_a_disk_that_fails(tmp_path: Path) -> None:
    """Where the file system refuses to write, the message says so and nothing is left behind."""
    import resource

    def act() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
        feed = lines(*({"kind": "holder", "id": f"H{i}", "name": "x" * 100} for i in range(2000)))
        with pytest.raises(SnapshotError, match=r"cannot be written in .* full or failing disk"):
            make(tmp_path, feed)

    make(tmp_path, lines(OLD))
    before = names(tmp_path)
    assert in_child(act) == 0
    assert names(tmp_path) == before


def test_no_code_is_in_the_files(tmp_path: Path) -> None:
    """Neither the snapshot nor anything else in the folder has a code in clear, also after changes."""
    codes = [f"SECRET{i:04d}" for i in range(500)]
    make(tmp_path, lines(*({"kind": "credential", "id": f"C{c}", "code": k} for c, k in enumerate(codes))))
    snapshot = opened(tmp_path)
    snapshot.apply([{"kind": "credential", "id": "C1", "code": "SECRETNEW", "state": "active"}])
    assert snapshot.find(b"SECRETNEW") is not None
    snapshot.close()
    for path in tmp_path.iterdir():
        assert b"SECRET" not in path.read_bytes(), path


def test_the_code_key_is_drawn_once_and_private(tmp_path: Path) -> None:
    """The key file is made by the first import with mode 0600, and stays."""
    make(tmp_path, lines(OLD))
    path = tmp_path / codekey.KEY_FILE
    key = path.read_bytes()
    assert len(key) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    make(tmp_path, lines(OLD))
    assert path.read_bytes() == key
    path.write_bytes(key[:5])
    with pytest.raises(codekey.CodeKeyError, match=r"code\.key has 5 bytes instead of 32"):
        make(tmp_path, lines(OLD))


def test_many_rows_go_through_every_bucket(tmp_path: Path) -> None:
    """Some thousand rows, shuffled and doubled, over all buckets and several flushes, are all found."""
    count = 3000
    feed = lines(
        *(
            {"kind": "credential", "id": f"C{i}", "code": f"K{i}", "entitlements": [f"E{i}"]}
            for i in range(count)
        ),
        *({"kind": "entitlement", "id": f"E{i}", "holder": f"H{i}"} for i in reversed(range(count))),
        *({"kind": "holder", "id": f"H{i}", "state": "blocked" if i % 2 else "active"} for i in range(count)),
        *({"kind": "entitlement", "id": f"E{i}", "holder": f"H{i}", "guests": i} for i in range(0, count, 3)),
        *({"kind": "holder", "id": f"X{i}", "name": "x" * 4000} for i in range(4000)),
    )
    report = make(tmp_path, feed)
    assert (report.credentials, report.entitlements, report.holders) == (count, count, count + 4000)
    snapshot = opened(tmp_path)
    for i in range(count):
        found = snapshot.find(f"K{i}".encode())
        assert found is not None
        (entitlement,) = found.entitlements
        assert (found.id, entitlement.id, entitlement.blocked) == (f"C{i}", f"E{i}", i % 2 == 1)
        assert entitlement.guests == (None if i % 3 else i)


@pytest.mark.parametrize("count", [1, 511, 9000])
def test_many_usages_are_sorted_by_time(tmp_path: Path, count: int) -> None:
    """Usages come back in the order of time, whole, also when nearly all have the same second."""

    def at(i: int) -> str:
        return f"2026-01-01T10:{i // 60 % 60:02d}:{i % 60:02d}Z" if i % 10 == 0 else "2026-01-02T00:00:00Z"

    who = {"kind": "usage", "gateway": "g", "epoch": 1, "to": "hall"}
    feed = lines(*(who | {"seq": i, "at": at(i), "holder": f"H{i % 7}"} for i in range(count)))
    assert make(tmp_path, feed).usages == count
    snapshot = opened(tmp_path)
    times = [move.at for move in snapshot.movements_since(0)]
    assert len(times) == count
    assert times == sorted(times)
    assert sum(len(snapshot.movements_of_person(f"H{i}", 0)) for i in range(7)) == count


def test_an_import_killed_at_every_record(tmp_path: Path) -> None:
    """kill -9 after each record of the feed: the old generation serves, and leftovers are cleaned."""
    make(tmp_path, lines(OLD))
    before = names(tmp_path)
    feed = lines(*FEED)

    def cut(after: int) -> Iterator[bytes]:
        yield from feed[:after]
        os.kill(os.getpid(), signal.SIGKILL)

    for after in range(len(feed) + 1):
        status = in_child(lambda after=after: make(tmp_path, cut(after)))
        assert os.WTERMSIG(status) == signal.SIGKILL
        snapshot = opened(tmp_path)
        assert snapshot.generation == 1
        assert snapshot.find(b"OLD-CODE") is not None
        snapshot.close()
        generations.clean_leftovers(tmp_path)
        assert names(tmp_path) == before


def test_an_import_killed_anywhere_in_the_build(tmp_path: Path) -> None:
    """kill -9 at call after call while the new generation is written: the old one serves, or the new one
    whole, and the next start leaves nothing over."""
    make(tmp_path, lines(OLD))
    feed = lines(*FEED)

    def until(calls: int) -> Callable[[FrameType, str, object], None]:
        left = calls

        def watch(frame: FrameType, event: str, arg: object) -> None:
            nonlocal left
            if "gateway/cache" in frame.f_code.co_filename:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        return watch

    def act(calls: int) -> None:
        sys.setprofile(until(calls))
        make(tmp_path, feed)

    at, step, killed, switched = 1, 23, 0, False
    while True:
        status = in_child(lambda at=at: act(at))
        snapshot = opened(tmp_path)
        if status == 0:
            assert snapshot.find(b"CODE-ONE") is not None
            snapshot.close()
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        killed += 1
        switched = snapshot.generation > 1
        assert (snapshot.find(b"CODE-ONE") is not None) == switched
        assert (snapshot.find(b"OLD-CODE") is not None) == (not switched)
        number = snapshot.generation
        snapshot.close()
        generations.clean_leftovers(tmp_path)
        assert not [name for name in names(tmp_path) if name.endswith(".part") or name.startswith(".build-")]
        if switched:
            generations.path_of(tmp_path, number).unlink()
        at += step
    assert killed > 50


def test_yielding_to_the_gate() -> None:
    """The process that imports takes the lowest priority of processor and disk."""
    from gateway.cache.build import yield_to_gate

    def act() -> None:
        yield_to_gate()
        os._exit(0 if os.nice(0) == 19 else 3)

    assert in_child(act) == 0
