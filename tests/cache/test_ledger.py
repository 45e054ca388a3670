"""The ledger at work: group commit, what is visible when, outcomes, epochs, what is kept and pruned."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from datetime import timedelta, timezone
from pathlib import Path

import pytest

from gateway.cache.ledger import LedgerTooNew, event_json, read_events
from gateway.model import NO_MOVEMENTS, AccessEvent, EventKind, Movement, Passage
from tests.cache.ledger_rig import DAY, Rig, file, grant, names, outcome, rows


def test_an_event_comes_back_as_it_was_recorded(tmp_path: Path) -> None:
    """Every column of an event is on disk when then is called, and the technician's query finds it."""

    async def main() -> None:
        with Rig(tmp_path) as rig:
            event = grant(7)
            said = asyncio.get_running_loop().create_future()
            rig.ledger.record(event, said.set_result)
            assert event.seq is None
            assert await said is True
            assert event.seq == 1
            assert event.movement is not None
            assert event.movement.seq == 1
            (row,) = rig.ledger.events(0, 10)
            assert rig.ledger.event(1) == row
            assert rig.ledger.event(2) is None
            assert row["epoch"] == rig.ledger.epoch
            line = event_json(row, "north", row["epoch"], timezone(timedelta(hours=1)))
            assert json.loads(json.dumps(line)) == {
                "gateway": "north", "epoch": rig.ledger.epoch, "seq": 1,
                "at": "1970-01-01T01:00:00.000007+01:00", "kind": "scan",
                "point": "north-in",
                "lane": "north", "reader": "scanner", "verdict": "granted", "flags": ["grace", "attention"],
                "credential": "C7", "holder": "H7", "entitlement": "E-H7",
                "product": "family", "guest": 0, "left": 3, "from": "outside", "to": "hall",
                "passage": "assumed",
            }  # fmt: skip
            found = rows(tmp_path, 'SELECT verdict, "left" FROM event WHERE credential = ?', "C7")
            assert found == [("granted", 3)]

    asyncio.run(main())


def test_events_are_committed_in_groups_in_order_and_answered_once(tmp_path: Path) -> None:
    """What gathers is one commit; every then is called once, in order, and numbers have no gap."""

    async def main() -> None:
        with Rig(tmp_path) as rig:
            order: list[int] = []
            with file(tmp_path) as other:
                other.execute("BEGIN IMMEDIATE")  # the first commit has to wait, so the others gather
                for number in range(1, 501):
                    rig.ledger.record(
                        grant(number), lambda ok, number=number: order.append(number if ok else -1)
                    )
                await asyncio.sleep(0.05)
                assert order == []
                assert rig.ledger.pending == 500
                other.execute("COMMIT")
            await rig.on_disk()
            assert order == list(range(1, 501))
            assert sum(rig.commits) == 500
            assert len(rig.commits) <= 3
            assert rig.ledger.pending == 0
            assert [row["credential"] for row in rig.ledger.events(0, 600)] == [
                f"C{number}" for number in range(1, 501)
            ]
            assert [row["seq"] for row in rig.ledger.events(490, 5)] == [491, 492, 493, 494, 495]
            assert rig.ledger.last_seq == 500

    asyncio.run(main())


def test_a_failing_callback_does_not_take_the_others_answers(tmp_path: Path) -> None:
    """An exception in one then reaches the loop's handler, and all other thens are still called."""

    async def main() -> None:
        said: list[object] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, context: said.append(context["exception"])
        )
        with Rig(tmp_path) as rig:

            def fails(ok: bool) -> None:
                raise LookupError("lane is gone")

            rig.grants(1, 3)
            rig.ledger.record(grant(3), fails)
            rig.grants(4, 6)
            await rig.on_disk()
            assert rig.answers == {1: [True], 2: [True], 4: [True], 5: [True]}
            assert [type(error) for error in said] == [LookupError]

    asyncio.run(main())


def test_a_movement_is_visible_before_its_commit(tmp_path: Path) -> None:
    """Between record and commit a second reader already sees the entry; after it, it is there once."""

    async def main() -> None:
        with Rig(tmp_path) as rig, file(tmp_path) as other:
            ledger = rig.ledger
            assert ledger.person("H1", 0) is NO_MOVEMENTS
            assert ledger.entitlement("E-H1", 0) is NO_MOVEMENTS
            other.execute("BEGIN IMMEDIATE")
            event = grant(1, passage=Passage.PENDING)
            rig.record(event, 1)
            assert ledger.person("H1", 0) == [event.movement]
            assert ledger.entitlement("E-H1", 0) == [event.movement]
            assert ledger.person("H1", 2) == []
            rig.record(outcome(event, Passage.TAKEN), 2)
            assert [m.passage for m in ledger.person("H1", 0)] == [Passage.TAKEN]
            await asyncio.sleep(0.05)  # the writer has numbered it and waits for the commit
            assert [m.passage for m in ledger.person("H1", 0)] == [Passage.TAKEN]
            assert list(ledger.movements_since(0)) == [event.movement]
            assert rig.answers == {1: [], 2: []}
            other.execute("COMMIT")
            await rig.on_disk()
            found = ledger.person("H1", 0)
            assert found == [event.movement]
            assert found[0] is not event.movement
            assert ledger.entitlement("E-H1", 0) == [event.movement]

    asyncio.run(main())


def test_an_outcome_changes_the_row_and_names_its_grant(tmp_path: Path) -> None:
    """A passage event updates the grant's movement in its own transaction; the grant's event stays."""

    async def main() -> None:
        with Rig(tmp_path) as rig, file(tmp_path) as other:
            first, second = rig.grants(1, 3, Passage.PENDING)
            await rig.on_disk()
            other.execute("BEGIN IMMEDIATE")
            rig.record(outcome(first, Passage.NOT_TAKEN), 3)
            await asyncio.sleep(0.02)
            assert [m.passage for m in rig.ledger.person("H1", 0)] == [Passage.NOT_TAKEN]
            assert other.execute("SELECT passage FROM movement WHERE seq = 1").fetchone() == ("pending",)
            other.execute("COMMIT")
            again = rig.ledger.movement(2)
            assert again == second.movement
            again.passage = Passage.TAKEN
            rig.record(AccessEvent(EventKind.PASSAGE, 9, of_seq=2, movement=again, passage="taken"), 4)
            assert [m.passage for m in rig.ledger.person("H2", 0)] == [Passage.TAKEN]
            await rig.on_disk()
            assert rows(tmp_path, "SELECT seq, passage FROM movement") == [(1, "not_taken"), (2, "taken")]
            assert rows(tmp_path, "SELECT seq, passage, of_seq FROM event WHERE kind = 'passage'") == [
                (3, "not_taken", 1),
                (4, "taken", 2),
            ]
            assert rows(tmp_path, "SELECT passage FROM event WHERE seq = 1") == [("pending",)]

    asyncio.run(main())


def test_a_passage_that_answers_no_movement_makes_one(tmp_path: Path) -> None:
    """A head counted after a lane was opened by hand is a movement of the passage, not of the opening."""

    async def main() -> None:
        with Rig(tmp_path) as rig:
            opened = AccessEvent(EventKind.OPEN, 1, lane="north", by="admin")
            head = Movement(2, "outside", "hall", None, "north-in", passage=Passage.TAKEN)
            rig.ledger.record(opened)
            rig.ledger.record(
                AccessEvent(EventKind.PASSAGE, 2, lane="north", passage="taken", of=opened, movement=head)
            )
            await rig.on_disk()
            assert head.seq == 2
            assert list(rig.ledger.movements_since(0)) == [head]

    asyncio.run(main())


def test_movements_are_streamed_by_time_also_those_not_on_disk(tmp_path: Path) -> None:
    """Start-up reads everything from an instant on, in order, each movement once with its latest outcome."""

    async def main() -> None:
        with Rig(tmp_path) as rig, file(tmp_path) as other:
            for number, person, at in ((1, "B", 10), (2, "A", 30), (3, "B", 5), (4, "A", 20), (5, "C", 1)):
                rig.record(grant(number, person=person, at=at, passage=Passage.PENDING), number)
            settled = grant(6, person="C", at=50, passage=Passage.PENDING)
            rig.record(settled, 6)
            await rig.on_disk()
            other.execute("BEGIN IMMEDIATE")
            rig.record(outcome(settled, Passage.TAKEN), 7)
            rig.record(grant(8, person="B", at=7), 8)
            await asyncio.sleep(0.02)
            found = [(m.person, m.at, str(m.passage)) for m in rig.ledger.movements_since(5)]
            other.execute("COMMIT")
            assert found == [
                ("B", 5, "pending"),
                ("B", 7, "assumed"),
                ("B", 10, "pending"),
                ("A", 20, "pending"),
                ("A", 30, "pending"),
                ("C", 50, "taken"),
            ]

    asyncio.run(main())


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    """Numbers, epoch, movements, clears and the look-ups' filter go on where they were."""

    async def main() -> None:
        with Rig(tmp_path) as rig:
            rig.grants(1, 20)
            rig.ledger.record(AccessEvent(EventKind.CLEAR, 40, from_="hall", to="outside", by="admin"))
            rig.ledger.record(AccessEvent(EventKind.CLEAR, 35, from_="hall", to="outside", by="admin"))
            assert rig.ledger.cleared() == {"hall": 40}
        epoch = rig.ledger.epoch
        assert rows(tmp_path, "SELECT count(*) FROM event") == [(21,)]
        for recent_from in (0, 10, 100):
            with Rig(tmp_path, recent_from=recent_from) as rig:
                assert rig.ledger.epoch == epoch
                assert rig.ledger.last_seq == 21
                assert rig.ledger.set_aside is None
                assert rig.ledger.cleared() == {"hall": 40}
                assert [m.seq for m in rig.ledger.person("H15", 0)] == [15]
                assert [m.seq for m in rig.ledger.entitlement("E-H15", 10)] == [15]
                assert rig.ledger.person("H99", 100) is NO_MOVEMENTS
        assert rig.faults == []

    asyncio.run(main())


def test_the_filter_moves_on_and_forgets_nobody(tmp_path: Path) -> None:
    """From day to day look-ups stay right, also for what was recorded under a clock that ran ahead."""

    async def main() -> None:
        with Rig(tmp_path, recent_from=0) as rig:
            number = 0
            for day in range(1, 6):
                for offset in (5, -DAY // 2, 3 * DAY if day == 2 else 6):
                    number += 1
                    rig.record(grant(number, person=f"P{number}", at=day * DAY + offset), number)
                await rig.on_disk()
                rig.ledger.watch(day * DAY)
                for asked in range(1, number + 1):
                    for since in range(0, 7 * DAY, DAY):
                        at = (
                            rows_at[asked]
                            if (rows_at := dict(rows(tmp_path, "SELECT seq, at FROM movement")))
                            else 0
                        )
                        found = [m.seq for m in rig.ledger.person(f"P{asked}", since)]
                        assert found == ([asked] if at >= since else [])
                        if found:
                            assert not rig.ledger.quiet(f"P{asked}", "nobody's", since)
                            assert not rig.ledger.quiet("nobody", f"E-P{asked}", since)
                assert rig.ledger.quiet("nobody", "nobody's", 7 * DAY)

    asyncio.run(main())


def test_nobody_is_quiet_whose_movement_was_too_much(tmp_path: Path) -> None:
    """What is lost because the ledger is full has happened all the same: its grant may be pending."""

    async def main() -> None:
        with Rig(tmp_path, memory=0) as rig:
            assert rig.ledger.quiet("H1", "E-H1", 0)
            rig.grants(1, 2)
            assert (rig.ledger.lost, rig.ledger.quiet("H1", "E-H1", 0)) == (1, False)

    asyncio.run(main())


def test_open_grants_are_closed_at_start(tmp_path: Path) -> None:
    """A grant without an outcome becomes not_taken with a sensor and assumed without one, once."""

    async def main() -> None:
        with Rig(tmp_path) as rig:
            rig.grants(1, 3, Passage.PENDING)
            other_lane = grant(3, passage=Passage.PENDING)
            other_lane.lane = "south"
            rig.record(other_lane, 3)
            settled = grant(4, passage=Passage.PENDING)
            rig.record(settled, 4)
            rig.record(outcome(settled, Passage.TAKEN), 5)
        with Rig(tmp_path) as rig:
            closed = rig.ledger.close_open_grants({"north"}, 77)
            assert [(m.seq, str(m.passage)) for m in closed] == [
                (1, "not_taken"), (2, "not_taken"), (3, "assumed"),
            ]  # fmt: skip
            assert [m.passage for m in rig.ledger.person("H1", 0)] == [Passage.NOT_TAKEN]
            assert {m.passage for m in rig.ledger.movements_since(0)} == {
                Passage.NOT_TAKEN, Passage.ASSUMED, Passage.TAKEN,
            }  # fmt: skip
        found = rows(tmp_path, 'SELECT seq, at, kind, lane, passage, of_seq, "by" FROM event WHERE seq > 5')
        assert found == [
            (6, 77, "passage", "north", "not_taken", 1, "start"),
            (7, 77, "passage", "north", "not_taken", 2, "start"),
            (8, 77, "passage", "south", "assumed", 3, "start"),
        ]
        assert rows(tmp_path, "SELECT count(*) FROM movement WHERE passage = 'pending'") == [(0,)]
        with Rig(tmp_path) as rig:
            assert rig.ledger.close_open_grants(lambda lane, point: True, 78) == []

    asyncio.run(main())


def test_acknowledging_and_pruning(tmp_path: Path) -> None:
    """Acknowledged events past retain go, and movements past 400 days; never the refused or the last."""

    async def main() -> None:
        with Rig(tmp_path) as rig:
            ledger = rig.ledger
            for number in range(1, 2501):
                rig.record(grant(number, at=number * DAY // 5), number)  # 500 days
            await rig.on_disk()
            epoch = ledger.epoch
            assert epoch is not None
            assert ledger.acknowledge(epoch, 2501) is False  # never recorded
            assert ledger.acknowledge(epoch ^ 1, 5) is False
            assert ledger.acknowledge(epoch, 2000) is True
            assert ledger.acknowledge(epoch, 1900) is True  # late, and takes nothing back
            ledger.refuse(3, "unknown point")
            ledger.prune(500 * DAY, 30 * DAY)
            await rig.until(lambda: ledger.acknowledged == 2000)
            await rig.until(lambda: rows(tmp_path, "SELECT count(*) FROM event") == [(501,)])
            assert [row["seq"] for row in ledger.events(0, 3)] == [3, 2001, 2002]
            assert [(row["seq"], row["reason"]) for row in ledger.refused()] == [(3, "unknown point")]
            await rig.until(lambda: rows(tmp_path, "SELECT min(seq) FROM movement") == [(500,)])
            assert [m.seq for m in ledger.person("H600", 0)] == [600]  # its event is gone
            assert ledger.held([(epoch, 600), (epoch, 400), (epoch + 1, 601)]) == {(epoch, 600)}
            assert ledger.acknowledge(epoch, 2500)
            ledger.prune(5000 * DAY, 30 * DAY)
            await rig.until(lambda: rows(tmp_path, "SELECT count(*) FROM event") == [(2,)])
        with Rig(tmp_path) as rig:
            assert rig.ledger.last_seq == 2500  # so no number is given twice
            assert rig.ledger.acknowledged == 2500

    asyncio.run(main())


def test_events_stay_for_retain_after_they_were_acknowledged(tmp_path: Path) -> None:
    """What was offline for long and is acknowledged late stays as long as anything else: the central may be
    restored from a backup of before. What it has lost again is not deleted because of what it once said."""

    async def main() -> None:
        with Rig(tmp_path) as rig:
            ledger = rig.ledger
            for number in range(1, 101):
                rig.record(grant(number, at=number), number)
            await rig.on_disk()
            epoch = ledger.epoch
            assert epoch is not None
            ledger.settle(epoch, 1, 40, 100 * DAY)
            ledger.settle(epoch, 41, 80, 120 * DAY)
            ledger.prune(130 * DAY, 30 * DAY)
            ledger.prune(132 * DAY, 30 * DAY)
            await rig.until(lambda: rows(tmp_path, "SELECT min(seq) FROM event") == [(41,)])
            ledger.lower(60)
            ledger.prune(200 * DAY, 30 * DAY)
            await rig.until(lambda: rows(tmp_path, "SELECT min(seq) FROM event") == [(61,)])
            assert rows(tmp_path, "SELECT count(*) FROM event") == [(40,)]
            ledger.settle(epoch, 61, 100, 201 * DAY)
            ledger.prune(300 * DAY, 30 * DAY)
            await rig.until(lambda: rows(tmp_path, "SELECT count(*) FROM event") == [(1,)])
            assert rows(tmp_path, "SELECT count(*) FROM meta WHERE key GLOB 'had:*'") == [(1,)]

    asyncio.run(main())


def test_a_new_epoch_covers_what_is_not_acknowledged(tmp_path: Path) -> None:
    """After a new epoch the unacknowledged are of it, the acknowledged keep theirs, also on restart."""

    async def main() -> None:
        with Rig(tmp_path) as rig:
            ledger = rig.ledger
            rig.grants(1, 11)
            await rig.on_disk()
            first = ledger.epoch
            assert first is not None
            ledger.acknowledge(first, 6)
            before = {row["seq"]: row["digest"] for row in ledger.events(0, 20)}
            changed = asyncio.Event()
            ledger.new_epoch("epoch_conflict", changed.set)
            assert ledger.epoch == first  # not before it is on disk
            await changed.wait()
            second = ledger.epoch
            assert second is not None
            assert second != first
            rig.grants(11, 12)
            await rig.on_disk()
            assert [row["epoch"] for row in ledger.events(0, 20)] == [first] * 6 + [second] * 5
            after = {row["seq"]: row["digest"] for row in ledger.events(0, 20)}
            assert {seq: after[seq] for seq in before} == before
            assert ledger.acknowledge(first, 8) is False
            assert ledger.acknowledge(second, 8) is True
            assert ledger.held([(first, 6), (first, 7), (second, 7)]) == {(first, 6), (second, 7)}
            assert ledger.held([(first, 0), (second, 99), (second, -1)]) == ledger.held([]) == set()
        with Rig(tmp_path) as rig:
            assert rig.ledger.epoch == second
            assert [row["epoch"] for row in rig.ledger.events(4, 3)] == [first, first, second]
        with Rig(tmp_path, gateway="other") as rig:
            assert rig.ledger.epoch not in (first, second)
            assert [row["epoch"] for row in rig.ledger.events(5, 5)][:3] == [first, second, second]

    asyncio.run(main())


def test_a_restored_central_gets_again_what_it_lacks(tmp_path: Path) -> None:
    """have sets the mark to the first event that the central does not hold, over several epochs."""

    async def main() -> None:
        with Rig(tmp_path) as rig:
            ledger = rig.ledger

            async def acknowledge(seq: int) -> None:
                assert ledger.epoch is not None
                assert ledger.acknowledge(ledger.epoch, seq)
                await rig.until(lambda: ledger.acknowledged == seq)

            rig.grants(1, 11)
            await rig.on_disk()
            await acknowledge(10)
            first = ledger.epoch
            ledger.new_epoch("enrolled")
            await rig.until(lambda: ledger.epoch != first)
            second = ledger.epoch
            rig.grants(11, 21)
            await rig.on_disk()
            await acknowledge(20)
            assert first is not None
            assert second is not None
            for answer, mark in (
                ({first: 10, second: 20}, 20),
                ({first: 10, second: 15}, 15),
                ({first: 7, second: 20}, 7),
                ({first: 10}, 10),
                ({}, 0),
                ({first: 10, second: 99}, 20),
            ):
                ledger.have(answer)
                await rig.until(lambda mark=mark: ledger.acknowledged == mark)

    asyncio.run(main())


def test_another_program_reads_the_ledger(tmp_path: Path) -> None:
    """gateway ledger reads the file while nobody has it open, with and without a log beside it."""

    async def main() -> None:
        with pytest.raises(FileNotFoundError, match="data_dir"):
            read_events(tmp_path / "ledger.db", 0, 10)
        with Rig(tmp_path) as rig:
            rig.grants(1, 6)
            await rig.on_disk()
            live = read_events(tmp_path / "ledger.db", 2, 2)
            assert (tmp_path / "ledger.db-wal").exists()
        assert not (tmp_path / "ledger.db-wal").exists()
        before = names(tmp_path)
        still = read_events(tmp_path / "ledger.db", 2, 2)
        assert still == live
        assert [(row["gateway"], row["epoch"], row["seq"]) for row in still] == [
            ("north", rig.ledger.epoch, 3),
            ("north", rig.ledger.epoch, 4),
        ]
        assert names(tmp_path) == before

    asyncio.run(main())


def test_a_ledger_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    """A newer format is refused with what to do, and not a byte of the file changes."""

    async def main() -> None:
        with Rig(tmp_path) as rig:
            rig.grants(1, 3)
        with file(tmp_path) as other:
            other.execute("UPDATE meta SET value = 3 WHERE key = 'format'")
            other.execute("PRAGMA user_version = 3")
        before = (tmp_path / "ledger.db").read_bytes()
        with pytest.raises(LedgerTooNew, match="format 3, this program knows 2: install"):
            Rig(tmp_path)
        assert (tmp_path / "ledger.db").read_bytes() == before
        assert names(tmp_path) == ["ledger.db"]

    asyncio.run(main())


def test_after_close_nothing_is_taken(tmp_path: Path) -> None:
    """close writes all that was recorded; later events are counted as lost and answered."""

    async def main() -> None:
        rig = Rig(tmp_path, on_failure="deny")
        rig.grants(1, 300)
        assert rig.ledger.close() is True
        assert {tuple(said) for said in rig.answers.values()} == {(True,)}
        rig.record(grant(300), 300)
        await asyncio.sleep(0)
        assert rig.answers[300] == [False]
        assert rig.ledger.lost == 1
        assert rig.ledger.person("H1", 0) == []
        assert rows(tmp_path, "SELECT count(*), max(seq) FROM event") == [(299, 299)]

    asyncio.run(main())


def test_the_log_does_not_grow_without_bound(tmp_path: Path) -> None:
    """The write-ahead log is moved into the file between commits, so it stays bounded under load."""

    async def main() -> None:
        with Rig(tmp_path, memory=100_000) as rig:
            for start in range(0, 12_000, 400):
                rig.grants(start, start + 400)
                await rig.on_disk()
            log = (tmp_path / "ledger.db-wal").stat().st_size
            assert log < 8000 * 4120
            assert (tmp_path / "ledger.db").stat().st_size > 1 << 20
            assert (
                len(sqlite3.connect(tmp_path / "ledger.db").execute("SELECT 1 FROM event").fetchall())
                == 12_000
            )

    asyncio.run(main())
