"""The ledger's bookkeeping for the upload: what is to be sent, and what moves the mark."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.cache.ledger_rows import EVENT_COLUMNS, event_digest, event_row
from gateway.cache.ledger_store import Act, Entry, Store
from tests.cache.ledger_rig import DAY, Rig, file, grant, rows

_NAMES = itertools.count()


def seqs(rig: Rig, limit: int = 1000, since: int | None = None) -> list[int]:
    return [row[2] for row in rig.ledger.outbox(limit, since)]


async def flushed(rig: Rig) -> None:
    """Until all that was asked for is on disk."""
    done = asyncio.Event()
    rig.ledger.flushed(done.set)
    await done.wait()


async def recorded(rig: Rig, count: int) -> None:
    rig.grants(0, count)
    await rig.on_disk()


def epoch(rig: Rig) -> int:
    found = rig.ledger.epoch
    assert found is not None
    return found


def test_the_outbox_is_what_is_on_disk(tmp_path: Path) -> None:
    """Each row is its epoch, its digest and the columns, in order; limit and since are held."""

    async def main() -> None:
        with Rig(tmp_path) as rig:
            assert rig.ledger.outbox(10) == []
            await recorded(rig, 9)
            found = rig.ledger.outbox(4)
            events = rig.ledger.events(0, 4)
            for row, event in zip(found, events, strict=True):
                assert row[0] == event["epoch"] == epoch(rig)
                assert row[1].hex() == event["digest"]
                assert dict(zip(EVENT_COLUMNS, row[2:], strict=True)).items() <= event.items()
            assert seqs(rig, 4, 6) == [7, 8, 9]
            assert rig.ledger.unacknowledged == 9

    asyncio.run(main())


def test_damaged_rows_keep_their_place(tmp_path: Path) -> None:
    """A row that does not fit its digest, or whose text is no text, is its number and nothing else; it is
    settled like the others."""

    async def main() -> None:
        with Rig(tmp_path) as rig:
            await recorded(rig, 5)
            with file(tmp_path) as other:
                other.execute("UPDATE event SET holder = 'somebody else' WHERE seq = 2")
                other.execute("UPDATE event SET holder = CAST(x'ff41' AS TEXT) WHERE seq = 4")
            found = rig.ledger.outbox(10)
            nothing = (None,) * (len(EVENT_COLUMNS) - 1)
            assert found[1] == (epoch(rig), None, 2, *nothing)
            assert found[3] == (epoch(rig), None, 4, *nothing)
            assert [event_digest(row[2:]) == row[1] for row in found] == [True, False, True, False, True]
            assert rig.ledger.settle(epoch(rig), 1, 5)
            await flushed(rig)
            assert rig.ledger.acknowledged == 5

    asyncio.run(main())


def test_the_outbox_as_json_is_the_same(tmp_path: Path) -> None:
    """Whatever characters and epochs, and whatever is damaged: the texts say what the rows say."""
    odd = ["\x00\x01\x08\t\n\x0c\r\x1f\x7f", '"\\/', "ä€😀\u2028", "[1]", '{"a":1}', "null", "", " "]

    async def main() -> None:
        with Rig(tmp_path) as rig:
            await recorded(rig, 3)
            rig.ledger.new_epoch("so that there are two")
            for number, text in enumerate(odd):
                rig.record(replace(grant(number, person=text), detail=text, flags=()), number)
            rig.record(replace(grant(99), at=(1 << 63) - 1), 99)
            await rig.on_disk()

            def same() -> list[list[Any]]:
                found = rig.ledger.outbox_json(100, 0)
                written = [orjson.loads(text) for _, text in found]
                assert [seq for seq, _ in found] == seqs(rig, since=0)
                for (epoch, digest, *columns), text in zip(rig.ledger.outbox(100, 0), written, strict=True):
                    assert text == [epoch, None if digest is None else digest.hex(), *columns]
                assert rig.ledger.outbox_json(2, 1) == found[1:3]
                return written

            assert [row[9] for row in same()[3:-1]] == odd
            rig.ledger.refuse(2, "why")
            await flushed(rig)
            with file(tmp_path) as other:
                other.execute("UPDATE event SET holder = CAST(x'ff41' AS TEXT) WHERE seq = 3")
                other.execute("UPDATE event SET at = at + 1 WHERE seq = 5")
            assert [row[2] for row in same() if row[1] is None] == [3, 5]
            with file(tmp_path) as other:  # a flipped bit does not ask whether the table is STRICT
                other.execute("PRAGMA writable_schema = ON")
                other.execute(
                    "UPDATE sqlite_schema SET sql = replace(sql, ') STRICT', ')') WHERE name = 'event'"
                )
            with file(tmp_path) as other:
                other.execute("UPDATE event SET holder = x'ff41' WHERE seq = 6")
            assert [row[2] for row in same() if row[1] is None] == [3, 5, 6]

    asyncio.run(main())


def test_a_range_moves_the_mark_only_where_nothing_is_left_out(tmp_path: Path) -> None:
    """A range above a hole does nothing; one that begins at or before the next event does; it is on disk."""

    async def main() -> None:
        with Rig(tmp_path) as rig:
            await recorded(rig, 10)
            mine = epoch(rig)
            for first, last, mark in ((2, 3, 0), (1, 3, 3), (1, 3, 3), (5, 6, 3), (2, 5, 5), (1, 2, 5)):
                assert rig.ledger.settle(mine, first, last)
                await flushed(rig)
                assert rig.ledger.acknowledged == mark
                assert seqs(rig) == list(range(mark + 1, 11))
            assert not rig.ledger.settle(mine + 1, 6, 7)
            assert not rig.ledger.settle(mine, 6, 11)
            assert not rig.ledger.settle(mine, 7, 6)
            assert not rig.ledger.settle(mine, 0, 6)
            rig.ledger.settle(mine, 6, 7)
            rig.ledger.settle(mine, 8, 9)  # before the first is on disk
            await flushed(rig)
            assert rig.ledger.acknowledged == 9
            assert rig.ledger.unacknowledged == 1
        with Rig(tmp_path) as rig:
            assert rig.ledger.acknowledged == 9

    asyncio.run(main())


def test_numbers_that_are_not_there_are_no_hole(tmp_path: Path) -> None:
    """What a damaged ledger has lost cannot be sent and holds up nothing."""

    async def main() -> None:
        with Rig(tmp_path) as rig:
            await recorded(rig, 6)
            with file(tmp_path) as other:
                other.execute("DELETE FROM event WHERE seq IN (1, 2, 4)")
            assert seqs(rig) == [3, 5, 6]
            rig.ledger.settle(epoch(rig), 3, 3)
            rig.ledger.settle(epoch(rig), 5, 5)
            await flushed(rig)
            assert rig.ledger.acknowledged == 5

    asyncio.run(main())


def test_what_was_set_aside_is_passed_over_and_kept(tmp_path: Path) -> None:
    """It is not sent and stops nothing, before or after what is around it was acknowledged; it outlives
    pruning and the mark does not jump over others with it."""

    async def main() -> None:
        with Rig(tmp_path) as rig:
            await recorded(rig, 9)
            mine = epoch(rig)
            rig.ledger.refuse(1, "first")
            await flushed(rig)
            assert rig.ledger.acknowledged == 1
            rig.ledger.refuse(4, "ahead")
            rig.ledger.refuse(5, "ahead")
            await flushed(rig)
            assert rig.ledger.acknowledged == 1
            assert seqs(rig) == [2, 3, 6, 7, 8, 9]
            assert rig.ledger.settle(mine, 6, 6)
            rig.ledger.settle(mine, 2, 3)
            await flushed(rig)
            assert rig.ledger.acknowledged == 5
            rig.ledger.refuse(9, "last")
            rig.ledger.settle(mine, 6, 8)
            await flushed(rig)
            assert (rig.ledger.acknowledged, rig.ledger.unacknowledged) == (9, 0)
            rig.ledger.record(grant(10))
            await rig.on_disk()
            assert seqs(rig) == [10]
            rig.ledger.prune(1000 * DAY, 0)
            await flushed(rig)
            assert [row["seq"] for row in rig.ledger.events(0, 20)] == [1, 4, 5, 9, 10]
            assert [row["seq"] for row in rig.ledger.refused()] == [1, 4, 5, 9]

    asyncio.run(main())


def test_a_central_that_was_restored(tmp_path: Path) -> None:
    """The mark goes down to what it has, never up, and all after that is sent again, but for what was set
    aside."""

    async def main() -> None:
        with Rig(tmp_path) as rig:
            await recorded(rig, 8)
            rig.ledger.refuse(4, "no")
            rig.ledger.settle(epoch(rig), 1, 6)
            rig.ledger.lower(7)
            await flushed(rig)
            assert rig.ledger.acknowledged == 6
            rig.ledger.lower(2)
            await flushed(rig)
            assert seqs(rig) == [3, 5, 6, 7, 8]
            rig.ledger.lower(-5)
            await flushed(rig)
            assert seqs(rig) == [1, 2, 3, 5, 6, 7, 8]

    asyncio.run(main())


def test_new_epochs(tmp_path: Path) -> None:
    """All that is not acknowledged, or only what follows a number, gets the new epoch; what is acknowledged
    keeps the one that the central knows. A range over two epochs moves nothing."""

    async def main() -> None:
        with Rig(tmp_path) as rig:
            await recorded(rig, 6)
            first = epoch(rig)
            rig.ledger.settle(first, 1, 2)
            rig.ledger.new_epoch("from 5 on", after=4)
            await flushed(rig)
            second = epoch(rig)
            assert rig.ledger.epochs == ((1, first), (5, second))
            assert (rig.ledger.first_of(second), rig.ledger.first_of(7)) == (5, None)
            assert [row[0] for row in rig.ledger.outbox(10)] == [first, first, second, second]
            assert not rig.ledger.settle(first, 3, 5)
            assert not rig.ledger.settle(second, 4, 5)
            assert [rig.ledger.epoch_of(seq) for seq in (4, 5)] == [first, second]
            rig.ledger.settle(first, 3, 4)
            rig.ledger.settle(second, 5, 5)
            rig.ledger.new_epoch("not what is acknowledged", after=2)
            await flushed(rig)
            assert rig.ledger.epochs == ((1, first), (5, second), (6, epoch(rig)))
            rig.ledger.new_epoch("a conflict")
            await flushed(rig)
            assert rig.ledger.epochs == ((1, first), (5, second), (6, epoch(rig)))
            old = rows(tmp_path, "SELECT count(*) FROM epoch")
            assert old == [(3,)]
            # What was on its way for an epoch that has ended is worth nothing.
            third = epoch(rig)
            rig.ledger.new_epoch("another")
            assert rig.ledger.settle(third, 6, 6)
            await flushed(rig)
            assert rig.ledger.acknowledged == 5

    asyncio.run(main())


def test_a_ledger_that_is_held_by_another(tmp_path: Path) -> None:
    """The mark is where it was; when the ledger can be written again, all is done once."""

    async def main() -> None:
        with Rig(tmp_path) as rig:
            await recorded(rig, 4)
            with file(tmp_path) as other:
                other.execute("BEGIN IMMEDIATE")  # the writer meets a ledger that is held
                rig.ledger.settle(epoch(rig), 1, 2)
                rig.ledger.settle(epoch(rig), 3, 3)
                await rig.until(lambda: rig.ledger.failed)
                assert rig.ledger.acknowledged == 0
                other.execute("COMMIT")
            await flushed(rig)
            assert rig.ledger.acknowledged == 3
            assert rows(tmp_path, "SELECT value FROM meta WHERE key = 'acknowledged'") == [(3,)]

    asyncio.run(main())


def test_a_transaction_that_fails_takes_the_mark_back(tmp_path: Path) -> None:
    """What was settled and drawn in a transaction that came to nothing is not in memory either; given again
    it is done."""
    store = Store.open(tmp_path / "ledger.db", "north")
    try:
        event = grant(1)
        store.write([Entry(event, event_row(event))])
        mine = store.epochs[-1][1]

        def fails(_: Store) -> None:
            raise OSError("the disk is gone")

        def settles(store: Store) -> None:
            store.settle(mine, 1, 1)
            store.new_epoch(7, "x")

        with pytest.raises(OSError, match="gone"):
            store.write([Act(settles), Act(fails)])
        assert (store.acknowledged, store.epochs) == (0, ((1, mine),))
        store.write([Act(settles)])
        assert (store.acknowledged, store.epochs) == (1, ((1, mine), (2, 7)))
        assert rows(tmp_path, "SELECT value FROM meta WHERE key = 'acknowledged'") == [(1,)]
    finally:
        store.close()


# --- against a plain list ---------------------------------------------------------------------------


seq = st.integers(1, 30)
step = st.one_of(
    st.tuples(st.just("record"), st.integers(1, 5)),
    st.tuples(st.just("send"), st.integers(1, 6), st.sampled_from(["all", "half", "last", "twice"])),
    st.tuples(st.just("late"), st.integers(0, 9)),
    st.tuples(st.just("settle"), seq, st.integers(0, 8)),
    st.tuples(st.just("refuse"), seq),
    st.tuples(st.just("epoch"), st.one_of(st.none(), seq)),
    st.tuples(st.just("lower"), seq),
    st.tuples(st.just("prune")),
)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(step, max_size=30))
def test_nothing_is_left_out_and_nothing_taken_for_granted(
    runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[object, ...]]
) -> None:
    """Whatever is recorded, sent, acknowledged (late, twice, out of order, under an epoch of before), refused
    or sent again: the outbox has each event that is neither acknowledged nor set aside, and the mark passes
    only over what is."""
    runner.run(_walk(tmp_path_factory.mktemp("upload"), steps))


async def _walk(folder: Path, steps: list[tuple[object, ...]]) -> None:
    has: set[tuple[int, int]] = set()
    """What the central has, as (epoch, seq)."""
    refused: set[int] = set()
    answers: list[tuple[int, int, int]] = []
    """Ranges that it has answered, each possibly still on its way."""
    pruned: set[int] = set()
    last = 0
    with Rig(folder) as rig:
        ledger = rig.ledger

        def received(rows: list[tuple[object, ...]]) -> None:
            """The central takes these and says so, a range for each epoch without a gap."""
            for row in rows:
                of, number = row[0], row[2]
                assert isinstance(of, int)
                assert isinstance(number, int)
                has.add((of, number))
                if answers and answers[-1][0] == of and answers[-1][2] == number - 1:
                    answers[-1] = (of, answers[-1][1], number)
                else:
                    answers.append((of, number, number))

        for each in steps:
            before = ledger.acknowledged
            match each:
                case "record", int(count):
                    rig.grants(last, last + count)
                    last += count
                    await rig.on_disk()
                case "send", int(count), str(what):
                    rows = ledger.outbox(count)
                    if what == "last":
                        rows = rows[-1:]
                    received(rows)
                    answered = [] if what == "half" else answers[-2:]  # else it is lost, or late
                    for of, first, end in answered * (2 if what == "twice" else 1):
                        ledger.settle(of, first, end)
                case "late", int(place) if answers:
                    ledger.settle(*answers[place % len(answers)])
                case "settle", int(first), int(length):  # the central has had all of it, under this epoch
                    end = first + length
                    of = ledger.epoch_of(first)
                    if of is not None and ledger.settle(of, first, end):
                        has |= {(of, number) for number in range(first, end + 1)}
                case "refuse", int(number) if number <= last:
                    ledger.refuse(number, "no")
                    refused.add(number)
                case "epoch", after if after is None or (isinstance(after, int) and after <= last):
                    ledger.new_epoch("a new one", after=after)
                case "lower", int(mark):
                    ledger.lower(mark)
                case ("prune",):
                    ledger.prune(1000 * DAY, 0)
            await flushed(rig)
            there = {row["seq"] for row in ledger.events(0, 1000)}
            mark = ledger.acknowledged
            if each[0] not in ("send", "late", "settle", "refuse"):
                assert mark <= before
            assert 0 <= mark <= last == ledger.last_seq
            gone = set(range(1, last + 1)) - there - pruned
            assert not gone or (each[0] == "prune" and max(gone) <= mark)
            pruned |= gone
            acknowledged = {number for of, number in has if ledger.epoch_of(number) == of}
            passed = set(range(1, mark + 1))
            assert passed <= acknowledged | refused | pruned
            assert seqs(rig) == [n for n in range(mark + 1, last + 1) if n in there - refused]
            assert refused <= there
