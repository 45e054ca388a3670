"""The ledger's file cut, with flipped bytes, or not a ledger: it is set aside, and the gate works on."""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
import threading
from pathlib import Path

import pytest

from gateway.cache.ledger import read_events
from gateway.cache.ledger_repair import PAGE
from gateway.model import AccessEvent, EventKind, Passage
from tests.cache.ledger_rig import Rig, file, grant, names, outcome, rows

EVENTS = 150
FRAME = 24 + PAGE


@pytest.fixture(scope="module")
def ledgers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two ledgers with the same 150 events, a commit each: one closed in order, one as kill -9 leaves it."""
    clean, crashed = tmp_path_factory.mktemp("clean"), tmp_path_factory.mktemp("crashed")

    async def main() -> None:
        with Rig(clean) as rig:
            for number in range(1, EVENTS + 1):
                rig.grants(number, number + 1)
                await rig.on_disk()
            assert rig.ledger.epoch is not None
            rig.ledger.acknowledge(rig.ledger.epoch, 20)
            await rig.until(lambda: rig.ledger.acknowledged == 20)
            for name in ("ledger.db", "ledger.db-wal"):
                shutil.copy(clean / name, crashed / name)

    asyncio.run(main())
    return clean, crashed


def as_written(folder: Path) -> dict[int, dict[str, object]]:
    return {row["seq"]: row for row in read_events(folder / "ledger.db", 0, 10_000)}


async def serves(folder: Path) -> Rig:
    """Opens a damaged ledger, records through it, and waits until the thorough check is through, too."""
    with Rig(folder) as rig:
        ledger = rig.ledger
        newcomer = grant(9999)
        rig.record(newcomer, 9999)
        await rig.on_disk()
        await rig.until(lambda: not any(thread.name == "ledger-check" for thread in threading.enumerate()))
        rig.grants(10_000, 10_001)
        await rig.on_disk()
        assert ledger.failed is None
        assert rig.answers[9999] == [True]
        assert rig.answers[10_000] == [True]
        # Where this very look-up meets damage, it is answered by the new ledger a moment later.
        await rig.until(lambda: [m.credential for m in ledger.person("H9999", 0)] == ["C9999"])
        assert len(list(ledger.movements_since(0))) >= 2
    return rig


def check_what_is_left(folder: Path, rig: Rig, whole: dict[int, dict[str, object]]) -> int:
    """No number twice, no event changed without being marked, nothing missing but from a ledger set aside."""
    left = as_written(folder)
    news = {row["credential"]: row for row in left.values() if row.get("credential") in ("C9999", "C10000")}
    assert len(news) == 2
    intact = 0
    for seq, row in left.items():
        if row in news.values() or row.get("damaged"):
            continue
        same = {key: value for key, value in row.items() if key not in ("epoch", "gateway")}
        assert same == {key: value for key, value in whole[seq].items() if key not in ("epoch", "gateway")}
        intact += 1
    if rig.ledger.set_aside is not None:
        assert rig.ledger.set_aside.exists()
        first_epoch = whole[1]["epoch"]
        assert rig.ledger.epoch != first_epoch
    else:
        assert names(folder) == ["ledger.db"]
    return intact


def test_a_ledger_cut_at_any_length_is_set_aside(tmp_path: Path, ledgers: tuple[Path, Path]) -> None:
    """Whatever is left of the file, the gate serves with a new epoch, and what can be read is saved."""
    clean, _ = ledgers
    whole = as_written(clean)
    data = (clean / "ledger.db").read_bytes()
    lengths = {0, 1, 16, 99, 100, 511, 512, PAGE - 1, len(data) - 1}
    lengths |= {pages * PAGE + extra for pages in range(1, len(data) // PAGE, 3) for extra in (0, 700)}

    async def main() -> None:
        saved = []
        for length in sorted(lengths):
            folder = tmp_path / str(length)
            folder.mkdir()
            (folder / "ledger.db").write_bytes(data[:length])
            rig = await serves(folder)
            assert rig.ledger.set_aside is not None
            assert rig.ledger.set_aside.read_bytes() == data[:length]
            saved.append(check_what_is_left(folder, rig, whole))
            with Rig(folder) as again:
                assert again.ledger.set_aside is None
        assert saved[-1] >= EVENTS // 2

    asyncio.run(main())


def test_a_log_cut_at_any_length_gives_what_is_before(tmp_path: Path, ledgers: tuple[Path, Path]) -> None:
    """A write-ahead log that ends too early is the ledger of an earlier moment, never an error."""
    clean, crashed = ledgers
    whole = as_written(clean)
    log = (crashed / "ledger.db-wal").read_bytes()
    chosen = random.Random(2)
    lengths = {0, 1, 31, 32, 33, 32 + 23, 32 + 24, 32 + FRAME, len(log) - 1, len(log)}
    lengths |= {chosen.randrange(len(log)) for _ in range(15)}

    async def main() -> None:
        kept = []
        for length in sorted(lengths):
            folder = tmp_path / str(length)
            shutil.copytree(crashed, folder)
            (folder / "ledger.db-wal").write_bytes(log[:length])
            rig = await serves(folder)
            kept.append(check_what_is_left(folder, rig, whole))
        assert kept == sorted(kept)
        assert kept[0] < EVENTS
        assert kept[-1] == EVENTS

    asyncio.run(main())


def test_flipped_bytes_in_the_file_never_stop_the_gate(tmp_path: Path, ledgers: tuple[Path, Path]) -> None:
    """A byte flipped anywhere: no crash, no changed event passed on, and nothing is lost unnoticed."""
    clean, _ = ledgers
    whole = as_written(clean)
    data = (clean / "ledger.db").read_bytes()
    chosen = random.Random(3)
    places = list(range(0, 100, 7)) + [chosen.randrange(100, PAGE) for _ in range(10)]
    places += [chosen.randrange(PAGE, len(data)) for _ in range(45)]
    places += [page * PAGE + chosen.randrange(12) for page in range(1, len(data) // PAGE, 4)]

    async def main() -> None:
        aside = 0
        for number, place in enumerate(places):
            folder = tmp_path / str(number)
            folder.mkdir()
            flipped = bytearray(data)
            flipped[place] ^= chosen.randrange(1, 256)
            (folder / "ledger.db").write_bytes(flipped)
            rig = await serves(folder)
            check_what_is_left(folder, rig, whole)
            aside += rig.ledger.set_aside is not None
            if rig.ledger.set_aside is None:
                assert set(as_written(folder)) >= set(whole)
            shutil.rmtree(folder)
        assert aside >= 20

    asyncio.run(main())


def test_a_flipped_byte_in_the_log_is_noticed(tmp_path: Path, ledgers: tuple[Path, Path]) -> None:
    """SQLite drops all commits from there on; their numbers are never given again in the old epoch."""
    clean, crashed = ledgers
    whole = as_written(clean)
    log = (crashed / "ledger.db-wal").read_bytes()
    chosen = random.Random(4)
    places = [0, 3, 9, 17, 25, 40, len(log) - 5] + [chosen.randrange(32, len(log)) for _ in range(25)]

    async def main() -> None:
        for number, place in enumerate(places):
            folder = tmp_path / str(number)
            shutil.copytree(crashed, folder)
            flipped = bytearray(log)
            flipped[place] ^= 1 << chosen.randrange(8)
            (folder / "ledger.db-wal").write_bytes(flipped)
            rig = await serves(folder)
            intact = check_what_is_left(folder, rig, whole)
            # The last transaction alone looks like one that a power cut tore.
            assert rig.ledger.set_aside is not None or intact >= EVENTS - 1

    asyncio.run(main())


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + bytes(5000)])
def test_a_file_that_is_no_ledger_is_set_aside(tmp_path: Path, content: bytes) -> None:
    """Whatever lies at the ledger's place is kept under another name, with its side files."""

    async def main() -> None:
        (tmp_path / "ledger.db").write_bytes(content)
        (tmp_path / "ledger.db-wal").write_bytes(b"rubbish")
        rig = await serves(tmp_path)
        assert rig.ledger.set_aside is not None
        assert rig.ledger.set_aside.read_bytes() == content
        assert rig.ledger.set_aside.with_name(rig.ledger.set_aside.name + "-wal").read_bytes() == b"rubbish"
        assert rig.ledger.set_aside_reason
        assert not rig.faults

    asyncio.run(main())


def test_another_database_is_set_aside(tmp_path: Path) -> None:
    """A SQLite file with other tables is no ledger; two on one second get two names."""

    async def main() -> None:
        for _ in range(2):
            (tmp_path / "ledger.db").unlink(missing_ok=True)
            with file(tmp_path) as other:
                other.execute("CREATE TABLE meta (key, value)")
            rig = await serves(tmp_path)
            assert rig.ledger.set_aside is not None
        assert len([name for name in names(tmp_path) if name.startswith("ledger-broken-")]) == 2

    asyncio.run(main())


def test_damage_found_by_the_thorough_check_is_mended_live(tmp_path: Path) -> None:
    """A page that nobody reads at start is found in the background; a new ledger takes over."""

    async def main() -> None:
        with Rig(tmp_path) as rig:
            rig.grants(1, 2001)
            rig.ledger.record(AccessEvent(EventKind.CLEAR, 5, from_="hall", by="admin"))
            rig.ledger.record(AccessEvent(EventKind.LANE, 6, lane="north", detail="closed", trusted=True))
            await rig.on_disk()
            rig.ledger.refuse(7, "unknown point")
            assert rig.ledger.epoch is not None
            rig.ledger.acknowledge(rig.ledger.epoch, 50)
            await rig.until(lambda: rig.ledger.acknowledged == 50)
        with file(tmp_path) as other:
            page = other.execute(
                "SELECT pageno FROM dbstat WHERE name = 'event' AND pagetype = 'leaf'"
                " ORDER BY path LIMIT 1 OFFSET 9"
            ).fetchone()[0]
        with (tmp_path / "ledger.db").open("r+b") as damaged:
            damaged.seek((page - 1) * PAGE)
            damaged.write(bytes(PAGE))
        first = rig.ledger.epoch
        with Rig(tmp_path, recent_from=5000) as rig:
            ledger = rig.ledger
            assert ledger.set_aside is None
            pending = grant(6000, passage=Passage.PENDING)
            rig.record(pending, 1)
            await rig.until(lambda: ledger.set_aside)
            rig.record(outcome(pending, Passage.TAKEN), 2)
            await rig.on_disk()
            assert [fault is None for fault in rig.faults] == [False, True]
            assert rig.answers == {1: [True], 2: [True]}
            assert [m.passage for m in ledger.person("H6000", 0)] == [Passage.TAKEN]
            assert [m.seq for m in ledger.person("H1999", 0)] == [1999]
            assert len(list(ledger.movements_since(0))) == 2001
            assert ledger.epoch != first
            assert ledger.acknowledged == 50
            assert [row["seq"] for row in ledger.refused()] == [7]
            numbers = [row["seq"] for row in ledger.events(0, 5000)]
            assert 1900 < len(numbers) < 2004
            assert len(set(numbers)) == len(numbers)
            assert [row["epoch"] for row in ledger.events(0, 2)] == [first, first]
        with Rig(tmp_path) as rig:
            assert rig.ledger.cleared() == {"hall": 5}
            assert rig.ledger.lane_modes() == {"north": "closed"}
            assert rig.ledger.trusted_time() == 6
            assert rig.ledger.set_aside is None

    asyncio.run(main())


def test_damage_found_by_a_look_up_is_mended_live(tmp_path: Path) -> None:
    """A row that cannot be read never raises on the way of a scan; the others are saved into a new ledger."""

    async def main() -> None:
        with Rig(tmp_path) as rig:
            _, lost, _ = rig.grants(1, 4)
            await rig.on_disk()
            with file(tmp_path) as other:
                other.execute("UPDATE movement SET point = CAST(x'ff' AS TEXT) WHERE seq = 2")
            assert rig.ledger.person("H2", 0) == []
            await rig.until(lambda: rig.ledger.set_aside)
            rig.grants(4, 5)
            await rig.on_disk()
            assert rig.answers[4] == [True]
            assert [m.seq for m in rig.ledger.movements_since(0)] == [1, 3, 4]
            assert [row["seq"] for row in rig.ledger.events(0, 9)] == [1, 2, 3, 4]
            rig.record(outcome(lost, Passage.NOT_TAKEN), 5)  # the gate still holds it: it is written whole
            rig.grants(6, 7)
            await rig.on_disk()
            assert [m.passage for m in rig.ledger.person("H2", 0)] == [Passage.NOT_TAKEN]
            assert [m.seq for m in rig.ledger.movements_since(0)] == [1, 2, 3, 4, 6]

    asyncio.run(main())


def test_a_changed_event_is_never_passed_on(tmp_path: Path) -> None:
    """A row that does not fit its digest says so, in place of its content; the rest is given as ever."""

    async def main() -> None:
        with Rig(tmp_path) as rig:
            rig.grants(1, 5)
            await rig.on_disk()
            with file(tmp_path) as other:
                other.execute("UPDATE event SET holder = 'H9' WHERE seq = 2")
                other.execute("UPDATE event SET holder = CAST(x'48ff' AS TEXT) WHERE seq = 3")
            found = rig.ledger.events(0, 9)
            assert found[1] == {"seq": 2, "epoch": rig.ledger.epoch, "damaged": True}
            assert found[2] == {"seq": 3, "epoch": rig.ledger.epoch, "damaged": True}
            assert [row.get("holder") for row in found] == ["H1", None, None, "H4"]

    asyncio.run(main())


def test_a_replacement_that_was_interrupted_is_completed(tmp_path: Path, ledgers: tuple[Path, Path]) -> None:
    """Between the two renamings nothing is lost; an unfinished new file is dropped."""
    clean, _ = ledgers

    async def main() -> None:
        shutil.copy(clean / "ledger.db", tmp_path / "ledger.db.new")
        (tmp_path / "ledger.db-wal").write_bytes(b"left over from the old one")
        with Rig(tmp_path) as rig:
            assert rig.ledger.last_seq == EVENTS
        assert rows(tmp_path, "SELECT count(*) FROM event") == [(EVENTS,)]
        (tmp_path / "ledger.db").rename(tmp_path / "ledger.db.new")
        with (tmp_path / "ledger.db.new").open("r+b") as unfinished:
            unfinished.truncate(3 * PAGE)
        with Rig(tmp_path) as rig:
            assert rig.ledger.last_seq == 0
        assert "ledger.db.new" not in names(tmp_path)

    asyncio.run(main())


def test_a_reader_of_the_old_file_does_not_harm_the_new_one(tmp_path: Path) -> None:
    """Who still has the old file open neither sees nor removes the new one's log."""

    async def main() -> None:
        with Rig(tmp_path) as rig:
            rig.grants(1, 4)
            await rig.on_disk()
            other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
            assert other.execute("SELECT count(*) FROM event").fetchone() == (3,)
            other.execute("UPDATE movement SET point = CAST(x'ff' AS TEXT) WHERE seq = 2")
            rig.ledger.person("H2", 0)
            await rig.until(lambda: rig.ledger.set_aside)
            rig.grants(4, 6)
            await rig.on_disk()
            assert (tmp_path / "ledger.db-wal").exists()
            assert other.execute("SELECT count(*) FROM event").fetchone() == (3,)
        other.close()
        assert rows(tmp_path, "SELECT count(*) FROM event") == [(5,)]

    asyncio.run(main())
